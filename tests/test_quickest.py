"""The quicker engine is measured once, remembered, said, and gives the same labels."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fullyconv as fc
from fullyconv.errors import DataError, MissingExtra, UnknownName, UsageError
from fullyconv.images import encode_png

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from fullyconv.cli import _register, app
from fullyconv.exporting import quickest
from fullyconv.exporting.quickest import EngineChoice, choose_engine
from fullyconv.runtime.exported import ExportedNetwork

SMALL = (48, 64)


@pytest.fixture(scope="module")
def model() -> Any:
    network = fc.create("fcn16s-squeezenet1_0", 5, quiet=True).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.head_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    return network


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fullyconv" / "engines"


@pytest.fixture
def image() -> Any:
    return np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)


def slower(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    """A clock that goes on a second at each look, and by ten more while `engine` computes (nothing: neither)."""
    now = [0.0]

    def labels(self: fc.Predictor, image: Any, real: Any = fc.Predictor.labels) -> Any:
        runtime = isinstance(self.model, ExportedNetwork)
        now[0] += 10 if engine == ("onnxruntime" if runtime else "torch") else 0
        return real(self, image)

    def clock() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(fc.Predictor, "labels", labels)
    monkeypatch.setattr(quickest.time, "perf_counter", clock)


def test_onnxruntime_by_name_gives_torchs_labels_without_measuring(model: Any, image: Any, cache: Path) -> None:
    network, choice = choose_engine(model, "onnxruntime")
    assert isinstance(network, ExportedNetwork)
    assert choice == EngineChoice("onnxruntime", "asked for")
    assert np.array_equal(fc.Predictor(network)(image), fc.Predictor(model)(image))
    assert [p.suffix for p in cache.iterdir()] == [".onnx"]


def test_torch_by_name_is_the_network_itself(model: Any, cache: Path) -> None:
    assert choose_engine(model, "torch")[0] is model
    assert not cache.exists()


@pytest.mark.parametrize("slow", ["torch", "onnxruntime"])
def test_the_quicker_engine_is_taken_and_remembered(
    model: Any, slow: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, slow)
    network, choice = choose_engine(model, size=SMALL)
    quick = "onnxruntime" if slow == "torch" else "torch"
    assert choice.engine == quick
    assert isinstance(network, ExportedNetwork) == (quick == "onnxruntime")
    assert f"{choice.onnxruntime_ms:.0f} ms against {choice.torch_ms:.0f} by torch" in choice.reason
    assert sorted(p.suffix for p in cache.iterdir()) == [".json", ".onnx"][: 1 + (quick == "onnxruntime")]

    monkeypatch.setattr(quickest, "exported_bytes", None)  # nothing is made or measured again
    monkeypatch.setattr(quickest, "_measured", None)
    again, told = choose_engine(model, size=SMALL)
    assert told == choice
    assert type(again) is type(network)


def test_engines_as_quick_as_each_other_leave_the_network_as_it_is(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slower(monkeypatch, "")
    network, choice = choose_engine(model, size=SMALL)
    assert network is model
    assert "not quicker" in choice.reason


def test_another_networks_choice_is_its_own(model: Any, cache: Path) -> None:
    choose_engine(model, "onnxruntime")
    other = fc.create("fcn16s-squeezenet1_0", 5, quiet=True).eval()
    with torch.no_grad():
        for p in other.head_parameters():
            p.fill_(0.01)
    choose_engine(other, "onnxruntime")
    assert len(list(cache.glob("*.onnx"))) == 2


@pytest.mark.parametrize(
    "damage",
    ["flip", *(pytest.param(d, marks=pytest.mark.slow) for d in ("cut", "other", "json"))],
)
def test_a_damaged_cache_is_said_and_made_again(
    model: Any, image: Any, damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, "torch")
    choose_engine(model, size=SMALL)
    file, choice = next(cache.glob("*.onnx")), next(cache.glob("*.json"))
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[:-9])
    elif damage == "json":
        choice.write_text("{")
    else:  # a sound file of other weights under this one's name
        file.unlink()
        other = fc.create("fcn16s-squeezenet1_0", 5, quiet=True).eval()
        with torch.no_grad():
            for p in other.head_parameters():
                p.fill_(0.01)
        fc.export(other, file)
    messages: list[str] = []
    network, found = choose_engine(model, size=SMALL, say=messages.append)
    assert found.engine == "onnxruntime"
    assert isinstance(network, ExportedNetwork)
    assert network.about["weights_sha256"] == ExportedNetwork(next(cache.glob("*.onnx"))).about["weights_sha256"]
    assert bool(messages) == (damage != "other")
    monkeypatch.undo()
    assert np.array_equal(fc.Predictor(network)(image), fc.Predictor(model)(image))


def test_without_a_place_to_remember_it_still_works(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    messages: list[str] = []
    assert choose_engine(model, "onnxruntime", say=messages.append)[1].engine == "onnxruntime"
    assert any("not remembered" in s for s in messages)


def test_the_oldest_kept_files_give_way(model: Any, cache: Path) -> None:
    cache.mkdir(parents=True)
    for age, (name, size) in enumerate({"new.onnx": 100, "old.onnx": (1 << 30) - 100, "other.txt": 1 << 30}.items()):
        (cache / name).touch()
        os.truncate(cache / name, size)  # a GiB that takes no room
        os.utime(cache / name, (1e9 - age, 1e9 - age))
    choose_engine(model, "onnxruntime")
    (kept,) = (p.name for p in cache.iterdir() if p.name not in ("new.onnx", "old.onnx", "other.txt"))
    assert sorted(p.name for p in cache.iterdir()) == sorted([kept, "new.onnx", "other.txt"])


def test_what_cannot_be_done_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownName, match="onnxruntim"):
        choose_engine(model, "onnxruntim")
    with pytest.raises(UsageError, match="bf16"):
        choose_engine(model, "onnxruntime", "bf16")
    assert choose_engine(model, "auto", "bf16")[0] is model
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"fullyconv\[export\]"):
        choose_engine(model, "onnxruntime")
    network, choice = choose_engine(model, size=SMALL)
    assert network is model
    assert "not tried" in choice.reason


def test_a_network_that_cannot_be_written_stays_with_torch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> Any:
        raise UsageError("This layer cannot be translated; leave it.")

    monkeypatch.setattr(quickest, "exported_bytes", refuse)
    network, choice = choose_engine(model, size=SMALL)
    assert network is model
    assert "cannot be translated" in choice.reason
    with pytest.raises(UsageError, match="cannot be translated"):
        choose_engine(model, "onnxruntime")


def test_an_engine_that_labels_otherwise_is_not_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ExportedNetwork.coarse

    def moved(self: ExportedNetwork, x: Any) -> Any:
        return {h: np.ascontiguousarray(np.roll(s, 1, 3)) for h, s in real(self, x).items()}

    monkeypatch.setattr(ExportedNetwork, "coarse", moved)
    with pytest.raises(DataError, match="no tie"):
        choose_engine(model, "onnxruntime")
    assert choose_engine(model, size=SMALL)[0] is model


def test_predict_by_either_engine_writes_the_same_label_maps(model: Any, image: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode_png(np.roll(image, 7 * i, 1)))
    _register()
    written = {}
    for engine in ("torch", "onnxruntime"):
        out = tmp_path / engine
        done = CliRunner().invoke(
            app, ["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "-o", str(out), "--engine", engine]
        )
        assert done.exit_code == 0, done.output
        assert ("engine onnxruntime: asked for" in done.output) == (engine == "onnxruntime")
        written[engine] = [(out / f"{i}.png").read_bytes() for i in range(3)]
    assert written["torch"] == written["onnxruntime"]
    done = CliRunner().invoke(
        app, ["predict", str(tmp_path / "model"), str(tmp_path / "photos"), "-o", str(tmp_path / "x"), "--engine", "x"]
    )
    assert done.exit_code != 0
    assert not (tmp_path / "x").exists()


def test_few_photos_are_not_worth_a_measurement_and_many_are(
    model: Any, image: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower(monkeypatch, "torch")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for i in range(16):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode_png(image))
    _register()
    given = ["predict", str(tmp_path / "model"), str(tmp_path / "photos")]
    many = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "many"), "--no-overlay"])
    assert many.exit_code == 0, many.output
    assert "engine onnxruntime: quicker for this network here" in many.output
    assert json.loads(next(cache.glob("*.json")).read_text())["engine"] == "onnxruntime"
    shutil.rmtree(cache)
    (tmp_path / "photos" / "0.png").unlink()
    few = CliRunner().invoke(app, [*given, "-o", str(tmp_path / "few"), "--no-overlay"])
    assert few.exit_code == 0, few.output
    assert "engine" not in few.output
    assert not cache.exists()
