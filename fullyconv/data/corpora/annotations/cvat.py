"""CVAT's exports: "Segmentation mask 1.1" and "CVAT for images 1.1".

    labelmap.txt, SegmentationClass/ID.png (colours), ImageSets/Segmentation/SPLIT.txt, JPEGImages/ID.*
    annotations.xml with <image> elements (polygon, mask, box, ellipse) and images/

In the XML, shapes are painted by their z_order, then in the order of the file, later ones on top; polygons are filled
by COCO's rule, as CVAT itself does. Images that were not exported with the labels are looked for in images=PATH.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final
from xml.etree.ElementTree import Element

import numpy as np

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.paint import (
    IGNORED,
    Painter,
    by_name,
    checked_size,
    classes_of,
    find_image,
    image_folder,
    inside,
    read_rgb,
    refuse_shared,
    unique_names,
)
from fullyconv.data.corpora.annotations.raster import BadShape, Size, checked_counts, ellipse_points
from fullyconv.data.corpora.annotations.shapes import Entry, Runs, Unused, draw_shapes, number, rings, short
from fullyconv.data.corpora.class_tables import read_classes
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import Labels, choose_kind
from fullyconv.data.corpora.layout import SUFFIXES, describe_folder, list_files, merge_splits, read_lines
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files import read_ends, read_file
from fullyconv.taxonomy import Colour

__all__ = ["open_cvat", "recognise"]

_SHAPES = ("polygon", "mask", "box", "ellipse")
_IGNORED_NAMES = ("ignore", "ignored", "__ignore__")
_MAX_XML = 2**30  # bytes of one export, which is held as text and as a tree
_BORDER = (224, 224, 192)  # of VOC's files: what is neither learned nor measured


def recognise(root: Path) -> bool:
    """Whether `root` holds labelmap.txt with SegmentationClass/, or is or holds CVAT's annotations.xml."""
    return _is_masks(root) or _xml(root) is not None


def open_cvat(root: Path, split: str | None = None, *, images: str | Path | None = None) -> Dataset:
    """A CVAT export at `root` (a folder, or the XML file). images: the images' folder where they lie elsewhere.

    Raises DataError (no such export, damaged), UnknownName (split), MissingInput (images).
    """
    root = Path(root)
    if _is_masks(root):
        return _open_masks(root, split, image_folder(root, images))
    file = _xml(root)
    if file is None:
        raise DataError(
            f"{printable(root)} is no CVAT export: looked for labelmap.txt with SegmentationClass/ ('Segmentation mask "
            f"1.1') or annotations.xml ('CVAT for images 1.1'); {describe_folder(root)}; "
            "export the task in one of these."
        )
    return _open_xml(file, split, image_folder(file.parent, images))


# ---- Segmentation mask 1.1 -------------------------------------------------------------------------------------


def _is_masks(root: Path) -> bool:
    return (root / "labelmap.txt").is_file() and (root / "SegmentationClass").is_dir()


def _open_masks(root: Path, split: str | None, folder: Path) -> Dataset:
    lists = {f.stem: f for f in sorted((root / "ImageSets/Segmentation").glob("*.txt"))}
    chosen = choose_kind(lists, split, root)
    name, record_name = merge_splits(chosen)
    folder = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    files = [f for f in list_files(folder) if not {"SegmentationClass", "SegmentationObject"} & set(f.parts)]
    exact, bare = _by_stem(files, lambda f: f.relative_to(folder)), _by_stem(files, lambda f: Path(f.name))
    rows: list[Record] = []
    labels = root / "SegmentationClass"
    unlisted = {f.relative_to(labels).with_suffix("").as_posix() for f in list_files(labels, (".png",))}
    everything = set(unlisted)
    for s in chosen:
        for n in read_lines(lists[s]) if s else sorted(everything):
            n = str(Path(n).with_suffix("")) if Path(n).suffix.lower() in SUFFIXES and n not in exact else n
            found = exact.get(n) or bare.get(Path(n).name, [])
            label = labels / f"{n}.png"
            if len(found) != 1 or not os.path.isfile(label):
                what = "no label of it" if found and len(found) < 2 else f"{len(found) or 'no'} images of that name"
                raise MissingInput(
                    f"{printable(root)} lists {printable(n)!r} and holds {what}; export with the images ('save "
                    "images'), one of each name, or say where they are (cvat,images=PATH:EXPORT)."
                )
            unlisted.discard(n)
            rows.append(Record(record_name(s, n), {"rgb": found[0]}, {"semantic": label}))
    refuse_shared(((r.labels["semantic"].name, r.inputs["rgb"]) for r in rows), root)
    unused = Unused()
    for n in sorted(unlisted):
        unused.add("labels that the list does not name", n)
    coding = _label_map(root / "labelmap.txt")
    reader = Labels({"semantic": coding})
    notes = unused.notes()
    return Dataset("cvat", root, name or "all", rows, {"semantic": coding.taxonomy}, read_rgb, reader, notes=notes)


