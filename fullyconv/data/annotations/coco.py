"""COCO's instance annotations as one label map: polygons, both run-length codings, crowds; overlaps in a stated order.

[annotations/]instances_SPLIT.json (or any SPLIT.json) and the pictures in SPLIT/, images/ or beside
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.data.annotations.paint import (
    IGNORED,
    Painter,
    by_name,
    checked_size,
    classes_of,
    find_picture,
    one_of,
    picture_folder,
    read_json,
    read_rgb,
)
from fullyconv.data.annotations.raster import Region, Size, coco_counts, coco_polygon, from_counts
from fullyconv.data.base import Dataset, Record
from fullyconv.data.layout import choose_split, list_files, looked_at
from fullyconv.errors import DataError, printable
from fullyconv.files import read_ends

__all__ = ["open_coco", "recognise", "region"]

_ORDERS = ("area", "file")
_CROWDS = ("ignore", "label", "skip")


def recognise(root: Path) -> bool:
    """Whether `root` is, or holds, a JSON with images, annotations and categories."""
    return any(_is_coco(f) for f in _files(root).values())


def open_coco(
    root: Path,
    split: str | None = None,
    *,
    images: str | Path | None = None,
    order: str = "area",
    crowd: str = "ignore",
) -> Dataset:
    """COCO annotations at `root`, a JSON file or a folder; class 0 is background, the categories follow by their ids.

    images  the pictures' folder, where it is not SPLIT/, images/ or the file's own.
    order   which annotation covers which: "area" paints large ones first, so that small ones stay in sight; "file" in
            the order of the file.
    crowd   what iscrowd annotations become: "ignore" (the ignored value), "label" (their class) or "skip".

    Raises DataError (no such file, damaged), UnknownName (split), MissingInput (pictures), UsageError (options).
    """
    root = Path(root)
    one_of(order, _ORDERS, "order")
    one_of(crowd, _CROWDS, "crowd")
    files = {s: f for s, f in _files(root).items() if _is_coco(f)}
    if not files:
        raise DataError(
            f"{printable(root)} holds no COCO annotations: looked for *.json and annotations/*.json with images, "
            f"annotations and categories; {looked_at(root)}; export them as COCO."
        )
    wished = next((s for s in files if re.fullmatch(rf"{re.escape(split or 'train')}\d*", s)), split)  # val: val2017
    chosen = choose_split(list(files), wished, root) if len(files) > 1 or split not in (None, "all") else tuple(files)
    if len(chosen) > 1:
        raise DataError(
            f"{printable(root)} holds {', '.join(chosen)}; name one split, since each has its own categories."
        )
    file = files[chosen[0]]
    found = read_json(file, "COCO")
    names = _categories(found, file)
    taxonomy, ids = classes_of(names.values())
    rows, entries = _rows(found, file, picture_folder(_base(root), images), images is not None)
    draw = partial(_draw, names=names, order=order, crowd=crowd)
    covers = "the smaller annotation covers the larger" if order == "area" else "later ones cover earlier ones"
    notes: tuple[str, ...] = (f"overlaps: {covers}; crowds: {crowd}; what no annotation covers is background.",)
    boxes = sum(not a.get("segmentation") for entry in entries.values() for a in entry["annotations"])
    if boxes:
        notes += (f"annotations with a box and no outline are left out: {boxes}.",)
    painter = Painter(taxonomy, entries, draw, ids)
    return Dataset("coco", _base(root), chosen[0], rows, {"semantic": taxonomy}, read_rgb, painter, notes=notes)


def _files(root: Path) -> dict[str, Path]:
    """{split: JSON file}; the names instances_val2017.json, person_keypoints_... are split by their last part."""
    if root.is_file():
        return {_split_of(root): root} if root.suffix.lower() == ".json" else {}
    files = sorted([*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")])
    instances = [f for f in files if f.name.startswith("instances_")]
    return {_split_of(f): f for f in instances or files}


def _split_of(file: Path) -> str:
    if file.stem == "_annotations.coco":
        return file.parent.name
    return file.stem.removeprefix("instances_")


def _base(root: Path) -> Path:
    if not root.is_file():
        return root
    return root.parent.parent if root.parent.name == "annotations" else root.parent


def _is_coco(file: Path) -> bool:
    """Judged by the first and last 64 KiB: such files may be gigabytes."""
    if file.is_dir():
        return False
    ends = read_ends(file, 65536, 65536)
    if not ends.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return False
    return sum(key in ends for key in (b'"images"', b'"annotations"', b'"categories"')) >= 2


def _categories(found: Any, file: Path) -> dict[int, str]:
    """category id -> class name, by id; a name that two categories share gets the id behind it."""
    try:
        categories = sorted((int(c["id"]), str(c["name"])) for c in found["categories"])
        found["images"], found["annotations"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{printable(file)} is no COCO file ({printable(error)} missing or odd); export it again."
        ) from error
    names = [name for _, name in categories]
    return {k: name if names.count(name) == 1 else f"{name} ({k})" for k, name in categories}


def _rows(found: Any, file: Path, base: Path, only: bool) -> tuple[list[Record], dict[str, Any]]:
    named = dict.fromkeys((_split_of(file), _split_of(file).rstrip("0123456789")))  # train2017's may lie in train/
    own = [folder for split in named if split for folder in (base / split, base / "images" / split)]
    folders = [base] if only else [*own, base / "images", file.parent, base]
    folders = [f for f in folders if f.is_dir()]
    names = by_name(list_files(base)) if len(found["images"]) < 20000 else {}
    entries: dict[str, Any] = {}
    rows: list[Record] = []
    record_of: dict[Any, dict[str, Any]] = {}
    try:
        for image in found["images"]:
            picture = find_picture(str(image["file_name"]), folders, names, file)
            name = Path(str(image["file_name"]).replace("\\", "/")).with_suffix("").as_posix()
            if name in entries or image["id"] in record_of:
                raise DataError(f"{printable(file)} lists the picture {printable(name)!r} twice; export it again.")
            entries[name] = record_of[image["id"]] = {"image": image, "annotations": []}
            rows.append(Record(name, {"rgb": picture}, {"semantic": file}))
        for annotation in found["annotations"]:
            if "segments_info" in annotation:
                raise DataError(
                    f"{printable(file)} is COCO's panoptic form, whose regions are in PNG files; give the instances "
                    "(instances_*.json)."
                )
            if annotation["image_id"] in record_of:
                record_of[annotation["image_id"]]["annotations"].append(annotation)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{printable(file)}: an image or annotation lacks {printable(error)}; export it again."
        ) from error
    if not rows:
        raise DataError(f"{printable(file)} lists no pictures; export it again.")
    return rows, entries


def _draw(
    entry: Mapping[str, Any], ids: Mapping[str, int], *, names: Mapping[int, str], order: str, crowd: str
) -> tuple[Size, list[tuple[int, Region]]]:
    size = checked_size(entry["image"].get("height"), entry["image"].get("width"))
    painted: list[tuple[int, Region]] = []
    for annotation in entry["annotations"]:
        is_crowd = bool(annotation.get("iscrowd", 0))
        if (is_crowd and crowd == "skip") or not annotation.get("segmentation"):
            continue
        if annotation["category_id"] not in names:
            raise DataError(f"An annotation has the category {annotation['category_id']}, which is not listed.")
        k = IGNORED if is_crowd and crowd == "ignore" else ids[names[annotation["category_id"]]]
        painted.append((k, region(annotation["segmentation"], size)))
    if order == "area":
        painted.sort(key=lambda p: -int(p[1].sum()))  # stable: equal areas keep the file's order
    return size, painted


def region(segmentation: Sequence[Sequence[float]] | Mapping[str, Any], size: Size) -> Region:
    """A COCO segmentation as H W: a list of polygons (their union), or runs as a list or compressed text."""
    if isinstance(segmentation, Mapping):
        stated = tuple(int(v) for v in segmentation["size"])
        if stated != size:
            raise DataError(f"A region is coded for {stated[0]}x{stated[1]} (HxW), its picture is {size[0]}x{size[1]}.")
        counts = segmentation["counts"]
        return from_counts(coco_counts(counts) if isinstance(counts, str | bytes) else counts, size, columns=True)
    covered = np.zeros(size, bool)
    for polygon in segmentation:
        covered |= coco_polygon(polygon, size)
    return covered
