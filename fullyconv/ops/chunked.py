"""The same results strip by strip, in plain torch on any device: never more than a few rows of full scores at
once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

import fullyconv.ops.resize as resize
from fullyconv.ops.fused import Engine, Total
from fullyconv.ops.loss import Loss
from fullyconv.ops.sampling import Axis, Sampling, coarse_window, fold, matrix

__all__ = ["ENGINE", "Group", "Strip", "groups", "label", "label_and_confidence", "upsample"]

# Full-resolution scores in flight: on a CPU few enough for the caches, and enough to make up for calling some thirty
# small operations a strip; enough to fill a GPU.
CPU_BUDGET, DEVICE_BUDGET = 1 << 20, 1 << 25


@final
@dataclass(frozen=True)
class Strip:
    """Rows [top, bottom) of the images: the same phases of one band or of several."""

    images: slice
    top: int
    bottom: int
    bands: slice  # within the group
    phases: Tensor  # weight of the lower row of cells: rows of one band x 1

    def of(self, full: Tensor) -> Tensor:
        """This strip's part of a tensor N H W."""
        return full[self.images, self.top : self.bottom]


@final
@dataclass(frozen=True)
class Group:
    """Some rows of cells of some images, as wide as the image: made once for all the strips between them."""

    images: slice
    cells: slice
    wide: Tensor  # n K rows W
    across: Tensor  # W x columns
    strips: list[Strip]
    room: Tensor  # for one strip's scores: new memory for each would cost more than the arithmetic

    def scores(self, strip: Strip) -> Tensor:
        """n K (bottom - top) W, until the next strip's."""
        upper, lower = (rows[:, :, strip.bands, None] for rows in (self.wide[:, :, :-1], self.wide[:, :, 1:]))
        shape = (*upper.shape[:3], len(strip.phases), upper.shape[4])
        full = self.room[: math.prod(shape)].view(shape)
        return torch.lerp(upper, lower, strip.phases, out=full).flatten(2, 3)

    def add_gradient(self, strip: Strip, full: Tensor, slope: Tensor) -> None:
        """The adjoint of `scores`: a strip's gradient, added to that of `wide`."""
        edges = torch.cat((1 - strip.phases, strip.phases), 1).T
        both = edges @ full.view(*full.shape[:2], -1, edges.shape[1], full.shape[3])
        slope[:, :, :-1][:, :, strip.bands] += both[:, :, :, 0]
        slope[:, :, 1:][:, :, strip.bands] += both[:, :, :, 1]

    def add_wide_gradient(self, slope: Tensor, gradient: Tensor) -> None:
        """The adjoint of making `wide`: its gradient, added to the window's."""
        gradient[self.images, :, self.cells] += slope @ self.across


