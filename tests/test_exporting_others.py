"""What other programs read of an exported file: QGIS' Deepness, Triton; and what OpenVINO is not asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import fullyconv as fc
from fullyconv.errors import DataError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from test_exporting import node, trained  # noqa: E402

from fullyconv import exporting  # noqa: E402
from fullyconv.cli import _register, app  # noqa: E402
from fullyconv.exporting.deepness import deepness  # noqa: E402
from fullyconv.runtime.sealing import ABOUT, BLANK, SEAL, sealed  # noqa: E402
from fullyconv.runtime.triton_config import BATCH, triton_config  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(classes=5)


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("others") / "model.onnx"
    fc.export(model, path, output="probabilities", input="float")
    return path


def by_deepness(file: Path, tile: Any) -> Any:
    """Labels of a square uint8 tile H W C as the plugin makes them."""
    run = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    printed = {k: json.loads(v) for k, v in run.get_modelmeta().custom_metadata_map.items() if k not in (ABOUT, SEAL)}
    assert printed["model_type"] == "Segmentor"
    size = run.get_inputs()[0].shape[-1]
    assert (tile.shape[0], tile.shape[1]) == (size, size), "the plugin's tile size is the file's last side, a number"
    mean, std = (np.float32(printed[f"standardization_{k}"]) for k in ("mean", "std"))
    x = (np.float32(tile[None] / 255.0) - mean) / std
    (found,) = run.run(None, {run.get_inputs()[0].name: x.transpose(0, 3, 1, 2)})
    found[found < printed["seg_thresh"]] = 0
    return found.argmax(1)[0]


def test_a_file_of_a_fixed_size_labels_in_deepness_as_the_network_does(file: Path, model: Any, tmp_path: Path) -> None:
    from onnxruntime.tools.onnx_model_utils import make_dim_param_fixed  # what the tool that docs/export.md names calls

    graph, fixed = onnx.load(file), tmp_path / "fixed.onnx"
    for side in ("H", "W"):
        make_dim_param_fixed(graph.graph, side, 64)
    onnx.save(graph, fixed)
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (by_deepness(fixed, tile) == fc.Predictor(model)(tile)).mean() > 0.999
    shape = ort.InferenceSession(fixed, providers=["CPUExecutionProvider"]).get_outputs()[0].shape
    assert shape[1:] == [5, 64, 64]


def test_class_names_are_numbered_from_0_as_the_plugin_wants_them(file: Path, model: Any) -> None:
    props = {p.key: p.value for p in onnx.load(file).metadata_props}
    names = json.loads(props["class_names"])
    assert [names[str(k)] for k in range(5)] == list(model.taxonomies["semantic"].names)
    assert fc.Predictor(file)(np.zeros((9, 9, 3), np.uint8)).shape == (9, 9)  # and the file is still ours


def about(**change: Any) -> dict[str, Any]:
    named = {"names": ["a", "b"]}
    return {
        "output": "probabilities",
        "input": {"kind": "float", "channels": 3, "name": "image"},
        "heads": {"semantic": 2},
        "names": {"semantic": ["probabilities"]},
        "taxonomies": {"semantic": named, "other": named},
        "preprocessing": {"order": [0, 1, 2], "scale": 1.0, "mean": [51, 102, 0], "std": [1, 255, 1], "log": []},
    } | change


@pytest.mark.parametrize(
    "change",
    [
        {"output": "scores"},
        {"input": {"kind": "uint8"}},
        {"preprocessing": about()["preprocessing"] | {"order": [2, 1, 0]}},
        {"preprocessing": about()["preprocessing"] | {"log": [0]}},
    ],
)
def test_deepness_is_told_nothing_where_it_would_compute_something_else(change: dict[str, Any]) -> None:
    assert deepness(about(**change)) == {}


def test_means_and_spreads_are_told_on_the_plugins_scale() -> None:
    printed = deepness(about())
    np.testing.assert_allclose(json.loads(printed["standardization_mean"]), [0.2, 0.4, 0])
    np.testing.assert_allclose(json.loads(printed["standardization_std"]), [1 / 255, 1, 1 / 255])
    two = deepness(about(heads={"semantic": 2, "other": 2}))
    assert json.loads(two["class_names"]) == [{"0": "a", "1": "b"}] * 2


def test_probabilities_over_a_wrong_axis_are_refused(file: Path, model: Any) -> None:
    graph = onnx.load(file)
    node(graph, "Softmax").attribute[0].i = 2
    {p.key: p for p in graph.metadata_props}[SEAL].value = BLANK
    out = file.with_name("wrong.onnx")
    out.write_bytes(sealed(graph.SerializeToString(deterministic=True)))
    with pytest.raises(DataError, match=r"labels otherwise|probability differs"):
        exporting.verify_export(out, model)


# Triton


def parsed(text: str) -> Any:
    """A config.pbtxt by the fields of Triton's model_config.proto that it uses."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

    schema = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    kinds = schema.enum_type.add(name="DataType")
    for number, name in enumerate(("INVALID", "BOOL", "UINT8", "UINT16")):
        kinds.value.add(name=f"TYPE_{name}", number=number)
    kinds.value.add(name="TYPE_FP32", number=11)
    field = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> None:
        made = schema.message_type.add(name=name)
        for key, number, kind, many, of in fields:
            label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
            made.field.add(name=key, number=number, type=kind, label=label, type_name=of or None)  # type: ignore[arg-type]

    name, dims = ("name", 1, field.TYPE_STRING, False, ""), ("dims", 3, field.TYPE_INT64, True, "")
    kind = ("data_type", 2, field.TYPE_ENUM, False, ".inference.DataType")
    message("ModelInput", name, kind, ("dims", 4, field.TYPE_INT64, True, ""))
    message("ModelOutput", name, kind, dims)
    message("ModelDynamicBatching")
    message(
        "ModelConfig", name, ("max_batch_size", 4, field.TYPE_INT32, False, ""),
        ("input", 5, field.TYPE_MESSAGE, True, ".inference.ModelInput"),
        ("output", 6, field.TYPE_MESSAGE, True, ".inference.ModelOutput"),
        ("default_model_filename", 8, field.TYPE_STRING, False, ""),
        ("dynamic_batching", 11, field.TYPE_MESSAGE, False, ".inference.ModelDynamicBatching"),
        ("backend", 17, field.TYPE_STRING, False, ""),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(schema)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(text, made())


TYPES = {2: "tensor(uint8)", 3: "tensor(uint16)", 11: "tensor(float)"}


def test_the_triton_config_names_what_onnxruntime_finds_in_the_file(file: Path) -> None:
    if "export" not in {c.name for c in app.registered_commands}:
        _register()
    printed = CliRunner().invoke(app, ["export", "--triton", str(file)])
    assert printed.exit_code == 0, printed.output
    config, run = parsed(printed.stdout), ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert (config.backend, config.max_batch_size) == ("onnxruntime", BATCH)
    for printed, there in ((config.input, run.get_inputs()), (config.output, run.get_outputs())):
        assert [(v.name, TYPES[v.data_type]) for v in printed] == [(v.name, v.type) for v in there]
        sides = [[-1 if isinstance(n, str) else n for n in v.shape[1:]] for v in there]
        assert [list(v.dims) for v in printed] == sides


def test_triton_is_told_every_output_of_every_head_and_its_type() -> None:
    heads, image = {"a": 300, 'b"\\': 5}, {"kind": "uint8", "channels": 4, "name": "image"}
    names = {h: [f"labels_{h}", f"confidence_{h}"] for h in heads}
    config = parsed(triton_config(about(output="confidence", input=image, heads=heads, names=names)))
    assert [(v.name, v.data_type) for v in config.output] == [
        ("labels_a", 3), ("confidence_a", 11), ('labels_b"\\', 2), ('confidence_b"\\', 11)
    ]  # fmt: skip
    assert (config.input[0].data_type, list(config.input[0].dims)) == (2, [-1, -1, 4])


# OpenVINO


STAND_IN = """
import sys
class Telemetry:
    def __init__(self, *a, **k): print("telemetry begins")
    def send_event(self, *a, **k): print("telemetry sends", *a)
class backend: backend_ga4 = None
sys.modules[__name__ + ".backend"] = backend
"""


@pytest.mark.slow
def test_usage_is_never_reported_through_openvinos_telemetry(model: Any, tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    (tmp_path / "openvino_telemetry.py").write_text(STAND_IN)  # stands before the real one, so nothing is sent
    model.save_pretrained(tmp_path / "model")
    ours = "import fullyconv as fc; fc.export('model', 'm.xml', 'openvino')"
    again = "from fullyconv.exporting import verify_export; verify_export('m.xml', 'model')"

    def printed(code: str) -> str:
        path = os.pathsep.join([str(tmp_path), str(Path(fc.__file__).parents[1]), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
            text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout

    assert "telemetry" not in printed(f"{ours}; {again}")
    assert "telemetry sends" in printed("import openvino")  # which is what is not done
