"""VGG16 (Simonyan and Zisserman 2015) as the paper uses it: fc6 and fc7 are convolutions. Keys as torchvision's."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from fullyconv.models.trunks.trunk import Trunk, he_init, run_layers

__all__ = ["VGG16"]

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@final
class VGG16(Trunk):
    """Strides 2..32; stride 32 is fc7 (or pool5 with `classifier=False`, the paper's pool5-only ablation).

    padding "paper": 100 px around the image and ceil pooling, as released; "same": 1 px, and 3 px at fc6, so that
    h = ceil(H / 32) and no border is wasted.
    """

    source = "VGG16, Simonyan and Zisserman 2015; torchvision vgg16"

    def __init__(
        self, channels_in: int = 3, padding: str = "paper", batch_norm: bool = False, classifier: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: dict[int, int] = {}
        c = channels_in
        for b, block in enumerate(BLOCKS):
            for out in block:
                first = 100 if padding == "paper" and not layers else 1
                layers.append(nn.Conv2d(c, out, 3, padding=first))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(out))
                layers.append(nn.ReLU(inplace=True))
                c = out
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            self.taps[len(layers) - 1] = 2 ** (b + 1)
        self.features = nn.Sequential(*layers)
        self.channels = {2 ** (b + 1): block[-1] for b, block in enumerate(BLOCKS)}
        self.classifier: nn.Sequential | None = None
        if classifier:
            self.classifier = nn.Sequential(
                nn.Conv2d(512, 4096, 7, padding=0 if padding == "paper" else 3),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
                nn.Conv2d(4096, 4096, 1),
                nn.ReLU(inplace=True),
                nn.Dropout(0.5),
            )
            self.channels[32] = 4096
        he_init(self)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        found = run_layers(self.features, x, self.taps)
        if self.classifier is not None:
            found[32] = self.classifier(found[32])
        return found
