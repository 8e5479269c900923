"""The matrices of Winograd's F(4x4, 3x3), by Toom and Cook's construction: polynomials at five points and infinity.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1; on the points, Barabasz
et al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks".
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

__all__ = ["PLACES", "POINTS", "TILE", "matrices"]

TILE, PLACES = 4, 36  # outputs a side, places in a tile
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity


@functools.cache
def matrices(points: tuple[float, ...] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """(A' 4 x 6, G 6 x 3, B' 6 x 6), float64, for five points and infinity (Toom and Cook's construction)."""
    a, g, b = (torch.zeros(n, m, dtype=torch.float64) for n, m in ((TILE, 6), (6, 3), (6, 6)))
    a[3, 5] = g[5, 2] = 1
    b[5] = torch.from_numpy(np.poly(points)[::-1].copy())
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, i] = torch.tensor([p**j for j in range(TILE)])
        g[i] = torch.tensor([p**j for j in range(3)]) / float(np.prod([p - q for q in others]))
        b[i, :5] = torch.from_numpy(np.poly(others)[::-1].copy())
    return a, g, b
