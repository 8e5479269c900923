"""The one opener of files that are read: lists, tables, JSON, TOML, XML, logs, caches.

Whatever stands in a file's place, nothing blocks and nothing is read without end: a FIFO, a device, a folder, a link to
itself, a name that is too long, a file without rights, one that is too large, one that is no UTF-8 (a byte order mark
is accepted), JSON or TOML that is none: each is one error of ours that names the file.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fullyconv.errors import DataError, MissingInput, StorageError, printable

__all__ = [
    "MOST_JSON",
    "MOST_TEXT",
    "human",
    "open_append",
    "open_regular",
    "read_anywhere",
    "read_ends",
    "read_file",
    "read_json",
    "read_text",
    "read_toml",
]

MOST_TEXT = 1 << 28  # bytes of a list, a table, a recipe, a log: 256 MiB
MOST_JSON = 1 << 31  # of a JSON file: COCO's own are half a gigabyte

Name = str | os.PathLike[str]
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_ODD = {errno.ELOOP: "is a link that leads to itself", errno.ENXIO: "is a socket or a device"}


def open_regular(path: Name) -> int:
    """A read-only descriptor of a regular file; never blocks on a FIFO or a device. The caller closes it.

    Raises MissingInput (not there, a name that no file can have), DataError (no regular file) or StorageError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(path, error) from error
    except ValueError as error:  # a NUL in the name
        raise MissingInput(f"{printable(path)[:200]} is no file's name ({error}); check the path.") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
            raise DataError(f"{printable(path)} is not a regular file but {what}; put a file in its place.")
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_append(path: Name, *, follow: bool = True) -> int:
    """A descriptor that appends to a regular file, made if it is missing; without `follow` no link leads to another.
    Raises OSError, or DataError as above."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{printable(path)} is not a regular file but a pipe, a device or a socket; remove it.")
    return fd


def _refused(path: Name, error: OSError) -> DataError | MissingInput | StorageError:
    name = printable(path)
    if error.errno == errno.ENAMETOOLONG:
        return MissingInput(f"{name[:100]}... is no file's name ({len(name)} characters); check the path.")
    if error.errno in _NOT_THERE:
        return MissingInput(f"{name} does not exist; check the path.")
    if error.errno in _ODD:
        return DataError(f"{name} {_ODD[error.errno]}; put a file in its place.")
    return StorageError(f"Opening {name} failed: {error.strerror or error}; check the disk and the rights there.")


def read_file(path: Name, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes, else DataError; no more are read, even if it grows."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size <= limit:
                data = file.read(size + 1)  # not `limit`: as much memory would be taken
                while len(data) <= limit and (more := file.read(1 << 20)):  # it grows
                    data += more
                if len(data) <= limit:
                    return data
        except OSError as error:
            raise StorageError(f"Reading {printable(path)} failed: {error.strerror}; check the disk.") from error
        raise DataError(
            f"{printable(path)} has {human(os.fstat(file.fileno()).st_size)}, at most {human(limit)} are allowed; it "
            "is damaged, or must be given in parts."
        )


def human(size: float) -> str:
    """1536 -> "1.5 KiB"."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def read_ends(path: Name, head: int, tail: int = 0) -> bytes:
    """The first `head` and the last `tail` bytes of a regular file (all of a shorter one), which tell its kind."""
    with os.fdopen(open_regular(path), "rb") as file:
        try:
            data = file.read(head)
            size = os.fstat(file.fileno()).st_size
            if tail and size > head:
                file.seek(max(head, size - tail))
                data += file.read(tail)
            return data
        except OSError as error:
            raise StorageError(f"Reading {printable(path)} failed: {error.strerror}; check the disk.") from error


@contextlib.contextmanager
def read_anywhere(path: Name) -> Iterator[Callable[[int, int], bytes]]:
    """A function (start, count) -> bytes of a regular file, fewer where it ends; it works while the block runs."""
    with os.fdopen(open_regular(path), "rb") as file:
        length = os.fstat(file.fileno()).st_size

        def at(start: int, count: int) -> bytes:
            file.seek(min(start, length))
            return file.read(min(count, length))

        yield at


def read_text(path: Name, limit: int = MOST_TEXT) -> str:
    """A text file in UTF-8, or in UTF-16 as Windows marks it, without its byte order mark; DataError for another."""
    data = read_file(path, limit)
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{printable(path)} is not UTF-8 text (it holds zero bytes, as UTF-16 does); save it as UTF-8.")
    return text


def read_json(path: Name, limit: int = MOST_JSON) -> Any:
    """What a JSON file says (NaN and Infinity as floats); DataError that names the file where it is no JSON."""
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of over 4,300 digits are a ValueError too
        raise DataError(
            f"{printable(path)} is no JSON that can be read ({printable(error)[:100]}); correct it, or write it again."
        ) from error


def read_toml(path: Name, limit: int = MOST_TEXT) -> dict[str, Any]:
    """What a TOML file says; DataError that names the file where it is no TOML."""
    import tomllib

    text = read_text(Path(path), limit)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(path)} is not TOML ({printable(error)[:200]}); correct it there.") from error
