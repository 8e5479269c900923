"""Decoded samples in one memory-mapped file, so that an epoch after the first decodes nothing.

The file lies where the user says, never in the data. Arrays are kept as read, in the order of the records; their pages
are shared by all worker processes and given back by the system when memory is short, so workers stay small.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, ReadInput, ReadLabels, Record
from fullyconv.errors import DataError, FullyconvError, StorageError, UsageError, printable
from fullyconv.files import atomic_write, read_json, require_space

__all__ = ["cached"]

_ALIGN = 64  # bytes; arrays start at multiples of it
_Place = tuple[int, tuple[int, ...], str]  # offset, shape, dtype
_maps: dict[tuple[int, str], NDArray[np.uint8]] = {}


def cached(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    skip: bool = False,
) -> Dataset:
    """`dataset` reading from a cache in `folder`, which the first call makes and later ones find.

    The cache belongs to the data's fingerprint: changed files get another one. What it returns are read-only views.
    skip: a record that cannot be read is left out, and raises its error when it is read, as without a cache.
    Raises UsageError for a folder inside the data, StorageError when the disk has no room, and what reading raises.
    """
    if Path(folder).resolve().is_relative_to(dataset.root.resolve()):
        raise UsageError(f"{printable(folder)} lies in the data; name a folder outside {printable(dataset.root)}.")
    base = Path(folder) / dataset.fingerprint[:24]
    file, index_file = base.with_suffix(".bin"), base.with_suffix(".json")
    if not (file.is_file() and index_file.is_file()):
        try:
            _make(dataset, file, index_file, progress, skip)
        except OSError as error:
            text = f"The cache {printable(file)} cannot be written ({error.strerror}); name another folder."
            raise StorageError(text) from error
    stored = read_json(index_file)
    index = {key: (int(o), tuple(shape), str(dtype)) for key, (o, shape, dtype) in stored.items()}
    note = f"decoded pictures are kept in {printable(file)} ({file.stat().st_size / 2**20:.0f} MiB)."
    return replace(
        dataset,
        read_input=_Reader(file, index, "input", dataset.read_input if skip else None),
        read_labels=_Reader(file, index, "label", dataset.read_labels if skip else None),
        notes=(*dataset.notes, note),
    )


@final
@dataclass(frozen=True)
class _Reader:
    """(record, modality or head) -> a read-only view of the file, which each process maps once."""

    file: Path
    index: Mapping[str, _Place]
    what: str
    read: ReadInput | ReadLabels | None  # for records that were left out

    def __call__(self, record: Record, name: str) -> NDArray[Any]:
        place = self.index.get(_key(self.what, record, name))
        if place is None and self.read is not None:
            return self.read(record, name)
        if place is None:
            raise DataError(f"{printable(record.name)} has no {name} in {printable(self.file)}; make the cache again.")
        offset, shape, dtype = place
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return _mapped(self.file)[offset : offset + size].view(dtype).reshape(shape)


def _key(what: str, record: Record, name: str) -> str:
    return f"{what}/{name}/{record.name}"


def _mapped(file: Path) -> NDArray[np.uint8]:
    key = (os.getpid(), str(file))
    if key not in _maps:
        _maps[key] = np.memmap(file, np.uint8, "r")
    return _maps[key]


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
) -> None:
    """Writes both files under other names and puts them in place when they are whole, the index last."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _require_space(dataset, file.parent, skip)
    index: dict[str, _Place] = {}
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            for n, record in enumerate(dataset.records):
                for key, array in _arrays_of(dataset, record, skip):
                    index[key] = (out.tell(), array.shape, array.dtype.str)
                    out.write(np.ascontiguousarray(array).tobytes())
                    out.write(bytes(-out.tell() % _ALIGN))
                if progress:
                    progress(n + 1, len(dataset))
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
    _maps.pop((os.getpid(), str(file)), None)
    atomic_write(index_file, json.dumps(index).encode())
