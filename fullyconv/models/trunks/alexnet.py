"""AlexNet twice: the paper's (CaffeNet: pool before norm, groups, LRN) and torchvision's single-column one."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, caffe_norm, caffe_pool, he_init, run_layers

__all__ = ["AlexNet", "AlexNetTV"]


def _classifier(kernel_padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(256, 4096, 6, padding=kernel_padding),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(4096, 4096, 1),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
    )


@final
class AlexNet(Trunk):
    """CaffeNet (Krizhevsky et al. 2012, pool before norm): strides 8, 16, 32; 32 is fc7.

    padding "paper": 100 px, cells centred at 32 i + 13; "same": 5 px at conv1, 1 px at the pools, 3 and 2 px at fc6's
    even kernel, cells on the grid 32 i + 16.
    """

    source = "CaffeNet, Krizhevsky et al. 2012; FCN-AlexNet of the paper"

    def __init__(self, channels_in: int = 3, padding: str = "paper") -> None:
        super().__init__()
        paper = padding == "paper"

        self.features = nn.Sequential(
            nn.Conv2d(channels_in, 96, 11, 4, padding=100 if paper else 5),
            nn.ReLU(inplace=True),
            caffe_pool(paper),
            caffe_norm(),
            nn.Conv2d(96, 256, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            caffe_pool(paper),
            caffe_norm(),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1, groups=2),
            nn.ReLU(inplace=True),
            caffe_pool(paper),
        )
        self.taps = {2: 8, 6: 16, 14: 32}
        self.channels = {8: 96, 16: 256, 32: 4096}
        self.pad = nn.Identity() if paper else nn.ZeroPad2d((2, 3, 2, 3))
        self.classifier = _classifier(0)
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        found = run_layers(self.features, x, self.taps)
        found[32] = self.classifier(self.pad(found[32]))
        return found


@final
class AlexNetTV(Trunk):
    """torchvision's alexnet (one weird trick, no LRN, no groups), "same" padding only: strides 8, 16, 32."""

    source = "torchvision alexnet"

    def __init__(self, channels_in: int = 3, padding: str = "same") -> None:
        super().__init__()

        def pool() -> nn.MaxPool2d:
            return nn.MaxPool2d(3, 2, padding=1)

        self.features = nn.Sequential(
            nn.Conv2d(channels_in, 64, 11, 4, padding=5),
            nn.ReLU(inplace=True),
            pool(),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            pool(),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            pool(),
        )
        self.taps = {2: 8, 5: 16, 12: 32}
        self.channels = {8: 64, 16: 192, 32: 4096}
        self.pad = nn.ZeroPad2d((2, 3, 2, 3))
        # torchvision's order: dropout, linear, ReLU, dropout, linear, ReLU; indices 1 and 4 hold the weights.
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(256, 4096, 6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Conv2d(4096, 4096, 1),
            nn.ReLU(inplace=True),
        )
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        found = run_layers(self.features, x, self.taps)
        found[32] = self.classifier(self.pad(found[32]))
        return found
