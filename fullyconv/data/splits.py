"""Which images a run learned from and which it held out, kept in the run, so that no later figure flatters it.

An image is known by its name and content; where it was renamed, or its data set moved or grown, by its content alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, final

from fullyconv.data.base import Dataset, Record
from fullyconv.errors import DataError, FullyconvError, UsageError, printable
from fullyconv.files import atomic_write, open_regular, read_json

__all__ = ["FILE", "Division", "divide", "kept_in", "not_learned", "part"]

FILE = "held-out.json"
_WINDOW = 1 << 14  # bytes read at the start, in the middle and at the end of a file: enough to know it again


@final
@dataclass(frozen=True)
class Division:
    """Name -> what tells the image's files from others, of the images held out and of those learned from."""

    held_out: Mapping[str, str]
    learned: Mapping[str, str]

    @cached_property
    def _marks(self) -> tuple[frozenset[str], frozenset[str]]:
        return frozenset(self.held_out.values()), frozenset(self.learned.values())

    @cached_property
    def _ground(self) -> dict[str, list[tuple[int, ...]]]:
        """{what tells a file from others: the windows of it that were learned from}."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for mark in self.learned.values():
            file, at, window = mark.partition("@")
            if at:
                found.setdefault(file, []).append(tuple(int(v) for v in window.split(",")))
        return found

    def _overlaps(self, mark: str) -> bool:
        """Whether a window has pixels of one that was learned from."""
        file, at, window = mark.partition("@")
        if not at or file not in self._ground:
            return False
        top, left, bottom, right = (int(v) for v in window.split(","))
        return any(t < bottom and b > top and le < right and r > left for t, le, b, r in self._ground[file])

    def place(self, record: Record) -> Literal["held-out", "learned", "new"]:
        """Where an image belongs; one that stands on both sides under other names counts as learned from, as does a
        window of a scene that shares a pixel with a learned one."""
        mark = _mark(record)
        if self._overlaps(mark):
            return "learned"
        if self.held_out.get(record.name) == mark:
            return "held-out"
        if self.learned.get(record.name) == mark or (mark and mark in self._marks[1]):
            return "learned"
        return "held-out" if mark and mark in self._marks[0] else "new"

    def write(self, run: Path) -> None:
        """Keep it in the run directory."""
        value = {"format": 1, "held_out": dict(self.held_out), "learned": dict(self.learned)}
        atomic_write(run / FILE, json.dumps(value).encode())


def divide(train: Dataset, held_out: Dataset | None) -> Division:
    """What is learned and what of the same data is held out (None: nothing)."""
    return Division(
        {r.name: _mark(r) for r in (held_out.records if held_out else ())}, {r.name: _mark(r) for r in train.records}
    )


def kept_in(model: str | os.PathLike[str]) -> Division | None:
    """The division that the run `model` keeps, or that the run of a model directory in it keeps; None without one."""
    place = Path(model)
    real = place.resolve()
    runs = (place, real.parent.parent, (place / "best").resolve().parent.parent)
    file = next((run / FILE for run in runs if (run / FILE).is_file()), None)
    if file is None:
        return None
    value = read_json(file)
    try:
        if value["format"] != 1:
            raise ValueError(f"format {value['format']!r}")
        parts = [{str(k): str(v) for k, v in value[key].items()} for key in ("held_out", "learned")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{printable(file)} is not what train wrote ({printable(error)}); remove it.") from error
    return Division(*parts)


def part(dataset: Dataset, kept: Division | None, split: str) -> Dataset:
    """The images of `dataset` that the run held out ("held-out") or learned from ("train")."""
    if kept is None:
        raise UsageError(f"This model has no list of the images it held out, so no {split!r}; use --split all.")
    wanted = "learned" if split == "train" else split
    records = [r for r in dataset.records if kept.place(r) == wanted]
    if not records:
        did = "learned from" if wanted == "learned" else "held out"
        raise DataError(
            f"None of the {len(dataset)} images of {printable(dataset.root)} was {did} by this run; use --split all."
        )
    return replace(dataset, records=records, split=split)


def not_learned(dataset: Dataset, kept: Division) -> Dataset:
    """The images of a data set without a val split that can be measured honestly, and a note that says which they are:
    those the run held out; of other data all. `DataError` where every image was learned from."""
    places = [kept.place(r) for r in dataset.records]
    count = {place: places.count(place) for place in ("held-out", "learned", "new")}
    where = printable(dataset.root)
    if not count["learned"]:
        note = f"None of the {len(dataset)} images of {where} was learned from: all are measured."
        return replace(dataset, split=dataset.split or "all", notes=(*dataset.notes, note))
    wanted = "held-out" if count["held-out"] else "new"
    if not count[wanted]:
        raise DataError(
            f"All {len(dataset)} images of {where} were learned from, so their score would say nothing of others; "
            "give images that were not, or measure these all the same with --split train."
        )
    records = [r for r, place in zip(dataset.records, places, strict=True) if place == wanted]
    was = "held out by the run" if wanted == "held-out" else "new since the run"
    note = (
        f"{where} has no val split: measured are the {len(records)} images {was}, not the {count['learned']} learned "
        "from"
    )
    if wanted == "held-out" and count["new"]:
        note += f" and not {count['new']} that were added since"
    note += "; --split all measures all."
    return replace(dataset, records=records, split=wanted, notes=(*dataset.notes, note))


def _mark(record: Record) -> str:
    """What tells the image's files from others: 16 digits of a sha256 over their sizes and parts of their content, and
    @top,left,bottom,right of a window of them; empty where there are no files to read."""
    if not record.inputs:
        return ""
    digest = hashlib.sha256()
    for modality, file in sorted(record.inputs.items()):
        try:
            with os.fdopen(open_regular(file), "rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                digest.update(repr((modality, size)).encode())
                for start in dict.fromkeys((0, max(0, size // 2 - _WINDOW // 2), max(0, size - _WINDOW))):
                    opened.seek(start)
                    digest.update(opened.read(_WINDOW))
        except (OSError, FullyconvError):
            return ""
    window = "" if record.window is None else "@" + ",".join(map(str, record.window))
    return digest.hexdigest()[:16] + window