def groups(cells: Tensor, sampling: Sampling) -> Iterator[Group]:
    budget = CPU_BUDGET if cells.device.type == "cpu" else DEVICE_BUDGET
    width = sampling.columns.length
    line, bands = cells.shape[1] * width, cells.shape[2] - 1
    images = max(1, min(len(cells), budget // (line * sampling.stride)))
    # A group's last row of cells is made again for the next one: few bands would mean much twice.
    depth = min(bands, max(4, budget // (line * images)))
    across = matrix(sampling.columns, 0, width, cells.dtype, cells.device)
    phases = torch.tensor(sampling.rows.phases(), dtype=cells.dtype, device=cells.device)[:, None]
    rows = max(min(4, sampling.stride), budget // (line * images))
    room = cells.new_empty(images * line * min(rows, sampling.rows.length))
    for band in range(0, bands, depth):
        used = slice(band, min(band + depth, bands) + 1)
        for first in range(0, len(cells), images):
            part = slice(first, first + images)
            wide = cells[part, :, used] @ across.T
            strips = [
                Strip(part, top, bottom, slice(begin - band, end - band), phases[phase : phase + count])
                for begin, end, phase, count, top, bottom in _rows(sampling.rows, used.start, used.stop - 1, rows)
            ]
            yield Group(part, used, wide, across, strips, room)


def _rows(rows: Axis, begin: int, end: int, depth: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Cuts bands [begin, end) into strips of about `depth` rows: (first band, last, first phase, phases, top, bottom).

    Whole bands go together, as many as fit; a band that is too high, or cut by the image's edge, goes in parts.
    """
    stride, band = rows.stride, begin
    together = max(1, depth // stride)
    while band < end:
        first = max(0, rows.lead - band * stride)
        last = min(stride, rows.length + rows.lead - band * stride)
        whole = min(together, end - band, (rows.length + rows.lead) // stride - band) if first == 0 else 0
        top = band * stride - rows.lead
        if whole >= 1 and stride <= depth:
            yield band, band + whole, 0, stride, top, top + whole * stride
            band += whole
            continue
        for phase in range(first, last, depth):
            count = min(depth, last - phase)
            yield band, band + 1, phase, count, top + phase, top + phase + count
        band += 1


upsample = resize.upsample  # what is asked for is not small, and there is nothing to cut


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """N H W of `dtype`."""
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype, device=scores.device)
    for group in groups(coarse_window(scores, sampling), sampling):
        for strip in group.strips:
            # max is several times faster than argmax here; both take the first of equals.
            strip.of(labels).copy_(group.scores(strip).max(1).indices)
    return labels


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N H W of `dtype` and N H W, as the scores."""
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype, device=scores.device)
    confidence = torch.empty(labels.shape, dtype=scores.dtype, device=scores.device)
    for group in groups(coarse_window(scores, sampling), sampling):
        for strip in group.strips:
            full = group.scores(strip)
            best, index = full.max(1)
            strip.of(labels).copy_(index)
            strip.of(confidence).copy_(1 / full.sub_(best[:, None]).exp_().sum(1))
    return labels, confidence


def losses(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss) -> Tensor:
    """N H W, 0 where ignored."""
    each = torch.empty(labels.shape, dtype=scores.dtype, device=scores.device)
    for group in groups(coarse_window(scores.detach(), sampling), sampling):
        for strip in group.strips:
            strip.of(each).copy_(_softmax(group.scores(strip), strip.of(labels), loss).losses)
    return each


def total(
    scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, share: Tensor | None, gradient: bool
) -> Total:
    """One pass over the strips for the value and, if wanted, the gradient N K h w."""
    cells = coarse_window(scores.detach(), sampling)
    slope = torch.zeros_like(cells) if gradient else None
    value = torch.zeros((), dtype=torch.float64, device=scores.device)
    weight = value.clone()
    for group in groups(cells, sampling):
        wide_slope = torch.zeros_like(group.wide) if gradient else None
        for strip in group.strips:
            soft = _softmax(group.scores(strip), strip.of(labels), loss)
            part = soft.own if share is None else soft.own * strip.of(share)
            value += (soft.losses if share is None else soft.losses * strip.of(share)).sum(dtype=torch.float64)
            weight += part.sum(dtype=torch.float64)
            if wide_slope is not None:
                shares = soft.valid if share is None else soft.valid * strip.of(share)
                group.add_gradient(strip, _gradient(soft, part, shares, loss), wide_slope)
        if slope is not None and wide_slope is not None:
            group.add_wide_gradient(wide_slope, slope)
    folded = None if slope is None else fold(slope, sampling)
    return Total(value.to(scores.dtype), weight, folded)


ENGINE = Engine(losses, total)


@final
@dataclass(frozen=True)
class _Softmax:
    """A strip's softmax: powers / total[:, None]; and per pixel (n S W) what its label says."""

    powers: Tensor
    total: Tensor
    losses: Tensor
    valid: Tensor  # 1, or 0 where ignored
    own: Tensor  # its class's weight, 0 where ignored
    index: Tensor  # its class, 0 where ignored


def _softmax(full: Tensor, labels: Tensor, loss: Loss) -> _Softmax:
    """Overwrites the strip's scores: every pass over them, and every small tensor, counts."""
    index = labels.to(torch.int64)
    counted = index != loss.ignore
    valid, index = counted.to(full.dtype), index * counted
    own = valid if loss.weight is None else loss.weight[index] * valid
    full.sub_(full.amax(1, keepdim=True))
    picked = full.gather(1, index[:, None])[:, 0]
    mean = (_every(full, loss)[:, None, None] * full).sum(1) if loss.label_smoothing else None
    powers = full.exp_()
    total = powers.sum(1)
    log_total = total.log()
    each = torch.sub(log_total, picked, out=picked).mul_(own)
    if mean is not None:
        each *= 1 - loss.label_smoothing
        each += (log_total * _every(full, loss).sum() - mean) * valid
    return _Softmax(powers, total, each, valid, own, index)


def _every(full: Tensor, loss: Loss) -> Tensor:
    """Label smoothing's factor of every class."""
    weight = torch.ones(full.shape[1], dtype=full.dtype, device=full.device) if loss.weight is None else loss.weight
    return weight * (loss.label_smoothing / full.shape[1])


def _gradient(soft: _Softmax, own: Tensor, share: Tensor, loss: Loss) -> Tensor:
    """Of the strip's loss with respect to its full scores; overwrites the powers."""
    if not loss.label_smoothing:
        return soft.powers.mul_((own / soft.total)[:, None]).scatter_add_(1, soft.index[:, None], -own[:, None])
    every = _every(soft.powers, loss)
    push = own * (1 - loss.label_smoothing)
    slope = soft.powers.mul_(((push + share * every.sum()) / soft.total)[:, None])
    slope -= every[:, None, None] * share[:, None]
    return slope.scatter_add_(1, soft.index[:, None], -push[:, None])
