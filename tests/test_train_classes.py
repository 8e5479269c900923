"""What a run does with classes: those it measures, goes on with, weighs and starts from are known by their names."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from training_tools import fit, images, small

from fullyconv.data.base import Dataset
from fullyconv.doctor import warnings
from fullyconv.doctor.findings import finding
from fullyconv.errors import MissingExtra, UsageError
from fullyconv.recipes import read_recipe
from fullyconv.taxonomy import Taxonomy
from fullyconv.train.context import open_both
from fullyconv.train.stages import stage_recipes
from fullyconv.train.training_state import refuse_changes


def swapped(data: Dataset, names: str = "acb") -> Dataset:
    """`data` with its classes in another order."""
    table = np.arange(256, dtype=np.uint8)
    table[:3] = [names.index(c) for c in "abc"]
    read_labels = data.read_labels
    return replace(
        data, taxonomies={"semantic": Taxonomy(tuple(names))}, read_labels=lambda r, h: table[read_labels(r, h)]
    )


def test_a_validation_set_numbered_otherwise_is_measured_in_the_classes_learned(tmp_path: Path, capsys: Any) -> None:
    rows = []
    for name, val in (("plain", images(3, "val")), ("other", swapped(images(3, "val")))):
        out = fit(small(epochs=2), tmp_path / name, val=val)
        rows.append([r for r in (out / "metrics.jsonl").read_text().splitlines() if '"measurement"' in r])
    assert rows[0] == rows[1]
    assert "classes to measure: 3 of 3 classes matched by name; c 1 -> 2, b 2 -> 1." in capsys.readouterr().err


def whole(folder: Path, count: int = 4, seed: int = 0) -> Path:
    """A plain folder: images/ and labels/, no splits."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        for kind, high in (("images", 256), ("labels", 3)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, high, (16, 20, 3) if kind == "images" else (16, 20), np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return folder


def test_val_may_be_a_plain_folder_or_one_with_a_single_split(tmp_path: Path) -> None:
    data, plain = str(whole(tmp_path / "data")), str(whole(tmp_path / "plain", 3, 1))
    assert [len(d) for d in open_both(small(), data, plain) if d] == [4, 3]
    whole(tmp_path / "only" / "test", 2, 2)
    assert [len(d) for d in open_both(small(), data, str(tmp_path / "only")) if d] == [4, 2]


@pytest.mark.parametrize("name", ["val", "Valid", ""])
def test_an_empty_val_split_does_not_hide_the_data_that_were_given_to_measure(name: str, tmp_path: Path) -> None:
    data = str(whole(tmp_path / "data"))
    whole(tmp_path / "other" / name, 3, 1)
    if name:
        whole(tmp_path / "other" / "train", 5, 2)
    recipe = small(val_split="")
    assert [len(d) for d in open_both(recipe, data, str(tmp_path / "other")) if d] == [4, 3]
    assert open_both(recipe, data, None)[1] is None


def test_images_learned_and_measured_in_two_folders_are_said_to_be_the_same(tmp_path: Path, capsys: Any) -> None:
    from fullyconv.train.context import open_checked
    from fullyconv.train.display import Display

    data = [str(whole(tmp_path / name)) for name in ("data", "again")]
    open_checked(small(), data[0], data[1], Display(quiet=True))
    output = capsys.readouterr().err
    assert "it is the same image as" in output
    assert "Keep it in one split only" in output


def test_val_with_several_other_splits_asks_which_and_the_remedy_works(tmp_path: Path) -> None:
    data = str(whole(tmp_path / "data"))
    for split in ("one", "two"):
        whole(tmp_path / "more" / split, 2)
    (tmp_path / "more" / "one.txt").touch()
    try:
        _, val = open_both(small(), data, str(tmp_path / "more"))
    except UsageError as error:
        remedy = str(error).rpartition("--set ")[2].rstrip(".").partition("=")
        _, val = open_both(small(**{remedy[0]: remedy[2]}), data, str(tmp_path / "more"))
    assert val is not None


