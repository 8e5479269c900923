# mypy: disable-error-code="untyped-decorator"
"""Triton kernels: labels, confidence and cross entropy of bilinearly upsampled scores, without the upsampled scores.

A program owns B intervals of one band (the pixels between two rows and B + 1 columns of cells), as a tile S x B x S
of row phase, interval, column phase; S is the stride rounded up to a power of two. Nothing is added atomically: every
program writes its own pixels and, for the gradient, its intervals' four corners, so results are the same every time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

__all__ = ["labels_kernel", "loss_kernel"]


@triton.jit
def _score(cells: Any, at: Any, columns: Any, here: Any, t: Any, u: Any) -> Any:
    """Scores of the tile for the class whose first corner is at `at` (B offsets)."""
    a = tl.load(cells + at, mask=here, other=0.0)[None, :, None]
    b = tl.load(cells + at + 1, mask=here, other=0.0)[None, :, None]
    c = tl.load(cells + at + columns, mask=here, other=0.0)[None, :, None]
    d = tl.load(cells + at + columns + 1, mask=here, other=0.0)[None, :, None]
    upper = a + u * (b - a)
    lower = c + u * (d - c)
    return upper + t * (lower - upper)


@triton.jit
def labels_kernel(
    cells: Any,
    row_phases: Any,
    column_phases: Any,
    labels: Any,
    confidence: Any,
    classes: Any,
    rows: Any,
    columns: Any,
    height: Any,
    width: Any,
    lead_row: Any,
    lead_column: Any,
    stride: Any,
    S: tl.constexpr,
    B: tl.constexpr,
    SURE: tl.constexpr,
) -> None:
    """labels N H W (and, if SURE, confidence) from cells N K rows columns."""
    band, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, j, q = tl.arange(0, S), tl.arange(0, S), tl.program_id(0) * B + tl.arange(0, B)
    t = tl.load(row_phases + i, mask=i < stride, other=0.0)[:, None, None]
    u = tl.load(column_phases + j, mask=j < stride, other=0.0)[None, None, :]
    y = (band * stride - lead_row + i)[:, None, None]
    x = (q[:, None] * stride - lead_column + j[None, :])[None, :, :]
    here = q < columns - 1
    inside = (i < stride)[:, None, None] & (j < stride)[None, None, :] & here[None, :, None]
    inside = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    at = image * classes * rows * columns + band * columns + q
    best = _score(cells, at, columns, here, t, u)
    index = tl.zeros([S, B, S], tl.int32)
    total = tl.full([S, B, S], 1.0, tl.float32)
    for k in range(1, classes):
        at += rows * columns
        v = _score(cells, at, columns, here, t, u)
        above = v > best
        high = tl.where(above, v, best)
        if SURE:
            total = total * tl.exp(best - high) + tl.exp(v - high)
        index = tl.where(above, k, index)
        best = high
    place = (image * height + y) * width + x
    tl.store(labels + place, index.to(labels.dtype.element_ty), mask=inside)
    if SURE:
        tl.store(confidence + place, 1.0 / total, mask=inside)


@triton.jit
def loss_kernel(
    cells: Any,
    row_phases: Any,
    column_phases: Any,
    labels: Any,
    own: Any,
    extra: Any,
    extra_sum: Any,
    shares: Any,
    losses: Any,
    corners: Any,
    corner_size: Any,
    classes: Any,
    rows: Any,
    columns: Any,
    height: Any,
    width: Any,
    lead_row: Any,
    lead_column: Any,
    stride: Any,
    ignore: Any,
    S: tl.constexpr,
    B: tl.constexpr,
    SMOOTH: tl.constexpr,
    SHARED: tl.constexpr,
    GRADIENT: tl.constexpr,
) -> None:
    """losses N H W; if GRADIENT, corners 4 N K (rows - 1) (columns - 1): the gradient on each interval's four
    cells.
    """
    band, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i, j, q = tl.arange(0, S), tl.arange(0, S), tl.program_id(0) * B + tl.arange(0, B)
    t = tl.load(row_phases + i, mask=i < stride, other=0.0)[:, None, None]
    u = tl.load(column_phases + j, mask=j < stride, other=0.0)[None, None, :]
    y = (band * stride - lead_row + i)[:, None, None]
    x = (q[:, None] * stride - lead_column + j[None, :])[None, :, :]
    here = q < columns - 1
    inside = (i < stride)[:, None, None] & (j < stride)[None, None, :] & here[None, :, None]
    inside = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = (image * height + y) * width + x
    label = tl.load(labels + place, mask=inside, other=0).to(tl.int32)
    valid = inside & (label != ignore)
    label = tl.where(valid, label, -1)
    factor = tl.load(own + label, mask=valid, other=0.0)

    first = image * classes * rows * columns + band * columns + q
    best = tl.full([S, B, S], float("-inf"), tl.float32)
    total = tl.zeros([S, B, S], tl.float32)
    picked = tl.zeros([S, B, S], tl.float32)
    spread = tl.zeros([S, B, S], tl.float32)
    at = first
    for k in range(classes):
        v = _score(cells, at, columns, here, t, u)
        high = tl.maximum(v, best)
        total = total * tl.exp(best - high) + tl.exp(v - high)
        best = high
        picked = tl.where(label == k, v, picked)
        if SMOOTH:
            spread += tl.load(extra + k) * v
        at += rows * columns
    log_total = best + tl.log(total)
    value = factor * (log_total - picked)
    if SMOOTH:
        value += extra_sum * log_total - spread
    tl.store(losses + place, tl.where(valid, value, 0.0), mask=inside)

    if GRADIENT:
        share = valid.to(tl.float32)
        if SHARED:
            share = tl.load(shares + place, mask=valid, other=0.0)
        push = factor * share
        pull = (factor + extra_sum) * share
        at = first
        out = image * classes * (rows - 1) * (columns - 1) + band * (columns - 1) + q
        for k in range(classes):
            g = tl.exp(_score(cells, at, columns, here, t, u) - log_total) * pull
            g = tl.where(valid, g - tl.where(label == k, push, 0.0), 0.0)
            if SMOOTH:
                g -= tl.load(extra + k) * share
            upper, lower = tl.sum(g * (1 - t), 0), tl.sum(g * t, 0)
            after = tl.reshape(u, [1, S])
            tl.store(corners + out, tl.sum(upper * (1 - after), 1), mask=here)
            tl.store(corners + corner_size + out, tl.sum(upper * after, 1), mask=here)
            tl.store(corners + 2 * corner_size + out, tl.sum(lower * (1 - after), 1), mask=here)
            tl.store(corners + 3 * corner_size + out, tl.sum(lower * after, 1), mask=here)
            at += rows * columns
            out += (rows - 1) * (columns - 1)
