"""The lock under which what calls share is made: prepared trunks, packed weights, backgrounds. Calls need no lock."""

from __future__ import annotations

import os
import threading

__all__ = ["preparing"]

_lock = threading.RLock()  # a background is made by layers that pack their weights on the way


def preparing() -> threading.RLock:
    """The lock, to be held by `with`: one for all, since preparing fills the processor anyway."""
    return _lock


def _renew() -> None:
    """A thread that held the lock when the process forked does not exist in the child."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew)
