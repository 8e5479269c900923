"""The same scores, sooner: a network made ready for prediction on one device and at one precision.

`prepare(model)` returns what `model.coarse` computes in evaluation mode, up to rounding: batch norm is folded into the
convolutions, ReLU is done by them, on the CPU their weights are laid out for the processor once instead of in every
call (fc6 alone holds 411 MB), and with the paper's padding only what depends on the image is computed (`window`).
The slow twin is `model.coarse` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, final

import torch
from torch import Tensor, fx

from fullyconv.engine.folding import Convolution, fold_layers
from fullyconv.engine.precision import refuse
from fullyconv.engine.window import Windowed
from fullyconv.errors import InternalError
from fullyconv.models.fcn import FCN
from fullyconv.models.trace import CannotTrace

__all__ = ["Prepared", "prepare"]

Features = Callable[[Tensor], Mapping[int, Tensor]]
META = torch.device("meta")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prepare(model: Any, precision: str = "fp32", window: bool = True) -> Prepared:
    """x float32 N C H W -> {head: coarse scores N K h w, float32}, what `model.coarse(x)` gives in evaluation mode.

    precision: "fp32" or "bf16" (the trunk's; scores are added in float32). window: whether, with the paper's padding,
    the surroundings that do not depend on the image are taken from a cache. Weights that change are noticed and
    prepared anew. Networks that cannot be traced, and others than FCN, are called as they are. UsageError for a type of
    numbers that the network's device has not.
    """
    return Prepared(model, precision, window)


@final
class Prepared:
    """See `prepare`. The network's own parameters are neither changed nor copied, but for their packed layout."""

    def __init__(self, model: Any, precision: str = "fp32", window: bool = True) -> None:
        refuse(precision, next((p.device for p in model.parameters()), META))
        self.model, self.precision, self.window = model, precision, window
        self._trunks: dict[str, Features] | None = None
        self._networks: list[fx.GraphModule] = []
        self._windows: list[Windowed] = []
        self._state: tuple[Any, ...] | None = None

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        trunks = self._ready()
        if trunks is not None:
            scores: dict[str, Tensor] = self.model.coarse(x, trunks)
            return scores
        with _autocast(x, DTYPES[self.precision]):
            return {head: s.float() for head, s in self.model.coarse(x).items()}

    @property
    def convolutions(self) -> list[Convolution]:
        """The prepared layers, once the network was called."""
        return [m for n in self._networks for m in n.modules() if isinstance(m, Convolution)]

    @property
    def packed_bytes(self) -> int:
        """What packed weights take on the CPU, once the network was called."""
        return sum(m.packed_bytes for m in self.convolutions)

    @property
    def background_bytes(self) -> int:
        """What is kept of empty images."""
        return sum(w.held_bytes for w in self._windows)

    def _ready(self) -> dict[str, Features] | None:
        """The prepared trunks, made at the first call and again when a weight changed; None: the network as it is."""
        if self.model.training:
            raise InternalError("A network in training mode was called for prediction; call model.eval() first.")
        state = _state(self.model)
        if state != self._state:
            self._trunks, self._state = self._prepared(), state
        return self._trunks

    def _prepared(self) -> dict[str, Features] | None:
        self._networks, self._windows = [], []
        if not isinstance(self.model, FCN):
            return None
        model, dtype = self.model, DTYPES[self.precision]
        try:
            networks = {key: fold_layers(s.trunk, model.taps, dtype) for key, s in model.streams.items()}  # type: ignore[arg-type]
        except CannotTrace:
            return None
        self._networks = list(networks.values())
        if not self.window or model.border != "fade":
            return {key: _features(n, dtype) for key, n in networks.items()}
        windows = {key: Windowed(n) for key, n in networks.items()}
        self._windows = list(windows.values())
        return {key: _features(w, dtype) for key, w in windows.items()}


def _state(model: Any) -> tuple[Any, ...]:
    """What changes when a parameter or buffer is written to or replaced."""
    tensors = [*model.parameters(), *model.buffers()]
    return tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def _autocast(x: Tensor, dtype: torch.dtype) -> Any:
    if dtype == torch.float32 or x.device.type == "meta":
        return nullcontext()
    return torch.autocast(x.device.type, dtype)


def _features(network: Features, dtype: torch.dtype) -> Features:
    """`network` computing in `dtype`, its features as float32."""

    def call(x: Tensor) -> dict[int, Tensor]:
        with _autocast(x, dtype):
            found = network(x)
        return {stride: f.float() for stride, f in found.items()}

    return call
