"""Where the pixels of an upsampled map sit on the coarse map: the one piece of algebra that every implementation
shares, with torch and without.

A transposed convolution of stride s with the bilinear kernel of width b = 2 s - s % 2, cropped from `offset`, reads
at pixel y the coarse position

    p(y) = (y + offset - (b - 1) / 2) / s

and mixes the coarse rows floor(p) and floor(p) + 1 with the weights 1 - t and t, t = p - floor(p). Whole offsets are
therefore exactly the transposed convolution; any other rational offset is the same line read between its taps. With
offset = s // 2 the positions are those of `interpolate(align_corners=False)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, final

from fullyconv.geometry import kernel_width

__all__ = ["Axis", "Border", "NotFinite", "Offset", "Sampling"]

Border = Literal["fade", "replicate"]
Offset = float | Fraction | tuple[float | Fraction, float | Fraction]  # of both axes, or of (rows, columns)


@final
class NotFinite(Exception):
    """A score is not a finite number and the implementation cannot tell what follows from it."""


@final
@dataclass(frozen=True)
class Axis:
    """One axis of an upsampling: `length` pixels read from `cells` coarse cells.

    Pixel y lies `phase(y)` of s steps into the interval that starts at coarse cell `cell(y)`; s phases repeat for
    ever, so the weights of all pixels are a table of s numbers.
    """

    length: int
    cells: int
    stride: int
    start: int  # floor(offset - (b - 1) / 2), in pixels
    shift: float  # the rest of it, in [0, 1)

    @property
    def first(self) -> int:
        """The coarse cell that the first pixel reads; below 0 outside the map."""
        return self.start // self.stride

    @property
    def last(self) -> int:
        """The coarse interval that the last pixel lies in (it reads this cell and the next)."""
        return (self.start + self.length - 1) // self.stride

    @property
    def lead(self) -> int:
        """Phase of the first pixel."""
        return self.start % self.stride

    def phases(self) -> list[float]:
        """Weight t of the second cell, for each of the s phases."""
        return [(r + self.shift) / self.stride for r in range(self.stride)]

    def span(self, top: int, bottom: int) -> int:
        """How many neighbouring cells the pixels [top, bottom) read."""
        return (self.start + bottom - 1) // self.stride - (self.start + top) // self.stride + 2


@final
@dataclass(frozen=True, eq=False)
class Sampling:
    """Both axes of an upsampling and its border rule; equal to itself alone, so that tables of them are quick."""

    rows: Axis
    columns: Axis
    stride: int
    offset: tuple[Fraction, Fraction]
    border: Border

    @classmethod
    def of(
        cls,
        coarse: tuple[int, int],
        size: tuple[int, int],
        stride: int,
        offset: tuple[Fraction, Fraction],
        border: Border,
    ) -> Sampling:
        """The sampling of an (H, W) map from an (h, w) one."""
        width = kernel_width(stride)
        axes = []
        for cells, length, begin in zip(coarse, size, offset, strict=True):
            base = begin - Fraction(width - 1, 2)
            axes.append(Axis(length, cells, stride, math.floor(base), float(base - math.floor(base))))
        return cls(axes[0], axes[1], stride, offset, border)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upsampled map."""
        return self.rows.length, self.columns.length
