"""In the child: the foreign file as the open descriptor that the parent handed over, under the name it has there."""

from __future__ import annotations

import contextlib
import os
from typing import BinaryIO

__all__ = ["hand", "handed_over"]

_given: dict[str, int] = {}


def hand(path: str, descriptor: int) -> None:
    """From now on `handed_over(path)` reads `descriptor`; the former file is closed."""
    for former in _given.values():
        with contextlib.suppress(OSError):
            os.close(former)
    _given.clear()
    _given[path] = descriptor


def handed_over(path: str) -> BinaryIO:
    """The file to read, at its beginning. What was not handed over (a reader called in the open) is opened by name."""
    if path not in _given:
        return open(path, "rb")
    descriptor = os.dup(_given[path])
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.fdopen(descriptor, "rb")
