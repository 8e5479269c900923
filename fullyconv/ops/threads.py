"""One pool of Python threads for kernels that release the GIL: as many as torch was told to use.

Numba's own threading layers are never started: GNU OpenMP forbids fork, "workqueue" forbids calls from two threads at
once, TBB is one more dependency. Plain threads have none of these limits: a forked child makes its own pool, and any
number of server threads may call at the same time.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["run"]

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def run(task: Callable[[int], None], count: int) -> None:
    """Call task(0) ... task(count - 1), spread over torch.get_num_threads() threads, this one included; raises what
    they raise.
    """
    workers = min(torch.get_num_threads(), count)
    ticket = itertools.count()

    def drain() -> None:
        while (index := next(ticket)) < count:
            task(index)

    futures = [_threads().submit(drain) for _ in range(workers - 1)]
    try:
        drain()
    finally:
        # One that has not begun has nothing left to do: do not queue behind another caller's work.
        begun = [future for future in futures if not future.cancel()]
        failures = [error for future in begun if (error := future.exception())]
    if failures:
        raise failures[0]


def _threads() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2)), thread_name_prefix="fullyconv-ops")
        return _pool


def _forget() -> None:
    """After fork the parent's threads do not exist in the child, and its lock may be held for ever."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
