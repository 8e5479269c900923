"""Regions of a label map and the run-length codings that annotation tools store them in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullyconv.regions import Ring, components, outlines

__all__ = ["Region", "brush_bytes", "coco_text", "column_runs", "keyhole", "regions", "row_runs"]

Size = tuple[int, int]
Mask = NDArray[np.bool_]


class Region(NamedTuple):
    """Connected pixels of one value: the box's first row and column, and which of its pixels are covered."""

    value: int
    top: int
    left: int
    covered: Mask


def regions(labels: NDArray[np.integer], skip: Collection[int] = ()) -> Iterator[Region]:
    """The 4-connected regions of `labels` H W in reading order, but for those of the values in `skip`."""
    number, count = components(labels)
    width = labels.shape[1]
    order = np.argsort(number, axis=None, kind="stable")  # region by region, each in reading order
    ends = np.cumsum(np.bincount(number.ravel(), minlength=count))
    starts = np.concatenate([[0], ends[:-1]])
    columns = order % width
    left, right = np.minimum.reduceat(columns, starts), np.maximum.reduceat(columns, starts) + 1
    top, bottom = order[starts] // width, order[ends - 1] // width + 1
    values = labels.ravel()[order[starts]]
    for r in np.flatnonzero(~np.isin(values, list(skip))).tolist():
        part = number[top[r] : bottom[r], left[r] : right[r]]
        yield Region(int(values[r]), int(top[r]), int(left[r]), part == r)


def row_runs(covered: Mask) -> NDArray[np.int64]:
    """Lengths of absent and present pixels in turn along the rows of H W, absent first (0 where it begins present)."""
    flat = covered.ravel()
    steps = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], steps, [flat.size]]))
    return np.concatenate([[0], lengths]) if flat[0] else lengths


def column_runs(region: Region, size: Size) -> NDArray[np.int64]:
    """COCO's runs: along the columns of the whole image of `size`, absent first. Its cost is the region's box."""
    height = size[0]
    step = np.diff(np.pad(region.covered.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    column, row = np.nonzero(step == 1)
    start = (column + region.left) * height + row + region.top
    column, row = np.nonzero(step == -1)
    end = (column + region.left) * height + row + region.top
    apart = start[1:] != end[:-1]  # a run goes on from the foot of a column to the head of the next
    start, end = start[np.concatenate([[True], apart])], end[np.concatenate([apart, [True]])]
    bounds = np.stack([start, end], 1).ravel()
    runs = np.diff(np.concatenate([[0], bounds, [size[0] * size[1]]]))
    return runs if runs[-1] else runs[:-1]


def coco_text(runs: NDArray[np.int64]) -> str:
    """COCO's compressed runs: differences to the last run but one, 5 bits a character from "0" on (`coco_counts`)."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    text = bytearray()
    for value in values.tolist():
        more = True
        while more:
            part, value = value & 31, value >> 5
            more = value != (-1 if part & 16 else 0)
            text.append(48 + (part | 32 if more else part))
    return text.decode("ascii")


_SIZES = np.array([3, 4, 8, 16])  # bits of a run's length, as Label Studio's own encoder has them
_LONGEST = 1 << 16  # pixels of one run: what 16 bits, the widest of `_SIZES`, can say


def brush_bytes(covered: Mask) -> list[int]:
    """Label Studio's brush strokes: covered H W as RGBA (0 or 255) packed by thi.ng/rle-pack, runs alone."""
    lengths = row_runs(covered) * 4
    whole, rest = np.divmod(lengths, _LONGEST)
    pieces = whole + (rest > 0)
    value = np.repeat(np.arange(len(lengths)) % 2 * 255, pieces)
    length = np.full(int(pieces.sum()), _LONGEST)
    last = np.cumsum(pieces)[pieces > 0] - 1
    length[last[rest[pieces > 0] > 0]] = rest[rest > 0]
    choice = np.searchsorted(1 << _SIZES, length)
    width = _SIZES[choice]
    codes = (((1 << 2 | choice) << width | (length - 1)) << 8) | value  # run, which size, length - 1, the value
    head = _bits(np.array([4 * covered.size, 7, *(_SIZES - 1)]), np.array([32, 5, 4, 4, 4, 4]))
    return np.packbits(np.concatenate([head, _bits(codes, 1 + 2 + width + 8)])).tolist()


def _bits(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The numbers' bits one after another, the highest first, each number in its own width."""
    at = np.cumsum(widths)
    shift = np.repeat(at, widths) - 1 - np.arange(at[-1])
    return (np.repeat(numbers, widths) >> shift & 1).astype(np.uint8)


def keyhole(covered: Mask) -> Ring:
    """The outline of one connected region as a single ring N x 2 (x y): each hole is reached from the outer ring and
    left again along one line, which cancels by the even-odd rule."""
    outer, *holes = outlines(covered)[0]
    whole = outer
    for hole in holes:
        near = int(np.abs(whole - hole[0]).sum(1).argmin())
        whole = np.concatenate([whole[: near + 1], hole, hole[:1], whole[near:]])
    return whole
