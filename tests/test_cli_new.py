"""`fullyconv new` writes a recipe that `train` takes, whose comments say what the data check found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fullyconv import recipes
from fullyconv.cli import _register, app
from fullyconv.cli.new import recipe_text
from fullyconv.doctor.summary import HeadSummary, Summary


def data(folder: Path, count: int = 6) -> Path:
    for sub in ("images", "labels"):
        (folder / sub).mkdir(parents=True)
    for i in range(count):
        image, label = faults.scene(i, (96, 128))
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(np.minimum(label, 2)).save(folder / "labels" / f"{i}.png")
    (folder / "classes.txt").write_text("sea\nland\nship\n")
    return folder


def run(*arguments: str) -> Any:
    if not app.registered_commands:
        _register()
    return CliRunner().invoke(app, list(arguments))


def test_the_recipe_is_what_train_takes_and_says_what_was_found(tmp_path: Path) -> None:
    folder, target = data(tmp_path / "mine"), tmp_path / "my.toml"
    done = run("new", str(folder), "-o", str(target), "--quiet")
    assert done.exit_code == 0, done.output
    recipe, text = recipes.read_recipe(target), target.read_text()
    assert recipe.crop == (96, 128)
    assert recipe.batch_size == recipes.AUTO_BATCH
    assert recipe.seconds == 1800
    assert "6 images" in text
    assert all(f"  {name}\n" in text for name in ("sea", "land", "ship"))
    for key in (
        "loss",
        "cutmix",
        "flip_vertical",
        "turns",
        "elastic",
        "photometric",
    ):  # what is commented out is a recipe too
        line = next(li for li in text.splitlines() if li.startswith(f"# {key} ="))
        assert recipes.read_recipe(None, [line[2:].partition("  #")[0]]) != recipes.read_recipe(None)
    assert run("new", str(folder), "-o", str(target), "--quiet").exit_code == 0  # its own file may be written anew


def test_a_file_that_is_not_its_own_is_left_alone(tmp_path: Path) -> None:
    folder, target = data(tmp_path / "mine"), tmp_path / "my.toml"
    target.write_text("lr = 0.1\n")
    done = run("new", str(folder), "-o", str(target), "--quiet")
    assert done.exit_code != 0
    assert target.read_text() == "lr = 0.1\n"


@pytest.mark.parametrize("name", ['a\nlr = 9 "', "\x1b[31mred", "\u202eevil", "é" * 300])
def test_names_from_the_data_stay_inside_the_comments(name: str, tmp_path: Path) -> None:
    heads = {name: HeadSummary([name, "b"], frequency=[0.9, 0.0])}
    chosen = {"crop": [32, 32], "batch_size": 1, "class_weights": "none"}
    s = Summary({name: 3}, (40, 50), (40, 50), (40, 50), None, None, heads, chosen, (40, 50))
    (tmp_path / "r.toml").write_text(recipe_text(name, Path(f"{name}.toml"), s))
    assert recipes.read_recipe(tmp_path / "r.toml").lr == 0.001
    assert "never occurs" in (tmp_path / "r.toml").read_text()
