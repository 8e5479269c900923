"""Which files of a folder an earlier job of ours wrote, so that the same command may be repeated over its own results.

`.written.sha256` in the folder has a line `<sha256>  <name>` a file, as sha256sum writes them. A line is added before
its file is written, so a killed job leaves no file without one; a file whose bytes no line tells is not ours, or was
corrected by hand since, and is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import final

from fullyconv.errors import MissingInput, UsageError, printable
from fullyconv.files.disk import sha256_file, storage_errors
from fullyconv.files.reading import open_append, read_file

__all__ = ["RECORD", "WrittenBefore"]

RECORD = ".written.sha256"
MOST = 1 << 28  # bytes of it: two million files


@final
class WrittenBefore:
    """The record of the folder `folder`, read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[str, set[str]] | None = None

    def refuse_others(self, name: str) -> None:
        """UsageError where something stands at folder/name that no earlier job of ours left there as it is."""
        path = self._folder / name
        if not os.path.lexists(path):
            return
        if path.is_dir():
            raise UsageError(f"{printable(path)} is a folder, where a result belongs; choose another folder for them.")
        if not self._is_ours(name):
            raise UsageError(
                f"{printable(path)} is there already, and not as an earlier run of fullyconv left it, so it is not "
                "overwritten; choose another folder for the results, or move that file away."
            )

    def _is_ours(self, name: str) -> bool:
        if self._sums is None:
            self._sums = self._read()
        known = self._sums.get(name)
        return known is not None and sha256_file(self._folder / name) in known

    def _read(self) -> dict[str, set[str]]:
        sums: dict[str, set[str]] = {}
        with contextlib.suppress(MissingInput):
            for line in read_file(self._folder / RECORD, MOST).split(b"\n")[:-1]:  # a torn last one is none
                digest, _, name = line.partition(b"  ")  # what is forged fits no file
                sums.setdefault(os.fsdecode(name), set()).add(digest.decode("ascii", "replace"))
        return sums

    def add(self, name: str, data: bytes) -> None:
        """Tell that `data` is about to be written to folder/name."""
        self.add_sum(name, hashlib.sha256(data).hexdigest())

    def add_sum(self, name: str, digest: str) -> None:
        """The same for bytes whose sha256 (hex) is known."""
        self.add_sums([(name, digest)])

    def add_sums(self, files: Sequence[tuple[str, str]]) -> None:
        """The same for several files, (name, sha256 in hex), in one write."""
        lines = b"".join(digest.encode() + b"  " + os.fsencode(name) + b"\n" for name, digest in files)
        record = self._folder / RECORD
        with storage_errors("Writing", record), os.fdopen(open_append(record, follow=False), "rb+", 0) as file:
            size = os.fstat(file.fileno()).st_size
            torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"  # by a power cut
            file.write(b"/\n" + lines if torn else lines)  # no file's name ends so: half a name is never one
