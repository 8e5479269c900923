"""Scenes as a data set without a copy: windows are read when they are learned, measured or checked.

ROOT/images/X.tif + ROOT/labels/X.tif|gpkg|geojson, ROOT/*.tif beside one file of polygons, or one raster

The windows, their labels and the ground that is held out are those of `cutting`, bit for bit.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import apply_values
from fullyconv.data.corpora.layout import choose_split, merge_splits
from fullyconv.errors import DataError, FullyconvError, printable
from fullyconv.files.reading import read_anywhere
from fullyconv.images import BadImage
from fullyconv.images.tiff import first_page, is_tiff
from fullyconv.rasters.gdal import ABOVE, open_source, read_by_windows
from fullyconv.rasters.ground_truth import BACKGROUND, GroundTruth, open_truth
from fullyconv.rasters.ground_windows import CutOptions, Piece
from fullyconv.rasters.scene_set import IGNORED, RASTERS, VECTORS, SceneSet, find_scenes, read_window
from fullyconv.rasters.windows import RasterSource, Window
from fullyconv.taxonomy import Taxonomy

__all__ = ["open_scenes", "recognise"]

LOOKED_AT = 20  # scenes whose headers tell what a folder is
_OPEN = 8  # rasters that a thread keeps open
T = TypeVar("T")


def recognise(root: Path) -> bool:
    """Whether `root` holds scenes that are no set of plain images: their labels are polygons, or rasters of another
    grid, or they are too large to be read whole."""
    if root.is_file() and root.suffix.lower() not in RASTERS:
        return False
    try:
        pairs = find_scenes(root)
    except (FullyconvError, OSError):
        return False
    return any(map(_needs_windows, *zip(*pairs[:LOOKED_AT], strict=True)))


def _needs_windows(scene: Path, labels: Path) -> bool:
    if labels.suffix.lower() in VECTORS or scene.suffix.lower() == ".vrt":
        return labels.suffix.lower() in (*VECTORS, *RASTERS)
    try:
        if not read_by_windows(scene)[0] or labels.suffix.lower() not in RASTERS:
            return False
        size = _size(scene)
        return size[0] * size[1] > ABOVE or labels.suffix.lower() == ".vrt" or _size(labels) != size
    except (FullyconvError, OSError):
        return False


def _size(file: Path) -> tuple[int, int]:
    with read_anywhere(file) as at:
        if not is_tiff(at(0, 4)):
            raise BadImage(os.fspath(file), "is no TIFF.")
        return first_page(at, os.fspath(file)).size


def open_scenes(
    root: Path,
    split: str | None = None,
    *,
    labels: str = "",
    size: int = 512,
    val: float = 0.2,
    margin: int = 64,
    least: float = 0.05,
    seed: int = 0,
    field: str = "",
    outside: str = BACKGROUND,
    bands: bool | None = None,
) -> Dataset:
    """The windows of the scenes below `root` (or of the raster `root`).

    labels   where labels lie that are not beside the scenes: a folder, or one file for all.
    bands    read the windows by all their bands as stored, not as RGB; None decides by what they are.
    The others are those of `CutOptions`.

    Raises DataError (no scenes, labels elsewhere, nothing labelled), UnknownName (split), MissingExtra (geo).
    """
    options = CutOptions(size, val, margin, least, seed, field, outside)
    place = Path(labels) if labels else None
    pairs = find_scenes(root, place)
    found = _survey(root, options, place, tuple((*map(_stamp, pair),) for pair in pairs))
    chosen = choose_split(["train", "val"] if val else ["train"], split, root)
    name, record_name = merge_splits(chosen)
    colour = _is_colour(found) if bands is None else not bands
    reader = _Reader(found.coding, found.classes, options, colour, frozenset(found.holed))
    main = "rgb" if colour else "bands"
    records = [_record(found, p, main, record_name) for p in found.pieces if p.split in chosen]
    notes = list(found.notes)
    if not colour and bands is None:
        notes.append("the scenes are more than colour: they are read by their bands, as stored.")
    return Dataset(
        kind="scenes",
        root=root if root.is_dir() else root.parent,
        split=name,
        records=records,
        taxonomies={"semantic": found.coding.taxonomy},
        read_input=reader.read_input,
        read_labels=_Labels(reader, found.coding),
        read_invalid=reader.read_invalid,
        inputs=(main,),
        notes=tuple(notes),
        doubts=found.doubts,
    )


def _record(found: _Survey, piece: Piece, main: str, record_name: Callable[[str, str], str]) -> Record:
    scene, labels = found.pairs[piece.scene]
    w, block = piece.window, piece.block
    group = " ".join(map(str, (block[0] or "ground", *block[1:])))
    window = (w.top, w.left, w.bottom, w.right)
    return Record(record_name(piece.split, piece.name), {main: scene}, {"semantic": labels}, group, window)


# ---- what is looked at once --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Survey:
    """What `SceneSet.of` found, without anything open."""

    pairs: tuple[tuple[Path, Path], ...]
    pieces: tuple[Piece, ...]
    kind: tuple[int, np.dtype[Any]]  # bands, their type
    classes: Taxonomy | None
    coding: Coding
    notes: tuple[str, ...]
    doubts: tuple[tuple[str, Path, str], ...]
    holed: frozenset[str]


@lru_cache(maxsize=4)
def _survey(root: Path, options: CutOptions, labels: Path | None, stamps: tuple[Any, ...]) -> _Survey:
    """Remembered, since each split of a data set asks for it; `stamps` change with the files."""
    del stamps
    found = SceneSet.of(root, options, labels)
    try:
        held = {p.name for p in found.pieces}
        values = sorted(set().union(*(v for n, v in found.values.items() if n in held)))
        coding, notes = found.classes.coding(values), found.notes
        if found.classes.file is not None:
            notes.append(f"the classes are those of {printable(found.classes.file.name)}.")
        elif found.classes.taxonomy is None:
            k = len(coding.taxonomy)
            notes.append(f"the classes are inferred from the labels: {k}; name them in a classes.txt, one a line.")

        profile = found.opened[0].profile
        return _Survey(
            tuple(found.pairs), tuple(found.pieces), (profile.bands, profile.dtype), found.classes.taxonomy, coding,
            tuple(notes), tuple(found.doubts), frozenset(found.holed & held),
        )  # fmt: skip
    finally:
        found.close()


def _stamp(file: Path) -> tuple[str, int, int]:
    info = file.stat()
    return str(file), info.st_size, info.st_mtime_ns


def _is_colour(found: _Survey) -> bool:
    """Whether windows are read as RGB: three bands of bytes, or grey of 8 or 16 bits."""
    bands, dtype = found.kind
    return (dtype == np.uint8 and bands in (1, 3)) or (dtype == np.uint16 and bands == 1)


# ---- reading -----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Reader:
    """The functions of the data set; a class, so that worker processes can be given it."""

    coding: Coding
    classes: Taxonomy | None
    options: CutOptions
    colour: bool
    holed: frozenset[str]

    def read_input(self, record: Record, modality: str) -> NDArray[Any]:
        del modality
        values = self._window(record)[0]
        if self.colour:
            values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
            return np.ascontiguousarray(np.repeat(values, 3, -1) if values.shape[2] == 1 else values)
        return np.ascontiguousarray(values if values.dtype in (np.uint8, np.uint16) else values.astype(np.float32))

    def read_invalid(self, record: Record, modality: str) -> NDArray[np.bool_] | None:
        """Which pixels H W of a window were not measured; None where all were."""
        del modality
        if record.name.rpartition("/")[2] not in self.holed:
            return None
        good = self._window(record)[1]
        return None if good is None else ~good

    def read_labels(self, record: Record, head: str) -> NDArray[Any]:
        labels = self._window(record)[2]
        stored = np.where(labels < 0, IGNORED, labels).astype(np.uint8)
        return apply_values(stored, self.coding, record.labels[head])

    def _window(self, record: Record) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64]]:
        scene, labels = next(iter(record.inputs.values())), record.labels["semantic"]
        if record.window is None:
            raise DataError(f"{printable(record.name)} names no window of its scene.")
        window = Window(*record.window)
        here = _opened()
        key = (_stamp(scene), _stamp(labels), window, self.options, self.classes)
        if here.last is None or here.last[0] != key:
            source = here.keep(here.sources, _stamp(scene), lambda: open_source(scene))
            truth = _truth(here, labels, self.options)
            here.last = key, read_window(source, truth, window, self.classes)
        return here.last[1]


@final
@dataclass(frozen=True)
class _Labels:
    """(record, head) -> ids; `coding` says how, to the check."""

    reader: _Reader
    coding: Coding

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        return self.reader.read_labels(record, head)


@final
@dataclass
class _Opened:
    """What one thread of one process has open: GDAL's handles serve no two threads, and none after a fork."""

    process: int
    sources: OrderedDict[Any, RasterSource] = field(default_factory=OrderedDict)
    truths: OrderedDict[Any, GroundTruth] = field(default_factory=OrderedDict)
    last: tuple[Any, tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64]]] | None = None

    def keep(self, kept: OrderedDict[Any, T], key: Any, make: Callable[[], T]) -> T:
        """`kept[key]`, made where it is not there; the longest unused of too many goes."""
        if key not in kept:
            kept[key] = make()
        kept.move_to_end(key)
        while len(kept) > _OPEN:
            kept.popitem(last=False)
        return kept[key]


_threads = threading.local()


def _opened() -> _Opened:
    if getattr(_threads, "opened", None) is None or _threads.opened.process != os.getpid():
        _threads.opened = _Opened(os.getpid())
    found: _Opened = _threads.opened
    return found


def _truth(here: _Opened, labels: Path, options: CutOptions) -> GroundTruth:
    if labels.suffix.lower() in (*VECTORS, ".json"):  # arrays alone: one for all threads, and for processes forked
        return _polygons(labels, options.field, options.outside, _stamp(labels))
    return here.keep(here.truths, _stamp(labels), lambda: open_truth(labels))


@lru_cache(maxsize=64)
def _polygons(labels: Path, name: str, outside: str, stamp: tuple[str, int, int]) -> GroundTruth:
    del stamp
    return open_truth(labels, name, outside)
