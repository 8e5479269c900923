"""Labels that are probably wrong: what is doubted, in which order, and corrections that are copies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fullyconv
from fullyconv.cli import main
from fullyconv.curation.corrections import keep, parse_numbers, write_corrections
from fullyconv.curation.doubted_labels import Doubt, fold_of
from fullyconv.curation.suspects import ClassTable, suspects_in
from fullyconv.data import open_dataset
from fullyconv.errors import DataError, UsageError

H, W = 60, 80
FLAT = np.ones((3, 3))


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and both probabilities: two regions that the network sees otherwise."""
    labels = np.zeros((H, W), np.uint8)
    labels[:, 40:] = 1
    predicted = labels.copy()
    predicted[10:30, 10:30] = 2  # 400 pixels
    predicted[35:55, 50:75] = 2  # 500 pixels
    confidence = np.full((H, W), 0.9, np.float32)
    own = np.where(predicted == labels, confidence, np.float32(0.05))
    return labels, predicted, confidence, own


def test_doubted_regions_come_with_box_classes_area_and_margin() -> None:
    labels, predicted, confidence, own = scene()
    large, small = suspects_in(labels, predicted, confidence, own, np.full(3, 0.5), FLAT, 255)
    assert (large.top, large.left, large.inside.shape) == (35, 50, (20, 25))
    assert (large.labelled, large.predicted, large.area) == (1, 2, 500)
    assert (small.labelled, small.predicted, small.area) == (0, 2, 400)
    assert large.margin == pytest.approx(0.85, abs=1e-3)
    assert large.score > small.score
    rare = FLAT.copy()
    rare[0, 2] = 3  # a confusion that the data hardly have
    assert suspects_in(labels, predicted, confidence, own, np.full(3, 0.5), rare, 255)[0].labelled == 0


def test_what_is_below_its_classs_threshold_ignored_or_a_rim_is_not_doubted() -> None:
    labels, predicted, confidence, own = scene()
    assert not suspects_in(labels, predicted, confidence, own, np.array([0.5, 0.5, 0.95]), FLAT, 255)
    ignored = np.where(predicted == 2, 255, labels).astype(np.uint8)
    assert not suspects_in(ignored, predicted, confidence, own, np.full(3, 0.5), FLAT, 255)
    rim = labels.copy()
    rim[:, 36:40] = 1  # the border lies 4 pixels off
    assert not suspects_in(labels, rim, confidence, own, np.full(3, 0.5), FLAT, 255)


def test_thresholds_and_surprise_are_read_off_whole_numbers_as_they_are_defined() -> None:
    draw = np.random.default_rng(0)
    table = ClassTable(4)
    kept: list[tuple[np.ndarray, ...]] = []
    for _ in range(3):
        labels = draw.integers(0, 3, (20, 30)).astype(np.uint8)  # class 3 has no label
        labels[0] = 255
        predicted, own = draw.integers(0, 4, (20, 30)), draw.uniform(size=(20, 30)).astype(np.float32)
        confidence = draw.uniform(size=(20, 30)).astype(np.float32)
        table.add(labels, predicted, confidence, own, 255)
        kept.append((labels, predicted, confidence, own))
    labels, predicted, confidence, own = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    for k in range(3):
        assert table.thresholds()[k] == pytest.approx(own[labels == k].mean(), abs=2e-3)
        share = (((labels == k) & (predicted == 1) & (confidence >= 0.5)).sum() + 1) / ((labels == k).sum() + 4)
        assert table.surprise()[k, 1] == pytest.approx(-np.log(share))
    assert table.thresholds()[3] == 1
    assert table.own.dtype == table.confident.dtype == np.int64


# ---- folds and corrections -------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Any:
    draw = np.random.default_rng(3)
    for part in ("images", "labels"):
        (tmp_path / "d/train" / part).mkdir(parents=True)
    for i in range(6):
        label = np.zeros((40, 56), np.uint8)
        label[:, 28:] = 1
        image = np.where(label[..., None] == 1, draw.integers(0, 255, (40, 56, 3)), 60).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"d/train/images/{i}.png")
        Image.fromarray(label).save(tmp_path / f"d/train/labels/{i}.png")
    (tmp_path / "d/classes.txt").write_text("flat\nnoisy\n")
    return open_dataset(f"folder:{tmp_path / 'd'}", "train")