def _by_stem(files: list[Path], name_of: Callable[[Path], Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(name_of(file).with_suffix("").as_posix(), []).append(file)
    return found


def _label_map(file: Path) -> Coding:
    """labelmap.txt ("name:r,g,b:parts:actions"), background first where it is listed."""
    listed = read_classes(file)
    names, colours = listed.taxonomy.names, dict(zip(listed.taxonomy.names, listed.taxonomy.palette, strict=True))
    taxonomy, ids = classes_of(sorted(names, key=lambda n: n != "background"), colours)
    codes = {colours[n]: ids[n] for n in names}
    codes.setdefault((0, 0, 0), 0)
    codes.setdefault(_BORDER, taxonomy.ignore)
    return Coding(taxonomy, {}, codes, "cvat")


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
        message = (
            "video tracks; export the task as 'CVAT for images 1.1'" if tree.find("track") is not None else "no images"
        )
        raise DataError(f"{printable(file)} holds {message}.")
    unused = Unused()
    names, colours = _labels(tree, unused)
    taxonomy, ids = classes_of(names, colours)
    ignored = [n for n in names if n.lower() in _IGNORED_NAMES]
    ids |= dict.fromkeys(ignored, IGNORED)
    splits: dict[str, list[Element]] = {}
    for image in tree.iter("image"):
        splits.setdefault(image.get("subset", ""), []).append(image)
    chosen = choose_kind(splits if "" not in splits else (), split, file)
    splits = {"": [i for part in splits.values() for i in part]} if chosen == ("",) else splits
    name, record_name = merge_splits(chosen)
    images = {(s, n): p for s in chosen for n, p in _images(splits[s], s, base, file).items()}
    refuse_shared(((f"{s}/{n}".lstrip("/"), p) for (s, n), p in images.items()), file)
    keys = dict(zip(images, unique_names([record_name(*place) for place in images]), strict=True))
    rows = [Record(keys[place], {"rgb": p}, {"semantic": file}) for place, p in images.items()]
    entries: dict[str, Entry] = {}
    for s in chosen:
        for listed, same in _listed(splits[s]).items():
            entries[keys[s, listed]] = _entry(same, listed, ids, unused, file)
    notes = ["shapes cover each other by z_order, then by the file's order; what no shape covers is background."]
    if ignored:
        message = ", ".join(map(short, ignored))
        notes.append(f"the label {message} is taken for what is not to be learned or measured: the ignored value.")
    painter = Painter(taxonomy, entries, draw_shapes, ids)
    notes += unused.notes()
    return Dataset(
        "cvat", file.parent, name or "all", rows, {"semantic": taxonomy}, read_rgb, painter, notes=tuple(notes)
    )


def _listed(images: list[Element]) -> dict[str, list[Element]]:
    """name -> the <image> elements of that name."""
    found: dict[str, list[Element]] = {}
    for image in images:
        found.setdefault(image.get("name", "").replace("\\", "/"), []).append(image)
    return found


def _images(images: list[Element], subset: str, base: Path, file: Path) -> dict[str, Path]:
    """name -> its image, in images/SUBSET/, images/ or wherever the only one of that name lies."""
    folders = [f for f in (base, base / "images") if f.is_dir()]
    inner = [inside(f, subset) for f in folders] if subset else []
    known = by_name(list_files(base))
    return {name: find_image(name, [*inner, *folders], known, file) for name in _listed(images)}


def _entry(same: list[Element], name: str, ids: Mapping[str, int], unused: Unused, file: Path) -> Entry:
    """The shapes of the <image> elements of one name, if they are one image's."""
    sizes = {(i.get("height"), i.get("width")) for i in same}
    if len(sizes) > 1 or len({i.get("task_id") for i in same}) > 1:
        raise DataError(
            f"{printable(file)} holds {len(same)} images named {short(name)!r} of several tasks, and which of them "
            "the image there is cannot be told; export the tasks one by one, or give their frames names of their own."
        )
    try:
        size = checked_size(*(int(v) if v and v.isascii() and v.isdigit() and len(v) < 10 else v for v in sizes.pop()))
    except DataError as error:
        raise DataError(f"{printable(file)}, {printable(name)[:200]}: {error}") from error
    shapes = [(e, *_shape(e, size, ids, name, unused)) for image in same for e in image]
    shapes = [s for s in shapes if s[2] is not None]
    shapes.sort(key=lambda s: s[1])  # stable
    return Entry(size, tuple((ids[e.get("label", "")], shape) for e, _, shape in shapes))


def _shape(element: Element, size: Size, ids: Mapping[str, int], name: str, unused: Unused) -> tuple[float, Any]:
    """(z, shape) of an element, or (0, None) for one that is counted as unused."""
    kind = element.tag if isinstance(element.tag, str) else "comment"
    if kind not in _SHAPES:
        what = "image tags" if kind == "tag" else f"shapes without an area ({short(kind)})"
        unused.add(what, name)
        return 0, None
    try:
        z = number(element.get("z_order", "0"), "z_order")
        if element.get("label", "") not in ids:
            raise BadShape("without a label")
        if element.get("outside") == "1":
            raise BadShape("outside of their frame (outside = 1)")
        return z, _region(element.attrib, kind, size)
    except BadShape as error:
        unused.add(f"shapes {error.reason}", f"a {kind} of {short(name)}")
        return 0, None


def _parse(file: Path) -> Any:
    """The XML's root; entities (a document type) are refused, since they can blow a small file up to any size."""
    from xml.etree import ElementTree
    from xml.parsers.expat import ExpatError

    data = read_file(file, _MAX_XML)
    try:
        _refuse_document_types(data)
        return ElementTree.fromstring(data)
    except _DocumentType as error:
        raise DataError(
            f"{printable(file)} declares a document type, which CVAT does not write and can blow up to any size; "
            "remove its <!DOCTYPE ...>."
        ) from error
    except (ElementTree.ParseError, ExpatError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{printable(file)} is no XML ({printable(error)[:100]}); export the task again.") from error


@final
class _DocumentType(Exception):
    pass


def _refuse_document_types(data: bytes) -> None:
    """Whatever the encoding: the parser itself says whether there is one. No other handler, so this is quick."""
    from xml.parsers.expat import ParserCreate

    def found(*_: object) -> None:
        raise _DocumentType

    parser = ParserCreate()
    parser.StartDoctypeDeclHandler = found
    parser.EntityDeclHandler = found
    parser.Parse(data, True)


def _labels(tree: Element, unused: Unused) -> tuple[list[str], dict[str, Colour]]:
    """The label names in the order of the task's own list (else sorted, as used), and their colours."""
    names: list[str] = []
    colours: dict[str, Colour] = {}
    for label in tree.findall("meta//labels/label"):
        name, colour = label.findtext("name", "") or "", label.findtext("color", "") or ""
        names += [name] if name else []
        if re.fullmatch("#[0-9a-fA-F]{6}", colour):
            colours[name] = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:], 16))
        elif colour:
            unused.add("colours that are not like #1e90ff", f"{short(colour)} of {short(name)}")
    used = {e.get("label", "") for image in tree.iter("image") for e in image if e.tag in _SHAPES}
    return [*names, *sorted(used - {*names, ""})], colours


