"""Regions of a label map: connected pixels of one value, their boxes and outlines, and the band along their borders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["border_band", "bounding_box", "components", "outlines", "region_runs", "sieved"]

Ring = NDArray[np.int64]  # N x 2 corners (x, y), the last one joined to the first


def components(labels: NDArray[np.integer | np.bool_]) -> tuple[NDArray[np.int64], int]:
    """labels H W -> (region of every pixel H W, 0..count-1 in reading order, count). Regions are 4-connected.

    Rows are cut into runs of one value; runs that touch vertically are joined by hooking every run to the smallest
    neighbouring root and halving the paths until nothing changes (Shiloach and Vishkin, 1982).
    """
    height, width = labels.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    run = (np.cumsum(starts) - 1).reshape(height, width)
    # Two runs touch along one stretch of columns: its first is where one of them starts.
    touching = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    pairs = np.stack([run[:-1][touching], run[1:][touching]], axis=1)
    root = _joined(pairs, int(run[-1, -1]) + 1)
    names, number = np.unique(root, return_inverse=True)
    return number[run], len(names)


def _joined(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The smallest of those that each of `count` runs is joined to by pairs N x 2."""
    root = np.arange(count)
    while True:
        a, b = root[pairs[:, 0]], root[pairs[:, 1]]
        apart = a != b
        if not apart.any():
            return root
        np.minimum.at(root, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while (root[root] != root).any():
            root = root[root]


def region_runs(alike: NDArray[np.bool_], row: int, column: int) -> NDArray[np.int64]:
    """The 4-connected region of True pixels that holds the pixel row, column (which is one): N x 3, the row, first and
    past-the-last column of each of its runs, in reading order. Memory follows the runs, not the pixels."""
    width = alike.shape[1] + 1
    padded = np.pad(alike, ((0, 0), (0, 1))).ravel()  # no run goes on in the next row
    steps = np.flatnonzero(padded[1:] != padded[:-1]) + 1
    bounds = np.concatenate([[0], steps] if padded[0] else [steps])  # the last column is False: it ends every run
    start, end = bounds[::2], bounds[1::2]
    # Runs of one row and the next touch where they overlap; of each run, those form one stretch.
    first = np.searchsorted(end, start + width, "right")
    last = np.searchsorted(start, end + width, "left")
    count = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(start)), count)
    offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    root = _joined(np.stack([upper, first[upper] + offset], 1), len(start))
    own = root[np.searchsorted(start, row * width + column, "right") - 1]
    chosen = root == own
    rows = start[chosen] // width
    return np.stack([rows, start[chosen] - rows * width, end[chosen] - rows * width], 1)


def sieved(labels: NDArray[np.integer], least: int) -> NDArray[Any]:
    """labels H W with every region of fewer than `least` pixels given to its largest neighbour, until none is left (or
    all is one region). Round by round: a small region takes the value of its largest neighbour where that is larger
    than itself (of equals the later in reading order); regions that are one by then count as one in the next round.
    """
    while True:
        region, count = components(labels)
        sizes = np.bincount(region.ravel(), minlength=count)
        small = sizes < least
        if count == 1 or not small.any():
            return labels
        sides = ((region[:, :-1], region[:, 1:]), (region[:-1], region[1:]))
        one, other = (np.concatenate([pair[i].ravel() for pair in sides]) for i in (0, 1))
        apart = one != other
        one, other = one[apart], other[apart]
        rank = sizes * count + np.arange(count)
        largest = np.zeros(count, np.int64)
        np.maximum.at(largest, one, rank[other])
        np.maximum.at(largest, other, rank[one])
        value = np.empty(count, labels.dtype)
        value[region.ravel()] = labels.ravel()
        moves = small & (largest > rank)
        value[moves] = value[largest[moves] % count]
        labels = value[region]


