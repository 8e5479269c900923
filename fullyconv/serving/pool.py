"""The worker's supervisor: one image in work, `waiting` more, deadlines, and a new worker where one died.

Everything runs in the server's event loop; nothing here decodes or computes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, final

from fullyconv import errors
from fullyconv.errors import DataError, FullyconvError
from fullyconv.serving.gate import Refusal
from fullyconv.serving.request_limits import Limits
from fullyconv.serving.wanted import Wanted
from fullyconv.serving.worker import HEAD
from fullyconv.terminal import say

__all__ = ["WORKER", "Pool", "Settings"]

WORKER = ("-m", "fullyconv.serving.worker")

Settings = dict[str, Any]
"""What a worker is started with: "model", "tile", "device", "precision"."""

LOADING = Refusal(503, "loading", "The network is being loaded.", retry_after=2)
DRAINING = Refusal(503, "draining", "The server is shutting down.", retry_after=5)
DIED = Refusal(503, "worker", "The process that labels ended; another one is being started.", retry_after=5)
FULL = Refusal(429, "busy", "Enough images are waiting.", retry_after=1)
WAITED = Refusal(504, "waited", "The image waited too long for its turn.", retry_after=5)
LATE = Refusal(504, "deadline", "Labelling took too long; send a smaller image.")
GRACE = 5.0  # seconds beyond its deadline after which a worker that does not answer is replaced


@final
class Job:
    """An image on its way. `done` gets (answer, body) or a Refusal."""

    def __init__(self, asked: Wanted, media: str, body: bytes, now: float) -> None:
        self.asked, self.media, self.body, self.since = asked, media, body, now
        self.done: asyncio.Future[tuple[dict[str, Any], bytes] | Refusal] = asyncio.get_running_loop().create_future()

    def finish(self, result: tuple[dict[str, Any], bytes] | Refusal) -> None:
        if not self.done.done():
            self.done.set_result(result)


@final
class Pool:
    """`ask` an image. `failed` is called with an error when the server can go on no longer. command: what Python runs
    as the worker; it gets a socket's descriptor as its last argument."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        failed: Callable[[FullyconvError], None],
        command: Sequence[str] = WORKER,
    ) -> None:
        self.settings, self.limits, self._failed, self._command = settings, limits, failed, command
        self.about: dict[str, Any] | None = None  # what the worker that is ready says of itself
        self.draining = False
        self.starts = 0
        self.waiting: deque[Job] = deque()
        self.working: Job | None = None
        self._more = asyncio.Event()
        self._deaths: deque[float] = deque()
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._said: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process, None where there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def busy(self) -> Refusal | None:
        """Why no image can be taken now."""
        if self.draining:
            return DRAINING
        if self.about is None:
            return DIED if self._deaths else LOADING
        if self.working is not None and len(self.waiting) >= self.limits.waiting:
            return FULL
        return None

    async def ask(self, asked: Wanted, media: str, body: bytes) -> tuple[dict[str, Any], bytes] | Refusal:
        """The worker's answer. If the caller is cancelled, an image that waits is never labelled."""
        if refusal := self.busy():
            return refusal
        job = Job(asked, media, body, time.monotonic())
        self.waiting.append(job)
        self._more.set()
        timer = asyncio.get_running_loop().call_later(self.limits.wait_seconds, self._waited, job)
        try:
            return await job.done
        finally:
            timer.cancel()
            self._leave(job)

    def _waited(self, job: Job) -> None:
        if job in self.waiting:
            job.finish(WAITED)

    def _leave(self, job: Job) -> None:
        with contextlib.suppress(ValueError):
            self.waiting.remove(job)

    async def drained(self) -> None:
        """Take nothing more; return when all that was taken is answered."""
        self.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.drain_seconds):
                while self.working or self.waiting:
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End the worker at once."""
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._end()

    async def _keep(self) -> None:
        """Worker after worker, as long as they do not die too often."""
        while True:
            try:
                await self._serve()
            except FullyconvError as error:
                return self._failed(error)
            except (OSError, EOFError, TimeoutError, ValueError):
                pass
            code = await self._end()
            now = time.monotonic()
            self._deaths.append(now)
            while self._deaths and now - self._deaths[0] > self.limits.deaths_seconds:
                self._deaths.popleft()
            if len(self._deaths) >= self.limits.deaths:
                seconds = self.limits.deaths_seconds
                return self._failed(
                    FullyconvError(
                        f"The process that labels ended {len(self._deaths)} times within {seconds:g} seconds (last "
                        f"exit code {code}); what it said stands above, try  fullyconv predict  with the same model."
                    )
                )

    async def _serve(self) -> None:
        """One worker's life: raises when it is over."""
        ours, theirs = socket.socketpair()
        self.starts += 1
        with theirs:
            arguments = ["-P", *self._command, str(theirs.fileno())]
            # Where the package was found must not depend on the working directory, which is not on the path (-P).
            path = os.pathsep.join(p for p in sys.path if p)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
        assert self._process.stderr is not None
        self._said = asyncio.ensure_future(_pass_on(self._process.stderr))
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            await _write(writer, {**self.settings, "limits": asdict(self.limits)}, b"")
            async with asyncio.timeout(self.limits.start_seconds):
                message, _ = await _read(reader)
            if "failed" in message:
                raise _error(message["failed"])
            self.about = message["ready"]
            while True:
                await self._next(reader, writer)
        finally:
            writer.close()

    async def _next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the next image; returns at once when the worker ends while there is none."""
        while not self.waiting:
            self._more.clear()
            more = asyncio.ensure_future(self._more.wait())
            gone = asyncio.ensure_future(reader.read(1))  # an idle worker says nothing: this ends when it does
            try:
                await asyncio.wait({more, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    raise EOFError
            finally:
                more.cancel()
                gone.cancel()
                with contextlib.suppress(asyncio.CancelledError, EOFError, OSError):
                    await gone
        job = self.waiting.popleft()
        self.working = job
        now = time.monotonic()
        request = {"wanted": job.asked.to_json(), "media": job.media, "deadline": now + self.limits.work_seconds}
        try:
            await _write(writer, request, job.body)
            async with asyncio.timeout(self.limits.work_seconds + GRACE):
                answer, body = await _read(reader)
            job.finish(Refusal(**answer) if answer["status"] != 200 else (answer, body))
        except TimeoutError:
            job.finish(LATE)
            raise
        except BaseException:
            job.finish(DIED)
            raise
        finally:
            self.working = None

    async def _end(self) -> int | None:
        """End the worker, answer whoever waits for it; its exit code."""
        self.about = None
        while self.waiting:
            self.waiting.popleft().finish(DIED)
        process = self._process
        if process is None:
            return None
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return await process.wait()


async def _pass_on(stream: asyncio.StreamReader) -> None:
    """What the worker says, onto our stderr: it may write no file itself, and our stderr may be one."""
    while data := await stream.read(1 << 16):
        for line in data.decode(errors="replace").splitlines():
            say(line)


async def _write(writer: asyncio.StreamWriter, message: Mapping[str, object], body: bytes) -> None:
    text = json.dumps(message).encode()
    writer.write(HEAD.pack(len(text), len(body)) + text)
    writer.write(body)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    sizes = HEAD.unpack(await reader.readexactly(HEAD.size))
    text = await reader.readexactly(sizes[0])
    return json.loads(text), await reader.readexactly(sizes[1])


def _error(failed: dict[str, str]) -> FullyconvError:
    """The worker's refusal as an error of the same class here."""
    kind = getattr(errors, failed["class"], DataError)
    simple = isinstance(kind, type) and issubclass(kind, FullyconvError) and kind.__init__ is Exception.__init__
    error = (kind if simple else DataError)(failed["message"])
    return error if isinstance(error, FullyconvError) else DataError(failed["message"])
