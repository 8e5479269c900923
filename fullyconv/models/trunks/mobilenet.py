"""MobileNetV2 (Sandler et al. 2018) and MobileNetV3-Large (Howard et al. 2019). Keys as torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, he_init, run_layers

__all__ = ["MobileNetV2", "MobileNetV3Large"]

Activation = Callable[..., nn.Module]


def _conv(
    c: int, out: int, k: int, stride: int, act: Activation | None, groups: int = 1, eps: float = 1e-5
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(c, out, k, stride, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=eps, momentum=0.1 if eps == 1e-5 else 0.01),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act else []))


@final
class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; summed with the input where shapes agree."""

    def __init__(self, c: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c * expand
        layers: list[nn.Module] = [] if expand == 1 else [_conv(c, hidden, 1, 1, nn.ReLU6)]
        layers += [
            _conv(hidden, hidden, 3, stride, nn.ReLU6, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


@final
class MobileNetV2(Trunk):
    """Strides 2, 4, 8, 16, 32; 32 is the last 1x1 convolution (1280 channels); cells lie at s * i."""

    source = "MobileNetV2, Sandler et al. 2018; torchvision mobilenet_v2"
    SETTING = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(channels_in, 32, 3, 2, nn.ReLU6)]
        c, s, self.taps = 32, 2, {}
        for expand, out, n, stride in self.SETTING:
            for i in range(n):
                if i == 0 and stride == 2:
                    self.taps[len(layers) - 1] = s
                    s *= 2
                layers.append(InvertedResidual(c, out, stride if i == 0 else 1, expand))
                c = out
        layers.append(_conv(c, 1280, 1, 1, nn.ReLU6))
        self.taps[len(layers) - 1] = s
        self.features = nn.Sequential(*layers)
        self.channels = {2: 16, 4: 24, 8: 32, 16: 96, 32: 1280}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return run_layers(self.features, x, self.taps)


@final
class SqueezeExcitation(nn.Module):
    """Scales channels by a function of their global means: context becomes unbounded."""

    def __init__(self, c: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(c, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, c, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        return x * y


def _eighths(c: int) -> int:
    """The multiple of 8 nearest to `c`, at least 8 and never below nine tenths of it (torchvision's rounding)."""
    rounded = max(8, (c + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * c else rounded


@final
class InvertedResidualV3(nn.Module):
    """V2's block with 5x5 kernels, squeeze-excitation and hard swish where the setting says so."""

    def __init__(self, c: int, k: int, hidden: int, out: int, se: bool, act: Activation, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [] if hidden == c else [_conv(c, hidden, 1, 1, act, eps=1e-3)]
        layers.append(_conv(hidden, hidden, k, stride, act, groups=hidden, eps=1e-3))
        if se:
            layers.append(SqueezeExcitation(hidden, _eighths(hidden // 4)))
        layers.append(_conv(hidden, out, 1, 1, None, eps=1e-3))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual else y


@final
class MobileNetV3Large(Trunk):
    """Strides 2, 4, 8, 16, 32; 32 is the last 1x1 convolution (960 channels). Squeeze-excitation sees all."""

    source = "MobileNetV3-Large, Howard et al. 2019; torchvision mobilenet_v3_large"
    # kernel, hidden, out, squeeze-excitation, activation, stride
    SETTING = (
        (3, 16, 16, False, "RE", 1), (3, 64, 24, False, "RE", 2), (3, 72, 24, False, "RE", 1),
        (5, 72, 40, True, "RE", 2), (5, 120, 40, True, "RE", 1), (5, 120, 40, True, "RE", 1),
        (3, 240, 80, False, "HS", 2), (3, 200, 80, False, "HS", 1), (3, 184, 80, False, "HS", 1),
        (3, 184, 80, False, "HS", 1), (3, 480, 112, True, "HS", 1), (3, 672, 112, True, "HS", 1),
        (5, 672, 160, True, "HS", 2), (5, 960, 160, True, "HS", 1), (5, 960, 160, True, "HS", 1),
    )  # fmt: skip

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(channels_in, 16, 3, 2, nn.Hardswish, eps=1e-3)]
        c, s, self.taps = 16, 2, {}
        for k, hidden, out, se, act, stride in self.SETTING:
            if stride == 2:
                self.taps[len(layers) - 1] = s
                s *= 2
            layers.append(InvertedResidualV3(c, k, hidden, out, se, nn.ReLU if act == "RE" else nn.Hardswish, stride))
            c = out
        layers.append(_conv(c, 960, 1, 1, nn.Hardswish, eps=1e-3))
        self.taps[len(layers) - 1] = s
        self.features = nn.Sequential(*layers)
        self.channels = {2: 16, 4: 24, 8: 40, 16: 112, 32: 960}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return run_layers(self.features, x, self.taps)
