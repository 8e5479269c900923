"""Label Studio's JSON and JSON-MIN exports: brush strokes, polygons, rectangles and ellipses.

Positions are percents of the picture. Regions are painted in the order of the file, later ones on top; polygons by
COCO's rule. Of several annotations of a task the ground truth counts, else the first that was not cancelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from fullyconv import images as pictures
from fullyconv.data.annotations.paint import (
    Painter,
    by_name,
    checked_size,
    classes_of,
    picture_folder,
    read_json,
    read_rgb,
)
from fullyconv.data.annotations.raster import Region, Size, coco_polygon, ellipse_points, label_studio_brush
from fullyconv.data.base import Dataset, Record
from fullyconv.data.layout import choose_split, list_files, looked_at
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files import read_ends

__all__ = ["open_labelstudio", "recognise"]

_KINDS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels")
_NAMES = {kind.removesuffix("labels"): kind for kind in _KINDS}


def recognise(root: Path) -> bool:
    """Whether `root` is, or holds, a JSON list of Label Studio's tasks."""
    return any(_is_export(f) for f in _files(root))


def open_labelstudio(root: Path, split: str | None = None, *, images: str | Path | None = None) -> Dataset:
    """A Label Studio export at `root` (the JSON file or its folder); class 0 is background, labels follow sorted.

    images   the pictures' folder; default: anywhere below the export's own. Upload prefixes ("1a2b3c4d-") are dropped.

    Raises DataError (no such export, damaged), MissingInput (pictures).
    """
    root = Path(root)
    files = {f.stem: f for f in _files(root) if _is_export(f)}
    if not files:
        raise DataError(
            f"{printable(root)} is no Label Studio export: looked for a .json list of tasks with annotations; "
            f"{looked_at(root)}; export the project as JSON."
        )
    if len(files) > 1 and split in (None, "all") and "train" not in files:
        raise DataError(f"{printable(root)} holds {', '.join(files)}; name one as the split, or give the file itself.")
    chosen = choose_split(list(files), split, root)[0]
    file = files[chosen]
    tasks = [_task(t, file) for t in read_json(file, "Label Studio")]
    regions = {i: list(_regions(t, file)) for i, (_, t) in enumerate(tasks)}
    names = sorted({label for part in regions.values() for _, label, _ in part})
    taxonomy, ids = classes_of(names)
    known = by_name(list_files(picture_folder(file.parent, images)))
    rows: list[Record] = []
    entries: dict[str, Any] = {}
    for i, (name, _) in enumerate(tasks):
        picture = _find(name, known, file)
        key = picture.stem if picture.stem not in entries else f"{picture.stem}-{i}"
        rows.append(Record(key, {"rgb": picture}, {"semantic": file}))
        entries[key] = {"picture": picture, "regions": regions[i]}
    notes = ("later regions cover earlier ones; what no region covers is background.",)
    painter = Painter(taxonomy, entries, _draw, ids)
    return Dataset("labelstudio", file.parent, chosen, rows, {"semantic": taxonomy}, read_rgb, painter, notes=notes)


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    return sorted(root.glob("*.json"))


def _is_export(file: Path) -> bool:
    if file.is_dir():
        return False
    head = read_ends(file, 1 << 20)
    if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        return False
    return (b'"annotations"' in head and b'"data"' in head) or any(f'"{k}"'.encode() in head for k in _KINDS)


def _task(task: Any, file: Path) -> tuple[str, Mapping[str, Any]]:
    """(the picture as the task names it, the task)."""
    try:
        data = task.get("data", task)
        values = [v for v in data.values() if isinstance(v, str)]
    except (TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{printable(file)}: a task is not as Label Studio writes it; export the project again."
        ) from error
    name = data.get("image") or next((v for v in values if re.search(r"\.(jpe?g|png|webp|tiff?|bmp)\b", v, re.I)), None)
    if not isinstance(name, str):
        raise DataError(
            f"{printable(file)}: the task {printable(task.get('id'))} names no picture; export it with its data."
        )
    return name, task


