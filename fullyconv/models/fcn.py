"""The paper's idea: a classifier scores every cell of its coarse map, finer layers' scores are added on the way up.

    trunk -> {stride: features} -> 1x1 convolutions -> scores -> upsample x2, add, ... -> upsample to the image

FCN-32s, 16s and 8s are this class with taps (32,), (32, 16) and (32, 16, 8). Source: paper sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv import ops
from fullyconv.errors import DataError, InternalError, UsageError, printable
from fullyconv.geometry import Geometry, Skip, fuse, halo, kernel_width, last_upsampling, plain
from fullyconv.models.store import save
from fullyconv.models.trunks import Trunk
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Taxonomy

__all__ = ["FCN", "LearnedUpsampling", "Stream"]

Border = Literal["fade", "replicate"]


@final
class Stream(nn.Module):
    """One trunk with a 1x1 score layer for every tap and head, reading its own channels of the input.

    `scales` multiply a tap's features before scoring (FCN-8s at-once: pool4 x 0.01, pool3 x 0.0001).
    """

    def __init__(
        self, trunk: Trunk, heads: Mapping[str, int], taps: Sequence[int], channels: slice, scales: Mapping[int, float]
    ) -> None:
        super().__init__()
        self.trunk, self.channels, self.scales = trunk, channels, dict(scales)
        self.score = nn.ModuleDict(
            {
                head: nn.ModuleDict({str(s): nn.Conv2d(trunk.channels[s], k, 1) for s in taps})
                for head, k in heads.items()
            }
        )
        for p in self.score.parameters():
            nn.init.zeros_(p)  # the paper: zero-initialised scores; random ones were neither better nor faster

    def forward(self, x: Tensor, head: str, features: Mapping[int, Tensor], tap: int) -> Tensor:
        feature = features[tap] * self.scales[tap] if tap in self.scales else features[tap]
        layer: Any = self.score[head][str(tap)]  # type: ignore[index]
        scores: Tensor = layer(feature.to(layer.weight.dtype))
        return scores


@final
class LearnedUpsampling(nn.Module):
    """A transposed convolution K -> K that starts as bilinear interpolation and is trained (CVPR's intermediate x2)."""

    def __init__(self, classes: int, skip: Skip) -> None:
        super().__init__()
        # A grid that lies half a cell off needs an odd kernel to start as exact interpolation.
        width = kernel_width(skip.factor) - (skip.offset.denominator != 1)
        factor = skip.factor
        ramp = 1 - (torch.arange(width) - (width - 1) / 2).abs() / factor
        weight = torch.zeros(classes, classes, width, width)
        weight[range(classes), range(classes)] = ramp[:, None] * ramp[None, :]
        self.factor = factor
        self.weight = nn.Parameter(weight)

    def forward(self, scores: Tensor) -> Tensor:
        return F.conv_transpose2d(scores, self.weight, stride=self.factor)


@final
class FCN(nn.Module):
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
        super().__init__()
        self.name, self.heads, self.taps, self.border = name, dict(heads), tuple(taps), border
        self.preprocessing, self.options = preprocessing, dict(options or {})
        self.report: Any = None  # what loading weights did, where weights were loaded
        self.origin: dict[str, Any] = {}  # how it was learned, as JSON: `train` writes it, config.json keeps it
        self.taxonomies = {head: Taxonomy.numbered(k) for head, k in heads.items()}
        self.streams = nn.ModuleDict(streams)
        maps, self.exact = next(iter(streams.values())).trunk.maps()
        self.maps = {s: maps[s] for s in taps}
        self.skips: dict[int, Skip] = {}  # tap -> how the coarser scores reach it
        fused = self.maps[self.taps[0]]
        for tap in self.taps[1:]:
            try:
                self.skips[tap], fused = fuse(fused, self.maps[tap], whole=border == "fade")
            except InternalError as error:
                raise UsageError(f"{name} cannot have the paper's padding: {error} Use padding 'same'.") from error
        self.fused = fused
        self.learned = nn.ModuleDict(
            {
                h: nn.ModuleDict({str(t): LearnedUpsampling(k, s) for t, s in self.skips.items()})
                for h, k in heads.items()
            }
            if learned
            else {}
        )

    def __repr__(self) -> str:
        heads = ", ".join(f"{printable(h)}: {k} classes" for h, k in self.heads.items())
        taps = "/".join(f"{t}s" for t in self.taps)
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        return f"FCN({printable(self.name)}, {heads}, scores at {taps}, {millions:.1f} M parameters)"

    def _repr_html_(self) -> str:
        """A notebook's: the line, then each head's classes."""
        heads = "".join(f"<p>{escape(printable(h))}</p>{t._repr_html_()}" for h, t in self.taxonomies.items())
        return f"<p>{escape(repr(self))}</p>{heads}"

    def coarse(
        self, x: Tensor, trunks: Mapping[str, Callable[[Tensor], Mapping[int, Tensor]]] | None = None
    ) -> dict[str, Tensor]:
        """{head: N K h w}: scores of the coarsest tap, upsampled and added to each finer tap's in turn.

        `trunks` stand in for the streams' own (`models.prepare`).
        """
        if x.ndim != 4 or min(x.shape[2:]) < 1:
            raise DataError(f"The network takes images as N x C x H x W with H, W >= 1, not {tuple(x.shape)}.")
        if x.shape[1] != self.preprocessing.channels:
            raise DataError(f"{self.name} takes {self.preprocessing.channels} channels, the batch has {x.shape[1]}.")
        trunks = trunks or {key: s.trunk for key, s in self.streams.items()}  # type: ignore[misc]
        features = {key: trunks[key](x[:, s.channels]) for key, s in self.streams.items()}  # type: ignore[index]
        return {head: self._fuse(x, head, features) for head in self.heads}

    def _fuse(self, x: Tensor, head: str, features: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
        scores = self._score(x, head, features, self.taps[0])
        for tap, skip in self.skips.items():
            finer = self._score(x, head, features, tap)
            scores = self._up(head, tap, skip, scores, finer)
            if skip.crop:
                finer = finer[..., skip.crop : skip.crop + scores.shape[2], skip.crop : skip.crop + scores.shape[3]]
            scores = scores + finer
        return scores

    def _score(self, x: Tensor, head: str, features: Mapping[str, Mapping[int, Tensor]], tap: int) -> Tensor:
        """The scores of one tap, averaged over the streams (late fusion: 0.5 and 0.5, as released)."""
        # In float32 whatever the trunk's precision: scores are what is compared, and oneDNN's bfloat16 gradient of a
        # 1x1 convolution from 4,096 channels to a few writes past its memory (torch 2.15, processors with AMX).
        kind = x.device.type
        cast = kind != "meta" and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if cast else nullcontext():
            found = [stream(x, head, features[key], tap) for key, stream in self.streams.items()]
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    def _up(self, head: str, tap: int, skip: Skip, scores: Tensor, finer: Tensor) -> Tensor:
        if self.border == "fade":  # the paper: the whole upsampled map, the finer one cropped onto it
            if head in self.learned:
                up: Tensor = self.learned[head][str(tap)](scores)  # type: ignore[index]
                return up
            width = kernel_width(skip.factor)
            size = tuple((n - 1) * skip.factor + width for n in scores.shape[2:])
        else:
            if head in self.learned:
                return self._learned_same(head, tap, skip, scores, finer)
            size = tuple(finer.shape[2:])
        return ops.upsample(scores, size, skip.factor, plain(skip.offset), border=self.border)

    def _learned_same(self, head: str, tap: int, skip: Skip, scores: Tensor, finer: Tensor) -> Tensor:
        """Learned upsampling onto the finer map: one cell of edge is repeated, then the map is cropped to lie on it."""
        up = self.learned[head][str(tap)](F.pad(scores, (1, 1, 1, 1), mode="replicate"))  # type: ignore[index]
        start = int(skip.offset) + skip.factor  # int() drops the half cell that the odd kernel makes up for
        up = F.pad(up, (0, skip.factor, 0, skip.factor), mode="replicate")
        return up[..., start : start + finer.shape[2], start : start + finer.shape[3]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        last = last_upsampling(self.fused, self.border)
        size = (x.shape[2], x.shape[3])
        full = {
            head: ops.upsample(scores, size, last.stride, last.offset, border=self.border)
            for head, scores in self.coarse(x).items()
        }
        if len(full) == 1:
            full["out"] = next(iter(full.values()))
        return full

    def geometry(self, height: int, width: int) -> Geometry:
        """The numbers of the last upsampling (`stride`, `offset`, `border`, Caffe's `kernel` and `crop`), every tap's
        grid, every skip's crop, and `halo`, the context in pixels that a tile needs to equal the whole."""
        last = last_upsampling(self.fused, self.border)
        strides = [float(self.maps[t].stride) for t in self.taps]
        # Scores of tap i are interpolated over one cell at its own stride and at every finer one, once each.
        fields = [(self.maps[t], sum(strides[i:])) for i, t in enumerate(self.taps)]
        return Geometry(
            last.stride, last.offset, last.kernel, last.crop, self.border,
            height, width, self.maps, self.skips, halo(fields), self.exact,
        )  # fmt: skip

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Score layers and learned upsampling: what "32s-fixed" trains and what gets the heads' learning rate."""
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

    def config(self) -> dict[str, Any]:
        """All that re-creates the network but its weights, as JSON."""
        return {
            "name": self.name,
            "heads": self.heads,
            "options": self.options,
            "taxonomies": {head: t.to_json() for head, t in self.taxonomies.items()},
        }

    def save_pretrained(self, directory: str | Path, card: str = "") -> Path:
        """Write a model directory (safetensors, JSON, manifest) that `fullyconv.load` reads back, bit for bit."""
        return save(self, Path(directory), card)
