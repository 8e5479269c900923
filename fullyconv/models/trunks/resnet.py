"""ResNet-18 and -50 (He et al. 2016). Keys as torchvision's (its fc is not used)."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, he_init

__all__ = ["ResNet"]


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the sum with the input."""

    expansion = 1

    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(c, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return z


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 (carries the stride), 1x1 four times as wide, and the sum with the input."""

    expansion = 4

    def __init__(self, c: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(c, width * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        z: Tensor = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return z


def _shortcut(c: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and c == out:
        return None
    return nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))


@final
class ResNet(Trunk):
    """Strides 2 (conv1), 4, 8, 16, 32; cells lie at s * i and h = ceil(H / s). "same" padding only."""

    source = "ResNet, He et al. 2016; torchvision resnet18, resnet50"

    def __init__(
        self,
        channels_in: int = 3,
        padding: str = "same",
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        depths: tuple[int, ...] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c, self.channels = 64, {2: 64}
        for n, depth in enumerate(depths):
            width, stride = 64 * 2**n, 1 if n == 0 else 2
            blocks: list[nn.Module] = []
            for i in range(depth):
                blocks.append(block(c, width, stride if i == 0 else 1))
                c = width * block.expansion
            setattr(self, f"layer{n + 1}", nn.Sequential(*blocks))
            self.channels[4 * 2**n] = c
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        found = {2: self.relu(self.bn1(self.conv1(x)))}
        x = self.maxpool(found[2])
        for n in range(4):
            x = getattr(self, f"layer{n + 1}")(x)
            found[4 * 2**n] = x
        return found
