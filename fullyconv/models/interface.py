"""What the rest of the house asks of a network: prediction, evaluation and cost of any, training of a trainable one.

`FCN` is one; a module of another kind that has these members is predicted, measured and learned just the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn

from fullyconv.geometry import OutputGeometry
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Taxonomy

__all__ = ["SegmentationModel", "TorchModule", "TrainableModel"]


class TorchModule(Protocol):
    """The part of `torch.nn.Module` that is used of a network; every module has it."""

    training: bool

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def buffers(self) -> Iterator[Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, object], strict: bool = True, assign: bool = False) -> Any: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...


class SegmentationModel(TorchModule, Protocol):
    """A module that scores every pixel: what `Predictor`, `evaluate` and `cost` ask.

    A network that also has `name`, `taxonomies` and `origin` (see `TrainableModel`) is told by them in results.
    """

    @property
    def heads(self) -> Mapping[str, int]:
        """Head -> number of classes, the main head first."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How stored pixels become the input."""

    def coarse(self, x: Tensor, /) -> Mapping[str, Tensor]:
        """x float32 N C H W, preprocessed -> {head: unnormalised scores N K h w} before the last upsampling."""

    def geometry(self, height: int, width: int, /) -> OutputGeometry:
        """How these scores lie on an image of height x width pixels."""

    def head_parameters(self) -> Iterable[nn.Parameter]:
        """The score layers' parameters: all exactly 0 in a network that was never trained."""

    def trunk_parameters(self) -> Iterable[nn.Parameter]:
        """The trunk's: all others, but for a decoder's between the two."""


class TrainableModel(SegmentationModel, Protocol):
    """A network that says enough of itself to be learned and written down."""

    @property
    def name(self) -> str:
        """What `models.create` makes it by."""

    @property
    def taps(self) -> tuple[int, ...]:
        """The strides at which features are scored, the coarsest first."""

    @property
    def taxonomies(self) -> Mapping[str, Taxonomy]:
        """Head -> its classes."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """How it was learned, as JSON."""

    def config(self) -> Mapping[str, Any]:
        """All that makes the network again but its weights, as JSON."""
