"""The layers that the paper adds to a classifier: scores of every cell, and what brings them onto a finer map.

Paper sections 3.2 to 4.2. Each layer takes and gives scores N K h w.
"""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv import ops
from fullyconv.geometry import Skip, as_number, kernel_width
from fullyconv.ops.autocast import without_autocast

__all__ = ["BilinearUpsampling", "Border", "LearnedUpsampling", "ScoreLayer", "UpsampledSum", "crop"]

Border = Literal["fade", "replicate"]


@final
class ScoreLayer(nn.Conv2d):
    """features N C h w -> scores N K h w: a 1x1 convolution, all zero before training.

    The paper: random scores were neither better nor faster. Computed in the type of its weights whatever the trunk's
    precision: scores are what is compared, and oneDNN's bfloat16 gradient of a 1x1 convolution from 4,096 channels to
    a few writes past its memory (torch 2.15, processors with AMX).
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, 1)
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, features: Tensor) -> Tensor:
        with without_autocast(features):
            return super().forward(features.to(self.weight.dtype))


@final
class BilinearUpsampling(nn.Module):
    """Coarse scores by bilinear interpolation, to be laid on the finer map: nothing to learn.

    border "fade", the paper's: the whole upsampled map, onto which the finer one is cropped; "replicate": at the finer
    map's size, its edge repeated.
    """

    def __init__(self, skip: Skip, border: Border) -> None:
        super().__init__()
        self.skip, self.border = skip, border

    def forward(self, scores: Tensor, finer: Tensor) -> Tensor:
        factor = self.skip.factor
        size = tuple(finer.shape[2:])
        if self.border == "fade":
            size = tuple((n - 1) * factor + kernel_width(factor) for n in scores.shape[2:])
        return ops.upsample(scores, size, factor, as_number(self.skip.offset), border=self.border)


@final
class UpsampledSum(nn.Module):
    """finer + coarser, the coarser map brought onto the finer one's grid and size, its edge repeated."""

    def __init__(self, skip: Skip) -> None:
        super().__init__()
        self.skip = skip

    def forward(self, finer: Tensor, coarser: Tensor) -> Tensor:
        size, factor = tuple(finer.shape[2:]), self.skip.factor
        return finer + ops.upsample(coarser, size, factor, as_number(self.skip.offset), border="replicate")


@final
class LearnedUpsampling(nn.Module):
    """`BilinearUpsampling` as a transposed convolution K -> K that is trained from there (CVPR's intermediate x2)."""

    def __init__(self, classes: int, skip: Skip, border: Border) -> None:
        super().__init__()
        self.skip, self.border = skip, border
        # A grid that lies half a cell off needs an odd kernel to start as exact interpolation.
        width = kernel_width(skip.factor) - (skip.offset.denominator != 1)
        ramp = 1 - (torch.arange(width) - (width - 1) / 2).abs() / skip.factor
        weight = torch.zeros(classes, classes, width, width)
        weight[range(classes), range(classes)] = ramp[:, None] * ramp[None, :]
        self.weight = nn.Parameter(weight)

    def forward(self, scores: Tensor, finer: Tensor) -> Tensor:
        factor = self.skip.factor
        if self.border == "fade":
            return F.conv_transpose2d(scores, self.weight, stride=factor)
        # One cell of edge is repeated on either side, then the map is cropped to lie on the finer one.
        up = F.conv_transpose2d(F.pad(scores, (1, 1, 1, 1), mode="replicate"), self.weight, stride=factor)
        start = int(self.skip.offset) + factor  # int() drops the half cell that the odd kernel makes up for
        up = F.pad(up, (0, factor, 0, factor), mode="replicate")
        return up[..., start : start + finer.shape[2], start : start + finer.shape[3]]


def crop(finer: Tensor, skip: Skip, onto: Tensor) -> Tensor:
    """The finer scores' part that `onto`, upsampled from coarser ones, lies on (Caffe's Crop layer)."""
    if not skip.crop:
        return finer
    h, w = onto.shape[2:]
    return finer[..., skip.crop : skip.crop + h, skip.crop : skip.crop + w]
