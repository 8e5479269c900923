"""Scaling and cutting in one step, as tables: which stored lines make each line of the result, and with what weight.

The arithmetic is Pillow's bilinear resize with antialiasing to the last bit (22-bit weights, across first and then
down, each rounded to bytes), without the pixels that the crop throws away and the mirror after it.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["ScaledAxis", "as_values", "can_scale", "nearest_index", "scaled_axis", "scaled_image", "scaled_label"]


@final
@dataclass(frozen=True)
class ScaledAxis:
    """One direction: the result has `length` lines, of which those from `start` on show the image.

    first: the stored line that each of these begins with, int64; weights: n x taps int32, its share and that of the
    lines after it, as 22-bit fractions; nearest: the stored line that holds its centre, for labels.
    """

    length: int
    start: int
    first: NDArray[np.int64]
    weights: NDArray[np.int32]
    nearest: NDArray[np.int64]


def scaled_axis(size: int, scaled: int, corner: int, length: int, mirrored: bool) -> ScaledAxis:
    """`size` stored lines scaled to `scaled`, of which the `length` from `corner` on (negative: padding) are seen."""
    import fullyconv.data.pipeline.scaling_kernels as scaling_kernels

    at = np.arange(max(corner, 0), min(corner + length, scaled))
    start = max(-corner, 0)
    if mirrored:
        at, start = at[::-1].copy(), length - start - len(at)
    first, weights = scaling_kernels.shares(at, size / scaled, size)
    return ScaledAxis(length, start, first, weights, nearest_index(at, scaled, size))


def nearest_index(at: NDArray[np.int64], scaled: int, size: int) -> NDArray[np.int64]:
    """For each scaled line `at` the stored one whose area holds its centre."""
    return ((2 * at + 1) * size) // (2 * scaled)


@functools.cache
def can_scale() -> bool:
    """Whether the compiled way is there; without numba Pillow does the work."""
    return importlib.util.find_spec("numba") is not None


def scaled_image(image: NDArray[np.uint8], rows: ScaledAxis, columns: ScaledAxis, fill: ArrayLike) -> NDArray[np.uint8]:
    """What the axes show of `image` H W C uint8, and `fill` around it."""
    import fullyconv.data.pipeline.scaling_kernels as scaling_kernels

    out = _empty(rows, columns, fill, image)
    if len(rows.first) and len(columns.first):
        stored = np.ascontiguousarray(image)
        tables = (rows.first, rows.weights, columns.first, columns.weights)
        scaling_kernels.scale(stored, *tables, out, rows.start, columns.start)
    return out


def scaled_label(label: NDArray[np.integer], rows: ScaledAxis, columns: ScaledAxis, ignore: int) -> NDArray[Any]:
    """What the axes show of `label` H W, each pixel the nearest one's value, and `ignore` around it."""
    import fullyconv.data.pipeline.scaling_kernels as scaling_kernels

    out = _empty(rows, columns, ignore, label)
    scaling_kernels.take_cells(
        np.ascontiguousarray(label), rows.nearest, columns.nearest, out, rows.start, columns.start
    )
    return out


def as_values(fill: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
    """`fill`, one value or one a channel, as `dtype`: rounded and kept in range for integers."""
    values = np.asarray(fill)
    if np.issubdtype(dtype, np.integer):
        values = np.clip(np.round(values), 0, np.iinfo(dtype).max)
    return values.astype(dtype)


def _empty(rows: ScaledAxis, columns: ScaledAxis, fill: ArrayLike, like: NDArray[np.number]) -> NDArray[Any]:
    out = np.empty((rows.length, columns.length, *like.shape[2:]), like.dtype)
    if len(rows.first) < rows.length or len(columns.first) < columns.length:
        out[...] = as_values(fill, out.dtype)
    return out