def test_a_group_lies_in_one_fold_and_folds_are_evenly_filled(data: Any) -> None:
    assert np.bincount(fold_of(data, 3)).tolist() == [2, 2, 2]
    grouped = replace(data, records=[replace(r, group=g) for r, g in zip(data.records, "aaabbc", strict=True)])
    found = fold_of(grouped, 3)
    assert len(set(found[:3])) == len(set(found[3:5])) == 1
    assert len(set(found)) == 3
    assert np.bincount(fold_of(grouped, 5)).max() == 2  # fewer groups than folds: image by image


def found_in(data: Any) -> list[Doubt]:
    labels, predicted = data[2].labels["semantic"], np.ones((40, 56), np.uint8)
    confidence = np.full((40, 56), 0.9, np.float32)
    own = np.where(labels == 1, confidence, np.float32(0.1))
    return [Doubt(2, s) for s in suspects_in(labels, predicted, confidence, own, np.full(2, 0.5), np.ones((2, 2)), 255)]


def test_accepted_corrections_are_copies_with_their_origin_and_the_data_stay(data: Any, tmp_path: Path) -> None:
    before = {f: f.read_bytes() for f in data.files}
    keep(found_in(data), data, tmp_path / "o", "abc")
    label, about = write_corrections({1}, data, tmp_path / "o")
    assert label.name == "2.png"
    assert (np.asarray(Image.open(label)) == 1).all()
    record = json.loads(about.read_text())
    assert record["model"] == "abc"
    assert [(r["record"], r["labelled"], r["predicted"]) for r in record["accepted"]] == [("2", "flat", "noisy")]
    assert before == {f: f.read_bytes() for f in data.files}
    with pytest.raises(UsageError, match="no finding 2"):
        write_corrections({2}, data, tmp_path / "o")
    next(f for f in data.files if f.match("labels/2.png")).write_bytes(before[data.records[1].labels["semantic"]])
    other = np.zeros((40, 56), np.uint8)
    Image.fromarray(other).save(tmp_path / "d/train/labels/2.png")
    with pytest.raises(DataError, match="have changed since"):
        write_corrections({1}, data, tmp_path / "o")


def test_numbers_of_findings_are_lists_and_ranges() -> None:
    assert parse_numbers("1,4, 7-9") == {1, 4, 7, 8, 9}
    for text in ("", "a", "1;2", "-3", "1-", "9999999"):
        with pytest.raises(UsageError, match="no numbers of findings"):
            parse_numbers(text)


@pytest.mark.slow
def test_the_command_finds_a_planted_error_and_writes_the_page(data: Any, tmp_path: Path, capsys: Any) -> None:
    wrong = np.asarray(Image.open(tmp_path / "d/train/labels/4.png")).copy()
    wrong[:, :28] = 1
    Image.fromarray(wrong).save(tmp_path / "d/train/labels/4.png")
    network = fullyconv.create("fcn16s-squeezenet1_0", taxonomies=data.taxonomies, seed=0)
    for p in network.head_parameters():
        torch.nn.init.normal_(p, std=0.01)
    network.save_pretrained(tmp_path / "m")
    command = ["review", f"{tmp_path}/m", f"folder:{tmp_path}/d", "-o", f"{tmp_path}/o", "--folds", "2", "--quiet"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert not left.value.code, capsys.readouterr().err
    rows = json.loads((tmp_path / "o/suspects.json").read_text())["suspects"]
    assert rows[0]["record"] == "4"
    assert (rows[0]["labelled"], rows[0]["predicted"]) == ("noisy", "flat")
    page = (tmp_path / "o/index.html").read_text()
    assert page.count("data:image/jpeg") == 3 * len(rows)
    assert "each without the images it judges" in page
    with pytest.raises(SystemExit):
        main([*command, "--accept", "1"])
    fixed = np.asarray(Image.open(tmp_path / "o/corrected/4.png"))
    assert (fixed[:, :20] == 0).mean() > 0.7


def test_folds_that_leave_nothing_to_learn_from_are_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["review", "m", "d", "-o", f"{tmp_path}/o", "--folds", "1"])
    assert left.value.code == 2
    assert "2 or more, or 0" in capsys.readouterr().err
