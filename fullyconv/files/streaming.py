"""Bytes on their way to or from a file: hashed by a second thread meanwhile, and on the way to the disk early."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

__all__ = ["CHUNK", "Chunk", "Sha256", "begin_writeback", "pieces"]

Chunk = bytes | bytearray | memoryview
CHUNK = 4 << 20  # bytes written in one call, and hashed between two looks at whether the caller has given up
WORTH_A_THREAD = 1 << 20  # bytes: hashing fewer takes less than handing them over and waiting


@final
class Sha256:
    """`with Sha256() as digest: digest.update(view); ...; digest.hexdigest()`: the sum of all views, in order.

    `update` may return before `view` is hashed: leave its bytes alone until the next `update` or `hexdigest` returns.
    At most one view is kept at a time. hashlib lets go of the interpreter lock, so the caller's reads, writes and
    fsync go on meanwhile; on one core it is as fast as hashing in turn.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._given_up = False

    def update(self, view: memoryview) -> None:
        """Hash these bytes after all before."""
        self._wait()
        if len(view) < WORTH_A_THREAD:
            self._digest.update(view)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="fullyconv-sha256")
        self._pending = self._thread.submit(self._hash, view)

    def hexdigest(self) -> str:
        """64 lower-case hex digits, waited for."""
        self._wait()
        return self._digest.hexdigest()

    def __enter__(self) -> Sha256:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up = True
        if self._thread is not None:
            self._thread.shutdown()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _hash(self, view: memoryview) -> None:
        for start in range(0, len(view), CHUNK):
            if self._given_up:
                return
            self._digest.update(view[start : start + CHUNK])


def pieces(chunks: Iterable[Chunk], digest: Sha256) -> Iterator[memoryview]:
    """The chunks' bytes in pieces of at most CHUNK, while `digest` hashes the chunk that they belong to."""
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        digest.update(view)
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def begin_writeback(fd: int, begin: int, end: int) -> None:
    """Ask the kernel to start writing these bytes, so that fsync finds little left to do: a hint that promises nothing.

    Linux starts to write what is dirty there, and then forgets what is clean, which nothing just written is yet."""
    with contextlib.suppress(OSError, AttributeError):  # macOS has no such call
        os.posix_fadvise(fd, begin, end - begin, os.POSIX_FADV_DONTNEED)
