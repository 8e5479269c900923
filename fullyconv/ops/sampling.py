"""Where the pixels of an upsampled map sit on the coarse map: the one piece of algebra that every implementation
shares.

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

import torch
from torch import Tensor

__all__ = ["Axis", "Border", "NotFinite", "Sampling", "fold", "window"]

Border = Literal["fade", "replicate"]


@final
class NotFinite(Exception):
    """A score is not a finite number and the implementation cannot tell what follows from it; never leaves `ops`."""


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

    def matrix(self, top: int, bottom: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights of the pixels [top, bottom) on the window's cells they read: (bottom - top) x (intervals + 1).

        Column 0 is the coarse cell `(start + top) // stride`; the window holds the border's cells, so rows always sum
        to 1.
        """
        u = torch.arange(self.start + top, self.start + bottom, device=device)
        cell = torch.div(u, self.stride, rounding_mode="floor")
        t = ((u - cell * self.stride).to(dtype) + self.shift) / self.stride
        cell = cell - (self.start + top) // self.stride
        weights = torch.zeros(bottom - top, self.span(top, bottom), dtype=dtype, device=device)
        weights.scatter_(1, cell[:, None], (1 - t)[:, None])
        return weights.scatter_(1, cell[:, None] + 1, t[:, None])

    def weights(self, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Weights of every pixel on the coarse cells themselves, border rule applied: length x cells."""
        inner = self.matrix(0, self.length, dtype, device)
        cell = torch.arange(self.first, self.last + 2, device=device)
        if border == "fade":
            inner = inner * ((cell >= 0) & (cell < self.cells))
        outer = torch.zeros(self.length, self.cells, dtype=dtype, device=device)
        return outer.index_add_(1, cell.clamp(0, self.cells - 1), inner)

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
        width = 2 * stride - stride % 2
        axes = []
        for cells, length, begin in zip(coarse, size, offset, strict=True):
            base = begin - Fraction(width - 1, 2)
            axes.append(Axis(length, cells, stride, math.floor(base), float(base - math.floor(base))))
        return cls(axes[0], axes[1], stride, offset, border)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the upsampled map."""
        return self.rows.length, self.columns.length


def window(scores: Tensor, sampling: Sampling, columns: int = 0) -> Tensor:
    """The coarse cells that the sampling reads, border rule applied: N K (intervals + 1) (intervals + 1 + spare).

    Inside this window every pixel is a convex combination of four neighbours; only outside the coarse map do the two
    rules differ: "fade" puts zeros there, "replicate" the nearest cell. `columns` is how many spare ones to add.
    """
    if not all(_meets(axis) for axis in (sampling.rows, sampling.columns)):
        return _beyond(scores, sampling, columns)
    pads: list[int] = []
    for dim, axis, spare in ((3, sampling.columns, columns), (2, sampling.rows, 0)):
        low, high = _inside(axis)
        scores = scores.narrow(dim, low, high - low)
        pads += [low - axis.first, axis.last + 2 - high + spare]
    mode = "replicate" if sampling.border == "replicate" else "constant"
    return torch.nn.functional.pad(scores, pads, mode=mode) if any(pads) else scores


def _beyond(scores: Tensor, sampling: Sampling, columns: int) -> Tensor:
    """A window that misses the coarse map altogether."""
    for dim, axis, spare in ((2, sampling.rows, 0), (3, sampling.columns, columns)):
        index = torch.arange(axis.first, axis.last + 2 + spare, device=scores.device)
        scores = scores.index_select(dim, index.clamp(0, axis.cells - 1))
    if sampling.border == "replicate":
        return scores
    return scores.masked_fill(torch.ones((), dtype=torch.bool, device=scores.device), 0)  # zero, yet differentiable


def _inside(axis: Axis) -> tuple[int, int]:
    """The part of the window that lies on the coarse map, as a range of its cells; empty (0 long) outside."""
    low = min(max(axis.first, 0), axis.cells)
    return low, max(min(axis.last + 2, axis.cells), low)


def _meets(axis: Axis) -> bool:
    low, high = _inside(axis)
    return low < high


def fold(gradient: Tensor, sampling: Sampling) -> Tensor:
    """The adjoint of `window`: a gradient on the window's cells -> on the coarse map, N K h w."""
    give = _unreplicated if sampling.border == "replicate" else _unfaded
    return give(give(gradient, 3, sampling.columns), 2, sampling.rows)


def _unreplicated(gradient: Tensor, dim: int, axis: Axis) -> Tensor:
    index = torch.arange(axis.first, axis.last + 2, device=gradient.device).clamp(0, axis.cells - 1)
    shape = list(gradient.shape)
    shape[dim] = axis.cells
    return gradient.new_zeros(shape).index_add_(dim, index, gradient)


def _unfaded(gradient: Tensor, dim: int, axis: Axis) -> Tensor:
    low, high = _inside(axis)
    shape = list(gradient.shape)
    shape[dim] = axis.cells
    whole = gradient.new_zeros(shape)
    whole.narrow(dim, low, high - low).copy_(gradient.narrow(dim, max(low - axis.first, 0), high - low))
    return whole