def _region(shape: Mapping[str, str], kind: str, size: Size) -> Any:
    if kind == "polygon":
        return rings(_numbers(shape.get("points", "")), size)
    if kind == "mask":
        return _run_lengths(shape, size)
    turn = number(shape.get("rotation", "0"), "rotation")
    if kind == "ellipse":
        cx, cy, rx, ry = (number(shape.get(k), k) for k in ("cx", "cy", "rx", "ry"))
        return rings(ellipse_points(cx, cy, rx, ry, turn), size)
    x0, y0, x1, y1 = (number(shape.get(k), k) for k in ("xtl", "ytl", "xbr", "ybr"))
    if not turn:
        return rings([x0, y0, x1, y0, x1, y1, x0, y1], size)
    centre = np.array([x0 + x1, y0 + y1]) / 2
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]) - centre
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return rings(corners @ np.array([[cos, sin], [-sin, cos]]) + centre, size)


def _numbers(text: str) -> list[float]:
    """ "1,2;3,4" as 1, 2, 3, 4."""
    try:
        return [float(v) for v in text.replace(";", ",").split(",")] if text else []
    except ValueError as error:
        raise BadShape("with points that are no numbers") from error


def _run_lengths(shape: Mapping[str, str], size: Size) -> Runs:
    """Runs along the rows of the box left, top, width, height."""
    left, top, width, height = (int(number(shape.get(k), k)) for k in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or top + height > size[0] or left + width > size[1]:
        raise BadShape("whose box leaves its image")
    try:
        runs = [int(v) for v in shape.get("rle", "").split(",")]
    except ValueError as error:
        raise BadShape("of runs that are no numbers") from error
    return Runs(checked_counts(runs, (height, width)), (top, left, height, width), columns=False)
