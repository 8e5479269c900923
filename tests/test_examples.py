"""The examples run as they stand, on what they draw themselves."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import caffe_writer
import deploy_graphs
import numpy as np
import pytest
from PIL import Image
from test_parity import thinned
from typer.main import get_command

from fullyconv import cli
from fullyconv.models import released

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.slow
def test_a_loop_of_ones_own_learns() -> None:
    losses = load("own_loop").main(12)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_a_trunk_of_timm_gives_scores_of_the_images_size() -> None:
    pytest.importorskip("timm")
    assert load("timm_trunk").main("resnet10t").shape == (1, 5, 70, 93)


@pytest.mark.slow
def test_a_folder_is_checked_trained_measured_and_labelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 < load("own_folder").main(None, 4) < 1
    assert "labels (96, 128) uint8" in capsys.readouterr().out


@pytest.mark.slow
def test_colour_and_depth_are_learned_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert math.isfinite(load("rgbd").main(3))
    assert "HHA (96, 128, 3) uint8" in capsys.readouterr().out


@pytest.mark.slow
def test_settings_are_searched_and_the_search_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    search = load("optuna_search").main
    search(None, 1, 2, tmp_path / "search")
    assert set(search(None, 1, 2, tmp_path / "search")) == {"lr", "head_lr", "weight_decay", "loss"}
    assert (tmp_path / "search" / "trial-1" / "best" / "model.safetensors").is_file()
    assert "of 2: mean IU" in capsys.readouterr().out


def test_caffe_weights_become_a_model_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(released, "create", lambda name, classes=None, **more: thinned(name, 64, classes, **more))
    file = caffe_writer.write(tmp_path / "net.caffemodel", deploy_graphs.draw("voc-fcn8s", 32, 32, 64)[1])
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.png")
    directory = load("caffe_weights").main(file, "voc-fcn8s", tmp_path / "photo.png")
    assert (directory / "model.safetensors").is_file()
    assert "in the photo: " in capsys.readouterr().out


UNIT = EXAMPLES / "serve" / "fullyconv.service"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_shut_in(tmp_path: Path) -> None:
    def analyzed(text: str, *how: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "a.service").write_text(text.replace("/opt/fullyconv/bin/fullyconv", "/bin/true"))
        return subprocess.run(["systemd-analyze", *how, str(tmp_path / "a.service")], capture_output=True, text=True)

    unit = UNIT.read_text()
    verified = analyzed(unit, "verify", "--man=no")
    assert (verified.returncode, verified.stderr) == (0, "")
    strict = ("security", "--offline=true", "--threshold=20")  # 2.0 of 10 points of exposure
    assert analyzed(unit, *strict).returncode == 0
    assert analyzed(unit.partition("DynamicUser")[0], *strict).returncode != 0, "without its walls it is not"


def test_the_unit_and_the_container_start_a_command_that_there_is() -> None:
    container = (EXAMPLES / "serve" / "Containerfile").read_text()
    start, more = (json.loads(re.search(f"^{word} (.*)$", container, re.M)[1]) for word in ("ENTRYPOINT", "CMD"))  # type: ignore[index]
    unit = re.search("^ExecStart=(.*)$", UNIT.read_text(), re.M)
    assert unit
    if not cli.app.registered_commands:
        cli._register()
    options = {o for p in get_command(cli.app).commands["serve"].params for o in p.opts}  # type: ignore[attr-defined]
    for line in ([*start, *more], unit[1].split()):
        assert line[:3] == ["/opt/fullyconv/bin/fullyconv", "serve", "/srv/model.onnx"]
        assert {word for word in line if word.startswith("--")} <= options
    assert "USER 65532:65532" in container


def test_every_example_is_run_here_and_says_how_to_start_it() -> None:
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'load("{path.stem}")' in text
        assert f"python examples/{path.name}" in path.read_text()
