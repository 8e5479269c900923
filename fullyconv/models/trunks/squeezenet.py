"""SqueezeNet 1.0 (Iandola et al. 2016). Keys as torchvision's. It ends at stride 16."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, he_init, run_layers

__all__ = ["SqueezeNet"]


@final
class Fire(nn.Module):
    """A 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, c: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))
        y: Tensor = self.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], 1))
        return y


@final
class SqueezeNet(Trunk):
    """Strides 2, 4, 8, 16. "same" padding: conv1 by 3, pools by 1, so cells lie at s * i and h = ceil(H / s)."""

    source = "SqueezeNet 1.0, Iandola et al. 2016; torchvision squeezenet1_0"

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__()

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, padding=1)

        self.features = nn.Sequential(
            nn.Conv2d(channels_in, 96, 7, 2, padding=3),
            nn.ReLU(inplace=True),
            pool(),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            pool(),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            pool(),
            Fire(512, 64, 256),
        )
        self.taps = {1: 2, 5: 4, 10: 8, 12: 16}
        self.channels = {2: 96, 4: 256, 8: 512, 16: 512}
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        return run_layers(self.features, x, self.taps)
