"""What a network costs at a size, before it runs: FLOPs, and the memory that prediction or a training step takes.

The network is run once on torch's "meta" device, where tensors have shapes and no contents: every operation of the
real run is seen, nothing is computed and no memory is taken. To the tensors alive at once (`Live`) come the weights,
their packed copies on the CPU, and what the program itself holds.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fullyconv.engine.folding import Convolution
from fullyconv.engine.prepare import prepare
from fullyconv.errors import UnknownName, UsageError
from fullyconv.models.interface import SegmentationModel, TorchModule

__all__ = ["Cost", "Live", "estimate", "working_bytes"]

MIB = 1 << 20
# Resident bytes of a process that has imported torch, fullyconv and numba and labelled a tiny image: interpreter,
# libraries, compiled kernels (measured with torch 2.15 on Linux: 720 and 800 MiB on two processors). On a GPU: the
# context and its libraries' workspaces (not measured).
RUNTIME = {"cpu": 770 * MIB, "cuda": 600 * MIB}
# Beside that on the CPU, measured as well: what autograd and an optimiser load, and the gaps that maps of many sizes
# leave in a heap that keeps what is freed.
TRAINER, GAPS = 110 * MIB, 1.35
Optimizer = Literal["sgd", "adamw"]


@final
@dataclass(frozen=True)
class Cost:
    """flops: of convolutions and matrix products, a multiplication and an addition counted as two; for one prediction
    or one training step of the whole batch. parameters: how many numbers are learned. peak_bytes: of the process (on
    a GPU: of the device). Of them weight_bytes are the weights with their packed copies and the optimiser's state,
    working_bytes the most that all other tensors (maps, gradients) take at once.
    """

    height: int
    width: int
    batch: int
    training: bool
    precision: str
    device: str
    flops: int
    parameters: int
    weight_bytes: int
    working_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


M = TypeVar("M", bound=TorchModule)


def estimate(
    model: SegmentationModel,
    height: int,
    width: int,
    batch: int = 1,
    training: bool = False,
    precision: str = "fp32",
    device: str = "cpu",
    optimizer: Optimizer = "sgd",
) -> Cost:
    """The cost of predicting (as `Predictor` does, window and packed weights included) or of one training step (SGD
    with momentum, or AdamW) for `batch` images of H x W pixels. `model` may lie on any device, "meta" included.

    Raises UsageError for an empty image or batch and UnknownName for another precision or device.
    """
    if min(height, width, batch) < 1:
        raise UsageError(f"{batch} images of {height}x{width} pixels are nothing to measure; give at least 1 of 1x1.")
    if precision not in ("fp32", "bf16"):
        raise UnknownName("precision", precision, ["fp32", "bf16"])
    if device not in RUNTIME:
        raise UnknownName("device", device, RUNTIME)
    network = on_meta(model)
    parameters = list(network.parameters())
    size = (batch, model.preprocessing.channels, height, width)
    if training:
        flops, weights, working = _training(network.train(), size, precision, optimizer)
        if device == "cpu":
            working = TRAINER + int(GAPS * working)
    else:
        flops, weights, working = _prediction(network.eval(), size, precision, device)
    return Cost(
        height, width, batch, training, precision, device, flops, sum(p.numel() for p in parameters),
        weights, working, RUNTIME[device] + weights + working,
    )  # fmt: skip


def working_bytes(model: SegmentationModel, height: int, width: int, precision: str = "fp32") -> int:
    """Bytes of tensors alive at once, beside the weights, while one image of H x W pixels is scored."""
    return estimate(model, height, width, precision=precision).working_bytes


def on_meta(model: M) -> M:
    """A copy of `model` on the meta device; its weights are not copied and take no memory."""
    own: dict[int, Any] = {}
    for p in model.parameters():
        own[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        own[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(model, own)


def _prediction(model: SegmentationModel, size: tuple[int, ...], precision: str, device: str) -> tuple[int, int, int]:
    """(flops, bytes of weights, bytes of other tensors) of a call after the first, which folds, packs and makes the
    background."""
    ready = prepare(model, precision)
    weights = _bytes(model)
    with torch.inference_mode():
        ready(_image(size))
        flops = _flops(lambda: ready(_image(size)))
        if device == "cpu" and torch._C._has_mkldnn:
            weights += ready.packed_bytes
            for layer in ready.convolutions:
                _lay_out(layer)
        working = _peak(lambda: ready(_image(size))) + ready.background_bytes
    return flops, weights, working


def _lay_out(layer: Convolution) -> None:
    """Have the layer hold, while it is called, as much as it lays out beside its input and output on the CPU."""
    held: list[Tensor] = []

    def before(_: nn.Module, inputs: Any) -> None:
        held.append(torch.empty(layer.scratch_bytes(*inputs), dtype=torch.uint8, device="meta"))

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(lambda *_: held.clear())


def _training(
    model: SegmentationModel, size: tuple[int, ...], precision: str, optimizer: Optimizer
) -> tuple[int, int, int]:
    """(flops, bytes of weights and the optimiser's state, bytes of other tensors, gradients among them)."""
    if size[0] == 1:  # torch refuses statistics of a single value, which a small image's coarsest map is
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and max(size[2:]) <= model.geometry(1, 1).align:
                layer.eval()
    learned = [p for p in model.parameters() if p.requires_grad]
    state = (1 if optimizer == "sgd" else 2) * sum(p.numel() * p.element_size() for p in learned)
    if precision == "bf16":  # automatic precision computes with converted copies of the weights
        state += sum(p.numel() * 2 for p in model.parameters())
        model = model.to(torch.bfloat16)
        learned = [p for p in model.parameters() if p.requires_grad]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def step() -> None:
        scores = list(model.coarse(_image(size, dtype)).values())
        torch.autograd.backward(scores, [torch.empty_like(s) for s in scores])

    grown = _peak(step)
    for p in learned:
        p.grad = None
    flops = _flops(step)
    # The optimiser's step holds all gradients and one more array of the largest one's size, when the maps are gone.
    sizes = [p.numel() * 4 for p in learned] or [0]
    return flops, _bytes(model) * (4 // dtype.itemsize) + state, max(grown, sum(sizes) + max(sizes))


def _image(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(size, device="meta", dtype=dtype).contiguous(memory_format=torch.channels_last)


def _bytes(model: TorchModule) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def _flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def _peak(call: Callable[[], object]) -> int:
    live = Live()
    with live:
        call()
    return int(live.peak)


@final
class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensor storages alive while it is entered; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if _stored(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if _stored(leaf):
                self._count(leaf, before)
        return out

    def _count(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or key in before or not size:  # an argument's storage is not new: weights, in place
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _stored(leaf: object) -> bool:
    """Whether it is a tensor whose storage torch shows; packed weights' it does not."""
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided
