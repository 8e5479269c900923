"""EfficientNet-Lite (Google 2020): EfficientNet (Tan and Le 2019) without squeeze-excitation, with ReLU6.

Nothing in it sees the whole image, so its field is finite and tiles equal the whole. Keys as timm's
`efficientnet_lite0` to `4`. Padding is symmetric, as timm's: where a map's side is odd that is what the weights were
trained with (TensorFlow's SAME); where it is even theirs lies one pixel further right and down, which moves the grid
and not the features.
"""

from __future__ import annotations

import math
from typing import final

from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, he_init
from fullyconv.preprocessing import Preprocessing

__all__ = ["EfficientNetLite"]

EPS, MOMENTUM = 1e-3, 0.01  # batch norm's, as the weights were trained with
# inputs (x - 127) / 128 on 0..255
LITE = Preprocessing((0, 1, 2), 1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


@final
class DepthwiseSeparable(nn.Module):
    """3x3 depthwise, then a linear 1x1 projection: the first stage."""

    def __init__(self, c: int, out: int, k: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(c, c, k, stride, k // 2, groups=c, bias=False)
        self.bn1 = nn.BatchNorm2d(c, EPS, MOMENTUM)
        self.conv_pw = nn.Conv2d(c, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, EPS, MOMENTUM)
        self.act = nn.ReLU6(inplace=True)
        self.residual = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(self.act(self.bn1(self.conv_dw(x)))))
        return x + y if self.residual else y


@final
class InvertedBottleneck(nn.Module):
    """1x1 expansion by 6, depthwise, linear 1x1 projection; summed with the input where shapes agree."""

    def __init__(self, c: int, out: int, k: int, stride: int) -> None:
        super().__init__()
        hidden = 6 * c
        self.conv_pw = nn.Conv2d(c, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden, EPS, MOMENTUM)
        self.conv_dw = nn.Conv2d(hidden, hidden, k, stride, k // 2, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden, EPS, MOMENTUM)
        self.conv_pwl = nn.Conv2d(hidden, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, EPS, MOMENTUM)
        self.act = nn.ReLU6(inplace=True)
        self.residual = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn1(self.conv_pw(x)))
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


@final
class EfficientNetLite(Trunk):
    """Strides 2, 4, 8, 16, 32; 32 is the last 1x1 convolution (1280 channels); cells lie at s * i.

    width, depth: the factors of Lite0 (1, 1), Lite1 (1, 1.1), Lite2 (1.1, 1.2), Lite3 (1.2, 1.4), Lite4 (1.4, 1.8);
    the stem, the first and the last stage and the head keep their size.
    """

    source = "EfficientNet-Lite, Google 2020 (tensorflow/tpu); timm efficientnet_lite0..4"
    preprocessing = LITE
    # kernel, stride, out, blocks
    STAGES = (
        (3, 1, 16, 1), (3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4), (3, 1, 320, 1),
    )  # fmt: skip

    def __init__(self, channels_in: int = 3, padding: str = "same", *, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(channels_in, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32, EPS, MOMENTUM)
        self.act = nn.ReLU6(inplace=True)
        stages: list[nn.Module] = []
        c, s, self.taps, self.channels = 32, 2, {}, {}
        for i, (k, stride, out, blocks) in enumerate(self.STAGES):
            if stride == 2:
                self.taps[i - 1], self.channels[s] = s, c
                s *= 2
            first, last = i == 0, i == len(self.STAGES) - 1
            repeats = blocks if first or last else math.ceil(depth * blocks)
            block, out = DepthwiseSeparable if first else InvertedBottleneck, _eighths(out * width)
            layers = [block(c, out, k, stride), *(block(out, out, k, 1) for _ in range(repeats - 1))]
            stages.append(nn.Sequential(*layers))
            c = out
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(c, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280, EPS, MOMENTUM)
        self.channels[s] = 1280
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.act(self.bn1(self.conv_stem(x)))
        found: dict[int, Tensor] = {}
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in self.taps:
                found[self.taps[i]] = x
        found[32] = self.act(self.bn2(self.conv_head(x)))
        return found


def _eighths(c: float) -> int:
    """The multiple of 8 nearest to `c`, at least 8 and never below nine tenths of it (TensorFlow's rounding)."""
    rounded = max(8, int(c + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * c else rounded
