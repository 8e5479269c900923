"""Labels, confidence and loss on the CPU by compiled kernels: cuts the work into tasks and sets the threads to them.

Imported on first use only, as importing numba takes a third of a second. Kernels are compiled once per user and
machine (numba's cache on disk) and run on the threads that `threads` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fullyconv.ops.loss_kernels as loss_kernels
import fullyconv.ops.resize as resize
import fullyconv.ops.threads as threads
from fullyconv.interpolation import label_kernels
from fullyconv.interpolation.kernel_plan import lay_out
from fullyconv.interpolation.label_kernels import KernelPlan
from fullyconv.ops.fused import Engine, Total
from fullyconv.ops.loss import Loss, bad_label
from fullyconv.ops.loss_kernels import WantedLosses
from fullyconv.ops.sampling import NotFinite, Sampling

__all__ = ["ENGINE", "label", "label_and_confidence", "upsample"]

# Full scores are bound by writing them: nothing compiled here does it quicker.
upsample = resize.upsample

NOTHING = np.empty(0, np.float32)


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """N H W of `dtype` (uint8 or uint16); raises NotFinite."""
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype)
    plan, cells, out = _plan(scores, sampling), _flat(scores), _flat(labels)
    _run(
        plan, lambda state: label_kernels.labels(cells, plan, state, label_kernels.label_scratch(plan, out.dtype), out)
    )
    return labels


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N H W of `dtype` and N H W float32; raises NotFinite."""
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype)
    confidence = torch.empty((len(scores), *sampling.size))
    plan, cells, out, shares = _plan(scores, sampling), _flat(scores), _flat(labels), _flat(confidence)
    _run(
        plan,
        lambda state: label_kernels.confidences(
            cells, plan, state, label_kernels.label_scratch(plan, out.dtype), out, shares
        ),
    )
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


def _flat(values: Tensor) -> Any:
    if values.requires_grad or not values.is_contiguous():
        values = values.detach().contiguous()
    return values.numpy().reshape(-1)


def _run(plan: KernelPlan, kernel: Callable[[object], None]) -> None:
    """Let every thread draw tasks until none is left: kernel(state)."""
    state = np.zeros(2, np.int64)
    threads.run_tasks(lambda _: kernel(state), min(torch.get_num_threads(), len(plan.tasks)))
    if state[1]:
        raise NotFinite


def _plan(scores: Tensor, sampling: Sampling) -> KernelPlan:
    return lay_out(sampling, len(scores), scores.shape[1])


def _pass(
    scores: Tensor,
    labels: Tensor,
    sampling: Sampling,
    loss: Loss,
    share: Tensor | None,
    each: Tensor | None,
    gradient: bool,
) -> Total:
    plan, cells = _plan(scores, sampling), _flat(scores)
    classes, _, width = plan.shape
    own, extra = _factors(loss, classes)
    slope = torch.zeros(scores.shape) if gradient else torch.empty(0)
    wanted = WantedLosses(
        labels=_flat(_native(labels)),
        ignore=loss.ignore,
        weight=own,
        extra=extra,
        pixel_weight=NOTHING if share is None else _flat(share.to(torch.float32)),
        losses=NOTHING if each is None else _flat(each),
        gradient=_flat(slope),
        spill=np.zeros(len(plan.tasks) * classes * width if gradient else 0, np.float32),
        sums=np.zeros((len(plan.tasks), 2)),
        counts=np.zeros((len(plan.tasks), 2), np.int64),
    )
    _run(
        plan,
        lambda state: loss_kernels.cross_entropies(
            cells, plan, state, loss_kernels.loss_scratch(plan, gradient), wanted
        ),
    )
    if wanted.counts[:, 0].any():
        raise bad_label(int(wanted.counts[wanted.counts[:, 0] > 0][0, 1]), classes, loss.ignore)
    if gradient:
        loss_kernels.add_spill(plan, wanted.spill, wanted.gradient)
    value, weight = wanted.sums.sum(0)
    return Total(
        torch.tensor(value, dtype=torch.float32),
        torch.tensor(weight / (1 - loss.label_smoothing), dtype=torch.float64),
        slope if gradient else None,
    )


def _native(labels: Tensor) -> Tensor:
    """Labels of a type that a kernel is compiled for: uint8, uint16, int64."""
    return labels if labels.dtype in (torch.uint8, torch.uint16, torch.int64) else labels.to(torch.int64)


def _factors(loss: Loss, classes: int) -> tuple[Any, Any]:
    """Per class: the factor of a pixel's own class, and the one of every class (label smoothing; empty without)."""
    weight = np.ones(classes, np.float32) if loss.weight is None else loss.weight.to(torch.float32).numpy()
    own = ((1 - loss.label_smoothing) * weight).astype(np.float32)
    if loss.label_smoothing == 0:
        return own, np.empty(0, np.float32)
    return own, (loss.label_smoothing / classes * weight).astype(np.float32)
