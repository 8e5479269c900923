"""The same labels in plain numpy, strip by strip: for machines without torch and without numba."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.interpolation.axes import Axis, Sampling

__all__ = ["label", "label_and_confidence", "upsample"]

Scores = NDArray[np.float32]
BUDGET = 1 << 19  # numbers of a strip: few enough for a processor's caches


def upsample(scores: Scores, sampling: Sampling, budget: int = BUDGET) -> Scores:
    """K h w -> full scores K H W, float32, in strips of about `budget` numbers."""
    full = np.empty((len(scores), *sampling.size), np.float32)
    for top, strip in _strips(scores, sampling, budget):
        full[:, top : top + strip.shape[1]] = strip
    return full


def label(scores: Scores, sampling: Sampling, dtype: type[np.integer], budget: int = BUDGET) -> NDArray[Any]:
    """The first class with the largest upsampled score: K h w -> H W of `dtype`."""
    labels = np.empty(sampling.size, dtype)
    for top, strip in _strips(scores, sampling, budget):
        labels[top : top + strip.shape[1]] = _best(strip, dtype)[0]
    return labels


def label_and_confidence(
    scores: Scores, sampling: Sampling, dtype: type[np.integer], budget: int = BUDGET
) -> tuple[NDArray[Any], Scores]:
    """That class and its softmax probability: H W of `dtype`, H W float32."""
    labels, confidence = np.empty(sampling.size, dtype), np.empty(sampling.size, np.float32)
    for top, strip in _strips(scores, sampling, budget):
        index, high = _best(strip, dtype)
        labels[top : top + len(index)] = index
        confidence[top : top + len(index)] = 1 / np.exp(strip - high).sum(0)
    return labels, confidence


def _best(strip: Scores, dtype: type[np.integer]) -> tuple[NDArray[Any], Scores]:
    """(labels, their scores). Class by class: numpy's argmax over the first axis is many times as slow. As torch's, it
    takes the first of equals, and a score that is no number before all others."""
    high, index = strip[0].copy(), np.zeros(strip.shape[1:], dtype)
    for k in range(1, len(strip)):
        wins = (strip[k] > high) | (np.isnan(strip[k]) & ~np.isnan(high))
        np.copyto(index, dtype(k), where=wins)
        np.copyto(high, strip[k], where=wins)
    return index, high


def _strips(scores: Scores, sampling: Sampling, budget: int) -> Iterator[tuple[int, Scores]]:
    """(first row, full scores K rows W) from the top on: the columns of a few rows of cells, then the rows between."""
    across = _weights(sampling.columns, sampling.border)
    down, cells = _reading(sampling.rows, sampling.border)
    height, width = sampling.size
    rows = max(1, budget // (len(scores) * width))
    for top in range(0, height, rows):
        taken = slice(top, min(top + rows, height))
        first, last = cells[taken].min(), cells[taken].max() + 1
        wide = scores[:, first:last] @ across.T
        upper, lower = (wide[:, cells[taken, side] - first] for side in (0, 1))
        upper *= down[taken, :1]
        lower *= down[taken, 1:]
        yield top, np.add(upper, lower, out=upper)


def _reading(axis: Axis, border: str) -> tuple[Scores, NDArray[np.int64]]:
    """(weights, cells), both pixels x 2: which two cells each pixel mixes how; zero beyond the map where it fades."""
    u = np.arange(axis.start, axis.start + axis.length)
    first = u // axis.stride
    t = ((u - first * axis.stride) + axis.shift) / axis.stride
    cells = np.stack((first, first + 1), 1)
    weights = np.stack((1 - t, t), 1)
    if border == "fade":
        weights *= (cells >= 0) & (cells < axis.cells)
    return weights.astype(np.float32), cells.clip(0, axis.cells - 1)


def _weights(axis: Axis, border: str) -> Scores:
    """Weights of every pixel on the coarse cells: length x cells."""
    weights, cells = _reading(axis, border)
    full = np.zeros((axis.length, axis.cells), np.float32)
    for side in (0, 1):
        full[np.arange(axis.length), cells[:, side]] += weights[:, side]
    return full
