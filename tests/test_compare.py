"""Comparing two results: certain where it is, refused where they measured different things."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullyconv.cli import main
from fullyconv.errors import UsageError
from fullyconv.evaluation.comparison import compare_results, differences
from fullyconv.evaluation.result import ImageTables, Result
from fullyconv.taxonomy import Taxonomy

NAMES = ("sky", "road", "car")


def result(right: float, seed: int = 0, images: int = 40, names: tuple[str, ...] = NAMES, **about: Any) -> Result:
    """A result whose images are right in a share of pixels that varies round `right`; the truth is the same for all."""
    rng, truth_rng = np.random.default_rng(seed), np.random.default_rng(99)
    found = []
    for i in range(images):
        truth = truth_rng.integers(100, 1000, len(names))
        share = np.clip(right + rng.normal(0, 0.02, len(names)), 0, 1)
        table = np.zeros((len(names), len(names)), np.int64)
        for k, t in enumerate(truth):
            table[k, k] = round(t * share[k])
            table[k, (k + 1) % len(names)] = t - table[k, k]
        found.append(ImageTables.of(i, f"image{i}", (30, 40), {"semantic": table}))
    taxonomy = Taxonomy(names)
    data = {"kind": "folder", "name": "d", "split": "val", "fingerprint": "f" * 64, "inputs": ["rgb"], "of": images}
    known = {"data": data, "protocol": "native", "average": "present", **about}
    total = np.stack([f.table("semantic", len(names)) for f in found]).sum(0)
    return Result({"semantic": taxonomy}, {"semantic": total}, found, known)


def test_a_clear_gain_is_certain_and_its_interval_holds_the_difference() -> None:
    found = compare_results(result(0.7), result(0.8, seed=1))
    assert found.verdict.startswith("B beats A by")
    assert found.mean_iu.certain
    assert found.mean_iu.interval.low < found.mean_iu.difference < found.mean_iu.interval.high
    assert all(c.certain and c.difference > 0 for c in found.classes)
    assert compare_results(result(0.8, seed=1), result(0.7)).verdict.startswith("A beats B")


def test_equal_results_cannot_be_told_apart() -> None:
    found = compare_results(result(0.7), result(0.7))
    assert found.mean_iu.difference == 0
    assert not found.mean_iu.certain
    assert "cannot tell" in found.verdict


def test_pairing_finds_what_two_separate_intervals_would_not() -> None:
    """Images differ far more than the two networks do; the same draws for both cancel that."""

    def shifted(gain: float) -> Result:
        base = result(0.5)
        images = []
        for i, image in enumerate(base.per_image):
            right = min(0.95, 0.2 + 0.7 * np.random.default_rng(i).random() + gain)
            table = image.table("semantic", 3)
            for k in range(3):
                total = table[k].sum()
                table[k] = 0
                table[k, k] = round(total * right)
                table[k, (k + 1) % 3] = total - table[k, k]
            images.append(ImageTables.of(i, image.name, image.size, {"semantic": table}))
        return replace(
            base, per_image=images, tables={"semantic": np.stack([m.table("semantic", 3) for m in images]).sum(0)}
        )

    assert compare_results(shifted(0.0), shifted(0.01)).mean_iu.certain


def test_another_way_of_computing_is_compared_and_said() -> None:
    tiled = {"tile": [256, 320], "context": 200, "blended": False}
    a = result(0.7, tta=[], tiling={**tiled, "tile": None}, precision="fp32")
    b = result(0.8, tta=["flip", "scales"], tiling=tiled, precision="fp32")
    found = compare_results(a, b)
    assert found.notes == (
        "The augmentation was none for A and flip and scales for B.",
        "The tile was none for A and 256x320 for B.",
    )
    assert found.to_json()["notes"] == list(found.notes)
    assert compare_results(a, a).notes == ()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"protocol": "resized:520"}, "protocol is native in A and resized:520 in B"),
        ({"average": "all"}, "average is present in A and all in B"),
        ({"names": ("sky", "road", "bus")}, "classes sky, road, car"),
        ({"images": 39}, "A measured 40 images, B 39"),
        ({"data": {"kind": "folder", "split": "test", "fingerprint": "f" * 64}}, "split is val in A and test in B"),
        ({"data": {"kind": "folder", "split": "val", "fingerprint": "0" * 64}}, r"data \(fingerprint\) is ffff"),
    ],
)
def test_results_of_different_things_are_not_compared_and_the_difference_is_named(other: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare_results(result(0.7), result(0.7, **other))
    assert len(differences(result(0.7), result(0.7, **other))) == 1


def test_the_command_prints_a_verdict_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, r in (("a", result(0.7)), ("b", result(0.8, seed=1))):
        (tmp_path / f"{name}.json").write_text(json.dumps(r.to_json()))
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options])
        assert not stop.value.code
    text = capsys.readouterr().out
    assert text.startswith("B beats A")
    value = json.loads(text[text.index("{") :])
    assert value["mean_iu"]["certain"] is True
    assert [c["name"] for c in value["classes"]] == list(NAMES)


def renumbered(one: Result, names: tuple[str, ...], to: tuple[int, ...]) -> Result:
    """`one` as a network counts whose class of our id k is its to[k], one pixel group at a time."""
    images = []
    for image in one.per_image:
        table = np.zeros((len(names), len(names)), np.int64)
        for i, j in np.ndindex(3, 3):
            table[to[i], to[j]] = image.table("semantic", 3)[i, j]
        images.append(ImageTables.of(image.index, image.name, image.size, {"semantic": table}))
    total = np.stack([i.table("semantic", len(names)) for i in images]).sum(0)
    return replace(one, taxonomies={"semantic": Taxonomy(names)}, tables={"semantic": total}, per_image=images)


@pytest.mark.parametrize(
    ("names", "to"), [(("car", "sky", "road"), (1, 2, 0)), (("tree", "road", "sky", "dog", "car"), (2, 1, 4))]
)
def test_results_of_networks_that_number_classes_otherwise_are_compared_class_by_class(
    names: tuple[str, ...], to: tuple[int, ...]
) -> None:
    a, b = result(0.7), result(0.8, seed=1)
    plain = compare_results(a, b)
    for found in (compare_results(a, renumbered(b, names, to)), compare_results(renumbered(a, names, to), b)):
        assert found.mean_iu == plain.mean_iu
        assert {c.name: c for c in found.classes} == {c.name: c for c in plain.classes}
        assert any("matched by name" in note for note in found.notes)


def test_results_that_left_different_pixels_out_are_not_compared() -> None:
    a = result(0.7)
    fewer = renumbered(a, ("car", "sky", "road"), (1, 2, 0))
    fewer.tables["semantic"][0] = 0
    assert "pixels of car, B 0" in str(differences(a, fewer))
