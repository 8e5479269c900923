"""CVAT's exports: "Segmentation mask 1.1" and "CVAT for images 1.1".

    labelmap.txt, SegmentationClass/ID.png (colours), ImageSets/Segmentation/SPLIT.txt, JPEGImages/ID.*
    annotations.xml with <image> elements (polygon, mask, box, ellipse) and images/

In the XML, shapes are painted by their z_order, then in the order of the file, later ones on top; polygons are filled
by COCO's rule, as CVAT itself does. Pictures that were not exported with the labels are looked for in images=PATH.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.data.annotations.paint import (
    Painter,
    by_name,
    checked_size,
    classes_of,
    find_picture,
    picture_folder,
    read_rgb,
)
from fullyconv.data.annotations.raster import Region, Size, coco_polygon, ellipse_points, from_counts
from fullyconv.data.base import Dataset, Record
from fullyconv.data.class_tables import read_classes
from fullyconv.data.coding import Coding
from fullyconv.data.corpus import Labels, choose
from fullyconv.data.layout import list_files, looked_at, merge_splits, read_lines
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files import read_ends, read_file
from fullyconv.taxonomy import Colour

__all__ = ["open_cvat", "recognise"]

_SHAPES = ("polygon", "mask", "box", "ellipse")
_MAX_XML = 2**30


def recognise(root: Path) -> bool:
    """Whether `root` holds labelmap.txt with SegmentationClass/, or is or holds CVAT's annotations.xml."""
    return _is_masks(root) or _xml(root) is not None


def open_cvat(root: Path, split: str | None = None, *, images: str | Path | None = None) -> Dataset:
    """A CVAT export at `root` (a folder, or the XML file). images: the pictures' folder where they lie elsewhere.

    Raises DataError (no such export, damaged), UnknownName (split), MissingInput (pictures).
    """
    root = Path(root)
    if _is_masks(root):
        return _open_masks(root, split, picture_folder(root, images))
    file = _xml(root)
    if file is None:
        raise DataError(
            f"{printable(root)} is no CVAT export: looked for labelmap.txt with SegmentationClass/ ('Segmentation mask "
            f"1.1') or annotations.xml ('CVAT for images 1.1'); {looked_at(root)}; export the task in one of these."
        )
    return _open_xml(file, split, picture_folder(file.parent, images))


# ---- Segmentation mask 1.1 -------------------------------------------------------------------------------------


def _is_masks(root: Path) -> bool:
    return (root / "labelmap.txt").is_file() and (root / "SegmentationClass").is_dir()


def _open_masks(root: Path, split: str | None, folder: Path) -> Dataset:
    lists = {f.stem: f for f in sorted((root / "ImageSets/Segmentation").glob("*.txt"))}
    chosen = choose(lists, split, root)
    name, record_name = merge_splits(chosen)
    files = list_files(folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder)
    pictures = {f.stem: f for f in files if f.parent.name not in ("SegmentationClass", "SegmentationObject")}
    rows: list[Record] = []
    for s in chosen:
        names = read_lines(lists[s]) if s else sorted(f.stem for f in (root / "SegmentationClass").glob("*.png"))
        for n in names:
            label = root / "SegmentationClass" / f"{n}.png"
            picture = pictures.get(Path(n).name)
            if picture is None or not label.is_file():
                what = "picture" if picture is None else "label"
                raise MissingInput(
                    f"{printable(root)} lists {printable(n)!r} and holds no {what} of it; export with the pictures "
                    "('save images'), or say where they are (cvat,images=PATH:EXPORT)."
                )
            rows.append(Record(record_name(s, n), {"rgb": picture}, {"semantic": label}))
    coding = _label_map(root / "labelmap.txt")
    reader = Labels({"semantic": coding})
    return Dataset("cvat", root, name or "all", rows, {"semantic": coding.taxonomy}, read_rgb, reader)


def _label_map(file: Path) -> Coding:
    """labelmap.txt ("name:r,g,b:parts:actions"), background first where it is listed."""
    listed = read_classes(file)
    names, colours = listed.taxonomy.names, dict(zip(listed.taxonomy.names, listed.taxonomy.palette, strict=True))
    taxonomy, ids = classes_of(sorted(names, key=lambda n: n != "background"), colours)
    codes = {colours[n]: ids[n] for n in names}
    codes.setdefault((0, 0, 0), 0)
    return Coding(taxonomy, {}, codes)


# ---- CVAT for images 1.1 ---------------------------------------------------------------------------------------


def _xml(root: Path) -> Path | None:
    files = [root] if root.is_file() else [root / "annotations.xml", *sorted(root.glob("*.xml"))[:1]]
    return next(
        (
            f
            for f in files
            if f.suffix == ".xml" and os.path.lexists(f) and not f.is_dir() and b"<annotations" in _head(f)
        ),
        None,
    )


def _head(file: Path) -> bytes:
    return read_ends(file, 4096)


