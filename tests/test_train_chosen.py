"""Keys that say "auto" are settled by what the data are, once, and the run keeps what was taken."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
import torch
from PIL import Image
from training_tools import Tiny, images, small

from fullyconv import models, recipes
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.pairs import from_pairs
from fullyconv.errors import UsageError
from fullyconv.train import chosen, fit

CPU = torch.device("cpu")


def folder(root: Path, count: int = 6, size: tuple[int, int] = (40, 50), rare: int = 12) -> Path:
    """Images with a square of `rare` pixels a side."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.zeros(size, np.uint8)
            label[i : i + rare, 3 : 3 + rare] = 1
            image = (label[..., None] * 120 + rng.integers(0, 90, (*size, 3))).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{split}{i}.png")
            Image.fromarray(label).save(root / split / "labels" / f"{split}{i}.png")
    return root


def taken(dataset: Dataset, **settings: Any) -> tuple[recipes.Recipe, list[str]]:
    model = models.create("fcn2s-tiny", taxonomies=dataset.taxonomies, quiet=True)
    recipe = recipes.read_recipe(None, {"model": "fcn2s-tiny", **settings})
    return chosen.choose_settings(recipe, model, dataset, None, {}, CPU)


def test_what_the_data_decide_is_taken_and_said(tmp_path: Path) -> None:
    recipe, settings = taken(open_dataset(folder(tmp_path / "d", count=5, size=(70, 100), rare=4), "train"))
    assert recipe.crop == (64, 96)  # the largest multiples of 32 inside
    assert recipe.batch_size == 5  # no more than there are images
    assert recipe.class_weights == "root-median-frequency"  # 16 of 7,000 pixels
    assert "crop 64x96 (images are 70x100)" in settings[0]
    assert "1/436 of the pixels" in settings[0]


@pytest.mark.parametrize("rare", [4, 12])
def test_images_without_files_are_looked_at_as_those_in_files(tmp_path: Path, rare: int) -> None:
    files = open_dataset(folder(tmp_path / "d", count=5, size=(70, 100), rare=rare), "train")
    pairs = [(files.image(i), files[i].labels["semantic"]) for i in range(len(files))]
    assert taken(from_pairs(pairs, 2))[0] == taken(files)[0]
    broken = [*pairs, (np.zeros(3), np.zeros((3, 3), np.uint8))]  # for training to judge
    assert taken(from_pairs(broken, 2))[0].crop == (64, 96)
    last = from_pairs(broken, 2)
    assert chosen.sample_summary(replace(last, records=last.records[5:])) is None


def test_even_classes_are_not_weighted(tmp_path: Path) -> None:
    assert taken(open_dataset(folder(tmp_path / "d"), "train"))[0].class_weights == "none"


def test_what_was_given_stays(tmp_path: Path) -> None:
    data = open_dataset(folder(tmp_path / "d", rare=2), "train")
    recipe, settings = taken(data, crop=[16, 16], batch_size=3, class_weights="none")
    assert (recipe.crop, recipe.batch_size, recipe.class_weights) == ((16, 16), 3, "none")
    assert settings == []


def test_a_step_takes_no_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_dataset(folder(tmp_path / "d", count=8, size=(256, 256), rare=100), "train")
    assert taken(data)[0].batch_size == 8
    one = chosen.cost.estimate(
        models.create("fcn2s-tiny", taxonomies=data.taxonomies, quiet=True),
        256,
        256,
        1,
        training=True,
        optimizer="adamw",
    ).peak_bytes
    monkeypatch.setattr(chosen.processor, "memory", lambda: int(one / chosen.SHARE) + 1)
    recipe, settings = taken(data)
    assert 1 <= recipe.batch_size < 8
    assert "GiB of memory take" in settings[0]


def test_a_run_keeps_what_it_took_and_goes_on_with_it(tmp_path: Path, capsys: Any) -> None:
    data, out = folder(tmp_path / "d"), tmp_path / "run"
    recipe = recipes.read_recipe(None, {"model": "fcn2s-tiny", "steps": 1})
    assert 'crop = "auto"' in recipe.to_toml()
    fit(recipe, data, out)
    assert "Chosen for these data" in capsys.readouterr().err
    kept = recipes.read_recipe(out / "recipe.toml")
    assert (kept.crop, kept.batch_size, kept.class_weights) == ((32, 32), 6, "none")
    assert kept.weights == ""  # nothing was taken, which recipe.toml says
    fit(recipe.replace(steps=2), data, out, resume=True)
    assert "Chosen for these data" not in capsys.readouterr().err
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 2


def test_auto_is_a_word_of_recipes_and_survives_a_file(tmp_path: Path) -> None:
    recipe = recipes.read_recipe(None, ["crop=auto", "batch_size=auto"])
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert recipes.read_recipe(tmp_path / "r.toml") == recipe
    with pytest.raises(UsageError, match="crop"):
        recipes.read_recipe(None, ["crop=[0, 8]"])
    with pytest.raises(UsageError, match="batch_size"):
        recipes.read_recipe(None, ["batch_size=-1"])


