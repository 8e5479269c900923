"""One image's layers: what is painted lies over a base (what was accepted, existing labels, or the proposal).

Planes hold codes: 0 nothing, k + 1 class k, the type's largest number "ignored". Edits are a list; undo takes the last
one off it, so the painting is a function of the list, and `replayed` is its slow definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError
from fullyconv.labelling.edits import unpacked_runs
from fullyconv.labelling.strokes import Cover, brush, polygon
from fullyconv.regions import region_runs
from fullyconv.taxonomy import Taxonomy

__all__ = ["Box", "Canvas", "Codes", "cover_of", "replayed", "standing"]

Plane = NDArray[Any]
Record = Mapping[str, Any]
DRAWN = ("brush", "polygon", "region")


class Box(NamedTuple):
    """Half-open, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    def meets(self, other: Box) -> bool:
        return (
            self.top < other.bottom and other.top < self.bottom and self.left < other.right and other.left < self.right
        )


@final
@dataclass(frozen=True)
class Codes:
    """How ids of a taxonomy stand in planes."""

    taxonomy: Taxonomy

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if len(self.taxonomy) <= 253 else np.uint16

    @property
    def ignored(self) -> int:
        return int(np.iinfo(self.dtype).max)

    def of(self, paint: int | str) -> int:
        """The code of what a stroke paints."""
        if paint == "erase":
            return 0
        return self.ignored if paint == "ignore" else int(paint) + 1

    def encode(self, labels: Plane) -> Plane:
        """ids H W -> codes; ids of no class are ignored."""
        return np.where(labels < len(self.taxonomy), labels.astype(np.int64) + 1, self.ignored).astype(self.dtype)

    def decode(self, codes: Plane) -> Plane:
        """codes H W -> ids; nothing and ignored are the taxonomy's ignore value."""
        kind = np.uint8 if self.taxonomy.ignore <= 255 else np.uint16
        known = (codes > 0) & (codes < self.ignored)
        return np.where(known, codes.astype(np.int64) - 1, self.taxonomy.ignore).astype(kind)


def cover_of(record: Record, size: tuple[int, int]) -> Cover:
    """The pixels that an edit covers, none for one that draws nothing."""
    if record["op"] == "brush":
        return brush(record["points"], record["diameter"], size)
    if record["op"] == "polygon":
        return polygon(record["points"], size)
    if record["op"] != "region":
        return Cover(0, 0, np.zeros((0, 0), bool))
    runs = unpacked_runs(record["runs"])
    row, first, end = runs.T
    after = (row[1:] > row[:-1]) | ((row[1:] == row[:-1]) & (first[1:] >= end[:-1]))  # as `region_runs` gives them
    if not len(runs) or runs.min() < 0 or row.max() >= size[0] or end.max() > size[1] or not (
        after.all() and (first < end).all()
    ):  # fmt: skip
        raise DataError("The journal holds a region that lies outside of its image; the image was exchanged.")
    top, left = int(runs[0, 0]), int(runs[:, 1].min())
    steps = np.zeros((int(runs[-1, 0]) + 1 - top, int(runs[:, 2].max()) + 1 - left), np.int8)
    steps[runs[:, 0] - top, runs[:, 1] - left] = 1
    steps[runs[:, 0] - top, runs[:, 2] - left] -= 1
    return Cover(top, left, np.cumsum(steps, 1, dtype=np.int8)[:, :-1].astype(bool))


def standing(records: Iterable[Record]) -> list[Any]:
    """The edits that were not undone; a new one forgets what was."""
    kept: list[Any] = []
    undone: list[Any] = []
    for record in records:
        if record["op"] == "undo":
            undone += [kept.pop()] if kept else []
        elif record["op"] == "redo":
            kept += [undone.pop()] if undone else []
        else:
            kept.append(record)
            undone.clear()
    return kept


