"""What a `Predictor` computes with for an exported file: onnxruntime, then numba's kernels or numpy's strips."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UnknownName, UsageError
from fullyconv.interpolation import strips
from fullyconv.interpolation.axes import Border, Offset, Sampling
from fullyconv.runtime.exported import ExportedNetwork
from fullyconv.runtime.onnx_session import quiet_onnxruntime, threads

__all__ = ["RuntimeBackend"]

Scores = NDArray[np.float32]
Readout = Literal["labels", "scores", "confident labels"]


@final
class RuntimeBackend:
    """See `predict.tiling.Backend`, which this is without torch."""

    chosen, device = "", "cpu"
    batch_pixels = 0  # exported files take one image at a time

    def __init__(self, network: ExportedNetwork, precision: str) -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise UnknownName("precision", precision, ("auto", "fp32", "bf16"))
        if precision == "bf16":
            raise UsageError("An exported file computes in what it was written in, so not in bf16; leave it out.")
        self.network, self.inputs = network, network.inputs
        self.precision = str(network.about.get("precision", "fp32"))

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": str(quiet_onnxruntime().__version__)}

    def digest(self) -> str:
        """sha256 of the weights that the file was made from."""
        return str(self.network.about.get("weights_sha256", ""))

    def identity(self) -> str:
        return self.network.seal

    def threads(self) -> int:

        return threads()

    def computing(self) -> Any:
        return contextlib.nullcontext()

    def whole(self, image: NDArray[np.number], readout: Readout) -> dict[str, tuple[NDArray[Any], ...]] | None:
        """The file's own answer where it gives just what is wanted: what a script without fullyconv gets."""
        gives = {"labels": ("labels", "confidence"), "confident labels": ("confidence",), "scores": ("scores",)}
        if self.network.output not in gives[readout]:
            return None
        found = self.network.answers(image)
        if found is None:
            return None
        return {h: tuple(arrays[: 1 if readout == "labels" else 2]) for h, arrays in found.items()}

    def coarse(self, window: NDArray[np.number]) -> dict[str, Scores]:
        return self.coarse_of(self.network.preprocessing(window)[None])

    def coarse_of(self, x: Scores) -> dict[str, Scores]:
        return self.network.coarse(x)

    def read(
        self, readout: Readout, scores: Scores, size: Sequence[int], stride: int, offset: Offset, border: Border
    ) -> tuple[NDArray[Any], ...]:
        sampling = _sampling(scores.shape[2:], size, stride, offset, border)
        kind = np.uint8 if scores.shape[1] <= 255 else np.uint16
        if readout == "scores":
            return (strips.upsample(scores[0], sampling),)
        if _compiled() and (found := _by_numba(readout, scores, sampling, kind)):
            return found
        if readout == "labels":
            return (strips.label(scores[0], sampling, kind),)
        return strips.label_and_confidence(scores[0], sampling, kind)

    def upsample(self, scores: Scores, size: Sequence[int], stride: int, offset: Offset, border: Border) -> Scores:
        return strips.upsample(scores[0], _sampling(scores.shape[2:], size, stride, offset, border))

    def room(self, scores: Scores, shape: Sequence[int]) -> Scores:
        return np.zeros(tuple(shape), np.float32)

    def weigh(self, scores: Scores, weight: Scores) -> Scores:
        return scores * weight

    def read_full(self, readout: Readout, full: Scores) -> tuple[NDArray[Any], ...]:
        if readout == "scores":
            return (full,)
        labels = full.argmax(0).astype(np.uint8 if len(full) <= 255 else np.uint16)
        if readout == "labels":
            return (labels,)
        return labels, (1 / np.exp(full - full.max(0)).sum(0)).astype(np.float32)

    def probabilities(self, scores: Scores, mirrored: bool, size: tuple[int, int]) -> Scores:
        """Full scores K h w -> softmax of them, mirrored back and resized to `size` (bilinear, half pixels)."""
        full = scores[:, :, ::-1] if mirrored else scores
        for axis, length in ((1, size[0]), (2, size[1])):
            if full.shape[axis] != length:
                full = _resized(full, axis, length)
        powers = np.exp(full - full.max(0))
        return np.ascontiguousarray(powers / powers.sum(0), np.float32)


def _resized(full: Scores, axis: int, length: int) -> Scores:
    """One axis read at (y + 1/2) n / length - 1/2, the edge repeated."""
    count = full.shape[axis]
    at = np.clip((np.arange(length) + 0.5) * (count / length) - 0.5, 0, count - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    t = (at - low).astype(np.float32).reshape(-1, 1) if axis == 1 else (at - low).astype(np.float32)
    found: Scores = np.take(full, low, axis) * (1 - t) + np.take(full, high, axis) * t
    return found


def _sampling(coarse: Sequence[int], size: Sequence[int], stride: int, offset: Offset, border: Border) -> Sampling:
    pair = offset if isinstance(offset, tuple) else (offset, offset)
    found: Sampling = _sampled((int(coarse[0]), int(coarse[1])), (int(size[0]), int(size[1])), stride, pair, border)
    return found


@functools.lru_cache(maxsize=64)
def _sampled(
    coarse: tuple[int, int],
    size: tuple[int, int],
    stride: int,
    pair: tuple[float | Fraction, float | Fraction],
    border: Border,
) -> Sampling:
    rows, columns = (Fraction(o).limit_denominator(1 << 16) for o in pair)
    return Sampling.of(coarse, size, stride, (rows, columns), border)


@functools.cache
def _compiled() -> bool:
    return importlib.util.find_spec("numba") is not None


def _by_numba(
    readout: Readout, scores: Scores, sampling: Sampling, kind: type[np.integer]
) -> tuple[NDArray[Any], ...] | None:
    """By the compiled kernels, on this thread; None where a score is not finite, which they do not compute."""
    from fullyconv.interpolation import label_kernels
    from fullyconv.interpolation.kernel_plan import lay_out

    plan, state = lay_out(sampling, 1, scores.shape[1]), np.zeros(2, np.int64)
    flat, labels = np.ascontiguousarray(scores).reshape(-1), np.empty(sampling.size, kind)
    work = label_kernels.label_scratch(plan, labels.dtype)
    if readout == "labels":
        label_kernels.labels(flat, plan, state, work, labels.reshape(-1))
        return None if state[1] else (labels,)
    confidence = np.empty(sampling.size, np.float32)
    label_kernels.confidences(flat, plan, state, work, labels.reshape(-1), confidence.reshape(-1))
    return None if state[1] else (labels, confidence)
