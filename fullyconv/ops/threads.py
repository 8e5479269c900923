"""Threads for kernels that release the GIL: as many as torch was told to use, and torch's own where they can be had.

torch's OpenMP threads stay awake for some milliseconds after their last work, waiting in a loop; threads of our own
would have to share the processor with them and, on a machine of few cores, take longer than one thread alone. So the
work goes to the OpenMP team that torch uses in the calling thread (libgomp's, by its C function). Where there is none
it goes to a pool of Python threads: on other systems, and in a forked child, where GNU OpenMP hangs. Numba's own
threading layers are never started: they forbid fork (OpenMP) or calls from two threads at once ("workqueue"), or are
one more dependency (TBB). Any number of server threads may call at the same time.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from fullyconv import processor

__all__ = ["run_on_openmp", "run_on_pool", "run_tasks"]

Task = Callable[[int], None]

_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()
_forked = False
_Member: Any = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_tasks(task: Task, count: int) -> None:
    """Call task(0) ... task(count - 1), spread over torch.get_num_threads() threads, this one included; raises what
    they raise.
    """
    if min(torch.get_num_threads(), count) < 2:
        for index in range(count):
            task(index)
    elif _forked or _openmp() is None:
        run_on_pool(task, count)
    else:
        run_on_openmp(task, count)


def run_on_openmp(task: Task, count: int) -> None:
    """`run_tasks` by torch's OpenMP team; never in a forked child."""
    ticket, failures = itertools.count(), []

    def member(_: object) -> None:
        try:
            while (index := next(ticket)) < count:
                task(index)
        except BaseException as error:  # nothing may leave a C callback; the caller raises it
            failures.append(error)

    # A team that OpenMP makes smaller (OMP_THREAD_LIMIT) does the same work: members draw until nothing is left.
    _openmp()(_Member(member), None, min(torch.get_num_threads(), count), 0)
    if failures:
        raise failures[0]


@functools.cache
def _openmp() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the library that torch runs on, or None."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if function is not None:
        function.argtypes = (_Member, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
    return function


def run_on_pool(task: Task, count: int) -> None:
    """`run_tasks` by Python threads."""
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
            _pool = ThreadPoolExecutor(math.ceil(processor.cores_granted()), thread_name_prefix="fullyconv-ops")
        return _pool


def _forget() -> None:
    """After fork the parent's threads do not exist in the child, and its lock may be held for ever."""
    global _pool, _lock, _forked
    _pool, _lock, _forked = None, threading.Lock(), True


os.register_at_fork(after_in_child=_forget)
