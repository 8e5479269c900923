"""Huge pages for tensors: fewer page faults, which cost a network on the CPU up to a third of its time. And the way
back: memory that C's allocator keeps after tensors of many sizes were freed."""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_back", "huge_pages"]


def huge_pages() -> None:
    """Ask torch, which must not be imported yet, to back tensors of 2 MiB and more by huge pages.

    Only torch's own switch is set (Linux, c10's CPU allocator); a value that the user gave stays, so
    THP_MEM_ALLOC_ENABLE=0 turns it off. Where the kernel has no huge pages nothing changes. Processes started from
    here inherit it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back() -> bool:
    """Return what is free in C's heap to the system (glibc; some milliseconds); False where that cannot be asked for.

    Tensors of ever other sizes leave gaps that fit none of the next: a process of 370 MB was seen to keep 160 of them.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    trim(0)
    return True
