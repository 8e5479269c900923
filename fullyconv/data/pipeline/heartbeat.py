"""Where a reader is: each one says which file it is about to read, in memory that whoever waits for it can see."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import final

__all__ = ["Slot", "at", "live_in", "whereabouts"]

NAME = 4000  # bytes of a file's name that are kept
_local = threading.local()


@final
class Slot:
    """One reader's place: how often it has moved on, and the file it is at. Shared with processes forked later."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16 + NAME)

    def move_on(self, where: str) -> None:
        """Say that reading `where` begins now ("": nothing is being read)."""
        name = where.encode(errors="surrogateescape")[:NAME]
        moves = self.moves + 1
        self._memory[16 : 16 + len(name)] = name
        self._memory[:16] = struct.pack("=QQ", moves, len(name))

    @property
    def moves(self) -> int:
        """How often its reader has moved on: it lives if this number grows."""
        return int(struct.unpack_from("=Q", self._memory)[0])

    @property
    def where(self) -> str:
        """What its reader is at."""
        length = min(NAME, struct.unpack_from("=Q", self._memory, 8)[0])
        return bytes(self._memory[16 : 16 + length]).decode(errors="replace")


def live_in(slot: Slot | None) -> None:
    """Make `slot` the place of this thread (of a forked process: its only one); None for no place."""
    _local.slot = slot


def at(file: str | os.PathLike[str]) -> None:
    """Say that this thread is about to read `file`; without a slot, nothing happens."""
    slot: Slot | None = getattr(_local, "slot", None)
    if slot is not None:
        slot.move_on(os.fspath(file))


def whereabouts() -> str:
    """The file that this thread is at, "" without a slot."""
    slot: Slot | None = getattr(_local, "slot", None)
    return slot.where if slot is not None else ""
