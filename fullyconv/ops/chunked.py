"""The same results strip by strip, in plain torch on any device: never more than a few rows of full scores at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.ops.fused import Engine, Total
from fullyconv.ops.loss import Loss, labelled
from fullyconv.ops.sampling import Sampling, fold, window

__all__ = ["ENGINE", "label", "label_and_confidence", "upsample"]

# Full-resolution scores in flight: about what a CPU core's second-level cache holds, and enough to fill a GPU.
CPU_BUDGET, DEVICE_BUDGET = 1 << 19, 1 << 25


@final
@dataclass(frozen=True)
class _Strip:
    """Rows [top, bottom) of images [first, last), the window rows `cells` they read and the weights of both axes."""

    first: int
    last: int
    top: int
    bottom: int
    cells: slice
    down: Tensor
    across: Tensor

    def scores(self, cells: Tensor) -> Tensor:
        """images K rows W."""
        return self.down @ (cells[self.first : self.last, :, self.cells] @ self.across.T)

    def add_gradient(self, gradient: Tensor, full: Tensor) -> None:
        """The adjoint of `scores`, added to the window's gradient."""
        gradient[self.first : self.last, :, self.cells] += (self.down.T @ full) @ self.across

    def of(self, full: Tensor) -> Tensor:
        """This strip's part of a tensor N H W."""
        return full[self.first : self.last, self.top : self.bottom]


def _strips(cells: Tensor, sampling: Sampling) -> Iterator[_Strip]:
    budget = CPU_BUDGET if cells.device.type == "cpu" else DEVICE_BUDGET
    rows, (height, width) = sampling.rows, sampling.size
    line = cells.shape[1] * width
    images = max(1, min(len(cells), budget // (line * sampling.stride)))
    depth = min(height, max(min(4, sampling.stride), budget // (line * images)))
    across = sampling.columns.matrix(0, width, cells.dtype, cells.device)
    for top in range(0, height, depth):
        bottom = min(top + depth, height)
        down = rows.matrix(top, bottom, cells.dtype, cells.device)
        begin = (rows.start + top) // sampling.stride - rows.first
        for first in range(0, len(cells), images):
            last = min(first + images, len(cells))
            yield _Strip(first, last, top, bottom, slice(begin, begin + down.shape[1]), down, across)


def upsample(scores: Tensor, sampling: Sampling) -> Tensor:
    """Full scores N K H W by two small matrix products, differentiable: the separable form of the definition."""
    down, across = (a.weights(sampling.border, scores.dtype, scores.device) for a in (sampling.rows, sampling.columns))
    return down @ (scores @ across.T)


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """N H W of `dtype`."""
    cells = window(scores, sampling)
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype, device=scores.device)
    for strip in _strips(cells, sampling):
        # max is several times faster than argmax here; both take the first of equals.
        strip.of(labels).copy_(strip.scores(cells).max(1).indices)
    return labels


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N H W of `dtype` and N H W, as the scores."""
    cells = window(scores, sampling)
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype, device=scores.device)
    confidence = torch.empty(labels.shape, dtype=scores.dtype, device=scores.device)
    for strip in _strips(cells, sampling):
        full = strip.scores(cells)
        best, index = full.max(1)
        strip.of(labels).copy_(index)
        strip.of(confidence).copy_(1 / full.sub_(best[:, None]).exp_().sum(1))
    return labels, confidence


def losses(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss) -> Tensor:
    """N H W, 0 where ignored."""
    cells = window(scores.detach(), sampling)
    each = torch.empty(labels.shape, dtype=scores.dtype, device=scores.device)
    for strip in _strips(cells, sampling):
        value, _, _ = _values(F.log_softmax(strip.scores(cells), 1), strip.of(labels), loss)
        strip.of(each).copy_(value)
    return each


def total(
    scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, share: Tensor | None, gradient: bool
) -> Total:
    """One pass over the strips for the value and, if wanted, the gradient N K h w."""
    cells = window(scores.detach(), sampling)
    slope = torch.zeros_like(cells) if gradient else None
    value = torch.zeros((), dtype=torch.float64, device=scores.device)
    weight = value.clone()
    for strip in _strips(cells, sampling):
        log_share = F.log_softmax(strip.scores(cells), 1)
        each, own, index = _values(log_share, strip.of(labels), loss)
        part = own if share is None else own * strip.of(share)
        value += (each if share is None else each * strip.of(share)).sum(dtype=torch.float64)
        weight += part.sum(dtype=torch.float64)
        if slope is not None:
            valid = labelled(strip.of(labels), loss.ignore).to(cells.dtype)
            shares = valid if share is None else valid * strip.of(share)
            strip.add_gradient(slope, _gradient(log_share, index, part, shares, loss))
    folded = None if slope is None else fold(slope, sampling)
    return Total(value.to(scores.dtype), weight, folded)


ENGINE = Engine(losses, total)


def _values(log_share: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Each pixel's loss, its class's weight (0 where ignored), its class (0 where ignored); n S W."""
    valid = labelled(labels, loss.ignore)
    index = labels.to(torch.int64).masked_fill(~valid, 0)
    own = valid.to(log_share.dtype) if loss.weight is None else loss.weight[index] * valid
    each = log_share.gather(1, index[:, None])[:, 0] * own * (loss.label_smoothing - 1)
    if loss.label_smoothing:
        weighed = log_share if loss.weight is None else log_share * loss.weight[:, None, None]
        each -= weighed.sum(1) * valid * (loss.label_smoothing / log_share.shape[1])
    return each, own, index


def _gradient(log_share: Tensor, index: Tensor, own: Tensor, share: Tensor, loss: Loss) -> Tensor:
    """Of the strip's loss with respect to its full scores; overwrites log_share."""
    classes = log_share.shape[1]
    own = own * (1 - loss.label_smoothing)
    pull = own
    if loss.label_smoothing:
        every = torch.ones(classes, dtype=own.dtype, device=own.device) if loss.weight is None else loss.weight
        every = every * (loss.label_smoothing / classes)
        pull = own + share * every.sum()
    slope = log_share.exp_().mul_(pull[:, None])
    if loss.label_smoothing:
        slope -= every[:, None, None] * share[:, None]
    return slope.scatter_add_(1, index[:, None], -own[:, None])
