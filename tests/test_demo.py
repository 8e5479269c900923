"""The demo's place: an earlier demo goes, nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullyconv.cli.demo import demo
from fullyconv.errors import UsageError


def earlier(place: Path) -> Path:
    place.mkdir()
    (place / "recipe.toml").write_text('name = "demo"\n')
    return place


def test_a_wrong_time_leaves_the_earlier_demo(tmp_path: Path) -> None:
    place = earlier(tmp_path / "demo")
    with pytest.raises(UsageError, match="not a length of time"):
        demo(place, time="soon")
    assert [p.name for p in place.iterdir()] == ["recipe.toml"]


def test_what_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something that is not a demo"):
        demo(tmp_path, time="1s")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
