"""What an upsampling reads, as tensors: weights of its pixels, and the window of cells with the border rule applied."""

from __future__ import annotations

import torch
from torch import Tensor

from fullyconv.interpolation.axes import Axis, Border, NotFinite, Offset, Sampling

__all__ = ["Axis", "Border", "NotFinite", "Offset", "Sampling", "coarse_window", "edge_weights", "fold", "matrix"]


def matrix(axis: Axis, top: int, bottom: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights of the pixels [top, bottom) on the window's cells they read: (bottom - top) x (intervals + 1).

    Column 0 is the coarse cell `(start + top) // stride`; the window holds the border's cells, so rows always sum
    to 1.
    """
    u = torch.arange(axis.start + top, axis.start + bottom, device=device)
    cell = torch.div(u, axis.stride, rounding_mode="floor")
    t = ((u - cell * axis.stride).to(dtype) + axis.shift) / axis.stride
    cell = cell - (axis.start + top) // axis.stride
    weights = torch.zeros(bottom - top, axis.span(top, bottom), dtype=dtype, device=device)
    weights.scatter_(1, cell[:, None], (1 - t)[:, None])
    return weights.scatter_(1, cell[:, None] + 1, t[:, None])


def edge_weights(axis: Axis, border: Border, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Weights of every pixel on the coarse cells themselves, border rule applied: length x cells."""
    inner = matrix(axis, 0, axis.length, dtype, device)
    cell = torch.arange(axis.first, axis.last + 2, device=device)
    if border == "fade":
        inner = inner * ((cell >= 0) & (cell < axis.cells))
    outer = torch.zeros(axis.length, axis.cells, dtype=dtype, device=device)
    return outer.index_add_(1, cell.clamp(0, axis.cells - 1), inner)


def coarse_window(scores: Tensor, sampling: Sampling, columns: int = 0) -> Tensor:
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
    """The adjoint of `coarse_window`: a gradient on the window's cells -> on the coarse map, N K h w."""
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
