# mypy: disable-error-code="untyped-decorator"
"""Numbers from 0 up as three 8-bit digits to the base 256, for processors that multiply bytes faster than floats.

x = (2^16 d0 + 2^8 d1 + d2) / scale with d0 in 0..255 and d1, d2 in -128..127 (stored 128 higher), so that the largest
number uses all 24 bits, as many as a float32 has. `split` is compiled; `split_reference` is its slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullyconv.compiling import njit
from fullyconv.ops import threads

__all__ = ["MIDDLE", "TOP", "scale_of", "split", "split_reference"]

TOP = 255.49 * 65536  # the largest whole number whose digits, the lower ones being rounded, fit
MIDDLE = 128  # what is stored for a digit of 0 below the first

_jit: Any = njit(nogil=True, error_model="numpy")


def scale_of(x: Tensor) -> float | None:
    """The factor that brings the largest number of `x` to `TOP`; 1 where all are 0, None where one is not finite."""
    largest = float(x.amax())
    if largest == 0:
        return 1.0
    scale = TOP / largest if math.isfinite(largest) else math.inf
    # float32 must hold it, in its full precision
    return scale if 2.0**-126 < scale < 2.0**127 else None


def split(x: Tensor, scale: float, padding: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The digits of x >= 0 (N C H W float32 on the CPU), with `padding` (rows, columns) zeros round it: three times
    uint8 N C H+2r W+2c, channels_last.
    """
    n, c, h, w = x.shape
    rows, columns = padding
    dense = x if _runs(x) else x.contiguous(memory_format=torch.channels_last)
    pitch, step = dense.stride(2), dense.stride(0)
    span = (n - 1) * step + (h - 1) * pitch + w * c
    numbers = torch.as_strided(dense, (span,), (1,)).numpy()
    size = (n, h + 2 * rows, w + 2 * columns, c)
    digits = [torch.empty(size, dtype=torch.uint8) for _ in range(3)]
    first, second, third = (d.numpy().reshape(n * size[1], -1) for d in digits)
    together = max(1, min(64, n * size[1] // 16))

    def some(task: int) -> None:
        last = min((task + 1) * together, n * size[1])
        _split(numbers, np.float32(scale), (step, pitch), (rows, h, columns * c, w * c), task * together, last,
               first, second, third)  # fmt: skip

    threads.run_tasks(some, -(-n * size[1] // together))
    one, two, three = (d.permute(0, 3, 1, 2) for d in digits)
    return one, two, three


def split_reference(x: Tensor, scale: float, padding: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What `split` gives, in torch's own operations."""
    rows, columns = padding
    whole = torch.round(x * float(np.float32(scale))).to(torch.int32)
    whole = torch.nn.functional.pad(whole, (columns, columns, rows, rows)) + MIDDLE
    upper = (whole >> 8) + MIDDLE
    one, two, three = (d.to(torch.uint8) for d in (upper >> 8, upper & 255, whole & 255))
    return one, two, three


def _runs(x: Tensor) -> bool:
    """Whether each row of cells, with its channels innermost, is one run of numbers."""
    return (x.shape[1] == 1 or x.stride(1) == 1) and (x.shape[3] == 1 or x.stride(3) == x.shape[1])


@_jit
def _split(
    x: Any, scale: Any, pitches: Any, layout: Any, begin: Any, end: Any, first: Any, second: Any, third: Any
) -> None:
    """Rows begin..end of the digits; layout: rows of padding, rows, numbers of padding and numbers of a row."""
    rows, height, lead, width = layout
    for row in range(begin, end):
        n, y = divmod(row, height + 2 * rows)
        a, b, c = first[row], second[row], third[row]
        if y < rows or y >= rows + height:
            a[:], b[:], c[:] = 0, MIDDLE, MIDDLE
            continue
        start = n * pitches[0] + (y - rows) * pitches[1]
        numbers = x[start : start + width]
        for side in (0, lead + width):
            a[side : side + lead], b[side : side + lead], c[side : side + lead] = 0, MIDDLE, MIDDLE
        for i in range(width):
            whole = np.int32(np.rint(numbers[i] * scale)) + np.int32(MIDDLE)
            upper = (whole >> np.int32(8)) + np.int32(MIDDLE)
            a[lead + i] = np.uint8(upper >> np.int32(8))
            b[lead + i] = np.uint8(upper & np.int32(255))
            c[lead + i] = np.uint8(whole & np.int32(255))
