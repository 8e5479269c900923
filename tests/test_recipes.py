"""Recipes: what is refused, what survives a round trip, and the published ones against the paper's table."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullyconv import recipes
from fullyconv.errors import MissingInput, UnknownName, UsageError
from fullyconv.recipes import Recipe, read_recipe

ROOT = Path(__file__).parent.parent

# spec of the release (solver.prototxt and solve.py): name -> rate, momentum, steps
RELEASED = {
    "voc-fcn32s": (1e-10, 0.99, 100_000),
    "voc-fcn16s": (1e-12, 0.99, 100_000),
    "voc-fcn8s": (1e-14, 0.99, 100_000),
    "voc-fcn8s-atonce": (1e-10, 0.99, 300_000),
    "voc-fcn-alexnet": (1e-4, 0.9, 100_000),
    "nyud-fcn32s-color": (1e-10, 0.99, 100_000),
    "nyud-fcn32s-color-d": (1e-10, 0.99, 100_000),
    "nyud-fcn32s-hha": (1e-10, 0.99, 100_000),
    "nyud-fcn32s-color-hha": (1e-12, 0.99, 100_000),
    "pascalcontext-fcn32s": (1e-10, 0.99, 400_000),
    "pascalcontext-fcn16s": (1e-12, 0.99, 400_000),
    "pascalcontext-fcn8s": (1e-14, 0.99, 400_000),
    "siftflow-fcn32s": (1e-10, 0.99, 100_000),
    "siftflow-fcn16s": (1e-12, 0.99, 100_000),
    "siftflow-fcn8s": (1e-12, 0.99, 100_000),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_solver_is_the_release(name: str) -> None:
    r = recipes.published_recipe(name)
    assert (r.lr, r.momentum, r.steps) == RELEASED[name]
    assert (r.model, r.optimizer, r.weight_decay, r.bias_lr, r.bias_decay) == (name, "caffe-sgd", 5e-4, 2.0, False)
    assert (r.sampling, r.schedule, r.warmup, r.ema, r.crop, r.flip) == ("replacement", "constant", 0, 0, (), 0)
    assert r.scale == (1, 1)
    light = name == "voc-fcn-alexnet"
    assert (r.loss, r.batch_size, r.accumulate) == (("image-mean", 20, 20) if light else ("sum", 1, 1))


@pytest.mark.parametrize("name", recipes.names())
def test_a_published_recipe_names_its_source_and_survives_its_own_text(name: str) -> None:
    r = recipes.published_recipe(name)
    assert r.source
    assert r.name == name
    assert Recipe(**tomllib.loads(r.to_toml())) == r
    assert all(stage in recipes.names() for stage in r.stages)


def test_the_light_recipe_divides_the_rate_by_a_hundred_a_stage() -> None:
    rates = [recipes.published_recipe(f"cvpr-fcn{s}s-vgg16").lr for s in (32, 16, 8)]
    assert rates == pytest.approx([1e-4, 1e-6, 1e-8])


def test_an_unknown_key_or_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'batch_size'"):
        read_recipe(None, ["batchsize=4"])
    with pytest.raises(UnknownName, match="'camvid-cpu'"):
        read_recipe("camvid-cpus")
    with pytest.raises(UsageError, match=r"did you mean 'adamw'\?$"):
        read_recipe(None, ["optimizer=adam"])
    with pytest.raises(UsageError, match=r"unable to parse string as a number\.$"):
        read_recipe(None, ["lr=floats"])  # a type is no choice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3, "steps": 5}, "only one of epochs, steps and time"),
        ({"crop": [0, 4]}, "crop"),
        ({"scale": [2, 1]}, "scale"),
        ({"lr": -1}, "lr = -1"),
        ({"lr": "fast"}, "lr = 'fast'"),
        ({"time": "soon"}, "length of time"),
        ({"accumulate": 9, "batch_size": 4}, "accumulate = 9"),
        ({"class_weights": [1.0, -1.0]}, "class_weights"),
        ({"top_k": 0.5, "loss": "sum", "lr": 1e-10}, "top_k"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(None, settings)


def test_a_summed_loss_with_a_mean_loss_rate_is_refused_with_the_conversion() -> None:
    with pytest.raises(UsageError, match=r"lr = 0\.0001 with momentum 0\.99 acts like a mean loss at lr = 18\.75") as e:
        read_recipe("voc-fcn32s", ["lr=1e-4"])
    assert "lr = 5e-10" in str(e.value)
    assert read_recipe("voc-fcn32s", ["lr=2e-10"]).lr == 2e-10


def test_settings_are_toml_or_else_text_and_a_length_replaces_the_recipes() -> None:
    r = read_recipe("voc-fcn32s", ["weights=a file.pt", "flip=0.25", "crop=[32, 48]", "tensorboard=true", "time=90s"])
    assert (r.weights, r.flip, r.crop, r.tensorboard, r.time, r.steps) == ("a file.pt", 0.25, (32, 48), True, "90s", 0)
    assert r.seconds == 90


def test_a_recipe_file_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('lr = 0.5\nmodel = "fcn8s-vgg16"\n')
    assert (read_recipe(path).lr, read_recipe(str(path), ["lr=0.25"]).lr) == (0.5, 0.25)
    path.write_text("lr = = 1")
    with pytest.raises(UsageError, match=r"mine\.toml is not TOML"):
        read_recipe(path)
    with pytest.raises(MissingInput, match="nowhere"):
        read_recipe(tmp_path / "nowhere.toml")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "weights": st.text(st.characters(exclude_categories=["Cs"])),
            "lr": st.floats(1e-12, 10),
            "options": st.dictionaries(
                st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.booleans()
            ),
            "heads": st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
            "class_weights": st.lists(st.floats(0, 1e6), min_size=1).filter(any),
            "deterministic": st.booleans(),
        },
    )
)
def test_any_recipe_is_what_its_text_says(values: dict[str, Any]) -> None:
    r = read_recipe(None, values)
    assert Recipe(**tomllib.loads(r.to_toml())) == r
    assert Recipe(**tomllib.loads(r.to_toml(only_set=True))) == r


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2d", 172800), ("45", 45)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert recipes.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0s", "-3m", "1h30", "3 apples", "."])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError):
        recipes.parse_time(text)


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "train.md").read_text()
    assert recipes.key_table() in page
    for name in recipes.names():
        assert f"| `{name}` | {recipes.published_recipe(name).source} |" in page
    assert all(field.description for field in Recipe.model_fields.values())


def test_losses_are_added_up_by_name_with_their_factors() -> None:
    assert read_recipe(None, {"loss": "mean"}).loss_terms == {"cross_entropy": 1.0}
    assert read_recipe(None, {"loss": "image-mean"}).loss_terms == {"cross_entropy": 1.0}
    assert read_recipe(None, {"loss": "cross_entropy + 0.5*dice"}).loss_terms == {"cross_entropy": 1.0, "dice": 0.5}
    recipe = read_recipe(None, {"loss": "2*tversky+lovasz", "tversky": [0.4, 0.6]})
    assert recipe.loss_terms == {"tversky": 2.0, "lovasz": 1.0}
    assert recipe.tversky == (0.4, 0.6)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loss": "dise"}, "did you mean 'dice'"),
        ({"loss": "men"}, "did you mean 'mean'"),
        ({"loss": "mean+dice"}, "'mean'"),
        ({"loss": "dice+dice"}, "dice twice"),
        ({"loss": "-1*dice"}, "'-1' of dice"),
        ({"loss": "x*dice"}, "'x' of dice"),
        ({"loss": "dice", "top_k": 0.5}, "top_k"),
        ({"loss": "focal", "label_smoothing": 0.1}, "label_smoothing"),
        ({"tversky": [0.0, 1.0]}, "tversky"),
    ],
)
def test_losses_that_cannot_be_meant_are_refused(keys: dict[str, object], words: str) -> None:
    with pytest.raises((UsageError, UnknownName), match=words):
        read_recipe(None, keys)
