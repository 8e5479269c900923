"""What a run learned from is not measured by mistake: it keeps what it held out and knows the images again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_train_classes import whole
from training_tools import fit, small

from fullyconv.data import open_dataset
from fullyconv.data.splits import FILE, kept_in
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.evaluation import _opened
from fullyconv.evaluation.choice import images_to_measure
from fullyconv.train.context import open_both

READY = SimpleNamespace(model=SimpleNamespace(origin={}), inputs=("rgb",))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten images without splits and a run that learned from it."""
    root = tmp_path_factory.mktemp("division")
    data = whole(root / "data", 10)
    fit(small(steps=1), root / "run", train=str(data), val=None)  # type: ignore[arg-type]
    return root


def measured(place: Path, data: Path, split: str = "", model: str = "run") -> Any:
    return images_to_measure(str(data), split, READY, str(place / model))


def names(data: Any) -> set[str]:
    return {r.name for r in data.records}


def test_a_run_keeps_what_it_learned_from_and_what_it_held_out(place: Path) -> None:
    kept = json.loads((place / "run" / FILE).read_text())
    assert kept["held_out"]
    assert not kept["held_out"].keys() & kept["learned"].keys()
    assert kept["held_out"].keys() | kept["learned"].keys() == {str(i) for i in range(10)}
    train, val = open_both(small(), str(place / "data"), None)
    assert val is not None
    assert (names(train), names(val)) == (set(kept["learned"]), set(kept["held_out"]))


@pytest.mark.parametrize("model", ["run", "run/best", "run/last"])
def test_data_without_splits_are_measured_on_what_the_run_held_out(place: Path, model: str) -> None:
    held = set(json.loads((place / "run" / FILE).read_text())["held_out"])
    found = measured(place, place / "data", model=model)
    assert (names(found), found.split) == (held, "held-out")
    assert f"measured are the {len(held)} images held out by the run, not the {10 - len(held)} learned from" in str(
        found.notes
    )
    assert names(measured(place, place / "data", "held-out", model)) == held
    assert len(measured(place, place / "data", "train", model)) == 10 - len(held)
    assert len(measured(place, place / "data", "all", model)) == 10


def test_images_are_known_again_by_their_content(place: Path, tmp_path: Path) -> None:
    kept = json.loads((place / "run" / FILE).read_text())
    for kind in ("images", "labels"):
        (tmp_path / "more" / kind).mkdir(parents=True)
        for i in range(10):
            shutil.copy(place / "data" / kind / f"{i}.png", tmp_path / "more" / kind / f"renamed-{i}.png")
    found = measured(place, tmp_path / "more")
    assert names(found) == {f"renamed-{n}" for n in kept["held_out"]}
    whole(tmp_path / "more", 3, seed=9)
    found = measured(place, tmp_path / "more")
    assert names(found) == {f"renamed-{n}" for n in kept["held_out"]}
    assert "and not 3 that were added since" in str(found.notes)


def test_other_data_are_measured_whole_though_their_names_are_the_same(place: Path, tmp_path: Path) -> None:
    found = measured(place, whole(tmp_path / "test", 4, seed=5))
    assert (len(found), found.split) == (4, "all")
    assert "None of the 4 images" in str(found.notes)
    with pytest.raises(DataError, match="--split all"):
        measured(place, tmp_path / "test", "held-out")


def test_data_of_which_everything_was_learned_are_refused_with_a_way_that_works(place: Path, tmp_path: Path) -> None:
    kept = json.loads((place / "run" / FILE).read_text())
    for kind in ("images", "labels"):
        (tmp_path / "learned" / kind).mkdir(parents=True)
        for name in kept["learned"]:
            shutil.copy(place / "data" / kind / f"{name}.png", tmp_path / "learned" / kind)
    with pytest.raises(DataError, match=r"All .* images of .* were learned from.*--split train"):
        measured(place, tmp_path / "learned")
    assert len(measured(place, tmp_path / "learned", "train")) == len(kept["learned"])
    whole(tmp_path / "new", 2, seed=7)
    for kind in ("images", "labels"):
        for i in range(2):
            shutil.copy(tmp_path / "new" / kind / f"{i}.png", tmp_path / "learned" / kind / f"new-{i}.png")
    assert names(measured(place, tmp_path / "learned")) == {"new-0", "new-1"}


def test_a_model_without_its_run_says_that_it_does_not_know(place: Path, tmp_path: Path) -> None:
    shutil.copytree((place / "run" / "best").resolve(), tmp_path / "alone")
    found = images_to_measure(str(place / "data"), "", READY, str(tmp_path / "alone"))
    assert (len(found), found.split) == (10, "all")
    assert "those that were learned from too" in str(found.notes)
    with pytest.raises(UsageError, match="--split all"):
        images_to_measure(str(place / "data"), "held-out", READY, str(tmp_path / "alone"))
    with pytest.raises(UnknownName):
        images_to_measure(str(place / "data"), "train", READY, str(tmp_path / "alone"))


def test_what_was_held_out_stays_held_out_when_images_are_added(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "grown")
    whole(tmp_path / "extra", 60, seed=3)
    for kind in ("images", "labels"):
        for i in range(60):
            shutil.copy(tmp_path / "extra" / kind / f"{i}.png", tmp_path / "grown" / kind / f"x{i}.png")
    kept = kept_in(place / "run")
    assert kept is not None
    train, val = open_both(small(), str(tmp_path / "grown"), None, kept)
    assert val is not None
    assert set(kept.held_out) <= names(val)
    assert set(kept.learned) <= names(train)
    assert len(val) > len(kept.held_out)


def test_a_damaged_list_is_named(place: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "held_out": 3}')
    with pytest.raises(DataError, match=FILE):
        kept_in(tmp_path)
    assert open_dataset(str(place / "data"), "all")


def test_a_set_of_one_split_that_is_no_val_is_measured_on_what_was_held_out(place: Path, tmp_path: Path) -> None:
    """As exports of tools and nnU-Net's layout have it: a train or default split alone."""
    held = set(json.loads((place / "run" / FILE).read_text())["held_out"])
    shutil.copytree(place / "data", tmp_path / "set/train")
    assert names(measured(place, tmp_path / "set")) == held
    shutil.copytree(place / "data" / "images", tmp_path / "set/valid/images")  # a val split without labels
    assert names(measured(place, tmp_path / "set")) == held


def test_python_measures_the_same_images_as_the_command(place: Path) -> None:
    held = set(json.loads((place / "run" / FILE).read_text())["held_out"])
    assert names(_opened(place / "run", place / "data")[1]) == held
