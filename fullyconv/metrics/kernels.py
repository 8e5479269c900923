# mypy: disable-error-code="untyped-decorator"
"""Compiled counting. Four histograms side by side: neighbouring pixels are mostly equal, and adding to one counter
twice in a row waits for the first addition. Imported on first use only."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__ = ["count", "count_bytes"]

_jit: Any = numba.njit(nogil=True, cache=True)


@_jit
def count_bytes(truth: Any, guess: Any, width: Any) -> Any:
    """256 x width counts of two byte arrays; predictions of width - 1 and beyond share the last column."""
    table = np.zeros((4, 256 * width), np.int64)
    last = width - 1
    whole = truth.size // 4 * 4
    for i in range(0, whole, 4):
        for j in range(4):
            table[j, np.int64(truth[i + j]) * width + min(np.int64(guess[i + j]), last)] += 1
    for i in range(whole, truth.size):
        table[0, np.int64(truth[i]) * width + min(np.int64(guess[i]), last)] += 1
    return (table[0] + table[1] + table[2] + table[3]).reshape(256, width)


@_jit
def count(truth: Any, guess: Any, classes: Any, ignore: Any) -> Any:
    """(K + 1) x (K + 1) counts of two integer arrays without `ignore` labels; the last row and column gather the
    rest.
    """
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for i in range(truth.size):
        t, p = np.int64(truth[i]), np.int64(guess[i])
        if t != ignore:
            row = t if 0 <= t < classes else classes
            table[row, p if 0 <= p < classes else classes] += 1
    return table
