"""Foreign weights become a model directory that is the authors' network, or one error and no directory."""

from __future__ import annotations

import json
from pathlib import Path

import caffe_writer
import deploy_graphs
import numpy as np
import pytest
import torch
from test_parity import thinned

import fullyconv as fc
from fullyconv import models
from fullyconv.errors import DataError, FullyconvError, UsageError
from fullyconv.models import released
from fullyconv.models.released import bilinear, convert, load_layers, released_preprocessing

DIVIDE = 64


@pytest.fixture
def thin_networks(monkeypatch) -> None:
    """`create` builds networks with 1/64 of the channels, so that whole conversions take no memory."""
    monkeypatch.setattr(released, "create", lambda name, classes=None, **more: thinned(name, DIVIDE, classes, **more))


def drawn(name: str) -> deploy_graphs.Blobs:
    return deploy_graphs.draw(name, 32, 32, DIVIDE)[1]


def run(*arguments: object) -> int:
    from fullyconv import cli

    with pytest.raises(SystemExit) as done:
        cli.main([str(a) for a in arguments])
    return int(done.value.code or 0)


@pytest.mark.parametrize(
    "name", ["voc-fcn8s", *(pytest.param(n, marks=pytest.mark.slow) for n in ("voc-fcn8s-atonce", "siftflow-fcn16s"))]
)
def test_convert_writes_a_directory_that_loads_as_the_same_function(thin_networks, tmp_path, capsys, name) -> None:
    blobs = drawn(name)
    file = caffe_writer.write(tmp_path / "net.caffemodel", blobs)
    assert run("convert", file, "--model", name, "-o", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["initial"] == report["dropped"] == []
    assert not report["untrained"]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["taxonomies"]["semantic"]["names"][:2] == (
        ["background", "aeroplane"] if name.startswith("voc") else config["taxonomies"]["semantic"]["names"][:2]
    )
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["order"] == [2, 1, 0]
    model = convert(file, name)
    weight = model.get_parameter("streams.rgb.trunk.features.0.weight").detach().numpy()
    np.testing.assert_array_equal(weight, blobs["conv1_1"][0])


def test_the_authors_preprocessing_by_network() -> None:
    def of(name: str, heads: dict[str, int]) -> fc.Preprocessing:
        return released_preprocessing(models.parse(name), name, heads)[0]

    voc = of("fcn8s-vgg16", {"semantic": 21})
    pixel = np.array([[[122.67891434, 116.66876762, 104.00698793]]], np.float32)  # R G B
    assert np.abs(voc(pixel)).max() < 1e-4
    assert voc(pixel + np.array([1, 2, 3]))[:, 0, 0].round(3).tolist() == [3, 2, 1]
    assert of("siftflow-fcn8s", {"semantic": 33, "geometric": 3}).mean == (114.578, 115.294, 108.353)
    assert of("fcn32s-vgg16", {"semantic": 60}).mean == (104.007, 116.669, 122.679)
    both = of("nyud-fcn32s-color-hha", {"semantic": 40})
    assert both.order == (2, 1, 0, 3, 4, 5)
    assert both.mean == (116.190, 97.203, 92.318, 132.431, 94.076, 118.477)
    depth = of("nyud-fcn32s-color-d", {"semantic": 40})
    image = np.zeros((1, 1, 4), np.float32)
    image[..., 3] = 2550
    assert abs(float(depth(image)[3, 0, 0]) - (np.log(2550) - 7.844)) < 1e-4


def grouped(weight: np.ndarray) -> np.ndarray:
    return weight[range(len(weight)), range(len(weight))][:, None]


def test_a_grouped_deconvolution_is_as_good_as_a_dense_one(tmp_path) -> None:
    blobs = drawn("voc-fcn16s")
    for layer in ("upscore2", "upscore16"):
        blobs[layer] = [grouped(blobs[layer][0])]
    load_layers(thinned("voc-fcn16s", DIVIDE), blobs, "net")


def test_fully_connected_blobs_are_coerced_and_a_classifier_leaves_the_scores_at_zero() -> None:
    blobs = {n: b for n, b in drawn("voc-fcn32s").items() if not n.startswith(("score", "upscore"))}
    for layer in ("fc6", "fc7"):
        weight, bias = blobs[layer]
        blobs[layer] = [weight.reshape(1, 1, len(weight), -1), bias.reshape(1, 1, 1, -1)]
    blobs["fc8"] = [np.zeros((10, 64), np.float32)]
    model = thinned("voc-fcn32s", DIVIDE)
    report = load_layers(model, blobs, "net")
    assert report.dropped == ["fc8"]
    assert {n.split(".")[-2] for n in report.coerced} == {"0", "3"}
    assert len(report.initial) == 2
    assert model.untrained
    fc6 = model.get_parameter("streams.rgb.trunk.classifier.0.weight").detach().numpy()
    np.testing.assert_array_equal(fc6.reshape(fc6.shape[0], -1), blobs["fc6"][0].reshape(fc6.shape[0], -1))


def changed(blobs: deploy_graphs.Blobs, layer: str, blob: int, value: object) -> None:
    found = blobs[layer][blob].copy()
    found.ravel()[-1] = value
    blobs[layer][blob] = found


def wider(blobs: deploy_graphs.Blobs, layer: str) -> None:
    blobs[layer][0] = np.zeros((60, *blobs[layer][0].shape[1:]), np.float32)


WRONG = {
    "missing layer": ("voc-fcn16s", lambda b: b.pop("conv3_2"), "no layer conv3_2"),
    "renamed layer": ("voc-fcn16s", lambda b: b.update(score_fr2=b.pop("score_fr")), "score_fr; it has score_fr2"),
    "other classes": ("voc-fcn16s", lambda b: wider(b, "score_fr"), "--classes"),
    "missing bias": ("voc-fcn16s", lambda b: b["fc6"].pop(), "1 blobs where 2"),
    "not a number": ("voc-fcn16s", lambda b: changed(b, "conv1_1", 0, np.nan), "NaN"),
    "learned upsampling": ("voc-fcn16s", lambda b: changed(b, "upscore2", 0, 0.5), "learned"),
    "off-diagonal upsampling": ("voc-fcn16s", lambda b: b["upscore2"][0].__setitem__((0, 1), 0.1), "not bilinear"),
    "other kernel": ("voc-fcn16s", lambda b: b.update(upscore16=b["upscore2"]), "upscore16"),
    "at-once file, staged network": ("voc-fcn8s", lambda b: b.update(drawn("voc-fcn8s-atonce")), "at-once"),
    "staged file, at-once network": ("voc-fcn8s-atonce", lambda b: b.pop("scale_pool4"), "no scale_pool4"),
    "other scale": ("voc-fcn8s-atonce", lambda b: changed(b, "scale_pool3", 0, 0.5), "scale_pool3"),
    "32s file, 16s network": ("voc-fcn16s", lambda b: b.pop("score_pool4"), "no layer score_pool4"),
}  # fmt: skip


QUICK = ("missing layer", "not a number", "at-once file, staged network")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in WRONG])
def test_a_file_of_another_network_is_refused_and_leaves_no_directory(thin_networks, tmp_path, capsys, case) -> None:
    name, damage, fact = WRONG[case]
    blobs = drawn(name)
    damage(blobs)
    file = caffe_writer.write(tmp_path / "net.caffemodel", blobs)
    assert run("convert", file, "--model", name, "-o", tmp_path / "out") == 65
    error = capsys.readouterr().err
    assert fact in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["net.caffemodel"]


