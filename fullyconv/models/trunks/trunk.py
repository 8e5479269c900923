"""What every trunk is: an image in, one feature map a stride out, with the grid of each map known exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fullyconv.errors import UsageError, printable
from fullyconv.geometry import Map, UnevenPaths
from fullyconv.models.trace import CannotTrace, Trace, probe, trace
from fullyconv.preprocessing import IMAGENET, Preprocessing

__all__ = ["Trunk", "he_init", "run_layers"]


class Trunk(nn.Module, ABC):
    """A classifier without its classifier: `forward(x)` maps N C H W to {stride: N C_s h w}, coarse strides last.

    `channels` gives C_s for each stride; `preprocessing` is that of the usual weights; `source` names where the
    architecture comes from. Parameter names are those of torchvision's model of the same name, where there is one.
    """

    channels: Mapping[int, int]
    preprocessing: Preprocessing = IMAGENET
    source: str = ""

    @abstractmethod
    def forward(self, x: Tensor) -> dict[int, Tensor]: ...

    @property
    def least(self) -> int:
        """Rows and columns to which smaller images are padded with zeros."""
        return 1

    def inner(self) -> nn.Module:
        """The network without that padding, as a graph can be made of it: x -> {stride: features}."""
        return self

    def trace(self) -> Trace:
        """Every layer's geometry. Raises CannotTrace (only trunks of other libraries do)."""
        return trace(self)

    def maps(self) -> tuple[dict[int, Map], bool]:
        """{stride: grid} and whether it was traced exactly (True) or probed (False)."""
        try:
            traced = self.trace()
            rows, columns = traced.maps(0), traced.maps(1)
            return {s: rows[name].join(columns[name]) for s, name in traced.outputs.items()}, True
        except (CannotTrace, UnevenPaths):
            training = self.training
            try:
                found = probe(self.eval())
            except Exception as error:
                raise UsageError(
                    f"{self.source or type(self).__name__} cannot be a trunk: what it makes of an image of 256x256 is "
                    f"no maps N x C x h x w ({printable(error)[:200]}); choose one that takes images of any size."
                ) from error
            finally:
                self.train(training)
            return dict(zip(self.channels, found, strict=True)), False


def he_init(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """He et al. 2015 normal weights (fan out), zero biases, unit batch norm: a trunk never starts silent."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)


def caffe_pool(paper: bool) -> nn.MaxPool2d:
    """Caffe's 3x3 pool of stride 2: of the paper's padding it rounds up; else padded by 1."""
    return nn.MaxPool2d(3, 2, padding=0 if paper else 1, ceil_mode=paper)


def caffe_norm() -> nn.LocalResponseNorm:
    """Local response normalisation as AlexNet's and GoogLeNet's prototxt set it."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)


def run_layers(layers: Iterable[nn.Module], x: Tensor, taps: Mapping[int, int]) -> dict[int, Tensor]:
    """Apply `layers` in order; `taps` maps a layer's index to the stride under which its output is kept."""
    found: dict[int, Tensor] = {}
    for i, layer in enumerate(layers):
        x = layer(x)
        if i in taps:
            found[taps[i]] = x
    return found
