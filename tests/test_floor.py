"""A network that learned nothing is not praised: its figures stand beside those of always answering one class."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare import result
from training_tools import fit, images, small

from fullyconv import metrics
from fullyconv.cli.evaluate import table
from fullyconv.data import Dataset
from fullyconv.errors import DataError
from fullyconv.evaluation.result import ImageTables, Result, floor_of
from fullyconv.evaluation.statistics import Interval
from fullyconv.report.records import Analysis
from fullyconv.report.sentences import summary
from fullyconv.taxonomy import Taxonomy
from fullyconv.train import advice

QUARTZ = Taxonomy(("Quartz", "Mica", "Feldspar"))
ABOUT = {
    "data": {"kind": "folder", "name": "thin", "split": "val", "fingerprint": "f", "inputs": ["rgb"], "of": 1},
    "protocol": "native", "average": "present", "tta": [], "tiling": {"tile": None}, "precision": "fp32",
    "images_per_second": 1.0,
}  # fmt: skip


def counted(rows: list[list[int]]) -> Result:
    cells = np.asarray(rows, np.int64)
    image = ImageTables.of(0, "a", (10, 100), {"semantic": cells})
    return Result({"semantic": QUARTZ}, {"semantic": cells}, [image], ABOUT)


CONSTANT = counted([[900, 0, 0], [60, 0, 0], [40, 0, 0]])
GOOD = counted([[890, 5, 5], [6, 52, 2], [4, 2, 34]])
BARELY = counted([[895, 5, 0], [45, 15, 0], [38, 2, 0]])


@pytest.mark.parametrize("seed", range(10))
def test_the_floor_is_what_a_constant_answer_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, 500, p=[0.1, 0.2, 0.6, 0.1])
    counts = metrics.confusion(labels, rng.integers(0, 4, 500), 4)
    constant = metrics.confusion(labels, np.full(500, np.bincount(labels).argmax()), 4)
    np.testing.assert_array_equal(metrics.constant_answer(counts), constant)
    floor = floor_of(counts, Taxonomy.numbered(4))
    assert floor.name == "class 2"
    assert floor.mean_iu == metrics.mean_iu(constant)
    assert floor.pixel_accuracy == metrics.pixel_accuracy(constant)


def test_figures_near_the_floor_are_told_from_those_above_it() -> None:
    assert CONSTANT.floor().near(CONSTANT.pixel_accuracy, CONSTANT.mean_iu)
    for better in (GOOD, BARELY):
        assert not better.floor().near(better.pixel_accuracy, better.mean_iu)
    assert CONSTANT.floor().near(0.2, 0.1)  # worse than constant is nothing learned either
    assert not CONSTANT.floor().near(0.2, 0.6)  # weighted classes cost accuracy and win mean IU


def test_the_result_and_its_text_hold_the_floor() -> None:
    value = json.loads(json.dumps(CONSTANT.to_json()))
    assert value["floor"] == {"class": "Quartz", "pixel_accuracy": 0.9, "mean_iu": pytest.approx(0.3)}
    assert value["heads"]["semantic"]["floor"] == value["floor"]
    assert "floor" not in Result.from_json(value).about
    assert "always Quartz           30.00 mean IU, 90.00 pixel accuracy" in table(CONSTANT)
    assert "No better than answering Quartz everywhere" in table(CONSTANT)
    assert "always Quartz           30.00" in table(GOOD)
    assert "No better" not in table(GOOD)


def test_the_reports_sentences_follow_from_the_distance_to_the_floor() -> None:
    nothing, barely, good = (" ".join(summary(r, Analysis(), Interval(None, None))) for r in (CONSTANT, BARELY, GOOD))
    assert "no better than always answering Quartz" in nothing
    assert "solved" not in nothing
    assert "Quartz is solved" not in barely  # an IU of 91 % where calling everything so gives 90 %
    assert "Quartz is solved" in good
    assert "Always answering Quartz would give 30.0" in good
    assert "solved" in " ".join(summary(result(0.97), Analysis(), Interval(None, None)))


def test_a_run_at_the_floor_says_so_and_what_to_try(tmp_path: Path, capsys: Any) -> None:
    black = np.zeros((16, 20, 3), np.uint8)
    train, val = (replace(d, read_input=lambda _record, _modality: black) for d in (images(), images(3)))
    out = fit(small(epochs=1), tmp_path / "run", train=train, val=val, quiet=False)
    output = capsys.readouterr().err
    assert "(best, no better than the floor), pixel accuracy" in output
    assert "; floor (always a) 0." in output
    assert "This run has learned nothing yet" in output
    for remedy in ("--set steps=2000", "--init-from RUN", "--set lr=", "class_weights=median-frequency", "check"):
        assert remedy in output
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    floors = [r["floor"] for r in rows if r["kind"] == "measurement"]
    assert floors
    assert all(f["class"] == "a" and 0 < f["mean_iu"] < f["pixel_accuracy"] < 1 for f in floors)


def test_a_run_above_the_floor_is_not_told_to_try_anything(tmp_path: Path, capsys: Any) -> None:
    fit(small(epochs=25, lr=0.03), tmp_path / "run", train=images(8), quiet=False)
    output = capsys.readouterr().err
    assert "; floor (always a) 0." in output
    assert "learned nothing" not in output


def _ignored(dataset: Dataset) -> Dataset:
    """The data set with every label ignored."""
    return replace(dataset, read_labels=lambda record, head: np.full_like(dataset.read_labels(record, head), 255))


def test_labels_that_are_all_ignored_are_named_as_the_cause(tmp_path) -> None:
    with pytest.raises(DataError, match=r"Nothing was learned in 2 steps: every pixel .* holds 255, the ignored value"):
        fit(small(steps=2), tmp_path / "run", train=_ignored(images()))


def test_images_without_data_where_they_are_labelled_are_named_as_the_cause(tmp_path) -> None:
    nothing = replace(images(), read_input=lambda record, name: np.full((40, 40, 3), np.nan, np.float32))
    nothing = replace(nothing, read_labels=lambda record, head: np.ones((40, 40), np.uint8))
    with pytest.raises(DataError, match=r"looked at \(\d+\) lies where its image holds no data"):
        fit(small(steps=2), tmp_path / "run", train=nothing)


def test_a_clip_that_leaves_nothing_is_named_as_the_cause(tmp_path) -> None:
    with pytest.raises(DataError, match=r"clip = 1e-300 leaves nothing of a gradient"):
        fit(small(steps=2, clip=1e-300), tmp_path / "run", train=images())


def test_class_weights_that_are_0_for_all_that_occurs_are_named_as_the_cause(tmp_path) -> None:
    recipe = small(steps=2, class_weights=(0.0, 0.0, 0.0, 1.0))
    four = Taxonomy(("a", "b", "c", "d"))
    train, val = (replace(images(3, s), taxonomies={"semantic": four}) for s in ("train", "val"))
    with pytest.raises(DataError, match=r"class_weights are 0 for every class that occurs \(a, b, c\)"):
        fit(recipe, tmp_path / "run", train=train, val=val)


def test_the_curves_of_a_run_show_the_floor_beside_what_was_measured() -> None:
    from fullyconv.report.collect import Run
    from fullyconv.report.records import MeasurementRecord
    from fullyconv.report.training import training

    rows = [{"step": s, "mean_iu": 0.1 * s, "floor": {"class": "Quartz", "mean_iu": 0.3}} for s in (1, 2)]
    shown = training(Run("run", measurements=[MeasurementRecord.of(row) for row in rows]))
    assert shown.measured_names[-1] == ("floor: mean IU of one class everywhere", "s6 dashed")
    assert str(shown.measured).count('class="curve') == 2
    without = training(Run("run", measurements=[MeasurementRecord.of({"step": 1, "mean_iu": 0.1})]))
    assert len(without.measured_names) == 1


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.40, 0.45], "still rising when the run ended (40.0 %, then 45.0 %"),
        ([0.60, 0.52], "is that of step 5 (60.0 %)"),
        ([0.600, 0.605], ""),
        ([0.60, 0.58], ""),
        ([0.40], ""),
    ],
)
def test_a_run_that_was_too_short_or_went_past_its_best_says_so(scores: list[float], words: str) -> None:
    from types import SimpleNamespace

    state = SimpleNamespace(best=max(scores), best_step=5, step=9, worse=int(scores[-1] < max(scores)))
    advised = advice.how_it_ended(SimpleNamespace(scores=scores, state=state))  # type: ignore[arg-type]
    assert words in advised
    assert bool(advised) == bool(words)
