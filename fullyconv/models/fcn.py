"""The paper's idea: a classifier scores every cell of its coarse map, and finer layers' scores are added on the way up.

    image -> conv1 pool1 conv2 pool2 conv3 pool3 conv4 pool4 conv5 pool5 conv6 conv7        the trunk, here VGG16

    FCN-32s  =  score_fr(conv7)                                                             x32 -> labels
    FCN-16s  =  upscore2(FCN-32s)      + score_pool4(pool4)                                 x16 -> labels
    FCN-8s   =  upscore_pool4(FCN-16s) + score_pool3(pool3)                                  x8 -> labels

`score_...` is a 1x1 convolution from features to classes; `upscore...` doubles a map by bilinear interpolation, fixed
or as a transposed convolution that is trained from there. `FCN.fuse` is these three lines, for any trunk and strides.
Source: paper sections 3 and 4, figure 3; the names are those of the authors' published nets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from fullyconv import ops
from fullyconv.errors import DataError, InternalError, UsageError
from fullyconv.geometry import Geometry, Map, Skip, fuse, halo, last_upsampling
from fullyconv.models.feature_pyramid import Decoded, Pyramid
from fullyconv.models.named_network import NamedNetwork
from fullyconv.models.score_layers import BilinearUpsampling, Border, LearnedUpsampling, ScoreLayer, crop
from fullyconv.models.trunks import Trunk
from fullyconv.preprocessing import Preprocessing

__all__ = ["FCN", "Stream"]

Features = Mapping[int, Tensor]  # stride -> N C h w; of VGG16 {32: conv7, 16: pool4, 8: pool3, ...}


@final
class Stream(nn.Module):
    """One trunk with a score layer for every head and tap, reading its own channels of the input.

    `scales` multiply a tap's features before scoring (FCN-8s at-once: pool4 x 0.01, pool3 x 0.0001). `pyramid` stands
    between the trunk and its only tap, where the network is no sum of scores.
    """

    def __init__(
        self,
        trunk: Trunk,
        heads: Mapping[str, int],
        taps: Sequence[int],
        channels: slice,
        scales: Mapping[int, float],
        pyramid: Pyramid | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.channels, self.scales, self.pyramid = trunk, channels, dict(scales), pyramid
        widths = self.features.channels
        self.score = nn.ModuleDict(
            {h: nn.ModuleDict({str(t): ScoreLayer(widths[t], k) for t in taps}) for h, k in heads.items()}
        )

    @property
    def features(self) -> Trunk:
        """x N C H W -> {stride: what is scored}: the trunk, with its pyramid where it has one."""
        return self.trunk if self.pyramid is None else Decoded(self.trunk, self.pyramid)

    def forward(self, features: Features, head: str, tap: int) -> Tensor:
        """Scores N K h w: score_fr of conv7 at tap 32, score_pool4 of pool4 at 16, score_pool3 of pool3 at 8."""
        feature = features[tap] * self.scales[tap] if tap in self.scales else features[tap]
        scores: Tensor = self.score[head][str(tap)](feature)  # type: ignore[index]
        return scores


@final
class FCN(NamedNetwork):
    """A fully convolutional network. x: float32 N C H W, H and W at least 1, as `preprocessing` states -> scores.

    Calling it returns {head: N K H W} at the input's size, with a single head also under "out". `coarse(x)` returns
    the fused scores {head: N K h w} before the last upsampling, whose numbers `geometry(H, W)` gives; `ops` makes
    labels or a loss of them without ever holding N K H W.
    """

    def __init__(
        self,
        name: str,
        streams: Mapping[str, Stream],
        heads: Mapping[str, int],
        taps: Sequence[int],
        border: Border,
        preprocessing: Preprocessing,
        learned: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, heads, taps, preprocessing, options or {})
        self.streams, self.border = nn.ModuleDict(streams), border
        first = next(iter(streams.values()))
        maps, self.exact = first.features.maps()
        self.maps = {t: maps[t] for t in taps}
        self.grids = maps if first.pyramid else self.maps  # of all that is read, not only of what is scored
        self.skips, self.fused = _aligned(name, self.maps, border)
        self.bilinear = nn.ModuleDict({str(t): BilinearUpsampling(s, border) for t, s in self.skips.items()})
        self.learned = nn.ModuleDict({h: self._trained_upsamplings(k) for h, k in heads.items()} if learned else {})

    def _trained_upsamplings(self, classes: int) -> nn.ModuleDict:
        return nn.ModuleDict({str(t): LearnedUpsampling(classes, s, self.border) for t, s in self.skips.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        last, size = last_upsampling(self.fused, self.border), tuple(x.shape[2:])
        full = {
            head: ops.upsample(scores, size, last.stride, last.offset, border=self.border)
            for head, scores in self.coarse(x).items()
        }
        if len(full) == 1:
            full["out"] = next(iter(full.values()))
        return full

    def coarse(self, x: Tensor) -> dict[str, Tensor]:
        """{head: N K h w}: the scores of every tap, fused, before the last upsampling."""
        features = {key: self.streams[key].features(part) for key, part in self.inputs(x).items()}  # type: ignore[operator]
        return {head: self.fuse(features, head) for head in self.heads}

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """What each stream reads of x. DataError for another number of channels."""
        if x.ndim != 4 or min(x.shape[2:]) < 1:
            raise DataError(f"The network takes images as N x C x H x W with H, W >= 1, not {tuple(x.shape)}.")
        if x.shape[1] != self.preprocessing.channels:
            raise DataError(f"{self.name} takes {self.preprocessing.channels} channels, the batch has {x.shape[1]}.")
        return {key: x[:, stream.channels] for key, stream in self.streams.items()}  # type: ignore[index]

    def fuse(self, features: Mapping[str, Features], head: str) -> Tensor:
        """One head's scores N K h w of each stream's features: FCN-32s, then the skips of FCN-16s, FCN-8s, ..."""
        scores = self.score(features, head, self.taps[0])  # score_fr(conv7)
        for tap, skip in self.skips.items():
            finer = self.score(features, head, tap)  # score_pool4(pool4), then score_pool3(pool3)
            up = self.upscore(scores, head, tap, finer)  # upscore2, then upscore_pool4
            scores = up + crop(finer, skip, up)
        return scores

    def score(self, features: Mapping[str, Features], head: str, tap: int) -> Tensor:
        """One tap's scores, averaged over the streams (late fusion: 0.5 and 0.5, as released)."""
        found = [stream(features[key], head, tap) for key, stream in self.streams.items()]
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    def upscore(self, scores: Tensor, head: str, tap: int, finer: Tensor) -> Tensor:
        """Scores of the coarser taps on the grid of `tap`."""
        layers = self.learned[head] if head in self.learned else self.bilinear  # noqa: SIM401 (it has no get)
        up: Tensor = layers[str(tap)](scores, finer)  # type: ignore[index]
        return up

    def geometry(self, height: int, width: int) -> Geometry:
        """The numbers of the last upsampling (`stride`, `offset`, `border`, Caffe's `kernel` and `crop`), every tap's
        grid, every skip's crop, and `halo`, the context in pixels that a tile needs to equal the whole."""
        last = last_upsampling(self.fused, self.border)
        strides = [float(self.maps[t].stride) for t in self.taps]
        # Scores of tap i are interpolated over one cell at its own stride and at every finer one, once each.
        fields = [(self.maps[t], sum(strides[i:])) for i, t in enumerate(self.taps)]
        return Geometry(
            last.stride, last.offset, last.kernel, last.crop, self.border,
            height, width, self.grids, self.skips, halo(fields), self.exact,
        )  # fmt: skip

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Score layers and learned upsampling: all 0 or bilinear before training."""
        for stream in self.streams.values():
            yield from stream.score.parameters()  # type: ignore[union-attr]
        yield from self.learned.parameters()

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        for stream in self.streams.values():
            yield from stream.trunk.parameters()  # type: ignore[union-attr]

    @property
    def untrained(self) -> bool:
        """Whether every score weight is exactly 0, as it is before the first step of training."""
        return not any(bool(p.any()) for s in self.streams.values() for p in s.score.parameters())  # type: ignore[union-attr]


def _aligned(name: str, maps: Mapping[int, Map], border: Border) -> tuple[dict[int, Skip], Map]:
    """{tap: how the coarser scores reach it}, and the grid of the sum. UsageError where grids cannot meet."""
    skips: dict[int, Skip] = {}
    fused, *finer = maps.values()
    for tap, grid in zip([*maps][1:], finer, strict=True):
        try:
            skips[tap], fused = fuse(fused, grid, whole=border == "fade")
        except InternalError as error:
            raise UsageError(f"{name} cannot have the paper's padding: {error} Use padding 'same'.") from error
    return skips, fused
