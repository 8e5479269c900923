"""COCO's instance annotations as one label map: polygons, both run-length codings, crowds; overlaps in a stated order.

[annotations/]instances_SPLIT.json (or any SPLIT.json) and the images in SPLIT/, images/ or beside
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.paint import (
    IGNORED,
    Painter,
    by_name,
    checked_size,
    classes_of,
    find_image,
    image_folder,
    listed_name,
    one_of,
    read_rgb,
    refuse_shared,
    unique_names,
)
from fullyconv.data.corpora.annotations.raster import BadShape, Size, check_outlines, checked_counts, coco_counts
from fullyconv.data.corpora.annotations.shapes import Entry, Rings, Runs, Unused, draw_shapes, ring, short
from fullyconv.data.corpora.layout import SUFFIXES, choose_split, describe_folder, list_files
from fullyconv.errors import DataError, printable
from fullyconv.files import read_ends, read_json
from fullyconv.images import image_size

__all__ = ["open_coco", "recognise"]

_ORDERS = ("area", "file")
_NO_OUTLINE = "annotations with a box and no outline"
_CROWDS = ("ignore", "label", "skip")
Id = int | str | None  # of an image or a category: None is what identifies nothing


def recognise(root: Path) -> bool:
    """Whether `root` is, or holds, a JSON with images, annotations and categories."""
    return any(_is_coco(f) for f in _files(root).values())


def open_coco(
    root: Path,
    split: str | None = None,
    *,
    images: str | Path | None = None,
    order: str = "area",
    crowd: str | None = None,
) -> Dataset:
    """COCO annotations at `root`, a JSON file or a folder; class 0 is background, the categories follow by their ids.

    images  the images' folder, where it is not SPLIT/, images/ or the file's own.
    order   which annotation covers which: "area" paints large ones first, so that small ones stay in sight; "file" in
            the order of the file.
    crowd   what iscrowd annotations become: "ignore" (the ignored value; the default), "label" (their class) or "skip".
            Where every annotation is a crowd, it must be said.

    Annotations that cannot be painted, or are of images or categories that are not listed, are left out and counted in
    the notes. Raises DataError (no such file, damaged), UnknownName (split), MissingInput (images), UsageError.
    """
    root = Path(root)
    one_of(order, _ORDERS, "order")
    one_of(crowd or "ignore", _CROWDS, "crowd")
    files = {s: f for s, f in _files(root).items() if _is_coco(f)}
    if not files:
        raise DataError(
            f"{printable(root)} holds no COCO annotations: looked for *.json and annotations/*.json with images, "
            f"annotations and categories; {describe_folder(root)}; export them as COCO."
        )
    wished = next((s for s in files if re.fullmatch(rf"{re.escape(split or 'train')}\d*", s)), split)  # val: val2017
    chosen = choose_split(list(files), wished, root) if len(files) > 1 or split not in (None, "all") else tuple(files)
    if len(chosen) > 1:
        raise DataError(
            f"{printable(root)} holds {', '.join(chosen)}; name one split, since each has its own categories."
        )
    file = files[chosen[0]]
    found = read_json(file)
    names = _categories(found, file)
    taxonomy, ids = classes_of(names.values())
    unused = Unused()
    rows, of_image = _rows(found, file, image_folder(_base(root), images), images is not None, unused)
    crowds = _assign(found["annotations"], of_image, {c: ids[n] for c, n in names.items()}, crowd, unused, file)
    covers = "the smaller annotation covers the larger" if order == "area" else "later ones cover earlier ones"
    text = f"{crowd or 'ignore'} ({crowds} of {len(found['annotations'])} annotations)" if crowds else "none"
    notes = (f"overlaps: {covers}; crowds: {text}; what no annotation covers is background.", *unused.notes())
    entries = {p.name: Entry(p.size, tuple(p.shapes), order == "area") for p in of_image.values()}
    if bare := sum(not p.shapes for p in entries.values()):
        notes += (f"images without an annotation that is used, all background: {bare} of {len(entries)}.",)
    painter = Painter(taxonomy, entries, draw_shapes, ids)
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


def _categories(found: object, file: Path) -> dict[int, str]:
    """category id -> class name, by id; a name that two categories share gets the id behind it."""
    parts = ("images", "annotations", "categories")
    if not isinstance(found, Mapping) or not all(isinstance(found.get(p), list) for p in parts):
        raise DataError(
            f"{printable(file)} is no COCO file: it must hold lists of {', '.join(parts)}; export it as COCO."
        )
    categories: dict[int, str] = {}
    for category in found["categories"]:
        k, name = _id(category, "id"), category.get("name") if isinstance(category, Mapping) else None
        text = name.strip() if isinstance(name, str) else short(name)
        if not isinstance(k, int) or not isinstance(name, str | int) or categories.setdefault(k, text) != text:
            raise DataError(
                f"{printable(file)}: the category {short(k if k is not None else text)} has no whole number as its id, "
                "no name, or an id that another has; correct it there."
            )
    shared = Counter(categories.values())
    return {k: n if shared[n] == 1 else f"{n} ({k})" for k, n in sorted(categories.items())}


def _id(value: object, key: str) -> Id:
    """A whole number or a text under `key`, else None: NaN and lists identify nothing. 3.0 and "3" (VIA's) are 3."""
    found = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(found, float) and found.is_integer():
        return int(found)
    if isinstance(found, str) and re.fullmatch(r"0|[1-9]\d{0,17}", found):
        return int(found)
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None


@final
@dataclass
class _Image:
    """What is known of one listed image; several ids may be its own."""

    name: str
    size: Size
    shapes: list[tuple[int, Any]] = field(default_factory=list)


def _rows(found: Any, file: Path, base: Path, only: bool, unused: Unused) -> tuple[list[Record], dict[Id, _Image]]:
    """The records, and image id -> image."""
    listed = _listed(found["images"], file)
    paths = _find(list(listed), file, base, only)
    refuse_shared(((n.replace("\\", "/"), p) for n, p in paths.items()), file)
    rows: list[Record] = []
    of_image: dict[Id, _Image] = {}
    for name, key in zip(listed, unique_names([listed_name(n, paths[n]) for n in listed]), strict=True):
        sizes = {_size(image, paths[name], file) for image in listed[name]}
        if len(sizes) > 1:
            raise DataError(f"{printable(file)} lists {short(name)!r} with sizes that differ; correct it there.")
        entry = _Image(key, sizes.pop())
        for image in listed[name]:
            if of_image.setdefault(_id(image, "id"), entry) is not entry:
                raise DataError(f"{printable(file)} gives the image id {short(image['id'])} to two images; correct it.")
        if len(listed[name]) > 1:
            unused.add("further entries of an image that is listed already; their annotations are joined", name)
        rows.append(Record(key, {"rgb": paths[name]}, {"semantic": file}))
    others = [f for folder in {p.parent for p in paths.values()} for f in _beside(folder)]
    known = set(paths.values())
    for other in sorted(set(others) - known):
        unused.add("images that the file does not list", other.name)
    return rows, of_image


def _beside(folder: Path) -> list[Path]:
    return [Path(e.path) for e in os.scandir(folder) if e.name.lower().endswith(SUFFIXES) and e.name[0] != "."]


def _listed(images: list[Any], file: Path) -> dict[str, list[Any]]:
    """file name -> its entries."""
    listed: dict[str, list[Any]] = {}
    for image in images:
        key = _id(image, "id")
        address = image.get("coco_url") if isinstance(image, Mapping) else None  # LVIS names files so alone
        if key is not None and isinstance(address, str) and image.get("file_name") is None:
            image["file_name"] = address
        if key is None or not isinstance(image.get("file_name"), str):
            who = short(key if key is not None else image)
            raise DataError(f"{printable(file)}: the image {who} lacks an id or a file_name; correct it there.")
        listed.setdefault(image["file_name"], []).append(image)
    if not listed:
        raise DataError(f"{printable(file)} lists no images; export it with its images.")
    return listed


def _find(listed: list[str], file: Path, base: Path, only: bool) -> dict[str, Path]:
    named = dict.fromkeys((_split_of(file), _split_of(file).rstrip("0123456789")))  # train2017's may lie in train/
    own = [folder for split in named if split for folder in (base / split, base / "images" / split)]
    folders = [base] if only else [*own, base / "images", file.parent, base]
    folders = [f for f in folders if f.is_dir()]
    names = by_name(list_files(base)) if len(listed) < 20000 else {}
    return {name: find_image(name, folders, names, file) for name in listed}


def _size(image: Mapping[str, object], path: Path, file: Path) -> Size:
    height, width = image.get("height"), image.get("width")
    try:
        return image_size(path) if height is None and width is None else checked_size(height, width)
    except DataError as error:
        raise DataError(f"{printable(file)}, {printable(path.name)}: {error}") from error


def _assign(
    annotations: list[Any],
    of_image: Mapping[Id, _Image],
    ids: Mapping[int, int],
    crowd: str | None,
    unused: Unused,
    file: Path,
) -> int:
    """Every annotation's shape to its image, or counted as unused; how many are crowds."""
    crowds = kept = 0
    for annotation in annotations:
        who = annotation.get("id", "one without id") if isinstance(annotation, Mapping) else annotation
        if isinstance(annotation, Mapping) and "segments_info" in annotation:
            raise DataError(
                f"{printable(file)} is COCO's panoptic form, whose regions are in PNG files; give the instances "
                "(instances_*.json)."
            )
        is_crowd = isinstance(annotation, Mapping) and annotation.get("iscrowd") in (1, True, "1")
        image, k, why = _place(annotation, of_image, ids)
        crowds += is_crowd
        if image is None:
            unused.add(why, who)
        elif is_crowd and crowd == "skip":
            unused.add("crowd annotations", who)
        elif (shape := _shape(annotation, image.size, who, unused)) is not None:
            image.shapes.append((IGNORED if is_crowd and crowd in (None, "ignore") else k, shape))
            kept += not is_crowd
    bare = unused.count(_NO_OUTLINE)
    if bare and bare == len(annotations):
        raise DataError(
            f"{printable(file)} holds {bare} annotations, all of them boxes without an outline, which say nothing "
            "about pixels; annotate polygons or masks, or export them too."
        )
    if crowds and not kept and crowd is None:
        raise DataError(
            f"{printable(file)} holds {crowds} crowd annotations (iscrowd = 1) and no other, and crowds are ignored "
            f"unless you say what they are (CVAT stores brush strokes so): give coco,crowd=label:{printable(file)} to "
            "learn them as their classes."
        )
    return crowds


def _place(annotation: object, of_image: Mapping[Id, _Image], ids: Mapping[int, int]) -> tuple[_Image | None, int, str]:
    """(the image, the class, "") of an annotation, or (None, 0, why it has none)."""
    image, category = _id(annotation, "image_id"), _id(annotation, "category_id")
    if image not in of_image:
        return None, 0, "annotations of images that are not listed"
    if not isinstance(category, int) or category not in ids:
        return None, 0, f"annotations of categories that are not listed, such as {short(category)}"
    return of_image[image], ids[category], ""


def _shape(annotation: Mapping[str, object], size: Size, who: object, unused: Unused) -> Rings | Runs | None:
    """The annotation's outline; what of it cannot be painted is counted."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        unused.add(_NO_OUTLINE, who)
        return None
    try:
        if isinstance(segmentation, Mapping):
            return _runs(segmentation, size)
        if not isinstance(segmentation, list):
            raise BadShape("that are neither polygons nor runs")
        flat = not any(isinstance(p, list) for p in segmentation)
        outlines, faults = [], []
        for polygon in [segmentation] if flat else segmentation:
            try:
                outlines.append(ring(polygon, size))
            except BadShape as error:
                faults.append(error)
        for fault in faults:
            unused.add(f"polygons {fault.reason}", f"annotation {short(who)}")
        if outlines:
            check_outlines(outlines, size)
        return Rings(tuple(outlines)) if outlines else None
    except BadShape as error:
        unused.add(f"regions {error.reason}", f"annotation {short(who)}")
    return None


def _runs(segmentation: Mapping[str, Any], size: Size) -> Runs:
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(stated, list) or stated != list(size):
        raise BadShape("coded for an image of another size")
    runs = coco_counts(counts) if isinstance(counts, str) else counts
    return Runs(checked_counts(runs if runs is not None else [], size), (0, 0, *size), columns=True)
