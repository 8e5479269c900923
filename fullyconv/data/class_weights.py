"""Weights that make rare classes count: median frequency balancing."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["median_frequency_weights"]


def median_frequency_weights(counts: Iterable[NDArray[np.integer]], absent: float = 0.0) -> NDArray[np.float64]:
    """Weights by class, float64 K, from the pixels of each class in each label map (K each, taken one at a time).

    w_k = median(f) / f_k, where f_k is the pixels of class k over all labelled pixels of the maps in which it occurs;
    a class that never occurs weighs `absent`. Source: Eigen and Fergus 2015, section 6.3.2, as used for SegNet.
    """
    pixels: NDArray[np.float64] = np.zeros(0)
    area: NDArray[np.float64] = np.zeros(0)
    for found in counts:
        if not len(pixels):
            pixels, area = np.zeros(len(found)), np.zeros(len(found))
        pixels += found
        area += (found > 0) * found.sum()
    frequency = np.divide(pixels, area, out=np.zeros_like(pixels), where=area > 0)
    there = frequency > 0
    median = np.median(frequency[there]) if there.any() else 0.0
    weights: NDArray[np.float64] = np.divide(median, frequency, out=np.full_like(frequency, absent), where=there)
    return weights
