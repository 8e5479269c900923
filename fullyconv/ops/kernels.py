# mypy: disable-error-code="untyped-decorator"
"""Numba kernels for the CPU: labels, confidence and cross entropy of bilinearly upsampled scores, block by block.

All take `cells`, one image's coarse window K x R x Q (`sampling.window`, its columns padded to a multiple of 16, plus
1), in which every pixel is a convex combination of four neighbours. A "band" is the rows of pixels between two rows
of cells; a "block" is 16 intervals of a band. Within a block the pixels of one phase (the same distance to the cell
on their left) are 16 neighbours with one weight: a `Vector`. So any stride vectorises, and one phase's scores stay in
the first-level cache.

Nothing here depends on the number of threads: each call owns its bands.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fullyconv.ops.vectors import (
    WIDTH,
    at_least,
    exp,
    load,
    log,
    maximum,
    spread,
    store,
    store_integers,
    where_greater,
)

__all__ = ["confidence_bands", "label_bands", "loss_bands"]

F32 = np.float32
_jit: Any = numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


@_jit
def _winners(cells: Any, row: Any, winner: Any) -> None:
    """The first largest class of each cell in a row (in the order of `cells`' columns, the last one apart)."""
    last = cells.shape[2] - 1
    for column in range(0, last, WIDTH):
        best = load(cells[0, row], column)
        index = spread(F32(0))
        for k in range(1, cells.shape[0]):
            v = load(cells[k, row], column)
            index = where_greater(v, best, spread(F32(k)), index)
            best = maximum(v, best)
        store_integers(index, winner, column)
    winner[last] = np.argmax(cells[:, row, last])


@_jit
def _same(above: Any, below: Any, column: Any) -> Any:
    """Whether one class wins every corner of the block's intervals."""
    first = above[column]
    other = 0
    for q in range(column, column + WIDTH + 1):
        other |= (above[q] != first) | (below[q] != first)
    return other == 0


@_jit
def _corner_scores(cells: Any, row: Any, column: Any, above: Any, below: Any, rival: Any) -> None:
    """rival[64 a + 16 b + q]: score at corner b of interval q of the class that wins its corner a."""
    for q in range(WIDTH):
        x = column + q
        for a in range(4):
            k = above[x + (a & 1)] if a < 2 else below[x + (a & 1)]
            for b in range(4):
                rival[64 * a + 16 * b + q] = cells[k, row + (b >> 1), x + (b & 1)]


@_jit
def _survives(cells: Any, k: Any, row: Any, column: Any, rival: Any) -> Any:
    """Whether class k may win some pixel: in some interval no corner's winner is at least as high at all four
    corners.
    """
    c0, c1 = load(cells[k, row], column), load(cells[k, row], column + 1)
    c2, c3 = load(cells[k, row + 1], column), load(cells[k, row + 1], column + 1)
    beaten = 0
    for a in range(0, 4 * 64, 64):
        upper = at_least(load(rival, a), c0) & at_least(load(rival, a + 16), c1)
        beaten |= upper & at_least(load(rival, a + 32), c2) & at_least(load(rival, a + 48), c3)
    return beaten != (1 << WIDTH) - 1


@_jit
def _candidates(cells: Any, row: Any, column: Any, above: Any, below: Any, rival: Any, alive: Any, some: Any) -> Any:
    """Classes that can win a pixel of this block, ascending, into `some`; returns how many.

    Exact: bilinear interpolation is a convex combination, so a class that is nowhere above another at the four
    corners is nowhere above it between them. On noise every class survives and the block is simply computed in full.
    """
    alive[:] = False
    for q in range(column, column + WIDTH + 1):
        alive[above[q]] = True
        alive[below[q]] = True
    _corner_scores(cells, row, column, above, below, rival)
    found = 0
    for k in range(cells.shape[0]):
        if alive[k] or _survives(cells, k, row, column, rival):
            some[found] = k
            found += 1
    return found


@_jit
def _expand(cells: Any, row: Any, column: Any, t: Any, some: Any, found: Any, base: Any, slope: Any) -> None:
    """16 pixels of one phase, some classes: base their scores on the band's upper edge, slope what the lower edge
    adds.
    """
    t = spread(t)
    for c in range(found):
        above, below = cells[some[c], row], cells[some[c], row + 1]
        left, lower = load(above, column), load(below, column)
        left = left + t * (load(above, column + 1) - left)
        lower = lower + t * (load(below, column + 1) - lower)
        store(left, base, c * WIDTH)
        store(lower - left, slope, c * WIDTH)


@_jit
def _label_block(
    cells: Any, band: Any, column: Any, phases: Any, some: Any, found: Any, base: Any, slope: Any, tile: Any
) -> None:
    """tile[i, j, q] = label of the pixel at row phase i, column phase j, interval q."""
    for j in range(phases[1].size):
        _expand(cells, band, column, phases[1][j], some, found, base, slope)
        for i in range(phases[0].size):
            t = spread(phases[0][i])
            best = load(base, 0) + t * load(slope, 0)
            index = spread(F32(some[0]))
            for c in range(1, found):
                v = load(base, c * WIDTH) + t * load(slope, c * WIDTH)
                index = where_greater(v, best, spread(F32(some[c])), index)
                best = maximum(v, best)
            store_integers(index, tile[i, j], 0)


@_jit
def _paste(tile: Any, top: Any, left: Any, image: Any) -> None:
    """A block's tile -> its pixels in the image, cropped; (top, left) is its first pixel, perhaps outside."""
    stride = tile.shape[0]
    for y in range(max(top, 0), min(top + stride, image.shape[0])):
        rows = tile[y - top]
        if left >= 0 and left + WIDTH * stride <= image.shape[1]:
            inside = image[y, left : left + WIDTH * stride].reshape(WIDTH, stride)
            for q in range(WIDTH):
                for j in range(stride):
                    inside[q, j] = rows[j, q]
            continue
        for x in range(max(left, 0), min(left + WIDTH * stride, image.shape[1])):
            q = (x - left) // stride
            image[y, x] = rows[x - left - q * stride, q]


@_jit
def label_bands(cells: Any, phases: Any, lead: Any, first: Any, last: Any, labels: Any) -> None:
    """Labels of the bands [first, last). phases, lead: (rows, columns); labels H W uint8 or uint16."""
    stride, columns, classes = phases[0].size, cells.shape[2], cells.shape[0]
    base, slope = np.empty(classes * WIDTH, np.float32), np.empty(classes * WIDTH, np.float32)
    above, below = np.empty(columns, np.uint16), np.empty(columns, np.uint16)
    rival, alive, some = np.empty(256, np.float32), np.empty(classes, np.bool_), np.empty(classes, np.int64)
    tile = np.empty((stride, stride, WIDTH), labels.dtype)
    _winners(cells, first, below)
    for band in range(first, last):
        above, below = below, above
        _winners(cells, band + 1, below)
        top = band * stride - lead[0]
        for column in range(0, columns - 1, WIDTH):
            left = column * stride - lead[1]
            if _same(above, below, column):
                right = min(left + WIDTH * stride, labels.shape[1])
                labels[max(top, 0) : min(top + stride, labels.shape[0]), max(left, 0) : right] = above[column]
                continue
            found = _candidates(cells, band, column, above, below, rival, alive, some)
            _label_block(cells, band, column, phases, some, found, base, slope, tile)
            _paste(tile, top, left, labels)


@_jit
def confidence_bands(cells: Any, phases: Any, lead: Any, first: Any, last: Any, labels: Any, confidence: Any) -> None:
    """Labels as `label_bands`, and the softmax probability of each: H W float32."""
    stride, columns, classes = phases[0].size, cells.shape[2], cells.shape[0]
    base, slope = np.empty(classes * WIDTH, np.float32), np.empty(classes * WIDTH, np.float32)
    every = np.arange(classes)
    tile = np.empty((stride, stride, WIDTH), labels.dtype)
    share = np.empty((stride, stride, WIDTH), np.float32)
    for band in range(first, last):
        top = band * stride - lead[0]
        for column in range(0, columns - 1, WIDTH):
            _label_block(cells, band, column, phases, every, classes, base, slope, tile)
            for j in range(stride):
                _expand(cells, band, column, phases[1][j], every, classes, base, slope)
                for i in range(stride):
                    t = spread(phases[0][i])
                    best = _highest(base, slope, t, classes)
                    total = spread(F32(0))
                    for k in range(classes):
                        total = total + exp(load(base, k * WIDTH) + t * load(slope, k * WIDTH) - best)
                    store(spread(F32(1)) / total, share[i, j], 0)
            left = column * stride - lead[1]
            _paste(tile, top, left, labels)
            _paste(share, top, left, confidence)


@_jit
def _highest(base: Any, slope: Any, t: Any, classes: Any) -> Any:
    best = load(base, 0) + t * load(slope, 0)
    for k in range(1, classes):
        best = maximum(load(base, k * WIDTH) + t * load(slope, k * WIDTH), best)
    return best


@_jit
def _labels_of(labels: Any, y: Any, x: Any, stride: Any, classes: Any, ignore: Any, mine: Any, count: Any) -> Any:
    """mine[q] = class of pixel (y, x + q stride), -1 where there is none; returns how many count. count[1]: bad
    labels.
    """
    valid = 0
    for q in range(WIDTH):
        mine[q] = -1
        if 0 <= x + q * stride < labels.shape[1]:
            value = np.int64(labels[y, x + q * stride])
            if 0 <= value < classes and value != ignore:
                mine[q] = value
                valid += 1
            elif value != ignore:
                count[1] += 1
                count[2] = value
    return valid


@_jit
def _exponentials(base: Any, slope: Any, t: Any, best: Any, classes: Any, power: Any) -> Any:
    """power[k] = exp(score - best); returns their sum."""
    total = spread(F32(0))
    for k in range(classes):
        e = exp(load(base, k * WIDTH) + t * load(slope, k * WIDTH) - best)
        store(e, power, k * WIDTH)
        total = total + e
    return total


@_jit
def _smooth_part(base: Any, slope: Any, t: Any, extra: Any) -> Any:
    """Sum over classes of extra_k score_k."""
    total = spread(F32(0))
    for k in range(extra.size):
        total = total + spread(extra[k]) * (load(base, k * WIDTH) + t * load(slope, k * WIDTH))
    return total


@_jit
def _gradient_part(power: Any, scale: Any, share: Any, extra: Any, t: Any, high: Any, low: Any) -> None:
    """Add the softmax's part of the gradient (and label smoothing's) to the band's upper and lower edge."""
    rest = spread(F32(1)) - t
    for k in range(high.size // WIDTH):
        g = load(power, k * WIDTH) * scale
        if extra.size:
            g = g - spread(extra[k]) * share
        store(load(high, k * WIDTH) + rest * g, high, k * WIDTH)
        store(load(low, k * WIDTH) + t * g, low, k * WIDTH)


@_jit
def _fold(high: Any, low: Any, t: Any, column: Any, band: Any, upper: Any, lower: Any) -> None:
    """Spread the gradient of one phase's pixels on the two cells each reads, in the rows above and below."""
    t = spread(t)
    rest = spread(F32(1)) - t
    for k in range(upper.shape[0]):
        for part, row in ((high, upper[k]), (low, lower[k])):
            g = load(part, k * WIDTH)
            store(load(row, column) + rest * g, row, column)
            store(load(row, column + 1) + t * g, row, column + 1)


@_jit
def loss_bands(
    cells: Any,
    phases: Any,
    lead: Any,
    first: Any,
    last: Any,
    labels: Any,
    ignore: Any,
    weight: Any,
    extra: Any,
    pixel_weight: Any,
    losses: Any,
    gradient: Any,
    spill: Any,
    total: Any,
    count: Any,
) -> None:
    """Cross entropy of the bands [first, last) of one image.

    weight: K, a class's factor for its own label; extra: K or empty, label smoothing's factor of every class.
    pixel_weight: H W or empty; losses: H W or empty, each pixel's loss; gradient: K R Q or empty, of the sum of
    pixel_weight times loss: rows first .. last - 1 are added to, row `last` goes to `spill`, K Q, so that no two
    calls write the same row. total[0]: that sum; total[1:]: each class's shares; count: labelled pixels, bad labels,
    one bad label.
    """
    stride, columns, classes = phases[0].size, cells.shape[2], cells.shape[0]
    base, slope = np.empty(classes * WIDTH, np.float32), np.empty(classes * WIDTH, np.float32)
    power, every = np.empty(classes * WIDTH, np.float32), np.arange(classes)
    high, low = np.empty(classes * WIDTH, np.float32), np.empty(classes * WIDTH, np.float32)
    mine, share = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.float32)
    picked, factor, each = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    spread_weight = extra.sum()
    for band in range(first, last):
        upper = gradient[:, min(band, gradient.shape[1]), :]
        lower = spill if band + 1 == last else gradient[:, min(band + 1, gradient.shape[1]), :]
        top = band * stride - lead[0]
        for column in range(0, columns - 1, WIDTH):
            for j in range(stride):
                _expand(cells, band, column, phases[1][j], every, classes, base, slope)
                high[:], low[:] = F32(0), F32(0)
                touched = False
                for y in range(max(top, 0), min(top + stride, labels.shape[0])):
                    x = column * stride + j - lead[1]
                    valid = _labels_of(labels, y, x, stride, classes, ignore, mine, count)
                    if valid == 0:
                        continue
                    count[0] += valid
                    touched = True
                    t = phases[0][y - top]
                    for q in range(WIDTH):
                        k = max(mine[q], 0)
                        picked[q] = base[k * WIDTH + q] + t * slope[k * WIDTH + q]
                        share[q] = F32(0)
                        if mine[q] >= 0:
                            share[q] = pixel_weight[y, x + q * stride] if pixel_weight.size else F32(1)
                            total[1 + k] += share[q]
                        factor[q] = weight[k]
                    best = _highest(base, slope, spread(t), classes)
                    sums = _exponentials(base, slope, spread(t), best, classes, power)
                    own, shares = load(factor, 0), load(share, 0)
                    both = own + spread(spread_weight)
                    value = (best - load(picked, 0) + log(sums)) * own
                    if extra.size:
                        mean = _smooth_part(base, slope, spread(t), extra)
                        value = value + (best + log(sums)) * spread(spread_weight) - mean
                    store(value, each, 0)
                    for q in range(WIDTH):
                        total[0] += np.float64(share[q]) * each[q]
                        if losses.size and mine[q] >= 0:
                            losses[y, x + q * stride] = each[q]
                    if gradient.size:
                        scale = shares * both / sums
                        _gradient_part(power, scale, shares, extra, spread(t), high, low)
                        for q in range(WIDTH):
                            g, k = share[q] * factor[q], max(mine[q], 0)
                            high[k * WIDTH + q] -= (F32(1) - t) * g
                            low[k * WIDTH + q] -= t * g
                if touched and gradient.size:
                    _fold(high, low, phases[1][j], column, band, upper, lower)
