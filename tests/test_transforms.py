"""Paired transforms: image and label move together, labels gain no value, and randomness is the sample's own."""

from __future__ import annotations

import dataclasses

import faults
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv.data.base import Sample
from fullyconv.data.pipeline import transforms
from fullyconv.data.pipeline.batches import stack
from fullyconv.data.pipeline.transforms import (
    Augmentation,
    Draw,
    augment,
    augment_plainly,
    colour_matrix,
    draw_augmentation,
    generator,
)
from fullyconv.errors import DataError, UsageError
from fullyconv.preprocessing import IMAGENET

FILL = IMAGENET.mean_pixel()
IGNORE = {"semantic": 255, "other": 65535}


def sample(seed: int = 0, size: tuple[int, int] = (60, 80)) -> Sample:
    image, label = faults.scene(seed, (96, 128))
    image, label = image[: size[0], : size[1]], label[: size[0], : size[1]]
    return Sample(f"s{seed}", image, {"semantic": label, "other": label.astype(np.uint16) * 300})


augmentations = st.builds(
    Augmentation,
    crop=st.none() | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.1, 0.3), (2.0, 3.0)]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    flip_vertical=st.sampled_from([0.0, 0.5]),
    rotation=st.sampled_from([0.0, 15.0, 180.0]),
    brightness=st.sampled_from([0.0, 0.4]),
    saturation=st.sampled_from([0.0, 1.0]),
)


@given(augmentations, st.integers(0, 2**31), st.sampled_from([(60, 80), (1, 1), (7, 31), (33, 1)]))
@settings(max_examples=150, deadline=None)
def test_no_label_value_appears_and_shapes_agree(a: Augmentation, seed: int, size: tuple[int, int]) -> None:
    before = sample(seed % 5, size)
    after = augment(before, a, generator(0, 0, seed), fill=FILL, ignore=IGNORE)
    for head, label in after.labels.items():
        assert set(np.unique(label)) <= {*np.unique(before.labels[head]), IGNORE[head]}
        assert label.shape == after.image.shape[:2]
        assert label.dtype == before.labels[head].dtype
    assert after.image.dtype == np.uint8
    if a.crop:
        assert after.image.shape == (*a.crop, 3)


def both_ways(before: Sample, a: Augmentation, seed: int) -> tuple[Sample, Sample]:
    fill = [*FILL, 7][: before.image.shape[2]]
    quick = augment(before, a, generator(1, 2, seed), fill=fill, ignore=IGNORE)
    plain = augment_plainly(before, a, generator(1, 2, seed), fill=fill, ignore=IGNORE)
    for head in quick.labels:
        np.testing.assert_array_equal(quick.labels[head], plain.labels[head])
    return quick, plain


