"""An exported file against its network: onnxruntime and eager torch on the same images, at sizes from 1 x 1 on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullyconv.errors import DataError, UsageError, foreign_values, printable
from fullyconv.models import FCN
from fullyconv.models.tracer import shared_copy
from fullyconv.preprocessing import Preprocessing
from fullyconv.runtime.onnx_session import OnnxSession
from fullyconv.runtime.sealing import ExportFacts

__all__ = [
    "LIMIT",
    "SIZES",
    "TIMED",
    "ExportProof",
    "Measurement",
    "ProofEngine",
    "by_onnxruntime",
    "centre_crop",
    "compare_engines",
    "drawn",
    "with_values",
]  # fmt: skip

TIMED = (480, 640)  # rows and columns of the image by which files are timed
LIMIT = 1e-4  # of the largest score: what rounding may differ by
# Batch, rows, columns: single pixels, odd and even sides, below and above the coarsest stride.
SIZES = ((1, 1, 1), (3, 1, 9), (1, 17, 1), (1, 2, 3), (3, 31, 33), (1, 32, 64), (1, 47, 61), (3, 48, 34), (1, 97, 65))


@final
@dataclass(frozen=True)
class Measurement:
    """What 8 bits cost and gain: mean IU (0..1) before and after on `images` images of `split`, the 95 % interval of
    the difference (paired bootstrap), and milliseconds of both for an image of 480x640 on `threads` threads here."""

    calibrated_on: int
    layers: int
    kept_in_fp32: tuple[str, ...]
    split: str
    images: int
    mean_iu: tuple[float, float]
    interval: tuple[float | None, float | None]
    milliseconds: tuple[float, float]
    threads: int

    @property
    def loss(self) -> float:
        """Points of mean IU that are lost."""
        return 100 * (self.mean_iu[0] - self.mean_iu[1])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        before, after = self.mean_iu
        low, high = (f"{100 * (v or 0):+.2f}" for v in self.interval)
        fp32, int8 = self.milliseconds
        quicker = "quicker" if int8 < 0.97 * fp32 else "NOT quicker on this processor"
        return (
            f"8 bits: mean IU {100 * before:.2f} -> {100 * after:.2f} ({-self.loss:+.2f}, 95 % {low} to {high}) on "
            f"{self.images} images of {self.split}; {len(self.kept_in_fp32)} of {self.layers} layers of the trunk stay "
            f"in fp32; {fp32:.1f} -> {int8:.1f} ms at {TIMED[0]}x{TIMED[1]} on {self.threads} thread(s): {quicker}."
        )


@final
@dataclass(frozen=True)
class ExportProof:
    """What a comparison found. difference: largest, relative to the largest score; changed: labels of `pixels` that
    differ; margin: the largest by which a changed label's score falls short, relative likewise."""

    sizes: list[list[int]]
    difference: float
    changed: int
    pixels: int
    margin: float
    images: str
    engines: dict[str, str]
    int8: Measurement | None = None  # of a file in 8 bits; the proof is then that of the graph it was made from

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v is not None}

    def __str__(self) -> str:
        engines = " and ".join(f"{name} {version}" for name, version in self.engines.items())
        return (
            f"{engines} agree on {len(self.sizes)} batches of {self.images} images: largest difference "
            f"{self.difference:.1e} of the largest score, {self.changed} of {self.pixels} labels changed"
            + (f" (ties within {self.margin:.1e})." if self.changed else ".")
            + (f"\n{self.int8}" if self.int8 else "")
        )


def drawn(model: FCN, small: bool, seed: int = 0) -> Iterator[NDArray[Any]]:
    """Images without end, H W C in the stored range: patches of colour with noise, bytes where `small`."""
    random = np.random.default_rng(seed)
    mean, deep = model.preprocessing.mean_pixel(), model.preprocessing.log
    order = model.preprocessing.order
    while True:
        cells = random.uniform(0, 1, (24, 24, len(mean))).repeat(6, 0).repeat(6, 1)
        image = 0.8 * cells + 0.2 * random.uniform(0, 1, cells.shape)
        top = np.where(mean > 2, 255.0, np.maximum(2 * mean, 1))
        for c in deep:
            top[order[c]] = 4 * mean[order[c]]
        yield np.rint(255 * image).astype(np.uint8) if small else (top * image).astype(np.float32)


class ProofEngine(Protocol):
    """What runs a file: onnxruntime (`runtime.onnx_session`), OpenVINO."""

    inputs: list[str]
    outputs: list[str]

    def __call__(
        self, fed: Mapping[str, NDArray[np.number]], wanted: Sequence[str] | None = None
    ) -> list[NDArray[Any]]: ...


def by_onnxruntime(data: bytes, about: ExportFacts, source: object) -> tuple[ProofEngine, ProofEngine]:
    """(an ONNX file, the file giving its scores too)."""
    with foreign_values(source, "export the model again"):
        held = dict(about["scores"])
    return OnnxSession(data, source, 1), OnnxSession(with_values(data, held), source, 1)