def bounding_box(inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Half-open top, left, bottom, right of the True pixels (at least one)."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def border_band(labels: NDArray[np.integer], radius: int) -> NDArray[np.bool_]:
    """Pixels whose (2 radius + 1)-square holds more than one label value: H W bool."""
    height, width = labels.shape
    changes = np.zeros((height, width), np.int32)
    # A pixel is marked where it differs from the next one right or below, both sides of the step.
    right, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    changes[:, 1:] |= right
    changes[:, :-1] |= right
    changes[1:] |= below
    changes[:-1] |= below
    grown = radius - 1  # the pixels on both sides of a step are at distance 1 already
    total = np.pad(changes, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    top, bottom = _window(height, grown)
    left, right_ = _window(width, grown)
    inside = total[bottom][:, right_] - total[top][:, right_] - total[bottom][:, left] + total[top][:, left]
    return np.asarray(inside > 0)


def _window(size: int, radius: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    at = np.arange(size)
    return np.maximum(at - radius, 0), np.minimum(at + radius + 1, size)


_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # right, down, left, up: x y


def outlines(inside: NDArray[np.bool_]) -> list[list[Ring]]:
    """For each 4-connected region of `inside` H W, in reading order: its outer ring, then the rings of its holes.

    Rings run along the pixels' edges (pixel x y spans x..x+1, y..y+1) with the region to their right: outer ones
    clockwise as displayed, holes the other way. Only corners are kept. Filled at the pixels' centres, outer rings
    without their holes give `inside` back exactly.
    """
    starts, codes, following = _edges(inside)
    if not len(starts):
        return []
    region, count = components(inside)
    rings: list[list[Ring]] = [[] for _ in range(count)]
    links, seen = following.tolist(), bytearray(len(starts))
    for first in range(len(links)):  # edges are in reading order of their starts: an outer ring's first comes first
        if seen[first]:
            continue
        walk, edge = [], first
        while not seen[edge]:
            seen[edge] = 1
            walk.append(edge)
            edge = links[edge]
        at = np.array(walk)
        turns = codes[at] != codes[np.roll(at, 1)]
        x, y = _pixel_right_of(int(starts[first, 0]), int(starts[first, 1]), int(codes[first]))
        rings[int(region[y, x])].append(starts[at[turns]])
    return [ring for ring in rings if ring]


def _pixel_right_of(x: int, y: int, code: int) -> tuple[int, int]:
    """The pixel to the right of the edge that starts at the corner x y."""
    return x - (code in (1, 2)), y - (code in (2, 3))


def _edges(inside: NDArray[np.bool_]) -> tuple[Ring, NDArray[np.int64], NDArray[np.int64]]:
    """(start of every edge x y, its direction as a row of `_STEPS`, the edge after it). Where two pixels touch at a
    corner only, an outline turns right: it stays with its pixel."""
    height, width = inside.shape
    padded = np.pad(inside, 1)
    above, below = padded[:-1, 1:], padded[1:, 1:]  # of the edge that goes right from corner y x, x < width + 1
    left, right = padded[1:, :-1], padded[1:, 1:]  # of the edge that goes down from it
    begins = np.zeros((4, height + 1, width + 1), bool)
    begins[0] = below & ~above
    begins[1] = left & ~right
    begins[2][:, 1:] = (above & ~below)[:, :-1]
    begins[3][1:] = (right & ~left)[:-1]
    number = np.full(begins.shape, -1)
    codes, y, x = (part.astype(np.int64) for part in np.nonzero(begins))
    order = np.lexsort((codes, x, y))
    codes, y, x = codes[order], y[order], x[order]
    number[codes, y, x] = np.arange(len(codes))
    end_x, end_y = x + _STEPS[codes, 0], y + _STEPS[codes, 1]
    onward = [number[(codes + turn) % 4, end_y, end_x] for turn in (1, 0, 3)]
    following = np.where(onward[0] >= 0, onward[0], np.where(onward[1] >= 0, onward[1], onward[2]))
    return np.stack([x, y], 1), codes, following