def _open_xml(file: Path, split: str | None, base: Path) -> Dataset:
    tree = _parse(file)
    if tree.find("image") is None:
        said = (
            "video tracks; export the task as 'CVAT for images 1.1'" if tree.find("track") is not None else "no images"
        )
        raise DataError(f"{printable(file)} holds {said}.")
    names, colours = _labels(tree)
    taxonomy, ids = classes_of(names, colours)
    splits: dict[str, list[Any]] = {}
    for image in tree.iter("image"):
        splits.setdefault(image.get("subset", ""), []).append(image)
    chosen = choose(splits if "" not in splits else (), split, file)
    splits = {"": [i for part in splits.values() for i in part]} if chosen == ("",) else splits
    name, record_name = merge_splits(chosen)
    folders = [f for f in (base, base / "images") if f.is_dir()]
    known = by_name(list_files(base))
    rows: list[Record] = []
    entries: dict[str, Any] = {}
    for s in chosen:
        for image in splits[s]:
            listed = image.get("name", "")
            picture = find_picture(listed, [*(f / s for f in folders if s), *folders], known, file)
            key = record_name(s, Path(listed.replace("\\", "/")).with_suffix("").as_posix())
            rows.append(Record(key, {"rgb": picture}, {"semantic": file}))
            entries[key] = {**image.attrib, "shapes": [{"kind": e.tag, **e.attrib} for e in image]}
    notes = ["shapes cover each other by z_order, then by the file's order; what no shape covers is background."]
    others = sorted({e["kind"] for entry in entries.values() for e in entry["shapes"]} - {*_SHAPES, "tag"})
    if others:
        notes.append(f"shapes without an area are left out: {', '.join(map(printable, others))}.")
    painter = Painter(taxonomy, entries, _draw, ids)
    return Dataset(
        "cvat", file.parent, name or "all", rows, {"semantic": taxonomy}, read_rgb, painter, notes=tuple(notes)
    )


def _parse(file: Path) -> Any:
    """The XML's root; entities (a document type) are refused, since they can blow a small file up to any size."""
    from xml.etree import ElementTree

    data = read_file(file, _MAX_XML)
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise DataError(
            f"{printable(file)} declares a document type, which CVAT does not write; export the task again."
        )
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{printable(file)} is no XML ({printable(error)}); export the task again.") from error


def _labels(tree: Any) -> tuple[list[str], dict[str, Colour]]:
    """The label names in the order of the task's own list (else sorted, as used), and their colours."""
    names: list[str] = []
    colours: dict[str, Colour] = {}
    for label in tree.findall("meta//labels/label"):
        name, colour = label.findtext("name", ""), label.findtext("color", "") or ""
        names += [name] if name else []
        if len(colour) == 7 and colour[0] == "#":
            colours[name] = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:], 16))
    used = {e.get("label", "") for image in tree.iter("image") for e in image if e.tag in _SHAPES}
    return [*names, *sorted(used - set(names))], colours


def _draw(entry: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[Size, list[tuple[int, Region]]]:
    size = checked_size(int(entry["height"]), int(entry["width"]))
    shapes = [s for s in entry["shapes"] if s["kind"] in _SHAPES]
    shapes.sort(key=lambda s: int(s.get("z_order", 0)))  # stable
    return size, [(ids[s["label"]], _region(s, size)) for s in shapes]


def _region(shape: Mapping[str, str], size: Size) -> Region:
    if shape["kind"] == "polygon":
        return coco_polygon([float(v) for point in shape["points"].split(";") for v in point.split(",")], size)
    if shape["kind"] == "mask":
        return _run_lengths(shape, size)
    if shape["kind"] == "ellipse":
        cx, cy, rx, ry = (float(shape[k]) for k in ("cx", "cy", "rx", "ry"))
        return coco_polygon(ellipse_points(cx, cy, rx, ry, float(shape.get("rotation", 0))), size)
    x0, y0, x1, y1 = (float(shape[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
    if not float(shape.get("rotation", 0)):
        return coco_polygon([x0, y0, x1, y0, x1, y1, x0, y1], size)
    turn = np.radians(float(shape["rotation"]))
    centre = np.array([x0 + x1, y0 + y1]) / 2
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - centre
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return coco_polygon((turned + centre).ravel().tolist(), size)


def _run_lengths(shape: Mapping[str, str], size: Size) -> Region:
    """Runs along the rows of the box left, top, width, height."""
    left, top, width, height = (int(float(shape[k])) for k in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or top + height > size[0] or left + width > size[1]:
        raise DataError(
            f"A mask's box ({top}, {left}, {height}x{width}) leaves its picture of {size[0]}x{size[1]} (HxW)."
        )
    covered = np.zeros(size, bool)
    runs = [int(v) for v in shape["rle"].split(",")]
    covered[top : top + height, left : left + width] = from_counts(runs, (height, width), columns=False)
    return covered
