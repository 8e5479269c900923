"""GoogLeNet v1 (Szegedy et al. 2015) twice: the paper's (LRN, 5x5) and torchvision's (batch norm, 3x3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, caffe_norm, caffe_pool, he_init

__all__ = ["GoogLeNet", "GoogLeNetTV"]

# name: in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
BLOCKS: dict[str, tuple[int, ...]] = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def _conv(c: int, out: int, k: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c, out, k, stride, k // 2 if padding is None else padding), nn.ReLU(inplace=True))


@final
class BasicConv2d(nn.Module):
    """torchvision's convolution without bias, batch norm (eps 0.001), ReLU."""

    def __init__(self, c: int, out: int, k: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, out, k, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


@final
class Inception(nn.Module):
    """Four branches side by side: 1x1 | 1x1, 3x3 | 1x1, 5x5 (torchvision: 3x3) | 3x3 max pool, 1x1."""

    def __init__(self, widths: tuple[int, ...], torchvision: bool) -> None:
        super().__init__()
        c, one, reduce3, three, reduce5, five, pool = widths
        if torchvision:
            self.branch1: nn.Module = BasicConv2d(c, one, 1)
            self.branch2 = nn.Sequential(BasicConv2d(c, reduce3, 1), BasicConv2d(reduce3, three, 3, padding=1))
            self.branch3 = nn.Sequential(BasicConv2d(c, reduce5, 1), BasicConv2d(reduce5, five, 3, padding=1))
            last: nn.Module = BasicConv2d(c, pool, 1)
        else:
            self.branch1 = _conv(c, one, 1)
            self.branch2 = nn.Sequential(_conv(c, reduce3, 1), _conv(reduce3, three, 3))
            self.branch3 = nn.Sequential(_conv(c, reduce5, 1), _conv(reduce5, five, 5))
            last = _conv(c, pool, 1)
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1, ceil_mode=torchvision), last)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


@final
class GoogLeNet(Trunk):
    """The paper's trunk: strides 8, 16, 32, the final average pool removed. padding "paper": conv1 padded by 100
    (crop 98), ceil pooling; "same": conv1's native 3 and pools padded by 1, cells on the grid s * i."""

    source = "GoogLeNet, Szegedy et al. 2015; FCN-GoogLeNet of the paper"

    def __init__(self, channels_in: int = 3, padding: str = "paper") -> None:
        super().__init__()
        paper = padding == "paper"

        stem = OrderedDict[str, nn.Module](
            conv1=_conv(channels_in, 64, 7, 2, 100 if paper else 3), pool1=caffe_pool(paper), norm1=caffe_norm(),
            conv2_reduce=_conv(64, 64, 1), conv2=_conv(64, 192, 3), norm2=caffe_norm(), pool2=caffe_pool(paper),
        )  # fmt: skip
        self.stem = nn.Sequential(stem)
        self.inception = nn.ModuleDict({name: Inception(widths, False) for name, widths in BLOCKS.items()})
        self.pool3, self.pool4 = caffe_pool(paper), caffe_pool(paper)
        self.channels = {8: 480, 16: 832, 32: 1024}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        blocks = {name: self.inception[name] for name in BLOCKS}
        return _taps(self.stem(x), blocks, {"3b": self.pool3, "4e": self.pool4})


@final
class GoogLeNetTV(Trunk):
    """torchvision's googlenet, "same" padding (3-wide pools padded by 1): strides 8, 16, 32.

    torchvision pools without padding, rounding up; here the 3-wide windows move by one cell so that all maps share
    the grid s * i + const. pool4 is 2 wide, as there.
    """

    source = "torchvision googlenet"

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__()

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, padding=1)

        self.conv1 = BasicConv2d(channels_in, 64, 7, 2, 3)
        self.maxpool1 = pool()
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = pool()
        for name, widths in BLOCKS.items():
            setattr(self, f"inception{name}", Inception(widths, True))
        self.maxpool3, self.maxpool4 = pool(), nn.MaxPool2d(2, 2, ceil_mode=True)
        self.channels = {8: 480, 16: 832, 32: 1024}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        blocks = {name: getattr(self, f"inception{name}") for name in BLOCKS}
        return _taps(x, blocks, {"3b": self.maxpool3, "4e": self.maxpool4})


def _taps(x: Tensor, blocks: Mapping[str, nn.Module], pools: Mapping[str, nn.Module]) -> dict[int, Tensor]:
    """The blocks in order, those of `pools` pooled afterwards; kept before each pool and at the end."""
    found: dict[int, Tensor] = {}
    for name, block in blocks.items():
        x = block(x)
        if name in pools:
            found[8 << len(found)] = x
            x = pools[name](x)
    return {**found, 32: x}
