"""The definitions of the focal, Tversky and Lovász losses on full scores, in plain torch: the twins of `strip_losses`.

Nothing here is fast; autograd differentiates it. Labels are N H W int64, scores coarse N K h w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fullyconv.ops.reference import upsample
from fullyconv.ops.sampling import Sampling

__all__ = ["focal", "lovasz", "tversky"]


def focal(
    scores: Tensor, labels: Tensor, sampling: Sampling, ignore: int, weight: Tensor | None, gamma: float
) -> Tensor:
    """Sum over the labelled pixels of w (1 - p)^gamma (-log p), p and w their own class's.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, section 3.2.
    """
    logs, classes = _pixels(upsample(scores, sampling).log_softmax(1), labels, ignore)
    own = logs.gather(1, classes[:, None])[:, 0]
    weights = torch.ones_like(own) if weight is None else weight[classes]
    return -(weights * (1 - own.exp()) ** gamma * own).sum()


def tversky(
    scores: Tensor, labels: Tensor, sampling: Sampling, ignore: int, weight: Tensor | None, alpha: float, beta: float
) -> Tensor:
    """1 - TP / (TP + alpha FP + beta FN), the (weighted) mean over the classes that occur.

    Sources: Milletari, Navab, Ahmadi, "V-Net", 3DV 2016, section 3 (dice: alpha = beta = 1/2, its squares in the
    denominator left out); Salehi, Erdogmus, Gholipour, "Tversky loss function", MLMI 2017, equation 3.
    """
    p, classes = _pixels(upsample(scores, sampling).softmax(1), labels, ignore)
    total, parts = p.sum() * 0, 0.0
    for k in torch.unique(classes).tolist():
        truth = (classes == k).to(p)
        hit = (p[:, k] * truth).sum()
        index = hit / (hit + alpha * (p[:, k] * (1 - truth)).sum() + beta * ((1 - p[:, k]) * truth).sum())
        share = 1.0 if weight is None else float(weight[k])
        total, parts = total + (1 - index) * share, parts + share
    return total / parts if parts else total


def lovasz(scores: Tensor, labels: Tensor, sampling: Sampling, ignore: int, weight: Tensor | None) -> Tensor:
    """The Lovász extension of 1 - IU at the errors |[label] - p|, the (weighted) mean over the classes that occur.

    Source: Berman, Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, equation 9: as the sum over the sorted
    errors of error times what one more wrong pixel adds to 1 - IU.
    """
    p, classes = _pixels(upsample(scores, sampling).softmax(1), labels, ignore)
    total, parts = p.sum() * 0, 0.0
    for k in torch.unique(classes).tolist():
        truth = classes == k
        errors, order = (truth.to(p) - p[:, k]).abs().sort(descending=True)
        wrong, there, before = 0, int(truth.sum()), 0.0
        one = p.sum() * 0
        missed = 0
        for error, found in zip(errors, truth[order].tolist(), strict=True):
            wrong, missed = wrong + (not found), missed + found
            now = 1 - (there - missed) / (there + wrong)
            one, before = one + error * (now - before), now
        share = 1.0 if weight is None else float(weight[k])
        total, parts = total + one * share, parts + share
    return total / parts if parts else total


def _pixels(full: Tensor, labels: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """(values of the labelled pixels: P K, their classes: P)."""
    valid = labels != ignore
    return full.permute(0, 2, 3, 1)[valid], labels[valid]
