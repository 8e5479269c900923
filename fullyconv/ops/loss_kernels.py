# mypy: disable-error-code="untyped-decorator"
"""Numba kernel for the CPU: cross entropy of bilinearly upsampled scores, and its gradient, in one pass.

Rows of cells are fetched and tasks drawn as in `label_kernels`. Within a block (16 intervals of a band) the pixels of
one column phase, which lie equally far from the cell on their left, are 16 neighbours with one weight: a `Vector`. So
any stride vectorises, and a class's gradient on the block's cells is summed in place, without a scatter.
Two rows of pixels are computed at a time, to read each class's numbers once for both.

A task adds to the coarse rows first .. last - 1 of its bands and leaves row `last`, which the next task adds to as
well, in `spill`: no two threads write the same number, and sums are made in the same order by any number of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fullyconv.interpolation.label_kernels import KernelPlan, fetch_cells, jit
from fullyconv.interpolation.vectors import WIDTH, exp, load16, log, maximum, spread, store, take_ticket

__all__ = ["LossScratch", "WantedLosses", "add_spill", "cross_entropies", "loss_scratch"]

F32 = np.float32


class WantedLosses(NamedTuple):
    """What is asked of the loss, and where the answer goes; arrays are flat, empty ones are not asked for."""

    labels: Any  # N H W: uint8, uint16 or int64
    ignore: Any
    weight: Any  # K: a class's factor for its own label
    extra: Any  # K or empty: label smoothing's factor of every class
    pixel_weight: Any  # N H W or empty
    losses: Any  # N H W or empty: each pixel's loss
    gradient: Any  # N K h w or empty: of the sum of pixel weight times loss
    spill: Any  # tasks x K w or empty
    sums: Any  # tasks x 2 float64: of pixel weight times loss, of pixel weight times class weight
    counts: Any  # tasks x 2 int64: bad labels, one of them


class LossScratch(NamedTuple):
    """What a thread computes in; K x 16 floats but where said. A pixel's gradient g goes, by its row phase t, to the
    band's lower edge (t g) and to the upper one (g - t g).
    """

    above: Any  # K x columns: a row of cells
    below: Any  # and the next
    up: Any  # K x columns, or empty: the gradient of the row above
    down: Any
    base: Any  # scores on the band's upper edge
    slope: Any  # what the lower edge adds
    power: Any  # 2 K x 16: exp(score - best) of two rows
    whole: Any  # sum of the softmax's part of g
    lower: Any  # sum of t times it
    own: Any  # sum of the label's part of g
    own_lower: Any
    corners: Any  # 4 K x 16: gradient on the four corners of each interval
    pixel: Any  # 3 x 2 x 16: score of the label, pixel weight, class factor, for two rows
    mine: Any  # stride x (stride, made even) x 16 int32: class of a pixel, -1 for none


def loss_scratch(plan: KernelPlan, gradient: bool) -> LossScratch:
    """For `cross_entropies`."""
    classes, columns, stride = plan.shape[0], plan.columns, plan.stride

    def floats(per_class: int) -> Any:
        return np.empty(classes * per_class, np.float32)

    return LossScratch(
        above=floats(columns),
        below=floats(columns),
        up=floats(columns * gradient),
        down=floats(columns * gradient),
        base=floats(WIDTH),
        slope=floats(WIDTH),
        power=floats(2 * WIDTH),
        whole=floats(WIDTH),
        lower=floats(WIDTH),
        own=floats(WIDTH),
        own_lower=floats(WIDTH),
        corners=floats(4 * WIDTH),
        pixel=np.empty(6 * WIDTH, np.float32),
        mine=np.empty(stride * (stride + stride % 2) * WIDTH, np.int32),
    )


@jit
def _read_labels(plan: Any, wanted: Any, n: Any, band: Any, column: Any, task: Any, mine: Any) -> Any:
    """mine[(j, i, q)] = class of the pixel at column phase j, row phase i of interval q; returns how many have one."""
    stride, (height, width), classes = plan.stride, plan.size, plan.shape[0]
    rows, valid = stride + stride % 2, 0
    for i in range(mine.size):
        mine[i] = -1
    top, left = band * stride - plan.lead[0], column * stride - plan.lead[1]
    for y in range(max(top, 0), min(top + stride, height)):
        line = (n * height + y) * width
        for q in range(WIDTH):
            begin = left + q * stride
            for x in range(max(begin, 0), min(begin + stride, width)):
                value = np.int64(wanted.labels[line + x])
                if value == wanted.ignore:
                    continue
                if 0 <= value < classes:
                    mine[((x - begin) * rows + y - top) * WIDTH + q] = value
                    valid += 1
                else:
                    wanted.counts[task, 0] += 1
                    wanted.counts[task, 1] = value
    return valid


@jit
def _expand(above: Any, below: Any, columns: Any, column: Any, t: Any, base: Any, slope: Any) -> None:
    """Scores of the 16 pixels of one phase: base on the band's upper edge, slope what the lower edge adds."""
    t = spread(t)
    for k in range(base.size // WIDTH):
        at = k * columns + column
        left, lower = load16(above, at), load16(below, at)
        left = left + t * (load16(above, at + 1) - left)
        lower = lower + t * (load16(below, at + 1) - lower)
        store(left, base, k * WIDTH)
        store(lower - left, slope, k * WIDTH)


@jit
def _own_part(wanted: Any, work: Any, t: Any, row: Any, at: Any, place: Any, stride: Any) -> Any:
    """What a row's pixels need of their own class: score, weights, its part of the gradient; returns whether any has
    one. place: of the first pixel in the flat image.
    """
    some = False
    for q in range(WIDTH):
        k, share = work.mine[at + q], F32(0)
        if k >= 0:
            some = True
            share = wanted.pixel_weight[place + q * stride] if wanted.pixel_weight.size else F32(1)
        k = max(k, 0)
        i, to = k * WIDTH + q, row * WIDTH + q
        factor = wanted.weight[k]
        work.pixel[to] = work.base[i] + t * work.slope[i]
        work.pixel[to + 2 * WIDTH] = share
        work.pixel[to + 4 * WIDTH] = factor
        work.own[i] += share * factor
        work.own_lower[i] += t * (share * factor)
    return some


@jit
def _softmax(work: Any, t0: Any, t1: Any, pixel: Any) -> Any:
    """(best, sum of exponentials) of two rows; the exponentials into work.power."""
    base, slope, power = work.base, work.slope, work.power
    best0 = load16(base, 0) + t0 * load16(slope, 0)
    best1 = load16(base, 0) + t1 * load16(slope, 0)
    for at in range(WIDTH, base.size, WIDTH):
        b, s = load16(base, at), load16(slope, at)
        best0, best1 = maximum(b + t0 * s, best0), maximum(b + t1 * s, best1)
    sum0 = sum1 = spread(F32(0))
    for at in range(0, base.size, WIDTH):
        b, s = load16(base, at), load16(slope, at)
        e0, e1 = exp(b + t0 * s - best0), exp(b + t1 * s - best1)
        store(e0, power, 2 * at)
        store(e1, power, 2 * at + WIDTH)
        sum0, sum1 = sum0 + e0, sum1 + e1
    return best0, best1, sum0, sum1


@jit
def _value(work: Any, extra: Any, spare: Any, t: Any, row: Any, best: Any, total: Any) -> Any:
    """Each pixel's loss."""
    log_total = best + log(total)
    value = (log_total - load16(work.pixel, row * WIDTH)) * load16(work.pixel, (4 + row) * WIDTH)
    if extra.size:
        mean = spread(F32(0))
        for k in range(extra.size):
            mean = mean + spread(extra[k]) * (load16(work.base, k * WIDTH) + t * load16(work.slope, k * WIDTH))
        value = value + log_total * spread(spare) - mean
    return value


@jit
def _softmax_part(work: Any, t0: Any, t1: Any, scale0: Any, scale1: Any) -> None:
    """Add two rows' softmax part of the gradient to the sums of this phase."""
    lower0, lower1 = t0 * scale0, t1 * scale1
    for at in range(0, work.base.size, WIDTH):
        e0, e1 = load16(work.power, 2 * at), load16(work.power, 2 * at + WIDTH)
        store(load16(work.whole, at) + scale0 * e0 + scale1 * e1, work.whole, at)
        store(load16(work.lower, at) + lower0 * e0 + lower1 * e1, work.lower, at)


@jit
def _to_corners(work: Any, t: Any, extra: Any, shares: Any, shares_lower: Any) -> None:
    """Spread one phase's gradient on the four corners of each interval."""
    t = spread(t)
    rest = spread(F32(1)) - t
    for at in range(0, work.base.size, WIDTH):
        lower = load16(work.lower, at) - load16(work.own_lower, at)
        upper = load16(work.whole, at) - load16(work.own, at)
        if extra.size:
            k = spread(extra[at // WIDTH])
            lower, upper = lower - k * shares_lower, upper - k * shares
        upper = upper - lower
        to = 4 * at
        store(load16(work.corners, to) + rest * upper, work.corners, to)
        store(load16(work.corners, to + 16) + t * upper, work.corners, to + 16)
        store(load16(work.corners, to + 32) + rest * lower, work.corners, to + 32)
        store(load16(work.corners, to + 48) + t * lower, work.corners, to + 48)


@jit
def _to_rows(corners: Any, columns: Any, column: Any, up: Any, down: Any) -> None:
    """Add a block's corners to the gradient's rows above and below the band."""
    for k in range(corners.size // (4 * WIDTH)):
        at, to = 4 * k * WIDTH, k * columns + column
        store(load16(up, to) + load16(corners, at), up, to)
        store(load16(up, to + 1) + load16(corners, at + 16), up, to + 1)
        store(load16(down, to) + load16(corners, at + 32), down, to)
        store(load16(down, to + 1) + load16(corners, at + 48), down, to + 1)


@jit
def _phase(plan: Any, wanted: Any, work: Any, j: Any, place: Any, spare: Any, task: Any) -> None:
    """The pixels of column phase j of a block: `place` is the first one in the flat image, perhaps beyond it."""
    stride, width = plan.stride, plan.size[1]
    rows = stride + stride % 2
    if wanted.gradient.size:
        _clear(work.whole)
        _clear(work.lower)
        _clear(work.own)
        _clear(work.own_lower)
    loss = weight = shares = shares_lower = spread(F32(0))
    for i in range(0, stride, 2):
        at, to = (j * rows + i) * WIDTH, place + i * width
        y0, y1 = plan.rows[i], plan.rows[min(i + 1, stride - 1)]
        some = _own_part(wanted, work, y0, 0, at, to, stride)
        if not _own_part(wanted, work, y1, 1, at + WIDTH, to + width, stride) and not some:
            continue
        t0, t1 = spread(y0), spread(y1)
        best0, best1, sum0, sum1 = _softmax(work, t0, t1, work.pixel)
        share0, share1 = load16(work.pixel, 2 * WIDTH), load16(work.pixel, 3 * WIDTH)
        own0, own1 = load16(work.pixel, 4 * WIDTH), load16(work.pixel, 5 * WIDTH)
        value0 = _value(work, wanted.extra, spare, t0, 0, best0, sum0)
        value1 = _value(work, wanted.extra, spare, t1, 1, best1, sum1)
        loss = loss + share0 * value0 + share1 * value1
        weight = weight + share0 * own0 + share1 * own1
        if wanted.losses.size:
            _put_losses(wanted, work, at, to, stride, value0)
            _put_losses(wanted, work, at + WIDTH, to + width, stride, value1)
        if wanted.gradient.size:
            all_ = spread(spare)
            _softmax_part(work, t0, t1, share0 * (own0 + all_) / sum0, share1 * (own1 + all_) / sum1)
            shares = shares + share0 + share1
            shares_lower = shares_lower + t0 * share0 + t1 * share1
    if wanted.gradient.size:
        _to_corners(work, plan.across[j], wanted.extra, shares, shares_lower)
    store(loss, work.pixel, 0)
    store(weight, work.pixel, WIDTH)
    for q in range(WIDTH):
        wanted.sums[task, 0] += work.pixel[q]
        wanted.sums[task, 1] += work.pixel[WIDTH + q]


@jit
def _put_losses(wanted: Any, work: Any, at: Any, place: Any, stride: Any, value: Any) -> None:
    store(value, work.pixel, 0)
    for q in range(WIDTH):
        if work.mine[at + q] >= 0:
            wanted.losses[place + q * stride] = work.pixel[q]


@jit
def _put_row(plan: Any, cells: Any, row: Any, target: Any, at: Any, pitch: Any) -> None:
    """The adjoint of `fetch_cells`: add a row of the window's gradient to target[at + k * pitch + x]."""
    (classes, height, width), columns = plan.shape, plan.columns
    y, first = plan.first[0] + row, plan.first[1]
    if plan.fade and not 0 <= y < height:
        return
    low = min(max(-first, 0), columns)
    high = min(max(width - first, low), columns)
    for k in range(classes):
        line, to = k * columns, at + k * pitch
        for q in range(low, high):
            target[to + first + q] += cells[line + q]
        if not plan.fade:
            for q in range(low):
                target[to] += cells[line + q]
            for q in range(high, columns):
                target[to + width - 1] += cells[line + q]


@jit
def _place(plan: Any, n: Any, row: Any) -> Any:
    """Where coarse row `row` of the window, or the nearest one, begins in the flat gradient."""
    classes, height, width = plan.shape
    return (n * classes * height + min(max(plan.first[0] + row, 0), height - 1)) * width


@jit
def _block(plan: Any, wanted: Any, work: Any, above: Any, below: Any, n: Any, band: Any, column: Any, task: Any) -> Any:
    """One block; returns whether it has a labelled pixel, and so work.corners its gradient."""
    if _read_labels(plan, wanted, n, band, column, task, work.mine) == 0:
        return False
    spare = F32(0)
    for k in range(wanted.extra.size):
        spare += wanted.extra[k]
    if wanted.gradient.size:
        _clear(work.corners)
    top, left = band * plan.stride - plan.lead[0], column * plan.stride - plan.lead[1]
    for j in range(plan.stride):
        _expand(above, below, plan.columns, column, plan.across[j], work.base, work.slope)
        _phase(plan, wanted, work, j, (n * plan.size[0] + top) * plan.size[1] + left + j, spare, task)
    return True


@jit
def _clear(values: Any) -> None:
    for i in range(values.size):
        values[i] = 0


@jit
def cross_entropies(scores: Any, plan: Any, state: Any, work: Any, wanted: Any) -> None:
    """Cross entropy of the tasks that this thread draws; scores N K h w, flat."""
    (classes, height, width), columns = plan.shape, plan.columns
    above, below, up, down = work.above, work.below, work.up, work.down
    task = take_ticket(state)
    while task < len(plan.tasks):
        n, first, last = plan.tasks[task]
        fetch_cells(scores, n, first, plan, below)
        _clear(down)
        for band in range(first, last):
            above, below, up, down = below, above, down, up
            fetch_cells(scores, n, band + 1, plan, below)
            _clear(down)
            for column in range(0, columns - 1, WIDTH):
                if _block(plan, wanted, work, above, below, n, band, column, task) and wanted.gradient.size:
                    _to_rows(work.corners, columns, column, up, down)
            if wanted.gradient.size:
                _put_row(plan, up, band, wanted.gradient, _place(plan, n, band), height * width)
        if wanted.gradient.size:
            _put_row(plan, down, last, wanted.spill, task * classes * width, width)
        task = take_ticket(state)


@jit
def add_spill(plan: Any, spill: Any, gradient: Any) -> None:
    """Add what the tasks left of their last rows, in the order of tasks."""
    classes, height, width = plan.shape
    for task in range(len(plan.tasks)):
        n, last = plan.tasks[task, 0], plan.tasks[task, 2]
        to = _place(plan, n, last)
        for k in range(classes):
            for x in range(width):
                gradient[to + k * height * width + x] += spill[(task * classes + k) * width + x]
