"""Turns, elastic, blur, noise, JPEG, pasted regions, transforms of one's own: paired, seeded, each its definition."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tools import fit, images, outcome, small

from fullyconv.data.base import Sample
from fullyconv.data.pipeline import effects as effects_module
from fullyconv.data.pipeline.effects import (
    Effects,
    after_crop,
    before_crop,
    bent,
    bent_plainly,
    blurred,
    effects_generator,
    shifts,
)
from fullyconv.data.pipeline.own import TRANSFORMS, changed_by, find_transform
from fullyconv.data.pipeline.pasting import donor, pasted, rare_classes
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError

FILL = [104.0, 117.0, 123.0]
IGNORE = {"semantic": 255, "other": 65535}
ALL = Effects(turns=0.5, elastic=8, blur=2, noise=0.2, jpeg=0.5)


def sample(seed: int = 0, size: tuple[int, int] = (60, 80)) -> Sample:
    image, label = (a[: size[0], : size[1]] for a in faults.scene(seed, (96, 128)))
    return Sample(f"s{seed}", image, {"semantic": label, "other": label.astype(np.uint16) * 300})


def changed(before: Sample, effects: Effects, seed: int) -> Sample:
    rng = effects_generator(0, 0, seed)
    return after_crop(before_crop(before, effects, rng), effects, rng, fill=FILL, ignore=IGNORE)


effects_drawn = st.builds(
    Effects,
    turns=st.sampled_from([0.0, 0.5, 1.0]),
    elastic=st.sampled_from([0.0, 1.0, 16.0]),
    blur=st.sampled_from([0.0, 3.0]),
    noise=st.sampled_from([0.0, 0.5]),
    jpeg=st.sampled_from([0.0, 1.0]),
)


@given(effects_drawn, st.integers(0, 999), st.sampled_from([(60, 80), (1, 1), (7, 31), (65, 64)]))
@settings(max_examples=60, deadline=None)
def test_no_label_value_appears_and_types_and_sizes_agree(e: Effects, seed: int, size: tuple[int, int]) -> None:
    before = sample(seed % 5, size)
    after = changed(before, e, seed)
    assert sorted(after.image.shape) == sorted(before.image.shape)
    assert after.image.dtype == np.uint8
    for head, label in after.labels.items():
        assert set(np.unique(label)) <= {*np.unique(before.labels[head]), IGNORE[head]}
        assert label.shape == after.image.shape[:2]
        assert label.dtype == before.labels[head].dtype


def test_nothing_happens_by_default_and_the_same_numbers_give_the_same_bytes() -> None:
    before = sample()
    same = changed(before, Effects(), 3)
    assert np.array_equal(same.image, before.image)
    assert all(np.array_equal(same.labels[h], before.labels[h]) for h in IGNORE)
    one, two, other = (changed(before, ALL, seed) for seed in (7, 7, 8))
    assert np.array_equal(one.image, two.image)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("off", ["elastic", "blur", "noise", "jpeg", "turns"])
def test_switching_one_off_leaves_the_others_as_they_were(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    for name in ("bent", "blurred", "_noisy", "_compressed"):
        real = getattr(effects_module, name)

        def spy(image: Any, what: Any, *rest: Any, name: str = name, real: Any = real) -> Any:
            seen.append((name, what if np.isscalar(what) else what.tolist()))
            return real(image, what, *rest)

        monkeypatch.setattr(effects_module, name, spy)
    own = {"elastic": "bent", "blur": "blurred", "noise": "_noisy", "jpeg": "_compressed", "turns": ""}[off]
    for seed in range(6):
        seen.clear()
        changed(sample(0, (64, 64)), ALL, seed)
        with_it = [s for s in seen if s[0] != own]
        seen.clear()
        changed(sample(0, (64, 64)), dataclasses.replace(ALL, **{off: 0}), seed)
        assert seen == with_it


@pytest.mark.parametrize(("seed", "size"), [(0, (30, 40)), (1, (1, 1)), (2, (70, 20)), (3, (9, 66))])
def test_the_bent_image_is_its_slow_twin(seed: int, size: tuple[int, int]) -> None:
    before = sample(seed % 5, size)
    moved = shifts(size, 9, np.random.default_rng(seed))
    quick, plain = (f(before.image, moved, FILL, (1,)) for f in (bent, bent_plainly))
    differ = np.abs(quick.astype(int) - plain)
    assert differ.max() <= 1
    assert (differ > 0).mean() < 0.02  # halves rounded the other way
    label = before.labels["other"][..., None]
    assert np.array_equal(*(f(label, moved, [65535], (0,)) for f in (bent, bent_plainly)))


def test_image_and_labels_bend_and_turn_together() -> None:
    before = sample()
    label = before.labels["semantic"]
    image = np.repeat(label[..., None], 3, 2)
    rng = effects_generator(0, 0, 1)
    e = Effects(turns=1, elastic=12, nearest=(0, 1, 2))
    turned = before_crop(Sample("s", image, {"semantic": label}), e, rng)
    after = after_crop(turned, e, rng, fill=[255] * 3, ignore=IGNORE)
    assert after.image.shape[:2] in ((80, 60), (60, 80))
    assert np.array_equal(after.image[..., 0], after.labels["semantic"])
    assert not np.array_equal(after.labels["semantic"], turned.labels["semantic"])


def test_every_quarter_turn_comes_and_as_often_as_was_asked() -> None:
    before = sample(0, (40, 40))
    turned = [
        before_crop(before, Effects(turns=0.6), effects_generator(0, 0, i)).labels["semantic"] for i in range(300)
    ]
    counts = [sum(np.array_equal(t, np.rot90(before.labels["semantic"], q)) for t in turned) for q in range(4)]
    assert sum(counts) == 300
    assert 90 < counts[0] < 150
    assert min(counts[1:]) > 35


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_blur_is_a_gaussian(dtype: Any) -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    image = (np.random.default_rng(0).random((40, 30, 2)) * 250).astype(dtype)
    exact = scipy.gaussian_filter(image.astype(np.float64), (1.7, 1.7, 0), mode="nearest", truncate=4)
    assert np.abs(blurred(image, 1.7) - exact).max() <= (1e-3 if dtype is np.float32 else 0.51)


def test_noise_is_as_strong_as_was_asked_and_leaves_depth_alone() -> None:
    image = np.random.default_rng(1).normal(1000, 50, (80, 90, 3)).astype(np.float32)
    before = Sample("s", image, {"semantic": np.zeros((80, 90), np.uint8)})
    found = []
    for i in range(60):
        after = changed(before, Effects(noise=0.5, colour=0, nearest=(2,)), i)
        assert np.array_equal(after.image[..., 2], image[..., 2])
        found.append(float((after.image - image)[..., :2].std()) / float(image.std()))
    assert 15 <= sum(f == 0 for f in found) <= 45
    assert 0.35 < max(found) < 0.52


def test_jpeg_changes_colours_a_little_and_what_cannot_be_one_is_refused() -> None:
    before = sample()
    after = changed(before, Effects(jpeg=1), 0).image.astype(int) - before.image
    assert 0 < np.abs(after).mean() < 20
    Effects(jpeg=1, colour=0).refuse(before.image[..., :1])
    with pytest.raises(UsageError, match="3 bands of uint16"):
        Effects(jpeg=1).refuse(before.image.astype(np.uint16))
    with pytest.raises(UsageError, match="elastic is 40"):
        Effects(elastic=40)


# ---- pasted regions ----


def test_the_rarer_half_of_the_classes_and_where_they_are() -> None:
    rare = rare_classes(images(9))
    assert rare.head == "semantic"
    assert len(rare.where) == 1
    assert next(iter(rare.where)) in (1, 2)
    drawn = {donor(rare, np.random.default_rng(i)) for i in range(60)}
    assert {k for k, _ in drawn} == set(rare.where)
    assert {i for _, i in drawn} <= set(next(iter(rare.where.values())))


@given(st.integers(0, 999), st.sampled_from([(60, 80), (9, 11), (2, 2)]))
@settings(max_examples=40, deadline=None)
def test_a_pasted_region_brings_its_class_with_its_own_pixels(seed: int, size: tuple[int, int]) -> None:
    below, other = sample(seed % 5, size), sample(seed % 7 + 5)
    other.labels["semantic"][:] = np.minimum(other.labels["semantic"], 8)
    other.labels["semantic"][30:36, 50:58] = 9
    seen: list[Sample] = []
    after = pasted(below, other, 9, "semantic", lambda s: seen.append(s) or s, np.random.default_rng(seed))  # type: ignore[func-returns-value]
    assert 9 in after.labels["semantic"]
    changed_rows, changed_columns = np.nonzero((after.image != below.image).any(-1))
    for a, side in enumerate(size):
        assert seen[0].image.shape[a] <= max(1, side // 2)
        found = (changed_rows, changed_columns)[a]
        assert not len(found) or np.ptp(found) < max(1, side // 2)
    place = after.labels["semantic"] == 9
    assert {tuple(p) for p in after.image[place]} <= {tuple(p) for p in other.image[30:36, 50:58].reshape(-1, 3)}
    assert np.array_equal(
        pasted(below, other, 77, "semantic", lambda s: s, np.random.default_rng(0)).image, below.image
    )


# ---- one's own ----


OWN = """
import numpy as np
def darker(image, labels, rng):
    return (image * rng.uniform(0.5, 1)).astype(image.dtype), labels
