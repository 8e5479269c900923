"""PASCAL VOC 2007-2012 segmentation, in the devkit's layout, and the set algebra with SBD.

    [VOCdevkit/]VOC20xx/ImageSets/Segmentation/SPLIT.txt, JPEGImages/ID.jpg, SegmentationClass/ID.png (255 = void)
    SegmentationClassAug/ID.png    the widespread conversion of SBD's labels, used for what SegmentationClass lacks

Beside the lists' own splits: seg11valid = VOC2011 val minus SBD train (736 images; the FCN paper's validation set),
and train_aug = VOC train, SBD train and SBD val, minus VOC val (10,582 with VOC2012).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.corpus import Labels, dataset, no_layout, painted, records
from fullyconv.data.corpora.folder_classes import are_theirs
from fullyconv.data.corpora.layout import choose_split, merge_splits, read_lines
from fullyconv.data.corpora.sbd import SBD_SOURCE, Sbd, find_sbd
from fullyconv.data.corpora.taxonomies import VOC
from fullyconv.errors import DataError, UnknownName, printable

__all__ = ["find_devkits", "open_voc", "recognise", "seg11valid", "train_aug"]

_SOURCE = "get VOCtrainval_*.tar of the year from host.robots.ox.ac.uk/pascal/VOC and unpack it whole"
_LISTS = "ImageSets/Segmentation"


def recognise(root: Path) -> bool:
    """Whether a devkit's year folder lies at `root` or below it, with VOC's classes; with a labelmap.txt it is CVAT's
    likeness of one, and with values or names of other classes somebody's own."""
    devkits = find_devkits(root)
    if not devkits or (root / "labelmap.txt").is_file():
        return False
    base = devkits[max(devkits)]
    labels = [f for folder in ("SegmentationClassAug", "SegmentationClass") for f in (base / folder).glob("*.png")]
    return are_theirs((VOC,), len(VOC) - 1, (root, base), sorted(labels))


def open_voc(
    root: Path, split: str | None = None, *, year: int | None = None, sbd: str | Path | None = None
) -> Dataset:
    """VOC segmentation below `root`; 20 classes and background, void is ignored.

    year   which of several year folders (default: the latest; seg11valid takes 2011).
    sbd    where SBD lies, for seg11valid and train_aug (default: looked for in and beside `root`).

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked).
    """
    root = Path(root)
    devkits = find_devkits(root)
    if not devkits:
        raise no_layout(root, "PASCAL VOC", f"VOC2012/{_LISTS}/*.txt beside JPEGImages/ (or another year's)", _SOURCE)
    base = _choose_year(devkits, 2011 if split == "seg11valid" and year is None and 2011 in devkits else year, root)
    extra = find_sbd(Path(sbd)) if sbd is not None else find_sbd(root, *base.parents[:2])
    splits = _splits(base, extra)
    if split not in splits:
        _explain(split, base, extra)
    chosen = choose_split(list(splits), split, root)
    name, record_name = merge_splits(chosen)
    found: list[Record] = []
    for s in chosen:
        found += _records(base, extra, splits[s](), f"{base.name} {s}", partial(record_name, s))
    coding = painted("voc", VOC, ignored=[(224, 224, 192)])
    return dataset("voc", base, name, found, Labels({"semantic": coding}, {"semantic": "GTcls.Segmentation"}))


def find_devkits(root: Path) -> dict[int, Path]:
    """{year: folder} of the devkit years at `root`; a year folder under another name counts as 0."""
    if not root.is_dir():
        return {}
    places = (root, root / "VOCdevkit", root / "TrainVal/VOCdevkit")  # VOC2011's archive unpacks to the last
    folders = [root, *(f for place in places for f in sorted(place.glob("VOC20[0-9][0-9]")))]
    good = [
        f for f in folders if any((f / _LISTS).glob("*.txt")) and any((g / "JPEGImages").is_dir() for g in _years(f))
    ]
    return {int(f.name[3:]) if f.name[:3] == "VOC" and f.name[3:].isdigit() else 0: f for f in reversed(good)}


def _years(base: Path) -> list[Path]:
    """`base` last, after the other years beside it, whose images and labels may complete its own."""
    beside = base.parent.glob("VOC20[0-9][0-9]") if base.name.startswith("VOC20") else ()
    return [*sorted(f for f in beside if f != base), base]


