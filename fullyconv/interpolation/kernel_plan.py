"""How an upsampling is cut into the kernels' tasks: a `KernelPlan` of a sampling, made once for each geometry."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fullyconv.interpolation.axes import Axis, Sampling
from fullyconv.interpolation.label_kernels import KernelPlan
from fullyconv.interpolation.vectors import WIDTH

__all__ = ["lay_out"]


@functools.lru_cache(maxsize=64)
def lay_out(sampling: Sampling, images: int, classes: int) -> KernelPlan:
    """The plan for `images` images of `classes` classes."""
    rows, columns, stride = sampling.rows, sampling.columns, sampling.stride
    down, across = (np.array(axis.phases(), np.float32) for axis in (rows, columns))
    cells = columns.last - columns.first + 2
    lanes_y, lanes_x, pitch = _lanes(down, across)
    return KernelPlan(
        tasks=_tasks(rows, images),
        shape=(classes, rows.cells, columns.cells),
        size=sampling.size,
        first=(rows.first, columns.first),
        lead=(rows.lead, columns.lead),
        columns=cells + (1 - cells) % WIDTH,
        stride=stride,
        fade=sampling.border == "fade",
        rows=down,
        across=across,
        lanes_y=lanes_y,
        lanes_x=lanes_x,
        pitch=pitch,
    )


def _tasks(rows: Axis, images: int) -> Any:
    """(image, first band, last band) of every task: by the map's shape alone, never by the threads.

    Gradients of cells beyond the map go to the row at its edge: only one task may have them, so no cut is made there.
    """
    bands = rows.last - rows.first + 1
    depth = max(1, min(8, bands * images // 24))
    cuts = [cut for cut in range(depth, bands, depth) if 1 <= rows.first + cut < rows.cells]
    ranges = list(zip([0, *cuts], [*cuts, bands], strict=True))
    return np.array([(n, first, last) for n in range(images) for first, last in ranges], np.int64).reshape(-1, 3)


def _lanes(down: Any, across: Any) -> tuple[Any, Any, int]:
    """The pixels of one interval as vectors of 16: weights of the second row and column, and a row's pitch.

    Up to stride 16 a vector holds as many whole rows as fit; beyond, a row takes several vectors ("chunks").
    """
    stride = len(down)
    pitch = min(WIDTH, 1 << (stride - 1).bit_length())
    rows, chunks = WIDTH // pitch, -(-stride // WIDTH)
    y, x = np.zeros(-(-stride // rows) * rows, np.float32), np.zeros(chunks * pitch, np.float32)
    y[:stride], x[:stride] = down, across
    return np.repeat(y, pitch), x if chunks > 1 else np.tile(x, rows), pitch
