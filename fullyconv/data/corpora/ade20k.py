"""ADE20K scene parsing (Zhou et al. 2017): 150 classes, "other" ignored.

[ADEChallengeData2016/]images/{training,validation}/ID.jpg, annotations/{training,validation}/ID.png
(0 = other, 1..150; colour images, 8-bit grey labels); release_test/testing/*.jpg has no labels
"""

from __future__ import annotations

from pathlib import Path

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.corpus import Labels, dataset, in_folder, no_layout, painted, records
from fullyconv.data.corpora.layout import choose_split, merge_splits
from fullyconv.data.corpora.taxonomies import ADE20K

__all__ = ["open_ade20k", "recognise"]

_SOURCE = "get ADEChallengeData2016.zip from data.csail.mit.edu/places/ADEchallenge and unpack it whole"
_FOLDERS = {"train": "training", "val": "validation"}


def recognise(root: Path) -> bool:
    """Whether images/training beside annotations/training, with ADE's file names, lies at `root`."""
    base = _base(root)
    return base is not None and any(next(f.glob("ADE_*.jpg"), None) for f in (base / "images").iterdir() if f.is_dir())


def open_ade20k(root: Path, split: str | None = None) -> Dataset:
    """ADE20K's scene parsing benchmark below `root`; splits train and val.

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked).
    """
    root = Path(root)
    base = _base(root)
    if base is None:
        wanted = "ADEChallengeData2016/images/training/ and annotations/training/ (or validation)"
        raise no_layout(root, "ADE20K", wanted, _SOURCE)
    found = [s for s, folder in _FOLDERS.items() if (base / "images" / folder).is_dir()]
    chosen = choose_split(found, split, root)
    name, record_name = merge_splits(chosen)
    rows: list[Record] = []
    for s in chosen:
        images, labels = (base / n / _FOLDERS[s] for n in ("images", "annotations"))
        part = records(
            sorted(p.stem for p in images.glob("*.jpg")),
            {"rgb": in_folder(images, ".jpg")},
            {"semantic": in_folder(labels, ".png")},
            f"ADE20K images/{_FOLDERS[s]}",
            _SOURCE,
        )
        rows += [Record(record_name(s, r.name), r.inputs, r.labels) for r in part]
    coding = painted("ade20k", ADE20K, {0: 255, **{k + 1: k for k in range(150)}})
    return dataset("ade20k", base, name, rows, Labels({"semantic": coding}))


def _base(root: Path) -> Path | None:
    def good(folder: Path) -> bool:
        return any((folder / "images" / f).is_dir() and (folder / "annotations").is_dir() for f in _FOLDERS.values())

    return next((f for f in (root, root / "ADEChallengeData2016") if good(f)), None)
