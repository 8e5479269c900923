"""`fullyconv train` as a user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_tools import after_step, call

from fullyconv.cli import main
from fullyconv.images import MAX_PIXELS, pixel_cap
from fullyconv.recipes import Recipe

TINY = ["--set", "model=fcn2s-tiny", "--set", "epochs=1", "--set", "batch_size=2", "--set", "crop=[16,16]"]


def folder(root: Path, count: int = 5, split: bool = True) -> Path:
    """Images with squares, as images/ and labels/."""
    rng = np.random.default_rng(0)
    for name in ("train", "val") if split else ("",):
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True)
        for i in range(count):
            label = np.zeros((18, 20), np.uint8)
            label[i : i + 7, 3:12] = 1
            image = (label[..., None] * 120 + rng.integers(0, 90, (18, 20, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / name / "images" / f"{name}{i}.png")
            Image.fromarray(label).save(root / name / "labels" / f"{name}{i}.png")
    return root


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as e:
        main(["train", *arguments])
    return int(e.value.code or 0)


def test_a_folder_becomes_a_run_whose_place_is_the_only_result(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    data = folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run(str(data), *TINY) == 0
    output = capsys.readouterr()
    assert output.out == "runs/data\n"
    assert "mean IU" in output.err
    assert run(str(data), *TINY, "--no-report") == 0
    assert capsys.readouterr().out == "runs/data-2\n"
    assert run(str(data), *TINY, "--out", "runs/data") == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "message"), [("0", "runs/x\n"), ("1", "")])
def test_under_torchrun_the_first_process_speaks_for_all(
    rank: str, message: str, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("fullyconv.train.fit", lambda *_, **__: Path("runs/x"))
    with pytest.raises(SystemExit):
        main(["train", "data", "--out", "runs/x", "--no-report"])
    assert capsys.readouterr().out == message


def test_images_are_held_out_where_there_is_no_val_split(tmp_path: Path, capsys: Any) -> None:
    assert (
        run(str(folder(tmp_path / "data", 10, split=False)), *TINY, "--no-report", "--out", str(tmp_path / "run")) == 0
    )
    assert "There is no val split: 2 of 10 images are held out" in capsys.readouterr().err


@pytest.mark.slow
def test_images_are_held_out_where_the_val_split_comes_without_labels(tmp_path: Path, capsys: Any) -> None:
    data = folder(tmp_path / "data")
    for file in (data / "val" / "labels").iterdir():
        file.unlink()
    (data / "val" / "labels").rmdir()
    assert run(str(data), *TINY, "--no-report", "--out", str(tmp_path / "run")) == 0
    assert "The split 'val' has no labels: 1 of 5 images are held out" in capsys.readouterr().err
    assert run(str(data), *TINY, "--set", "val_split=validation", "--out", str(tmp_path / "asked")) == 65
    assert "has no labels; give it label maps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_without_validation_ends_well_and_its_report_says_that_nothing_was_measured(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    assert run(str(data), *TINY, "--set", "val_split=", "--out", str(tmp_path / "run")) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "Nothing is measured in this run: its recipe names no validation split." in page
    assert ">Loss<" in page
    assert not (tmp_path / "run/evaluation").exists()


def test_the_resolved_recipe_can_be_seen_without_training(capsys: Any) -> None:
    assert run("--print-config", "--recipe", "voc-fcn16s", "--set", "lr=2e-12") == 0
    recipe = Recipe(**tomllib.loads(capsys.readouterr().out))
    assert (recipe.model, recipe.lr, recipe.momentum) == ("voc-fcn16s", 2e-12, 0.99)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "batchsize=3"], 2, "'batch_size'"),
        (["--set", "model=fcn8s-vgg61"], 2, "vgg16"),
        (["--recipe", "nowhere.toml"], 66, "nowhere.toml"),
        (["--resume", "--out", "nothing-here"], 2, "no run to go on with"),
    ],
)
def test_what_cannot_be_meant_ends_with_one_sentence(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Any
) -> None:
    assert run(str(folder(tmp_path / "data", 2)), *arguments) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_everything_wrong_with_the_data_is_said_at_once_and_nothing_is_written(tmp_path: Path, capsys: Any) -> None:
    data = folder(tmp_path / "data")
    (data / "train" / "labels" / "train0.png").unlink()
    (data / "train" / "images" / "train1.png").write_bytes(b"not an image")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(data / "val" / "labels" / "val2.png")
    assert run(str(data), *TINY, "--out", str(tmp_path / "run")) == 65
    error = capsys.readouterr().err
    assert all(name in error for name in ("train0", "train1", "val2"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_pixel_cap_is_a_flag_of_every_command_that_reads_images(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("FULLYCONV_MAX_PIXELS", raising=False)
    data, out = folder(tmp_path / "data"), str(tmp_path / "run")
    (data / "classes.txt").write_text("ground\nsquare\n")
    assert run(str(data), *TINY, "--out", out, "--max-pixels", "100") == 65
    assert "has 360 pixels, more than the 100 that are read" in capsys.readouterr().err
    assert run(str(data), *TINY, "--out", out, "--max-pixels", "360", "--no-report") == 0
    image, to = str(data / "val" / "images" / "val0.png"), str(tmp_path / "to")
    for command in (["check", str(data)], ["predict", out, image, "-o", to], ["evaluate", out, str(data)]):
        with pytest.raises(SystemExit) as e:
            main([*command, "--max-pixels", "100"])
        assert e.value.code == 65, command
        assert "--max-pixels" in "".join(capsys.readouterr()), command
    assert "FULLYCONV_MAX_PIXELS" not in os.environ
    assert pixel_cap() == MAX_PIXELS


def test_no_images_at_all_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert run(str(tmp_path), *TINY, "--out", str(tmp_path / "run")) == 65
    assert not (tmp_path / "run").exists()


def _terminated(data: str, out: str, number: int) -> None:
    after_step(2, lambda: os.kill(os.getpid(), number))
    main(["train", data, *TINY, "--out", out, "--quiet"])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_step_and_resume_takes_the_runs_own_recipe(number: int, code: int, tmp_path: Path) -> None:
    data, out = str(folder(tmp_path / "data")), tmp_path / "run"
    assert call(_terminated, data, str(out), int(number)) == code
    assert (out / "last").resolve().name == "step-2"
    assert run(data, "--out", str(out), "--resume", "--quiet") == 0
    assert (out / "last").resolve().name == "step-3"


def test_init_from_is_the_recipes_key(capsys: Any) -> None:
    assert run("--print-config", "--init-from", "runs/fcn32s") == 0
    assert Recipe(**tomllib.loads(capsys.readouterr().out)).init_from == "runs/fcn32s"
