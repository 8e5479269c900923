"""uvicorn with our protocol, our signals and a pool: `run_server` until a signal or a failure."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import uvicorn

from fullyconv.errors import FullyconvError, StorageError, UsageError, printable
from fullyconv.files import read_file
from fullyconv.serving.app import application
from fullyconv.serving.gate import Gate
from fullyconv.serving.pool import WORKER, Pool, Settings
from fullyconv.serving.prometheus import Figures
from fullyconv.serving.protocol import Connections, guarded_protocol

__all__ = ["SignalledServer", "bind", "is_loopback", "read_keys", "run_server"]

SHORTEST = 20  # characters of a key


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or (host.startswith("127.") and host.count(".") == 3)


def read_keys(file: Path) -> tuple[bytes, ...]:
    """sha256 of each key in a file (one a line); UsageError where others may read it or a key is short."""
    data = read_file(file, 1 << 16)
    if os.stat(file).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{printable(file)} may be read by others; run  chmod 600 {printable(file)}.")
    keys = [line.strip() for line in data.splitlines() if line.strip()]
    if not keys or min(map(len, keys)) < SHORTEST:
        raise UsageError(f"{printable(file)} needs keys of at least {SHORTEST} characters, one a line.")
    return tuple(hashlib.sha256(key).digest() for key in keys)


def run_server(
    settings: Settings,
    host: str,
    port: int,
    gate: Gate,
    listening: Callable[[str], None],
    worker: Sequence[str] = WORKER,
) -> None:
    """Serve until SIGTERM or SIGINT (what was accepted is answered first; a second signal ends it at once).

    listening: called with the address once it is bound. Raises the error that the network cannot be loaded for, and
    FullyconvError when the worker dies again and again.
    """
    bound = bind(host, port)
    name = f"[{host}]" if ":" in host else host
    listening(f"http://{name}:{bound.getsockname()[1]}/")
    with bound:
        asyncio.run(_run(settings, bound, gate, worker))


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; StorageError where the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family[0], family[1], family[2])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(family[4])
        bound.listen()  # whoever is told the address may connect at once
        return bound
    except (OSError, UnicodeError) as error:
        raise StorageError(
            f"The address {printable(host)} port {port} cannot be used ({printable(error)}); choose another --port."
        ) from error


async def _run(settings: Settings, bound: socket.socket, gate: Gate, worker: Sequence[str]) -> None:
    failures: list[FullyconvError] = []

    def failed(error: FullyconvError) -> None:
        failures.append(error)
        server.should_exit = True

    pool = Pool(settings, gate.limits, failed, worker)
    gate.busy = pool.busy
    shared = Connections(gate)
    config = uvicorn.Config(
        application(pool, gate, Figures(pool, shared)), http=guarded_protocol(shared), ws="none", lifespan="off",
        loop="asyncio", interface="asgi3", log_config=None, log_level="error", access_log=False, proxy_headers=False,
        server_header=False, timeout_keep_alive=gate.limits.idle_seconds, timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=gate.limits.headers, backlog=2 * gate.limits.connections,
    )  # fmt: skip
    server = Server(config, pool)
    pool.start()
    try:
        await server.serve(sockets=[bound])
    finally:
        await pool.close()
    if failures:
        raise failures[0]


class SignalledServer(uvicorn.Server):
    """uvicorn's, but ending as a signal told it to is no failure: the signal is not raised again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before: dict[int, Any] = {n: signal.signal(n, self.handle_exit) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@final
class Server(SignalledServer):
    """Drains before it closes: meanwhile new images are answered with 503, and /readyz says so."""

    def __init__(self, config: uvicorn.Config, pool: Pool) -> None:
        super().__init__(config)
        self.pool = pool

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drained = asyncio.ensure_future(self.pool.drained())
        while not drained.done() and not self.force_exit:
            await asyncio.wait({drained}, timeout=0.1)
        drained.cancel()
        await asyncio.sleep(0.05)  # the last answers are written
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self.pool.draining = True
