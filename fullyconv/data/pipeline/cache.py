"""Decoded samples in one file, so that an epoch after the first decodes nothing.

The file lies where the user says, never in the data. Arrays are kept as read, in the order of the records, each with a
checksum that every read verifies: what the disk lost or changed is read from its source again and mended, never
learned. Pages are the system's, which gives them back when memory is short, so workers stay small.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, ReadInput, ReadLabels, Record
from fullyconv.errors import FullyconvError, StorageError, UsageError, printable
from fullyconv.files import atomic_write, open_regular, read_json, require_space, sync_directory

__all__ = ["cached", "key"]

_ALIGN = 64  # bytes; arrays start at multiples of it
_FORMAT = 2
_ArrayEntry = tuple[int, tuple[int, ...], str, int]  # offset, shape, dtype, CRC-32 of the bytes
_open: dict[tuple[int, str], int] = {}  # (process, file) -> descriptor
_told: set[str] = set()  # files of which this process has said that blocks are damaged


def cached(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    skip: bool = False,
) -> Dataset:
    """`dataset` reading from a cache in `folder`, which the first call makes and later ones find.

    The cache belongs to the data's files (`key`): changed files get another one. What it returns are read-only views.
    skip: a record that cannot be read is left out, and raises its error when it is read, as without a cache.
    Raises UsageError for a folder inside the data, StorageError when the disk has no room, and what reading raises.
    """
    if Path(folder).resolve().is_relative_to(dataset.root.resolve()):
        raise UsageError(f"{printable(folder)} lies in the data; name a folder outside {printable(dataset.root)}.")
    base = Path(folder) / key(dataset)
    file, index_file = base.with_suffix(".bin"), base.with_suffix(".json")
    index = _index(index_file) if file.is_file() else None
    notes: tuple[str, ...] = ()
    if index is None and (file.exists() or index_file.exists()):  # made at once, the index last
        what = printable(index_file if file.is_file() else file)
        notes = (f"the cache was not whole ({what} is missing, damaged or never finished) and is made again.",)
    if index is None:
        try:
            index = _make(dataset, file, index_file, progress, skip)
        except OSError as error:
            text = f"The cache {printable(file)} cannot be written ({error.strerror}); name another folder."
            raise StorageError(text) from error
    note = f"decoded images are kept in {printable(file)} ({file.stat().st_size / 2**20:.0f} MiB)."
    return replace(
        dataset,
        read_input=_Reader(file, index, "input", dataset.read_input),
        read_labels=_Reader(file, index, "label", dataset.read_labels),
        notes=(*dataset.notes, *notes, note),
    )


def key(dataset: Dataset) -> str:
    """What the cache of `dataset` is called: 24 hex digits over its fingerprint and every file's time and number, so
    that a file that was changed in place at the same size has another."""
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for file in sorted(dataset.files):
        with suppress(OSError):
            info = file.stat()
            digest.update(repr((info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)).encode())
    return digest.hexdigest()[:24]


@final
@dataclass(frozen=True)
class _Reader:
    """(record, modality or head) -> what the cache holds, read-only; from the source where it holds nothing sound."""

    file: Path
    index: Mapping[str, _ArrayEntry]
    what: str
    read: ReadInput | ReadLabels

    def __call__(self, record: Record, name: str) -> NDArray[Any]:
        place = self.index.get(_key(self.what, record, name))
        if place is None:  # it was left out
            return self.read(record, name)
        offset, shape, dtype, crc = place
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = _block(self.file, offset, size)
        if len(block) != size or zlib.crc32(block) != crc:
            return self._mend(record, name, place)
        return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)

    def _mend(self, record: Record, name: str, place: _ArrayEntry) -> NDArray[Any]:
        """The source's array, written over the damaged block where it is the one that was kept."""
        if str(self.file) not in _told:
            _told.add(str(self.file))
            warnings.warn(
                f"The cache {printable(self.file)} is damaged (the first seen: the {self.what} of "
                f"{printable(record.name)}); such blocks are read from the data again and mended.",
                RuntimeWarning,
                stacklevel=2,
            )
        array = np.ascontiguousarray(self.read(record, name))
        block = array.tobytes()
        if zlib.crc32(block) == place[3] and (array.shape, array.dtype.str) == place[1:3]:
            with suppress(OSError):  # a disk that refuses costs time only
                _overwrite(self.file, place[0], block)
        array.flags.writeable = False
        return array


def _key(what: str, record: Record, name: str) -> str:
    return f"{what}/{name}/{record.name}"


def _block(file: Path, offset: int, size: int) -> bytes:
    """Bytes of the file; fewer where it is cut or gone. Not mapped: a page that is cut off then kills the process."""
    place = (os.getpid(), str(file))
    try:
        if place not in _open:
            _open[place] = open_regular(file)
        return os.pread(_open[place], size, offset)
    except (FullyconvError, OSError):
        return b""


def _overwrite(file: Path, offset: int, block: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, block, offset)
    finally:
        os.close(descriptor)


def _index(file: Path) -> dict[str, _ArrayEntry] | None:
    """The cache's table of contents; None where there is none that is whole."""
    try:
        stored = read_json(file)
        if stored["format"] != _FORMAT or stored["crc"] != _crc_of(stored["blocks"]):
            return None
        return {
            k: (int(o), tuple(shape), str(dtype), int(crc)) for k, (o, shape, dtype, crc) in stored["blocks"].items()
        }
    except (FullyconvError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _crc_of(blocks: object) -> int:
    return zlib.crc32(json.dumps(blocks).encode())


def _arrays(dataset: Dataset, record: Record) -> Iterator[tuple[str, NDArray[Any]]]:
    for modality in dataset.inputs:
        yield _key("input", record, modality), dataset.read_input(record, modality)
    for head in dataset.taxonomies:
        if head in record.labels:
            yield _key("label", record, head), dataset.read_labels(record, head)


def _arrays_of(dataset: Dataset, record: Record, skip: bool) -> list[tuple[str, NDArray[Any]]]:
    try:
        return list(_arrays(dataset, record))
    except (FullyconvError, OSError):
        if not skip:
            raise
        return []


def _require_space(dataset: Dataset, folder: Path, skip: bool) -> None:
    """StorageError unless the disk has room for as many records as large as the first that can be read."""
    first = next((found for r in dataset.records if (found := _arrays_of(dataset, r, skip))), [])
    require_space(folder, len(dataset) * sum(array.nbytes + _ALIGN for _, array in first))


def _make(
    dataset: Dataset, file: Path, index_file: Path, progress: Callable[[int, int], None] | None, skip: bool
) -> dict[str, _ArrayEntry]:
    """Writes both files under other names and puts them in place when they are whole on the disk, the index last."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _require_space(dataset, file.parent, skip)
    index: dict[str, _ArrayEntry] = {}
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            for n, record in enumerate(dataset.records):
                for name, array in _arrays_of(dataset, record, skip):
                    block = np.ascontiguousarray(array).tobytes()
                    index[name] = (out.tell(), array.shape, array.dtype.str, zlib.crc32(block))
                    out.write(block)
                    out.write(bytes(-out.tell() % _ALIGN))
                if progress:
                    progress(n + 1, len(dataset))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
        sync_directory(file.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if (descriptor := _open.pop((os.getpid(), str(file)), None)) is not None:
        os.close(descriptor)
    _told.discard(str(file))
    blocks = {name: [offset, list(shape), dtype, crc] for name, (offset, shape, dtype, crc) in index.items()}
    content = {"format": _FORMAT, "crc": _crc_of(blocks), "blocks": blocks}
    atomic_write(index_file, json.dumps(content).encode())
    return index
