"""The same scores, sooner: a network made ready for prediction on one device and at one precision.

`prepare(model)` returns what `model.coarse` computes in evaluation mode, up to rounding: batch norm is folded into the
convolutions, ReLU is done by them, on the CPU their weights are laid out for the processor once instead of in every
call (fc6 alone holds 411 MB), and with the paper's padding only what depends on the image is computed (`window`).
The slow twin is `model.coarse` itself. Any number of threads may call one prepared network; none of them changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx

from fullyconv.engine.folding import Convolution, fold_layers
from fullyconv.engine.locking import preparing
from fullyconv.engine.precision import refuse
from fullyconv.engine.window import STRIP, Windowed
from fullyconv.errors import UsageError
from fullyconv.models.fcn import FCN
from fullyconv.models.interface import SegmentationModel, TorchModule
from fullyconv.models.trace import CannotTrace
from fullyconv.models.tracer import shared_copy

__all__ = ["Prepared", "prepare"]

Features = Callable[[Tensor], Mapping[int, Tensor]]
META = torch.device("meta")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prepare(model: SegmentationModel, precision: str = "fp32", window: bool = True, strip: int = STRIP) -> Prepared:
    """x float32 N C H W -> {head: coarse scores N K h w, float32}, what `model.coarse(x)` gives in evaluation mode.

    precision: "fp32" or "bf16" (the trunk's; scores are added in float32). window: whether, with the paper's padding,
    the surroundings that do not depend on the image are taken from a cache; strip: bytes of the widest map that are
    then made at a time. Weights that change are noticed and
    prepared anew. Networks that cannot be traced, and others than FCN, are called as they are. UsageError for a type of
    numbers that the network's device has not.
    """
    return Prepared(model, precision, window, strip)


@final
@dataclass(frozen=True)
class _Made:
    """What calls share. coarse: the network in evaluation mode; as_it_is: its trunks were not prepared."""

    state: tuple[object, ...]
    coarse: Callable[[Tensor], Mapping[str, Tensor]]
    as_it_is: bool = True
    networks: Sequence[fx.GraphModule] = ()
    windows: Sequence[Windowed] = ()


@final
class Prepared:
    """See `prepare`. The network's own parameters are neither changed nor copied, but for their packed layout."""

    def __init__(
        self, model: SegmentationModel, precision: str = "fp32", window: bool = True, strip: int = STRIP
    ) -> None:
        refuse(precision, next((p.device for p in model.parameters()), META))
        self.model, self.precision, self.window, self.strip = model, precision, window, strip
        self._made: _Made | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and deepcopy: what was prepared is prepared anew."""
        return {**vars(self), "_made": None}

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        made = self._ready()
        if not made.as_it_is:
            return dict(made.coarse(x))
        with _autocast(x, DTYPES[self.precision]):
            return {head: s.float() for head, s in made.coarse(x).items()}

    @property
    def convolutions(self) -> list[Convolution]:
        """The prepared layers, once the network was called."""
        return [
            m for n in (self._made.networks if self._made else ()) for m in n.modules() if isinstance(m, Convolution)
        ]

    @property
    def packed_bytes(self) -> int:
        """What packed weights take on the CPU, once the network was called."""
        return sum(m.packed_bytes for m in self.convolutions)

    @property
    def background_bytes(self) -> int:
        """What is kept of empty images."""
        return sum(w.held_bytes for w in self.windows)

    @property
    def windows(self) -> Sequence[Windowed]:
        """The streams' exact windows, once the network was called; none without the paper's padding."""
        return self._made.windows if self._made else ()

    def _ready(self) -> _Made:
        """What was prepared, at the first call and again when a weight changed, by one thread for all."""
        state, made = _state(self.model), self._made
        if made is None or made.state != state:
            with preparing():
                made = self._made
                if made is None or made.state != state:
                    made = self._made = self._prepared(state)
        return made

    def _prepared(self, state: tuple[object, ...]) -> _Made:
        model, dtype = _evaluating(self.model), DTYPES[self.precision]
        if not isinstance(model, FCN):
            return _Made(state, model.coarse)
        try:
            networks = {key: fold_layers(s.features, model.taps, dtype) for key, s in model.streams.items()}  # type: ignore[arg-type]
        except CannotTrace:
            return _Made(state, model.coarse)
        held = list(networks.values())
        if not self.window or model.border != "fade":
            plain = {key: _features(n, dtype) for key, n in networks.items()}
            return _Made(state, partial(_coarse, model, plain), False, held)
        windows = {key: Windowed(n, self.strip) for key, n in networks.items()}
        trunks = {key: _features(w, dtype) for key, w in windows.items()}
        return _Made(state, partial(_coarse, model, trunks), False, held, list(windows.values()))


def _coarse(model: FCN, trunks: Mapping[str, Features], x: Tensor) -> dict[str, Tensor]:
    """`model.coarse` with its streams' prepared trunks in the place of their own."""
    features = {key: trunks[key](part) for key, part in model.inputs(x).items()}
    return {head: model.fuse(features, head) for head in model.heads}


def _evaluating(model: SegmentationModel) -> SegmentationModel:
    """`model` in evaluation mode, by a copy that shares its tensors: the network itself may learn meanwhile."""
    try:
        return shared_copy(model).eval()
    except Exception as error:  # modules of others hold anything, locks and handles too
        if model.training:
            raise UsageError(
                f"This network is in training mode and cannot be copied ({error}); call model.eval() first."
            ) from error
        return model


def _state(model: TorchModule) -> tuple[Any, ...]:
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
