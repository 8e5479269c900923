# mypy: disable-error-code="untyped-decorator"
"""Numba kernels for the CPU: labels and confidence of bilinearly upsampled scores, cell by cell.

All take the coarse scores N K h w as they are and a `KernelPlan`; what lies beyond the map is made while a row of
cells is copied next to the processor (`fetch_cells`): a row of 16 m + 1 columns in which every pixel is a convex
combination of four neighbours. A "band" is the rows of pixels between two rows of cells, an "interval" the pixels of a
band between two cells, a "block" 16 intervals.

Exact pruning: bilinear interpolation is a convex combination, so a class that wins all four corners of an interval
wins all of it, and a class below another at all four corners wins nowhere between them. Only classes that are left
are computed, 16 pixels at a time.

Nothing here depends on the number of threads: each task owns its bands, and threads draw tasks from one counter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fullyconv.compiling import njit
from fullyconv.interpolation.vectors import (
    WIDTH,
    at_least,
    beaten,
    copy,
    copy_eight,
    exp,
    load16,
    maximum,
    spread,
    store,
    store_integers,
    take_ticket,
    where_greater,
)

__all__ = ["KernelPlan", "Scratch", "confidences", "fetch_cells", "jit", "label_scratch", "labels"]

F32 = np.float32
# Without numba's memory management (_nrt) nothing can be allocated in a kernel, and nothing counts references: counters
# that all threads write to took half the time. So each thread is given a `Scratch`.
jit: Any = njit(nogil=True, fastmath={"contract"}, error_model="numpy", _nrt=False)


class KernelPlan(NamedTuple):
    """Where the pixels lie, as the kernels want it (see `fullyconv.interpolation.kernel_plan`)."""

    tasks: Any  # T x 3 int64: image, first band, last band (not included)
    shape: Any  # of the coarse map: classes, rows, columns
    size: Any  # of the image: rows, columns
    first: Any  # coarse row and column of the window's first cell
    lead: Any  # phases of the first pixel
    columns: Any  # cells in a row of the window: 16 m + 1
    stride: Any
    fade: Any  # whether zero lies outside the map, or its nearest cell
    rows: Any  # phases: weights of the second row, float32
    across: Any  # phases: weights of the second column
    lanes_y: Any  # weight of the second row for each pixel of an interval, in the order of a tile
    lanes_x: Any  # weight of the second column, for 16 pixels of each chunk
    pitch: Any  # pixels from one row to the next in a tile


class Scratch(NamedTuple):
    """What a thread computes in."""

    above: Any  # K x columns: a row of cells
    below: Any  # and the next
    upper: Any  # columns: the class that wins each cell of the row above
    lower: Any
    rival: Any  # 4 x 4 x 16 and
    least: Any  # 16: see `_rivals`
    some: Any  # K: candidates of a block, ascending
    alive: Any  # K: bits of the intervals for which each is one
    plane: Any  # K x 4 x 16: their scores, see `_keep`
    chosen: Any  # K + 1: numbers of one interval's candidates
    tile: Any  # labels of one interval
    best: Any  # their scores
    share: Any  # their softmax
    line: Any  # labels of one row of pixels


def label_scratch(plan: KernelPlan, dtype: Any) -> Scratch:
    """For `labels` (of that dtype) and `confidences`."""
    classes, columns = plan.shape[0], plan.columns
    pixels = plan.lanes_x.size // WIDTH * plan.lanes_y.size
    above, below, plane = (np.empty(classes * n, np.float32) for n in (columns, columns, 4 * WIDTH))
    upper, lower = np.empty(columns, np.uint16), np.empty(columns, np.uint16)
    rival, least = np.empty(16 * WIDTH, np.float32), np.empty(WIDTH, np.float32)
    some, alive, chosen = np.empty(classes, np.int64), np.empty(classes, np.int64), np.arange(classes + 1)
    tile, line = np.empty(pixels, dtype), np.empty(columns * plan.stride + WIDTH, dtype)
    best, share = np.empty(pixels, np.float32), np.empty(pixels, np.float32)
    return Scratch(above, below, upper, lower, rival, least, some, alive, plane, chosen, tile, best, share, line)


@jit
def fetch_cells(scores: Any, n: Any, row: Any, plan: Any, out: Any) -> None:
    """Row `row` of the window of image n, border rule applied: out[k * columns + q]. scores: flat."""
    (classes, height, width), columns = plan.shape, plan.columns
    y, x = plan.first[0] + row, plan.first[1]
    if plan.fade and not 0 <= y < height:
        for i in range(classes * columns):
            out[i] = F32(0)
        return
    y = min(max(y, 0), height - 1)
    low = min(max(-x, 0), columns)
    high = min(max(width - x, low), columns)
    for k in range(classes):
        line, to = ((n * classes + k) * height + y) * width, k * columns
        left = F32(0) if plan.fade else scores[line]
        right = F32(0) if plan.fade else scores[line + width - 1]
        for q in range(low):
            out[to + q] = left
        copy(scores, line + x + low, out, to + low, high - low)
        for q in range(high, columns):
            out[to + q] = right


@jit
def _check(cells: Any, room: Any, state: Any) -> None:
    """state[1] = 1 if a cell is not finite: nothing times it is then zero."""
    total = spread(F32(0))
    whole = cells.size - cells.size % WIDTH
    for at in range(0, whole, WIDTH):
        total = total + spread(F32(0)) * load16(cells, at)
    store(total, room, 0)
    rest = F32(0)
    for at in range(whole, cells.size):
        rest += F32(0) * cells[at]
    for q in range(WIDTH):
        rest += room[q]
    if rest != 0:  # nor is NaN equal to it
        state[1] = 1


@jit
def _winners(cells: Any, classes: Any, columns: Any, winner: Any) -> None:
    """The first largest class of each cell in a row."""
    for column in range(0, columns - 1, WIDTH):
        best = load16(cells, column)
        index = spread(F32(0))
        for k in range(1, classes):
            v = load16(cells, k * columns + column)
            index = where_greater(v, best, spread(F32(k)), index)
            best = maximum(v, best)
        store_integers(index, winner, column)
    last = columns - 1
    winner[last] = 0
    for k in range(1, classes):
        if cells[k * columns + last] > cells[winner[last] * columns + last]:
            winner[last] = k


@jit
def _fill_pure(plan: Any, n: Any, band: Any, winner: Any, line: Any, image: Any) -> None:
    """Every pixel of a band := the class that wins the cell on its upper left; right where it wins the interval."""
    stride, (height, width) = plan.stride, plan.size
    q = 0
    while q < plan.columns - 1:
        run = q + 1
        while run < plan.columns - 1 and winner[run] == winner[q]:
            run += 1
        label = spread(F32(winner[q]))
        for x in range(q * stride, run * stride, WIDTH):  # what is too much the next run overwrites
            store_integers(label, line, x)
        q = run
    top = band * stride - plan.lead[0]
    for y in range(max(top, 0), min(top + stride, height)):
        copy(line, plan.lead[1], image, (n * height + y) * width, width)


@jit
def _rivals(above: Any, below: Any, columns: Any, column: Any, upper: Any, lower: Any, rival: Any, least: Any) -> Any:
    """Bits of the block's intervals that no class wins whole.

    rival[64 a + 16 b + q]: score at corner b of interval q of the class that wins corner a. least[q]: what a class must
    reach somewhere to win a pixel: the highest of the four's lowest corners.
    """
    mixed = 0
    for q in range(WIDTH):
        x = column + q
        least[q] = F32(np.inf)
        if upper[x] == upper[x + 1] == lower[x] == lower[x + 1]:
            continue
        mixed |= 1 << q
        floor = F32(-np.inf)
        for a in range(4):
            k = upper[x + a] if a < 2 else lower[x + a - 2]
            at = k * columns + x
            s0, s1, s2, s3 = above[at], above[at + 1], below[at], below[at + 1]
            to = 64 * a + q
            rival[to], rival[to + 16], rival[to + 32], rival[to + 48] = s0, s1, s2, s3
            floor = max(floor, min(min(s0, s1), min(s2, s3)))
        least[q] = floor
    return mixed


@jit
def _keep(above: Any, below: Any, at: Any, k: Any, bits: Any, found: Any, some: Any, alive: Any, plane: Any) -> None:
    """Class k as candidate number `found`: its plane over 16 intervals, score = p0 + x p1 + y (p2 + x p3)."""
    c0, c1, c2, c3 = load16(above, at), load16(above, at + 1), load16(below, at), load16(below, at + 1)
    across = c1 - c0
    to = found * 4 * WIDTH
    store(c0, plane, to)
    store(across, plane, to + WIDTH)
    store(c2 - c0, plane, to + 2 * WIDTH)
    store((c3 - c2) - across, plane, to + 3 * WIDTH)
    some[found] = k
    alive[found] = bits


@jit
def _candidates(plan: Any, work: Any, above: Any, below: Any, column: Any, mixed: Any) -> Any:
    """Classes that may win a pixel of the block's mixed intervals, ascending, and the bits of those; gives how many."""
    found, rival = 0, work.rival
    floor = load16(work.least, 0)
    for k in range(plan.shape[0]):
        at = k * plan.columns + column
        c0, c1, c2, c3 = load16(above, at), load16(above, at + 1), load16(below, at), load16(below, at + 1)
        bits = at_least(maximum(maximum(c0, c1), maximum(c2, c3)), floor)
        if bits == 0:
            continue
        lost = beaten(rival, 0, c0, c1, c2, c3) | beaten(rival, 64, c0, c1, c2, c3)
        lost |= beaten(rival, 128, c0, c1, c2, c3) | beaten(rival, 192, c0, c1, c2, c3)
        bits &= mixed & ~lost
        if bits != 0:
            _keep(above, below, at, k, bits, found, work.some, work.alive, work.plane)
            found += 1
    return found


