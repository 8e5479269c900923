# mypy: disable-error-code="untyped-decorator"
"""Compiled: scaling bytes and taking labels from the nearest pixel. Imported on first use only."""

from __future__ import annotations

from typing import Any

import numpy as np

from fullyconv.compiling import njit

__all__ = ["scale", "shares", "take_cells"]

_BITS = 22  # of the weights' fraction, as in Pillow: a byte and its weight fill 30
_HALF = 1 << (_BITS - 1)
_jit: Any = njit(nogil=True)


@_jit
def shares(at: Any, step: Any, size: Any) -> Any:
    """For each scaled line `at`, `step` stored lines wide: (the first stored line it is made of, n; the weights of
    that and the following ones, n x taps int32). Pillow's `precompute_coeffs` for a triangle, rounded as there.
    """
    reach, n = max(step, 1.0), len(at)
    low, high = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        centre = (at[i] + 0.5) * step
        low[i], high[i] = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), size)
    taps = min(max(2, (high - low).max()), size)
    weights, share = np.zeros((n, taps), np.int32), np.empty(taps)
    for i in range(n):
        total, centre = 0.0, (at[i] + 0.5) * step
        for line in range(low[i], high[i]):
            share[line - low[i]] = max(1 - abs((line - centre + 0.5) * (1 / reach)), 0.0)
            total += share[line - low[i]]
        first = min(low[i], size - taps)
        for line in range(low[i], high[i]):
            weights[i, line - first] = int(0.5 + share[line - low[i]] / total * (1 << _BITS))
        low[i] = first
    return low, weights


def _across_of(taps: int) -> Any:
    """Lines of RGB pixels; the loops over taps and channels are unrolled, which makes it four times as fast."""

    @_jit
    def across(lines: Any, first: Any, weights: Any, out: Any) -> None:
        for y in range(len(out)):
            for c in range(len(first)):
                some, weight = lines[y, 3 * first[c] : 3 * (first[c] + taps)], weights[c]
                for channel in range(3):
                    total = np.int32(_HALF)
                    for t in range(taps):
                        total += np.int32(some[3 * t + channel]) * weight[t]
                    out[y, 3 * c + channel] = total >> _BITS

    return across


def _down_of(taps: int) -> Any:
    """One line of the result from `taps` lines."""

    @_jit
    def down(lines: Any, weights: Any, out: Any) -> None:
        for i in range(len(out)):
            total = np.int32(_HALF)
            for t in range(taps):
                total += np.int32(lines[t, i]) * weights[t]
            out[i] = total >> _BITS

    return down


_across2, _across3, _across4 = _across_of(2), _across_of(3), _across_of(4)
_down2, _down3, _down4 = _down_of(2), _down_of(3), _down_of(4)


@_jit
def _across_any(lines: Any, channels: Any, first: Any, weights: Any, out: Any) -> None:
    for y in range(len(out)):
        for c in range(len(first)):
            for channel in range(channels):
                total = np.int32(_HALF)
                for t in range(weights.shape[1]):
                    total += np.int32(lines[y, channels * (first[c] + t) + channel]) * weights[c, t]
                out[y, channels * c + channel] = total >> _BITS


@_jit
def _down_any(lines: Any, weights: Any, out: Any) -> None:
    total = np.full(len(out), _HALF, np.int32)
    for t in range(len(weights)):
        for i in range(len(out)):
            total[i] += np.int32(lines[t, i]) * weights[t]
    for i in range(len(out)):
        out[i] = total[i] >> _BITS


@_jit
def scale(
    image: Any, rows: Any, row_weights: Any, columns: Any, column_weights: Any, out: Any, top: Any, left: Any
) -> None:
    """Writes scaled pixels of `image` H W C uint8 to out[top:, left:], computed across, rounded to bytes, then down.

    rows, columns and their weights as of `shares`.
    """
    channels, taps, depth = image.shape[2], column_weights.shape[1], row_weights.shape[1]
    begin, end, wide = rows.min(), rows.max() + depth, len(columns) * channels
    stored = image[begin:end].reshape(end - begin, -1)
    lines = np.empty((end - begin, wide), np.uint8)
    if channels == 3 and taps == 2:
        _across2(stored, columns, column_weights, lines)
    elif channels == 3 and taps == 3:
        _across3(stored, columns, column_weights, lines)
    elif channels == 3 and taps == 4:
        _across4(stored, columns, column_weights, lines)
    else:
        _across_any(stored, channels, columns, column_weights, lines)
    for r in range(len(rows)):
        some, weights = lines[rows[r] - begin : rows[r] - begin + depth], row_weights[r]
        line = out[top + r].reshape(-1)[channels * left : channels * left + wide]
        if depth == 2:
            _down2(some, weights, line)
        elif depth == 3:
            _down3(some, weights, line)
        elif depth == 4:
            _down4(some, weights, line)
        else:
            _down_any(some, weights, line)


@_jit
def take_cells(label: Any, rows: Any, columns: Any, out: Any, top: Any, left: Any) -> None:
    """out[top + r, left + c] = label[rows[r], columns[c]]."""
    for r in range(len(rows)):
        line, seen = label[rows[r]], out[top + r, left : left + len(columns)]
        for c in range(len(columns)):
            seen[c] = line[columns[c]]
