"""Label files that are not read as they are: what they are, and what to do with them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.data.corpora.layout import SUFFIXES, list_files
from fullyconv.errors import FullyconvError
from fullyconv.files import open_regular

__all__ = ["MAPS", "Foreign", "foreign_labels", "head_of", "is_map", "is_outline"]

_HEAD_BYTES = 65536  # bytes of a file that are looked at


@final
@dataclass(frozen=True)
class Foreign:
    """Files that look like labels: `what` they are, in words, and the `remedy`."""

    what: str
    files: list[Path]
    remedy: str


def head_of(file: Path, size: int = _HEAD_BYTES) -> bytes:
    """The first bytes of a regular file; b"" for anything else."""
    try:
        with os.fdopen(open_regular(file), "rb") as handle:
            return handle.read(size).removeprefix(b"\xef\xbb\xbf")
    except (FullyconvError, OSError):
        return b""


def is_outline(file: Path) -> bool:
    """Whether a text's first line is a class and an outline, as YOLO writes it."""
    return file.suffix.lower() == ".txt" and bool(_OUTLINE.match(head_of(file)))


def _json_of(*keys: str) -> Callable[[Path], bool]:
    return lambda f: f.suffix.lower() == ".json" and all(f'"{k}"'.encode() in head_of(f) for k in keys)


def _ending(*suffixes: str) -> Callable[[Path], bool]:
    return lambda f: f.name.lower().endswith(suffixes)


_OUTLINE = re.compile(rb"\s*\d+( +-?\d*\.?\d+(e-?\d+)?){6,}\s*(\n|$)")
_BOX = re.compile(rb"\s*\d+( +-?\d*\.?\d+(e-?\d+)?){4}\s*(\n|$)")
_COCO = "Export them as COCO, put the JSON beside the images, and read it as coco:PATH."
MAPS = "Write them as label maps (PNG of class ids, 0, 1, 2, ...) of the images' names into labels/."
_KINDS: tuple[tuple[str, Callable[[Path], bool], str], ...] = (
    ("VIA projects", _json_of("_via_img_metadata"), f"VGG Image Annotator exports COCO: {_COCO}"),
    ("VIA regions", _json_of("regions", "shape_attributes"), f"VGG Image Annotator exports COCO: {_COCO}"),
    ("Darwin (V7) annotations", _json_of("item", "annotations", "slots"), f"darwin-py converts to COCO: {_COCO}"),
    ("Darwin (V7) annotations", _json_of("dataset", "image", "annotations"), f"darwin-py converts to COCO: {_COCO}"),
    (
        "Segment Anything masks without classes",
        _json_of("image", "annotations", "segmentation", "predicted_iou"),
        "They say where something is and not what: give each a class in a labelling tool, and export COCO.",
    ),
    ("Label Studio tasks", _json_of("data", "annotations", "result"),
     "Export the project as JSON (one list of all tasks), and read it as labelstudio:PATH."),
    ("Label Studio annotations", _json_of("task", "result", "completed_by"),
     "Export the project as JSON (one list of all tasks), and read it as labelstudio:PATH."),
    ("Labelbox rows", _ending(".ndjson"), f"Labelbox exports COCO: {_COCO}"),
    ("lines of YOLO outlines", is_outline,
     "Put the images into images/, these into labels/, and the names into data.yaml: read it as yolo:PATH."),
    ("lines of YOLO boxes", lambda f: f.suffix == ".txt" and bool(_BOX.match(head_of(f, 4096))),
     "Boxes are no labels of pixels: outline the objects, and export the YOLO segmentation form."),
    ("Pascal VOC boxes", lambda f: f.suffix == ".xml" and b"<bndbox>" in head_of(f),
     "Boxes are no labels of pixels: outline the objects in a labelling tool."),
    ("ADE20K masks in colour", _ending("_seg.png"),
     f"The full ADE20K codes classes in red and green: take the scene parsing benchmark (ade20k:PATH). Or: {MAPS}"),
    ("JSON files", _ending(".json"), f"If their tool exports COCO or labelme: {_COCO}"),
    ("NumPy arrays", _ending(".npy"), "Put them, H x W of class ids each, under the images' names into labels/.", ),
    ("NumPy archives", _ending(".npz"), MAPS),
    ("MATLAB files", _ending(".mat"), MAPS),
    ("volumes", _ending(".nii", ".nii.gz", ".nrrd", ".mha"), "Write their slices as PNG: images and label maps."),
    ("XML files", _ending(".xml"), f"If their tool exports COCO: {_COCO}"),
)  # fmt: skip
_MASK = re.compile(r"(^|[-_. ])(mask|masks|label|labels|seg|gt|annotation|segmentation)([-_. ]|\d|$)", re.IGNORECASE)


def foreign_labels(root: Path) -> list[Foreign]:
    """What looks like labels below `root` and is not read, by its kind."""
    folder = root if root.is_dir() else root.parent
    by: dict[tuple[str, str], list[Path]] = {}
    files = list_files(folder, None)
    for file in files[:: max(1, len(files) // 2000)]:
        found = next(((what, remedy) for what, fits, remedy in _KINDS if fits(file)), None)
        if found is None and file.suffix.lower() in SUFFIXES and is_map(file, folder):
            found = (
                "images that look like label maps",
                ("Put them into labels/ and the images into images/, under the same names."),
            )
        if found is not None:
            by.setdefault(found, []).append(file)
    return [Foreign(what, some, remedy) for (what, remedy), some in by.items()]


def is_map(file: Path, root: Path) -> bool:
    """Whether an image is called a label map by its name, or by a folder it lies in."""
    parts = file.relative_to(root).parts
    return bool(_MASK.search(file.stem)) or any(_MASK.search(p) or p.lower().startswith("label") for p in parts[:-1])
