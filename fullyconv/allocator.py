"""Huge pages for tensors, and pages that stay: fewer page faults, which cost a network on the CPU up to a third of its
time. And the way back: memory that C's allocator keeps after tensors of many sizes were freed."""

from __future__ import annotations

import ctypes
import os

__all__ = ["give_back", "keep_freed", "request_huge_pages"]

# glibc's names for what mallopt sets, and values
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST, OLDER_LARGEST = 1 << 30, 32 << 20  # older versions refuse more than 32 MiB


def request_huge_pages() -> None:
    """Ask torch, which must not be imported yet, to back tensors of 2 MiB and more by huge pages.

    Only torch's own switch is set (Linux, c10's CPU allocator); a value that the user gave stays, so
    THP_MEM_ALLOC_ENABLE=0 turns it off. Where the kernel has no huge pages nothing changes. Processes started from
    here inherit it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed() -> bool:
    """Have C's allocator keep what tensors leave for the next ones (glibc); False where that cannot be asked for.

    A step of training frees and takes the same sizes again and again. By default glibc returns large blocks to the
    system, which must fill the next ones with zeros: up to a fifth of a step's time. Costs some memory (gaps). What
    the user set by glibc's own variables stays.
    """
    if any(v in os.environ for v in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST) or mallopt(M_MMAP_THRESHOLD, OLDER_LARGEST)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


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
