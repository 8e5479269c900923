"""A folder of runs is one table, best first, which says what may be compared and what could not be read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import about

from fullyconv.errors import MissingInput
from fullyconv.evaluation.result import ImageTables, Result
from fullyconv.report import render
from fullyconv.report.leaderboard import leaderboard, runs_below
from fullyconv.taxonomy import Taxonomy


def evaluated(place: Path, share: float, split: str = "val", name: str = "fcn8s-tiny") -> Result:
    place.mkdir(parents=True)
    each = np.clip(share + np.random.default_rng(0).normal(0, 0.1, 12), 0, 1)
    tables = [np.array([[100, 0], [round(100 * (1 - s)), round(100 * s)]]) for s in each]
    images = [ImageTables.of(i, f"i{i}", (10, 20), {"semantic": t}) for i, t in enumerate(tables)]
    known = {
        "data": {"kind": "folder", "name": "mine", "split": split, "fingerprint": "abcdef123", "of": 12},
        **about(), "model": {"name": name, "sha256": "0"}, "protocol": "native", "average": "present",
    }  # fmt: skip
    result = Result({"semantic": Taxonomy(("a", "b"))}, {"semantic": np.sum(tables, 0)}, images, known)
    (place / "result.json").write_text(json.dumps(result.to_json()))
    return result


def test_the_best_comes_first_with_its_interval(tmp_path: Path) -> None:
    low, high = evaluated(tmp_path / "a", 0.4), evaluated(tmp_path / "deep" / "b", 0.8)
    found = leaderboard(tmp_path)
    assert found is not None
    assert [r.name for r in found.rows] == ["deep/b", "a"]
    for row, result in zip(found.rows, (high, low), strict=True):
        cells = [text for text, _ in row.cells]
        assert cells[3] == f"{100 * result.mean_iu:.1f}"
        ends = [float(v) for v in cells[4].split(" to ")]
        assert ends[0] < 100 * result.mean_iu < ends[1]
    page = render(tmp_path)
    assert page.index("deep/b") < page.index(">a<")
    assert "different ways" not in page
    assert not re.search(r"(src|href)=\"https?:", page)


def test_a_cross_validation_shows_the_interval_that_it_kept(tmp_path: Path) -> None:
    evaluated(tmp_path / "cv", 0.6)
    (tmp_path / "cv" / "folds.json").write_text(json.dumps({"interval": [0.125, 0.875]}))
    evaluated(tmp_path / "one", 0.5)
    (tmp_path / "one" / "folds.json").write_text(json.dumps({"interval": [None, None]}))
    evaluated(tmp_path / "torn", 0.5)
    (tmp_path / "torn" / "folds.json").write_text(json.dumps({"interval": "wide"}))
    found = leaderboard(tmp_path)
    assert found is not None
    assert {r.name: r.cells[4][0] for r in found.rows} == {"cv": "12.5 to 87.5", "one": "–"}
    assert any("torn" in line for line in found.unread)


def test_runs_under_way_unlike_data_and_what_cannot_be_read_are_said(tmp_path: Path) -> None:
    evaluated(tmp_path / "a", 0.4)
    evaluated(tmp_path / "b", 0.5, split="test")
    run = tmp_path / "c"
    run.mkdir()
    (run / "recipe.toml").write_text('model = "fcn8s-<b>"\n')
    row = {"kind": "measurement", "step": 7, "mean_iu": 0.9, "pixel_accuracy": 0.95, "split": "val"}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "metrics.jsonl").write_text("")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "result.json").write_text("{]")
    page = render(tmp_path)
    assert "3 different ways" in page
    assert "while training" in page
    assert "d: nothing was measured yet" in page
    assert "<li>e: " in page
    assert "fcn8s-&lt;b&gt;" in page
    assert "fcn8s-<b>" not in page


def test_checkpoints_of_a_run_and_linked_folders_are_no_runs_of_their_own(tmp_path: Path) -> None:
    evaluated(tmp_path / "a" / "evaluation", 0.4)
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert [p.name for p in runs_below(tmp_path)] == ["a"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInput):
        render(tmp_path / "empty")
