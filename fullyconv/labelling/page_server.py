"""The page's server: uvicorn with `serving`'s protocol and gate, on this machine alone, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
import stat
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import final

import uvicorn

from fullyconv.errors import FullyconvError
from fullyconv.files import read_file, storage_errors
from fullyconv.labelling.project import Project
from fullyconv.labelling.rounds import Settings
from fullyconv.labelling.routes import MEDIA, ROUTES, Labelling, labelling_application
from fullyconv.serving.gate import Gate
from fullyconv.serving.protocol import Connections, guarded_protocol
from fullyconv.serving.request_limits import Limits
from fullyconv.serving.server import SignalledServer, bind

__all__ = ["run_labelling_server"]

_KEY = 32  # characters
LIMITS = Limits(body=1 << 20, bodies=1 << 26, per_address=64, write_seconds=60.0)


def run_labelling_server(
    project: Project, settings: Settings, port: int, listening: Callable[[str], None], browse: bool = False
) -> None:
    """Serve the page until SIGTERM or SIGINT; label maps are written before it returns.

    listening: called with the address, which holds the key (after #) without which nobody is answered: other users of
    the machine reach 127.0.0.1 too.
    """
    key = _key(project.home / "key")
    gate = Gate(LIMITS, keys=(hashlib.sha256(key.encode()).digest(),), routes=ROUTES, media=MEDIA)
    bound = bind("127.0.0.1", port)
    address = f"http://127.0.0.1:{bound.getsockname()[1]}/#{key}"
    listening(address)
    if browse:
        webbrowser.open(address)
    with bound:
        asyncio.run(_run(project, settings, bound, gate))


def _key(file: Path) -> str:
    """The project's key, kept for its owner alone: a page that is open goes on with a server that was started again."""
    with contextlib.suppress(FullyconvError, UnicodeDecodeError):
        key = read_file(file, 1 << 10).decode("ascii")
        if len(key) == _KEY and not stat.S_IMODE(os.stat(file).st_mode) & 0o077:
            return key
    key = secrets.token_urlsafe(24)
    with storage_errors("Writing", file):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(made, key.encode())
        os.close(made)
    return key


async def _run(project: Project, settings: Settings, bound: socket.socket, gate: Gate) -> None:
    labelling = Labelling(project, settings)
    config = uvicorn.Config(
        labelling_application(labelling, gate), http=guarded_protocol(Connections(gate)), ws="none", lifespan="off",
        loop="asyncio", interface="asgi3", log_config=None, log_level="error", access_log=False, proxy_headers=False,
        server_header=False, timeout_keep_alive=gate.limits.idle_seconds, timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=gate.limits.headers,
    )  # fmt: skip
    labelling.start()
    try:
        await _Server(config, labelling).serve(sockets=[bound])
    finally:
        await labelling.close()


@final
class _Server(SignalledServer):
    """Pages that wait for news are answered when it ends; ending as told is no failure."""

    def __init__(self, config: uvicorn.Config, labelling: Labelling) -> None:
        super().__init__(config)
        self.labelling = labelling

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.labelling.end_waiting()
        await asyncio.sleep(0.05)
        await super().shutdown(sockets)
