"""The images that are labelled, and the label maps that they have already: a folder of photos, or data of any kind that
our readers know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data import open_dataset, parse_spec
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files import read_file
from fullyconv.images import encode_png, read_image
from fullyconv.predict.sources import named_sources
from fullyconv.taxonomy import Taxonomy, match

__all__ = ["Collection", "Photo", "open_images"]

_MOST_FILE = 1 << 31  # bytes, as `images.limits.MAX_BYTES`


@final
@dataclass(frozen=True)
class Photo:
    """An image to label: its name (unique; its files are named after it) and its file."""

    name: str
    file: Path
    record: Record | None = None  # where it has labels already


@final
@dataclass(frozen=True)
class Collection:
    """`taxonomy`: the classes of the labels that are there, None without any. notes: to be said to the user."""

    photos: Sequence[Photo]
    data: Dataset | None
    notes: Sequence[str]

    @property
    def taxonomy(self) -> Taxonomy | None:
        return self.data.taxonomy if self.data and self.data.taxonomies else None

    def read(self, photo: Photo) -> NDArray[np.uint8]:
        """H W 3, as viewers show it."""
        return read_image(photo.file)

    def labels(self, photo: Photo, wanted: Taxonomy) -> NDArray[Any] | None:
        """The ids H W that it has already, in the classes `wanted`; None where it has none. Classes that are not among
        them are its ignore value."""
        if photo.record is None or self.data is None:
            return None
        labels = self.data.read_labels(photo.record, next(iter(self.data.taxonomies)))
        ids = np.array([k if k >= 0 else wanted.ignore for k in match(self.data.taxonomy, wanted).ids])
        known = labels < len(ids)
        return np.where(known, ids[np.where(known, labels, 0)], wanted.ignore)

    def copied(self, photo: Photo) -> tuple[bytes, str]:
        """(the bytes of a file of the image, its suffix): as it is where it is an image file by its name."""
        suffix = photo.file.suffix.lower()
        if suffix in SUFFIXES:
            return read_file(photo.file, _MOST_FILE), photo.file.suffix
        return encode_png(self.read(photo)), ".png"


def open_images(spec: str, out: Path) -> Collection:
    """What is to be labelled in `spec`: a folder of images, PATH, or kind:PATH; none of results in `out`.

    Raises MissingInput, DataError and UnknownName as the readers do, UsageError for data of other inputs than colour.
    """
    kind, root, _ = parse_spec(spec)
    if kind is None and root.is_file():
        raise UsageError(f"{printable(root)} is a file; give the folder that it lies in, or write folder:LIST.csv.")
    data = open_dataset(spec, "all")
    data.refuse_windows("Labelling")
    if data.inputs[0] != "rgb":
        raise UsageError(f"{printable(spec)} holds {', '.join(data.inputs)}; labelling takes colour images.")
    if not data.taxonomies:
        pairs, notes = named_sources([root], out) if kind is None else ([], [])
        photos = [Photo(name, file) for file, name in pairs] or [Photo(r.name, r.inputs["rgb"]) for r in data.records]
        return Collection(photos, None, notes)
    head = next(iter(data.taxonomies))
    photos = [
        Photo(r.name, r.inputs["rgb"], r if head in r.labels else None) for r in data.records if "rgb" in r.inputs
    ]
    if not photos:
        raise DataError(f"{printable(spec)} holds no image files to label; give a folder of images.")
    have = sum(p.record is not None for p in photos)
    return Collection(photos, data, (*data.notes, f"{have} of {len(photos)} images have labels, which are opened."))
