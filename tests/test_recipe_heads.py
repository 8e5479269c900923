"""Heads and inputs that a recipe names: learned, written into the run, and known to everything that reads the run."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train_cli import TINY, folder, run
from training_tools import after_step, call, die, small

import fullyconv as fc
from fullyconv import recipes, scenes, train
from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.corpora.derive import add_again
from fullyconv.data.pipeline.cache import cached
from fullyconv.errors import DataError, StorageError, UnknownName, UsageError
from fullyconv.files import disk
from fullyconv.images import read_label
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.report import write
from fullyconv.train import checkpointing
from fullyconv.train.network import network_name

SCENES = 'map = {sky = ["sky"], horizontal = ["road", "pavement"], vertical = "*"}'


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes with depth, their geometric labels taken away: the recipe derives them."""
    root = scenes.write_scenes(tmp_path_factory.mktemp("street"), train=4, val=2, size=(40, 48), seed=3)
    for split in ("train", "val"):
        (root / split / "labels-geometric").rename(root / split / "kept")
    (root / "classes-geometric.txt").unlink()
    return root


@pytest.fixture(scope="module")
def two_heads(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them with a derived head, from a recipe file."""
    place = tmp_path_factory.mktemp("two")
    (place / "mine.toml").write_text(f'batch_size = 2\n[heads.surface]\nfrom = "semantic"\n{SCENES}\n')
    assert run(f"folder:{street}", "--recipe", str(place / "mine.toml"), *TINY, "--out", str(place / "run")) == 0
    return place / "run"


def printed(capsys: Any, *arguments: str, code: int = 0) -> Any:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert int(stop.value.code or 0) == code
    return capsys.readouterr()


def test_depth_that_is_not_encoded_yet_is_an_error_that_says_how(street: Path) -> None:
    with pytest.raises(DataError, match=r"has depth but no hha yet; encode it with fullyconv hha DEPTH"):
        open_dataset(f"folder:{street}", inputs=["rgb", "hha"])


# ---- the key ---------------------------------------------------------------------------------------------------------


def test_heads_are_names_or_a_table_and_both_survive_their_text() -> None:
    for heads in (("semantic", "geometric"), {"g": {"from": "semantic", "map": {"a": ["x"], "b": "*"}}, "h": False}):
        recipe = read_recipe(None, {"heads": heads})
        assert recipe.heads == heads
        assert Recipe(**tomllib.loads(recipe.to_toml())) == recipe


def test_settings_reach_into_a_table_and_keep_its_other_entries(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('[heads.a]\nfrom = "semantic"\nmap = {x = "*"}\n')
    changed = read_recipe(file, ["heads.b.folder=other", "heads.a.map={y=['z']}", "heads.c=false"])
    assert changed.heads == {
        "a": {"from": "semantic", "map": {"y": ["z"]}}, "b": {"folder": "other"}, "c": False,
    }  # fmt: skip
    assert read_recipe(file, ['heads=["semantic"]']).heads == ("semantic",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['heads=["semantic"]', "heads.b.folder=x"], "heads = .'semantic'. is no table"),
        (["lr.high=2"], "lr"),
        (["heads=geometric"], "heads = 'geometric'"),
        (["heads.a=true"], "heads"),
    ],
)
def test_what_is_no_table_of_heads_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_recipe(None, settings)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"from": "semantik", "map": {"a": "*"}}, UnknownName, "'semantic'"),
        ({"from": "semantic", "map": {"a": ["rode"]}}, UnknownName, "'road'"),
        ({"form": "semantic", "map": {"a": "*"}}, UnknownName, "'from'"),
        ({"from": "semantic"}, UsageError, "given by from; give {from, map}"),
        ({"from": "semantic", "map": ["sky"]}, UsageError, "table of new classes"),
        ({"from": "semantic", "map": {"a": 3}}, UsageError, "made from 3"),
        ({"from": "semantic", "map": {"a": ["sky"], "b": ["sky"]}}, UsageError, "'sky' is mapped twice"),
        ("semantic", UsageError, "given as 'semantic'"),
    ],
)
def test_a_mistake_in_a_head_is_named_with_what_was_meant(street: Path, how: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        open_dataset(f"folder:{street}", heads={"new": how})


# ---- the run knows them ----------------------------------------------------------------------------------------------


def test_a_run_records_its_derived_head_and_learns_the_maps_it_says(two_heads: Path, street: Path) -> None:
    how = {"from": "semantic", "map": {"sky": ["sky"], "horizontal": ["road", "pavement"], "vertical": "*"}}
    assert tomllib.loads((two_heads / "recipe.toml").read_text())["heads"] == {"surface": how}
    model = fc.load(two_heads / "best")
    assert model.origin["heads"] == {"surface": how}
    assert list(model.heads) == ["semantic", "surface"]
    rows = [json.loads(line) for line in (two_heads / "metrics.jsonl").read_text().splitlines()]
    assert any("heads.surface.mean_iu" in row for row in rows)
    derived = open_dataset(f"folder:{street}", "val", heads={"surface": how})
    names = derived.taxonomies["semantic"].names
    for record, sample in zip(derived.records, derived, strict=True):
        semantic = sample.labels["semantic"]
        slow = [[_surface(names, int(v)) for v in row] for row in semantic]
        np.testing.assert_array_equal(sample.labels["surface"], slow, err_msg=record.name)


def _surface(names: tuple[str, ...], k: int) -> int:
    if k == 255:
        return 255
    return {"sky": 0, "road": 1, "pavement": 1}.get(names[k], 2)


def test_evaluate_gives_figures_for_every_head_without_being_told(two_heads: Path, street: Path, capsys: Any) -> None:
    found = json.loads(printed(capsys, "evaluate", str(two_heads), f"folder:{street}", "--json", "--quiet").out)
    assert set(found["heads"]) == {"semantic", "surface"}
    assert found["heads"]["surface"]["taxonomy"]["names"] == ["sky", "horizontal", "vertical"]
    assert found["model"]["training"]["heads"].keys() == {"surface"}
    assert found["model"]["training"]["images"] == 4
    assert "[surface]" in printed(capsys, "evaluate", str(two_heads / "last"), f"folder:{street}", "--quiet").out


def test_predict_and_report_show_the_derived_head(two_heads: Path, street: Path, tmp_path: Path, capsys: Any) -> None:
    printed(capsys, "predict", str(two_heads), str(street / "val" / "images"), "-o", str(tmp_path / "p"), "--quiet")
    assert read_label(tmp_path / "p" / "surface" / "00000.png").max() <= 2
    page = (two_heads / "report.html").read_text()
    assert page.count('alt="surface prediction of') == 2
    assert "IU of every class of the surface head" in page
    assert "All that follows is about the semantic head." in page
    assert "surface derived from semantic" in page


def test_a_saved_copy_of_the_model_still_knows(two_heads: Path, tmp_path: Path) -> None:
    origin = fc.load(two_heads / "best").origin
    copy = fc.load(fc.load(two_heads / "best").save_pretrained(tmp_path / "copy"))
    assert copy.origin == origin
    assert str(tmp_path) not in json.dumps(copy.origin)


def test_data_that_cannot_give_the_head_are_measured_without_it_and_that_is_said(street: Path) -> None:
    plain = open_dataset(f"folder:{street}", "val")
    for how, missing in (
        ({"folder": "nowhere"}, "folder nowhere"),
        ({"from": "parts", "map": {"a": "*"}}, "parts labels"),
    ):
        found = add_again(plain, {"x": how})
        assert list(found.taxonomies) == ["semantic"]
        assert any(f"no {missing} here" in note and "left out" in note for note in found.notes)
    own = add_again(plain, {"semantic": {"folder": "nowhere"}})
    assert any("the data's own is taken" in note for note in own.notes)


def test_another_map_of_the_same_classes_is_other_data(two_heads: Path, street: Path, capsys: Any) -> None:
    other = "heads.surface.map={sky=['sky'], horizontal=['road'], vertical='*'}"
    found = printed(
        capsys, "train", f"folder:{street}", "--out", str(two_heads), "--resume", "--set", other, "--set", "epochs=2",
        code=2,
    )  # fmt: skip
    assert "data are not what this run was started with" in found.err


def test_a_run_goes_on_with_its_derived_head(street: Path, tmp_path: Path) -> None:
    how = {"surface": {"from": "semantic", "map": {"sky": ["sky"], "rest": "*"}}}
    for length in (1, 2):
        out = train.fit(
            small(epochs=length, heads=how), f"folder:{street}", tmp_path / "r", resume=length > 1, quiet=True
        )
    assert list(fc.load(out / "last").heads) == ["semantic", "surface"]
    whole = train.fit(small(epochs=2, heads=how), f"folder:{street}", tmp_path / "w", quiet=True)
    steps = [(p / "last").resolve().name for p in (out, whole)]
    assert steps[0] == steps[1]


def test_a_head_set_to_false_is_not_learned(street: Path, tmp_path: Path) -> None:
    how = {"surface": {"from": "semantic", "map": {"sky": ["sky"], "rest": "*"}}, "semantic": False}
    out = train.fit(small(epochs=1, heads=how), f"folder:{street}", tmp_path / "r", quiet=True)
    assert list(fc.load(out / "last").heads) == ["surface"]


def test_a_head_from_a_second_folder_is_found_again(street: Path, tmp_path: Path, capsys: Any) -> None:
    how = {"geometric": {"folder": "kept"}}
    data = open_dataset(f"folder:{street}/train", heads=None)
    assert list(data.taxonomies) == ["semantic"]
    out = train.fit(small(epochs=1, heads=how, val_split=""), f"folder:{street}/train", tmp_path / "r", quiet=True)
    found = json.loads(printed(capsys, "evaluate", str(out), f"folder:{street}/val", "--json", "--quiet").out)
    assert set(found["heads"]) == {"semantic", "geometric"}


# ---- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "inputs", "name"),
    [
        ("fcn8s-resnet18", (), "fcn8s-resnet18"),
        ("fcn8s-resnet18", ("rgb",), "fcn8s-resnet18"),
        ("fcn8s-resnet18", ("depth",), "fcn8s-resnet18-depth"),
        ("fcn8s-resnet18", ("rgb", "depth"), "fcn8s-resnet18-rgbd"),
        ("fcn8s-resnet18", ("rgb", "hha"), "fcn8s-resnet18-rgb-hha"),
        ("fcn8s-resnet18-hha", ("hha",), "fcn8s-resnet18-hha"),
        ("fcn8s-resnet18", ("infrared",), "fcn8s-resnet18"),
    ],
)
def test_inputs_name_the_network_that_takes_them(model: str, inputs: tuple[str, ...], name: str) -> None:
    assert network_name(small(model=model, inputs=inputs)) == name


@pytest.mark.slow
def test_a_network_of_depth_alone_is_trained_and_measured(street: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert run(f"folder:{street}", *TINY, "--set", 'inputs=["depth"]', "--out", str(out)) == 0
    capsys.readouterr()
    found = json.loads(printed(capsys, "evaluate", str(out), f"folder:{street}", "--json", "--quiet").out)
    assert found["data"]["inputs"] == ["depth"]
    assert found["model"]["name"] == "fcn2s-tiny-depth"
    depth = street / "val" / "depth"
    printed(capsys, "predict", str(out), str(depth), "-o", str(tmp_path / "p"), "--quiet")
    assert read_label(tmp_path / "p" / "00001.png").shape == (40, 48)


def test_inputs_of_other_channels_than_the_networks_are_refused_before_the_first_step(
    street: Path, tmp_path: Path
) -> None:
    recipe = small(model="fcn2s-tiny-hha", inputs=("depth",))
    with pytest.raises(DataError, match="takes 3 channels, the inputs depth have 1"):
        train.fit(recipe, f"folder:{street}", tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_early_and_late_fusion_learn_from_scratch_on_drawn_scenes(street: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with pytest.raises(SystemExit) as stop:
            main(["hha", str(street / split / "depth"), "--camera", str(street / "camera.json"),
                  "-o", str(street / split / "hha"), "--json"])  # fmt: skip
        assert not stop.value.code
    for recipe, streams in (("scenes-early", 1), ("scenes-late", 2)):
        published = recipes.published_recipe(recipe)
        model = published.model.replace("resnet18", "tiny").replace("fcn8s", "fcn2s")
        quick = read_recipe(recipe, {"model": model, "steps": 2, "batch_size": 2, "precision": "fp32"})
        out = train.fit(quick, f"folder:{street}", tmp_path / recipe, quiet=True)
        assert len(fc.load(out / "last").streams) == streams
        data = open_dataset(f"folder:{street}", "val", inputs=fc.Predictor(fc.load(out / "last")).inputs)
        kept = fc.evaluate(fc.Predictor(fc.load(out / "last")), data, keep=out / "evaluation")
        assert {tuple(g["inputs"]) for g in kept.analysis["gallery"]} == {data.inputs[1:]}
        page = write(out).read_text()
        assert page.count(f'alt="{data.inputs[1]}"') == len(kept.analysis["gallery"])


def test_where_a_network_started_is_told_stage_by_stage(street: Path, tmp_path: Path) -> None:
    first = train.fit(
        small(epochs=1, model="fcn4s-tiny", frozen_trunk=True), f"folder:{street}", tmp_path / "a", quiet=True
    )
    second = train.fit(small(epochs=1, init_from=str(first)), f"folder:{street}", tmp_path / "b", quiet=True)
    third = train.fit(small(steps=1, init_from=str(second)), f"folder:{street}", tmp_path / "c", quiet=True)
    assert fc.load(first / "last").origin["frozen_trunk"]
    assert fc.load(third / "last").origin["from"] == ["fcn4s-tiny", "fcn2s-tiny"]
    assert [fc.load(p / "last").origin["length"] for p in (first, third)] == ["1 epochs", "1 steps"]


# ---- cache = "disk" --------------------------------------------------------------------------------------------------


def files(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def decoded(out: Path) -> list[str]:
    return sorted(p.name for p in (out / "cache").glob("*")) if (out / "cache").exists() else []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_the_disk_cache_is_the_run_without_it_and_leaves_nothing(
    workers: int, street: Path, tmp_path: Path
) -> None:
    before, logs = files(street), []
    how = {"surface": {"from": "semantic", "map": {"sky": ["sky"], "rest": "*"}}}
    for cache in ("none", "disk"):
        recipe = small(epochs=2, heads=how, cache=cache, workers=workers if cache == "disk" else 0)
        out = train.fit(recipe, f"folder:{street}", tmp_path / cache, quiet=True)
        logs.append((out / "metrics.jsonl").read_text())
    assert logs[0] == logs[1]
    assert not (tmp_path / "disk" / "cache").exists()
    assert files(street) == before


@pytest.mark.slow
def test_the_disk_cache_is_said_and_waits_for_an_interrupted_run_to_go_on(
    street: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "r"
    assert call(_interrupted, str(street), str(out)) == 130
    made = decoded(out)
    assert len(made) == 4  # a file and its index for each of the two splits
    (out / "cache" / "of-other-data.bin").write_bytes(b"old")
    seen: list[list[str]] = []
    original = checkpointing.log_step

    def looked(*arguments: Any) -> None:
        seen.append(decoded(out))
        original(*arguments)

    checkpointing.log_step = looked
    try:
        train.fit(small(epochs=2, cache="disk"), f"folder:{street}", out, resume=True, quiet=False)
    finally:
        checkpointing.log_step = original
    assert set(map(tuple, seen)) == {tuple(made)}
    assert f"decoded images are kept in {out / 'cache'}" in capsys.readouterr().err
    assert decoded(out) == []


def _interrupted(data: str, out: str) -> None:
    after_step(1, die("SIGINT"))
    train.fit(small(epochs=2, cache="disk"), f"folder:{data}", Path(out), quiet=True)


def test_the_disk_cache_skips_what_cannot_be_read_as_reading_does(tmp_path: Path) -> None:
    data = folder(tmp_path / "data", 6)
    damaged = data / "train" / "images" / "train2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    keys = {"epochs": 2, "on_bad_sample": "skip", "max_bad": 0.5}
    logs = [
        (
            train.fit(small(cache=c, **keys), f"folder:{data}", tmp_path / c, check=False, quiet=True) / "metrics.jsonl"
        ).read_text()
        for c in ("none", "disk")
    ]
    assert logs[0] == logs[1]
    with pytest.raises(DataError, match="train2"):
        train.fit(small(cache="disk"), f"folder:{data}", tmp_path / "fail", check=False, quiet=True)


def test_a_disk_without_room_for_the_cache_is_said_before_it_is_filled(
    street: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(disk, "_free", lambda _where: 10_000)
    with pytest.raises(StorageError, match="its disk has"):
        cached(open_dataset(f"folder:{street}"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    size = sum(s.image.nbytes + sum(v.nbytes for v in s.labels.values()) for s in open_dataset(f"folder:{street}"))
    cached(open_dataset(f"folder:{street}"), tmp_path / "cache")
    made = next((tmp_path / "cache").glob("*.bin")).stat().st_size
    assert size <= made <= size + 64 * 8


def test_a_run_in_the_data_folder_cannot_cache_there(tmp_path: Path) -> None:
    data = folder(tmp_path / "data")
    with pytest.raises(UsageError, match="lies in the data"):
        train.fit(small(cache="disk"), f"folder:{data}", data / "run", quiet=True)


# ---- real photographs ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_both_heads_are_learned_on_real_streets(tmp_path: Path, capsys: Any) -> None:
    shared = os.environ.get("FULLYCONV_SHARED")
    if not shared:
        pytest.skip("FULLYCONV_SHARED is not set: no CamVid")
    data = f"camvid:{shared}/data/camvid/CamVid"
    weights = next(Path(shared, "data", "weights").glob("mobilenet_v2*.pt"))
    keys = {"weights": str(weights), "steps": 30, "batch_size": 4, "crop": [176, 240], "ema": 0.9, "precision": "fp32",
            "val_split": ""}  # fmt: skip
    out = train.fit(read_recipe("camvid-two-heads", keys), data, tmp_path / "run", quiet=True, check=False)
    found = json.loads(printed(capsys, "evaluate", str(out), data, "--json", "--quiet").out)
    floor = {"semantic": 0.10, "geometric": 0.45}
    for head, classes in (("semantic", 11), ("geometric", 3)):
        assert len(found["heads"][head]["per_class"]) == classes
        assert found["heads"][head]["mean_iu"] > floor[head]
    # The same pixels, coarser classes: the second head's truth is the first's, regrouped.
    semantic, geometric = (np.asarray(found["heads"][h]["confusion"]).sum(1) for h in ("semantic", "geometric"))
    assert geometric.tolist() == [semantic[0], semantic[3] + semantic[4], semantic.sum() - semantic[[0, 3, 4]].sum()]
