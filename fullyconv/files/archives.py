"""Unpacking zip and tar from anywhere: regular files and folders inside one new directory, or nothing at all."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.files.disk import new_directory, storage_errors, write_file

__all__ = ["extract"]

_CHUNK = 1 << 20
_FLOOR = 64 << 20  # bytes that even a tiny archive may unpack to
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError)


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
        try:
            names = _unpack(source, temporary, max_entries, limit)
        except _BROKEN as error:
            raise DataError(f"{printable(source)} is damaged ({printable(error)}); get it anew.") from error
        os.sync()  # thousands of small files: one sync for all of them before the directory gets its name
    return names


def _unpack(source: Path, root: Path, max_entries: int, limit: int) -> list[str]:
    names: list[str] = []
    seen: set[str] = set()
    left = limit
    for count, entry in enumerate(_entries(source)):
        if count >= max_entries:
            raise _refused(source, f"it has more than {max_entries} entries")
        parts = _parts(source, entry.name)
        folded = "/".join(parts).casefold()
        if folded in seen and not entry.is_directory:
            raise _refused(source, f"the name {entry.name!r} occurs twice")
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
            raise _refused(source, f"{'/'.join(parts)!r} is both a file and a folder")
        place.mkdir(exist_ok=True)


def _bounded(source: Path, entry: _Entry, left: int) -> Iterator[bytes]:
    for chunk in entry.chunks:
        left -= len(chunk)
        if left < 0:
            raise _refused(source, f"{entry.name!r} unpacks to far more than the archive's size allows")
        yield chunk


def _refused(source: Path, fact: str) -> DataError:
    return DataError(f"{printable(source)} was refused: {printable(fact)}; nothing was unpacked.")


def _parts(source: Path, name: str) -> list[str]:
    """The name's parts, or DataError when it could leave the directory anywhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    bad = name.startswith("/") or "\\" in name or ":" in name or not name.isprintable() or ".." in parts or not parts
    if bad or any(len(os.fsencode(part)) > 255 for part in parts) or len(parts) > 100:
        raise _refused(source, f"the name {name[:200]!r} is not one that may be unpacked")
    return parts


def _entries(source: Path) -> Iterator[_Entry]:
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield from (_zip_entry(source, archive, info) for info in archive.infolist())
    else:
        with tarfile.open(source, "r:*") as tar:
            yield from (_tar_entry(source, tar, member) for member in tar)


def _zip_entry(source: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
        raise _refused(source, f"{info.filename!r} is a link, a device or encrypted")

    def chunks() -> Iterator[bytes]:
        with archive.open(info) as stream:
            yield from _read(stream)

    return _Entry(info.filename, info.is_dir(), chunks())


def _tar_entry(source: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> _Entry:
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise _refused(source, f"{member.name!r} is a link, a device or sparse")

    def chunks() -> Iterator[bytes]:
        stream: Any = tar.extractfile(member)
        yield from _read(stream)

    return _Entry(member.name, member.isdir(), chunks())


def _read(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
