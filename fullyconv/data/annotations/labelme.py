"""labelme: one JSON a picture (X.json beside X.jpg, or with the picture inside), in one folder or one a split.

Shapes are painted in the order of the file, later ones on top, by Pillow's rules as labelme's own converters do.
Classes are those of labels.txt (labelme's: __ignore__, _background_, then the names), else all names in use, sorted.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv import images as pictures
from fullyconv.data.annotations.paint import IGNORED, Painter, by_name, checked_size, classes_of, read_json, read_rgb
from fullyconv.data.annotations.raster import Region, Size, draw
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpus import choose
from fullyconv.data.layout import list_files, looked_at, merge_splits, read_lines, role
from fullyconv.errors import DataError, UnknownName, printable
from fullyconv.files import read_ends

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
            f"{looked_at(root)}; save them with labelme beside their pictures."
        )
    chosen = choose(parts, split, root)
    name, record_name = merge_splits(chosen)
    every = {file: read_json(file, "labelme") for files in parts.values() for file in files}
    names, listed = _names(root, every)
    taxonomy, ids = classes_of(names)
    rows, entries = [], {}
    known = by_name(list_files(root))
    for s in chosen:
        for file in parts[s]:
            key = record_name(s, file.relative_to(root / s if s else root).with_suffix("").as_posix())
            picture = _picture(file, every[file], root, known)
            rows.append(Record(key, {"rgb": picture}, {"semantic": file}))
            beside = picture if picture != file else None
            entries[key] = {**every[file], "imageData": None, "line_width": line_width, "picture": beside}
    notes: tuple[str, ...] = ("later shapes cover earlier ones; what no shape covers is background.",)
    if not listed:
        notes += (f"the classes are the names in use: {', '.join(names)}; a labels.txt fixes them and their order.",)
    ids = {**ids, _IGNORE: IGNORED}
    painter = Painter(taxonomy, entries, _draw, ids)
    return Dataset("labelme", root, name or "all", rows, {"semantic": taxonomy}, read_rgb, painter, notes=notes)


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
    used: set[str] = set()
    for file, value in every.items():
        try:
            used |= {str(shape["label"]) for shape in value["shapes"]}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{printable(file)}: a shape lacks {printable(error)}; save it again with labelme."
            ) from error
    file = root / "labels.txt"
    if not file.is_file():
        return sorted(used - {_IGNORE, "_background_"}), False
    listed = [n for n in read_lines(file) if n not in (_IGNORE, "_background_")]
    for name in sorted(used - {*listed, _IGNORE, "_background_"}):
        raise UnknownName(f"label in {printable(file)}", name, listed)
    return listed, True


def _picture(file: Path, value: Mapping[str, Any], root: Path, known: Mapping[str, Path]) -> Path:
    """The picture that a JSON file names (../images/X.jpg too, inside `root`), the one of its stem, the only one of
    that name below `root`, or (a picture kept inside) the JSON file itself."""
    name = str(value.get("imagePath") or "").replace("\\", "/")
    named = Path(os.path.normpath(file.parent / name)) if name and "\0" not in name else None
    near = [named] if named and named.is_relative_to(os.path.normpath(root)) else []
    near += [file.parent / Path(name).name] if name else []
    near += [file.with_suffix(s) for s in (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".tif", ".bmp", ".webp")]
    found = next((p for p in near if p.is_file()), known.get(Path(name).name))
    if found is None and not value.get("imageData"):
        raise DataError(
            f"{printable(file)} names the picture {printable(name)!r}, which is not below {printable(root)}, and holds "
            "none itself; put the pictures beside the annotations."
        )
    return found or file


def _draw(entry: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[Size, list[tuple[int, Region]]]:
    if entry.get("imageHeight") is None and entry["picture"] is not None:
        size = pictures.image_size(entry["picture"])
    else:
        size = checked_size(entry["imageHeight"], entry["imageWidth"])
    return size, [(ids[str(s["label"])], _region(s, size, entry["line_width"])) for s in entry["shapes"]]


def _region(shape: Mapping[str, Any], size: Size, width: int) -> Region:
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        return _stencil(shape, size)
    return draw(kind, shape["points"], size, width)


def _stencil(shape: Mapping[str, Any], size: Size) -> Region:
    """A "mask" shape: a small picture in base64 that lies between its two points."""
    stencil = pictures.read_image(base64.b64decode(shape["mask"], validate=True), mode="bands")[..., 0] > 0
    (left, top), _ = shape["points"]
    row, col = int(top), int(left)
    covered = np.zeros(size, bool)
    rows, cols = min(stencil.shape[0], size[0] - row), min(stencil.shape[1], size[1] - col)
    if row < 0 or col < 0 or rows <= 0 or cols <= 0:
        raise DataError(f"A mask shape begins at row {row}, column {col}, outside the picture; save it again.")
    covered[row : row + rows, col : col + cols] = stencil[:rows, :cols]
    return covered