def _regions(task: Mapping[str, Any], file: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(kind, label, the region's value with original_width and original_height) of a task, in the file's order."""
    try:
        for result in _results(task):
            value = result.get("value", result)
            kind = _NAMES.get(str(result.get("type", "")), str(result.get("type", "")))
            kind = next((k for k in (kind, *_KINDS) if k in value), kind)
            if kind in _KINDS and value.get(kind):
                size = {k: result.get(k, value.get(k)) for k in ("original_width", "original_height")}
                yield kind, str(value[kind][0]), {**value, **size}
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(
            f"{printable(file)}: the task {printable(task.get('id'))} has a region that is not as Label Studio writes "
            f"it ({printable(error)}); export the project again."
        ) from error


def _results(task: Mapping[str, Any]) -> list[Any]:
    if "annotations" in task and isinstance(task["annotations"], list):
        good = [a for a in task["annotations"] if not a.get("was_cancelled")]
        good.sort(key=lambda a: not a.get("ground_truth"))  # stable
        return list(good[0]["result"]) if good else []
    return [r for key, v in task.items() if key != "data" and isinstance(v, list) for r in v if isinstance(r, dict)]


def _find(name: str, known: Mapping[str, Path], file: Path) -> Path:
    """The picture: by the file name in a path, a URL or /data/local-files/?d=PATH, with or without upload prefix."""
    parts = urlsplit(name)
    path = parse_qs(parts.query).get("d", [unquote(parts.path)])[0]
    last = PurePosixPath(path.replace("\\", "/")).name
    bare = re.sub(r"^[0-9a-f]{8}-", "", last)
    for candidate in (last, bare):
        if candidate in known:
            return known[candidate]
    renamed = [f for n, f in known.items() if _uploaded(n) == bare]
    if len(renamed) == 1:
        return renamed[0]
    raise MissingInput(
        f"{printable(file)} names the picture {printable(last)!r}, which is not there (or there twice); put the "
        "pictures beside the export, or say where they are (labelstudio,images=PATH:EXPORT)."
    )


def _uploaded(name: str) -> str:
    """A file's name as Label Studio stores an upload: blanks as _, nothing but letters, digits, - _ and dots."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def _draw(entry: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[Size, list[tuple[int, Region]]]:
    size = pictures.image_size(entry["picture"])
    return size, [(ids[label], _region(kind, value, size)) for kind, label, value in entry["regions"]]


def _region(kind: str, value: Mapping[str, Any], size: Size) -> Region:
    if kind == "brushlabels":
        if value.get("format", "rle") != "rle":
            raise DataError(f"A brush region is stored as {printable(value['format'])}; export the project as JSON.")
        stated = checked_size(value["original_height"], value["original_width"])
        if stated != size:
            raise DataError(f"A brush region is for {stated[0]}x{stated[1]} (HxW), its picture is {size[0]}x{size[1]}.")
        return label_studio_brush(value["rle"], size)
    scale = np.array([size[1], size[0]]) / 100
    if kind == "polygonlabels":
        return coco_polygon((np.asarray(value["points"], float) * scale).ravel().tolist(), size)
    x, y = float(value["x"]) * scale[0], float(value["y"]) * scale[1]
    degrees = float(value.get("rotation", 0))
    if kind == "ellipselabels":
        rx, ry = float(value["radiusX"]) * scale[0], float(value["radiusY"]) * scale[1]
        return coco_polygon(ellipse_points(x, y, rx, ry, degrees), size)
    width, height, turn = float(value["width"]) * scale[0], float(value["height"]) * scale[1], np.radians(degrees)
    along, down = np.array([np.cos(turn), np.sin(turn)]) * width, np.array([-np.sin(turn), np.cos(turn)]) * height
    corner = np.array([x, y])  # turned about the top left corner
    return coco_polygon(np.stack([corner, corner + along, corner + along + down, corner + down]).ravel().tolist(), size)
