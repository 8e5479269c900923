"""Labels, confidence and loss on the CPU by compiled kernels: cuts the work into bands and hands them to the threads.

Imported on first use only, as importing numba takes a third of a second. Kernels are compiled once per user and
machine (numba's cache on disk) and run on `threads`' pool.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullyconv.ops import chunked, kernels, threads
from fullyconv.ops.fused import Engine, Total
from fullyconv.ops.loss import Loss, bad_label
from fullyconv.ops.sampling import Sampling, fold, window
from fullyconv.ops.vectors import WIDTH

__all__ = ["ENGINE", "label", "label_and_confidence", "upsample"]

# Full scores are bound by writing them: two matrix products are as good as it gets.
upsample = chunked.upsample

NOTHING = np.empty((0, 0), np.float32)


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """N H W of `dtype` (uint8 or uint16)."""
    work = _Work(scores, sampling)
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype)
    out = labels.numpy()

    def one(n: int, first: int, last: int, task: int) -> None:
        kernels.label_bands(work.cells[n], work.phases, work.lead, first, last, out[n])

    work.run(one)
    return labels


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N H W of `dtype` and N H W float32."""
    work = _Work(scores, sampling)
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype)
    confidence = torch.empty((len(scores), *sampling.size))
    out, share = labels.numpy(), confidence.numpy()

    def one(n: int, first: int, last: int, task: int) -> None:
        kernels.confidence_bands(work.cells[n], work.phases, work.lead, first, last, out[n], share[n])

    work.run(one)
    return labels, confidence


def losses(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss) -> Tensor:
    """N H W float32, 0 where ignored."""
    each = torch.zeros(labels.shape)
    _pass(scores, labels, sampling, loss, None, each, False)
    return each


def total(
    scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, share: Tensor | None, gradient: bool
) -> Total:
    """One pass for the value and, if wanted, the gradient N K h w."""
    return _pass(scores, labels, sampling, loss, share, None, gradient)


ENGINE = Engine(losses, total)


class _Work:
    """The coarse window laid out for the kernels, and how it is cut: by the map's shape alone, never by the
    threads.
    """

    def __init__(self, scores: Tensor, sampling: Sampling) -> None:
        self.columns = sampling.columns.last - sampling.columns.first + 2
        cells = window(scores.detach(), sampling, (1 - self.columns) % WIDTH)
        self.cells = cells.contiguous().numpy()
        self.phases = tuple(np.array(a.phases(), np.float32) for a in (sampling.rows, sampling.columns))
        self.lead = (sampling.rows.lead, sampling.columns.lead)
        self.bands = cells.shape[2] - 1
        self.depth = max(1, min(8, self.bands * len(cells) // 32))
        self.parts = -(-self.bands // self.depth)
        self.tasks = self.parts * len(cells)

    def run(self, one: Any) -> None:
        """one(image, first band, last band, task) for every task."""

        def task(index: int) -> None:
            n, part = divmod(index, self.parts)
            one(n, part * self.depth, min((part + 1) * self.depth, self.bands), index)

        threads.run(task, self.tasks)


def _pass(
    scores: Tensor,
    labels: Tensor,
    sampling: Sampling,
    loss: Loss,
    share: Tensor | None,
    each: Tensor | None,
    wanted: bool,
) -> Total:
    work = _Work(scores, sampling)
    images, classes, _, columns = work.cells.shape
    truth = _native(labels)
    own, extra = _factors(loss, classes)
    shares = NOTHING if share is None else share.detach().to(torch.float32).contiguous().numpy()
    values = NOTHING if each is None else each.numpy()
    gradient = np.zeros(work.cells.shape if wanted else (images, 0, 0, 0), np.float32)
    spill = np.zeros((work.tasks, classes, columns) if wanted else (work.tasks, 0, 0), np.float32)
    sums, counts = np.zeros((work.tasks, 1 + classes)), np.zeros((work.tasks, 3), np.int64)

    def one(n: int, first: int, last: int, task: int) -> None:
        kernels.loss_bands(
            work.cells[n],
            work.phases,
            work.lead,
            first,
            last,
            truth[n],
            loss.ignore,
            own,
            extra,
            shares if share is None else shares[n],
            values if each is None else values[n],
            gradient[n],
            spill[task],
            sums[task],
            counts[task],
        )

    work.run(one)
    if counts[:, 1].any():
        bad = counts[np.flatnonzero(counts[:, 1])[0], 2]
        raise bad_label(int(bad), classes, loss.ignore)
    if wanted:
        for task in range(work.tasks):
            n, part = divmod(task, work.parts)
            gradient[n, :, min((part + 1) * work.depth, work.bands)] += spill[task]
    weights = np.ones(classes) if loss.weight is None else loss.weight.double().numpy()
    sum_of = sums.sum(0)
    return Total(
        torch.tensor(sum_of[0], dtype=torch.float32),
        torch.tensor(float(sum_of[1:] @ weights), dtype=torch.float64),
        fold(torch.from_numpy(gradient)[..., : work.columns], sampling) if wanted else None,
    )


def _native(labels: Tensor) -> Any:
    """Labels as a contiguous array of a type that a kernel is compiled for: uint8, uint16, int64."""
    known = (torch.uint8, torch.uint16, torch.int64)
    return (labels if labels.dtype in known else labels.to(torch.int64)).contiguous().numpy()


def _factors(loss: Loss, classes: int) -> tuple[Any, Any]:
    """Per class: the factor of a pixel's own class, and the one of every class (label smoothing; empty without)."""
    weight = np.ones(classes, np.float32) if loss.weight is None else loss.weight.to(torch.float32).numpy()
    own = ((1 - loss.label_smoothing) * weight).astype(np.float32)
    if loss.label_smoothing == 0:
        return own, np.empty(0, np.float32)
    return own, (loss.label_smoothing / classes * weight).astype(np.float32)
