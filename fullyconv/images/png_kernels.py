# mypy: disable-error-code="untyped-decorator"
"""Compiled: undoing a PNG's row filters. Imported on first use only."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fullyconv.compiling import njit

__all__ = ["unfilter"]

_jit: Any = njit(nogil=True)


@numba.njit(inline="always")
def _paeth(left: Any, above: Any, corner: Any) -> Any:
    """Of three neighbours the nearest to left + above - corner (PNG 9.4), without a branch."""
    low, high, bound = min(left, above), max(left, above), 3 * corner - (left + above)
    chosen = low if high <= bound else corner
    return high if bound <= low else chosen


@_jit
def unfilter(rows: Any, step: Any, out: Any) -> Any:
    """Undoes the filters of PNG rows (1 filter byte, then out.shape[1] samples) into `out`; False at an unknown one.

    step: bytes a pixel. A sample is stored as its difference from what its neighbours predict, modulo 256.
    """
    size = out.shape[1]
    above = np.zeros(size, np.uint8)
    for r in range(out.shape[0]):
        start, row = r * (size + 1) + 1, out[r]
        kind = rows[start - 1]
        if kind == 0:
            for i in range(size):
                row[i] = rows[start + i]
        elif kind == 1:
            for i in range(step):
                row[i] = rows[start + i]
            for i in range(step, size):
                row[i] = rows[start + i] + row[i - step]
        elif kind == 2:
            for i in range(size):
                row[i] = rows[start + i] + above[i]
        elif kind == 3:
            for i in range(step):
                row[i] = rows[start + i] + (above[i] >> 1)
            for i in range(step, size):
                row[i] = rows[start + i] + ((np.int32(row[i - step]) + np.int32(above[i])) >> 1)
        elif kind == 4:
            for i in range(step):
                row[i] = rows[start + i] + above[i]
            for i in range(step, size):
                left, corner = np.int32(row[i - step]), np.int32(above[i - step])
                row[i] = rows[start + i] + _paeth(left, np.int32(above[i]), corner)
        else:
            return False
        above = row
    return True
