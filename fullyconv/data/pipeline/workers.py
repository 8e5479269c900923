"""Reading processes that are watched: one that dies, stands still or runs out of memory is an error, never a wait.

Each worker has a socket of its own, whose answers the parent takes piece by piece as they come, so that a worker
frozen in the middle of one cannot freeze the parent; and a `heartbeat.Slot` that says which file it is at.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from fullyconv.data.pipeline import heartbeat
from fullyconv.errors import EXIT_CODES, FullyconvError, InternalError, TryAgain, printable

__all__ = ["Watch", "Workers", "hung"]

Item = TypeVar("Item")
Made = TypeVar("Made")

TICK = 0.25  # seconds between two looks at the workers while waiting for them
PATIENCE = 10  # times as long as it may stand still, a reader may compute at one file
STOPPED = 2.0  # seconds that a worker may be stopped (a stop of the whole run reaches its processes one by one)
BURIAL = 5.0  # seconds that a killed worker is waited for: a dead mount can hold it in the kernel
_LENGTH = struct.Struct("=Q")


def hung(who: str, fact: str, files: str) -> TryAgain:
    """The error for a reader that stands still."""
    return TryAgain(
        f"{who} {fact} while reading {files}; check that the disk or the mount answers (if the file is only large, "
        "raise worker_timeout), then continue with --resume."
    )


@final
class Watch:
    """How long a reader has given no sign of life while somebody waited for it.

    `stat` is its file under /proc. While it computes, or waits for a processor, time runs `PATIENCE` times slower: a
    crowded machine is no fault, and only what blocks (a dead mount, a FIFO) stands still for certain.
    """

    def __init__(self, slot: heartbeat.Slot, stat: str = "") -> None:
        self.slot, self.silent, self.stopped, self.stat = slot, 0.0, 0.0, Path(stat)
        self._moves, self._cpu = slot.moves, 0

    def alive(self) -> None:
        """Something came from it."""
        self.silent = self.stopped = 0.0

    def waited(self, seconds: float) -> None:
        """`seconds` more were waited. A long gap means that the waiting process itself was paused: it counts as 1 s."""
        seconds = min(seconds, 1.0)
        state, cpu = self._look()
        busy = state == "R" or cpu > self._cpu
        self.stopped = self.stopped + seconds if state == "T" else 0.0
        self.silent += seconds / PATIENCE if busy else seconds
        if self.slot.moves != self._moves:
            self.silent = 0.0
        self._moves, self._cpu = self.slot.moves, cpu

    def _look(self) -> tuple[str, int]:
        """(state, processor time in ticks) as the kernel tells them; ("", 0) where it does not (proc(5))."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = self.stat.read_text().rpartition(")")[2].split()
            return fields[0], int(fields[11]) + int(fields[12])
        return "", 0


