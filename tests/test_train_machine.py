"""What a run owes to its machine is settled once, said, kept, and set again when it goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import after_step, call, die, fit, outcome, small

from fullyconv import processor
from fullyconv.errors import UsageError
from fullyconv.train import machine


def kept(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "last" / "state.json").read_text())["state"]["machine"])


def recipe_of(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / "recipe.toml").read_text())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_numbers_that_the_processor_has_not_are_refused_before_anything_is_written(
    precision: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(processor, "has_native", lambda name: name == "fp32")
    with pytest.raises(UsageError, match='use precision = "auto" or "fp32"'):
        fit(small(precision=precision), tmp_path / "run")
    staged = small(precision=precision, model="fcn8s-vgg16").replace(stages=("fcn32s-vgg16-pascal",))
    with pytest.raises(UsageError, match='use precision = "auto" or "fp32"'):
        fit(staged, tmp_path / "staged")
    assert list(tmp_path.iterdir()) == []


def test_auto_is_float32_without_bfloat16_and_says_so(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(processor, "has_native", lambda name: name == "fp32")
    fit(small(precision="auto", steps=1), tmp_path / "run")
    assert "precision fp32: this processor" in capsys.readouterr().err
    assert recipe_of(tmp_path / "run")["precision"] == "fp32"
    assert kept(tmp_path / "run")["precision"] == "fp32"
    assert "no bfloat16" in kept(tmp_path / "run")["why"]


@pytest.mark.parametrize(("quicker", "chosen"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_auto_takes_what_a_step_is_quicker_in_and_the_run_keeps_it(
    quicker: str, chosen: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(processor, "has_native", lambda _: True)  # a network so small is imitated in no time
    monkeypatch.setattr(machine, "_seconds", lambda name, *_: 1.0 if name == quicker else 2.0)
    fit(small(precision="auto", steps=1), tmp_path / "run")
    assert f"precision {chosen}: " in capsys.readouterr().err
    assert (recipe_of(tmp_path / "run")["precision"], kept(tmp_path / "run")["precision"]) == (chosen, chosen)
    monkeypatch.setattr(machine, "_seconds", lambda *_: pytest.fail("a run that goes on measures nothing"))
    fit(small(precision="auto", steps=2), tmp_path / "run", resume=True)
    assert kept(tmp_path / "run")["precision"] == chosen


def test_choosing_leaves_the_network_and_the_random_numbers_as_they_were(tmp_path: Path, monkeypatch: Any) -> None:
    fit(small(precision="fp32", steps=2), tmp_path / "given")
    monkeypatch.setattr(processor, "has_native", lambda _: True)
    real = machine._seconds  # float32 whatever is measured
    monkeypatch.setattr(machine, "_seconds", lambda name, *rest: real(name, *rest) * (1e-9 if name == "fp32" else 1))
    fit(small(precision="auto", steps=2), tmp_path / "chosen")
    assert outcome(tmp_path / "given") == outcome(tmp_path / "chosen")


def test_a_run_in_bfloat16_does_not_go_on_where_there_is_none(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(processor, "has_native", lambda _: True)
    fit(small(precision="bf16", steps=1), tmp_path / "run")
    monkeypatch.setattr(processor, "has_native", lambda name: name == "fp32")
    with pytest.raises(UsageError, match="--set precision=fp32"):
        fit(small(precision="auto", steps=2), tmp_path / "run", resume=True)
    fit(small(precision="fp32", steps=2), tmp_path / "run", resume=True)
    assert "begun in bf16; in fp32 it goes on, but not equal to the bit" in capsys.readouterr().err


def _train(out: str, stop: int, resume: bool, threads: int, allow: tuple[str, ...] = ()) -> None:
    processor.cores_granted = lambda: 4.0  # type: ignore[assignment]
    torch.set_num_threads(threads)
    if stop:
        after_step(stop, die("SIGTERM"))
    keys = {"steps": 3, "model": "fcn32s-mobilenet_v2", "crop": (64, 64), "scale": (3.0, 4.0), "lr": 0.05}
    with open(f"{out}.said", "a") as log, contextlib.redirect_stderr(log):
        fit(small(**keys), Path(out), resume, allow=allow)
    assert torch.get_num_threads() == threads  # the caller's own stays


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_number_of_threads_to_the_bit(tmp_path: Path) -> None:
    """With another number sums are made in another order; that is seen here, so the test can fail."""
    assert call(_train, str(tmp_path / "whole"), 0, False, 1) == 0
    assert call(_train, str(tmp_path / "cut"), 1, False, 1) == 143
    shutil.copytree(tmp_path / "cut", tmp_path / "free", symlinks=True)
    assert call(_train, str(tmp_path / "cut"), 0, True, 3) == 0
    assert "Going on with 1 thread as the run was begun, not 3" in (tmp_path / "cut.said").read_text()
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert kept(tmp_path / "cut")["threads"] == 1
    assert call(_train, str(tmp_path / "free"), 0, True, 3, ("threads",)) == 0
    assert kept(tmp_path / "free")["threads"] == 3
    assert outcome(tmp_path / "free") != outcome(tmp_path / "whole")


def _settled(threads: int, granted: float, monkeypatch: Any) -> list[str]:
    monkeypatch.setattr(processor, "cores_granted", lambda: granted)
    return machine._threads(threads, False)


def test_fewer_cores_than_the_run_had_threads_and_more_threads_than_cores_are_said(monkeypatch: Any) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert _settled(0, 2.0, monkeypatch) == []
        assert "was begun with 3 threads but only 2 cores" in _settled(3, 2.0, monkeypatch)[0]
        assert torch.get_num_threads() == 2
        assert "2 threads were asked for" in _settled(0, 0.5, monkeypatch)[0]
        assert torch.get_num_threads() == 1
        assert _settled(0, 1.5, monkeypatch) == []
    finally:
        torch.set_num_threads(before)


def test_another_processor_or_torch_is_said(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    fit(small(steps=1), tmp_path / "run")
    monkeypatch.setattr(processor, "width", lambda: "vectors of 4096 bits")
    fit(small(steps=2), tmp_path / "run", resume=True)
    assert "(now vectors of 4096 bits): it goes on, but not equal to the bit" in capsys.readouterr().err


def test_numba_missing_is_said(monkeypatch: Any) -> None:
    monkeypatch.setattr(processor.importlib.util, "find_spec", lambda _: None)
    assert "pip install numba" in processor.numba_note()
