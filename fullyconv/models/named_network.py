"""What a network says of itself, and how it is written down: nothing here computes scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fullyconv.errors import printable
from fullyconv.geometry import Geometry
from fullyconv.models.store import save_model
from fullyconv.models.weight_loading import LoadReport
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Taxonomy

__all__ = ["NamedNetwork"]


class NamedNetwork(nn.Module, ABC):
    """A network with a name that makes it again, heads (name -> classes) and the strides it scores, coarse to fine."""

    def __init__(
        self,
        name: str,
        heads: Mapping[str, int],
        taps: Sequence[int],
        preprocessing: Preprocessing,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.name, self.heads, self.taps = name, dict(heads), tuple(taps)
        self.preprocessing, self.options = preprocessing, dict(options)
        self.taxonomies = {head: Taxonomy.numbered(k) for head, k in heads.items()}
        self.report: LoadReport | None = None  # what loading weights did, where weights were loaded
        self.origin: dict[str, Any] = {}  # how it was learned, as JSON: `train` writes it, config.json keeps it

    @abstractmethod
    def coarse(self, x: Tensor) -> dict[str, Tensor]:
        """Fused scores {head: N K h w} before the last upsampling."""

    @abstractmethod
    def geometry(self, height: int, width: int) -> Geometry:
        """How these scores lie on an image of height x width pixels."""

    @abstractmethod
    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The score layers' parameters, and those of learned upsampling."""

    @abstractmethod
    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """What "32s-fixed" leaves as it is. A decoder between the two is of neither."""

    def __repr__(self) -> str:
        heads = ", ".join(f"{printable(h)}: {k} classes" for h, k in self.heads.items())
        taps = "/".join(f"{t}s" for t in self.taps)
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        return f"{type(self).__name__}({printable(self.name)}, {heads}, scores at {taps}, {millions:.1f} M parameters)"

    def _repr_html_(self) -> str:
        """A notebook's: the line, then each head's classes."""
        heads = "".join(f"<p>{escape(printable(h))}</p>{t._repr_html_()}" for h, t in self.taxonomies.items())
        return f"<p>{escape(repr(self))}</p>{heads}"

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
        return save_model(self, Path(directory), card)