def test_a_class_that_moved_is_refused_on_resume_even_where_other_classes_are_allowed() -> None:
    def known(*names: str) -> dict[str, Any]:
        return {"network": 1, "classes": {"semantic": list(names)}, "data": 1, "transform": ""}

    refuse_changes(known("sky", "road"), known("sky", "street"), ["classes"])
    with pytest.raises(UsageError, match=r"allow-changed classes"):
        refuse_changes(known("sky", "road"), known("sky", "street"), [])
    with pytest.raises(UsageError, match=r"class 'sky' had id 0 .* has 1 now; .*init_from"):
        refuse_changes(known("sky", "road"), known("road", "sky"), ["classes", "network", "data"])


@pytest.mark.parametrize("value", ["1e38", "1e300", "inf", "nan", "-1", "1e5"])
@pytest.mark.parametrize("key", ["lr", "head_lr", "bias_lr", "weight_decay"])
def test_rates_that_no_step_survives_are_refused_in_one_sentence(key: str, value: str) -> None:
    if (key, value) == ("weight_decay", "1e5"):
        value = "1e9"
    with pytest.raises(UsageError, match=key):
        read_recipe(None, [f"{key}={value}", "lr=1" if key != "lr" else "name='x'"])


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="class_weights are all 0"):
        read_recipe(None, ["class_weights=[0, 0, 0]"])
    read_recipe(None, ["class_weights=[0, 0, 1]"])


@pytest.mark.parametrize("value", ["1e7", "1e38", "1e300"])
def test_weights_that_no_loss_survives_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"class_weights holds 1e\+.* at most 1e\+06"):
        read_recipe(None, [f"class_weights=[1, {value}]"])
    read_recipe(None, ["class_weights=[1, 1e6]"])


def test_a_missing_tensorboard_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtra, match="tensorboard"):
        fit(small(tensorboard=True), tmp_path / "run")
    with pytest.raises(MissingExtra, match="tensorboard"):
        fit(read_recipe(None, {"stages": ["voc-fcn32s"], "tensorboard": True}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_stages_of_ones_own_recipe_may_lie_beside_it(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "coarse.toml").write_text('model = "fcn4s-tiny"\ncrop = [16, 16]\n')
    (tmp_path / "recipes" / "fine.toml").write_text('name = "finer"\nmodel = "fcn2s-tiny"\ncrop = [16, 16]\n')
    (tmp_path / "recipes" / "mine.toml").write_text(
        'stages = ["coarse.toml", "fine.toml"]\nsteps = 1\nbatch_size = 2\n'
    )
    monkeypatch.chdir(tmp_path)
    recipe = read_recipe("recipes/mine.toml")
    monkeypatch.chdir("/")
    assert [s.model for s in stage_recipes(recipe)] == ["fcn4s-tiny", "fcn2s-tiny"]
    out = fit(recipe, tmp_path / "run")
    assert (out / "1-coarse" / "last").is_dir()
    assert (out / "2-finer" / "best").is_dir()
    assert json.loads((out / "last" / "config.json").read_text())["name"] == "fcn2s-tiny"
    fit(read_recipe(out / "recipe.toml"), out, resume=True)  # the resolved recipe finds them again


def test_a_stage_with_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner.toml").write_text('stages = ["voc-fcn32s"]\n')
    (tmp_path / "outer.toml").write_text('stages = ["inner.toml"]\n')
    with pytest.raises(UsageError, match="has stages itself"):
        stage_recipes(read_recipe(tmp_path / "outer.toml"))


def test_thousands_of_warnings_of_a_kind_are_three_lines_and_their_number() -> None:
    unused = [finding("unused-class", [Path("d")], f"class {k}", 0, k) for k in range(20_000)]
    lines = warnings([*unused, finding("blank-image", [Path("a.png")], "grey")])
    assert len(lines) == 5
    assert lines[-1] == "warning: 19997 more like this [unused-class]; fullyconv check --json lists all."
