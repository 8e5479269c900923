"""PASCAL-Context (Mottaghi et al. 2014): background and 59 classes on VOC2010's images.

VOC2010/ImageSets/Main/SPLIT.txt, VOC2010/JPEGImages/ID.jpg    (at the root, or named by voc=)
[context/]trainval/ID.mat   LabelMap: 459 values; labels.txt ("397: table") beside it is checked where it is there
ID.jpg beside ID.png        the colour-coded copies that circulate (VOC's colour map, 0 = background)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import Labels, choose_kind, dataset, existing, in_folder, no_layout, records
from fullyconv.data.corpora.layout import choose_split, merge_splits, read_lines
from fullyconv.data.corpora.taxonomies import CONTEXT, CONTEXT_IDS
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.taxonomy import Taxonomy

__all__ = ["open_context", "recognise"]

_SOURCE = (
    "get trainval.tar.gz and labels.txt from cs.stanford.edu/~roozbeh/pascal-context and VOCtrainval_03-May-2010.tar "
    "from host.robots.ox.ac.uk/pascal/VOC/voc2010"
)


def recognise(root: Path) -> bool:
    """Whether trainval/*.mat lies at `root` or in context/ below it."""
    return _maps(root) is not None


def open_context(root: Path, split: str | None = None, *, voc: str | Path | None = None, classes: int = 60) -> Dataset:
    """PASCAL-Context below `root`.

    voc      the VOC2010 folder (or the VOCdevkit around it) where it is not below `root`.
    classes  60: what is none of the 59 is background, a class (the FCN paper); 59: it is ignored.

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked), MissingExtra (.mat).
    """
    root = Path(root)
    if classes not in (59, 60):
        raise UsageError(f"PASCAL-Context is read with 60 or 59 classes, not {classes}; give classes=60 or 59.")
    maps = _maps(root)
    if maps is None:
        return _open_copies(root, split, classes)
    devkit = _devkit(Path(voc)) if voc is not None else _devkit(root)
    if devkit is None:
        where = Path(voc) if voc is not None else root
        raise no_layout(
            where,
            "VOC2010",
            "VOC2010/ImageSets/Main/ and VOC2010/JPEGImages/ (or elsewhere: context,voc=PATH:...)",
            _SOURCE,
        )
    _check_names(maps.parent)
    lists = {s: devkit / f"ImageSets/Main/{s}.txt" for s in ("train", "val", "trainval")}
    found = [s for s, f in lists.items() if f.is_file()]
    chosen = choose_split(found, split, root) if split != "all" else ("trainval",)
    rows: list[Record] = []
    for s in chosen:
        rows += _records(devkit, maps, [line.split()[0] for line in read_lines(lists[s])], s)
    name = "all" if split == "all" else chosen[0]
    return dataset("context", root, name, rows, Labels({"semantic": _coding(classes)}, {"semantic": "LabelMap"}))


def _records(devkit: Path, maps: Path, names: Sequence[str], split: str) -> list[Record]:
    """Those of the list that are annotated: the detection lists may name a few more."""
    there = {f.stem for f in existing(maps / f"{n}.mat" for n in names)}
    return records(
        [n for n in names if n in there],
        {"rgb": in_folder(devkit / "JPEGImages", ".jpg")},
        {"semantic": in_folder(maps, ".mat")},
        f"PASCAL-Context {split}",
        _SOURCE,
    )


def _coding(classes: int) -> Coding:
    """459 values -> 60 or 59 classes; what is not listed is background, or ignored."""
    first = classes - 59
    values = dict.fromkeys(range(460), 0 if classes == 60 else 255)
    values |= {value: k + first for k, (_, value) in enumerate(CONTEXT_IDS.values())}
    return Coding(_taxonomy(classes), values, kind="context")


def _taxonomy(classes: int) -> Taxonomy:
    return Taxonomy(CONTEXT.names[60 - classes :], CONTEXT.palette[60 - classes :], 255)


def _check_names(folder: Path) -> None:
    """labels.txt must give the 59 names the values we know them by; a re-numbered copy would be read wrongly."""
    file = folder / "labels.txt"
    if not file.is_file():
        return
    values = {name.strip(): value.strip() for value, _, name in (line.partition(":") for line in read_lines(file))}
    for old, value in CONTEXT_IDS.values():
        if values.get(old) != str(value):
            raise DataError(
                f"{printable(file)} gives {old!r} the value {values.get(old)}, the published one is {value}; this is "
                f"another numbering: {_SOURCE}."
            )


def _maps(root: Path) -> Path | None:
    folders = (root / "trainval", root / "context/trainval", root / "pascal-context/trainval")
    return next((f for f in folders if f.is_dir() and next(f.glob("*.mat"), None)), None)


def _devkit(root: Path) -> Path | None:
    folders = (
        root,
        root / "VOC2010",
        root / "VOCdevkit/VOC2010",
        root.parent / "VOC2010",
        root.parent / "VOCdevkit/VOC2010",
    )
    return next((f for f in folders if (f / "ImageSets/Main").is_dir() and (f / "JPEGImages").is_dir()), None)


def _open_copies(root: Path, split: str | None, classes: int) -> Dataset:
    """Images beside their colour-coded labels; sub-folders named like splits are splits."""
    folders = {d.name: d for d in sorted(root.iterdir()) if d.is_dir() and next(d.glob("*.png"), None)}
    splits = {s: d for s, d in folders.items() if s in ("train", "val", "test", "trainval")} or {"": root}
    chosen = choose_kind(splits, split, root)
    name, record_name = merge_splits(chosen)
    rows: list[Record] = []
    for s in chosen:
        at = splits[s]
        names = [f.stem for f in sorted(at.glob("*.png")) if (at / f"{f.stem}.jpg").is_file()]
        if not names:
            wanted = "trainval/*.mat with VOC2010/, or *.jpg beside *.png"
            raise no_layout(root, "PASCAL-Context", wanted, _SOURCE)
        rows += [Record(record_name(s, n), {"rgb": at / f"{n}.jpg"}, {"semantic": at / f"{n}.png"}) for n in names]
    ids = {k: k - (60 - classes) if k or classes == 60 else 255 for k in range(60)}
    coding = Coding(_taxonomy(classes), ids, {CONTEXT.palette[k]: v for k, v in ids.items()}, "context")
    return dataset("context", root, name or "all", rows, Labels({"semantic": coding}))