def compare_engines(
    engines: tuple[ProofEngine, ProofEngine],
    by: Mapping[str, str],
    about: ExportFacts,
    model: FCN,
    images: Sequence[NDArray[np.number]] = (),
    source: object = "The file",
) -> ExportProof:
    """Run a file beside `model` on `images` (H W C as stored; none: drawn ones) at `SIZES`. engines: the file, and the
    file giving its scores too; by: the engine's name and version.

    Raises DataError where a score differs by more than `LIMIT` of the largest, or a label that is no tie.
    """
    model = shared_copy(model).eval().cpu()
    with foreign_values(source, "export the model again"):
        names, held = dict(about["names"]), dict(about["scores"])
        how = Preprocessing.from_json(about["preprocessing"])
        if set(names) != set(model.heads) or about["name"] != model.name:
            raise DataError(f"{printable(source)} holds {printable(about['name'])}, not {model.name}; name its model.")
    plain, probing = engines
    taken = plain.inputs[0]
    small = about["input"]["kind"] == "uint8"
    measured, total = _images(model, images, small), _Total()
    for n, height, width in SIZES:
        batch = np.stack([centre_crop(next(measured), height, width) for _ in range(n)])
        fed = batch if small else how(batch)
        truth = _eager(model, batch, about["output"])
        answers = dict(zip(plain.outputs, plain({taken: fed}), strict=True))
        scores = probing({taken: fed}, list(held.values()))
        for head, found in zip(held, scores, strict=True):
            total.add(truth[head], found, [answers[name] for name in names[head]], about["output"])
    proof = ExportProof(
        [list(s) for s in SIZES], total.difference, total.changed, total.pixels, total.margin,
        "given" if images else "drawn",
        {**by, "torch": str(torch.__version__)},
    )  # fmt: skip
    _judge(proof, total, source)
    return proof


def _judge(proof: ExportProof, total: _Total, source: object) -> None:
    if not proof.difference <= LIMIT:
        raise DataError(
            f"{printable(source)} does not compute what its network does: scores differ by {proof.difference:.2g} of "
            f"the largest, {LIMIT:g} is rounding; no proof, so do not use it."
        )
    if not total.probability <= LIMIT:
        raise DataError(
            f"{printable(source)}: a probability differs by {total.probability:.2g}; no proof, so do not use it."
        )
    if proof.margin > max(2 * proof.difference, 1e-6):
        raise DataError(
            f"{printable(source)} labels otherwise than its network: {proof.changed} of {proof.pixels} labels, one by "
            f"a margin of {proof.margin:.2g} of the largest score, which is no tie; do not use it."
        )


@final
class _Total:
    """Largest differences so far, relative to the largest score of each batch."""

    def __init__(self) -> None:
        self.difference = self.margin = self.probability = 0.0
        self.changed = self.pixels = 0

    def add(
        self,
        truth: NDArray[np.floating],
        found: NDArray[np.floating],
        answers: Sequence[NDArray[np.number]],
        output: str,
    ) -> None:
        if truth.shape != found.shape:
            self.difference = float("inf")
            return
        largest = max(float(np.abs(truth).max()), 1e-12)
        self.difference = max(self.difference, _largest(truth - found) / largest)
        if output in ("labels", "confidence"):
            self._labels(truth, answers[0], largest)
        elif output == "probabilities":
            self._labels(truth, answers[0].argmax(1), largest)
            self._probabilities(torch.from_numpy(truth).softmax(1).numpy(), answers[0], largest)
        else:
            self.difference = max(self.difference, _largest(truth - answers[0]) / largest)
            self.pixels += truth[:, 0].size
        if output == "confidence":
            self._probabilities(torch.from_numpy(truth).softmax(1).amax(1).numpy(), answers[1], largest)

    def _probabilities(self, truth: NDArray[np.floating], predicted: NDArray[np.number], largest: float) -> None:
        # A probability follows a score's own size: e to a difference of that of the scores.
        self.probability = max(self.probability, _largest(truth - predicted) / max(1.0, largest))

    def _labels(self, truth: NDArray[np.floating], predicted: NDArray[np.number], largest: float) -> None:
        best = truth.argmax(1)
        self.pixels += best.size
        if predicted.shape != best.shape or int(predicted.max()) >= truth.shape[1]:
            self.changed, self.margin = self.changed + best.size, float("inf")
            return
        self.changed += int((best != predicted).sum())
        got = np.take_along_axis(truth, predicted.astype(np.int64)[:, None], 1)[:, 0]
        self.margin = max(self.margin, float((truth.max(1) - got).max()) / largest)


def _largest(difference: NDArray[np.number]) -> float:
    """The largest magnitude; infinite where something is no number."""
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def _eager(model: FCN, batch: NDArray[np.number], output: str) -> dict[str, NDArray[Any]]:
    x = torch.from_numpy(model.preprocessing(batch))
    with torch.inference_mode():
        found: dict[str, Tensor] = model.coarse(x) if output == "coarse" else model(x)
    return {head: found[head].numpy() for head in model.heads}


def with_values(data: bytes, held: Mapping[str, str]) -> bytes:
    """The same graph, giving out the values that `held` names as well."""
    import onnx

    model = onnx.load_model_from_string(data)
    known = {o.name for o in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    for name in held.values():
        if name not in made:
            raise DataError(f"The file has no value named {printable(name)}; export the model again.")
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    found: bytes = model.SerializeToString()
    return found


def _images(model: FCN, images: Sequence[NDArray[np.number]], small: bool) -> Iterator[NDArray[Any]]:
    channels = model.preprocessing.channels
    for image in images:
        if image.ndim != 3 or image.shape[2] != channels:
            raise UsageError(f"An image of shape {image.shape} cannot prove it; give H x W x {channels} arrays.")
        if small and image.dtype != np.uint8:
            raise UsageError(f"An image of {image.dtype} does not fit a file that takes bytes; use --input float.")
    return drawn(model, small) if not images else (images[i % len(images)] for i in range(1 << 30))


def centre_crop(image: NDArray[np.number], height: int, width: int) -> NDArray[Any]:
    """The middle `height` x `width` pixels, the image repeated where it is smaller."""
    rows, columns = -(-height // image.shape[0]), -(-width // image.shape[1])
    image = np.tile(image, (rows, columns, 1))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])