@jit
def _select(alive: Any, found: Any, q: Any, chosen: Any) -> Any:
    """Numbers of the candidates of interval q, ascending; returns how many."""
    count = 0
    for c in range(found):
        chosen[count] = c
        count += (alive[c] >> q) & 1
    return count


@jit
def _label_tile(plan: Any, plane: Any, q: Any, some: Any, chosen: Any, count: Any, tile: Any, best: Any) -> None:
    """Label and score of every pixel of interval q, 16 at a time, in the order of a tile."""
    groups = plan.lanes_y.size // WIDTH
    for chunk in range(plan.lanes_x.size // WIDTH):
        x = load16(plan.lanes_x, chunk * WIDTH)
        to = chunk * groups
        g = 0
        while g + 4 <= groups:
            _label_four(plane, q, some, chosen, count, x, plan.lanes_y, g * WIDTH, tile, best, (to + g) * WIDTH)
            g += 4
        while g < groups:
            _label_one(plane, q, some, chosen, count, x, plan.lanes_y, g * WIDTH, tile, best, (to + g) * WIDTH)
            g += 1


@jit
def _label_one(
    plane: Any, q: Any, some: Any, chosen: Any, count: Any, x: Any, ys: Any, g: Any, tile: Any, best: Any, to: Any
) -> None:
    y = load16(ys, g)
    high, index = spread(F32(-np.inf)), spread(F32(0))
    for i in range(count):
        c = chosen[i]
        at = c * 4 * WIDTH + q
        base = spread(plane[at]) + x * spread(plane[at + WIDTH])
        slope = spread(plane[at + 2 * WIDTH]) + x * spread(plane[at + 3 * WIDTH])
        v = base + y * slope
        index = where_greater(v, high, spread(F32(some[c])), index)
        high = maximum(v, high)
    store_integers(index, tile, to)
    store(high, best, to)


@jit
def _label_four(
    plane: Any, q: Any, some: Any, chosen: Any, count: Any, x: Any, ys: Any, g: Any, tile: Any, best: Any, to: Any
) -> None:
    """`_label_one` four times: one class's plane is read once for 64 pixels."""
    y0, y1, y2, y3 = load16(ys, g), load16(ys, g + WIDTH), load16(ys, g + 2 * WIDTH), load16(ys, g + 3 * WIDTH)
    h0, i0 = spread(F32(-np.inf)), spread(F32(0))
    h1, i1, h2, i2, h3, i3 = h0, i0, h0, i0, h0, i0
    for i in range(count):
        c = chosen[i]
        at = c * 4 * WIDTH + q
        base = spread(plane[at]) + x * spread(plane[at + WIDTH])
        slope = spread(plane[at + 2 * WIDTH]) + x * spread(plane[at + 3 * WIDTH])
        k = spread(F32(some[c]))
        v0, v1, v2, v3 = base + y0 * slope, base + y1 * slope, base + y2 * slope, base + y3 * slope
        i0, i1 = where_greater(v0, h0, k, i0), where_greater(v1, h1, k, i1)
        i2, i3 = where_greater(v2, h2, k, i2), where_greater(v3, h3, k, i3)
        h0, h1, h2, h3 = maximum(v0, h0), maximum(v1, h1), maximum(v2, h2), maximum(v3, h3)
    store_integers(i0, tile, to)
    store_integers(i1, tile, to + WIDTH)
    store_integers(i2, tile, to + 2 * WIDTH)
    store_integers(i3, tile, to + 3 * WIDTH)
    store(h0, best, to)
    store(h1, best, to + WIDTH)
    store(h2, best, to + 2 * WIDTH)
    store(h3, best, to + 3 * WIDTH)


@jit
def _paste(plan: Any, tile: Any, n: Any, band: Any, interval: Any, image: Any) -> None:
    """A tile -> its pixels in the flat image, cropped."""
    stride, (height, width) = plan.stride, plan.size
    top, left = band * stride - plan.lead[0], interval * stride - plan.lead[1]
    chunk = plan.lanes_y.size
    whole = left >= 0 and left + stride <= width and stride % 8 == 0
    for y in range(max(top, 0), min(top + stride, height)):
        at, to = (y - top) * plan.pitch, (n * height + y) * width + left
        if whole:
            for x in range(0, stride, 8):
                copy_eight(tile, (x >> 4) * chunk + at + (x & 15), image, to + x)
        else:
            for x in range(max(-left, 0), min(stride, width - left)):
                image[to + x] = tile[(x >> 4) * chunk + at + (x & 15)]


@jit
def labels(scores: Any, plan: Any, state: Any, work: Any, images: Any) -> None:
    """Labels N H W (uint8 or uint16, flat) of the tasks that this thread draws; scores N K h w, flat.

    state: two int64, the next task and whether a score that is not finite was met (then labels mean nothing).
    """
    classes, columns = plan.shape[0], plan.columns
    above, below, upper, lower = work.above, work.below, work.upper, work.lower
    task = take_ticket(state)
    while task < len(plan.tasks):
        n, first, last = plan.tasks[task]
        fetch_cells(scores, n, first, plan, below)
        _check(below, work.least, state)
        _winners(below, classes, columns, lower)
        for band in range(first, last):
            above, below, upper, lower = below, above, lower, upper
            fetch_cells(scores, n, band + 1, plan, below)
            _check(below, work.least, state)
            _winners(below, classes, columns, lower)
            _fill_pure(plan, n, band, upper, work.line, images)
            for column in range(0, columns - 1, WIDTH):
                mixed = _rivals(above, below, columns, column, upper, lower, work.rival, work.least)
                if mixed == 0:
                    continue
                found = _candidates(plan, work, above, below, column, mixed)
                for q in range(WIDTH):
                    if (mixed >> q) & 1:
                        count = _select(work.alive, found, q, work.chosen)
                        _label_tile(plan, work.plane, q, work.some, work.chosen, count, work.tile, work.best)
                        _paste(plan, work.tile, n, band, column + q, images)
        task = take_ticket(state)


@jit
def _share(plan: Any, plane: Any, q: Any, classes: Any, best: Any, share: Any) -> None:
    """1 / sum over classes of exp(score - best): the softmax of the best, in the order of a tile."""
    groups = plan.lanes_y.size // WIDTH
    for chunk in range(plan.lanes_x.size // WIDTH):
        x = load16(plan.lanes_x, chunk * WIDTH)
        for g in range(groups):
            y = load16(plan.lanes_y, g * WIDTH)
            to = (chunk * groups + g) * WIDTH
            high, total = load16(best, to), spread(F32(0))
            for k in range(classes):
                at = k * 4 * WIDTH + q
                base = spread(plane[at]) + x * spread(plane[at + WIDTH])
                slope = spread(plane[at + 2 * WIDTH]) + x * spread(plane[at + 3 * WIDTH])
                total = total + exp(base + y * slope - high)
            store(spread(F32(1)) / total, share, to)


@jit
def confidences(scores: Any, plan: Any, state: Any, work: Any, images: Any, shares: Any) -> None:
    """Labels as `labels`, and the softmax probability of each, N H W float32, flat; every class is computed, so
    `work.chosen` has to count 0, 1, 2, ... as it does when made.
    """
    classes, columns = plan.shape[0], plan.columns
    above, below = work.above, work.below
    task = take_ticket(state)
    while task < len(plan.tasks):
        n, first, last = plan.tasks[task]
        fetch_cells(scores, n, first, plan, below)
        _check(below, work.least, state)
        for band in range(first, last):
            above, below = below, above
            fetch_cells(scores, n, band + 1, plan, below)
            _check(below, work.least, state)
            for column in range(0, columns - 1, WIDTH):
                for k in range(classes):
                    _keep(above, below, k * columns + column, k, 0, k, work.some, work.alive, work.plane)
                for q in range(WIDTH):
                    if (column + q) * plan.stride - plan.lead[1] < plan.size[1]:
                        _label_tile(plan, work.plane, q, work.some, work.chosen, classes, work.tile, work.best)
                        _share(plan, work.plane, q, classes, work.best, work.share)
                        _paste(plan, work.tile, n, band, column + q, images)
                        _paste(plan, work.share, n, band, column + q, shares)
        task = take_ticket(state)
