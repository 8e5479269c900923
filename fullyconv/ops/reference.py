"""The definition, in plain torch: a transposed convolution with fixed bilinear weights, then whatever is asked of the
full scores.

Nothing here is fast; everything else in this package is tested against it. Autograd differentiates it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.geometry import kernel_width
from fullyconv.ops.loss import Loss, reduce_losses
from fullyconv.ops.sampling import Sampling, coarse_window, matrix

__all__ = ["bilinear_kernel", "cross_entropy", "label", "label_and_confidence", "upsample"]


def bilinear_kernel(stride: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The b x b bilinear kernel, b = 2 stride - stride % 2, as Caffe's and the paper's fillers make it."""
    width = kernel_width(stride)
    line = 1 - (torch.arange(width, dtype=dtype) - (width - 1) / 2).abs() / stride
    return line[:, None] * line[None, :]


def upsample(scores: Tensor, sampling: Sampling) -> Tensor:
    """N K h w -> N K H W, differentiable."""
    if all(o.denominator == 1 for o in sampling.offset):
        return _transposed_convolution(scores, sampling)
    return _sampled(scores, sampling)


def _transposed_convolution(scores: Tensor, sampling: Sampling) -> Tensor:
    classes, stride = scores.shape[1], sampling.stride
    cells = coarse_window(scores, sampling)
    kernel = bilinear_kernel(stride, scores.dtype).to(scores.device).expand(classes, 1, -1, -1)
    full = F.conv_transpose2d(cells, kernel, stride=stride, groups=classes)
    crop = [
        int(o) - axis.first * stride for o, axis in zip(sampling.offset, (sampling.rows, sampling.columns), strict=True)
    ]
    return full[:, :, crop[0] : crop[0] + sampling.rows.length, crop[1] : crop[1] + sampling.columns.length]


def _sampled(scores: Tensor, sampling: Sampling) -> Tensor:
    rows, columns = sampling.rows, sampling.columns
    across = matrix(columns, 0, columns.length, scores.dtype, scores.device)
    down = matrix(rows, 0, rows.length, scores.dtype, scores.device)
    return torch.einsum("yi,nkij,xj->nkyx", down, coarse_window(scores, sampling), across)


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """The class with the largest upsampled score: N H W of `dtype`."""
    return upsample(scores, sampling).argmax(1).to(dtype)


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """That class and its softmax probability: N H W of `dtype` and N H W."""
    full = upsample(scores, sampling)
    return full.argmax(1).to(dtype), full.softmax(1).amax(1)


def cross_entropy(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss) -> Tensor:
    """Softmax cross entropy of the upsampled scores, reduced as `loss` says; labels N H W int64."""
    each = F.cross_entropy(
        upsample(scores, sampling),
        labels,
        weight=loss.weight,
        ignore_index=loss.ignore,
        label_smoothing=loss.label_smoothing,
        reduction="none",
    )
    return reduce_losses(each, labels, loss)
