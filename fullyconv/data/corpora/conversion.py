"""Any data set as plain folders: SPLIT/images beside SPLIT/labels of index PNGs, with the classes and their colours."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.class_tables import classes_text
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.errors import DataError, UnknownName, UsageError, printable
from fullyconv.files import new_directory
from fullyconv.files.outputs import Outputs, one_part
from fullyconv.taxonomy import Taxonomy

__all__ = ["convert_dataset", "open_splits", "storable"]


def convert_dataset(
    spec: str,
    directory: str | Path,
    *,
    splits: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> dict[str, int]:
    """Write `spec` into the new folder `directory` as a `folder:` data set; returns {split: images}.

    SPLIT/images, SPLIT/labels (and labels-HEAD, and a folder a further modality), classes.txt (and classes-HEAD.txt);
    images are copied byte for byte where they are files of their own. Without `splits`: train, val and test as far as
    there are, else everything at once. Further options are the kind's. Nothing is left after an error.
    """
    target = Path(directory)
    if target.exists():
        raise UsageError(f"{printable(target)} exists already; name a new folder.")
    parts = open_splits(spec, splits, inputs, options)
    for data in parts.values():
        data.refuse_windows("Converting")
    plan = Outputs(target, (f for data in parts.values() for f in data.files))
    classes = _claim_classes(plan, parts)
    places = [
        (data, record, _claim(plan, split, data, record, shared))
        for split, data in parts.items()
        for shared in [Counter(path for r in data.records for path in r.inputs.values())]
        for record in data.records
    ]
    with new_directory(target) as root:
        plan.moved(root)
        for name, taxonomy in classes.items():
            plan.place(name).write_text(classes_text(taxonomy), encoding="utf-8")
        for done, (data, record, names) in enumerate(places, 1):
            _write(plan, data, record, names)
            if progress is not None:
                progress(done, len(places))
        os.sync()  # one for all the small files, before the folder gets its name
    return {split or "all": len(data) for split, data in parts.items()}


def open_splits(
    spec: str, splits: Sequence[str] | None, inputs: Sequence[str] | None, options: Mapping[str, Any]
) -> dict[str, Dataset]:
    """{folder: data}; every split that was asked for must be there."""
    if splits:
        return {s: open_dataset(spec, s, inputs=inputs, **options) for s in splits}
    found: dict[str, Dataset] = {}
    for split in ("train", "val", "test"):
        try:
            found[split] = open_dataset(spec, split, inputs=inputs, **options)
        except UnknownName as error:
            if error.kind != "split":
                raise
        except DataError:
            if found:
                raise
            break  # data without splits, or without anything: the next line says which
    return found or {"": open_dataset(spec, "all", inputs=inputs, **options)}


def _claim_classes(plan: Outputs, parts: Mapping[str, Dataset]) -> dict[str, Taxonomy]:
    """The file that lists a head's classes -> these."""
    heads = {head: t for data in parts.values() for head, t in data.taxonomies.items()}
    for split, data in parts.items():
        for head, taxonomy in data.taxonomies.items():
            if taxonomy.names != heads[head].names:
                raise DataError(f"The split {split!r} has other {head} classes than the rest; convert each by itself.")
    return {plan.claim(f"classes{_suffix(one_part(h, 'The head'))}.txt"): t for h, t in heads.items()}


def _suffix(head: str) -> str:
    return "" if head == "semantic" else f"-{head}"


@final
@dataclass(frozen=True)
class _Claimed:
    """One record's files: {modality: (name, whether the image is copied)}, {head: name}."""

    inputs: dict[str, tuple[str, bool]]
    labels: dict[str, str]


def _claim(plan: Outputs, split: str, data: Dataset, record: Record, shared: Mapping[Path, int]) -> _Claimed:
    top = [one_part(split, "The split")] if split else []
    inputs = {}
    for modality in data.inputs:
        source = record.inputs.get(modality)
        copied = source is not None and source.suffix.lower() in SUFFIXES and shared[source] == 1
        suffix = source.suffix.lower() if source is not None and copied else ".png"
        folder = "images" if modality == data.inputs[0] else one_part(modality, "The input")
        inputs[modality] = plan.claim(*top, folder, record.name + suffix), copied
    labels = {h: plan.claim(*top, f"labels{_suffix(h)}", f"{record.name}.png") for h in data.taxonomies}
    return _Claimed(inputs, labels)


def _write(plan: Outputs, data: Dataset, record: Record, names: _Claimed) -> None:
    """One record's images and labels."""
    for modality, (name, copied) in names.inputs.items():
        if copied:
            shutil.copyfile(record.inputs[modality], plan.place(name))
        else:
            pixels = storable(data.read_input(record, modality))
            plan.place(name).write_bytes(images.encode_png(pixels))
    for head, name in names.labels.items():
        label = data.read_labels(record, head)
        plan.place(name).write_bytes(images.encode_label(label, data.taxonomies[head].palette))


def storable(pixels: NDArray[np.number]) -> NDArray[Any]:
    """8 or 16 bits: depth in millimetres is rounded."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    whole: NDArray[np.uint16] = np.clip(np.rint(pixels), 0, 65535).astype(np.uint16)
    return whole
