"""A stronger decoder on the same taps: features, not scores, are brought onto the finest map and then scored once.

    1x1(x32) -> refine -> x2 + 1x1(x16) -> refine -> x2 + 1x1(x8) -> refine -> x2 + 1x1(x4) -> refine -> score

The paper adds up scores (`fcn`), so that what a finer map shows cannot be read in the light of the coarser ones; here
it can. Source: feature pyramid networks (Lin et al. 2017), each level refined on the way up, as in U-Net (Ronneberger
et al. 2015), by y + 3x3(ReLU(y)) whose second term starts as 0 (Goyal et al. 2017): an untrained pyramid is a plain
sum. Nothing looks at the whole image: the field stays finite, tiles stay exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn

from fullyconv.geometry import Map, fuse
from fullyconv.models.score_layers import UpsampledSum
from fullyconv.models.trace import Trace, trace
from fullyconv.models.trunks.trunk import Trunk, he_init

__all__ = ["WIDTH", "Decoded", "Pyramid"]

WIDTH = 64  # channels of every level


@final
class Pyramid(nn.Module):
    """{stride: features N C_s h w} -> features N 64 h w on the finest of these maps.

    channels: stride -> C_s; grids: stride -> where its cells lie. Raises UsageError for strides that are no multiples.
    """

    def __init__(self, channels: Mapping[int, int], grids: Mapping[int, Map]) -> None:
        super().__init__()
        self.strides = tuple(sorted(channels, reverse=True))
        self.lateral = nn.ModuleDict({str(s): _convolution(channels[s], 1) for s in self.strides})
        self.refine = nn.ModuleDict({str(s): nn.Sequential(nn.ReLU(), *_convolution(WIDTH, 3)) for s in self.strides})
        self.join = nn.ModuleDict(
            {
                str(fine): UpsampledSum(fuse(grids[coarse], grids[fine], whole=False)[0])
                for coarse, fine in zip(self.strides, self.strides[1:], strict=False)
            }
        )
        he_init(self)
        for level in self.refine.values():
            nn.init.zeros_(level[-1].weight)  # type: ignore[index]

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        y: Tensor | None = None
        for stride in self.strides:
            level = self.lateral[str(stride)](features[stride])
            y = level if y is None else self.join[str(stride)](level, y)
            y = y + self.refine[str(stride)](y)
        assert y is not None, "a pyramid has a level"
        return y


def _convolution(channels: int, kernel: int) -> nn.Sequential:
    """k x k to `WIDTH` channels, "same", and batch norm."""
    return nn.Sequential(nn.Conv2d(channels, WIDTH, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(WIDTH))


@final
class Decoded(Trunk):
    """A trunk and the pyramid on it as one trunk, whose finest map is the pyramid's; it owns neither."""

    def __init__(self, trunk: Trunk, pyramid: Pyramid) -> None:
        super().__init__()
        self.trunk, self.pyramid, self.source = trunk, pyramid, trunk.source
        self.preprocessing, self.training = trunk.preprocessing, trunk.training
        self.channels = {s: trunk.channels[s] for s in pyramid.strides[:-1]} | {pyramid.strides[-1]: WIDTH}

    @property
    def least(self) -> int:
        return self.trunk.least

    def inner(self) -> nn.Module:
        return _Inner(self.trunk.inner(), self.pyramid)

    def trace(self) -> Trace:
        return trace(self.inner())

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return _decoded(self.trunk(x), self.pyramid)


@final
class _Inner(nn.Module):
    """What can be followed as a graph."""

    def __init__(self, trunk: nn.Module, pyramid: Pyramid) -> None:
        super().__init__()
        self.trunk, self.pyramid = trunk, pyramid

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return _decoded(self.trunk(x), self.pyramid)


def _decoded(features: Mapping[int, Tensor], pyramid: Pyramid) -> dict[int, Tensor]:
    """The maps that the pyramid reads, its own in the place of the finest."""
    *coarser, finest = pyramid.strides
    return {s: features[s] for s in coarser} | {finest: pyramid(features)}