def test_a_summed_loss_from_nothing_is_refused_even_where_weights_are_auto(tmp_path: Path) -> None:
    recipe = recipes.read_recipe(None, {"model": "fcn2s-tiny", "steps": 1, "loss": "sum", "lr": 1e-10})
    with pytest.raises(UsageError, match="random weights"):
        fit(recipe, folder(tmp_path / "d"), tmp_path / "run", quiet=True)


def varied(root: Path, sizes: list[tuple[int, int]]) -> Dataset:
    rng = np.random.default_rng(0)
    for i, size in enumerate(sizes):
        for kind, shape in (("images", (*size, 3)), ("labels", size)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            drawn = rng.integers(0, 2 if kind == "labels" else 256, shape).astype(np.uint8)
            Image.fromarray(drawn).save(root / kind / f"{i}.png")
    return open_dataset(root, None)


def test_of_sizes_that_differ_much_the_crop_shows_what_half_of_them_hold(tmp_path: Path) -> None:
    few_small = varied(tmp_path / "a", [(40, 60), (200, 260), (200, 260), (210, 270), (400, 500)])
    assert taken(few_small)[0].crop == (192, 256)  # nine of ten hold 96x128 only
    large = varied(tmp_path / "b", [(40, 60), *[(700, 900)] * 3])
    assert taken(large)[0].crop == (320, 320)


def test_no_crop_is_larger_than_images_can_be_scaled_to(tmp_path: Path) -> None:
    assert taken(varied(tmp_path / "a", [(12, 12)] * 3))[0].crop == (18, 18)
    dataset = varied(tmp_path / "b", [(12, 12), (20, 300), (200, 30)])
    asked = recipes.read_recipe(None, {"model": "fcn2s-tiny", "crop": [400, 400], "batch_size": 2})
    recipe, settings = chosen.cut_to_the_data(asked, dataset)
    assert recipe.crop == (300, 400)  # whichever image comes first
    assert "larger than any image (up to 200x300) can be scaled to: 300x400" in settings[0]


def test_trained_batch_norm_is_learned_without_a_jump_unless_steps_are_too_small(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "trunk.pt")
    keys = {"weights": str(tmp_path / "trunk.pt"), "steps": 1, "class_weights": "none"}

    def learned(name: str, **more: Any) -> str:
        fit(small(**keys | more), images(), tmp_path / name, val=images(3, "val"), check=False, quiet=True)
        return recipes.read_recipe(tmp_path / name / "recipe.toml").batch_norm

    assert learned("usual") == "unfold"
    assert learned("scratch", weights="") == "train"
    assert learned("small", crop=[4, 8]) == "frozen"
    assert learned("given", batch_norm="train") == "train"


def test_a_run_that_unfolded_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "trunk.pt")
    recipe = small(weights=str(tmp_path / "trunk.pt"), steps=4, schedule="constant")
    more: dict[str, Any] = {"val": images(3, "val"), "check": False, "quiet": True}
    whole = fit(recipe, images(), tmp_path / "whole", **more)
    fit(recipe.replace(steps=2), images(), tmp_path / "parts", **more)
    parts = fit(recipe, images(), tmp_path / "parts", resume=True, **more)
    ends = [models.load(run / "last").state_dict() for run in (whole, parts)]
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


def test_images_of_one_cell_are_learned_from_trained_weights_and_refused_without(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "trunk.pt")
    train = images(5, size=(7, 7))
    recipe = small(weights=str(tmp_path / "trunk.pt"), steps=3, crop=[4, 4], batch_size=4)  # the last step has one
    fit(recipe, train, tmp_path / "run", val=train, check=False, quiet=True)
    with pytest.raises(UsageError, match="there are 5 images"):
        fit(recipe.replace(weights=""), train, tmp_path / "scratch", val=train, check=False, quiet=True)


def test_a_step_on_a_single_cell_can_be_reckoned() -> None:
    assert chosen.cost.estimate(models.create("fcn8s-resnet18", 2, quiet=True), 12, 12, training=True).peak_bytes > 0


def test_a_crop_is_fitted_to_the_images_that_can_be_read(tmp_path: Path) -> None:
    data = faults.clean(tmp_path / "data", train=3, val=1)
    first, *others = sorted(p for p in data.rglob("*.png") if {"images", "train"} <= set(p.parts))
    first.write_bytes(first.read_bytes()[:60])
    dataset = open_dataset(f"folder:{data}", "train")
    assert chosen.largest_sides(dataset) == dataset.image(1).shape[:2]
    for file in others:
        file.write_bytes(b"")
    assert chosen.largest_sides(dataset) is None
