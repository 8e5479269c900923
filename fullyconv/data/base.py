"""The data contract: a `Dataset` is a list of `Record`s and two functions that read them; every reader returns one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.pipeline import heartbeat
from fullyconv.data.validity import filled, read_valid
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files.outputs import name_fault
from fullyconv.taxonomy import Taxonomy

__all__ = ["Dataset", "ReadInput", "ReadLabels", "Record", "Sample"]


@final
@dataclass(frozen=True)
class Record:
    """One image's files. `name` is unique in its split (POSIX, no suffix); outputs are named after it, so it is a
    relative path of plain parts: DataError for one that climbs, begins at the root, holds control characters or is over
    240 bytes a part, 1,024 in all."""

    name: str
    inputs: Mapping[str, Path]  # modality ("rgb", "depth", "hha", ...) -> file
    labels: Mapping[str, Path] = field(default_factory=dict)  # head -> file; empty when there are none
    group: str = ""  # video, patient, scene: records of one group belong on one side of a split
    window: tuple[int, int, int, int] | None = None  # top, left, bottom, right: the part of the files; None: all

    def __post_init__(self) -> None:
        if fault := name_fault(self.name):
            raise DataError(
                f"The image name {printable(self.name)[:200]!r} {fault}, so no result can be named after it; rename "
                "the image, or its entry where it is listed."
            )


@final
@dataclass(frozen=True)
class Sample:
    """A decoded record: image H W C (uint8, uint16 or float32; modalities concatenated along C in the data set's
    order) and labels {head: H W, uint8 or uint16}, ids 0..K-1 or the head's ignore value."""

    name: str
    image: NDArray[Any]
    labels: Mapping[str, NDArray[Any]]
    invalid: NDArray[np.bool_] | None = None  # H W: pixels that hold no data; their labels are ignored


ReadInput = Callable[[Record, str], NDArray[Any]]  # (record, modality) -> H W C
ReadLabels = Callable[[Record, str], NDArray[Any]]  # (record, head) -> H W ids
ReadInvalid = Callable[[Record, str], NDArray[np.bool_] | None]  # (record, modality) -> pixels H W without data


@final
@dataclass(frozen=True)
class Dataset:
    """Records of one split with the functions that read them; `dataset[i]` is a `Sample`.

    `taxonomies` maps each head to its classes, the main head ("semantic") first; it is empty for unlabelled images.
    """

    kind: str
    root: Path
    split: str
    records: Sequence[Record]
    taxonomies: Mapping[str, Taxonomy]
    read_input: ReadInput
    read_labels: ReadLabels
    inputs: tuple[str, ...] = ("rgb",)
    notes: tuple[str, ...] = ()  # what the reader decided ("classes inferred from the labels: 0..10"), said to the user
    unmatched: tuple[tuple[str, Path], ...] = ()  # files of no record: ("label-without-image" | "duplicate-stem", file)
    added: Mapping[str, Any] = field(default_factory=dict)  # head -> how it joined the data's own (see `open_dataset`)
    read_invalid: ReadInvalid | None = None  # where it is not the files that say what holds no data
    doubts: tuple[tuple[str, Path, str], ...] = ()  # (kind of finding, file, words): what the check says of them

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))  # a text will do

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        heads = ", ".join(f"{head}: {len(t)} classes" for head, t in self.taxonomies.items()) or "no labels"
        return printable(f"Dataset({self.kind}:{self.root.name}, split {self.split}, {len(self)} images, {heads})")

    def _repr_html_(self) -> str:
        """A notebook's: the line, then each head's classes."""
        heads = "".join(f"<p>{escape(printable(h))}</p>{t._repr_html_()}" for h, t in self.taxonomies.items())
        return f"<p>{escape(repr(self))}</p>{heads}"

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image, invalid = self.image_and_invalid(index)
        labels = {head: self._label(record, head) for head in self.taxonomies}
        for head, label in labels.items():
            if label.shape != image.shape[:2]:
                raise DataError(
                    f"{record.labels.get(head, record.name)}: the {head} label is {label.shape[0]}x{label.shape[1]} "
                    f"(HxW) but its image is {image.shape[0]}x{image.shape[1]}; make them the same size."
                )
        if invalid is not None:
            labels = {
                h: np.where(invalid, label.dtype.type(self.taxonomies[h].ignore), label) for h, label in labels.items()
            }
        return Sample(record.name, image, labels, invalid)

    def image(self, index: int) -> NDArray[Any]:
        """The inputs of record `index`, concatenated along C: H W C."""
        return self.image_and_invalid(index)[0]

    def image_and_invalid(self, index: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """(`image(index)`, which pixels H W hold no data): those have the mean of the others; None where all do."""
        record = self.records[index]
        read = [self._valid(record, m) for m in self.inputs]
        planes, bad = [plane for plane, _ in read], [b for _, b in read if b is not None]
        if len(planes) == 1:
            return read[0]
        sizes = {p.shape[:2] for p in planes}
        if len(sizes) > 1:
            raise DataError(f"{record.name}: its inputs {self.inputs} differ in size ({sorted(sizes)}); align them.")
        image = np.concatenate([p.astype(np.float32) for p in planes], axis=-1)
        return image, np.logical_or.reduce(bad) if bad else None

    def _valid(self, record: Record, modality: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        image = self._input(record, modality)
        if self.read_invalid is None:
            return read_valid(image, record.inputs.get(modality))
        return filled(image, self.read_invalid(record, modality))

    def _input(self, record: Record, modality: str) -> NDArray[Any]:
        heartbeat.at(record.inputs.get(modality, record.name))
        return self.read_input(record, modality)

    def _label(self, record: Record, head: str) -> NDArray[Any]:
        heartbeat.at(record.labels.get(head, record.name))
        return self.read_labels(record, head)

    @property
    def files(self) -> set[Path]:
        """Every file that is read: inputs and labels."""
        return {f for r in self.records for f in (*r.inputs.values(), *r.labels.values())}

    @property
    def by_windows(self) -> bool:
        """Whether an image is a window of a larger file."""
        return any(r.window is not None for r in self.records)

    def refuse_windows(self, what: str) -> None:
        """UsageError where images are windows of larger files, which `what` has no use for."""
        if self.by_windows:
            raise UsageError(
                f"{what} takes images that are files of their own, and {printable(self.root)} holds scenes, of which "
                "windows are read; write these with fullyconv data cut first."
            )

    @property
    def taxonomy(self) -> Taxonomy:
        """The main head's classes."""
        return next(iter(self.taxonomies.values()))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over kind, split, heads, class names and every file's name and size: the data's identity."""
        digest = hashlib.sha256()
        digest.update(repr((self.kind, self.split, self.inputs)).encode())
        for head, taxonomy in self.taxonomies.items():
            digest.update(repr((head, taxonomy.names, taxonomy.ignore)).encode())
        if self.added:
            digest.update(json.dumps(self.added).encode())
        for r in self.records:
            files = sorted([*r.inputs.items(), *r.labels.items()])
            digest.update(repr((r.name, [(k, p.name, p.stat().st_size) for k, p in files])).encode())
            if r.window is not None:
                digest.update(repr(r.window).encode())
        return digest.hexdigest()
