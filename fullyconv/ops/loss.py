"""What a pixel-wise cross entropy is asked to do, and the reductions that all implementations share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fullyconv.errors import DataError

__all__ = ["Loss", "Reduction", "bad_label", "check_values", "kept", "labelled", "reduce_losses", "weight_of"]

Reduction = Literal["mean", "sum", "none"]


@final
@dataclass(frozen=True)
class Loss:
    """Options of `upsample_cross_entropy`, checked."""

    ignore: int = 255
    weight: Tensor | None = None
    label_smoothing: float = 0.0
    top_k: float | None = None
    reduction: Reduction = "mean"


def bad_label(value: int, classes: int, ignore: int) -> DataError:
    """The error for a label that is neither a class nor ignored."""
    return DataError(
        f"Label {value} is neither one of {classes} classes nor the ignore value {ignore}; "
        "check the label files or the number of classes."
    )


def check_values(labels: Tensor, classes: int, ignore: int) -> None:
    """Raises DataError for a label that is neither a class nor `ignore`."""
    wide = labels if labels.dtype in (torch.int64, torch.int32) else labels.to(torch.int32)
    bad = (wide != ignore) & ((wide < 0) | (wide >= classes))
    if bool(bad.any()):
        raise bad_label(int(wide[bad][0]), classes, ignore)


def labelled(labels: Tensor, ignore: int) -> Tensor:
    """Where a label counts: not `ignore`, compared as numbers whatever the type. Same shape, bool."""
    # uint16 cannot be compared in torch, and a number beyond uint8 must not wrap around to a class.
    return (labels if labels.dtype in (torch.int64, torch.int32) else labels.to(torch.int32)) != ignore


def weight_of(labels: Tensor, loss: Loss) -> Tensor:
    """Each pixel's weight in the mean's denominator: its class's, 0 where ignored. N H W."""
    valid = labelled(labels, loss.ignore)
    if loss.weight is None:
        return valid.to(torch.float32)
    return loss.weight[labels.to(torch.int64).masked_fill(~valid, 0)] * valid


def kept(each: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Pixels that count: not ignored and, with `top_k`, whose loss is at least that of the k-th hardest. N H W
    bool.
    """
    valid = labelled(labels, loss.ignore)
    if loss.top_k is None or not bool(valid.any()):
        return valid
    losses = each.detach()[valid]
    count = max(1, math.ceil(loss.top_k * losses.numel()))
    return valid & (each.detach() >= losses.topk(count).values[-1])


def reduce_losses(each: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Per-pixel losses N H W (0 where ignored) -> a number, or N H W itself for "none" (0 where not kept)."""
    keep = kept(each, labels, loss)
    if loss.top_k is not None:
        each = torch.where(keep, each, torch.zeros_like(each))
    if loss.reduction == "none":
        return each
    total = each.sum()
    if loss.reduction == "sum":
        return total
    share = (weight_of(labels, loss) * keep).sum().to(total.dtype)
    return total / share if bool(share > 0) else total * 0
