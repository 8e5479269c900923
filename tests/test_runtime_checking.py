"""Files that nobody vouches for: what no export of ours holds is refused by name, and before an engine sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fullyconv as fc
from fullyconv.errors import DataError
from fullyconv.runtime.checking import checked_graph, cut
from fullyconv.runtime.onnx_session import OnnxSession
from fullyconv.runtime.protobuf import ByteSpan, Damaged, bytes_field, fields, integer_field, integers

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def small(*more: Any, tensors: tuple[Any, ...] = ()) -> Any:
    """image N 3 H W -> Conv -> Pad -> labels: as small as an export can be."""
    weights = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node("Pad", ["c", "pads"], ["p"], mode="edge"),
        helper.make_node("ArgMax", ["p"], ["labels"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        [*nodes, *more],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("labels", TensorProto.INT64, None)],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(pads, "pads"), *tensors],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="fullyconv")


def bytes_of(model: Any) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def tensor(name: str, shape: list[int], kind: int = TensorProto.FLOAT, **fields: Any) -> Any:
    return TensorProto(name=name, dims=shape, data_type=kind, **fields)


def test_a_plain_graph_passes_and_is_read_whole() -> None:
    graph = checked_graph(bytes_of(small()), "a.onnx")
    assert [n.operator for n in graph.nodes] == ["Conv", "Pad", "ArgMax"]
    assert list(graph.inputs) == ["image"]
    assert graph.outputs == ["labels"]
    assert graph.numbers["pads"] == [0, 0, 1, 1, 0, 0, 1, 1]


def test_a_part_of_a_graph_is_a_file_of_its_own() -> None:
    graph = checked_graph(bytes_of(small()), "a.onnx")
    data = cut(graph, "image", ("N", 3, "H", "W"), ["p"])
    part = onnx.load_model_from_string(data)
    x = np.ones((1, 3, 2, 2), np.float32)
    np.testing.assert_array_equal(OnnxSession(data, "a.onnx")({"image": x})[0][0, :, 0, 0], [3, 12])
    assert [n.op_type for n in part.graph.node] == ["Conv", "Pad"]
    assert [o.name for o in part.graph.output] == ["p"]
    with pytest.raises(DataError, match="no value named nothing"):
        cut(graph, "image", ("N", 3, "H", "W"), ["nothing"])


def elsewhere() -> Any:
    t = tensor("far", [4], data_location=TensorProto.EXTERNAL)
    t.external_data.add(key="location", value="../../etc/passwd")
    return small(tensors=(t,))


def control() -> Any:
    empty = helper.make_graph([], "e", [], [])
    return small(helper.make_node("If", ["labels"], ["x"], then_branch=empty, else_branch=empty))


def resized(number: float) -> Any:
    scales = numpy_helper.from_array(np.array([1, 1, number, 8], np.float32), "s")
    return small(helper.make_node("Resize", ["p", "", "s"], ["r"], mode="linear"), tensors=(scales,))


def with_function() -> Any:
    model = small()
    model.functions.append(helper.make_function("d", "f", ["x"], ["y"], [], [helper.make_opsetid("", 17)]))
    return model


def of_domain() -> Any:
    model = small()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def wide_pads() -> Any:
    model = small()
    model.graph.initializer[1].CopyFrom(
        numpy_helper.from_array(np.array([0, 0, 1 << 30, 0, 0, 0, 0, 0], np.int64), "pads")
    )
    return model


def later() -> Any:
    model = small()
    model.opset_import[0].version = 99
    return model


def nowhere() -> Any:
    model = small()
    model.graph.output.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [1]))
    return model


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "data in another file": (elsewhere, "far lies in another file"),
    "control flow": (control, "If"),
    "an operator that runs others' code": (
        lambda: small(helper.make_node("PyOp", ["p"], ["x"], domain="ai.onnx.contrib")),
        "PyOp of ai.onnx.contrib",
    ),
    "an operator that no export has": (lambda: small(helper.make_node("Loop", ["p"], ["x"])), "Loop"),
    "operators of another domain": (of_domain, "operators of com.microsoft"),
    "functions": (with_function, "functions"),
    "operators of a later version": (later, "version 99 of ONNX's operators"),
    "a tensor that claims to be huge": (lambda: small(tensors=(tensor("h", [1 << 30, 1 << 30]),)), "0 bytes"),
    "a tensor of less than nothing": (lambda: small(tensors=(tensor("h", [-4]),)), r"shape \[-4\]"),
    "a tensor of texts": (lambda: small(tensors=(tensor("h", [1], TensorProto.STRING),)), "type 8"),
    "a tensor shorter than its shape": (lambda: small(tensors=(tensor("h", [4], raw_data=b"1234"),)), "has 4 bytes"),
    "one name twice": (lambda: small(tensors=(tensor("w", [0], raw_data=b""),)), "two tensors"),
    "a value that nobody made": (lambda: small(helper.make_node("Relu", ["ghost"], ["x"])), "reads ghost"),
    "a value made twice": (lambda: small(helper.make_node("Relu", ["p"], ["c"])), "made twice"),
    "upsampling without end": (lambda: resized(1e9), "Resize by"),
    "upsampling by no number": (lambda: resized(float("nan")), "Resize by"),
    "padding without end": (wide_pads, "Pad by"),
    "a stride without end": (
        lambda: small(helper.make_node("Conv", ["p", "w"], ["x"], strides=[1 << 40, 1])),
        "strides of",
    ),
    "upsampling to a size": (
        lambda: small(helper.make_node("Resize", ["p", "", "", "labels"], ["x"], mode="linear")),
        "takes a size instead of a scale",
    ),
    "an answer that nobody makes": (nowhere, "nothing makes the output ghost"),
    "padding that is computed": (lambda: small(helper.make_node("Pad", ["p", "labels"], ["x"])), "not in the file"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_export_holds_is_refused_by_name(what: str) -> None:
    make, words = HOSTILE[what]
    with pytest.raises(DataError, match=words):
        checked_graph(bytes_of(make()), "a.onnx")


def test_two_graphs_in_one_file_are_refused() -> None:
    data = bytes_of(small())
    with pytest.raises(DataError, match="two graphs"):
        checked_graph(data + data, "a.onnx")


def test_bytes_cut_or_changed_anywhere_are_refused_or_read_in_bounds() -> None:
    data = bytes_of(small())
    for end in range(len(data)):
        with pytest.raises(DataError, match=r"a\.onnx is no ONNX file"):
            checked_graph(data[:end], "a.onnx")
    random, passed = np.random.default_rng(5), 0
    for _ in range(3000):
        changed = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            changed[at] = random.integers(0, 256)
        try:
            checked_graph(bytes(changed), "a.onnx")
            passed += 1
        except DataError:
            pass
    assert 0 < passed < 3000  # names and weights may change; the seal tells that


def test_noise_is_refused() -> None:
    random = np.random.default_rng(6)
    for size in (0, 1, 2, 40, 4000):
        with pytest.raises(DataError):
            checked_graph(random.bytes(size), "a.onnx")


def test_protobuf_reads_what_it_writes_and_no_further() -> None:
    data = integer_field(3, 1 << 40) + bytes_field(200, b"abc") + integer_field(1, 0)
    found = list(fields(ByteSpan(memoryview(data), 0, len(data))))
    assert [f.number for f in found] == [3, 200, 1]
    assert found[0].integer == 1 << 40
    assert bytes(found[1].span.view) == b"abc"
    assert integers(found[2]) == [0]
    for bad in (b"\x0a\x05abc", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b", b"\x00\x00", b"\x0d\x00"):
        with pytest.raises(Damaged):
            list(fields(ByteSpan(memoryview(bad), 0, len(bad))))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({}, "lacks fullyconv and fullyconv_seal"), ({"fullyconv": "{}"}, "lacks fullyconv_seal"),
     ({"fullyconv": "{", "fullyconv_seal": "0" * 64}, "export the model again"),
     ({"fullyconv": json.dumps({"format": 2}), "fullyconv_seal": "0" * 64}, "lacks name, inputs")],
)  # fmt: skip
def test_somebody_elses_file_is_named_for_what_it_lacks(
    metadata: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fullyconv.runtime.onnx_session.OnnxSession.__init__", lambda *a: pytest.fail("the engine saw it")
    )
    model = small()
    helper.set_model_props(model, metadata)
    (tmp_path / "theirs.onnx").write_bytes(bytes_of(model))
    with pytest.raises(DataError, match=words):
        fc.Predictor(tmp_path / "theirs.onnx")
