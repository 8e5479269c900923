"""Any data set as plain folders: SPLIT/images beside SPLIT/labels of index PNGs, with the classes and their colours."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.coding import classes_text
from fullyconv.data.layout import SUFFIXES
from fullyconv.errors import DataError, UnknownName, UsageError, printable
from fullyconv.files import new_directory

__all__ = ["convert", "storable"]


def convert(
    spec: str,
    directory: str | Path,
    *,
    splits: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> dict[str, int]:
    """Write `spec` into the new folder `directory` as a `folder:` data set; returns {split: pictures}.

    SPLIT/images, SPLIT/labels (and labels-HEAD, and a folder a further modality), classes.txt (and classes-HEAD.txt);
    pictures are copied byte for byte where they are files of their own. Without `splits`: train, val and test as far as
    there are, else everything at once. Further options are the kind's. Nothing is left after an error.
    """
    target = Path(directory)
    if target.exists():
        raise UsageError(f"{printable(target)} exists already; name a new folder.")
    parts = _open(spec, splits, inputs, options)
    total, done = sum(map(len, parts.values())), 0
    with new_directory(target) as root:
        _write_classes(root, parts)
        for split, data in parts.items():
            shared = Counter(path for r in data.records for path in r.inputs.values())
            for i in range(len(data)):
                _write(root / split, data, i, shared)
                done += 1
                if progress is not None:
                    progress(done, total)
        os.sync()  # one for all the small files, before the folder gets its name
    return {split or "all": len(data) for split, data in parts.items()}


def _open(
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


def _write_classes(root: Path, parts: Mapping[str, Dataset]) -> None:
    heads = {head: t for data in parts.values() for head, t in data.taxonomies.items()}
    for split, data in parts.items():
        for head, taxonomy in data.taxonomies.items():
            if taxonomy.names != heads[head].names:
                raise DataError(f"The split {split!r} has other {head} classes than the rest; convert each by itself.")
    for head, taxonomy in heads.items():
        (root / f"classes{_suffix(head)}.txt").write_text(classes_text(taxonomy), encoding="utf-8")


def _suffix(head: str) -> str:
    return "" if head == "semantic" else f"-{head}"


def _write(folder: Path, data: Dataset, index: int, shared: Mapping[Path, int]) -> None:
    """One record's pictures and labels, below `folder` by its name."""
    record = data.records[index]
    for modality in data.inputs:
        path = folder / ("images" if modality == data.inputs[0] else modality) / record.name
        path.parent.mkdir(parents=True, exist_ok=True)
        source = record.inputs[modality]
        if source.suffix.lower() in SUFFIXES and shared[source] == 1:
            shutil.copyfile(source, path.with_name(path.name + source.suffix.lower()))
        else:
            pixels = storable(data.read_input(record, modality))
            path.with_name(path.name + ".png").write_bytes(images.encode_png(pixels))
    for head, taxonomy in data.taxonomies.items():
        label = data.read_labels(record, head)
        path = folder / f"labels{_suffix(head)}" / f"{record.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_label(label, taxonomy.palette))


def storable(pixels: NDArray[Any]) -> NDArray[Any]:
    """8 or 16 bits: depth in millimetres is rounded."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    whole: NDArray[np.uint16] = np.clip(np.rint(pixels), 0, 65535).astype(np.uint16)
    return whole
