"""Supervisely's projects: meta.json, DATASET/img/X.jpg and DATASET/ann/X.jpg.json with bitmaps, polygons, rectangles.

Objects are painted in the order of the file, later ones on top; polygons by COCO's rule, without their holes. Lines,
points, cuboids and graphs have no area: they are left out, counted.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.paint import Painter, checked_size, classes_of, read_rgb
from fullyconv.data.corpora.annotations.raster import BadShape, Patch, Size, coco_patch, coco_union
from fullyconv.data.corpora.annotations.shapes import Unused, ring
from fullyconv.data.corpora.corpus import choose_kind
from fullyconv.data.corpora.layout import describe_folder, list_files, merge_splits
from fullyconv.errors import DataError, printable
from fullyconv.files import read_json
from fullyconv.images import image_size, read_image
from fullyconv.taxonomy import Colour

__all__ = ["open_supervisely", "recognise"]

_AREAS = ("bitmap", "polygon", "rectangle")
_MOST = 2**28  # bytes of an unpacked bitmap


def recognise(root: Path) -> bool:
    """Whether meta.json lies at `root`, and img/ beside ann/ there or in a folder of it."""
    return (root / "meta.json").is_file() and bool(_parts(root))


def open_supervisely(root: Path, split: str | None = None) -> Dataset:
    """A Supervisely project at `root`; its data sets are the splits, class 0 is background.

    Raises DataError (no such project, damaged), UnknownName (split).
    """
    root = Path(root)
    if not recognise(root):
        raise DataError(
            f"{printable(root)} is no Supervisely project: looked for meta.json and DATASET/img/ beside DATASET/ann/; "
            f"{describe_folder(root)}; download the project as 'json + images'."
        )
    parts = _parts(root)
    chosen = choose_kind(parts, split, root)
    name, record_name = merge_splits(chosen)
    found = {s: _annotations(folder) for s, folder in parts.items()}
    names, colours = _classes(root / "meta.json", found)
    taxonomy, ids = classes_of(names, colours)
    rows: list[Record] = []
    entries: dict[str, Any] = {}
    notes = ["later objects cover earlier ones; what no object covers is background."]
    left: Counter[str] = Counter()
    unused = Unused()
    for s in chosen:
        images = {p.relative_to(parts[s] / "img").as_posix(): p for p in list_files(parts[s] / "img")}
        stems = Counter(Path(n).with_suffix("").as_posix() for n in images)
        for listed, image in images.items():
            stem = Path(listed).with_suffix("").as_posix()
            key = record_name(s, stem if stems[stem] == 1 else listed.replace(".", "-"))
            file, value = found[s].get(listed, (None, None))
            rows.append(Record(key, {"rgb": image}, {"semantic": file} if file else {}))
            left.update(str(o.get("geometryType")) for o in (value or {}).get("objects", ()) if not _has_area(o))
            entries[key] = value and {**value, "objects": _painted(value, key, unused)}
        lost = [f for n, (f, _) in found[s].items() if n not in images]
        notes += [f"{len(lost)} annotations have no image ({printable(lost[0].name)}): left out."] if lost else []
    notes += unused.notes()
    if left:
        text = ", ".join(f"{n} {printable(what)}" for what, n in sorted(left.items()))
        notes.append(f"objects without an area are left out: {text}.")
    painter = Painter(taxonomy, entries, _draw, ids)
    return Dataset(
        "supervisely", root, name or "all", rows, {"semantic": taxonomy}, read_rgb, painter, notes=tuple(notes)
    )


def _parts(root: Path) -> dict[str, Path]:
    """{data set: its folder}; those in another's datasets/ are called OUTER/INNER."""

    def good(folder: Path) -> bool:
        return (folder / "img").is_dir() and (folder / "ann").is_dir()

    def below(folder: Path, outer: str, levels: int) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for d in sorted(d for d in folder.iterdir() if d.is_dir() and not d.is_symlink()):
            found |= {f"{outer}{d.name}": d} if good(d) else {}
            inner = d / "datasets"
            found |= below(inner, f"{outer}{d.name}/", levels - 1) if levels and inner.is_dir() else {}
        return found

    return {"": root} if good(root) else below(root, "", 4)


