"""An exported file computes what its network does, says so, and does not appear where it does not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fullyconv as fc
from fullyconv.errors import DataError, UnknownName, UsageError

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from fullyconv import exporting  # noqa: E402
from fullyconv.cli import _register, app  # noqa: E402
from fullyconv.exporting import proof as proving  # noqa: E402
from fullyconv.exporting.graph import Graph  # noqa: E402
from fullyconv.exporting.upsampling import UpsamplingReading  # noqa: E402
from fullyconv.runtime.sealing import ABOUT, BLANK, SEAL, sealed  # noqa: E402

SMALL = "fcn16s-squeezenet1_0"


def trained(name: str = SMALL, **how: Any) -> Any:
    """A network whose scores and statistics are drawn, as if it had learned."""
    model = fc.create(name, quiet=True, **how).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.head_parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator) * 0.1)
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(classes=5)


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    fc.export(model, path)
    return path


OUTPUTS = ("labels", "scores", "probabilities", "coarse", "confidence")
QUICK = (("labels", "uint8"), ("probabilities", "float"), ("coarse", "uint8"))


@pytest.mark.parametrize(
    ("output", "taken"),
    [
        pytest.param(output, taken, marks=[] if (output, taken) in QUICK else pytest.mark.slow)
        for output in OUTPUTS
        for taken in ("uint8", "float")
    ],
)
def test_every_output_and_input_proves_itself(model: Any, tmp_path: Path, output: str, taken: str) -> None:
    proof = fc.export(model, tmp_path / "m.onnx", output=output, input=taken)
    assert proof.difference < 1e-5
    assert len(proof.sizes) >= 8
    assert {n for n, _, _ in proof.sizes} == {1, 3}
    assert [1, 1, 1] in proof.sizes
    run = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 53, 3), np.uint8)
    x = image if taken == "uint8" else model.preprocessing(image)
    found = run.run(None, {"image": x})
    with torch.inference_mode():
        x = torch.from_numpy(model.preprocessing(image))
        truth = (model.coarse(x)["semantic"] if output == "coarse" else model(x)["out"]).numpy()
    if output in ("labels", "confidence"):
        assert found[0].dtype == np.uint8
        assert (found[0] == truth.argmax(1)).mean() > 0.999
    else:
        truth = truth if output != "probabilities" else torch.from_numpy(truth).softmax(1).numpy()
        np.testing.assert_allclose(found[0], truth, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("fcn8s-mobilenet_v2", {"heads": {"semantic": 4, "geometric": 3}}),
        ("fcn32s-mobilenet_v2-bands5", {"classes": 3}),
        ("fcn4s-pyramid-mobilenet_v2", {"heads": {"semantic": 4, "geometric": 3}}),
        pytest.param("fcn8s-learned-mobilenet_v2", {"classes": 3}, marks=pytest.mark.slow),
        pytest.param("fcn8s-mobilenet_v3_large", {"classes": 300}, marks=pytest.mark.slow),
        pytest.param("fcn32s-googlenet", {"classes": 3}, marks=pytest.mark.slow),
        pytest.param("fcn16s-mobilenet_v2-rgb-hha", {"classes": 3}, marks=pytest.mark.slow),
    ],
)
def test_kinds_of_networks_prove_themselves(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    model = trained(name, **how)
    proof = fc.export(model, tmp_path / "m.onnx")
    assert proof.difference < 2e-5
    outputs = {o.name for o in onnx.load(tmp_path / "m.onnx").graph.output}
    assert outputs == ({"labels"} if len(model.heads) == 1 else {f"labels_{h}" for h in model.heads})


def test_depth_is_exported_as_float_and_refused_as_bytes(tmp_path: Path) -> None:
    model = trained("fcn32s-mobilenet_v2-rgbd", classes=3)
    with pytest.raises(UsageError, match="--input float"):
        fc.export(model, tmp_path / "m.onnx")
    assert fc.export(model, tmp_path / "m.onnx", input="float").difference < 1e-5


TRUNKS = (
    "fcn8s-vgg16", "fcn32s-alexnet", "fcn32s-googlenet", "fcn8s-alexnet_tv", "fcn8s-googlenet_tv", "fcn8s-resnet18",
    "fcn8s-resnet50", "fcn8s-efficientnet_lite0", "fcn8s-efficientnet_lite4", "fcn8s-mobilenet_v2",
    "fcn8s-mobilenet_v3_large", "fcn16s-squeezenet1_0",
)  # fmt: skip
LARGE = ("fcn8s-atonce-vgg16", "fcn16s-vgg16_bn", "fcn8s-learned-vgg16")  # more of VGG16's 134 M weights


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in TRUNKS),
        *(pytest.param(n, marks=pytest.mark.soak) for n in LARGE),
    ],
)
def test_every_trunk_of_the_table_proves_itself(tmp_path: Path, name: str) -> None:
    assert fc.export(trained(name), tmp_path / "m.onnx").difference < 1e-4


TIMM = (
    "fcn16s-timm:regnety_002", "fcn8s-timm:mobilenetv3_large_100", "fcn8s-timm:resnet18", "fcn8s-pyramid-timm:resnet18",
)  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in TIMM])
def test_timms_networks_prove_themselves_from_one_pixel_on(tmp_path: Path, name: str) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    proof = fc.export(trained(name, classes=3), tmp_path / "m.onnx")
    assert proof.difference < 1e-5
    assert [1, 1, 1] in proof.sizes  # which such a network pads to one whole cell
    assert fc.Predictor(tmp_path / "m.onnx")(np.zeros((5, 40, 3), np.uint8)).shape == (5, 40)


def test_a_layer_of_timms_without_translation_is_named(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    with pytest.raises(UsageError, match=r"LayerNorm2d\) has no translation"):
        fc.export(trained("fcn32s-timm:convnext_atto", classes=3), tmp_path / "m.onnx")


@pytest.mark.parametrize("border", ["fade", "replicate"])
@pytest.mark.parametrize(("stride", "offset"), [(2, 0), (2, 1), (2, 0.5), (8, 4), (8, 31), (32, 19), (4, 1.5), (3, 1)])
def test_the_reading_is_what_ops_reads(border: Any, stride: int, offset: float) -> None:
    from fractions import Fraction

    from fullyconv import ops

    scores = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    height, width = 3 * stride + 1, 2 * stride
    graph = Graph()
    x = graph.input("x", np.float32, ["N", 3, "h", "w"])
    size = graph.whole(height, width)
    reading = UpsamplingReading.of(stride, Fraction(offset), border, [(3, height), (4, width)])
    graph.output(reading.write(graph, x, size), "y", np.float32, ["N", 3, "H", "W"])
    run = ort.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    found = run.run(None, {"x": scores.numpy()})[0]
    truth = ops.upsample(scores, (height, width), stride, offset, border=border, impl="reference")
    np.testing.assert_allclose(found, truth.numpy(), atol=1e-5)


def test_an_offset_that_resize_cannot_read_is_refused() -> None:
    from fractions import Fraction

    with pytest.raises(UsageError, match="cannot be exported"):
        UpsamplingReading.of(8, Fraction(1, 3), "fade", [(3, 20)])


# What was changed after the proof, or goes wrong before it


def changed(file: Path, change: Any, seal: bool = True) -> Path:
    """A copy of the file whose graph and description `change(model, about)` alters; sealed anew, so that only the proof
    can tell."""
    model = onnx.load(file)
    about = json.loads(next(p.value for p in model.metadata_props if p.key == ABOUT))
    change(model, about)
    onnx.helper.set_model_props(model, {ABOUT: json.dumps(about), SEAL: BLANK})
    data = model.SerializeToString(deterministic=True)
    out = file.with_name("changed.onnx")
    out.write_bytes(sealed(data) if seal else data)
    return out


def node(model: Any, kind: str, last: bool = True) -> Any:
    return [n for n in model.graph.node if n.op_type == kind][-1 if last else 0]


def values(model: Any, name: str) -> tuple[Any, Any]:
    found = next(i for i in model.graph.initializer if i.name == name)
    return found, onnx.numpy_helper.to_array(found).copy()


def put(model: Any, name: str, array: Any) -> None:
    found, _ = values(model, name)
    found.CopyFrom(onnx.numpy_helper.from_array(array, name))


def crop(model: Any, about: Any) -> None:
    name = node(model, "Slice").input[1]
    put(model, name, values(model, name)[1] + 1)


def corners(model: Any, about: Any) -> None:
    attribute = next(a for a in node(model, "Resize").attribute if a.name == "coordinate_transformation_mode")
    attribute.s = b"align_corners"


def weight(model: Any, about: Any) -> None:
    name = node(model, "Conv", last=False).input[1]
    array = values(model, name)[1]
    array.reshape(-1).view(np.uint32)[7] ^= 1 << 29  # an exponent's bit
    put(model, name, array)


def bgr(model: Any, about: Any) -> None:
    name = node(model, "Conv", last=False).input[1]
    put(model, name, np.ascontiguousarray(values(model, name)[1][:, ::-1]))


def mean(model: Any, about: Any) -> None:
    name = node(model, "Add", last=False).input[1]
    put(model, name, values(model, name)[1] + np.float32(0.05))


def ties(model: Any, about: Any) -> None:
    """The least instead of the largest score: every score is right, every label wrong."""
    n = node(model, "ArgMax")
    n.op_type = "ArgMin"


@pytest.mark.parametrize("change", [crop, corners, weight, bgr, mean, ties])
def test_what_computes_something_else_is_refused(file: Path, model: Any, change: Any) -> None:
    with pytest.raises(DataError, match=r"not compute|labels otherwise|fails at"):
        exporting.verify_export(changed(file, change), model)


def test_a_wrong_mean_beside_a_float_file_is_refused(model: Any, tmp_path: Path) -> None:
    fc.export(model, tmp_path / "m.onnx", input="float")

    def other(graph: Any, about: Any) -> None:
        about["preprocessing"]["mean"][0] += 0.05

    with pytest.raises(DataError, match="does not compute"):
        exporting.verify_export(changed(tmp_path / "m.onnx", other), model)


def test_the_unchanged_file_proves_itself_again(file: Path, model: Any) -> None:
    assert exporting.verify_export(changed(file, lambda graph, about: None), model).difference < 1e-5


def test_any_flipped_bit_breaks_the_seal_or_the_file(file: Path, model: Any) -> None:
    data = file.read_bytes()
    out = file.with_name("flipped.onnx")
    for at in np.random.default_rng(3).integers(0, len(data), 12):
        flipped = bytearray(data)
        flipped[at] ^= 1
        out.write_bytes(flipped)
        with pytest.raises(DataError):
            exporting.verify_export(out, model)


def test_another_models_file_is_refused(file: Path) -> None:
    other = trained(classes=5)
    with torch.no_grad():
        next(other.head_parameters()).add_(1e-6)
    with pytest.raises(DataError, match="other weights"):
        exporting.verify_export(file, other)


def test_a_foreign_file_is_named_for_what_it_lacks(tmp_path: Path, model: Any, file: Path) -> None:
    foreign = onnx.load(file)
    del foreign.metadata_props[:]
    (tmp_path / "f.onnx").write_bytes(foreign.SerializeToString())
    with pytest.raises(DataError, match="lacks fullyconv and fullyconv_seal"):
        exporting.verify_export(tmp_path / "f.onnx", model)
    (tmp_path / "t.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(DataError, match="no ONNX file"):
        exporting.verify_export(tmp_path / "t.onnx", model)


def test_no_file_appears_without_a_proof(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = proving._eager

    def moved(*arguments: Any) -> Any:
        return {head: s + np.float32(1e-2) * np.abs(s).max() for head, s in honest(*arguments).items()}

    monkeypatch.setattr(proving, "_eager", moved)
    with pytest.raises(DataError, match="does not compute"):
        fc.export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_untrained_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="never trained"):
        fc.export(fc.create(SMALL, 3), tmp_path / "m.onnx")


def test_the_file_says_what_it_is(file: Path, model: Any) -> None:
    props = {p.key: p.value for p in onnx.load(file).metadata_props}
    about = json.loads(props[ABOUT])
    assert about["name"] == SMALL
    assert about["taxonomies"]["semantic"] == model.taxonomies["semantic"].to_json()
    assert about["preprocessing"] == model.preprocessing.to_json()
    assert about["geometry"]["stride"] == model.geometry(1, 1).stride
    assert about["geometry"]["halo"] == model.geometry(1, 1).halo
    assert len(about["proof"]["sizes"]) >= 8
    assert set(about["proof"]["engines"]) == {"onnxruntime", "torch"}
    assert len(about["weights_sha256"]) == 64


def test_given_images_prove_it_too_and_wrong_ones_are_refused(model: Any, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert fc.export(model, tmp_path / "m.onnx", images=[image]).images == "given"
    with pytest.raises(UsageError, match="cannot prove"):
        fc.export(model, tmp_path / "n.onnx", images=[image[..., 0]])


@pytest.mark.slow
def test_the_command_exports_verifies_and_never_replaces_what_is_not_its_own(model: Any, tmp_path: Path) -> None:
    if "export" not in {c.name for c in app.registered_commands}:
        _register()
    model.save_pretrained(tmp_path / "model")
    run = CliRunner()
    file = tmp_path / "out" / "m.onnx"
    for _ in range(2):  # its own file is replaced
        done = run.invoke(app, ["export", str(tmp_path / "model"), "-o", str(file)])
        assert done.exit_code == 0, done.output
        assert str(file) in done.stdout
    done = run.invoke(app, ["export", str(tmp_path / "model"), "--verify", str(file), "--json"])
    assert json.loads(done.stdout.splitlines()[-1])["difference"] < 1e-5
    other = tmp_path / "thesis.txt"
    other.write_text("mine")
    done = run.invoke(app, ["export", str(tmp_path / "model"), "-o", str(other)])
    assert isinstance(done.exception, UsageError)
    assert other.read_text() == "mine"
    assert isinstance(run.invoke(app, ["export", str(tmp_path / "model")]).exception, UsageError)


# OpenVINO


@pytest.fixture(scope="module")
def intermediate(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("openvino") is None:  # importing it would report usage
        pytest.skip("openvino is not installed")
    out = tmp_path_factory.mktemp("openvino") / "m.xml"
    proof = fc.export(model, out, "openvino")
    assert set(proof.engines) == {"openvino", "torch"}
    assert proof.difference < 1e-5
    return out


def test_openvino_proves_its_own_files_and_again(intermediate: Path, model: Any) -> None:
    assert sorted(p.name for p in intermediate.parent.iterdir()) == ["m.bin", "m.xml"]
    assert exporting.verify_export(intermediate, model).difference < 1e-5
    other = trained(classes=5)
    with torch.no_grad():
        next(other.head_parameters()).add_(1e-6)
    with pytest.raises(DataError, match="other weights"):
        exporting.verify_export(intermediate, other)


def test_openvino_files_whose_weights_changed_are_refused(intermediate: Path, model: Any, tmp_path: Path) -> None:
    weights = bytearray(intermediate.with_suffix(".bin").read_bytes())
    np.frombuffer(weights, np.uint32)[1000] ^= 1 << 29  # an exponent's bit
    (tmp_path / "m.xml").write_bytes(intermediate.read_bytes())
    (tmp_path / "m.bin").write_bytes(weights)
    with pytest.raises(DataError, match=r"not compute|labels otherwise"):
        exporting.verify_export(tmp_path / "m.xml", model)
    (tmp_path / "m.xml").write_bytes(b"<net/>")
    with pytest.raises(DataError, match="no OpenVINO file of fullyconv's"):
        exporting.verify_export(tmp_path / "m.xml", model)


@pytest.mark.parametrize("how", [{"file": "m.onnx"}, {"file": "m.xml", "int8": "data"}])
def test_openvino_takes_xml_in_fp32_alone(model: Any, tmp_path: Path, how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"FILE\.xml"):
        fc.export(model, tmp_path / how.pop("file"), "openvino", **how)
    with pytest.raises(UnknownName, match="tflite"):
        fc.export(model, tmp_path / "m.tflite", "tflite")
