"""Huge pages for tensors: fewer page faults, which cost a network on the CPU up to a third of its time."""

from __future__ import annotations

import os

__all__ = ["huge_pages"]


def huge_pages() -> None:
    """Ask torch, which must not be imported yet, to back tensors of 2 MiB and more by huge pages.

    Only torch's own switch is set (Linux, c10's CPU allocator); a value that the user gave stays, so
    THP_MEM_ALLOC_ENABLE=0 turns it off. Where the kernel has no huge pages nothing changes. Processes started from
    here inherit it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
