"""`fullyconv evaluate` and `fullyconv predict` from the command line, on a small network and drawn images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_predict_tiles import trained

import fullyconv
from fullyconv.cli import main
from fullyconv.images import encode_png, read_label, write_label
from fullyconv.predict import Predictor

SIZES = [(40, 56), (33, 47), (40, 56)]


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "best"
    trained("fcn8s-mobilenet_v2", 3).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i, size in enumerate(SIZES):
            rng = np.random.default_rng(i)
            (root / split / "images" / f"p{i}.png").write_bytes(encode_png(rng.integers(0, 256, (*size, 3), np.uint8)))
            write_label(root / split / "labels" / f"p{i}.png", rng.integers(0, 3, size, np.uint8))
    return root


def test_evaluate_prints_the_contracts_keys_and_nothing_else_on_stdout(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "evaluate", model, f"folder:{data}", "--json")
    value = json.loads(out)
    assert code == 0
    assert {
        "pixel_accuracy",
        "mean_accuracy",
        "mean_iu",
        "frequency_weighted_iu",
        "per_class",
        "images",
        "protocol",
    } <= set(value)
    assert value["images"] == 3
    assert "evaluating 3/3" in err
    opened = fullyconv.open_dataset(f"folder:{data}", split="val")
    assert value["mean_iu"] == fullyconv.evaluate(Predictor(fullyconv.load(model)), opened).mean_iu


def test_evaluate_prints_a_table_and_a_run_directory_means_its_best_model(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(
        capsys, "evaluate", model.parent, data, "--quiet", "--keep", tmp_path / "kept", "-o", tmp_path / "r" / "a.json"
    )
    assert code == 0
    assert "mean IU" in out
    assert "split val; protocol native" in out
    kept, alone = (json.loads(p.read_text()) for p in (tmp_path / "kept/result.json", tmp_path / "r/a.json"))
    assert kept == alone
    assert (tmp_path / "kept/predictions/p1.png").is_file()


def test_the_table_says_what_was_not_done_plainly(model: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "evaluate", model, data, "--quiet", "--tta", "flip", "--tile", "32")
    assert code == 0
    assert "protocol native, averaged over flip, tiles of 32x32, means over" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--split", "test"], 2, "test"),
        (["--protocol", "x"], 2, "protocol"),
        (["--tile", "8", "--max-memory", "2GiB"], 2, "not both"),
        (["--max-memory", "much"], 2, "amount of memory"),
        (["--max-memory", "1MiB"], 2, "at least"),
        (["--tta", "spin"], 2, "spin"),
        (["--device", "tpu"], 2, "'tpu' is not a known device"),
        (["--device", "cpu:1"], 2, "'cpu:1' is not a known device"),
        (["--device", "cuda:99"], 2, "no 'cuda:99'"),
        (["--tile", "-8"], 2, "no negative tile"),
    ],
)
def test_evaluate_refuses_in_one_sentence(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    found, out, err = run(capsys, "evaluate", model, data, *arguments)
    assert found == code, err
    assert out == ""
    assert words in err.splitlines()[-1]


def test_a_missing_model_is_an_input_that_is_missing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "evaluate", "no-such-model", data)[0] == 66


def test_predict_writes_label_maps_of_the_images_names_and_sizes(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(
        capsys, "predict", model, data / "val/images", "-o", tmp_path, "--confidence", "--probabilities", "--quiet"
    )
    assert code == 0
    predictor = Predictor(fullyconv.load(model))
    for i, size in enumerate(SIZES):
        labels = read_label(tmp_path / f"p{i}.png")
        image = np.asarray(Image.open(data / "val/images" / f"p{i}.png"))
        np.testing.assert_array_equal(labels, predictor(image))
        assert Image.open(tmp_path / f"p{i}.png").mode == "P"
        assert Image.open(tmp_path / "overlay" / f"p{i}.jpg").size == size[::-1]
        probabilities = np.load(tmp_path / "probabilities" / f"p{i}.npy")
        assert probabilities.shape == (3, *size)
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
        confidence = np.asarray(Image.open(tmp_path / "confidence" / f"p{i}.png"))
        np.testing.assert_allclose(confidence / 255, probabilities.max(0), atol=0.005)
    assert f"{tmp_path}/p0.png" in out.splitlines()


def test_predict_keeps_the_tree_of_a_folder_and_goes_on_after_a_damaged_image(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    (source / "a.png").write_bytes(b"not an image")
    (source / "sub" / "b.png").write_bytes((data / "val/images/p0.png").read_bytes())
    code, out, err = run(
        capsys, "predict", model, source, "-o", tmp_path / "out", "--json", "--no-overlay", "--tile", "64"
    )
    assert code == 65
    assert json.loads(out) == {"files": [str(tmp_path / "out/sub/b.png")], "failed": [str(source / "a.png")]}
    assert "1 of 2 images" in err


def test_predict_refuses_to_overwrite_its_input_or_to_mix_names(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = data / "val/images/p0.png"
    assert "overwritten" in run(capsys, "predict", model, image, "-o", image.parent)[2]
    assert "share a label map" in run(capsys, "predict", model, image, data / "train/images/p0.png", "-o", tmp_path)[2]
    assert run(capsys, "predict", model, tmp_path / "none.png", "-o", tmp_path)[0] == 66
    assert run(capsys, "predict", model, tmp_path, "-o", tmp_path / "x")[0] == 66
    assert "--input" in run(capsys, "predict", model, image, "-o", tmp_path, "--input", "depth=x")[2]


def test_a_set_without_splits_is_measured_whole_and_that_is_said_unless_a_split_was_named(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "evaluate", model, f"folder:{data / 'train'}", "--json")
    assert (code, json.loads(out)["images"]) == (0, 3)
    assert "has no val split with labels: all 3 images of" in err
    code, _, err = run(capsys, "evaluate", model, f"folder:{data / 'train'}", "--split", "val")
    assert code == 2
    assert "has no splits, so no 'val'" in err
