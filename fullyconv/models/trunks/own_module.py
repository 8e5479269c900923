"""A module of the user's own as a trunk: what maps it makes, at which strides, found by running it once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fullyconv.errors import UsageError, printable
from fullyconv.models.trace import CannotTrace, Trace, trace
from fullyconv.models.trunks.trunk import Trunk

__all__ = ["Given"]

_SIDE = 256  # pixels of the image that is tried
_REMEDY = (
    "give what makes feature maps: torch.nn.Sequential(*list(net.children())[:-2]) of a torchvision ResNet, "
    "net.features of others, timm.create_model(..., features_only=True); or make a classifier dense with "
    "fullyconv.convolutionalise"
)
_ANY_SIZE = (
    "choose a network that takes images of any size: attention over a fixed grid does not "
    "(timm's convolutional families do, with features_only=True)"
)


@final
class Given(Trunk):
    """`net`: images N C H W -> one map N C_s h w, or a list, tuple or mapping of them, coarse ones of a stride of 2 and
    its powers. Of several maps of one stride the last counts. The module is used as it is, its weights too.

    Raises UsageError where it makes no such maps.
    """

    def __init__(self, net: nn.Module, channels_in: int = 3) -> None:
        super().__init__()
        self.net = net
        self.source = f"a module of its owner's, {type(net).__name__}"
        self.keys: dict[int, Any] = {}  # stride -> which of the outputs
        self.channels = {}
        for key, y in self._tried(channels_in).items():
            stride = round(_SIDE / y.shape[-1])
            if stride & (stride - 1) or stride > 64:
                raise UsageError(
                    f"The trunk {type(net).__name__} makes {y.shape[-2]}x{y.shape[-1]} cells of an image of "
                    f"{_SIDE}x{_SIDE}, a stride of {stride}; strides are 1, 2, 4, ..., 64: pad its layers."
                )
            self.keys[stride], self.channels[stride] = key, int(y.shape[1])

    def _tried(self, channels_in: int) -> dict[Any, Tensor]:
        """What an image gives, the finest map first."""
        name, mode = type(self.net).__name__, self.net.training
        like = next((p for p in self.net.parameters() if p.is_floating_point()), torch.empty(0))
        try:
            with torch.inference_mode():
                image = torch.zeros(1, channels_in, _SIDE, _SIDE, dtype=like.dtype, device=like.device)
                outputs = _by_key(self.net.eval()(image))
        except Exception as error:
            remedy = _ANY_SIZE if "match" in str(error) else _REMEDY  # timm: "Input height (256) doesn't match model"
            raise UsageError(
                f"The trunk {name} does not take an image of 1x{channels_in}x{_SIDE}x{_SIDE} "
                f"({printable(error)[:160]}); {remedy}."
            ) from error
        finally:
            self.net.train(mode)
        shapes = {k: tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__ for k, y in outputs.items()}
        if not outputs or not all(isinstance(y, Tensor) and y.ndim == 4 and min(y.shape) > 0 for y in outputs.values()):
            shown = ", ".join(map(str, shapes.values())) or "nothing"
            raise UsageError(f"The trunk {name} makes {shown} of an image, no maps N x C x h x w; {_REMEDY}.")
        return dict(sorted(outputs.items(), key=lambda item: -item[1].shape[-1]))

    def trace(self) -> Trace:
        inner = trace(self.net)
        try:
            return Trace(inner.steps, {s: inner.outputs[key] for s, key in self.keys.items()})
        except KeyError as error:  # a named tuple, say
            raise CannotTrace(f"The outputs of {type(self.net).__name__} cannot be told apart in its graph.") from error

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        outputs = _by_key(self.net(x))
        return {stride: outputs[key] for stride, key in self.keys.items()}


def _by_key(outputs: object) -> dict[Any, Any]:
    """A module's outputs by the keys that `trace` gives them."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return dict(enumerate(outputs if isinstance(outputs, tuple | list) else [outputs]))
