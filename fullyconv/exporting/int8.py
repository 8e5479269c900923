"""Files that compute in 8 bits: calibrated on the user's images, as many layers as the mean IU allows, and measured.

Static quantisation (weights int8 a channel, activations uint8, QuantizeLinear/DequantizeLinear) of the trunk alone:
score layers, skips and upsampling stay in fp32, so tiles still equal the whole. Ranges are the least and largest value
that the calibration images cause: percentiles cut off what few pixels need, and entropy takes minutes.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.evaluation import evaluate
from fullyconv.evaluation.choice import images_to_measure
from fullyconv.evaluation.comparison import compare_results
from fullyconv.exporting.proof import TIMED, Measurement, centre_crop, with_values
from fullyconv.predict import Predictor
from fullyconv.preprocessing import Preprocessing
from fullyconv.runtime.exported import ExportedNetwork
from fullyconv.runtime.onnx_session import OnnxSession, threads
from fullyconv.runtime.sealing import ExportFacts

__all__ = ["Images", "calibration_images", "quantise"]

QUANTISED = ("Conv", "Add", "Clip", "Relu", "MaxPool", "Concat")  # activations join the layer before them
CALIBRATED, CHOSEN = 32, 16  # images
LOOKED = (4, 256)  # images, pixels a side, by which a layer's cost is measured

Write = Callable[[Any, ExportFacts], bytes]
Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Images:
    """calibration: what ranges and layers are chosen by; measured: what the loss is measured on, none of the former."""

    calibration: Dataset
    measured: Dataset


def calibration_images(data: str, model: str, predictor: Predictor) -> Images:
    """The training and validation images of `data`; without splits every second image for each.

    Raises UsageError for data without labels or of one image."""
    measured = images_to_measure(data, "", predictor, model)
    with contextlib.suppress(UnknownName):
        training = images_to_measure(data, "train", predictor, model)
        if training.split != measured.split and len(training):
            return Images(training, measured)
    if len(measured) < 2 or not measured.taxonomies:
        raise UsageError("Eight bits are calibrated and measured on labelled images; give a data set of two or more.")
    return Images(*(replace(measured, records=measured.records[i::2]) for i in (0, 1)))


def quantise(
    bare: Any, about: ExportFacts, trunk: Sequence[str], images: Images, max_loss: float, write: Write, say: Say
) -> tuple[Any, Measurement]:
    """(the graph in 8 bits, what was measured of it).

    bare: the proven graph in fp32; trunk: its nodes that may compute in 8 bits; write: a file's bytes from both.
    Raises DataError where more than `max_loss` points of mean IU are lost.
    """
    seen = [images.calibration.image(i) for i in _spaced(len(images.calibration), CALIBRATED)]
    feeds = [_fed(image, about) for image in seen]
    say(f"calibrating on {len(feeds)} images")
    ranges = _calibrated(bare, feeds)
    in_8_bits: ExportFacts = {**about, "precision": "int8"}
    fp32 = _opened(write(bare, about))
    layers = [n.name for n in bare.graph.node if n.op_type == "Conv" and n.name in set(trunk)]
    say(f"measuring what each of {len(layers)} layers costs")
    costs = _costs(bare, about, layers, ranges, seen)
    ordered = sorted(layers, key=lambda name: -costs[name])
    chosen = replace(
        images.calibration,
        records=[images.calibration.records[i] for i in _spaced(len(images.calibration), CHOSEN, 0.5)],
    )
    best = evaluate(fp32, chosen).mean_iu
    tried: dict[int, float] = {}
    for count in _counts(len(layers)):
        made = _quantised(bare, trunk, ordered[:count], ranges)
        tried[count] = 100 * (best - evaluate(_opened(write(made, in_8_bits)), chosen).mean_iu)
        say(f"{count} of {len(layers)} layers in fp32: {tried[count]:+.2f} points lost on {len(chosen)} images")
        if tried[count] <= max_loss / 2:  # other images may lose more
            break
    kept = tuple(ordered[: min(tried, key=lambda count: (tried[count] > max_loss / 2, tried[count]))])
    graph = _quantised(bare, trunk, kept, ranges)
    int8 = _opened(write(graph, in_8_bits))
    say(f"measuring both on {len(images.measured)} images of {images.measured.split}")
    before, after = evaluate(fp32, images.measured), evaluate(int8, images.measured)
    between = compare_results(before, after).mean_iu.interval
    measurement = Measurement(
        len(feeds), len(layers), kept, images.measured.split, len(images.measured),
        (before.mean_iu, after.mean_iu), (between.low, between.high),
        _milliseconds(write(bare, about), write(graph, in_8_bits), feeds[0], about), threads(),
    )  # fmt: skip
    if not measurement.loss <= max_loss:
        raise DataError(
            f"8 bits lose {measurement.loss:.2f} points of mean IU ({100 * before.mean_iu:.2f} -> "
            f"{100 * after.mean_iu:.2f}), more than the {max_loss:g} allowed; raise --max-loss, or leave out --int8."
        )
    return graph, measurement


def _counts(layers: int) -> Iterator[int]:
    """How many layers are tried in fp32: 0, 1, 2, 4, ... up to half of them."""
    yield 0
    count = 1
    while count <= layers // 2:
        yield count
        count *= 2


def _spaced(count: int, most: int, shift: float = 0.0) -> list[int]:
    """Up to `most` places among `count`, evenly spaced."""
    most = min(count, most)
    return [int((i + shift) * count / most) for i in range(most)]


def _fed(image: NDArray[np.number], about: ExportFacts) -> NDArray[Any]:
    """An image as the file takes it, N = 1."""
    if about["input"]["kind"] == "uint8":
        return np.ascontiguousarray(image)[None]
    return Preprocessing.from_json(about["preprocessing"])(image)[None]


def _opened(data: bytes) -> ExportedNetwork:
    return ExportedNetwork.of_bytes(data, "the exported file")


def _calibrated(bare: Any, feeds: Sequence[NDArray[np.number]]) -> Any:
    """The least and largest value of every tensor that may be quantised, as onnxruntime holds them."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    @final
    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            x = next(self._left, None)
            return None if x is None else {"image": x}

    with tempfile.TemporaryDirectory() as folder:
        plain, more = Path(folder) / "plain.onnx", Path(folder) / "more.onnx"
        onnx.save(bare, plain)
        calibrator = create_calibrator(
            plain, list(QUANTISED), augmented_model_path=str(more), calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(Reader())
        return calibrator.compute_data()


def _quantised(bare: Any, trunk: Sequence[str], kept: Sequence[str], ranges: Any) -> Any:
    """A copy of the graph with the trunk but for `kept` in 8 bits."""
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    left, copy = set(kept), onnx.ModelProto()
    copy.CopyFrom(bare)
    chosen = [n.name for n in bare.graph.node if n.name in set(trunk) - left and n.op_type in QUANTISED]
    quantiser = QDQQuantizer(
        copy, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, chosen, [], list(QUANTISED), {}
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    made = quantiser.model.model
    made.producer_name, made.ir_version = bare.producer_name, bare.ir_version
    del made.opset_import[:]
    made.opset_import.extend(bare.opset_import)
    made.ClearField("producer_version")
    for i, tensor in enumerate(made.graph.initializer):  # all constants alike, as raw bytes
        made.graph.initializer[i].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return made


def _costs(
    bare: Any, about: ExportFacts, layers: Sequence[str], ranges: Any, seen: Sequence[NDArray[np.number]]
) -> dict[str, float]:
    """Layer -> by how much the coarse scores change (squared, of their square) when it alone computes in 8 bits."""
    count, side = LOOKED
    feeds = [_fed(centre_crop(image, side, side), about) for image in seen[:: max(1, len(seen) // count)][:count]]
    held = dict(about["coarse"] or {})

    def scores(graph: Any) -> list[NDArray[Any]]:
        run = OnnxSession(with_values(graph.SerializeToString(), held), "the exported file")
        return [s for x in feeds for s in run({"image": x}, list(held.values()))]

    truth = scores(bare)
    size = sum(float(np.square(t).sum()) for t in truth)
    found = {}
    for layer in layers:
        answer = scores(_with_one(bare, layer, ranges))
        lost = sum(float(np.square(s - t).sum()) for s, t in zip(answer, truth, strict=True))
        found[layer] = lost / max(size, 1e-30)
    return found


def _with_one(bare: Any, layer: str, ranges: Any) -> Any:
    """A copy of the graph in which one convolution alone reads what 8 bits hold of its input and weights."""
    import onnx
    from onnx import helper, numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(bare)
    at = next(i for i, n in enumerate(copy.graph.node) if n.name == layer)
    node, weights = copy.graph.node[at], {t.name: t for t in copy.graph.initializer}
    low, high = ranges[node.input[0]].range_value
    low, high = min(0.0, float(np.min(low))), max(0.0, float(np.max(high)))
    scale = max(high - low, 1e-30) / 255
    copy.graph.initializer.extend(
        [
            numpy_helper.from_array(np.asarray(scale, np.float32), "one_scale"),
            numpy_helper.from_array(np.asarray(round(-low / scale), np.uint8), "one_zero"),
        ]
    )
    tensor = weights[node.input[1]]
    weight = numpy_helper.to_array(tensor)
    largest = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True), 1e-30) / 127
    tensor.CopyFrom(numpy_helper.from_array((np.rint(weight / largest) * largest).astype(np.float32), tensor.name))
    read = node.input[0]
    node.input[0] = "one_read"
    copy.graph.node.insert(at, helper.make_node("DequantizeLinear", ["one_q", "one_scale", "one_zero"], ["one_read"]))
    copy.graph.node.insert(at, helper.make_node("QuantizeLinear", [read, "one_scale", "one_zero"], ["one_q"]))
    return copy


def _milliseconds(fp32: bytes, int8: bytes, x: NDArray[np.number], about: ExportFacts) -> tuple[float, float]:
    """Medians of both, taken in turns."""
    small = about["input"]["kind"] == "uint8"
    image = x[0] if small else np.moveaxis(x[0], 0, -1)
    shown = centre_crop(image, *TIMED)
    fed = {"image": np.ascontiguousarray(shown if small else np.moveaxis(shown, -1, 0))[None]}
    sessions = [OnnxSession(data, "the exported file") for data in (fp32, int8)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(9):
        for run, kept in zip(sessions, times, strict=True):
            begun = time.perf_counter()
            run(fed)
            kept.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times[0][1:])), float(np.median(times[1][1:]))
