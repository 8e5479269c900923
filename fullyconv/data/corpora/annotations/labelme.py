"""labelme: one JSON an image (X.json beside X.jpg, or with the image inside), in one folder or one a split.

Shapes are painted in the order of the file, later ones on top, by Pillow's rules as labelme's own converters do.
Classes are those of labels.txt (labelme's: __ignore__, _background_, then the names), else all names in use, sorted.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.paint import (
    IGNORED,
    Painter,
    by_name,
    checked_size,
    classes_of,
    read_rgb,
    refuse_shared,
    unique_names,
)
from fullyconv.data.corpora.annotations.raster import BadShape, Size, checked_points
from fullyconv.data.corpora.annotations.shapes import Entry, Pen, Stencil, Unused, draw_shapes, short
from fullyconv.data.corpora.corpus import choose_kind
from fullyconv.data.corpora.layout import describe_folder, list_files, merge_splits, read_lines, role
from fullyconv.errors import DataError, UnknownName, UsageError, printable
from fullyconv.files import read_ends, read_json
from fullyconv.images import image_size

__all__ = ["open_labelme", "recognise"]

_IGNORE = "__ignore__"


def recognise(root: Path) -> bool:
    """Whether a JSON with labelme's shapes and imagePath lies in `root` or a folder of it."""
    return root.is_dir() and any(_is_labelme(f) for f in [*root.glob("*.json"), *root.glob("*/*.json")][:3])


def open_labelme(root: Path, split: str | None = None, *, line_width: int = 10) -> Dataset:
    """labelme annotations below `root`; class 0 is background. Sub-folders with JSON files are splits.

    line_width   pixels that lines, and twice the radius that points, are painted with (labelme's own: 10).

    Raises DataError (no such files, damaged), UnknownName (split, or a label that labels.txt lacks).
    """
    root = Path(root)
    parts = _parts(root)
    if not parts:
        raise DataError(
            f"{printable(root)} holds no labelme annotations: looked for *.json with shapes and imagePath; "
            f"{describe_folder(root)}; save them with labelme beside their images."
        )
    if isinstance(line_width, bool) or not isinstance(line_width, int) or not 1 <= line_width <= 1000:
        raise UsageError(f"line_width is {short(line_width)}; give whole pixels from 1 to 1000.")
    chosen = choose_kind(parts, split, root)
    name, record_name = merge_splits(chosen)
    unused = Unused()
    every = {file: _read(file, unused) for files in parts.values() for file in files}
    names, listed = _names(root, every)
    taxonomy, ids = classes_of(names)
    ids = {**ids, _IGNORE: IGNORED}
    rows: list[Record] = []
    entries: dict[str, Entry] = {}
    known = by_name(list_files(root))
    places = [(s, file) for s in chosen for file in parts[s]]
    stems = [record_name(s, f.relative_to(root / s if s else root).with_suffix("").as_posix()) for s, f in places]
    for (_, file), key in zip(places, unique_names(stems), strict=True):
        image = _image(file, every[file], root, known)
        rows.append(Record(key, {"rgb": image}, {"semantic": file}))
        size = _size(every[file], image, file)
        entries[key] = Entry(size, tuple(_shapes(every[file]["shapes"], size, ids, line_width, file, unused)))
    shown = [(_stated(every[f], f, r.inputs["rgb"]), r.inputs["rgb"]) for (_, f), r in zip(places, rows, strict=True)]
    refuse_shared(shown, root)
    for other in _unlisted(rows, root):
        unused.add("images without a JSON file of their own", other.name)
    notes = ("later shapes cover earlier ones; what no shape covers is background.", *unused.notes())
    if not listed:
        text = ", ".join(map(short, names))
        notes += (f"the classes are the names in use: {text}; a labels.txt fixes them and their order.",)
    painter = Painter(taxonomy, entries, draw_shapes, ids)
    return Dataset("labelme", root, name or "all", rows, {"semantic": taxonomy}, read_rgb, painter, notes=notes)


def _stated(value: Mapping[str, object], file: Path, image: Path) -> str:
    """The image's own path, or the one that a JSON file names, where another of that name was found."""
    named = os.path.normpath(file.parent / str(value["imagePath"] or "").replace("\\", "/"))
    return str(image) if image.parent == file.parent or named == os.path.normpath(image) else named


def _unlisted(rows: list[Record], root: Path) -> list[Path]:
    """The images beside those that are read."""
    used = {r.inputs["rgb"] for r in rows}
    folders = {p.parent for p in used}
    return [f for f in list_files(root) if f.parent in folders and f not in used]


def _read(file: Path, unused: Unused) -> dict[str, Any]:
    """What a JSON file says but for the image in it (only whether there is one); shapes that are none are counted."""
    value = read_json(file)
    if not isinstance(value, Mapping) or not isinstance(value.get("shapes"), list):
        raise DataError(f"{printable(file)} holds no list of shapes; save it again with labelme.")
    shapes = []
    for i, shape in enumerate(value["shapes"]):
        label = shape.get("label") if isinstance(shape, Mapping) else None
        if isinstance(label, str | int) and label != "":
            shapes.append((i + 1, label if isinstance(label, str) else short(label), shape))
        else:
            unused.add("shapes without a label", f"shape {i + 1} of {file.name}")
    kept = {k: value.get(k) for k in ("imagePath", "imageHeight", "imageWidth")}
    return {**kept, "shapes": shapes, "inside": isinstance(value.get("imageData"), str)}


