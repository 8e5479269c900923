"""A network as an ONNX graph: preprocessing, trunks, scores, fusion, upsampling and what is wanted of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, final

import numpy as np
from numpy.typing import DTypeLike

from fullyconv.errors import UnknownName, UsageError
from fullyconv.exporting.graph import Graph
from fullyconv.exporting.layers import LOOKED_AT, array, translate
from fullyconv.exporting.upsampling import UpsamplingReading
from fullyconv.geometry import Skip, kernel_width, last_upsampling
from fullyconv.models import FCN, parse
from fullyconv.models.score_layers import LearnedUpsampling
from fullyconv.models.trace import CannotTrace, Trace
from fullyconv.preprocessing import Preprocessing

__all__ = ["INPUTS", "OUTPUTS", "Values", "build", "output_names"]

OUTPUTS = ("labels", "scores", "probabilities", "coarse", "confidence")
INPUTS = ("uint8", "float")
IMAGE = "image"


def output_names(output: str, heads: Collection[str]) -> dict[str, list[str]]:
    """{head: names of its outputs}: labels, or labels_HEAD where there are several heads; confidence goes with them."""
    kinds = ["labels", "confidence"] if output == "confidence" else [output]
    return {h: [k if len(heads) == 1 else f"{k}_{h}" for k in kinds] for h in heads}


@final
@dataclass(frozen=True)
class Values:
    """Names inside a graph: the preprocessed input, the nodes of the trunks (without preprocessing, scores and
    upsampling), and by head the coarse scores and those that the answers are made of."""

    x: str
    trunk: tuple[str, ...]
    coarse: dict[str, str]
    scores: dict[str, str]


def build(model: FCN, output: str, taken: str) -> tuple[Graph, Values]:
    """(graph, its values): scores are full ones, for output "coarse" coarse ones.

    The graph takes "image": uint8 N H W C as stored, or float N C H W as `preprocessing` makes it. Raises UsageError
    naming what cannot be translated.
    """
    if output not in OUTPUTS:
        raise UnknownName("output", output, OUTPUTS)
    if taken not in INPUTS:
        raise UnknownName("input", taken, INPUTS)
    graph = Graph()
    x, size = _input(graph, model, taken)
    before = len(graph.nodes)
    features = {}
    for key, stream in model.streams.items():
        part = _channels(graph, x, stream.channels, model.preprocessing.channels)  # type: ignore[arg-type]
        features[key] = translate(graph, stream.features, model.taps, part)  # type: ignore[arg-type]
    traced = _traced(model)
    names = output_names(output, model.heads)
    values = Values(x, tuple(n.name for n in graph.nodes[before:]), {}, {})
    for head, classes in model.heads.items():
        coarse, sizes = _Fusion(graph, model, head, features, traced).fused()
        values.coarse[head] = coarse
        values.scores[head] = coarse if output == "coarse" else _last(graph, model, coarse, sizes, size)
        _answers(graph, output, values.scores[head], names[head], classes)
    return graph, values


def _input(graph: Graph, model: FCN, taken: str) -> tuple[str, str]:
    """(the network's input as float N C H W, its size as a list H W)."""
    channels = model.preprocessing.channels
    if taken == "float":
        x = graph.input(IMAGE, np.float32, ["N", channels, "H", "W"])
        return x, graph.add("Shape", [x], start=2, end=4)
    inputs = parse(model.name).inputs
    if model.preprocessing.log or "depth" in inputs:
        raise UsageError(
            f"{model.name} takes {', '.join(inputs)}, and depth does not fit 8 bits; export it with --input float "
            "(input='float')."
        )
    x = graph.input(IMAGE, np.uint8, ["N", "H", "W", channels])
    return _preprocessed(graph, x, model.preprocessing), graph.add("Shape", [x], start=1, end=3)


def _preprocessed(graph: Graph, x: str, how: Preprocessing) -> str:
    """(pixel * scale - mean) / std as one product and one sum a channel."""
    x = graph.add("Transpose", [graph.add("Cast", [x], to=_type(np.float32))], perm=[0, 3, 1, 2])
    if how.order != tuple(range(how.channels)):
        x = graph.add("Gather", [x, graph.whole(*how.order)], axis=1)
    mean, std = (np.asarray(v, np.float64).reshape(1, -1, 1, 1) for v in (how.mean, how.std))
    x = graph.add("Mul", [x, graph.constant((how.scale / std).astype(np.float32), "scale")])
    return graph.add("Add", [x, graph.constant((-mean / std).astype(np.float32), "shift")])


def _type(dtype: DTypeLike) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _channels(graph: Graph, x: str, part: slice, channels: int) -> str:
    if (part.start, part.stop) == (0, channels):
        return x
    return graph.add("Slice", [x, *(graph.whole(int(n)) for n in (part.start, part.stop, 1))])


def _traced(model: FCN) -> Trace:
    trunk: Any = next(iter(model.streams.values())).features
    try:
        traced: Trace = trunk.trace()
    except CannotTrace as error:
        raise UsageError(f"This network cannot be exported: {error}") from error
    return traced


Sizes = list[int]  # cells along an axis for images of 1, 2, ... LOOKED_AT pixels


@final
class _Fusion:
    """One head's scores, coarse to fine."""

    def __init__(
        self, graph: Graph, model: FCN, head: str, features: Mapping[str, Mapping[int, str]], traced: Trace
    ) -> None:
        self.graph, self.model, self.head, self.features = graph, model, head, features
        least: int = next(iter(model.streams.values())).features.least  # type: ignore[union-attr, assignment]
        found = [traced.sizes(*[max(n, least)] * 2) for n in range(1, LOOKED_AT + 1)]
        self.cells = {tap: [f[traced.outputs[tap]][0] for f in found] for tap in model.taps}
        columns = {tap: [f[traced.outputs[tap]][1] for f in found] for tap in model.taps}
        if columns != self.cells:
            raise UsageError("This network cannot be exported: its rows and columns have different strides.")

    def fused(self) -> tuple[str, Sizes]:
        """(coarse scores, their cells)."""
        scores, cells = self._scored(self.model.taps[0]), self.cells[self.model.taps[0]]
        for tap, skip in self.model.skips.items():
            finer, size = self._scored(tap), self.cells[tap]
            if self.model.border == "fade":
                width = kernel_width(skip.factor)
                size = [(n - 1) * skip.factor + width for n in cells]
            scores = self._up(tap, skip, scores, finer, cells, size)
            if skip.crop:
                start = self.graph.whole(skip.crop, skip.crop)
                end = self.graph.add("Add", [start, self._size(scores)])
                finer = self.graph.add("Slice", [finer, start, end, self.graph.whole(2, 3)])
            scores, cells = self.graph.add("Add", [scores, finer]), size
        return scores, cells

    def _size(self, value: str) -> str:
        return self.graph.add("Shape", [value], start=2, end=4)

    def _scored(self, tap: int) -> str:
        """A tap's scores, averaged over the streams."""
        found = []
        for key, stream in self.model.streams.items():
            layer: Any = stream.score[self.head][str(tap)]  # type: ignore[index]
            scale = stream.scales.get(tap, 1.0) / len(self.model.streams)  # type: ignore[union-attr, operator]
            weight = self.graph.constant(array(layer.weight) * np.float32(scale), "weight")
            bias = self.graph.constant(array(layer.bias) / np.float32(len(self.model.streams)), "bias")
            found.append(self.graph.add("Conv", [self.features[key][tap], weight, bias], kernel_shape=[1, 1]))
        return found[0] if len(found) == 1 else self.graph.add("Sum", found)

    def _up(self, tap: int, skip: Skip, scores: str, finer: str, cells: Sizes, size: Sizes) -> str:
        learned = self.model.learned[self.head][str(tap)] if self.head in self.model.learned else None  # type: ignore[index]
        if learned is not None:
            return self._learned(learned, skip, scores, finer)
        reading = UpsamplingReading.of(skip.factor, skip.offset, self.model.border, zip(cells, size, strict=True))
        if self.model.border == "fade":
            return reading.write_whole(self.graph, scores, cells[0], size[0])
        return reading.write(self.graph, scores, self._size(finer))

    def _learned(self, layer: LearnedUpsampling, skip: Skip, scores: str, finer: str) -> str:
        """`LearnedUpsampling` as nodes."""
        graph, factor = self.graph, skip.factor
        same = self.model.border != "fade"
        x = graph.add("Pad", [scores, graph.whole(0, 0, 1, 1, 0, 0, 1, 1)], mode="edge") if same else scores
        up = graph.add("ConvTranspose", [x, graph.constant(array(layer.weight), "weight")], strides=[factor, factor])
        if not same:
            return up
        up = graph.add("Pad", [up, graph.whole(0, 0, 0, 0, 0, 0, factor, factor)], mode="edge")
        start = graph.whole(*[int(skip.offset) + factor] * 2)
        return graph.add("Slice", [up, start, graph.add("Add", [start, self._size(finer)]), graph.whole(2, 3)])


def _last(graph: Graph, model: FCN, coarse: str, cells: Sizes, size: str) -> str:
    last = last_upsampling(model.fused, model.border)
    border: Literal["fade", "replicate"] = last.border
    pairs = zip(cells, range(1, LOOKED_AT + 1), strict=True)
    return UpsamplingReading.of(last.stride, Fraction(last.offset), border, pairs).write(graph, coarse, size)


def _answers(graph: Graph, output: str, scores: str, names: list[str], classes: int) -> None:
    """The outputs of one head, made of its scores."""
    if output in ("scores", "coarse", "probabilities"):
        rows, columns = ("h", "w") if output == "coarse" else ("H", "W")
        if output == "probabilities":
            scores = graph.add("Softmax", [scores], axis=1)
        graph.output(scores, names[0], np.float32, ["N", classes, rows, columns])
        return
    kind = np.uint8 if classes <= 255 else np.uint16
    best = graph.add("ArgMax", [scores], axis=1, keepdims=0)
    graph.output(graph.add("Cast", [best], to=_type(kind)), names[0], kind, ["N", "H", "W"])
    if output == "confidence":
        confidence = graph.add("ReduceMax", [graph.add("Softmax", [scores], axis=1)], axes=[1], keepdims=0)
        graph.output(confidence, names[1], np.float32, ["N", "H", "W"])
