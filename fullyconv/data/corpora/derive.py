"""Choosing the inputs and label maps of a data set, and deriving one label map from another by a table of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, ReadLabels, Record
from fullyconv.data.corpora.class_tables import read_classes
from fullyconv.data.corpora.coding import Coding, infer_coding, read_coded
from fullyconv.data.corpora.layout import list_files, stems
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError, printable
from fullyconv.taxonomy import Taxonomy, voc_palette

__all__ = ["add_again", "choose_heads", "choose_inputs", "mapping_table"]

WAYS = "{from, map}, {folder}, {folder, classes}, or false to leave it out"


def choose_inputs(dataset: Dataset, inputs: Sequence[str] | None) -> Dataset:
    """`dataset` with its image made of these modalities, in this order; UnknownName for one it does not have."""
    if inputs is None:
        return dataset
    if not inputs:
        raise UsageError("No inputs are named; give at least one, such as inputs = ['rgb'].")
    known = sorted({m for record in dataset.records for m in record.inputs})
    for modality in inputs:
        if modality == "hha" and "depth" in known and modality not in known:
            raise DataError(
                f"{printable(dataset.root)} has depth but no hha yet; "
                "encode it with fullyconv hha DEPTH --camera FILE.json -o HHA, a folder beside depth."
            )
        if modality not in known:
            raise UnknownName("input of this data", modality, known)
    return replace(dataset, inputs=tuple(inputs))


def choose_heads(dataset: Dataset, heads: Mapping[str, object] | Sequence[str] | None) -> Dataset:
    """`dataset` with the label maps named in a list, or with those that a mapping adds (see `open_dataset`)."""
    if heads is None:
        return dataset
    if not isinstance(heads, Mapping):
        return _keep(dataset, heads)
    for head, how in heads.items():
        if not how:
            _known(dataset, head)
        else:
            dataset = _add(dataset, head, how)
    left_out = [head for head, how in heads.items() if how is False]
    return _keep(dataset, [h for h in dataset.taxonomies if h not in left_out]) if left_out else dataset


def add_again(dataset: Dataset, added: Mapping[str, Any]) -> Dataset:
    """`dataset` with the heads that were added to the data a network learned from (`Dataset.added`).

    One that these data cannot give is left to the data's own of that name, or left out; a note says so.
    """
    for head, how in added.items():
        source = how.get("from")
        if source in dataset.taxonomies or (source is None and (dataset.root / str(how.get("folder"))).is_dir()):
            dataset = _add(dataset, head, how)
            continue
        missing = f"{source} labels" if source is not None else f"folder {how.get('folder')}"
        instead = "the data's own is taken" if head in dataset.taxonomies else "that head is left out"
        note = f"{head} cannot be had as it was learned (no {missing} here): {instead}."
        dataset = replace(dataset, notes=(*dataset.notes, note))
    return dataset


def _add(dataset: Dataset, head: str, how: object) -> Dataset:
    if not isinstance(how, Mapping):
        raise UsageError(f"The head {head!r} is given as {how!r}; give {WAYS}.")
    for key in how:
        if key not in ("from", "map", "folder", "classes"):
            raise UnknownName(f"key of the head {head!r}", str(key), ("from", "map", "folder", "classes"))
    if how.keys() == {"from", "map"}:
        return _derived(dataset, head, str(how["from"]), how["map"])
    if "folder" in how and how.keys() <= {"folder", "classes"}:
        return _from_folder(dataset, head, str(how["folder"]), how.get("classes"))
    raise UsageError(f"The head {head!r} is given by {', '.join(how)}; give {WAYS}.")


def _known(dataset: Dataset, head: str) -> None:
    if head not in dataset.taxonomies:
        raise UnknownName("head of this data", head, dataset.taxonomies)


def _keep(dataset: Dataset, heads: Sequence[str]) -> Dataset:
    for head in heads:
        _known(dataset, head)
    added = {h: how for h, how in dataset.added.items() if h in heads}
    return replace(dataset, taxonomies={h: dataset.taxonomies[h] for h in heads}, added=added)


# ---- by a map --------------------------------------------------------------------------------------------------


def mapping_table(source: Taxonomy, groups: Mapping[str, Sequence[str] | str]) -> tuple[Taxonomy, NDArray[Any]]:
    """The taxonomy of `groups` {new name: old names | "*"} and the table old value -> new id (65536 entries).

    "*" takes every old class that no other group names. Old classes in no group, and ignored pixels, are ignored.
    Raises UnknownName for an old name that is not there, UsageError for one that is taken twice or for no table.
    """
    if not isinstance(groups, Mapping):
        raise UsageError(f'A map is a table of new classes, not {groups!r}; write {{sky = ["sky"], other = "*"}}.')
    taken: dict[str, int] = {}
    for k, (name, olds) in enumerate(groups.items()):
        if not isinstance(olds, str | list | tuple):
            raise UsageError(f'The class {name!r} is made from {olds!r}; give a class, a list of classes, or "*".')
        for old in [olds] if isinstance(olds, str) else olds:
            if old != "*" and old not in source.names:
                raise UnknownName(f"class to make {name!r} from", str(old), source.names)
            if old in taken:
                raise UsageError(f"The class {old!r} is mapped twice; give each to one group.")
            taken[old] = k
    if not groups:
        raise UsageError("The map is empty; give at least one new class.")
    first = [
        next((source.palette[i] for i, n in enumerate(source.names) if taken.get(n) == k), None)
        for k in range(len(groups))
    ]
    spare = voc_palette(len(groups) + 1)[1:]
    taxonomy = Taxonomy(tuple(groups), tuple(c or spare[k] for k, c in enumerate(first)))
    table = np.full(65536, taxonomy.ignore, np.uint8 if taxonomy.ignore <= 255 else np.uint16)
    for i, old in enumerate(source.names):
        table[i] = taken.get(old, taken.get("*", taxonomy.ignore))
    return taxonomy, table


@final
@dataclass(frozen=True)
class _Derived:
    """(record, head) -> labels, `head` being made from `source` by `table`; other heads as before."""

    read: ReadLabels
    head: str
    source: str
    table: NDArray[Any]

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head != self.head:
            return self.read(record, head)
        labels: NDArray[Any] = self.table[self.read(record, self.source)]
        return labels


def _derived(dataset: Dataset, head: str, source: str, groups: Mapping[str, Any]) -> Dataset:
    _known(dataset, source)
    taxonomy, table = mapping_table(dataset.taxonomies[source], groups)
    records = [
        replace(r, labels={**r.labels, head: r.labels[source]}) if source in r.labels else r for r in dataset.records
    ]
    note = f"{head} ({', '.join(taxonomy.names)}) is derived from {source}."
    return replace(
        dataset,
        records=records,
        taxonomies={**dataset.taxonomies, head: taxonomy},
        read_labels=_Derived(dataset.read_labels, head, source, table),
        notes=(*dataset.notes, note),
        added={**dataset.added, head: {"from": source, "map": dict(groups)}},
    )


# ---- from a second folder --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Beside:
    """(record, head) -> labels, `head` being read from files of its own; other heads as before."""

    read: ReadLabels
    head: str
    coding: Coding

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head != self.head:
            return self.read(record, head)
        if head not in record.labels:
            raise DataError(f"{printable(record.name)} has no {head} label; add the file or take the image away.")
        return read_coded(record.labels[head], self.coding)


def _from_folder(dataset: Dataset, head: str, folder: str, classes: object) -> Dataset:
    """A further head from label files below `folder` (relative to the root), paired by the image's own stem."""
    where = dataset.root / folder
    if not where.is_dir():
        raise MissingInput(f"{printable(where)} does not exist; give the folder of the {head} labels.")
    files = stems(list_files(where), where)[0]
    for key in [k for k in files if "/" in k]:
        files.setdefault(key.rsplit("/", 1)[-1], files[key])
    named = where / str(classes) if classes else where.parent / f"classes-{head}.txt"
    notes: tuple[str, ...] = ()
    if named.is_file():
        coding = read_classes(named)
    elif classes:
        raise MissingInput(f"{printable(named)} does not exist; give the classes file of the {head} labels.")
    else:
        coding, notes = infer_coding(sorted(set(files.values())), head)
    records = [_with_label(r, head, files) for r in dataset.records]
    if not any(head in r.labels for r in records):
        raise DataError(f"No file in {printable(where)} has the name of an image; name the labels as their images.")
    return replace(
        dataset,
        records=records,
        taxonomies={**dataset.taxonomies, head: coding.taxonomy},
        read_labels=_Beside(dataset.read_labels, head, coding),
        notes=(*dataset.notes, *notes),
        added={**dataset.added, head: {"folder": folder} | ({"classes": str(classes)} if classes else {})},
    )


def _with_label(record: Record, head: str, files: Mapping[str, Path]) -> Record:
    image = next(iter(record.inputs.values()))
    file = files.get(record.name) or files.get(image.stem)
    return replace(record, labels={**record.labels, head: file}) if file else record