def _parts(root: Path) -> dict[str, list[Path]]:
    folders = {
        d.name: [f for f in list_files(d, (".json",)) if _is_labelme(f)] for d in sorted(root.iterdir()) if d.is_dir()
    }
    own = [f for f in sorted(root.glob("*.json")) if _is_labelme(f)]
    splits = {n: f for n, f in folders.items() if f}
    if own or not splits:
        return {"": own} if own else {}
    if len(splits) == 1 and role(name := next(iter(splits))) not in ("train", "val", "test"):
        return {"": splits[name]}  # annotations/ beside images/
    return splits


def _is_labelme(file: Path) -> bool:
    if file.is_dir():
        return False
    ends = read_ends(file, 65536, 4096)
    return b'"shapes"' in ends and (b'"imagePath"' in ends or b'"imageData"' in ends)


def _names(root: Path, every: Mapping[Path, Any]) -> tuple[list[str], bool]:
    """The class names, and whether labels.txt lists them."""
    used = {label for value in every.values() for _, label, _ in value["shapes"]}
    file = root / "labels.txt"
    if not os.path.lexists(file):
        return sorted(used - {_IGNORE, "_background_"}), False
    listed = [n for n in read_lines(file) if n not in (_IGNORE, "_background_")]
    for name in sorted(used - {*listed, _IGNORE, "_background_"}):
        raise UnknownName(f"label in {printable(file)}", name, listed)
    return listed, True


def _image(file: Path, value: Mapping[str, object], root: Path, known: Mapping[str, Path]) -> Path:
    """The image that a JSON file names (../images/X.jpg too, inside `root`), the one of its stem, the only one of
    that name below `root`, or (an image kept inside) the JSON file itself."""
    stated = value.get("imagePath")
    name = stated.replace("\\", "/") if isinstance(stated, str) else ""
    named = Path(os.path.normpath(file.parent / name)) if name and "\0" not in name else None
    near = [named] if named and named.is_relative_to(os.path.normpath(root)) else []
    near += [file.parent / Path(name).name] if name else []
    near += [file.with_suffix(s) for s in (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".tif", ".bmp", ".webp")]
    found = next((p for p in near if os.path.isfile(p)), known.get(Path(name).name))
    if found is None and not value["inside"]:
        raise DataError(
            f"{printable(file)} names the image {short(name)!r}, which is not below {printable(root)}, and holds "
            "none itself; put the images beside the annotations."
        )
    return found or file


def _size(value: Mapping[str, object], image: Path, file: Path) -> Size:
    try:
        if value["imageHeight"] is None and value["imageWidth"] is None and image != file:
            return image_size(image)
        return checked_size(value["imageHeight"], value["imageWidth"])
    except DataError as error:
        raise DataError(f"{printable(file)}: {error}") from error


def _shapes(
    shapes: Sequence[Any], size: Size, ids: Mapping[str, int], width: int, file: Path, unused: Unused
) -> Iterator[tuple[int, Any]]:
    for number, label, shape in shapes:
        try:
            yield ids[label], _shape(shape, size, width)
        except BadShape as error:
            unused.add(f"shapes {error.reason}", f"shape {number} of {file.name}")


_COUNTS = {  # how many points each kind has
    "polygon": (3, 10**9),
    "rectangle": (2, 4),
    "oriented_rectangle": (4, 4),
    "rotation": (4, 4),
    "circle": (2, 2),
    "line": (2, 10**9),
    "linestrip": (2, 10**9),
    "point": (1, 1),
}


def _shape(shape: Mapping[str, Any], size: Size, width: int) -> Pen | Stencil:
    kind = shape.get("shape_type") or "polygon"
    try:
        xy = np.asarray(shape.get("points"), np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadShape("with points that are no numbers") from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise BadShape("with points that are no pairs")
    xy = checked_points(xy, size)
    if kind == "mask":
        return _stencil(shape.get("mask"), xy, size)
    least, most = _COUNTS.get(kind, (1, 0)) if isinstance(kind, str) else (1, 0)
    if not least <= len(xy) <= most or (kind == "rectangle" and len(xy) == 3):
        raise BadShape(f"of kind {short(kind)!r} with {len(xy)} points")
    reach = float(np.hypot(*(xy[1] - xy[0]))) if kind == "circle" else width
    low, high = (xy.min(0), xy.max(0)) if kind != "circle" else (xy[0] - reach, xy[0] + reach)
    if (high < -width).any() or low[0] > size[1] + width or low[1] > size[0] + width:
        raise BadShape("outside the image")
    return Pen(kind, xy, width)


def _stencil(mask: Any, xy: NDArray[np.float64], size: Size) -> Stencil:
    """A "mask" shape: a small image in base64 that lies between its two points."""
    try:
        data = base64.b64decode(mask, validate=True)
        height, width = image_size(data)
    except (TypeError, ValueError, DataError) as error:
        raise BadShape("of a mask that cannot be read") from error
    if not len(xy):
        raise BadShape("of a mask without a place")
    col, row = (int(v) for v in xy[0])
    if row < 0 or col < 0 or row >= size[0] or col >= size[1] or not height * width:
        raise BadShape("of a mask outside the image")
    if height * width > size[0] * size[1]:
        raise BadShape("of a mask larger than the image")
    return Stencil(data, row, col)