def wrong(image, labels, rng):
    return image[:-1], labels
def broken(image, labels, rng):
    return image / nothing, labels
"""


def test_a_transform_is_found_by_its_file_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    name, before = f"{tmp_path}/mine.py:darker", sample()
    after = changed_by(find_transform(name), name, before, np.random.default_rng(0))
    assert after.image.mean() < before.image.mean()
    monkeypatch.setitem(TRANSFORMS, "same", lambda image, labels, rng: (image, labels))
    assert np.array_equal(
        changed_by(find_transform("same"), "same", before, np.random.default_rng(0)).image, before.image
    )
    for function, words in (("wrong", "labels .60, 80. of uint8"), ("broken", "NameError")):
        name = f"{tmp_path}/mine.py:{function}"
        with pytest.raises(DataError, match=words):
            changed_by(find_transform(name), name, before, np.random.default_rng(0))
    with pytest.raises(UnknownName, match="darker"):
        find_transform(f"{tmp_path}/mine.py:darkr")
    with pytest.raises(MissingInput):
        find_transform("nowhere.py:f")
    with pytest.raises(UnknownName, match=r"FILE\.py:FUNCTION"):
        find_transform("something quite else")


def test_a_file_that_cannot_be_run_is_told_before_the_run_begins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UsageError, match="ModuleNotFoundError"):
        fit(small(transform=f"{tmp_path}/mine.py:f"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_code_of_its_transform_and_goes_on_with_no_other(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    keys = {"transform": f"{file}:darker", "schedule": "constant", "crop": (32, 32), "batch_size": 2}
    run = fit(small(steps=1, **keys), tmp_path / "run")
    assert (run / "transform.py").read_text() == OWN
    file.write_text(OWN.replace("0.5", "0.9"))
    with pytest.raises(UsageError, match=r"transform is not .* transform\.py\); .*--allow-changed transform"):
        fit(small(steps=2, **keys), run, resume=True)
    assert (run / "transform.py").read_text() == OWN
    fit(small(steps=2, **keys), run, resume=True, allow=["transform"])
    assert (run / "transform.py").read_text() == file.read_text()


@pytest.mark.slow
def test_a_resumed_run_with_every_effect_is_the_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    keys = {"flip_vertical": 0.5, "turns": 0.5, "elastic": 3.0, "blur": 1.0, "noise": 0.2, "jpeg": 0.5, "cutmix": 0.5}
    keys |= {"transform": f"{tmp_path}/mine.py:darker", "schedule": "constant"}
    fit(small(steps=6, **keys), tmp_path / "whole")
    fit(small(steps=3, **keys), tmp_path / "parts")
    fit(small(steps=6, **keys), tmp_path / "parts", resume=True)
    one, two = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert one["last model.safetensors"] == two["last model.safetensors"]
    fit(small(steps=6, **(keys | {"cutmix": 0.0})), tmp_path / "without")
    assert outcome(tmp_path / "without")["last model.safetensors"] != one["last model.safetensors"]
