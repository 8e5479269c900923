"""Edits one after another on the disk: what was appended is there after a kill and after a power cut, or was never
acknowledged.

A line a record: 16 hex digits, a blank, JSON. The digits begin the sha256 of the digits before and the JSON, so a line
that was changed, moved or left out is noticed, not only one that was torn.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from fullyconv.errors import DataError, StorageError, printable
from fullyconv.files import open_append, storage_errors, sync_directory

__all__ = ["Journal"]

_DIGITS = 16  # of the sha256 that chains the lines: 64 bits find damage, and nobody forges their own labels
_START = "0" * _DIGITS


@final
class Journal:
    """The records of the file `path`, made if it is missing. `records` are those that stood there; `note` says what of
    a torn last line was cut off (it was never acknowledged).

    Raises DataError for a file whose records do not follow each other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        self.note = ""
        self._last = _START
        with storage_errors("Opening", path):
            self._file = open_append(path, follow=False)
        try:
            with storage_errors("Reading", path):
                self._size = self._read(_whole(self._file))
            sync_directory(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def _read(self, content: bytes) -> int:
        at = 0
        while at < len(content):
            end = content.find(b"\n", at)
            record = None if end < 0 else self._record(content[at:end])
            if record is None:
                self._cut(content, at, end)
                return at
            self.records.append(record)
            at = end + 1
        return at

    def _record(self, line: bytes) -> dict[str, Any] | None:
        digits, _, text = line.partition(b" ")
        if digits.decode("ascii", "replace") != _digits(self._last, text):
            return None
        self._last = digits.decode()
        value = json.loads(text)
        return value if isinstance(value, dict) else None

    def _cut(self, content: bytes, at: int, end: int) -> None:
        """Take off a last line that a power cut tore; DataError where more follows."""
        rest = content[at:]
        if end >= 0 and end + 1 < len(content) and rest.strip(b"\0"):
            raise DataError(
                f"{printable(self.path)} is damaged at line {len(self.records) + 1}: what follows does not belong to "
                "what stands before. Restore it from a copy, or move it away to begin anew."
            )
        os.ftruncate(self._file, at)
        os.fsync(self._file)
        self.note = f"{printable(self.path.name)}: the last {len(rest)} bytes were torn and never acknowledged; cut off"

    def append(self, record: Mapping[str, object]) -> None:
        """Write a record; when this returns it is durable, when it raises StorageError it is not there."""
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        digits = _digits(self._last, text)
        line = memoryview(digits.encode() + b" " + text + b"\n")
        try:
            with storage_errors("Writing", self.path):
                while line:
                    line = line[os.write(self._file, line) :]
                os.fsync(self._file)
        except StorageError:
            with contextlib.suppress(OSError):  # a part that stayed would be cut off at the next start
                os.ftruncate(self._file, self._size)
            raise
        self._last, self._size = digits, self._size + _DIGITS + 2 + len(text)

    def close(self) -> None:
        os.close(self._file)


def _digits(last: str, text: bytes) -> str:
    return hashlib.sha256(last.encode() + text).hexdigest()[:_DIGITS]


def _whole(file: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(file, 1 << 22, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