@pytest.mark.parametrize("compiled", [True, False])
@given(augmentations, st.integers(0, 2**31), st.sampled_from([(60, 80), (1, 1), (7, 31), (33, 1)]), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_the_quick_way_equals_the_plain_way_to_the_last_bit(
    compiled: bool, a: Augmentation, seed: int, size: tuple[int, int], channels: int
) -> None:
    if compiled:
        pytest.importorskip("numba")
    before = sample(seed % 5, size)
    before = dataclasses.replace(before, image=before.image[..., [0, 1, 2, 0][:channels]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "can_scale", lambda: compiled)
        quick, plain = both_ways(before, dataclasses.replace(a, rotation=0.0), seed)
    np.testing.assert_array_equal(quick.image, plain.image)


@given(augmentations, st.integers(0, 2**31), st.sampled_from([np.uint16, np.float32]))
@settings(max_examples=60, deadline=None)
def test_wide_values_differ_from_the_plain_way_by_rounding_only(a: Augmentation, seed: int, dtype: type) -> None:
    before = sample(seed % 5)
    before = dataclasses.replace(before, image=before.image.astype(dtype) * 100)
    a = dataclasses.replace(a, rotation=0.0, brightness=0.0, saturation=0.0)
    quick, plain = both_ways(before, a, seed)
    assert np.abs(quick.image.astype(float) - plain.image).max() <= 200, "of 25500"


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    a = Augmentation(crop=(32, 32), scale=(0.5, 2), flip=0.5, rotation=10, brightness=0.3)

    def pixels(seed: int, epoch: int, index: int) -> bytes:
        return augment(sample(), a, generator(seed, epoch, index), fill=FILL, ignore=IGNORE).image.tobytes()

    keys = [(s, e, i) for s in range(2) for e in range(3) for i in range(6)]
    first = [pixels(*k) for k in keys]
    assert first == [pixels(*k) for k in reversed(keys)][::-1], "the order of asking does not matter"
    assert len(set(first)) == len(keys), "no two draw the same"


def test_switching_one_change_off_leaves_the_others() -> None:
    both = draw_augmentation(Augmentation(scale=(0.5, 2), flip=0.5, rotation=20), generator(3, 1, 4))
    without = draw_augmentation(Augmentation(flip=0.5, rotation=20), generator(3, 1, 4))
    assert (both.flip, both.angle, both.top) == (without.flip, without.angle, without.top)
    assert without.scale == 1


def square(top: int, left: int, side: int = 21) -> Sample:
    """White on black, the label the same square."""
    label = np.zeros((80, 90), np.uint8)
    label[top : top + side, left : left + side] = 1
    return Sample("square", np.repeat(label[..., None] * 255, 3, axis=-1), {"semantic": label})


def overlap(s: Sample) -> float:
    bright, marked, known = s.image[..., 1] > 127, s.labels["semantic"] == 1, s.labels["semantic"] != 255
    return float((bright & marked & known).sum() / max((bright | marked)[known].sum(), 1))


@pytest.mark.parametrize("rotation", [0.0, 30.0])
def test_image_and_label_stay_aligned(rotation: float) -> None:
    a = Augmentation(crop=(70, 70), scale=(0.6, 2), flip=0.5, flip_vertical=0.5, rotation=rotation)
    rng = np.random.default_rng(0)
    shares = []
    for i in range(200):
        s = augment(square(*rng.integers(5, 50, 2)), a, generator(0, 0, i), fill=(0, 0, 0), ignore=IGNORE)
        if (s.labels["semantic"] == 1).sum() > 300:
            shares.append(overlap(s))
    assert len(shares) > 60
    assert np.mean(shares) >= 0.985
    assert min(shares) >= 0.93


def test_a_label_smoothed_or_moved_by_half_a_pixel_would_be_noticed() -> None:
    """The two tests above can fail: a bilinear label has new values, a shifted one overlaps less."""
    moved = square(20, 20)
    moved = Sample("m", np.roll(moved.image, 1, axis=0), moved.labels)
    assert overlap(moved) < 0.93


def test_nothing_happens_by_default() -> None:
    s = sample()
    out = augment(s, Augmentation(), generator(0, 0, 0), fill=FILL, ignore=IGNORE)
    np.testing.assert_array_equal(out.image, s.image)
    np.testing.assert_array_equal(out.labels["semantic"], s.labels["semantic"])


def test_flips_mirror_and_half_turns_turn() -> None:
    s = sample()
    flipped = augment(s, Augmentation(flip=1.0), generator(0, 0, 0), fill=FILL, ignore=IGNORE)
    np.testing.assert_array_equal(flipped.image, s.image[:, ::-1])
    np.testing.assert_array_equal(flipped.labels["other"], s.labels["other"][:, ::-1])
    both = augment(s, Augmentation(flip=1.0, flip_vertical=1.0), generator(0, 0, 0), fill=FILL, ignore=IGNORE)
    np.testing.assert_array_equal(both.image, s.image[::-1, ::-1])


def test_padding_is_the_mean_colour_and_ignored() -> None:
    a = Augmentation(crop=(100, 120))
    out = augment(sample(), a, generator(0, 0, 1), fill=FILL, ignore=IGNORE)
    padded = out.labels["semantic"] == 255
    assert padded.sum() == 100 * 120 - 60 * 80
    assert (out.image[padded] == np.round(FILL)).all()
    assert (out.labels["other"][padded] == 65535).all()
    turned = augment(sample(), Augmentation(rotation=180), generator(0, 0, 7), fill=FILL, ignore=IGNORE)
    assert (turned.labels["semantic"] == 255).any()


def test_depth_is_taken_from_the_nearest_pixel_and_keeps_its_colours_out() -> None:
    s = sample()
    depth = np.where(s.labels["semantic"] == 1, 0.0, 2500.0).astype(np.float32)[..., None]
    rgbd = Sample("d", np.concatenate([s.image.astype(np.float32), depth], axis=-1), s.labels)
    a = Augmentation(crop=(50, 50), scale=(0.5, 2), rotation=20, brightness=0.5, nearest=(3,))
    for i in range(20):
        out = augment(rgbd, a, generator(0, 0, i), fill=(*FILL, 2500.0), ignore=IGNORE)
        assert set(np.unique(out.image[..., 3])) <= {0.0, 2500.0}
        assert out.image.dtype == np.float32
    wide = Sample("w", (s.image.astype(np.uint16) * 257), s.labels)
    out = augment(wide, Augmentation(scale=(0.5, 2)), generator(0, 0, 3), fill=FILL, ignore=IGNORE)
    assert out.image.dtype == np.uint16


def test_the_colour_matrix_is_saturation_then_contrast_then_brightness() -> None:
    d = Draw(1, 0, False, False, 0, 0, brightness=1.2, contrast=0.7, saturation=0.4)
    pixel, mean = np.array([200.0, 90.0, 30.0]), 110.0
    grey = pixel @ [0.299, 0.587, 0.114]
    expected = 1.2 * (0.7 * (0.4 * pixel + 0.6 * grey - mean) + mean)
    matrix = colour_matrix(d, mean)
    np.testing.assert_allclose(matrix[:, :3] @ pixel + matrix[:, 3], expected)


@pytest.mark.parametrize(
    "wrong",
    [{"crop": (0, 4)}, {"scale": (2, 1)}, {"scale": (0, 1)}, {"rotation": 200}, {"flip": 1.5}, {"brightness": -1}],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Augmentation(**wrong)  # type: ignore[arg-type]


# ---- batches ---------------------------------------------------------------------------------------------------


def test_mixed_sizes_are_padded_with_the_mean_and_ignored() -> None:
    some = [sample(0, (60, 80)), sample(1, (33, 90)), sample(2, (1, 1))]
    images, labels = stack(some, ignore=IGNORE, fill=FILL)
    assert images.shape == (3, 60, 90, 3)
    assert labels["semantic"].shape == (3, 60, 90)
    assert labels["semantic"].dtype == some[0].labels["semantic"].dtype
    for i, s in enumerate(some):
        h, w = s.image.shape[:2]
        np.testing.assert_array_equal(images[i, :h, :w], s.image)
        np.testing.assert_array_equal(labels["other"][i, :h, :w], s.labels["other"])
    assert (labels["semantic"][2].ravel()[1:] == 255).all()
    assert (images[2, 5, 5] == FILL.astype(np.uint8)).all()


def test_a_batch_of_nothing_or_of_unlike_images_is_refused_in_the_same_words_whatever_comes_first() -> None:
    with pytest.raises(DataError, match="empty"):
        stack([], ignore=IGNORE, fill=FILL)
    one = sample()
    ids = one.labels["semantic"]
    grey = Sample("grey", one.image[..., :1], one.labels)
    wide = Sample("wide", one.image.astype(np.uint16), one.labels)
    deep = Sample("deep", one.image, {**one.labels, "semantic": ids.astype(np.uint16)})
    for other, words in ((grey, "1 bands of uint8"), (wide, "3 of uint16"), (deep, "semantic label .* that of deep")):
        answer = set()
        for some in ([one, other], [other, one], [one, one, other]):
            with pytest.raises(DataError, match=words) as error:
                stack(some, ignore=IGNORE, fill=FILL)
            answer.add(str(error.value))
        assert len(answer) == 1
        assert one.name in answer.pop()
