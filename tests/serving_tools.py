"""A server with a stub for a worker, in a process of its own, and raw sockets to talk to it.

    python serving_tools.py serve LIMITS SECONDS    LIMITS: JSON for `Limits`; SECONDS that the stub takes an image
    python serving_tools.py real MODEL              the worker itself
    python serving_tools.py plain SECONDS [decode]  uvicorn as it comes, with the same stub: the negative control;
                                                    decode: it opens the image itself, as one does
    python serving_tools.py worker FD               the stub

The stub does what the first bytes of an "image" say: die, hang, or answer after SECONDS with the body's length.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__)


@dataclass
class Served:
    process: subprocess.Popen[str]
    port: int
    done: list[str] = field(default_factory=list)

    def connect(self, source: str = "127.0.0.1", timeout: float = 20) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout, (source, 0))

    def ask(self, data: bytes, source: str = "127.0.0.1", timeout: float = 20) -> tuple[int, dict[str, str], bytes]:
        """Send bytes as they are on a new connection; (status, headers, body), status 0 when nothing came back."""
        with self.connect(source, timeout) as s:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                s.sendall(data)
            return read_answer(s)

    def get(self, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.ask(request("GET", path, *headers))

    def post(self, body: bytes, *headers: str, source: str = "127.0.0.1", query: str = "") -> tuple[int, Any, bytes]:
        return self.ask(image_request(body, *headers, query=query), source)

    def until_ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.get("/readyz")[0] != 200:
            assert time.monotonic() < end, "the server does not become ready"
            time.sleep(0.02)

    def until_listening(self, seconds: float = 60) -> None:
        """uvicorn alone has a port before it listens."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.connect().close()
            except ConnectionRefusedError:
                assert time.monotonic() < end, "the server does not listen"
                time.sleep(0.05)

    def figure(self, name: str) -> float:
        text = self.get("/metrics")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def request(method: str, path: str, *headers: str, host: str = "localhost") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode("latin-1")


def image_request(body: bytes, *headers: str, query: str = "", length: int | None = None) -> bytes:
    own = ["Content-Type: image/png", f"Content-Length: {len(body) if length is None else length}"]
    return request("POST", f"/v1/predict{query}", *own, *headers) + body


def chunked(*parts: bytes) -> bytes:
    head = request("POST", "/v1/predict", "Content-Type: image/png", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (*parts, b""))


def read_answer(s: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One HTTP answer with a Content-Length; (0, {}, b"") for a connection that ended without."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            more = s.recv(1 << 16)
        except ConnectionResetError:
            return 0, {"reset": "yes"}, b""
        if not more:
            return 0, {}, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        more = s.recv(1 << 16)
        if not more:
            break
        body += more
    return int(first.split()[1]), headers, body


@contextlib.contextmanager
def serving(kind: str, *arguments: str) -> Iterator[Served]:
    command = [sys.executable, str(HERE), kind, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        served = Served(process, int(process.stdout.readline().rstrip("/\n").rpartition(":")[2]))
        if kind == "plain":
            served.until_listening()
        if kind == "serve":
            served.until_ready()
        yield served
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


def stub() -> None:
    """The worker that the tests know: see the module."""
    from fullyconv.serving.worker import receive, send

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[-1]))
    first = receive(channel)
    assert first is not None
    about = {"name": "stub", "heads": [{"name": "a", "classes": ["x"], "palette": [[0, 0, 0]]}], "device": "cpu",
             "precision": "fp32", "weights_sha256": "0" * 64, "warm_seconds": 0.0, "answered": 0}  # fmt: skip
    send(channel, {"ready": about})
    answered = 0
    while (job := receive(channel)) is not None:
        if job[1].startswith(b"die"):
            os._exit(3)
        if job[1].startswith(b"hang"):
            time.sleep(1000)
        answered += 1
        time.sleep(float(first[0]["model"]))
        text = json.dumps({"bytes": len(job[1]), "answered": answered}).encode()
        send(channel, {"status": 200, "media": "application/json", "size": [1, 1]}, text)


def serve(limits: str, seconds: str) -> None:
    from fullyconv.serving.gate import Gate
    from fullyconv.serving.request_limits import Limits
    from fullyconv.serving.server import run_server

    settings = {"model": seconds, "tile": 0, "device": "cpu", "precision": "fp32"}
    gate = Gate(Limits(**json.loads(limits)))
    run_server(settings, "127.0.0.1", 0, gate, lambda address: print(address, flush=True), (str(HERE), "worker"))


def real(model: str) -> None:
    from fullyconv.serving.gate import Gate
    from fullyconv.serving.server import run_server

    settings = {"model": model, "tile": 2048, "device": "cpu", "precision": "fp32"}
    run_server(settings, "127.0.0.1", 0, Gate(), lambda address: print(address, flush=True))


def plain(seconds: str, decode: str = "") -> None:
    """What one writes in five minutes: starlette and uvicorn as they come, an unbounded queue before one worker."""
    import asyncio
    import io

    import uvicorn
    from PIL import Image
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    turn = asyncio.Lock()

    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        if decode:
            Image.open(io.BytesIO(body)).convert("RGB")
        async with turn:
            await asyncio.sleep(float(seconds))
        return JSONResponse({"bytes": len(body)})

    async def ok(request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/v1/predict", predict, methods=["POST"]), Route("/readyz", ok), Route("/healthz", ok)]
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{bound.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", limit_concurrency=64)).run([bound])


if __name__ == "__main__":
    {"serve": serve, "plain": plain, "real": real, "worker": lambda *_: stub()}[sys.argv[1]](*sys.argv[2:])
