"""Which folder holds images and which their labels: by the usual names, else by what the files hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.layout import SUFFIXES, holds_images, is_split, list_files, stems
from fullyconv.errors import FullyconvError, printable

__all__ = [
    "IMAGES",
    "LABELS",
    "SURE_IMAGES",
    "SURE_LABELS",
    "Sides",
    "by_content",
    "images_of",
    "is_input_name",
    "label_like",
    "named",
    "plain_name",
    "sides_of",
    "twins",
]

SURE_IMAGES = ("images", "image", "imgs", "img", "rgb", "jpegimages", "pictures", "photos")
SURE_LABELS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annot", "gt", "segmentationclasspng"),
    *("segmentationclass", "segmentations", "segmentation", "groundtruth", "ground_truth", "segmaps", "seg"),
    *("label_maps", "labelmaps"),
)
# Names that mean so beside one of the other kind, and otherwise anything.
IMAGES = (*SURE_IMAGES, "inputs", "input", "sat", "satellite", "ortho", "x")
LABELS = (*SURE_LABELS, "targets", "target", "ann", "anns", "annots", "gts", "truth", "maps", "map", "y")
_MEASURED = ("depth", "hha", "nir", "ir", "thermal", "dsm", "dem", "dtm", "ndsm", "ndvi", "flow", "disparity", "edges")
_FORMAT = re.compile(r"[-_. ](png|jpe?g|tiff?|bmp|webp|npy|dir|folder|files?)$")
_LOOKED_AT = 3  # files of each folder
LABEL_VALUES, PHOTO_VALUES = 40, 64  # distinct values: of label maps at most, of photographs in colour at least


def plain_name(name: str) -> str:
    """A folder's name in small letters, blanks as "_", without what only tells the format: "Masks_PNG" is "masks"."""
    return _FORMAT.sub("", name.lower().replace(" ", "_"))


def named(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` that has the first of `names`, as it stands or plainly."""
    there: dict[str, Path] = {}
    for of in (lambda n: n.lower(), plain_name):
        for d in _folders(folder):
            there.setdefault(of(d.name), d)
    return next((there[n] for n in names if n in there), None)


def images_of(folder: Path) -> Path | None:
    """The folder in `folder` that is named as one of images."""
    return named(folder, SURE_IMAGES) or (named(folder, IMAGES) if named(folder, LABELS) else None)


def sides_of(folder: Path) -> tuple[Path, Path | None, str] | None:
    """(images, labels, note) in `folder`; labels None where their folders have the usual names. None for neither."""
    if top := images_of(folder):
        return top, None, ""
    found = by_content(folder)
    return (*found[0], found[0].note) if len(found) == 1 else None


def _folders(folder: Path) -> list[Path]:
    return sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))


# ---- by what the files hold ------------------------------------------------------------------------------------


@final
class Sides(tuple[Path, Path]):
    """(images, labels), told by what the files of two folders hold."""

    __slots__ = ()

    @property
    def note(self) -> str:
        a, b = (printable(f.name) for f in self)
        return f"{b}/ is read as the labels of {a}/: the same names, and few values where those are photographs."


def by_content(folder: Path) -> list[Sides]:
    """Pairs of folders in `folder` whose files have the same names, one of photographs and one of label maps; each
    folder in one pair at most, else none."""
    found = [s for pair in twins(folder) if (s := _sides(*pair)) is not None]
    each = [f for s in found for f in s]
    return found if len(set(each)) == len(each) else []


def is_input_name(name: str) -> bool:
    """Whether a folder's name is that of a further input, which may look like labels."""
    return plain_name(name) in _MEASURED


def twins(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of folders in `folder`, no splits of each other, of whose files at least half have the same names."""
    there = [d for d in _folders(folder) if not is_split(d.name) and not is_input_name(d.name) and holds_images(d)]
    names = {d: stems(list_files(d), d)[0].keys() for d in there[:12]}
    for a, b in combinations(names, 2):
        if 2 * len(names[a] & names[b]) >= max(len(names[a]), len(names[b])) > 0:
            yield a, b


def _sides(a: Path, b: Path) -> Sides | None:
    for top, labels in ((a, b), (b, a)):
        if plain_name(top.name) not in LABELS and plain_name(labels.name) not in IMAGES and label_like(labels, top):
            return Sides((top, labels))
    return None


def label_like(labels: Path, top: Path) -> bool:
    """Whether the files in `labels` are label maps beside those in `top`: lossless, of few values, and the others
    photographs: in colour where these are not, or of many values."""
    few, many = _looked(labels), _looked(top)
    if not few or not many or max(n for _, n in few) > LABEL_VALUES:
        return False
    grey, colour = all(bands == 1 for bands, _ in few), all(bands > 1 for bands, _ in many)
    return (grey and colour) or min(n for _, n in many) > PHOTO_VALUES


def _looked(folder: Path) -> list[tuple[int, int]]:
    """(bands, distinct values, more where the file is lossy) of some files; [] where one cannot be read."""
    files = list_files(folder, SUFFIXES)
    found = []
    for file in files[:: max(1, len(files) // _LOOKED_AT)][:_LOOKED_AT]:
        try:
            info = images.image_info(file)
            values = images.read_image(file) if info.lossy else images.read_label(file, colours=True)
        except FullyconvError:
            return []
        found.append(
            (1, _distinct(values)) if values.ndim == 2 else (3, _distinct(values) + info.lossy * (PHOTO_VALUES + 1))
        )
    return found


def _distinct(values: NDArray[np.number]) -> int:
    flat = values if values.ndim == 2 else values.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    return len(np.unique(flat))
