"""What is asked of a convolution, apart from its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fullyconv.engine.thresholds import THRESHOLDS, Thresholds

__all__ = ["ConvolutionSpec"]


@final
@dataclass(frozen=True)
class ConvolutionSpec:
    """What a convolution does beside its numbers. plain: itself by `F.conv2d` (x, padding) -> y, for what an
    algorithm leaves out; from_zero_up: whether no number it is given is negative."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    relu: bool
    from_zero_up: bool
    plain: Callable[[Tensor, Sequence[int]], Tensor]
    thresholds: Thresholds = THRESHOLDS
