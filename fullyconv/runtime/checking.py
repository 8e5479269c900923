"""An ONNX file looked over before an engine sees it: only what an export of ours can hold passes.

One graph without functions, subgraphs and control flow, operators of ONNX's own domain that exports consist of,
tensors that lie inside the file and are as large as their shape says, names that exist. What a hostile file could do
to an engine (read other files, load code, take memory without end) needs one of the things that are refused here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from fullyconv.errors import DataError, printable
from fullyconv.runtime.protobuf import ByteSpan, Damaged, Field, bytes_field, fields, integer_field, integers, text

__all__ = ["LARGEST", "OPERATORS", "OnnxGraph", "checked_graph", "cut"]

LARGEST = 2**31 - 1  # bytes of one protobuf message
MOST_NODES, MOST_TENSORS, MOST_DIMENSIONS = 20_000, 20_000, 8  # our exports have hundreds, and 4 dimensions
MOST_CELLS = 1 << 12  # of padding, stride, kernel or upsampling: what makes a tensor larger than its input
VERSIONS = range(13, 26)  # of ONNX's operators

OPERATORS = {
    "Add", "ArgMax", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose",
    "DequantizeLinear", "Gather", "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "LRN", "Max",
    "MaxPool", "Mul", "Pad", "QuantizeLinear", "ReduceMax", "Relu", "Resize", "Shape", "Sigmoid", "Slice", "Softmax",
    "Sum", "Transpose",
}  # fmt: skip
# TensorProto's types: bytes of a number, and the field in which it may stand besides raw bytes.
SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
FLOAT, INT64 = 1, 7
CONFINED = {"Resize": 2, "Pad": 1}  # operators whose growth is a constant: the input that holds it
GROWING = {"strides", "pads", "kernel_shape", "dilations", "output_padding"}


@final
@dataclass(frozen=True)
class OnnxNode:
    operator: str
    inputs: list[str]
    outputs: list[str]
    whole: ByteSpan


@final
@dataclass
class OnnxGraph:
    """What was found: nodes in order, tensors by name, the values fed and given, the metadata, and the parts of the
    file that are none of these."""

    nodes: list[OnnxNode] = field(default_factory=list)
    tensors: dict[str, ByteSpan] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)  # small constants
    inputs: dict[str, ByteSpan] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    rest: list[ByteSpan] = field(default_factory=list)  # of the model: version, producer, operator sets


def checked_graph(data: bytes, source: object) -> OnnxGraph:
    """The graph of an ONNX file; DataError saying what is refused and where."""
    if len(data) > LARGEST:
        raise DataError(f"{printable(source)} is larger than an ONNX file can be (2 GiB); export the model again.")
    graph = OnnxGraph()
    try:
        _model(ByteSpan(memoryview(data), 0, len(data)), graph)
        _names(graph)
        _growth(graph)
    except Damaged as error:
        raise DataError(
            f"{printable(source)} is no ONNX file that can be used ({printable(error)[:160]}); give one that fullyconv "
            "export wrote."
        ) from error
    return graph


def _model(message: ByteSpan, graph: OnnxGraph) -> None:
    graphs = sets = 0
    for f in fields(message):
        if f.number == 7:
            graphs += 1
            if graphs > 1:
                raise Damaged("it holds two graphs")
            _graph(f.span, graph)
        elif f.number == 14:
            key, value = _pair(f)
            graph.metadata[key] = value
        elif f.number == 8:
            sets += 1
            _operator_set(f.span)
            graph.rest.append(f.whole)
        elif f.number in (1, 2, 3, 4, 5, 6):
            graph.rest.append(f.whole)
        else:
            raise Damaged("it holds functions or training steps" if f.number in (20, 25) else f"part {f.number}")
    if not graphs or not sets:
        raise Damaged("it holds no graph, or does not say which operators it means")


def _pair(f: Field) -> tuple[str, str]:
    found = {p.number: text(p) for p in fields(f.span) if p.number in (1, 2)}
    return found.get(1, ""), found.get(2, "")


def _operator_set(message: ByteSpan) -> None:
    domain, version = "", 0
    for f in fields(message):
        domain = text(f) if f.number == 1 else domain
        version = f.integer if f.number == 2 else version
    if domain not in ("", "ai.onnx"):
        raise Damaged(f"it needs operators of {domain}")
    if version not in VERSIONS:
        raise Damaged(f"it needs version {version} of ONNX's operators; {VERSIONS[0]} to {VERSIONS[-1]} are known")


def _graph(message: ByteSpan, graph: OnnxGraph) -> None:
    for f in fields(message):
        if f.number == 1:
            graph.nodes.append(_node(f))
        elif f.number == 5:
            _tensor(f, graph)
        elif f.number == 11:
            graph.inputs[_name(f)] = f.whole
        elif f.number == 12:
            graph.outputs.append(_name(f))
        elif f.number not in (2, 10, 13, 14, 16):
            raise Damaged("it holds sparse tensors" if f.number == 15 else f"part {f.number} of the graph")
        if len(graph.nodes) > MOST_NODES or len(graph.tensors) > MOST_TENSORS:
            raise Damaged(f"it has more than {MOST_NODES} operators or {MOST_TENSORS} tensors")


def _name(f: Field) -> str:
    return next((text(p) for p in fields(f.span) if p.number == 1), "")


def _node(f: Field) -> OnnxNode:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = domain = ""
    for p in fields(f.span):
        if p.number == 1:
            inputs.append(text(p))
        elif p.number == 2:
            outputs.append(text(p))
        elif p.number == 4:
            operator = text(p)
        elif p.number == 7:
            domain = text(p)
        elif p.number == 5:
            _attribute(p.span, operator)
    if domain not in ("", "ai.onnx"):
        raise Damaged(f"it uses the operator {operator} of {domain}")
    if operator not in OPERATORS:
        raise Damaged(f"it uses the operator {operator}, which no export has")
    return OnnxNode(operator, inputs, outputs, f.whole)


def _attribute(message: ByteSpan, operator: str) -> None:
    name = ""
    whole: list[int] = []
    for f in fields(message):
        if f.number == 1:
            name = text(f)
        elif f.number in (3, 8):
            whole += integers(f)
        elif f.number not in (2, 4, 7, 9, 13, 20):
            raise Damaged(f"{operator or 'an operator'} holds a graph or a tensor of its own")
    if name in GROWING and any(abs(n) > MOST_CELLS for n in whole):
        raise Damaged(f"{name} of {max(map(abs, whole))} cells")


def _tensor(f: Field, graph: OnnxGraph) -> None:
    """A constant that lies in the file and has as many bytes as its shape says."""
    name, shape, kind, raw = "", [], 0, None
    for p in fields(f.span):
        if p.number == 1:
            shape += integers(p)
        elif p.number == 2:
            kind = p.integer
        elif p.number == 8:
            name = text(p)
        elif p.number == 9:
            raw = p.span
        elif p.number in (13, 14) and (p.number == 13 or p.integer):
            raise Damaged(f"the tensor {name} lies in another file")
        elif p.number not in (12, 14):
            raise Damaged(f"the tensor {name} is written in a way that exports are not")
    size = SIZES.get(kind)
    if size is None or len(shape) > MOST_DIMENSIONS or any(not 0 <= n < LARGEST for n in shape):
        raise Damaged(f"the tensor {name} has type {kind} and shape {shape[:MOST_DIMENSIONS]}")
    held = len(raw) if raw is not None else 0
    if math.prod(shape) * size != held:
        raise Damaged(f"the tensor {name} of shape {shape} has {held} bytes")
    if not name or name in graph.tensors:
        raise Damaged(f"two tensors are named {name!r}")
    graph.tensors[name] = f.whole
    if raw is not None and kind in (FLOAT, INT64) and held <= 64:
        graph.numbers[name] = list(struct.unpack(f"<{held // size}{'f' if kind == FLOAT else 'q'}", raw.view))


def _names(graph: OnnxGraph) -> None:
    """Every value is made before it is used, and made once."""
    known = {"", *graph.tensors, *graph.inputs}
    for node in graph.nodes:
        if strange := [n for n in node.inputs if n not in known]:
            raise Damaged(f"{node.operator} reads {strange[0]}, which nothing made before")
        for name in node.outputs:
            if name in known and name:
                raise Damaged(f"{name} is made twice")
            known.add(name)
    if missing := [n for n in graph.outputs if n not in known]:
        raise Damaged(f"nothing makes the output {missing[0]}")


def _growth(graph: OnnxGraph) -> None:
    """Padding and upsampling are constants, and small ones."""
    for node in graph.nodes:
        place = CONFINED.get(node.operator)
        if place is None:
            continue
        if len(node.inputs) > 3 and node.inputs[3] and node.operator == "Resize":
            raise Damaged("Resize takes a size instead of a scale")
        numbers = graph.numbers.get(node.inputs[place]) if len(node.inputs) > place else None
        if numbers is None or any(not abs(n) <= MOST_CELLS for n in numbers):
            raise Damaged(f"{node.operator} by {numbers or 'numbers that are not in the file'}")


def cut(graph: OnnxGraph, start: str, shape: Sequence[int | str], ends: Iterable[str]) -> bytes:
    """The part of the file between a value and others as an ONNX file of its own: `start` is fed (float32 of `shape`),
    `ends` are given. DataError for a value that is not there."""
    wanted, kept = set(ends), []
    made = {name for node in graph.nodes for name in node.outputs} | set(graph.inputs)
    if strange := sorted(({start} | wanted) - made):
        raise DataError(f"The file has no value named {printable(strange[0])}; export the model again.")
    needed = set(wanted) - {start}
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(n for n in node.inputs if n and n != start)
    parts = [bytes(n.whole.view) for n in reversed(kept)]
    parts += [bytes(span.view) for name, span in graph.tensors.items() if name in needed]
    parts += [bytes_field(2, b"fullyconv"), bytes_field(11, _value(start, shape))]
    parts += [bytes_field(12, bytes_field(1, name.encode())) for name in sorted(wanted)]
    if stray := (set(graph.inputs) & needed) - {start}:
        raise DataError(f"{printable(sorted(stray)[0])} is read past {printable(start)}; export the model again.")
    return b"".join([*(bytes(span.view) for span in graph.rest), bytes_field(7, b"".join(parts))])


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    """A ValueInfoProto: float32 of `shape`; names stand for sizes that vary."""
    sizes = (bytes_field(2, n.encode()) if isinstance(n, str) else integer_field(1, n) for n in shape)
    dims = b"".join(bytes_field(1, size) for size in sizes)
    tensor = integer_field(1, FLOAT) + bytes_field(2, dims)
    return bytes_field(1, name.encode()) + bytes_field(2, bytes_field(1, tensor))