def _annotations(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """{image's name: (file, contents)} of ann/: X.jpg.json belongs to X.jpg, or X.json."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in list_files(folder / "ann", (".json",)):
        value = read_json(file)
        if not isinstance(value, dict) or not isinstance(value.get("objects"), list):
            raise DataError(f"{printable(file)} lists no objects; it is no annotation of Supervisely's.")
        value["objects"] = [o for o in value["objects"] if isinstance(o, dict)]
        found[file.relative_to(folder / "ann").as_posix().removesuffix(".json")] = file, value
    images = {p.relative_to(folder / "img").as_posix() for p in list_files(folder / "img")}
    stems: dict[str, list[str]] = {}
    for name in images - found.keys():
        stems.setdefault(name.rpartition(".")[0], []).append(name)
    for stem, names in stems.items():  # X.json belongs to X.jpg, of old
        if stem in found and len(names) == 1:
            found[names[0]] = found.pop(stem)
    return found


def _classes(
    meta: Path, found: Mapping[str, Mapping[str, tuple[Path, dict[str, Any]]]]
) -> tuple[list[str], dict[str, Colour]]:
    """The titles in meta.json's order, then others in use, and the colours."""
    names: list[str] = []
    colours: dict[str, Colour] = {}
    try:
        for entry in read_json(meta)["classes"]:
            title, colour = str(entry["title"]), str(entry.get("color", ""))
            names.append(title)
            if len(colour) == 7 and colour[0] == "#":
                colours[title] = (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:], 16))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{printable(meta)} lists no classes with title and color ({printable(error)[:80]}); export again."
        ) from error
    used = {_title(o) for part in found.values() for _, v in part.values() for o in v["objects"] if _has_area(o)}
    return [*names, *sorted(used - set(names))], colours


def _title(thing: Mapping[str, object]) -> str:
    return str(thing.get("classTitle"))


def _has_area(thing: Mapping[str, object]) -> bool:
    return thing.get("geometryType") in _AREAS


def _painted(value: Mapping[str, Any], name: str, unused: Unused) -> list[Mapping[str, Any]]:
    """The objects that have an area; those whose outline is none are counted."""
    try:
        size = checked_size(value["size"]["height"], value["size"]["width"])
    except (DataError, KeyError, TypeError):
        return list(value["objects"])  # said when it is read
    good = []
    for k, thing in enumerate(value["objects"], 1):
        try:
            if _has_area(thing) and thing["geometryType"] != "bitmap":
                points = thing.get("points")
                outline = points.get("exterior") if isinstance(points, Mapping) else None
                if thing["geometryType"] == "polygon":
                    ring(outline, size)
                elif np.asarray(outline, np.float64).shape != (2, 2):
                    raise BadShape("of other than two corners")
        except (BadShape, TypeError, ValueError, OverflowError) as error:
            reason = error.reason if isinstance(error, BadShape) else "with points that are no numbers"
            unused.add(f"{thing['geometryType']}s {reason}", f"object {k} of {name}")
        else:
            good.append(thing)
    return good


def _draw(entry: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[Size, Iterator[tuple[int, Patch]]]:
    size = checked_size(entry["size"]["height"], entry["size"]["width"])
    return size, ((ids[_title(o)], _region(o, size)) for o in entry["objects"] if _has_area(o))


def _region(thing: Mapping[str, Any], size: Size) -> Patch:
    if thing["geometryType"] == "bitmap":
        return _bitmap(thing["bitmap"], size)
    outline = thing["points"]["exterior"]
    if thing["geometryType"] == "rectangle":
        (x0, y0), (x1, y1) = outline
        outline = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    patch = coco_patch(np.asarray(outline, np.float64).ravel(), size)
    holes = [np.asarray(points, np.float64).ravel() for points in thing["points"].get("interior", ())]
    return patch.without(coco_union(holes, size))


def _bitmap(value: Mapping[str, Any], size: Size) -> Patch:
    """A PNG, deflated and in base64, that lies with its first pixel at `origin` (x y); alpha says what is covered."""
    unpack = zlib.decompressobj()
    try:
        data = unpack.decompress(base64.b64decode(value["data"], validate=True), _MOST)
    except (zlib.error, binascii.Error) as error:
        raise DataError(
            "A bitmap is not as Supervisely packs it (base64 of zlib); download the project again."
        ) from error
    if unpack.unconsumed_tail:
        raise DataError(f"A bitmap unpacks to more than {_MOST} bytes; that is no mask.")
    height, width = image_size(data)
    if height * width > size[0] * size[1]:
        raise DataError(
            f"A bitmap of {height}x{width} (HxW) is larger than its image of {size[0]}x{size[1]}; download the "
            "project again."
        )
    mask = read_image(data, mode="bands")[..., -1] > 0
    column, row = (int(v) for v in value["origin"])
    top, left = max(0, row), max(0, column)
    bottom, right = min(size[0], row + height), min(size[1], column + width)
    if bottom <= top or right <= left:
        return Patch(0, 0, mask[:0, :0], mask.size)
    return Patch(top, left, mask[top - row : bottom - row, left - column : right - column], mask.size)
