"""Focal, Tversky (dice) and Lovász losses from coarse scores, strip by strip or class by class: never N K H W at once.

Each has its definition on full scores, differentiated by autograd, in `reference_losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fullyconv.ops.chunked import Strip, groups
from fullyconv.ops.loss import labelled
from fullyconv.ops.sampling import Sampling, coarse_window, edge_weights, fold

__all__ = ["focal", "lovasz", "tversky"]

_Function = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


def focal(
    scores: Tensor, labels: Tensor, sampling: Sampling, ignore: int, weight: Tensor | None, gamma: float
) -> Tensor:
    """Sum over the labelled pixels of w (1 - p)^gamma (-log p), p and w their own class's."""

    def value(scores: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        total = torch.zeros((), dtype=torch.float64, device=scores.device)

        def visit(full: Tensor, strip: Strip) -> Tensor | None:
            index, valid = _classes(strip.of(labels), ignore, full.dtype)
            own = valid if weight is None else weight[index] * valid
            logs = full.log_softmax(1)
            log_p = logs.gather(1, index[:, None])[:, 0]
            p = log_p.exp()
            miss = (1 - p).clamp_min(0)
            total.sub_((own * miss**gamma * log_p).sum(dtype=torch.float64))
            if not wanted:
                return None
            # d/dlog p, whose own slope is [own class] - softmax. At p = 1 the first term's limit is 0.
            inner = gamma * miss.clamp_min(torch.finfo(p.dtype).tiny) ** (gamma - 1) * p * log_p if gamma else 0
            slope = own * (inner - miss**gamma)
            return logs.exp_().mul_(-slope[:, None]).scatter_add_(1, index[:, None], slope[:, None])

        gradient = _walk(scores, sampling, visit, wanted)
        return total.to(scores.dtype), gradient

    return _differentiable(scores, value)


def tversky(
    scores: Tensor,
    labels: Tensor,
    sampling: Sampling,
    ignore: int,
    weight: Tensor | None,
    alpha: float,
    beta: float,
) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN), sums of probabilities, averaged over the classes that occur."""

    def value(scores: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        classes = scores.shape[1]
        hit, predicted, true = (torch.zeros(classes, dtype=torch.float64, device=scores.device) for _ in range(3))

        def count(full: Tensor, strip: Strip) -> None:
            index, valid = _classes(strip.of(labels), ignore, full.dtype)
            p = full.softmax(1)
            own = p.gather(1, index[:, None])[:, 0] * valid
            hit.index_add_(0, index.flatten(), own.flatten().double())
            true.index_add_(0, index.flatten(), valid.flatten().double())
            predicted.add_(torch.einsum("nkyx,nyx->k", p, valid))

        _walk(scores, sampling, count, False)
        with torch.enable_grad():
            sums = [hit.requires_grad_(), predicted.requires_grad_()]
            loss = _of_sums(sums[0], sums[1], true, weight, alpha, beta)
            of_hit, of_said = (g.to(scores.dtype) for g in torch.autograd.grad(loss, sums))

        def push(full: Tensor, strip: Strip) -> Tensor:
            index, valid = _classes(strip.of(labels), ignore, full.dtype)
            p = full.softmax(1)
            own = p.gather(1, index[:, None])[:, 0]
            mean = torch.einsum("nkyx,k->nyx", p, of_said) + of_hit[index] * own
            at_own = p.gather(1, index[:, None]) * of_hit[index][:, None]
            slope = p.mul_(of_said[:, None, None] - mean[:, None]).scatter_add_(1, index[:, None], at_own)
            return slope.mul_(valid[:, None])

        gradient = _walk(scores, sampling, push, True) if wanted else None
        return loss.detach().to(scores.dtype), gradient

    return _differentiable(scores, value)


def _of_sums(hit: Tensor, predicted: Tensor, true: Tensor, weight: Tensor | None, alpha: float, beta: float) -> Tensor:
    """The Tversky loss of K true positives, sums of probabilities and pixels; 0 where no class occurs."""
    share = (true > 0).to(hit) if weight is None else (true > 0) * weight.to(hit)
    index = hit / (hit + alpha * (predicted - hit) + beta * (true - hit)).clamp_min(torch.finfo(torch.float32).tiny)
    total = share.sum()
    return ((1 - index) * share).sum() / torch.where(total > 0, total, torch.ones_like(total))


def lovasz(scores: Tensor, labels: Tensor, sampling: Sampling, ignore: int, weight: Tensor | None) -> Tensor:
    """The Lovász extension of 1 - IU at the errors |[label] - p|, averaged over the classes that occur.

    Class by class: the pixels' errors of one class are sorted at a time, and the part of the gradient that needs all
    classes (softmax's) is added in a second round, so that N H W numbers are held and never N K H W.
    """

    def value(scores: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        n, classes = scores.shape[:2]
        down, across = (
            edge_weights(axis, sampling.border, scores.dtype, scores.device)
            for axis in (sampling.rows, sampling.columns)
        )
        valid = labelled(labels, ignore)
        normaliser = torch.empty((n, *sampling.size), dtype=scores.dtype, device=scores.device)

        def normalise(full: Tensor, strip: Strip) -> None:
            strip.of(normaliser).copy_(full.logsumexp(1))

        _walk(scores, sampling, normalise, False)

        def probability(k: int) -> Tensor:
            return (down @ scores[:, k] @ across.T).sub_(normaliser).exp_()

        # bincount would refuse the ignore values that are negative.
        counts = torch.bincount(labels[valid].to(torch.int64), minlength=classes)[:classes]
        share = (counts > 0).to(scores) if weight is None else (counts > 0) * weight
        share = share / share.sum() if bool(share.sum() > 0) else share
        gradient = torch.zeros_like(scores) if wanted else None
        mean = torch.zeros_like(normaliser) if wanted else None
        total = torch.zeros((), dtype=torch.float64, device=scores.device)
        for k in torch.nonzero(share).flatten().tolist():
            p = probability(k)
            truth = labels == k
            each, slope = _lovasz_hinge(p[valid], truth[valid])
            total += each * share[k]
            if gradient is not None and mean is not None:
                full = torch.zeros_like(p)
                full[valid] = slope * share[k]
                full *= p
                mean += full
                gradient[:, k] += down.T @ full @ across
        if gradient is not None and mean is not None:
            for k in range(classes):
                gradient[:, k] -= down.T @ probability(k).mul_(mean) @ across
        return total.to(scores.dtype), gradient

    return _differentiable(scores, value)


def _lovasz_hinge(p: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, its slope by p) of one class: p and truth of the labelled pixels, flat."""
    errors = torch.where(truth, 1 - p, p)
    errors, order = errors.sort(descending=True)
    jaccard = jaccard_slope(truth[order]).to(p.dtype)
    slope = torch.empty_like(p)
    slope[order] = jaccard
    return (errors @ jaccard).double(), torch.where(truth, -slope, slope)


def jaccard_slope(truth: Tensor) -> Tensor:
    """By how much 1 - IU grows as the pixels are got wrong one after the other, the worst first: flat float64.

    Source: Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, algorithm 1.
    """
    found = truth.to(torch.float64)
    missed = found.cumsum(0)
    union = found.sum() + (1 - found).cumsum(0)
    jaccard = 1 - (found.sum() - missed) / union
    return torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))


