"""Boundary, calibration and bootstrap figures against slow twins and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fullyconv import metrics
from fullyconv.errors import UsageError
from fullyconv.metrics import boundary


def blobs(seed: int, size: tuple[int, int] = (23, 31), classes: int = 3) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes, (size[0] // 5 + 1, size[1] // 5 + 1))
    return np.kron(coarse, np.ones((5, 5), int))[: size[0], : size[1]].astype(np.uint8)


def slow_dilate(inside: np.ndarray, reach: float) -> np.ndarray:
    rows, columns = np.nonzero(inside)
    out = np.zeros_like(inside)
    for y in range(inside.shape[0]):
        for x in range(inside.shape[1]):
            out[y, x] = bool(((rows - y) ** 2 + (columns - x) ** 2 <= reach * reach).any())
    return out


@pytest.mark.parametrize("reach", [0, 0.9, 1, 1.5, 2, 3.3, 50])
def test_dilation_reaches_exactly_the_pixels_within_the_distance(reach: float) -> None:
    inside = np.random.default_rng(int(reach * 10)).random((13, 17)) < 0.03
    inside[6, 8] = True
    assert (boundary._dilate(inside, reach) == slow_dilate(inside, reach)).all()


@pytest.mark.parametrize("depth", [1, 2, 5, 20])
def test_the_inner_band_is_what_repeated_erosion_takes_away(depth: int) -> None:
    inside = blobs(depth) > 0
    eroded = inside
    for _ in range(depth):
        padded = np.pad(eroded, 1)
        eroded = np.min([padded[y : y + 23, x : x + 31] for y in range(3) for x in range(3)], 0)
    assert (boundary._band(inside, depth) == (inside & ~eroded)).all()


def slow_edge(inside: np.ndarray, valid: np.ndarray) -> np.ndarray:
    out = np.zeros_like(inside)
    for y, x in np.argwhere(inside & valid):
        for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= b < inside.shape[0] and 0 <= a < inside.shape[1] and valid[b, a] and not inside[b, a]:
                out[y, x] = True
    return out


def test_boundary_f_scores_equal_the_slow_twin() -> None:
    for seed in range(8):
        labels, predictions = blobs(seed), blobs(seed)
        predictions[3:9, 4:20] = np.roll(predictions, 2, 1)[3:9, 4:20]
        labels[np.random.default_rng(seed).random(labels.shape) < 0.05] = 255
        reach = 0.05 * math.hypot(23, 31)
        scores = metrics.boundary_f_scores(labels, predictions, 4, tolerance=0.05)
        for k in range(4):
            truth, guess = (slow_edge(m == k, labels != 255) for m in (labels, predictions))
            if not (labels == k).any():
                assert math.isnan(scores[k])
                continue
            precision = (guess & slow_dilate(truth, reach)).sum() / guess.sum() if guess.any() else not truth.any()
            recall = (truth & slow_dilate(guess, reach)).sum() / truth.sum() if truth.any() else not guess.any()
            expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
            assert scores[k] == pytest.approx(expected)


def test_a_shifted_edge_is_forgiven_within_the_tolerance_and_not_beyond() -> None:
    labels, predictions = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    labels[:, 30:], predictions[:, 32:] = 1, 1
    diagonal = math.hypot(40, 60)
    assert metrics.boundary_f_scores(labels, predictions, 2, tolerance=2 / diagonal + 1e-9).tolist() == [1, 1]
    assert metrics.boundary_f_scores(labels, predictions, 2, tolerance=1 / diagonal).tolist() == [0, 0]
    assert metrics.boundary_f_scores(labels, labels, 2).tolist() == [1, 1]
    assert metrics.boundary_f_scores(labels * 0, labels * 0, 2)[0] == 1  # fills the image: no boundary to miss


def test_boundary_iou_of_a_shifted_square_worked_by_hand() -> None:
    labels, predictions = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    labels[2:7, 2:7], predictions[2:7, 3:8] = 1, 1
    counts = metrics.boundary_counts(labels, predictions, 2, thickness=1 / math.hypot(10, 10))
    # Rings of 16 pixels: they share the 4 top and 4 bottom pixels of columns 3..6, less nothing, and no upright side.
    assert counts[1].tolist() == [8, 24]
    assert metrics.boundary_iou(counts)[1] == pytest.approx(1 / 3)
    assert math.isnan(metrics.boundary_iou(np.zeros((1, 2), np.int64))[0])


def test_ignored_pixels_change_no_boundary_figure() -> None:
    labels, predictions = blobs(1), blobs(1)
    labels[10:14, 5:20] = 255
    wrong = predictions.copy()
    wrong[10:14, 5:20] = 2
    for figure in (metrics.boundary_f_scores, metrics.boundary_counts):
        assert np.array_equal(figure(labels, predictions, 3), figure(labels, wrong, 3), equal_nan=True)


def test_the_trimap_is_the_band_around_label_changes_and_its_table_counts_only_that() -> None:
    labels = np.zeros((9, 20), np.uint8)
    labels[:, 10:] = 1
    assert metrics.trimap(labels, 2)[0].nonzero()[0].tolist() == [7, 8, 9, 10, 11, 12]
    predictions = labels.copy()
    predictions[:, 0], predictions[:, 9] = 1, 1  # one error far from the boundary, one at it
    assert metrics.trimap_confusion(labels, predictions, 2, 2).tolist() == [[18, 9], [0, 27]]
    assert not metrics.trimap(np.zeros((5, 5), np.uint8), 3).any()


def test_boundary_figures_refuse_what_is_no_image() -> None:
    with pytest.raises(UsageError, match="H x W"):
        metrics.boundary_f_scores(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), np.uint8), 2)


def test_calibration_worked_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 255])
    predictions = np.array([0, 1, 1, 1, 0])
    confidence = np.array([0.9, 0.9, 0.6, 1.0, 0.1])
    table = metrics.calibration_table(labels, predictions, confidence, bins=10)
    assert table[:, 0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 1]
    assert metrics.expected_calibration_error(table) == pytest.approx((abs(1 - 0.6) + abs(1 - 1.8) + 0) / 4, abs=1e-6)
    assert metrics.expected_calibration_error(table + table) == pytest.approx(metrics.expected_calibration_error(table))
    assert math.isnan(metrics.expected_calibration_error(table * 0))


def test_calibration_equals_the_slow_twin_and_refuses_scores() -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 4, (40, 50)), random.integers(0, 4, (40, 50))
    confidence = random.random((40, 50))
    table = metrics.calibration_table(labels, predictions, confidence)
    error = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            right = (labels == predictions)[inside].mean()
            error += inside.mean() * abs(right - confidence[inside].mean())
    assert metrics.expected_calibration_error(table) == pytest.approx(error)
    with pytest.raises(UsageError, match="probabilities"):
        metrics.calibration_table(labels, predictions, confidence * 3)
    with pytest.raises(UsageError, match="differ in shape"):
        metrics.calibration_table(labels, predictions, confidence[:1])


def tables(seed: int, right: float, count: int = 60) -> np.ndarray:
    random = np.random.default_rng(seed)
    out = np.zeros((count, 3, 3), np.int64)
    for n in range(count):
        labels = random.integers(0, 3, 200)
        predictions = np.where(random.random(200) < right, labels, random.integers(0, 3, 200))
        out[n] = metrics.confusion(labels, predictions, 3, impl="numpy")
    return out


def width(interval: metrics.Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_the_interval_holds_the_value_is_the_same_every_time_and_narrows_with_more_images() -> None:
    stack = tables(0, 0.7, 200)
    interval = metrics.bootstrap(stack, metrics.mean_iu, samples=300)
    assert interval.low < metrics.mean_iu(stack.sum(0)) < interval.high
    assert interval == metrics.bootstrap(stack, metrics.mean_iu, samples=300)
    few = metrics.bootstrap(stack[:20], metrics.mean_iu, samples=300)
    assert width(few) > width(interval)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = metrics.pixel_accuracy(tables(999, 0.7, 2000).sum(0))
    held = 0
    for seed in range(60):
        interval = metrics.bootstrap(tables(seed, 0.7, 30), metrics.pixel_accuracy, samples=200, seed=seed)
        held += interval.low <= truth <= interval.high
    assert 50 <= held <= 60  # 95 % of 60 is 57; the percentile interval of 30 images is a little narrow


def test_paired_bootstrap_tells_a_better_model_and_does_not_tell_equals_apart() -> None:
    worse, better = tables(1, 0.6), tables(2, 0.75)
    won = metrics.paired_bootstrap(worse, better, metrics.mean_iu, samples=200)
    assert won.low > 0
    assert metrics.paired_bootstrap(better, worse, metrics.mean_iu, samples=200).high < 0
    same = metrics.paired_bootstrap(worse, worse, metrics.mean_iu, samples=50)
    assert same.low == same.high == 0


def test_pairing_cancels_what_both_share() -> None:
    random = np.random.default_rng(0)
    hard = [tables(n, float(random.uniform(0.2, 0.95)), 1)[0] for n in range(40)]
    better = [table + np.diag(np.diag(table)) // 20 for table in hard]  # a little better on every image
    won = metrics.paired_bootstrap(hard, better, metrics.pixel_accuracy, samples=200)
    alone = metrics.bootstrap(hard, metrics.pixel_accuracy, samples=200)
    assert won.low > 0
    assert width(won) < width(alone) / 4


def test_bootstrap_refuses_what_it_cannot_pair_or_resample() -> None:
    with pytest.raises(UsageError, match="cannot be paired"):
        metrics.paired_bootstrap(tables(0, 0.5, 3), tables(0, 0.5, 4), metrics.mean_iu)
    with pytest.raises(UsageError, match="M x K x K"):
        metrics.bootstrap(np.zeros((0, 3, 3)), metrics.mean_iu)
    nothing = metrics.bootstrap(np.zeros((2, 3, 3)), metrics.mean_iu, samples=5)
    assert nothing == metrics.Interval(None, None)
