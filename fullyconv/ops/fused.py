"""Cross entropy whose gradient is computed along with its value: the autograd node that all fused implementations
share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fullyconv.ops.loss import Loss, kept
from fullyconv.ops.sampling import Sampling

__all__ = ["Engine", "Total", "fused_cross_entropy"]


NOTHING = (None,) * 5  # no gradient for the labels and the options


@final
@dataclass(frozen=True)
class Total:
    """What one pass gives: sum of share x loss and of share x class weight over the labelled pixels, and the first's
    gradient.
    """

    loss: Tensor
    weight: Tensor
    gradient: Tensor | None


@final
@dataclass(frozen=True)
class Engine:
    """One implementation: `losses` gives N H W, 0 where ignored; `total` takes each pixel's share N H W, or None for
    1.
    """

    losses: Callable[[Tensor, Tensor, Sampling, Loss], Tensor]
    total: Callable[[Tensor, Tensor, Sampling, Loss, Tensor | None, bool], Total]


def fused_cross_entropy(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, engine: Engine) -> Tensor:
    """The loss as `reference.cross_entropy` defines it; differentiable once, with respect to `scores`."""
    wanted = torch.is_grad_enabled() and scores.requires_grad
    result: Tensor = _Fused.apply(scores, labels, sampling, loss, engine, wanted)
    return result


@final
class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, engine: Engine, wanted: bool
    ) -> Tensor:
        share = None
        if loss.top_k is not None or loss.reduction == "none":
            each = engine.losses(scores, labels, sampling, loss)
            share = kept(each, labels, loss).to(each.dtype) if loss.top_k is not None else None
            each = each if share is None else each * share
        if loss.reduction == "none":
            ctx.redo = (scores, labels, sampling, loss, engine, share)
            return each
        total = engine.total(scores, labels, sampling, loss, share, wanted)
        scale = torch.ones_like(total.weight)
        if loss.reduction == "mean":
            scale = torch.where(total.weight > 0, 1 / total.weight, torch.zeros_like(total.weight))
        ctx.redo = (scores, labels, sampling, loss, engine, share)
        ctx.scale, ctx.gradient = scale, total.gradient
        return total.loss * scale.to(total.loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        scores, labels, sampling, loss, engine, share = ctx.redo
        if loss.reduction == "none":
            share = outer if share is None else outer * share
            return engine.total(scores, labels, sampling, loss, share, True).gradient, *NOTHING
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # given away by an earlier backward pass over the same graph
            gradient = engine.total(scores, labels, sampling, loss, share, True).gradient
        # In place, and no longer held here: autograd then keeps this very tensor instead of a copy.
        return gradient.mul_((ctx.scale * outer).to(gradient)), *NOTHING
