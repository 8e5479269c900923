"""YOLO's segmentation labels: a text an image, each line a class and an outline in shares of the image's sides.

images/[SPLIT/]X.jpg + labels/[SPLIT/]X.txt, or SPLIT/images + SPLIT/labels; data.yaml (or classes.txt) names classes

Outlines are filled by COCO's rule, later lines cover earlier ones. An image without a text (or with an empty one) is
all background, as there. Boxes (four numbers) and outlines of fewer than three points are left out, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.annotations.paint import Painter, classes_of, read_rgb
from fullyconv.data.corpora.annotations.raster import Patch, Size, coco_patch
from fullyconv.data.corpora.class_tables import class_table, find_tables
from fullyconv.data.corpora.folder_roles import images_of
from fullyconv.data.corpora.foreign import is_outline
from fullyconv.data.corpora.layout import choose_split, describe_folder, list_files, merge_splits, stems
from fullyconv.errors import DataError, printable
from fullyconv.files import read_text
from fullyconv.images import image_size

__all__ = ["open_yolo", "recognise"]

_LARGEST = 2**26  # bytes of a text
_Shape = tuple[int, NDArray[np.float64]]  # class, N x 2 points (x y) in 0..1


def recognise(root: Path) -> bool:
    """Whether texts of outlines lie in labels/ beside images/."""
    base = root.parent if root.suffix in (".yaml", ".yml") else root
    if not base.is_dir():
        return False
    texts = [f for _, labels in _places(base).values() for f in list_files(labels, (".txt",))[:100]]
    return any(map(is_outline, texts))


def open_yolo(root: Path, split: str | None = None) -> Dataset:
    """YOLO segmentation labels below `root` (or beside the data.yaml that is named); class 0 is background, the listed
    classes follow.

    Raises DataError (no such layout, a line that is none), UnknownName (split).
    """
    base = Path(root).parent if Path(root).suffix in (".yaml", ".yml") else Path(root)
    places = _places(base) if base.is_dir() else {}
    if not places:
        raise DataError(
            f"{printable(root)} holds no YOLO labels: looked for images/ and labels/*.txt; "
            f"{describe_folder(Path(root))}; export the set as YOLO segmentation."
        )
    chosen = choose_split([s for s in places if s], split, base) if set(places) != {""} else ("",)
    name, record_name = merge_splits(chosen)
    left: Counter[str] = Counter()
    shapes = {s: _texts(labels, left) for s, (_, labels) in places.items()}
    names, table, notes = _names(base, {k for part in shapes.values() for _, some in part.values() for k, _ in some})
    taxonomy, ids = classes_of(names.values())
    spare = table or next((f for part in shapes.values() for f, _ in part.values()), None)
    rows: list[Record] = []
    entries: dict[str, Any] = {}
    empty: list[Path] = []
    for s in chosen:
        found, twice = stems(list_files(places[s][0]), places[s][0])
        if twice:
            notes.append(
                f"{len(twice)} images differ from another by their ending alone ({printable(twice[0].name)}): they are "
                "left out, since one text cannot say which it is about; give each image a name of its own."
            )
        for stem, image in found.items():
            file, some = shapes[s].get(stem, (None, []))
            empty += [] if some else [image]
            key = record_name(s, stem)
            labels = {"semantic": f} if (f := file or spare) and shapes[s] else {}
            rows.append(Record(key, {"rgb": image}, labels))
            entries[key] = {"image": image, "shapes": [(names[k], points) for k, points in some]}
        lost = [f for stem, (f, _) in shapes[s].items() if stem not in found]
        notes += [f"{len(lost)} texts have no image ({printable(lost[0].name)}): they are left out."] if lost else []
    if empty and any(shapes[s] for s in chosen):
        notes.append(f"{len(empty)} images have no outline ({printable(empty[0].name)}): they are all background.")
    notes += [f"left out: {', '.join(f'{n} {what}' for what, n in sorted(left.items()))}."] if left else []
    notes.append("later outlines cover earlier ones; what no outline covers is background.")
    labelled = {"semantic": taxonomy} if any(r.labels for r in rows) else {}
    painter = Painter(taxonomy, entries, _draw, ids)
    return Dataset("yolo", base, name or "all", rows, labelled, read_rgb, painter, notes=tuple(notes))


def _places(root: Path) -> dict[str, tuple[Path, Path]]:
    """{split: (images, texts)}."""
    top, labels = images_of(root), root / "labels"
    if top is not None and labels.is_dir():
        below = [d.name for d in sorted(top.iterdir()) if d.is_dir() and not d.name.startswith(".")]
        return {s: (top / s, labels / s) for s in below if (labels / s).is_dir()} or {"": (top, labels)}
    folders = sorted(d for d in root.iterdir() if d.is_dir() and (d / "labels").is_dir())
    return {d.name: (images, d / "labels") for d in folders if (images := images_of(d)) is not None}


def _names(root: Path, used: set[int]) -> tuple[dict[int, str], Path | None, list[str]]:
    """class number -> name by data.yaml (or another table), else by its number; and the file."""
    tables = sorted(find_tables([root]), key=lambda f: f.suffix not in (".yaml", ".yml"))
    if not tables:
        return {k: f"class {k}" for k in range(max(used, default=0) + 1)}, None, [
            "no data.yaml names the classes: they are numbered."
        ]  # fmt: skip
    coding, remarks = class_table(tables[0])
    numbers = {k: v for v, k in coding.values.items()}
    names = {numbers.get(k, k): n for k, n in enumerate(coding.taxonomy.names)}
    if unknown := sorted(used - names.keys()):
        raise DataError(
            f"The labels of {printable(root)} name the class {unknown[0]}, and {printable(tables[0].name)} lists "
            f"{', '.join(f'{k} = {printable(n)}' for k, n in list(names.items())[:8])}; add it there."
        )
    return names, tables[0], [f"the classes are those of {printable(tables[0].name)}.", *remarks]


def _texts(folder: Path, left: Counter[str]) -> dict[str, tuple[Path, list[_Shape]]]:
    """{stem: (file, shapes)} of the texts below a folder; `left` counts what is no outline."""
    files = [f for f in list_files(folder, (".txt",)) if f.name.lower() != "classes.txt"] if folder.is_dir() else []
    return {stem: (file, _shapes(file, left)) for stem, file in stems(files, folder)[0].items()}


def _shapes(file: Path, left: Counter[str]) -> list[_Shape]:
    found: list[_Shape] = []
    lines = read_text(file, _LARGEST).splitlines()
    for n, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = np.array([float(w) for w in words[1:]])
            k = int(words[0]) if len(words[0]) < 9 else -1
        except (ValueError, OverflowError):
            k, values = -1, np.empty(0)
        if k < 0 or not np.isfinite(values).all():
            raise DataError(
                f"{printable(file)}, line {n}: {printable(line[:60])!r} is no class and outline (class x y x y x y, "
                "in shares of the image); correct it."
            )
        if len(values) and (values.min() < -1 or values.max() > 2):
            raise DataError(
                f"{printable(file)}, line {n}: its points reach {values.min():g}..{values.max():g}, and YOLO writes "
                "shares of the image's sides, 0..1; divide them by its width and height."
            )
        if len(values) == 4:
            left["boxes"] += 1
        elif len(values) < 6 or len(values) % 2:
            left["outlines of fewer than three points"] += 1
        else:
            found.append((k, values.reshape(-1, 2)))
    return found


def _draw(entry: Mapping[str, Any], ids: Mapping[str, int]) -> tuple[Size, list[tuple[int, Patch]]]:
    height, width = image_size(entry["image"])
    scale = np.array([width, height], np.float64)
    return (height, width), [
        (ids[name], coco_patch((points * scale).ravel(), (height, width))) for name, points in entry["shapes"]
    ]
