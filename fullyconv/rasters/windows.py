"""What an image of any size is to us: facts known without reading, and windows that are read one at a time.

A scene is cut into blocks on a grid that belongs to the ground, not to the file: where a file says where it lies, the
grid starts at the origin of its coordinates, so that two cuts of one scene have the same cells and the same blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import InternalError

__all__ = ["Block", "BlockGrid", "RasterProfile", "RasterSource", "Span", "Window", "nodata_pixels"]


@final
@dataclass(frozen=True)
class Window:
    """Rows top..bottom and columns left..right of a raster, half-open, inside it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


@final
@dataclass(frozen=True)
class RasterProfile:
    """What a raster says of itself before a pixel is read.

    size: (H, W). bands: measured ones, alpha not counted. transform: a, b, c, d, e, f of x = a column + b row + c,
    y = d column + e row + f (map units); None without georeference. crs: WKT, "" for none. tags: the file's own.
    micrometres: along a pixel, of what was seen through a microscope; 0 where it is not known.
    """

    size: tuple[int, int]
    bands: int
    dtype: np.dtype[Any]
    transform: tuple[float, float, float, float, float, float] | None = None
    crs: str = ""
    nodata: float | None = None
    cloud_optimised: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    control_points: Any = None  # rasterio's (points, crs) and RPCs, handed through
    rpcs: Any = None
    micrometres: float = 0.0

    @property
    def origin(self) -> tuple[int, int]:
        """(rows, columns) from the origin of the map's pixels to this raster's first; (0, 0) where it has no such place
        (no georeference, or a rotated one).

        Cuts of one scene share what is left over of a pixel; 0.31 puts the step of `floor` far from the common
        fractions 0, 1/4, 1/3 and 1/2, so that rounding in the last digits moves none of them by a pixel.
        """
        if self.transform is None or self.transform[1] or self.transform[3]:
            return 0, 0
        a, _, c, _, e, f = self.transform
        return math.floor(f / e + 0.31), math.floor(c / a + 0.31)

    def place(self, window: Window) -> tuple[float, float, float, float, float, float]:
        """The transform of a window of a raster that has one."""
        if self.transform is None:
            raise InternalError("A raster without a place has no window with one.")
        a, b, c, d, e, f = self.transform
        return a, b, a * window.left + b * window.top + c, d, e, d * window.left + e * window.top + f

    @property
    def rotated(self) -> bool:
        return self.transform is not None and bool(self.transform[1] or self.transform[3])


class RasterSource(Protocol):
    """A raster that is read by windows; `profile` is known without reading. Not for several threads at once."""

    @property
    def profile(self) -> RasterProfile: ...
    @property
    def note(self) -> str:
        """What a user should know of how it is read; "" for nothing."""
        ...

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """(values H W C as stored, which pixels H W were measured; None for all)."""
        ...

    def identity(self) -> str:
        """sha256 (hex) of all that was stored: two sources with one identity give the same values."""
        ...

    def close(self) -> None: ...


@final
@dataclass(frozen=True)
class Span:
    """One axis of a block, in pixels of the raster: `start:stop` is read (`start` may lie before the raster, where the
    grid begins), of it `keep_from:keep_to` is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


@final
@dataclass(frozen=True)
class Block:
    row: int
    column: int
    rows: Span
    columns: Span

    @property
    def core(self) -> Window:
        return Window(self.rows.keep_from, self.columns.keep_from, self.rows.keep_to, self.columns.keep_to)


@final
@dataclass(frozen=True)
class BlockGrid:
    """The blocks of a raster. size: (H, W); core: pixels of a block, a multiple of `align`; context: pixels read round
    it; origin: `RasterProfile.origin`."""

    size: tuple[int, int]
    core: int
    align: int
    context: int
    origin: tuple[int, int] = (0, 0)

    @property
    def begin(self) -> tuple[int, int]:
        """(row, column), 0 or less, of the first cell of the grid that reaches the raster."""
        return -(self.origin[0] % self.align), -(self.origin[1] % self.align)

    def spans(self, axis: int) -> list[Span]:
        """The blocks along an axis (0: rows)."""
        length, origin, begin = self.size[axis], self.origin[axis], self.begin[axis]
        edges = [0, *range(self.core - origin % self.core, length, self.core), length]
        return [
            Span(max(begin, self._down(a, begin) - self.context), min(length, b + self.context), a, b)
            for a, b in pairwise(edges)
        ]

    def _down(self, position: int, begin: int) -> int:
        """The last cell's edge at or before `position`."""
        return (position - begin) // self.align * self.align + begin

    def blocks(self) -> Iterator[Block]:
        """All blocks, row by row."""
        columns = self.spans(1)
        for i, rows in enumerate(self.spans(0)):
            for j, span in enumerate(columns):
                yield Block(i, j, rows, span)

    def __len__(self) -> int:
        return len(self.spans(0)) * len(self.spans(1))


def nodata_pixels(stored: NDArray[np.number], nodata: float | None) -> NDArray[np.bool_] | None:
    """Pixels H W that are NaN, infinite, or the declared nodata: in all bands of whole numbers without a sign, as GDAL
    means it for colours, in any band of others. As `images.declared_invalid`."""
    bad: NDArray[np.bool_] | None = None
    if stored.dtype.kind == "f":
        bad = ~np.isfinite(stored).all(axis=-1)
    if nodata is not None and nodata == nodata:
        if stored.dtype.kind == "f":
            same = np.isclose(stored, nodata, rtol=1e-6, atol=0)
        else:
            same = stored == nodata
        found = same.all(axis=-1) if stored.dtype.kind == "u" else same.any(axis=-1)
        bad = found if bad is None else bad | found
    return bad
