"""Which images when, and the processes that read them: a pure sampler and an ordered, supervised map.

A worker that dies, hangs or runs out of memory ends the run with an error that names it, its cause and the files it
was reading; it never blocks the run.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import connection, get_context
from typing import Any, Generic, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import EXIT_CODES, FullyconvError, InternalError, TryAgain

__all__ = ["Workers", "order", "ordered_map"]

Item = TypeVar("Item")
Made = TypeVar("Made")


def order(count: int, seed: int, epoch: int, sampling: str = "epochs") -> NDArray[np.int64]:
    """The indices 0..count-1 that one epoch visits, in order: a pure function, so any position can be resumed.

    sampling: "epochs" a permutation, "replacement" `count` independent draws.
    """
    rng = np.random.default_rng([seed, epoch, count])
    if sampling == "replacement":
        return rng.integers(0, count, count)
    return rng.permutation(count)


def ordered_map(
    make: Callable[[Item], Made],
    items: Iterator[Item],
    workers: int = 0,
    *,
    ahead: int = 2,
    timeout: float = 60.0,
    describe: Callable[[Item], str] = str,
) -> Generator[Made, None, None]:
    """make(item) for each item, in order, made ahead of time by `workers` processes (0: one thread of this process).

    An error of `make` is raised here, in its turn. timeout: seconds without an answer after which a worker counts
    as hung. describe: names an item's files for an error. Processes need os.fork; elsewhere a thread does the work.
    """
    if workers == 0 or not hasattr(os, "fork"):
        yield from _by_thread(make, items, ahead, timeout, describe)
        return
    with Workers(make, workers, timeout, describe) as pool:
        waiting: deque[int] = deque()
        for ticket, item in enumerate(items):
            pool.give(ticket, item)
            waiting.append(ticket)
            if len(waiting) >= workers * ahead:
                yield pool.take(waiting.popleft())
        while waiting:
            yield pool.take(waiting.popleft())


def _by_thread(
    make: Callable[[Item], Made], items: Iterator[Item], ahead: int, timeout: float, describe: Callable[[Item], str]
) -> Generator[Made, None, None]:
    """One thread that works ahead; it holds at most `ahead` finished results."""
    done: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    closed = threading.Event()
    doing = [""]
    since = [time.monotonic()]

    def put(kind: str, value: Any) -> None:
        while not closed.is_set():
            try:
                done.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                since[0] = time.monotonic()

    def work() -> None:
        try:
            for item in items:
                if closed.is_set():
                    return
                doing[0], since[0] = describe(item), time.monotonic()
                put("made", make(item))
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True, name="fullyconv-reader")
    thread.start()
    try:
        while True:
            try:
                kind, value = done.get(timeout=min(timeout, 1.0))
            except queue.Empty:
                if time.monotonic() - since[0] > timeout:
                    raise _hung("The reading thread", timeout, doing[0]) from None
                continue
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
        thread.join(timeout=1.0)


@final
class Workers(Generic[Item, Made]):
    """Forked processes that run `make`, each with a pipe of its own; the kernel tells when one dies."""

    def __init__(
        self, make: Callable[[Item], Made], count: int, timeout: float = 60.0, describe: Callable[[Item], str] = str
    ) -> None:
        context = get_context("fork")
        self.timeout, self.describe = timeout, describe
        self.pipes: list[connection.Connection] = []
        self.processes: list[Any] = []
        self.tasks: list[deque[tuple[int, Item]]] = [deque() for _ in range(count)]
        self.since = [time.monotonic()] * count
        self.finished: dict[int, tuple[str, Any]] = {}
        for number in range(count):
            ours, theirs = context.Pipe()
            siblings = [*self.pipes, ours]
            process = context.Process(
                target=_serve, args=(make, theirs, siblings), daemon=True, name=f"fullyconv-worker-{number}"
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> Workers[Item, Made]:
        return self

    def __exit__(self, *_error: object) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(timeout=0.2)
            if process.is_alive():
                process.kill()  # a stopped process ignores everything else
                process.join()

    def give(self, ticket: int, item: Item) -> None:
        """Hand `item` to the worker whose turn it is."""
        number = ticket % len(self.pipes)
        if not self.tasks[number]:
            self.since[number] = time.monotonic()
        self.tasks[number].append((ticket, item))
        try:
            self.pipes[number].send((ticket, item))
        except OSError:
            raise self._dead(number) from None

    def take(self, ticket: int) -> Made:
        """The result of `ticket`, waited for; raises what `make` raised, or says which worker died or hung."""
        while ticket not in self.finished:
            self._receive()
        kind, value = self.finished.pop(ticket)
        if kind == "made":
            return value  # type: ignore[no-any-return]
        raise value

    def _receive(self) -> None:
        """Wait for an answer, a death, or the next deadline."""
        busy = [n for n, tasks in enumerate(self.tasks) if tasks]
        deadline = min(self.since[n] for n in busy) + self.timeout
        wait_for = [self.pipes[n] for n in busy] + [self.processes[n].sentinel for n in busy]
        ready = set(connection.wait(wait_for, timeout=max(0.0, deadline - time.monotonic())))
        for n in busy:
            if self.pipes[n] in ready:
                self._read(n)
            elif self.processes[n].sentinel in ready:
                raise self._dead(n)
            elif time.monotonic() - self.since[n] > self.timeout:
                raise _hung(f"Worker {n} (process {self.processes[n].pid})", self.timeout, self._reading(n))

    def _read(self, number: int) -> None:
        try:
            ticket, kind, value = self.pipes[number].recv()
        except (EOFError, OSError):
            raise self._dead(number) from None
        self.tasks[number].popleft()
        self.since[number] = time.monotonic()
        self.finished[ticket] = (kind, value)

    def _reading(self, number: int) -> str:
        return self.describe(self.tasks[number][0][1]) if self.tasks[number] else "nothing"

    def _dead(self, number: int) -> TryAgain:
        process = self.processes[number]
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


def _hung(who: str, timeout: float, files: str) -> TryAgain:
    return TryAgain(
        f"{who} gave no answer for {timeout:g} s while reading {files}; check that the disk or the mount answers, "
        "then continue with --resume."
    )


def _portable(error: Exception) -> Exception:
    """`error` as one that survives the pipe: our errors as the class that has their exit code, others as a report."""
    if isinstance(error, FullyconvError):
        return next(cls for cls in type(error).__mro__ if cls in EXIT_CODES)(str(error))
    if isinstance(error, OSError):
        return error
    if isinstance(error, MemoryError):
        return TryAgain("A worker ran out of memory; continue with --resume, with fewer workers or a smaller crop.")
    return InternalError(f"A worker failed: {traceback.format_exc()}")


def _serve(make: Callable[[Any], Any], pipe: connection.Connection, siblings: Sequence[connection.Connection]) -> None:
    """A worker's life: answer until the other end of the pipe closes, also by the parent's death."""
    for other in siblings:  # inherited ends would keep the pipes of a dead parent open
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            ticket, item = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            answer = (ticket, "made", make(item))
        except Exception as error:
            answer = (ticket, "error", _portable(error))
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)
