"""Optimisers, learning rates and the running average of the weights: pure functions and one optimiser of Caffe's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from fullyconv.models.interface import SegmentationModel
from fullyconv.recipes import Recipe

__all__ = ["CaffeSGD", "FrugalSGD", "average_into", "optimizer_for", "parameter_groups", "rate", "set_rate"]


@final
class CaffeSGD(torch.optim.Optimizer):
    """Caffe's momentum: v = momentum * v + lr * (gradient + decay * w); w = w - v.

    torch.optim.SGD leaves lr out of v, which is the same while lr is constant and another step once it changes.
    A step uses up the gradients. Source: Caffe's SGDSolver (`ComputeUpdateValue`).
    """

    def __init__(self, groups: ParamsT, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "CaffeSGD takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                gradient = p.grad.add_(p, alpha=group["weight_decay"])  # in place: a copy of fc6's is 411 MB
                state["velocity"].mul_(group["momentum"]).add_(gradient, alpha=group["lr"])
                p.sub_(state["velocity"])


@final
class FrugalSGD(torch.optim.Optimizer):
    """torch.optim.SGD to the bit, without its copies of the gradients: a step uses them up.

    (torch's own adds the decay into a copy, and starts the momentum with another: 411 MB each for fc6. Its fused step
    copies what lies channels last.)
    """

    def __init__(self, groups: ParamsT, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "FrugalSGD takes no closure"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient, state = p.grad, self.state[p]
                if group["weight_decay"]:
                    gradient.add_(p, alpha=group["weight_decay"])
                if group["momentum"]:
                    if "momentum_buffer" in state:
                        gradient = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                    else:  # taken over, unless it is a part of something larger
                        own = gradient.untyped_storage().nbytes() == gradient.nbytes
                        state["momentum_buffer"], p.grad = gradient if own else gradient.clone(), None
                p.add_(gradient, alpha=-group["lr"])


def parameter_groups(model: SegmentationModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups {params, names, factor, weight_decay}: trunk or head, weight or bias; factor multiplies the rate.

    A "bias" here is every parameter of at most one axis (biases, batch norm), as Caffe's bias multipliers have it.
    """
    trunk = {id(p) for p in model.trunk_parameters()}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        head = id(p) not in trunk
        bias = p.ndim <= 1 and (head or recipe.bias_scope == "all")
        group = groups.setdefault((head, bias), {"params": [], "names": []})
        group["params"].append(p)
        group["names"].append(name)
        group["factor"] = (recipe.head_lr if head else 1.0) * (recipe.bias_lr if bias else 1.0)
        group["weight_decay"] = 0.0 if bias and not recipe.bias_decay else recipe.weight_decay
    return [groups[key] for key in sorted(groups)]


def optimizer_for(model: SegmentationModel, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's learnable parameters; a step may use up the gradients."""
    groups = parameter_groups(model, recipe)
    if recipe.optimizer == "adamw":
        betas = (recipe.momentum, recipe.beta2)
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return FrugalSGD(groups, recipe.lr, recipe.momentum, recipe.weight_decay)
    return CaffeSGD(groups, recipe.lr, recipe.momentum, recipe.weight_decay)


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate at `progress` (0 at the start, 1 at the end) of the run.

    poly: (1 - progress)^power (Chen et al. 2016); one-cycle: half a cosine up over the warm-up from 1/25 of the rate,
    half a cosine down to 1/10^4 of it (Smith and Topin 2018). The others rise linearly over the warm-up.
    """
    progress = min(max(progress, 0.0), 1.0)
    rise = min(progress / recipe.warmup, 1.0) if recipe.warmup else 1.0
    if recipe.schedule == "constant":
        return recipe.lr * max(rise, 1e-3)
    if recipe.schedule == "poly":
        return recipe.lr * max(rise, 1e-3) * math.pow(1 - progress, recipe.power)
    if rise < 1:
        return recipe.lr * _cosine(1 / 25, 1.0, rise)
    return recipe.lr * _cosine(1.0, 1e-4, (progress - recipe.warmup) / (1 - recipe.warmup))


def set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, progress: float) -> float:
    """Give every group its learning rate; returns the trunk's."""
    now = rate(recipe, progress)
    for group in optimizer.param_groups:
        group["lr"] = now * group["factor"]
    return now


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@torch.no_grad()
def average_into(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """average = d * average + (1 - d) * model with d = min(decay, (1 + step) / (10 + step)); counters are copied.

    The early d keeps the random start out of the average of a short run.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    old, new = zip(*((a, b) for a, b in _pairs(average, model) if a.is_floating_point()), strict=True)
    torch._foreach_lerp_(list(old), list(new), share)
    for a, b in _pairs(average, model):
        if not a.is_floating_point():
            a.copy_(b)


def _pairs(average: nn.Module, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(average.state_dict().values(), model.state_dict().values(), strict=True)
