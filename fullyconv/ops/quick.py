"""Learning through 3x3 convolutions by a quarter of the multiplications: forward, and for both gradients.

    with quick_convolutions():
        scores = network(x)

The slow twin is the same without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fullyconv.ops import winograd

__all__ = ["convolve", "quick_convolutions"]

FEW = 1024  # results below which transforming the weights takes longer than the multiplications that it saves


def quick_convolutions() -> AbstractContextManager[Any]:
    """While it is entered, torch's convolutions are computed by `winograd` where that serves: float32 on the CPU, 3x3,
    stride and dilation 1, one group, whole groups of 16 channels, and maps that are not tiny. Gradients may be taken
    afterwards. Under automatic precision, and without numba, nothing changes.
    """
    return _Quick() if winograd.installed() else nullcontext()


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
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
class _Quick(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.conv2d and not kwargs and len(args) == 7 and _pays(*args):
            return convolve(args[0], args[1], args[2], args[4])
        return function(*args, **(kwargs or {}))


def _pays(x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    if x.device.type != "cpu" or x.ndim != 4 or {x.dtype, weight.dtype} != {torch.float32}:
        return False
    if torch.is_autocast_enabled("cpu") or (*stride, *dilation, groups) != (1, 1, 1, 1, 1):
        return False
    if isinstance(padding, str) or max(padding) > 2 or not winograd.serves(weight.shape):
        return False
    return bool(len(x) * (x.shape[2] + 2 * padding[0] - 2) * (x.shape[3] + 2 * padding[1] - 2) >= FEW)