@final
class _Worker:
    """The parent's side of one process: its socket, the tasks it has, the answer that is arriving."""

    def __init__(self, process: multiprocessing.process.BaseProcess, pipe: socket.socket, slot: heartbeat.Slot) -> None:
        self.process, self.pipe, self.slot, self.watch = process, pipe, slot, Watch(slot, f"/proc/{process.pid}/stat")
        self.tasks: deque[tuple[int, Any]] = deque()
        self._answer = bytearray(_LENGTH.size)
        self._have = 0
        self._in_head = True

    def receive(self) -> list[tuple[int, str, Any]]:
        """Whatever has come, without waiting: the answers that are whole now. EOFError when the worker is gone."""
        found: list[tuple[int, str, Any]] = []
        while True:
            try:
                count = self.pipe.recv_into(memoryview(self._answer)[self._have :], flags=socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return found
            if not count:
                if found:  # what it finished before it died comes first
                    return found
                raise EOFError
            self.watch.alive()
            self._have += count
            if self._have == len(self._answer):
                found += self._complete()

    def _complete(self) -> list[tuple[int, str, Any]]:
        """The buffer is full: of a length, then of an answer of that length."""
        whole, self._have = self._answer, 0
        if self._in_head:
            self._answer, self._in_head = bytearray(_LENGTH.unpack(whole)[0]), False
            return []
        self._answer, self._in_head = bytearray(_LENGTH.size), True
        return [ForkingPickler.loads(whole)]


@final
class Workers(Generic[Item, Made]):
    """Forked processes that run `make`; the kernel tells when one dies, its slot when it stands still."""

    def __init__(
        self, make: Callable[[Item], Made], count: int, timeout: float = 10.0, describe: Callable[[Item], str] = str
    ) -> None:
        context = get_context("fork")
        self.timeout, self.tick, self.describe = timeout, min(TICK, timeout / 4), describe
        self.workers: list[_Worker] = []
        self.finished: dict[int, tuple[str, Any]] = {}
        for number in range(count):
            ours, theirs = socket.socketpair()
            slot = heartbeat.Slot()
            siblings = [*(w.pipe for w in self.workers), ours]
            process = context.Process(
                target=_serve, args=(make, theirs, siblings, slot), daemon=True, name=f"fullyconv-worker-{number}"
            )
            process.start()
            theirs.close()
            self.workers.append(_Worker(process, ours, slot))

    def __enter__(self) -> Workers[Item, Made]:
        return self

    def __exit__(self, *_error: object) -> None:
        for worker in self.workers:
            worker.pipe.close()
        for worker in self.workers:
            worker.process.join(timeout=0.2)
            if worker.process.is_alive():
                worker.process.kill()  # a stopped process ignores everything else
        for worker in self.workers:
            worker.process.join(timeout=BURIAL)
            if worker.process.is_alive():  # held in the kernel: its end must not be waited for at our own end either
                multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]

    def give(self, ticket: int, item: Item) -> None:
        """Hand `item` to the worker whose turn it is."""
        number = ticket % len(self.workers)
        worker = self.workers[number]
        worker.tasks.append((ticket, item))
        try:
            _send(worker.pipe, (ticket, item))
        except OSError:
            raise self._dead(number) from None

    def take(self, ticket: int) -> Made:
        """The result of `ticket`, waited for; raises what `make` raised, or says which worker died or hangs, and where.

        One that stands still is told within `timeout` seconds (a stopped one within 3), a dead one at once.
        """
        while ticket not in self.finished:
            self._receive()
        kind, value = self.finished.pop(ticket)
        if kind == "made":
            return value  # type: ignore[no-any-return]
        raise value

    def _receive(self) -> None:
        """Wait for an answer, a death, or the next look."""
        busy = [n for n, worker in enumerate(self.workers) if worker.tasks]
        pipes = {n: self.workers[n].pipe for n in busy}
        sentinels = [self.workers[n].process.sentinel for n in busy]
        start = time.monotonic()
        ready = set(connection.wait([*pipes.values(), *sentinels], timeout=self.tick))
        waited = time.monotonic() - start
        for n in busy:
            if pipes[n] in ready:
                self._read(n)
            elif self.workers[n].process.sentinel in ready:
                raise self._dead(n)
            else:
                self._look(n, waited)

    def _look(self, number: int, waited: float) -> None:
        worker = self.workers[number]
        watch = worker.watch
        watch.waited(waited)
        if watch.stopped >= STOPPED or watch.silent > self.timeout - 2 * self.tick:  # so that it is told in time
            stopped = "is stopped (by SIGSTOP or a debugger)"
            fact = stopped if watch.stopped else f"has not moved on for {self.timeout:g} s"
            raise hung(f"Worker {number} (process {worker.process.pid})", fact, self._reading(number))

    def _read(self, number: int) -> None:
        worker = self.workers[number]
        try:
            answers = worker.receive()
        except (EOFError, OSError):
            raise self._dead(number) from None
        for ticket, kind, value in answers:
            worker.tasks.popleft()
            self.finished[ticket] = (kind, value)

    def _reading(self, number: int) -> str:
        """The file that a worker is at, and what it is to make of it."""
        worker = self.workers[number]
        file = printable(worker.slot.where)
        if not worker.tasks:
            return file or "nothing"
        task = self.describe(worker.tasks[0][1])
        return f"{file} (of {task})" if file and file != task else task

    def _dead(self, number: int) -> TryAgain:
        process = self.workers[number].process
        process.join(timeout=1.0)
        code = process.exitcode
        cause = f"exit code {code}"
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = "; out of memory?" if name == "SIGKILL" else ""
            cause = f"killed by {name}{memory}"
        return TryAgain(
            f"Worker {number} (process {process.pid}) died ({cause}) while reading {self._reading(number)}; "
            "continue with --resume, with fewer workers if memory is short."
        )


def _send(pipe: socket.socket, value: object) -> None:
    """One message: its length and its bytes (of a forked relative, so pickled like every message between processes)."""
    content = ForkingPickler.dumps(value)
    pipe.sendall(_LENGTH.pack(len(content)))
    pipe.sendall(content)


def _take(pipe: socket.socket) -> Any:
    """The next message, waited for; EOFError when the other end is closed."""
    return ForkingPickler.loads(_exactly(pipe, _LENGTH.unpack(_exactly(pipe, _LENGTH.size))[0]))


def _exactly(pipe: socket.socket, size: int) -> bytearray:
    content = bytearray(size)
    have = 0
    while have < size:
        count = pipe.recv_into(memoryview(content)[have:])
        if not count:
            raise EOFError
        have += count
    return content


def _portable(error: Exception) -> Exception:
    """`error` as one that survives the pipe: our errors as the class that has their exit code, others as a report."""
    if isinstance(error, FullyconvError):
        return next(cls for cls in type(error).__mro__ if cls in EXIT_CODES)(str(error))
    if isinstance(error, OSError):
        return error
    if isinstance(error, MemoryError):
        file = printable(heartbeat.whereabouts())
        where = f" at {file}" if file else ""
        return TryAgain(
            f"A worker ran out of memory{where}; continue with --resume, with fewer workers or a smaller crop."
        )
    return InternalError(f"A worker failed: {traceback.format_exc()}")


def _serve(
    make: Callable[[object], object], pipe: socket.socket, siblings: Sequence[socket.socket], slot: heartbeat.Slot
) -> None:
    """A worker's life: answer until the other end of the pipe closes, also by the parent's death."""
    for other in siblings:  # inherited ends would keep the pipes of a dead parent open
        other.close()
    heartbeat.live_in(slot)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            ticket, item = _take(pipe)
        except (EOFError, OSError):
            os._exit(0)
        slot.move_on("")
        try:
            answer = (ticket, "made", make(item))
        except Exception as error:
            answer = (ticket, "error", _portable(error))
        slot.move_on("")
        try:
            _send(pipe, answer)
        except OSError:
            os._exit(0)
