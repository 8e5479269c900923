"""NYUDv2 (Silberman, Hoiem, Kohli, Fergus 2012) with Gupta's 40 classes: colour, depth and HHA.

    Gupta's folders     [nyud/]{train,val,trainval,test}.txt (ids 5001..6449), segmentation/img_ID.mat,
                        data/{images,depth,hha}/img_ID.png (depth in millimetres, filled)
    the official file   nyu_depth_v2_labeled.mat (v7.3; images, depths, rawDepths, labels) [beside splits.mat or the
                        lists above]; its 894 names are mapped to 40 by the built-in table, or by mapping=FILE.mat

The inputs are rgb, depth (millimetres, 0 = missing) and hha (computed from depth where there is no file).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

import fullyconv.data.hha as hha
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import Labels, apply_values, existing, no_layout, read_mat, records, unlabelled
from fullyconv.data.corpora.folder import read_modality
from fullyconv.data.corpora.layout import choose_split, merge_splits, read_lines
from fullyconv.data.corpora.taxonomies import NYUD40, NYUD894
from fullyconv.errors import DataError, MissingExtra, printable
from fullyconv.sandbox import Session

__all__ = ["open_nyud", "recognise"]

_hdf5 = Session("fullyconv.sandbox.matlab:read_hdf5")  # one confined child a process

_SOURCE = (
    "get nyud.tar.gz from dl.caffe.berkeleyvision.org (Gupta's folders) or nyu_depth_v2_labeled.mat from "
    "cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html"
)
_FILE = "nyu_depth_v2_labeled.mat"
_SPLITS_SOURCE = "get splits.mat from horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup and put it beside"
_FIRST = 5001  # Gupta's id of the official file's first frame


def recognise(root: Path) -> bool:
    """Whether Gupta's folders or the official file lie at `root`."""
    return _folders(root) is not None or _file(root) is not None


def open_nyud(root: Path, split: str | None = None, *, mapping: str | Path | None = None) -> Dataset:
    """NYUDv2 below `root` (or the official .mat file itself), 40 classes, void ignored; inputs rgb, depth, hha.

    mapping   classMapping40.mat (mapClass: 894 numbers 1..40), for the official file's labels.

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked), MissingExtra (.mat files).
    """
    root = Path(root)
    folders, file = _folders(root), _file(root)
    if folders is not None:
        return _open_folders(folders, split, root)
    if file is None:
        wanted = f"train.txt with data/images/ and segmentation/ (Gupta), or {_FILE}"
        raise no_layout(root, "NYUDv2", wanted, _SOURCE)
    return _open_file(file, split, root, mapping)


# ---- Gupta's folders -------------------------------------------------------------------------------------------


def _folders(root: Path) -> Path | None:
    bases = (root, root / "nyud")
    return next((b for b in bases if (b / "data/images").is_dir() and (b / "segmentation").is_dir()), None)


def _open_folders(base: Path, split: str | None, root: Path) -> Dataset:
    splits = _lists(base)
    if not splits:
        raise no_layout(base, "NYUDv2 with its lists", "train.txt, val.txt, test.txt", _SOURCE)
    chosen = ("trainval", "test") if split == "all" else choose_split(list(splits), split, root)
    name, record_name = merge_splits([s for s in chosen if s in splits])
    rows: list[Record] = []
    for s in (c for c in chosen if c in splits):
        for r in _folder_records(base, splits[s], s):
            rows.append(Record(record_name(s, r.name), r.inputs, r.labels))
    coding = Coding(NYUD40, {0: 255, **{k + 1: k for k in range(40)}}, kind="nyud")
    reader = Labels({"semantic": coding}, {"semantic": "segmentation"})
    taxonomies = unlabelled(rows, {"semantic": NYUD40})
    return Dataset("nyud", base, name, rows, taxonomies, _Modalities(), reader)


def _lists(base: Path) -> dict[str, list[str]]:
    """The lists' ids; trainval, which is not shipped, is train and val together."""
    found = {s: read_lines(f) for s in ("train", "val", "trainval", "test") if (f := base / f"{s}.txt").is_file()}
    if "trainval" not in found and {"train", "val"} <= found.keys():
        found["trainval"] = [*found["train"], *found["val"]]
    return found


def _folder_records(base: Path, names: Sequence[str], split: str) -> list[Record]:
    files = {m: {n: base / f"data/{d}/img_{n}.png" for n in names} for m, d in _DATA.items()}
    there = {m: existing(f.values()) for m, f in files.items()}
    inputs = {m: f.__getitem__ for m, f in files.items() if m == "rgb" or there[m]}
    labels = {"semantic": lambda n: base / f"segmentation/img_{n}.mat"}
    found = records(names, inputs, labels, f"NYUDv2 {split}.txt", _SOURCE)
    if "depth" in inputs and "hha" not in inputs:
        found = [Record(r.name, {**r.inputs, "hha": r.inputs["depth"]}, r.labels) for r in found]
    return found


_DATA = {"rgb": "images", "depth": "depth", "hha": "hha"}


@final
@dataclass(frozen=True)
class _Modalities:
    """Reads rgb, depth and hha files; hha is computed where its file is the depth's."""

    def __call__(self, record: Record, modality: str) -> NDArray[Any]:
        if modality == "hha" and record.inputs["hha"] == record.inputs.get("depth"):
            depth = hha.read_depth(record.inputs["hha"])
            return hha.encode(depth, hha.read_camera("nyud", (depth.shape[0], depth.shape[1])))
        return read_modality(record, modality)


