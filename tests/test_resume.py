"""A run that was stopped anywhere and goes on is the run that was never stopped, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_tools import call, outcome, train_until

# Every pair of values of two columns occurs in some row.
COLUMNS = ("workers", "optimizer", "ema", "precision", "accumulate", "place", "how")
FAST: list[tuple[Any, ...]] = [
    (2, "adamw", 0.9, "fp32", 2, "after_step", "SIGTERM"),
    (0, "sgd", 0.0, "fp32", 1, "in_step", "SIGKILL"),
    (2, "caffe-sgd", 0.9, "bf16", 1, "in_measurement", "SIGINT"),
    (0, "adamw", 0.9, "bf16", 2, "between_links", "SIGKILL"),
]
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9, "exception": 99}


def keys(row: tuple[Any, ...]) -> dict[str, Any]:
    found = dict(zip(COLUMNS, row, strict=True))
    found = {k: v for k, v in found.items() if k not in ("place", "how")}
    return found | {"lr": 1e-3, "seed": 3}


@pytest.mark.parametrize("row", FAST)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(row: tuple[Any, ...], tmp_path: Path) -> None:
    place, how = row[-2:]
    at = {"after_step": 6, "in_step": 3, "in_measurement": 2, "between_links": 2}[place]
    assert call(train_until, keys(row), str(tmp_path / "whole"), False) == 0
    assert call(train_until, keys(row), str(tmp_path / "cut"), False, place, at, how) == CODES[how]
    assert call(train_until, keys(row), str(tmp_path / "cut"), True) == 0
    whole, cut = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    for key, value in whole.items():
        assert cut[key] == value, key
