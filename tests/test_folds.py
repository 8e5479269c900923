"""Cross-validation: groups stay together, every image is measured once by a network that has not seen it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tools import images, small

from fullyconv.data.base import Record
from fullyconv.errors import UsageError
from fullyconv.evaluation import Result
from fullyconv.train import folds as module
from fullyconv.train.folds import cross_validate, fold_datasets, fold_numbers


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 6))
@settings(max_examples=80, deadline=None)
def test_groups_stay_together_and_folds_are_as_equal_as_groups_allow(groups: list[int], folds: int) -> None:
    records = [Record(f"r{i}", {}, {}, group=f"g{g}") for i, g in enumerate(groups)]
    if len(set(groups)) < folds:
        with pytest.raises(UsageError, match=f"{folds} folds cannot be made of {len(set(groups))} groups"):
            fold_numbers(records, folds)
        return
    numbers = fold_numbers(records, folds)
    assert all(len({n for n, g in zip(numbers, groups, strict=True) if g == one}) == 1 for one in groups)
    counts = np.bincount(numbers, minlength=folds)
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= max(groups.count(g) for g in groups)
    shuffled = sorted(range(len(records)), key=lambda i: (i * 7919) % 61)
    assert fold_numbers([records[i] for i in shuffled], folds) == [numbers[i] for i in shuffled]


def test_every_image_is_measured_in_one_fold_and_learned_in_the_others() -> None:
    data = images(7)
    parts = fold_datasets(data, 3)
    measured = [r.name for _, val in parts for r in val.records]
    assert sorted(measured) == sorted(r.name for r in data.records)
    for train, val in parts:
        assert {r.name for r in train.records} == {r.name for r in data.records} - {r.name for r in val.records}
    with pytest.raises(UsageError, match="8 folds cannot be made of 7 images"):
        fold_datasets(data, 8)


def test_the_merged_result_is_the_sum_of_the_folds_and_a_resumed_one_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, keys = images(6), {"steps": 2, "val_split": ""}
    found = cross_validate(small(**keys), data, tmp_path / "a", 2, check=False, quiet=True)
    assert found.result.images == 6
    assert [i.name for i in found.result.per_image] == [r.name for r in data.records]
    assert np.array_equal(found.result.confusion, sum(r.confusion for r in found.folds))
    low, high = found.interval.low, found.interval.high
    assert low is not None
    assert high is not None
    assert low <= found.result.mean_iu <= high
    kept = Result.load(tmp_path / "a")
    assert kept.mean_iu == found.result.mean_iu
    assert kept.about["data"]["split"].endswith("2 folds")
    assert json.loads((tmp_path / "a" / "folds.json").read_text())["folds"][1]["images"] == 3
    assert "each by the network that had not seen it" in found.text()

    recipes = [(tmp_path / "a" / f"fold-{k}" / "recipe.toml").read_text() for k in (1, 2)]
    assert recipes[0] == recipes[1]  # what the first left to the data holds for all

    with pytest.raises(UsageError, match="holds folds"):
        cross_validate(small(**keys), data, tmp_path / "a", 2, check=False, quiet=True)
    learned: list[str] = []
    import fullyconv.train as training

    monkeypatch.setattr(training, "fit", lambda *a, **k: learned.append("fold"))
    again = cross_validate(small(**keys), data, tmp_path / "a", 2, resume=True, check=False, quiet=True)
    assert not learned
    assert np.array_equal(again.result.confusion, found.result.confusion)


def test_an_interval_over_groups_is_wider_than_one_that_takes_a_videos_images_for_independent() -> None:
    from fullyconv.evaluation.result import ImageTables
    from fullyconv.taxonomy import Taxonomy

    rng = np.random.default_rng(0)
    data = images(40)
    grouped = replace(data, records=[replace(r, group=f"v{i // 10}") for i, r in enumerate(data.records)])
    shares = np.repeat(rng.uniform(0.2, 0.9, 4), 10)
    tables = [np.array([[100, 0], [round(100 * (1 - s)), round(100 * s)]]) for s in shares]
    named = enumerate(zip(data.records, tables, strict=True))
    each = [ImageTables.of(i, r.name, (4, 4), {"semantic": t}) for i, (r, t) in named]
    result = Result({"semantic": Taxonomy(("a", "b"))}, {"semantic": np.sum(tables, 0)}, each, {})
    wide, narrow = module._interval(grouped, result), module._interval(data, result)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)  # type: ignore[operator]


@pytest.mark.parametrize(("keys", "words"), [({"stages": ["voc-fcn32s"]}, "stages"), ({"early_stop": 3}, "early_stop")])
def test_what_cannot_be_cross_validated_is_refused(keys: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        cross_validate(small(**keys), images(4), tmp_path / "a", 2)
