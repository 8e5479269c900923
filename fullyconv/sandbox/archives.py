"""Unpacking zip and tar from anywhere: regular files and folders inside one new directory, or nothing at all.

The archive is read and decompressed in a confined child, which can write nothing; this side checks every name and
size that the child tells and writes the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, final

from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.files import new_directory, storage_errors, write_file
from fullyconv.sandbox.child import END, ERROR, FRAME
from fullyconv.sandbox.parent import error_of, foreign_file, reap, start, told_error
from fullyconv.sandbox.unpacking import CONTENT, FILE, FOLDER, PIECE, refused

__all__ = ["extract"]

_FLOOR = 64 << 20  # bytes that even a tiny archive may unpack to
_MEMORY = 1 << 30  # bytes that reading an archive may take: a million entries, the largest dictionary of xz
_PATIENCE = 120  # seconds without a byte from the child after which it counts as stuck


class _Entry(NamedTuple):
    name: str
    is_directory: bool
    chunks: Iterator[bytes]


def extract(
    archive: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    max_entries: int = 200_000,
    max_bytes: int = 64 << 30,
    max_ratio: int = 100,
) -> list[str]:
    """Unpack a zip or tar (plain, gz, bz2, xz) into the new `directory`; returns the names of the files.

    Refused (DataError naming archive and entry; nothing is left): links, devices, encrypted or sparse entries, names
    that are absolute, climb out, or collide (also by case), more entries or bytes than allowed, and unpacking to more
    than `max_ratio` times the archive's size (64 MiB are always allowed). Modes and owners are not taken over.
    """
    source, target = Path(archive), Path(directory)
    if not source.is_file():
        raise MissingInput(f"There is no archive {printable(source)}; check the path.")
    if os.path.lexists(target):
        raise UsageError(f"{printable(target)} exists already; name a new directory to unpack into.")
    limit = min(max_bytes, max(_FLOOR, max_ratio * source.stat().st_size))
    with storage_errors("Unpacking", source), new_directory(target) as temporary:
        with contextlib.closing(_Reader(source)) as reader:
            names = _unpack(source, reader.entries(), temporary, max_entries, limit)
        os.sync()  # thousands of small files: one sync for all of them before the directory gets its name
    return names


def _unpack(source: Path, entries: Iterator[_Entry], root: Path, max_entries: int, limit: int) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    left = limit
    for count, entry in enumerate(entries):
        if count >= max_entries:
            raise refused(source, f"it has more than {max_entries} entries")
        parts = _parts(source, entry.name)
        folded = "/".join(parts).casefold()
        if folded in seen and not entry.is_directory:
            raise refused(source, f"the name {entry.name!r} occurs twice")
        seen.add(folded)
        place = root.joinpath(*parts)
        if entry.is_directory:
            _make_inside(source, root, parts)
            continue
        _make_inside(source, root, parts[:-1])
        left -= write_file(place, _bounded(source, entry, left), sync=False).size
        names.append("/".join(parts))
    return names


def _make_inside(source: Path, root: Path, parts: list[str]) -> None:
    place = root
    for part in parts:
        place = place / part
        if place.is_file():
            raise refused(source, f"{'/'.join(parts)!r} is both a file and a folder")
        place.mkdir(exist_ok=True)


def _bounded(source: Path, entry: _Entry, left: int) -> Iterator[bytes]:
    for chunk in entry.chunks:
        left -= len(chunk)
        if left < 0:
            raise refused(source, f"{entry.name!r} unpacks to far more than the archive's size allows")
        yield chunk


def _parts(source: Path, name: str) -> list[str]:
    """The name's parts, or DataError when it could leave the directory anywhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    bad = name.startswith("/") or "\\" in name or ":" in name or not name.isprintable() or ".." in parts or not parts
    if bad or any(len(os.fsencode(part)) > 255 for part in parts) or len(parts) > 100:
        raise refused(source, f"the name {name[:200]!r} is not one that may be unpacked")
    return parts


@final
class _Reader:
    """The child that reads the archive, and its frames as entries. What it says is as foreign as the archive."""

    def __init__(self, source: Path, function: str = "fullyconv.sandbox.unpacking:entries") -> None:
        self.source = source
        self.pipe, theirs = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # larger than the usual 64 KiB, where the system has it
            fcntl.fcntl(self.pipe, fcntl.F_SETPIPE_SZ, 1 << 20)
        try:
            with foreign_file(source) as (where, file, size):
                job = {
                    "kind": "stream", "function": function, "path": os.path.abspath(where), "arguments": {},
                    "file": file, "answer": theirs, "memory": _MEMORY, "output": 0, "seconds": 600 + size // (1 << 20),
                }  # fmt: skip
                self.process = start(job, [file, theirs])
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(theirs)

    def close(self) -> None:
        reap(self.process)
        os.close(self.pipe)

    def entries(self) -> Iterator[_Entry]:
        """The archive's entries; the chunks of each are to be taken before the next."""
        frame = self._frame()
        while frame[0] != END:
            if frame[0] not in (FILE, FOLDER):
                raise self._nonsense()
            following: list[tuple[bytes, bytes]] = []
            yield _Entry(self._name(frame[1]), frame[0] == FOLDER, self._chunks(following))
            frame = following[0] if following else self._frame()

    def _chunks(self, following: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """The CONTENT frames that come now; the first other one goes to `following`."""
        while (frame := self._frame())[0] == CONTENT:
            yield frame[1]
        following.append(frame)

    def _name(self, content: bytes) -> str:
        try:
            name = json.loads(content)
        except ValueError:
            raise self._nonsense() from None
        return str(name)

    def _frame(self) -> tuple[bytes, bytes]:
        kind, length = FRAME.unpack(self._exactly(FRAME.size))
        if length > PIECE:
            raise self._nonsense()
        content = self._exactly(length)
        if kind == ERROR:
            raise told_error(content, self.source) or self._nonsense()
        return kind, content

    def _exactly(self, count: int) -> bytes:
        content = bytearray(count)
        have = 0
        while have < count:
            if not select.select([self.pipe], [], [], _PATIENCE)[0]:
                raise DataError(f"{printable(self.source)} was refused: reading it took too long.")
            got = os.readv(self.pipe, [memoryview(content)[have:]])
            if not got:
                raise error_of(self.process.wait(), b"", self.source)
            have += got
        return bytes(content)

    def _nonsense(self) -> DataError:
        return DataError(f"{printable(self.source)} was refused: its reader gave no whole answer; get it anew.")
