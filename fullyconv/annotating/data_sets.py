"""Any labelled data set as an annotation tool's files: a folder for each split."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from fullyconv import images
from fullyconv.annotating import open_writer, require_format
from fullyconv.annotating.writer import ImagePlace, Writer
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.conversion import open_splits, storable
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files import new_directory
from fullyconv.files.outputs import Outputs, one_part

__all__ = ["convert_annotations"]


def convert_annotations(
    spec: str,
    directory: str | Path,
    kind: str,
    *,
    splits: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> tuple[dict[str, int], list[str]]:
    """Write the labels of `spec` into the new folder `directory` as the files of `kind`, the main head's classes.

    Returns ({split: images}, notes). Images are copied byte for byte where they are files of their own; nothing is
    left after an error. Further options are the data's own.
    """
    require_format(kind)
    target = Path(directory)
    if target.exists():
        raise UsageError(f"{printable(target)} exists already; name a new folder.")
    parts = open_splits(spec, splits, None, options)
    notes: list[str] = []
    total, done = sum(len(data) for data in parts.values()), 0
    with new_directory(target) as root, contextlib.ExitStack() as open_writers:
        for split, data in parts.items():
            data.refuse_windows("Converting")
            if not data.taxonomies:
                raise DataError(f"{printable(spec)} has no labels to write; give labelled images.")
            folder = root / one_part(split, "The split") if split else root
            writer = open_writers.enter_context(open_writer(kind, Outputs(folder, data.files, new=True), data.taxonomy))
            shared = Counter(path for r in data.records for path in r.inputs.values())
            places = [writer.claim(r.name, _suffix(data, r, shared)) for r in data.records]
            for record, place in zip(data.records, places, strict=True):
                _add(writer, data, record, place, copied=_is_copied(data, record, shared))
                done += 1
                if progress is not None:
                    progress(done, total)
            writer.finish()
            notes += [f"{split}: {note}" if split else note for note in writer.notes]
            if others := list(data.taxonomies)[1:]:
                notes.append(f"further heads are left out: {', '.join(map(printable, others))}.")
    return {split or "all": len(data) for split, data in parts.items()}, list(dict.fromkeys(notes))


def _is_copied(data: Dataset, record: Record, shared: Counter[Path]) -> bool:
    source = record.inputs.get(data.inputs[0])
    return source is not None and source.suffix.lower() in SUFFIXES and shared[source] == 1


def _suffix(data: Dataset, record: Record, shared: Counter[Path]) -> str:
    return record.inputs[data.inputs[0]].suffix if _is_copied(data, record, shared) else ".png"


def _add(writer: Writer, data: Dataset, record: Record, place: ImagePlace, *, copied: bool) -> None:
    modality, head = data.inputs[0], next(iter(data.taxonomies))
    if copied:
        image = images.read_bytes(record.inputs[modality])
    else:
        image = images.encode_png(storable(data.read_input(record, modality)))
    writer.add(place, image, data.read_labels(record, head))
