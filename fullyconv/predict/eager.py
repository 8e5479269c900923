"""What a `Predictor` computes with for a network: torch, on the network's device."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullyconv import ops
from fullyconv.engine.precision import choose_precision, refuse, seconds
from fullyconv.engine.prepare import prepare
from fullyconv.errors import UsageError
from fullyconv.interpolation.axes import Border, Offset
from fullyconv.models import FCN, parse
from fullyconv.models.interface import SegmentationModel
from fullyconv.predict.tiling import Readout

__all__ = ["EagerBackend", "digest"]

PRECISIONS = ("auto", "fp32", "bf16")
MEASURED = (256, 320)  # rows and columns of the image by which "auto" chooses


@final
class EagerBackend:
    """See `predict.tiling.Backend`. Scores are tensors on the network's device."""

    def __init__(self, model: SegmentationModel, precision: str) -> None:
        self.device: torch.device = next(model.parameters()).device
        # On the CPU `prepare` lays weights out itself; to do so here would copy fc6.
        self.network = model if self.device.type == "cpu" else model.to(memory_format=torch.channels_last)
        self.precision, self.chosen = _precision(self.network, precision, self.device)
        self._prepared = prepare(self.network, self.precision)
        self.inputs = parse(model.name).inputs if isinstance(model, FCN) else None

    @property
    def batch_pixels(self) -> int:
        # measured: on a CPU 8 images of 128x128 together take half the time, of 256x320 no less than one by one
        return 1 << 17 if self.device.type == "cpu" else 1 << 22

    @property
    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}

    def digest(self) -> str:
        return digest(self.network)

    def identity(self) -> str:
        model = self.network
        made = model.config() if hasattr(model, "config") else (type(model).__name__, dict(model.heads))
        facts = repr((made, model.preprocessing.to_json(), self.digest()))
        return hashlib.sha256(facts.encode()).hexdigest()

    def threads(self) -> int:
        return torch.get_num_threads()

    def computing(self) -> Any:
        return torch.inference_mode()

    def whole(self, image: NDArray[np.number], readout: Readout) -> None:
        return None

    def coarse(self, window: NDArray[np.number]) -> dict[str, Tensor]:
        return self.coarse_of(self.network.preprocessing(window)[None])

    def coarse_of(self, x: NDArray[np.float32]) -> dict[str, Tensor]:
        coarse = self._prepared(torch.from_numpy(x).to(self.device, memory_format=torch.channels_last))
        return {h: coarse[h] for h in self.network.heads}

    def read(
        self, readout: Readout, scores: Tensor, size: Sequence[int], stride: int, offset: Offset, border: Border
    ) -> tuple[NDArray[Any], ...]:
        at = (size, stride, offset, border)
        if readout == "labels":
            return (ops.upsample_argmax(scores, *at)[0].cpu().numpy(),)
        if readout == "scores":
            return (ops.upsample(scores, *at)[0].cpu().numpy(),)
        return tuple(part[0].cpu().numpy() for part in ops.upsample_softmax_max(scores, *at))

    def upsample(self, scores: Tensor, size: Sequence[int], stride: int, offset: Offset, border: Border) -> Tensor:
        return ops.upsample(scores, size, stride, offset, border)[0]

    def room(self, scores: Tensor, shape: Sequence[int]) -> Tensor:
        return scores.new_zeros(tuple(shape))

    def weigh(self, scores: Tensor, weight: NDArray[np.float32]) -> Tensor:
        return scores * torch.from_numpy(weight).to(scores)

    def read_full(self, readout: Readout, full: Tensor) -> tuple[NDArray[Any], ...]:
        if readout == "scores":
            return (full.cpu().numpy(),)
        labels = full.argmax(0).to(ops.label_dtype(full.shape[0])).cpu().numpy()
        return (labels,) if readout == "labels" else (labels, full.softmax(0).amax(0).cpu().numpy())

    def probabilities(self, scores: NDArray[np.float32], mirrored: bool, size: tuple[int, int]) -> NDArray[np.float32]:
        full = torch.from_numpy(scores)[None]
        full = full.flip(3) if mirrored else full
        if tuple(full.shape[2:]) != size:
            full = torch.nn.functional.interpolate(full, size, mode="bilinear", align_corners=False)
        found: NDArray[np.float32] = full[0].softmax(0).numpy()
        return found


def digest(model: SegmentationModel) -> str:
    """sha256 (hex) of the network's tensors: names, types, shapes and bytes, in order of name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _precision(model: SegmentationModel, name: str, device: torch.device) -> tuple[str, str]:
    """(precision, why it was chosen: empty where it was given)."""
    if name not in PRECISIONS:
        raise UsageError(f"The precision {name!r} is unknown; choose from {', '.join(PRECISIONS)}.")
    if name == "auto":
        return _quicker(model, device)
    refuse(name, device)
    return name, ""


def _quicker(model: SegmentationModel, device: torch.device) -> tuple[str, str]:
    """(precision, why) of `model` for prediction, by an image of usual size where the device has bfloat16."""
    channels = len(model.preprocessing.mean)
    x = torch.zeros(1, channels, *MEASURED, device=device).contiguous(memory_format=torch.channels_last)

    def measure(name: str) -> float:
        network = prepare(model, name)
        with torch.inference_mode():
            return seconds(lambda: network(x), device)

    return choose_precision(device, measure)
