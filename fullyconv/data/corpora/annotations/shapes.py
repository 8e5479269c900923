"""Shapes of foreign files, checked once when a data set is opened and painted as often as it is read.

A shape that cannot be painted is left out and counted with the name of who bears it (`Unused`); the others are small
values with `patch(size)`. `draw_shapes` is the `draw` of a `Painter` whose entries are `Entry`s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, SupportsFloat, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.annotations import raster
from fullyconv.data.corpora.annotations.paint import MOST_PAINTED, within_measure
from fullyconv.data.corpora.annotations.raster import BadShape, Patch, Size
from fullyconv.errors import DataError, printable

__all__ = ["Entry", "Pen", "Rings", "Runs", "Stencil", "Strokes", "Unused", "draw_shapes", "number", "ring", "rings"]


class Shape(Protocol):
    """What covers pixels of an image."""

    def patch(self, size: Size) -> Patch: ...


@final
class Unused:
    """What a file holds and is not used, counted by why, with the first names of each."""

    def __init__(self) -> None:
        self._why: dict[str, list[str]] = {}
        self._count: dict[str, int] = {}

    def add(self, why: str, who: object, count: int = 1) -> None:
        """`why` follows a number: "annotations of unknown images"."""
        self._count[why] = self._count.get(why, 0) + count
        named = self._why.setdefault(why, [])
        if len(named) < 3:
            named.append(short(who))

    def count(self, why: str) -> int:
        return self._count.get(why, 0)

    def __bool__(self) -> bool:
        return bool(self._count)

    def notes(self) -> tuple[str, ...]:
        """One sentence for each reason."""
        return tuple(
            f"left out: {n} {why} ({', '.join(self._why[why])}{', ...' if n > len(self._why[why]) else ''})."
            for why, n in self._count.items()
        )


def short(who: object) -> str:
    """A foreign value for a sentence, printable and not long. Numbers of thousands of digits have no decimal form."""
    if isinstance(who, int) and who.bit_length() > 200:
        return "a number of over 60 digits"
    if isinstance(who, list | dict):
        return f"a {type(who).__name__} of {len(who)}"
    text = printable(str(who)[:61])
    return text if len(text) <= 60 else f"{text[:57]}..."


def number(value: object, what: str) -> float:
    """A finite number (XML writes it as text), else BadShape."""
    try:
        found = float(value) if isinstance(value, str | SupportsFloat) and not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise BadShape(f"whose {what} is no number")
    return found


def ring(points: object, size: Size) -> NDArray[np.float64]:
    """N x 2 corners (x y) of a polygon that covers something of an image of `size`, else BadShape."""
    try:
        flat = np.asarray(points, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadShape("with points that are no numbers") from error
    if len(flat) < 6 or len(flat) % 2:
        raise BadShape("of fewer than 3 points" if len(flat) < 6 else "with half a point")
    xy = flat.reshape(-1, 2)
    (left, top), (right, bottom) = xy.min(0).tolist(), xy.max(0).tolist()  # NaN if there is one
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise BadShape("with points that are no finite numbers")
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        raise BadShape("outside the image")
    far = 2.0**26
    flat_one = right == left or bottom == top
    if flat_one or (len(xy) < 5 and _area(np.clip(xy, -far, far) - np.clip((left, top), -far, far)) == 0):
        raise BadShape("without an area")
    raster.check_outlines([xy], size)
    return xy


def _area(xy: NDArray[np.float64]) -> float:
    """Twice the signed area (the shoelace formula)."""
    corners: list[list[float]] = xy.tolist()
    return math.fsum(x * v - y * u for (x, y), (u, v) in zip(corners, [*corners[1:], corners[0]], strict=True))


@final
@dataclass(frozen=True)
class Rings:
    """The union of polygons, each filled by COCO's rule."""

    outlines: tuple[NDArray[np.float64], ...]

    def patch(self, size: Size) -> Patch:
        return raster.coco_union(self.outlines, size)


