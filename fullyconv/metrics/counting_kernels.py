# mypy: disable-error-code="untyped-decorator"
"""Compiled counting. Two histograms side by side: neighbouring pixels are mostly equal, and adding to one counter twice
in a row waits for the first addition. Imported on first use only."""

from __future__ import annotations

from typing import Any

import numpy as np

from fullyconv.compiling import njit

__all__ = ["count", "count_bytes"]

_jit: Any = njit(nogil=True)


@_jit
def count_bytes(truth: Any, guess: Any, width: Any) -> Any:
    """256 x width counts of two byte arrays below 2^32 long; predictions of width - 1 and beyond share the last column.

    Eight pixels at a time: where all are alike in both, as inside regions, they are counted at once.
    """
    table, last = np.zeros((2, 256 * width), np.uint32), width - 1
    even, odd, whole = table[0], table[1], truth.size // 8 * 8
    truths, guesses = truth[:whole].view(np.uint64), guess[:whole].view(np.uint64)
    alike, byte = np.uint64(0x0101010101010101), np.uint64(255)
    for i in range(truths.size):
        t, g = truths[i], guesses[i]
        if t == (t & byte) * alike and g == (g & byte) * alike:
            even[np.int64(t & byte) * width + min(np.int64(g & byte), last)] += np.uint32(8)
        else:
            for j in range(8 * i, 8 * i + 8, 2):
                even[np.int64(truth[j]) * width + min(np.int64(guess[j]), last)] += np.uint32(1)
                odd[np.int64(truth[j + 1]) * width + min(np.int64(guess[j + 1]), last)] += np.uint32(1)
    for i in range(whole, truth.size):
        odd[np.int64(truth[i]) * width + min(np.int64(guess[i]), last)] += np.uint32(1)
    total = np.empty(256 * width, np.int64)
    for i in range(256 * width):
        total[i] = np.int64(even[i]) + np.int64(odd[i])
    return total.reshape(256, width)


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
