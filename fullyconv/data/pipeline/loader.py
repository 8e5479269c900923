"""Which images when, and the processes that read them: a pure sampler and an ordered, supervised map.

A worker that dies, hangs or runs out of memory ends the run with an error that names it, its cause and the files it
was reading; it never blocks the run.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.pipeline import heartbeat
from fullyconv.data.pipeline.workers import TICK, Watch, Workers, hung
from fullyconv.errors import printable

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
    timeout: float = 10.0,
    describe: Callable[[Item], str] = str,
) -> Generator[Made, None, None]:
    """make(item) for each item, in order, made ahead of time by `workers` processes (0: one thread of this process).

    An error of `make` is raised here, in its turn. timeout: seconds that a reader may stand still at one file
    (`heartbeat.at`), while it is waited for, before it counts as hung; computing, it has ten times as long. describe:
    names an item for an error. Processes need os.fork; elsewhere a thread does the work.
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
    slot = heartbeat.Slot()

    def put(kind: str, value: object) -> None:
        while not closed.is_set():
            try:
                done.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                slot.move_on("")

    def work() -> None:
        heartbeat.live_in(slot)
        try:
            for item in items:
                if closed.is_set():
                    return
                doing[0] = describe(item)
                slot.move_on("")
                put("made", make(item))
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True, name="fullyconv-reader")
    thread.start()
    stat = f"/proc/{os.getpid()}/task/{thread.native_id}/stat"
    try:
        while True:
            watch = Watch(slot, stat)
            kind, value = _wait(done, watch, timeout, doing)
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        closed.set()
        thread.join(timeout=0.2)


def _wait(done: queue.Queue[tuple[str, object]], watch: Watch, timeout: float, doing: list[str]) -> tuple[str, Any]:
    """The reading thread's next answer, or an error that names the file it hangs at."""
    tick = min(TICK, timeout / 4)
    while True:
        start = time.monotonic()
        try:
            return done.get(timeout=tick)
        except queue.Empty:
            watch.waited(time.monotonic() - start)
        if watch.silent > timeout - 2 * tick:
            file = printable(watch.slot.where)
            files = f"{file} (of {doing[0]})" if file and file != doing[0] else doing[0]
            raise hung("The reading thread", f"has not moved on for {timeout:g} s", files)