def replayed(records: Iterable[Record], size: tuple[int, int], codes: Codes) -> Plane:
    """The painting that a list of edits makes: the definition of what `Canvas` keeps."""
    plane = np.zeros(size, codes.dtype)
    for record in standing(records):
        if record["op"] in DRAWN:
            cover = cover_of(record, size)
            plane[cover.part][cover.inside] = codes.of(record["paint"])
    return plane


@final
class Canvas:
    """The edits of one image of `size` H W; `painted` is what they make, `accepted` the sha256 of the base that was
    accepted last ("" for none)."""

    def __init__(self, size: tuple[int, int], codes: Codes, records: Iterable[Record] = ()) -> None:
        self.size, self.codes = size, codes
        self.painted: Plane = np.zeros(size, codes.dtype)
        self.kept: list[tuple[Record, Box]] = []
        self.undone: list[tuple[Record, Box]] = []
        for record in records:
            self.apply(record)

    def apply(self, record: Record) -> Box:
        """Take an edit over; the box in which something may have changed."""
        op = record["op"]
        if op == "undo":
            if not self.kept:
                return Box(0, 0, 0, 0)
            entry = self.kept.pop()
            self.undone.append(entry)
            self._repaint(entry[1])
            return self._whole if entry[0]["op"] not in DRAWN else entry[1]
        if op == "redo":
            if not self.undone:
                return Box(0, 0, 0, 0)
            entry = self.undone.pop()
            self.kept.append(entry)
            self._paint(entry[0])
            return self._whole if entry[0]["op"] not in DRAWN else entry[1]
        self.undone.clear()
        box = self._paint(record)
        self.kept.append((record, box))
        return self._whole if op not in DRAWN else box

    @property
    def _whole(self) -> Box:
        return Box(0, 0, *self.size)

    def _paint(self, record: Record) -> Box:
        if record["op"] not in DRAWN:
            return Box(0, 0, 0, 0)
        cover = cover_of(record, self.size)
        self.painted[cover.part][cover.inside] = self.codes.of(record["paint"])
        height, width = cover.inside.shape
        return Box(cover.top, cover.left, cover.top + height, cover.left + width)

    def _repaint(self, box: Box) -> None:
        """The painting inside a box anew, of the edits that touch it, the last first: until all is known."""
        part = np.zeros((max(0, box.bottom - box.top), max(0, box.right - box.left)), self.codes.dtype)
        left_over = np.ones(part.shape, bool)
        for record, other in reversed(self.kept):
            if not left_over.any():
                break
            if box.meets(other):
                cover = cover_of(record, self.size)
                top, left = max(box.top, other.top), max(box.left, other.left)
                bottom, right = min(box.bottom, other.bottom), min(box.right, other.right)
                here = cover.inside[top - other.top : bottom - other.top, left - other.left : right - other.left]
                there = part[top - box.top : bottom - box.top, left - box.left : right - box.left]
                open_ = left_over[top - box.top : bottom - box.top, left - box.left : right - box.left]
                there[here & open_] = self.codes.of(record["paint"])
                open_ &= ~here
        self.painted[box.top : box.bottom, box.left : box.right] = part

    @property
    def accepted(self) -> str:
        last = next((r for r, _ in reversed(self.kept) if r["op"] in ("accept", "reopen")), None)
        return str(last["base"]) if last is not None and last["op"] == "accept" else ""

    @property
    def touched(self) -> bool:
        return bool(self.kept)

    def shown(self, base: Plane | None, box: Box | None = None) -> Plane:
        """Codes as they are seen: the painting over `base` H W."""
        top, left, bottom, right = box or self._whole
        painted = self.painted[top:bottom, left:right]
        return painted if base is None else np.where(painted > 0, painted, base[top:bottom, left:right])

    def region(self, base: Plane | None, x: int, y: int) -> NDArray[np.int64]:
        """The runs of the region that is shown at a pixel."""
        shown = self.shown(base)
        return region_runs(shown == shown[y, x], y, x)
