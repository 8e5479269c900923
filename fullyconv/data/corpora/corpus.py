"""What the readers of published corpora share: MATLAB files, value tables, pairing a list's names with its files."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding, check_ids, read_coded
from fullyconv.data.corpora.folder import read_modality
from fullyconv.data.corpora.layout import choose_split, describe_folder
from fullyconv.errors import DataError, MissingExtra, MissingInput, printable
from fullyconv.sandbox import Session
from fullyconv.taxonomy import Colour, Taxonomy

__all__ = [
    "Labels",
    "apply_values",
    "choose_kind",
    "dataset",
    "existing",
    "in_folder",
    "no_layout",
    "painted",
    "read_mat",
    "records",
    "unlabelled",
]

FileOf = Callable[[str], Path]
_matlab = Session("fullyconv.sandbox.matlab:read_variable")  # one confined child a process, for all .mat files


def painted(
    kind: str, taxonomy: Taxonomy, values: Mapping[int, int] | None = None, ignored: Iterable[Colour] = ((0, 0, 0),)
) -> Coding:
    """A published set's coding by values, and by its palette where its labels were saved as colours; `ignored` are the
    colours of what is ignored."""
    colours = dict.fromkeys(ignored, taxonomy.ignore) | {c: k for k, c in reversed([*enumerate(taxonomy.palette)])}
    return Coding(taxonomy, values or {}, colours, kind)


def no_layout(root: Path, what: str, wanted: str, source: str) -> DataError:
    """The error for a root that is not `what`: what was looked for, what lies there, where to get it."""
    return DataError(f"{printable(root)} is no {what}: looked for {wanted}; {describe_folder(root)}; {source}.")


def choose_kind(parts: Iterable[str], split: str | None, root: Path) -> tuple[str, ...]:
    """`choose_split` for data that may have no splits: its one part is then named ""."""
    names = [s for s in parts if s]
    return choose_split(names, split, root) if names or split not in (None, "all") else ("",)


def existing(files: Iterable[Path]) -> set[Path]:
    """Those of `files` that exist, each folder being listed once."""
    files = list(files)
    listed = {folder: {p.name for p in folder.iterdir()} if folder.is_dir() else set() for folder in _folders(files)}
    return {f for f in files if f.name in listed[f.parent]}


def in_folder(folder: Path, suffix: str) -> FileOf:
    """The function name -> `folder`/name`suffix`."""
    return lambda name: folder / f"{name}{suffix}"


def _folders(files: Iterable[Path]) -> set[Path]:
    return {f.parent for f in files}


def records(
    names: Sequence[str],
    inputs: Mapping[str, FileOf],
    labels: Mapping[str, FileOf],
    where: str,
    source: str,
    group: Callable[[str], str] = lambda name: "",
) -> list[Record]:
    """One record a name; a file that only some have is an error. A further head's labels that no name has are left out;
    the first head's too in a test split, which may be published without.

    where   what listed the names, for messages ("VOC2012 test"); source   how to get what is missing.
    Raises DataError (no names at all) or MissingInput (a half-unpacked set: how many files, the first of them).
    """
    if not names:
        raise DataError(f"{where} lists no images; {source}.")
    required = {m: [of(n) for n in names] for m, of in {**inputs, **labels}.items()}
    there = {m: existing(files) for m, files in required.items()}
    optional = [*labels] if "test" in where.lower() else [*labels][1:]
    heads = {h: of for h, of in labels.items() if there[h] or h not in optional}
    for part in (*inputs, *heads):
        missing = [f for f in required[part] if f not in there[part]]
        if missing:
            raise MissingInput(
                f"{where} lists {len(names)} images, and {len(missing)} of their {part} files are not there (the "
                f"first: {printable(missing[0])}); the set is half unpacked: {source}."
            )
    return [
        Record(n, {m: of(n) for m, of in inputs.items()}, {h: of(n) for h, of in heads.items()}, group(n))
        for n in dict.fromkeys(names)
    ]


def unlabelled(found: Sequence[Record], taxonomies: Mapping[str, Taxonomy]) -> dict[str, Taxonomy]:
    """The taxonomies of the heads that the records have labels for (a test split has none)."""
    return {head: taxonomy for head, taxonomy in taxonomies.items() if found and head in found[0].labels}


@final
@dataclass(frozen=True)
class Labels:
    """Reads a record's label file: an image, or the variable `mat[head]` of a MATLAB file, through the head's coding.

    A class, so that worker processes can be given it. `shift` is added to MATLAB values first (-1 void becomes 0).
    """

    codings: Mapping[str, Coding]
    mat: Mapping[str, str] = field(default_factory=dict)
    shift: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head not in record.labels:
            raise DataError(f"{printable(record.name)} has no {head} label; this split is published without labels.")
        file = record.labels[head]
        if file.suffix.lower() != ".mat":
            return read_coded(file, self.codings[head])
        values = read_mat(file, self.mat[head])
        return apply_values(values.astype(np.int64) + self.shift.get(head, 0), self.codings[head], file)


def dataset(
    kind: str, root: Path, split: str, found: Sequence[Record], labels: Labels, notes: Sequence[str] = ()
) -> Dataset:
    """A `Dataset` of images read as RGB (and further modalities by their bands)."""
    taxonomies = unlabelled(found, {head: coding.taxonomy for head, coding in labels.codings.items()})
    return Dataset(kind, root, split, found, taxonomies, read_modality, labels, notes=tuple(notes))


def apply_values(values: NDArray[np.number], coding: Coding, file: Path) -> NDArray[Any]:
    """Stored integers H W through the coding's table of values (or as they are): ids, or DataError for one without."""
    if values.ndim != 2:
        raise DataError(f"{printable(file)}: the label has the shape {values.shape}, not H x W; unpack it again.")
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(
            f"{printable(file)}: the label values are {values.min()}..{values.max()}, outside 0..65535; "
            "unpack it again."
        )
    if not coding.values:
        return check_ids(values.astype(coding.dtype), coding, file)
    ids: NDArray[Any] = coding.value_table[values]
    if (ids < 0).any():
        row, col = np.argwhere(ids < 0)[0]
        raise DataError(
            f"{printable(file)}: the label value {values[row, col]} is no class ({int((ids < 0).sum())} pixels, the "
            f"first at row {row}, column {col}): {coding.remedy}."
        )
    return ids.astype(coding.dtype)


def read_mat(file: Path, path: str) -> NDArray[Any]:
    """The variable `path` ("S", or "GTcls.Segmentation" for a field of a struct) of a MATLAB file (not v7.3), read in
    a confined child process.

    Raises MissingExtra (SciPy), MissingInput, or DataError for a file that is damaged or lacks the variable.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingExtra(f"Reading {file.name}", "mat", "scipy")
    if not file.is_file():
        raise MissingInput(f"{printable(file)} does not exist; unpack the set again.")
    values, _ = _matlab.ask(file, {"variable": path})
    found: NDArray[Any] = values["value"]
    return found