# ---- shared ----


def _classes(labels: Tensor, ignore: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(class of every pixel, 0 where ignored: int64; 1 or 0 where ignored: `dtype`)."""
    index = labels.to(torch.int64)
    valid = index != ignore
    return index * valid, valid.to(dtype)


def _walk(
    scores: Tensor, sampling: Sampling, visit: Callable[[Tensor, Strip], Tensor | None], wanted: bool
) -> Tensor | None:
    """Show every strip of full scores to `visit`; if wanted, its gradients by them, brought to N K h w."""
    cells = coarse_window(scores, sampling)
    slope = torch.zeros_like(cells) if wanted else None
    for group in groups(cells, sampling):
        wide_slope = torch.zeros_like(group.wide) if wanted else None
        for strip in group.strips:
            gradient = visit(group.scores(strip), strip)
            if wide_slope is not None and gradient is not None:
                group.add_gradient(strip, gradient, wide_slope)
        if slope is not None and wide_slope is not None:
            group.add_wide_gradient(wide_slope, slope)
    return None if slope is None else fold(slope, sampling)


def _differentiable(scores: Tensor, function: _Function) -> Tensor:
    """`function(scores, wanted)` -> (value, gradient if wanted) as a node of autograd, differentiable once."""
    result: Tensor = _Node.apply(scores, function, torch.is_grad_enabled() and scores.requires_grad)
    return result


@final
@dataclass
class _Kept:
    gradient: Tensor | None


@final
class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, function: _Function, wanted: bool) -> Tensor:
        value, gradient = function(scores.detach(), wanted)
        ctx.kept = _Kept(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        return ctx.kept.gradient * outer, None, None