def test_a_learned_upsampling_loads_into_the_learned_network() -> None:
    blobs = drawn("voc-fcn8s")
    changed(blobs, "upscore2", 0, 0.5)
    model = thinned("fcn8s-learned-vgg16", DIVIDE)
    for k in ("16", "8"):
        model.get_submodule(f"learned.semantic.{k}").weight = torch.nn.Parameter(torch.zeros(21, 21, 4, 4))
    load_layers(model, blobs, "net")
    np.testing.assert_array_equal(model.get_parameter("learned.semantic.16.weight").detach(), blobs["upscore2"][0])


def pytorch_fcn(path: Path, blobs: deploy_graphs.Blobs, wrap: bool) -> Path:
    state = {}
    for layer, arrays in blobs.items():
        for kind, array in zip(("weight", "bias"), arrays, strict=False):
            state[f"{layer}.{kind}"] = torch.from_numpy(array)
    torch.save({"epoch": 3, "arch": "FCN16s", "model_state_dict": state} if wrap else state, path)
    return path


@pytest.mark.parametrize("wrap", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_pytorch_fcn_checkpoint_is_the_same_network(thin_networks, tmp_path, wrap) -> None:
    blobs = drawn("voc-fcn16s")
    caffe = convert(caffe_writer.write(tmp_path / "net.caffemodel", blobs), "voc-fcn16s")
    twin = convert(pytorch_fcn(tmp_path / "net.pth", blobs, wrap), "voc-fcn16s")
    assert twin.preprocessing == caffe.preprocessing
    assert all(torch.equal(p, caffe.get_parameter(n)) for n, p in twin.named_parameters())


def test_a_pickle_that_would_run_code_is_refused(thin_networks, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1_1.weight": Bomb()}, tmp_path / "net.pth")
    with pytest.raises(FullyconvError):
        convert(tmp_path / "net.pth", "voc-fcn16s")
    assert not (tmp_path / "ran").exists()


def test_the_command_line_of_convert_is_checked(tmp_path, capsys) -> None:
    file = caffe_writer.write(tmp_path / "net.caffemodel", {"conv1_1": [np.ones(1, np.float32)]})
    for arguments, code in (
        (("--model", "fcn8s-vgg17"), 2),
        (("--model", "fcn8s-vgg16", "--heads", "semantic"), 2),
        (("--model", "fcn8s-vgg16", "--heads", "a=3", "--classes", "3"), 2),
    ):
        assert run("convert", file, *arguments, "-o", tmp_path / "out") == code
    assert run("convert", tmp_path / "none.caffemodel", "--model", "fcn8s-vgg16", "-o", tmp_path / "out") == 66
    assert not (tmp_path / "out").exists()


def test_a_trunk_without_a_caffe_twin_says_so() -> None:
    with pytest.raises(UsageError, match="vgg16"):
        released.layer_names(models.create("fcn16s-squeezenet1_0"))


@pytest.mark.parametrize("width", [4, 16, 32, 63, 64])
def test_bilinear_kernels_keep_constants(width: int) -> None:
    factor = (width + 1) // 2
    padded = np.zeros((2 * factor, 2 * factor))
    padded[:width, :width] = bilinear(width)
    phases = padded.reshape(2, factor, 2, factor).sum((0, 2))
    np.testing.assert_allclose(phases, 1)
    np.testing.assert_allclose(bilinear(width), deploy_graphs.bilinear_kernel(width), atol=1e-6)


@pytest.mark.slow
def test_a_torchvision_vgg16_state_dict_fills_the_trunk(tmp_path) -> None:
    torchvision = pytest.importorskip("torchvision")
    vgg = torchvision.models.vgg16(weights=None)
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    model = convert(tmp_path / "vgg16.pth", "fcn32s-vgg16", 5)
    assert model.untrained
    assert sorted(model.report.dropped) == ["classifier.6.bias", "classifier.6.weight"]
    ours = model.get_parameter("streams.rgb.trunk.classifier.0.weight")
    assert torch.equal(ours.flatten(1), vgg.classifier[0].weight)
    assert model.preprocessing == fc.Preprocessing()


def test_a_damaged_caffemodel_never_becomes_a_directory(thin_networks, tmp_path) -> None:
    whole = caffe_writer.write(tmp_path / "net.caffemodel", drawn("voc-fcn32s")).read_bytes()
    for cut in (1, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.caffemodel").write_bytes(whole[:cut])
        with pytest.raises(DataError):
            convert(tmp_path / "cut.caffemodel", "voc-fcn32s")
