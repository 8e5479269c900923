"""Regions of a label map: connected pixels of one value, their boxes and sizes, and the band along their borders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["border_band", "box", "components"]


def components(labels: NDArray[Any]) -> tuple[NDArray[np.int64], int]:
    """labels H W -> (region of every pixel H W, 0..count-1 in reading order, count). Regions are 4-connected.

    Rows are cut into runs of one value; runs that touch vertically are joined by hooking every run to the smallest
    neighbouring root and halving the paths until nothing changes (Shiloach and Vishkin, 1982).
    """
    height, width = labels.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    run = (np.cumsum(starts) - 1).reshape(height, width)
    # Two runs touch along one stretch of columns: its first is where one of them starts.
    touching = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    pairs = np.stack([run[:-1][touching], run[1:][touching]], axis=1)
    root = np.arange(int(run[-1, -1]) + 1)
    while True:
        a, b = root[pairs[:, 0]], root[pairs[:, 1]]
        apart = a != b
        if not apart.any():
            break
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (root[root] != root).any():
            root = root[root]
    names, number = np.unique(root, return_inverse=True)
    return number[run], len(names)


def box(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Half-open top, left, bottom, right of the True pixels (at least one)."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def border_band(labels: NDArray[Any], radius: int) -> NDArray[np.bool_]:
    """Pixels whose (2 radius + 1)-square holds more than one label value: H W bool."""
    height, width = labels.shape
    changes = np.zeros((height, width), np.int32)
    # A pixel is marked where it differs from the next one right or below, both sides of the step.
    right, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    changes[:, 1:] |= right
    changes[:, :-1] |= right
    changes[1:] |= below
    changes[:-1] |= below
    grown = radius - 1  # the pixels on both sides of a step are at distance 1 already
    total = np.pad(changes, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    top, bottom = _window(height, grown)
    left, right_ = _window(width, grown)
    inside = total[bottom][:, right_] - total[top][:, right_] - total[bottom][:, left] + total[top][:, left]
    return np.asarray(inside > 0)


def _window(size: int, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    at = np.arange(size)
    return np.maximum(at - radius, 0), np.minimum(at + radius + 1, size)