def rings(points: object, size: Size) -> Rings:
    """One polygon as a shape, or BadShape."""
    return Rings((ring(points, size),))


@final
@dataclass(frozen=True)
class Runs:
    """Run lengths that fill the box (top, left, height, width), along columns (COCO) or rows (CVAT)."""

    counts: NDArray[np.int64]
    box: tuple[int, int, int, int]
    columns: bool

    def patch(self, size: Size) -> Patch:
        top, left, height, width = self.box
        inner = raster.counts_patch(self.counts, (height, width), columns=self.columns)
        rows, columns = max(0, size[0] - top - inner.top), max(0, size[1] - left - inner.left)
        return Patch(top + inner.top, left + inner.left, inner.covered[:rows, :columns])


@final
@dataclass(frozen=True)
class Pen:
    """A shape that Pillow draws, as labelme does."""

    kind: str
    points: NDArray[np.float64]
    width: int

    def patch(self, size: Size) -> Patch:
        return raster.draw_patch(self.kind, self.points, size, self.width)


@final
@dataclass(frozen=True)
class Stencil:
    """A small image laid on a large one at (top, left): what is not 0, or not transparent, is covered."""

    data: bytes
    top: int
    left: int

    def patch(self, size: Size) -> Patch:
        bands = images.read_image(self.data, mode="bands")
        stencil = (bands[..., -1] if bands.shape[2] in (2, 4) else bands.max(-1)) > 0
        rows, cols = min(stencil.shape[0], size[0] - self.top), min(stencil.shape[1], size[1] - self.left)
        return Patch(self.top, self.left, stencil[:rows, :cols])


@final
@dataclass(frozen=True)
class Strokes:
    """Label Studio's brush, for an image of the stated size."""

    data: bytes
    stated: Size

    def patch(self, size: Size) -> Patch:
        if size != self.stated:
            raise DataError(
                f"A brush region is for {self.stated[0]}x{self.stated[1]} (HxW), its image is {size[0]}x{size[1]}; "
                "put the image there that was labelled."
            )
        return raster.counts_patch(raster.label_studio_counts(self.data, size), size, columns=False)


@final
@dataclass(frozen=True)
class Entry:
    """An image's shapes in the order in which they are painted (`by_area`: large ones first). size: H W, or the
    image whose size it is."""

    size: Size | Path
    shapes: Sequence[tuple[int, Shape]] = field(default_factory=list)  # class id or IGNORED
    by_area: bool = False


def draw_shapes(
    entry: Entry, ids: Mapping[str, int], most: int = MOST_PAINTED
) -> tuple[Size, Iterator[tuple[int, Patch]]]:
    """What a `Painter` draws; one patch is alive at a time, but for those that are kept to be sorted: of at most `most`
    pixels, as `within_measure` counts them."""
    size = images.image_size(entry.size) if isinstance(entry.size, Path) else entry.size
    return size, _by_area(entry.shapes, size, most) if entry.by_area else ((k, s.patch(size)) for k, s in entry.shapes)


_KEPT = 1 << 27  # pixels of patches that are kept while their areas are compared


def _by_area(shapes: Sequence[tuple[int, Shape]], size: Size, most: int) -> Iterator[tuple[int, Patch]]:
    """Large ones first; equal ones in their order. Patches that are too many to be kept are worked out again."""
    areas: list[int] = []
    kept: list[Patch | None] = []
    held = 0
    for _, patch in within_measure(size, ((k, shape.patch(size)) for k, shape in shapes), most):
        areas.append(int(np.count_nonzero(patch.covered)))
        held += patch.covered.size
        kept.append(patch if held <= _KEPT else None)
    for i in sorted(range(len(shapes)), key=lambda i: -areas[i]):
        again = kept[i]
        yield shapes[i][0], shapes[i][1].patch(size) if again is None else again