# ---- the official file -----------------------------------------------------------------------------------------


def _file(root: Path) -> Path | None:
    if root.is_file():
        return root if root.suffix == ".mat" and root.name.startswith("nyu_depth_v2") else None
    return root / _FILE if (root / _FILE).is_file() else None


def _open_file(file: Path, split: str | None, root: Path, mapping: str | Path | None) -> Dataset:
    values = _read_mapping(Path(mapping)) if mapping is not None else NYUD894
    count = _count(file)
    splits = _file_splits(file.parent, count)
    if not splits and split not in (None, "all"):
        raise DataError(f"{printable(file)} does not say which frames are {split!r}: {_SPLITS_SOURCE}.")
    every = {"": [str(_FIRST + i) for i in range(count)]}
    chosen = choose_split(list(splits), split, root) if splits else ("",)
    name, record_name = merge_splits(chosen)
    rows = [
        Record(record_name(s, f"img_{n}"), dict.fromkeys(("rgb", "depth", "hha"), file), {"semantic": file})
        for s in chosen
        for n in (splits or every)[s]
    ]
    reader = _Frames(file, Coding(NYUD40, values, kind="nyud"))
    return Dataset("nyud", file.parent, name or "all", rows, {"semantic": NYUD40}, reader, reader.labels)


def _file_splits(folder: Path, count: int) -> dict[str, list[str]]:
    """From the lists of ids, or from splits.mat (trainNdxs, testNdxs: 1-based frames)."""
    found = _lists(folder)
    file = folder / "splits.mat"
    if not found and file.is_file():
        for split in ("train", "test"):
            frames = read_mat(file, f"{split}Ndxs").ravel().astype(int)
            found[split] = [str(_FIRST - 1 + i) for i in frames]
    bad = next((n for names in found.values() for n in names if not 0 <= int(n) - _FIRST < count), None)
    if bad is not None:
        raise DataError(
            f"The lists in {printable(folder)} name the frame {bad}, and the file holds {_FIRST}.."
            f"{_FIRST + count - 1}; {_SPLITS_SOURCE}."
        )
    return found


def _read_mapping(file: Path) -> dict[int, int]:
    """classMapping40.mat: value -> id; 0 stays void."""
    classes = read_mat(file, "mapClass").ravel().astype(int)
    if len(classes) != 894 or classes.min() < 1 or classes.max() > 40:
        raise DataError(
            f"{printable(file)}: mapClass holds {len(classes)} numbers {classes.min()}..{classes.max()}, not 894 of "
            "1..40; give classMapping40.mat as published."
        )
    return {0: 255, **{i + 1: int(k) - 1 for i, k in enumerate(classes)}}


@final
@dataclass(frozen=True)
class _Frames:
    """Reads a record's arrays from the official file. MATLAB stores columns first: every array comes transposed."""

    file: Path
    coding: Coding

    def __call__(self, record: Record, modality: str) -> NDArray[Any]:
        if modality == "rgb":
            return np.ascontiguousarray(_read(self.file, ("images",), _frame(record))["images"].transpose(2, 1, 0))
        names = ("depths",) if modality == "depth" else ("depths", "rawDepths")
        stored = _read(self.file, names, _frame(record))
        depth = stored["depths"].T.astype(np.float64)
        if modality == "depth":
            return np.asarray(depth[..., None] * 1000, np.float32)
        raw = stored["rawDepths"].T if "rawDepths" in stored else depth
        return hha.encode(depth, hha.read_camera("nyud", (depth.shape[0], depth.shape[1])), raw)

    def labels(self, record: Record, head: str) -> NDArray[Any]:
        values = _read(self.file, ("labels",), _frame(record))["labels"].T
        return apply_values(np.asarray(values), self.coding, self.file)


def _frame(record: Record) -> int:
    return int(record.name.rpartition("img_")[2]) - _FIRST


def _ask(file: Path, arguments: Mapping[str, object]) -> tuple[dict[str, NDArray[Any]], dict[str, list[int]]]:
    """Frames and shapes of the official file, read in a confined child."""
    if importlib.util.find_spec("h5py") is None:
        raise MissingExtra(f"Reading {file.name}", "mat", "h5py")
    try:
        found, info = _hdf5.ask(file, arguments)
    except DataError as error:
        raise DataError(f"{error}; it must be the 2.8 GB original, whole: {_SOURCE}.") from error
    return found, info["shapes"]


def _read(file: Path, names: Sequence[str], frame: int) -> dict[str, NDArray[Any]]:
    return _ask(file, {"names": list(names), "index": frame})[0]


def _count(file: Path) -> int:
    """How many frames the file has, after checking that it is laid out as published."""
    shapes = _ask(file, {"names": []})[1]
    missing = [name for name in ("images", "depths", "labels") if name not in shapes]
    if missing:
        raise DataError(
            f"{printable(file)} has no {', '.join(missing)}, it holds {printable(', '.join(sorted(shapes)))[:100]}; "
            f"{_SOURCE}."
        )
    images, labels = shapes["images"], shapes["labels"]
    if len(images) != 4 or not labels or images[0] != labels[0]:
        raise DataError(
            f"{printable(file)}: images has the shape {tuple(images)} and labels {tuple(labels)}; "
            f"expected N 3 W H and N W H: {_SOURCE}."
        )
    return images[0]
