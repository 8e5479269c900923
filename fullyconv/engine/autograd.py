"""Learning through convolutions that are computed another way than torch's, forward and for both gradients: 3x3 ones by
a quarter of the multiplications, those with very many weights as products with the weights as they lie.

    with fast_convolutions():
        scores = network(x)

The slow twin is the same without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fullyconv.engine import winograd
from fullyconv.engine.product import multiply
from fullyconv.engine.thresholds import THRESHOLDS, Thresholds

__all__ = ["conv2d", "fast_convolutions"]


def fast_convolutions(thresholds: Thresholds = THRESHOLDS) -> AbstractContextManager[Any]:
    """While it is entered, some of torch's convolutions on the CPU (stride and dilation 1, one group) are computed
    another way; gradients may be taken afterwards.

    `conv2d`: float32 (no automatic precision), 3x3, whole groups of 16 channels, maps that are not tiny; needs
    numba. `multiply`: from 16 million weights, at any precision.
    """
    return _FastConvolutions(thresholds)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=padding)` up to rounding, with gradients; x and weight as `winograd` takes
    them, padding at most 2.
    """
    found: Tensor = _Convolve.apply(x, weight, bias, (padding[0], padding[1]))
    return found


@final
class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        shift = None if bias is None else bias.detach()
        return winograd.convolve(x.detach(), winograd.transformed(weight.detach()), shift, padding, False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            turned = winograd.transformed(weight.flip(2, 3).transpose(0, 1))
            for_x = winograd.convolve(gradient, turned, None, [2 - p for p in ctx.padding], False)
        if ctx.needs_input_grad[1]:
            for_weight = torch.empty_like(weight).copy_(winograd.weight_gradient(x, gradient, ctx.padding))
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None


@final
class _FastConvolutions(TorchFunctionMode):
    def __init__(self, thresholds: Thresholds) -> None:
        super().__init__()
        self.thresholds = thresholds
        self.tiles = winograd.installed()

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d and not kwargs and len(args) == 7 and _slides(*args):
            x, weight, bias, _, padding = args[:5]
            if _is_huge(x, weight, padding, self.thresholds):
                return multiply(x, weight, bias, padding)
            if self.tiles and _has_tiles(x, weight, padding, self.thresholds):
                return conv2d(x, weight, bias, padding)
        return function(*args, **(kwargs or {}))


def _slides(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether it is a convolution of images on the CPU that moves by single cells."""
    once = (*stride, *dilation, groups) == (1, 1, 1, 1, 1)
    return once and x.device.type == "cpu" and x.ndim == 4 and not isinstance(padding, str)


def _results(x: Tensor, weight: Tensor, padding: Sequence[int]) -> int:
    rows, columns = (n + 2 * p - k + 1 for n, p, k in zip(x.shape[2:], padding, weight.shape[2:], strict=True))
    return int(len(x) * rows * columns)


def _is_huge(x: Tensor, weight: Tensor, padding: Sequence[int], at: Thresholds) -> bool:
    windows = _results(x, weight, padding) * weight[0].numel()
    return weight.numel() > at.product_weights and windows <= at.product_windows


def _has_tiles(x: Tensor, weight: Tensor, padding: Sequence[int], at: Thresholds) -> bool:
    plain = {x.dtype, weight.dtype} == {torch.float32} and not torch.is_autocast_enabled("cpu")
    enough = _results(x, weight, padding) >= at.winograd_results
    return plain and max(padding) <= 2 and winograd.serves(weight.shape) and enough
