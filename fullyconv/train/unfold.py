"""Let batch norm learn from trained weights without a jump.

Learning with the statistics of a batch changes the function of a trained network at the first step: its own are those
of other images (or, where batch norm was folded into the convolutions, mean 0 and variance 1). So each layer's
statistics are measured on training images, and its scale and shift are set to undo them: the network is the same
function before and after, and learns as a normalised one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fullyconv.data.base import Dataset
from fullyconv.models.interface import SegmentationModel
from fullyconv.train.step import network_input

__all__ = ["unfold"]

LARGEST = 512  # pixels a side that are looked at: the largest crop that is taken by itself, however large images are


@torch.no_grad()
def unfold(model: SegmentationModel, dataset: Dataset, images: int = 16) -> None:
    """Measure every batch norm layer's input on `images` images, spread over the data set: of each what lies in the
    middle, up to `LARGEST` pixels a side.

    With y = g (x - m) / sqrt(v + eps) + b: new m and v are x's mean and variance, new g and b keep y for every x.
    """
    sums: dict[nn.Module, Tensor] = {}

    def add(module: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].double()
        part = torch.stack(
            (x.sum((0, 2, 3)), x.square().sum((0, 2, 3)), torch.full_like(x[0, :, 0, 0], x[:, 0].numel()))
        )
        sums[module] = sums[module] + part if module in sums else part

    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine and m.track_running_stats]
    if not layers:
        return
    hooks = [layer.register_forward_pre_hook(add) for layer in layers]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    stride = max(1, len(dataset) // images)
    for index in range(0, stride * min(images, len(dataset)), stride):
        model.coarse(network_input(_middle(dataset.image(index))[None], model.preprocessing, device))
    for hook in hooks:
        hook.remove()
    model.train(training)
    for layer, (total, square, count) in sums.items():
        assert isinstance(layer, nn.BatchNorm2d)
        _restate(layer, total / count, square / count - (total / count).square())


def _middle(image: NDArray[np.number]) -> NDArray[Any]:
    """At most `LARGEST` x `LARGEST` pixels of an image H W C."""
    top, left = (max(0, n - LARGEST) // 2 for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + LARGEST, left : left + LARGEST])


def _restate(layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Set the layer's statistics; its scale and shift so that it stays the same function."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    gain = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
    shift = layer.bias.double() - gain * layer.running_mean.double()
    variance = variance.clamp_min(0)
    layer.weight.copy_(gain * (variance + layer.eps).sqrt())
    layer.bias.copy_(shift + gain * mean)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)
