"""A reader that runs in the child: walks a zip or tar and yields its entries as frames; it writes nothing.

Frames: FILE and FOLDER with the entry's name as JSON, then for a file its CONTENT in pieces.
"""

from __future__ import annotations

import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from fullyconv.errors import DataError, printable
from fullyconv.sandbox.descriptors import handed_over

__all__ = ["CONTENT", "FILE", "FOLDER", "PIECE", "entries", "refused"]

FILE, FOLDER, CONTENT = b"F", b"D", b"C"
PIECE = 1 << 20  # bytes of one CONTENT frame at most
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError, OSError,
)  # fmt: skip
Frame = tuple[bytes, bytes]


def refused(archive: object, fact: str) -> DataError:
    """The error for an archive that holds what is not unpacked."""
    return DataError(f"{printable(archive)} was refused: {printable(fact)}; nothing was unpacked.")


def entries(path: str) -> Iterator[Frame]:
    """The frames of all entries in order. DataError for links, devices, sparse and encrypted entries and damage."""
    try:
        with handed_over(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    for info in archive.infolist():
                        yield from _zip_entry(path, archive, info)
                return
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:*") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep every one
                    yield from _tar_entry(path, tar, member)
    except _BROKEN as error:
        raise DataError(f"{printable(path)} is damaged ({printable(error)}); get it anew.") from error


# What reads compressed bytes must be loaded before the child is confined.
entries.imports = ("bz2", "lzma", "zlib")  # type: ignore[attr-defined]


def _zip_entry(path: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[Frame]:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 1:
        raise refused(path, f"{info.filename!r} is a link, a device or encrypted")
    yield _named(info.filename, info.is_dir())
    if not info.is_dir():
        with archive.open(info) as stream:
            yield from _read(stream)


def _tar_entry(path: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Frame]:
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise refused(path, f"{member.name!r} is a link, a device or sparse")
    yield _named(member.name, member.isdir())
    if member.isreg():
        stream: Any = tar.extractfile(member)
        yield from _read(stream)


def _named(name: str, folder: bool) -> Frame:
    return FOLDER if folder else FILE, json.dumps(name).encode()


def _read(stream: IO[bytes]) -> Iterator[Frame]:
    while piece := stream.read(PIECE):
        yield CONTENT, piece
