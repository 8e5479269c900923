"""Cityscapes (Cordts et al. 2016): the 19 evaluated classes from the labelIds images; all else is ignored.

leftImg8bit/SPLIT/CITY/*_leftImg8bit.png
gtFine/SPLIT/CITY/*_gtFine_labelIds.png     (or gtCoarse; or *_labelTrainIds.png, *_color.png where only those are)
"""

from __future__ import annotations

from pathlib import Path

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.corpus import Labels, dataset, in_folder, no_layout, painted, records
from fullyconv.data.corpora.layout import choose_split, merge_splits
from fullyconv.data.corpora.taxonomies import CITYSCAPES, CITYSCAPES_IDS
from fullyconv.errors import UnknownName

__all__ = ["open_cityscapes", "recognise"]

_SOURCE = (
    "get leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from www.cityscapes-dataset.com (with an account) "
    "and unpack both here"
)
_IMAGE = "_leftImg8bit.png"
_FORMS = ("labelIds", "labelTrainIds", "color")
# Colours of what is not evaluated (cityscapesScripts, helpers/labels.py); a licence plate has the colour of a car.
_IGNORED = (
    *((0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180), (150, 100, 100)),
    *((150, 120, 90), (0, 0, 90), (0, 0, 110)),
)


def recognise(root: Path) -> bool:
    """Whether `root` holds leftImg8bit/ beside gtFine/ or gtCoarse/."""
    return (root / "leftImg8bit").is_dir() and any((root / n).is_dir() for n in ("gtFine", "gtCoarse"))


def open_cityscapes(root: Path, split: str | None = None, *, annotations: str = "gtFine") -> Dataset:
    """Cityscapes below `root`, one group a drive (city and sequence). annotations: gtFine or gtCoarse.

    The test split is published with empty labels; it is opened without any.
    Raises DataError (no such layout), UnknownName (split, annotations), MissingInput (half unpacked).
    """
    root = Path(root)
    if annotations not in ("gtFine", "gtCoarse"):
        raise UnknownName("kind of Cityscapes annotations", annotations, ("gtFine", "gtCoarse"))
    if not (root / "leftImg8bit").is_dir() or not (root / annotations).is_dir():
        raise no_layout(root, "Cityscapes", f"leftImg8bit/SPLIT/CITY/ and {annotations}/SPLIT/CITY/", _SOURCE)
    found = sorted(d.name for d in (root / "leftImg8bit").iterdir() if d.is_dir())
    chosen = choose_split(found, split, root)
    name, record_name = merge_splits(chosen)
    form = next((f for f in _FORMS if next((root / annotations).rglob(f"*_{f}.png"), None)), _FORMS[0])
    rows: list[Record] = []
    for s in chosen:
        for r in _records(root, s, annotations, form):
            rows.append(Record(record_name(s, r.name), r.inputs, r.labels, r.group))
    coding = painted("cityscapes", CITYSCAPES, CITYSCAPES_IDS if form == "labelIds" else {}, _IGNORED)
    return dataset("cityscapes", root, name, rows, Labels({"semantic": coding}))


def _records(root: Path, split: str, annotations: str, kind: str) -> list[Record]:
    images = root / "leftImg8bit" / split
    names = sorted(p.relative_to(images).as_posix()[: -len(_IMAGE)] for p in images.glob(f"*/*{_IMAGE}"))
    label = {"semantic": in_folder(root / annotations / split, f"_{annotations}_{kind}.png")}
    return records(
        names,
        {"rgb": in_folder(images, _IMAGE)},
        {} if split == "test" else label,
        f"Cityscapes leftImg8bit/{split}",
        _SOURCE,
        lambda n: "_".join(n.split("/")[-1].split("_")[:2]),
    )
