"""Focal, dice, Tversky and Lovász losses from coarse scores are their definitions on full scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import ops
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.ops import chunked

LOSSES: dict[str, Any] = {
    "focal": ops.upsample_focal,
    "dice": ops.upsample_dice,
    "tversky": ops.upsample_tversky,
    "lovasz": ops.upsample_lovasz,
}


def case(seed: int, classes: int = 4, size: tuple[int, int] = (13, 19), ignore: int = 255) -> tuple[Any, Any]:
    make = torch.Generator().manual_seed(seed)
    scores = torch.randn((2, classes, 3, 4), generator=make, dtype=torch.float64) * 2
    labels = torch.randint(0, classes - 1, (2, *size), generator=make)  # the last class never occurs
    return scores, labels.masked_fill(torch.rand(labels.shape, generator=make) < 0.3, ignore)


def both(loss: str, scores: Any, labels: Any, impl: str | None, **options: Any) -> tuple[Any, Any]:
    leaf = scores.clone().requires_grad_()
    value = LOSSES[loss](leaf, labels, 6, 2, impl=impl, **options)
    (value * 1.5).backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.sampled_from(["fade", "replicate"]), st.sampled_from([255, -100, 0]))
def test_strips_give_the_definition_and_its_gradient(loss: str, seed: int, weighted: bool, border: str, ignore: int):
    scores, labels = case(seed, ignore=ignore)
    weight = torch.tensor([0.5, 0.0, 2.0, 1.0]) if weighted else None
    options = {"border": border, "ignore": ignore, "weight": weight}
    found, expected = (both(loss, scores, labels, impl, **options) for impl in (None, "reference"))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_many_small_strips_give_what_one_gives(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = case(5)
    whole = both(loss, scores, labels, None)
    monkeypatch.setattr(chunked, "CPU_BUDGET", 64)
    torch.testing.assert_close(both(loss, scores, labels, None), whole)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_labels_of_any_integer_type_and_half_scores_are_taken(loss: str, dtype: Any) -> None:
    scores, labels = case(6)
    expected = both(loss, scores.bfloat16().float(), labels, "reference")[0]
    found = LOSSES[loss](scores.bfloat16(), labels.to(torch.int32).to(dtype), 6, 2)
    torch.testing.assert_close(found, expected)


def test_focal_without_gamma_is_the_cross_entropy() -> None:
    scores, labels = case(1)
    weight = torch.tensor([0.5, 1.0, 2.0, 1.0])
    for how in ("mean", "sum"):
        options = {"gamma": 0.0, "weight": weight, "reduction": how}
        torch.testing.assert_close(
            both("focal", scores, labels, None, **options)[0],
            ops.upsample_cross_entropy(scores, labels, 6, 2, weight=weight, reduction=how),  # type: ignore[arg-type]
        )


def test_dice_is_the_formula_of_its_name() -> None:
    scores, labels = case(2)
    p = ops.upsample(scores, (13, 19), 6, 2).softmax(1).permute(0, 2, 3, 1)[labels != 255]
    t = F.one_hot(labels[labels != 255], 4)
    dice = 2 * (p * t).sum(0) / (p + t).sum(0)
    torch.testing.assert_close(ops.upsample_dice(scores, labels, 6, 2), 1 - dice[:3].mean())


def test_lovasz_of_sure_scores_is_one_less_the_mean_iu() -> None:
    truth = torch.randint(0, 3, (1, 12, 12), generator=torch.Generator().manual_seed(0))
    predicted = torch.randint(0, 3, (1, 12, 12), generator=torch.Generator().manual_seed(1))
    scores = F.one_hot(predicted, 3).permute(0, 3, 1, 2).double() * 200
    iu = [float(((predicted == k) & (truth == k)).sum() / ((predicted == k) | (truth == k)).sum()) for k in range(3)]
    assert float(ops.upsample_lovasz(scores, truth, 1, 0)) == pytest.approx(1 - sum(iu) / 3)


@pytest.mark.parametrize("loss", ["dice", "tversky", "lovasz"])
def test_losses_of_regions_are_zero_for_right_and_one_for_wrong_answers(loss: str) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :, 4:] = 1
    right = F.one_hot(labels, 2).permute(0, 3, 1, 2).double() * 200
    assert float(LOSSES[loss](right, labels, 1, 0)) == pytest.approx(0, abs=1e-9)
    assert float(LOSSES[loss](-right, labels, 1, 0)) == pytest.approx(1)


def test_beta_makes_missed_pixels_dearer_than_false_ones() -> None:
    labels = torch.zeros(1, 10, 10, dtype=torch.int64)
    labels[:, :5] = 1
    few, many = labels.clone(), labels.clone()
    few[:, 3:5], many[:, 5:7] = 0, 1
    only = torch.tensor([0.0, 1.0])

    def loss(predicted: Any, beta: float) -> float:
        scores = F.one_hot(predicted, 2).permute(0, 3, 1, 2).double() * 200
        return float(ops.upsample_tversky(scores, labels, 1, 0, alpha=1 - beta, beta=beta, weight=only))

    assert loss(few, 0.9) > loss(many, 0.9)
    assert loss(few, 0.1) < loss(many, 0.1)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_labelled_and_classes_without_weight_are_zero_without_gradient(loss: str) -> None:
    scores, labels = case(3)
    for label, weight in ((torch.full_like(labels, 255), None), (labels, torch.tensor([0.0, 0.0, 0.0, 1.0]))):
        for impl in (None, "reference"):
            value, gradient = both(loss, scores, label, impl, weight=weight)
            assert float(value) == 0, impl
            assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_so_sure_that_softmax_is_one_have_finite_gradients(loss: str) -> None:
    scores, labels = case(4)
    value, gradient = both(loss, (scores * 500).float(), labels, None)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


def test_wrong_options_and_labels_are_refused_in_words() -> None:
    scores, labels = case(0)
    for call, words in (
        (lambda: ops.upsample_focal(scores, labels, 6, 2, gamma=-1), "gamma is -1"),
        (lambda: ops.upsample_tversky(scores, labels, 6, 2, alpha=0), "alpha and beta are 0 and 0.7"),
        (lambda: ops.upsample_dice(scores, labels, 6, 2, weight=torch.ones(3)), "4 classes"),
    ):
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.raises(UnknownName, match="numba"):
        ops.upsample_lovasz(scores, labels, 6, 2, impl="numba")
    with pytest.raises(DataError, match="Label 9"):
        ops.upsample_dice(scores, labels.masked_fill(labels == 1, 9), 6, 2)