def _choose_year(devkits: Mapping[int, Path], year: int | None, root: Path) -> Path:
    if year is None:
        return devkits[max(devkits)]
    if year not in devkits:
        raise UnknownName(f"year in {printable(root)}", str(year), map(str, devkits))
    return devkits[year]


def _splits(base: Path, sbd: Sbd | None) -> dict[str, Callable[[], Sequence[str]]]:
    """Every split with the function that lists its names."""
    lists = {f.stem: f for f in sorted((base / _LISTS).glob("*.txt"))}
    found: dict[str, Callable[[], Sequence[str]]] = {s: partial(_ids, f) for s, f in lists.items()}
    listed = next((lists[a] for a in ("train_aug", "trainaug") if a in lists), None)
    converted = base / "SegmentationClassAug"
    if listed:
        found["train_aug"] = partial(_ids, listed)
    elif sbd and "val" in lists and "train" in lists:
        extra = sbd
        found["train_aug"] = lambda: train_aug(
            _ids(lists["train"]), _ids(lists["val"]), extra.names("train"), extra.names("val")
        )
    elif converted.is_dir() and "val" in lists:
        found["train_aug"] = lambda: train_aug([f.stem for f in converted.glob("*.png")], _ids(lists["val"]), [], [])
    if sbd and base.name == "VOC2011" and "val" in lists and "seg11valid" not in lists:
        valid = sbd
        found["seg11valid"] = lambda: seg11valid(_ids(lists["val"]), valid.names("train"))
    return found


def _explain(split: str | None, base: Path, sbd: Sbd | None) -> None:
    """Say what a computed split lacks."""
    if split == "seg11valid" and base.name != "VOC2011":
        raise DataError(
            f"seg11valid is VOC2011 val minus SBD train, and {printable(base)} is not VOC2011: get "
            "VOCtrainval_25-May-2011.tar from host.robots.ox.ac.uk/pascal/VOC/voc2011 and unpack it beside."
        )
    if split in ("seg11valid", "train_aug") and sbd is None:
        raise DataError(
            f"{split} needs SBD's lists, and there is no SBD in or beside {printable(base.parent)}: {SBD_SOURCE}, or "
            "say where it is (voc,sbd=PATH:...)."
        )


def _records(
    base: Path, sbd: Sbd | None, names: Sequence[str], where: str, record_name: Callable[[str], str]
) -> list[Record]:
    labels = _label_files(base, sbd)
    images = _image_files(base, sbd)
    found = records(
        names,
        {"rgb": lambda i: images.get(i, base / "JPEGImages" / f"{i}.jpg")},
        {"semantic": lambda i: labels.get(i, base / "SegmentationClass" / f"{i}.png")},
        where,
        _SOURCE,
    )
    return [Record(record_name(r.name), r.inputs, r.labels) for r in found]


def _label_files(base: Path, sbd: Sbd | None) -> dict[str, Path]:
    """VOC's own label where there is one, else the converted one, else SBD's."""
    files = dict(sbd.labels) if sbd else {}
    for folder in ("SegmentationClassAug", "SegmentationClass"):
        for year in _years(base):
            files.update({f.stem: f for f in (year / folder).glob("*.png")})
    return files


def _image_files(base: Path, sbd: Sbd | None) -> dict[str, Path]:
    files = dict(sbd.images) if sbd else {}
    for year in _years(base):
        files.update({f.stem: f for f in (year / "JPEGImages").glob("*.jpg")})
    return files


def _ids(file: Path) -> list[str]:
    """The ids of a list: its first column (the Main lists carry a second), or the stem of a path."""
    return [Path(line.split()[0]).stem if "/" in line else line.split()[0] for line in read_lines(file)]


def seg11valid(voc2011_val: Sequence[str], sbd_train: Sequence[str]) -> list[str]:
    """VOC2011 val minus SBD train, in VOC's order: what a net trained on SBD train may be measured on."""
    seen = set(sbd_train)
    return [i for i in voc2011_val if i not in seen]


def train_aug(
    voc_train: Sequence[str], voc_val: Sequence[str], sbd_train: Sequence[str], sbd_val: Sequence[str]
) -> list[str]:
    """VOC train, SBD train and SBD val without VOC val, each once, sorted."""
    return sorted({*voc_train, *sbd_train, *sbd_val} - set(voc_val))
