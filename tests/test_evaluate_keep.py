"""A kept evaluation: its tallies against slow definitions, its regions, its gallery, its intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import SIZES, TWO, dataset
from test_predict import Tiny

from fullyconv import metrics
from fullyconv.errors import UsageError
from fullyconv.evaluation import Result, evaluate
from fullyconv.evaluation.evaluation_writer import context_window, find_suspect, typical
from fullyconv.evaluation.pixel_statistics import BAND, BINS, RINGS, THICKNESS, PixelStatistics
from fullyconv.evaluation.statistics import costly_pairs, counts, image_iu, interval, resample
from fullyconv.images import read_image, read_label
from fullyconv.predict import Predictor
from fullyconv.regions import border_band, bounding_box, components


def flood(labels: np.ndarray) -> np.ndarray:
    """4-connected regions, one pixel at a time, numbered in reading order."""
    region = np.full(labels.shape, -1)
    count = 0
    for seed in np.ndindex(*labels.shape):
        if region[seed] >= 0:
            continue
        stack = [seed]
        region[seed] = count
        while stack:
            y, x = stack.pop()
            for v, u in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]
                if inside and region[v, u] < 0 and labels[v, u] == labels[y, x]:
                    region[v, u] = count
                    stack.append((v, u))
        count += 1
    return region


@pytest.mark.parametrize("seed", range(30))
def test_components_are_those_of_flood_filling(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(2, 4), (rng.integers(1, 24), rng.integers(1, 24)))
    region, count = components(labels)
    np.testing.assert_array_equal(region, flood(labels))
    assert count == region.max() + 1


def test_a_spiral_is_one_region() -> None:
    spiral = np.zeros((21, 21), int)
    for r in range(0, 10, 2):
        spiral[r, r : 21 - r] = spiral[20 - r, r : 21 - r] = spiral[r : 21 - r, 20 - r] = 1
        spiral[r + 2 : 21 - r, r] = 1
        spiral[r + 2, r : r + 3] = 1
    np.testing.assert_array_equal(components(spiral)[0], flood(spiral))


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_the_border_band_is_where_the_neighbourhood_holds_two_values(radius: int) -> None:
    labels = np.random.default_rng(radius).integers(0, 2, (5, 7)).repeat(3, 0).repeat(4, 1)
    band = border_band(labels, radius)
    for y, x in np.ndindex(*labels.shape):
        near = labels[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        if band[y, x]:
            assert near.min() != near.max()
        else:  # the square may hold a step only in its corners, which the band leaves out
            inner = labels[max(0, y - radius) : y + radius + 1, x], labels[y, max(0, x - radius) : x + radius + 1]
            assert all(line.min() == line.max() for line in inner)


def test_tallies_count_borders_sizes_and_calibration_like_their_definitions() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (6, 8)).repeat(5, 0).repeat(5, 1).astype(np.uint8)
    label[:3] = 255
    predicted = np.where(rng.random(label.shape) < 0.3, rng.integers(0, 3, label.shape), label % 3).astype(np.uint8)
    confidence = rng.random(label.shape).astype(np.float32)
    tallies = PixelStatistics(3)
    tallies.add(label, predicted, confidence, 255)
    valid, wrong = label != 255, label != predicted
    assert tallies.band.sum() == valid.sum()
    assert tallies.band[:, :, 1].sum() == (wrong & valid).sum()
    region = flood(label)
    kept = [r for r in range(region.max() + 1) if valid[region == r].all()]
    assert tallies.sizes[:, 0].sum() == len(kept)
    assert tallies.sizes[:, 1].sum() == valid.sum()
    assert tallies.sizes[:, 2].sum() == (wrong & valid).sum()
    assert tallies.sizes[:, 3].sum() == sum(wrong[region == r].mean() <= 0.5 for r in kept)
    error = 0.0
    for b in range(BINS):
        here = valid & (np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1) == b)
        if here.any():
            error += here.sum() / valid.sum() * abs((~wrong[here]).mean() - confidence[here].mean())
    assert tallies.to_json()["calibration"]["error"] == pytest.approx(error, abs=1e-5)
    border = tallies.to_json()["border"]
    scores = metrics.boundary_f_scores(label, predicted, 3, 255, BAND)
    assert border["f_scores"] == pytest.approx(scores.tolist())
    assert border["f_score"] == pytest.approx(scores.mean())
    ratios = metrics.boundary_iou(metrics.boundary_counts(label, predicted, 3, 255, THICKNESS))
    assert border["ious"] == pytest.approx(ratios.tolist())
    assert border["iou"] == pytest.approx(ratios.mean())


def test_rings_add_up_to_trimaps_of_every_width() -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, (4, 5)).repeat(12, 0).repeat(15, 1).astype(np.uint8)
    label[:3] = 255
    predicted = np.where(rng.random(label.shape) < 0.3, 1, label).astype(np.uint8)
    tallies = PixelStatistics(3)
    for _ in range(2):
        tallies.add(label, predicted, np.ones(label.shape, np.float32), 255)
    for count, width in enumerate(RINGS, 1):
        table = metrics.trimap_confusion(label, predicted, 3, width)
        pixels, wrong = tallies.rings[:count].sum(0)
        assert (pixels, wrong) == (2 * table.sum(), 2 * (table.sum() - np.trace(table)))
    assert tallies.rings[:, 0].sum() == 2 * (label != 255).sum()


def test_a_class_without_a_labelled_pixel_has_no_boundary_figures_and_enters_no_mean() -> None:
    label, predicted = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    label[:, 15:], predicted[:, 15:] = 1, 1
    predicted[:, :3] = 2
    tallies = PixelStatistics(4)
    tallies.add(label, predicted, np.ones(label.shape, np.float32), 255)
    border = tallies.to_json()["border"]
    for figures in (border["f_scores"], border["ious"]):
        assert [v is None for v in figures] == [False, False, True, True]
    assert border["iou"] == pytest.approx(sum(border["ious"][:2]) / 2)
    assert PixelStatistics(2).to_json()["border"]["iou"] is None


def test_a_kept_evaluation_is_the_plain_one_with_images(tmp_path: Path) -> None:
    predictor, data = Predictor(Tiny({"semantic": 3, "geometric": 2})), dataset(tmp_path, taxonomies=TWO)
    kept = evaluate(predictor, data, keep=tmp_path / "out")
    plain = evaluate(predictor, data)
    np.testing.assert_array_equal(kept.confusion, plain.confusion)
    loaded = Result.load(tmp_path / "out")
    assert loaded.to_json() == json.loads(json.dumps(kept.to_json()))
    for sample in data:
        predicted = predictor.labels(sample.image)
        np.testing.assert_array_equal(
            read_label(tmp_path / "out/predictions" / f"{sample.name}.png"), predicted["semantic"]
        )
        other = read_label(tmp_path / "out/predictions-geometric" / f"{sample.name}.png")
        np.testing.assert_array_equal(other, predicted["geometric"])
    assert {g["name"] for g in loaded.analysis["gallery"]} == {s.name for s in data}
    for entry in [*loaded.analysis["gallery"], *loaded.analysis["pairs"]]:
        sizes = {read_image(tmp_path / "out" / f).shape[:2] for f in entry["files"].values()}
        assert len(sizes) == 1
    assert loaded.analysis["pairs"], "a random network confuses something"


def test_an_evaluation_kept_at_another_size_shows_what_was_scored(tmp_path: Path) -> None:
    kept = evaluate(Predictor(Tiny()), dataset(tmp_path), protocol="resized:10", keep=tmp_path / "out")
    for image, entry in zip(kept.per_image, sorted(kept.analysis["gallery"], key=lambda g: g["name"]), strict=True):
        assert read_label(tmp_path / "out" / entry["files"]["label"]).shape == image.size


def test_a_shared_evaluation_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one process"):
        evaluate(Predictor(Tiny()), dataset(tmp_path), share=(0, 2), keep=tmp_path / "out")


def test_typical_images_are_ranked_by_their_own_iu_and_none_is_shown_twice(tmp_path: Path) -> None:
    result = evaluate(Predictor(Tiny()), dataset(tmp_path, SIZES * 4))
    shown = typical(result)
    assert [why for why, _ in shown] == ["worst"] * 6 + ["median"] * 3 + ["best"] * 3
    assert len({i for _, i in shown}) == 12
    figures = [image_iu(i.table("semantic", 3)) for i in result.per_image]
    assert max(figures[i] for why, i in shown if why == "worst") <= min(figures[i] for w, i in shown if w == "best")
    assert image_iu(np.zeros((3, 3), np.int64)) is None


def test_a_sure_contradiction_is_a_suspect_and_a_doubtful_one_is_not() -> None:
    label = np.zeros((40, 60), np.uint8)
    predicted = label.copy()
    predicted[10:20, 30:45] = 2
    confidence = np.full(label.shape, 0.99, np.float32)
    found = find_suspect(7, label, predicted, confidence, 255)
    assert found is not None
    assert (found.window, found.labelled, found.said, found.pixels) == ((10, 30, 20, 45), 0, 2, 150)
    assert find_suspect(7, label, predicted, confidence * 0.8, 255) is None
    assert find_suspect(7, np.full_like(label, 255), predicted, confidence, 255) is None


def test_windows_stay_inside_the_image_and_around_their_region() -> None:
    for window in [(0, 0, 2, 2), (350, 470, 360, 480), (10, 10, 300, 30)]:
        top, left, bottom, right = context_window(window, (360, 480))
        assert 0 <= top <= window[0] < window[2] <= bottom <= 360
        assert 0 <= left <= window[1] < window[3] <= right <= 480
    assert context_window((0, 0, 5, 5), (20, 30)) == (0, 0, 20, 30)
    assert bounding_box(np.eye(5, dtype=bool)[1:4]) == (0, 1, 3, 4)


def test_the_counts_of_images_add_up_to_the_table(tmp_path: Path) -> None:
    result = evaluate(Predictor(Tiny()), dataset(tmp_path))
    c = counts(result)
    np.testing.assert_array_equal(c.hit.sum(0), np.diag(result.confusion))
    np.testing.assert_array_equal(c.truth.sum(0), result.confusion.sum(1))
    np.testing.assert_array_equal(c.predicted.sum(0), result.confusion.sum(0))


def test_bootstrap_intervals_hold_the_figure_and_shrink_with_images(tmp_path: Path) -> None:
    widths = []
    for times in (2, 20):
        result = evaluate(Predictor(Tiny()), dataset(tmp_path, SIZES * times))
        drawn = resample([counts(result)])[0]
        found = interval(drawn.mean_iu)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= result.mean_iu <= found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]
    assert interval(np.array([np.nan])).low is None


@pytest.mark.parametrize("average", ["present", "all"])
def test_figures_resampled_at_once_are_those_of_tables_resampled_one_by_one(tmp_path: Path, average: str) -> None:
    result = evaluate(Predictor(Tiny()), dataset(tmp_path, SIZES * 3), average=average)
    tables = [i.table(result.head, len(result.taxonomy)) for i in result.per_image]
    quick = resample([counts(result)], average)[0]
    slow = metrics.bootstrap(tables, metrics.pixel_accuracy)
    found = interval(quick.pixel_accuracy)
    assert (found.low, found.high) == (pytest.approx(slow.low), pytest.approx(slow.high))
    weights = metrics.draws(len(tables))
    for b in (0, 1, 500, 999):
        table = np.tensordot(weights[b], np.stack(tables), 1)
        assert quick.pixel_accuracy[b] == pytest.approx(metrics.pixel_accuracy(table))
        ratio = metrics.per_class(table).iu
        held = ~np.isnan(ratio) & ((result.confusion.sum(1) > 0) | (average == "all"))
        assert quick.mean_iu[b] == pytest.approx(ratio[held].mean())
        assert quick.mean_accuracy[b] == pytest.approx(metrics.mean_accuracy(table))
        assert quick.frequency_weighted_iu[b] == pytest.approx(metrics.frequency_weighted_iu(table))


def test_the_cost_of_a_pair_is_what_mending_it_gains() -> None:
    rng = np.random.default_rng(0)
    table = rng.integers(0, 50, (5, 5))
    table[3] = 0  # never labelled, though predicted

    def mean_iu(t: np.ndarray) -> float:
        union = t.sum(1) + t.sum(0) - np.diag(t)
        return float((np.diag(t) / union)[[0, 1, 2, 4]].mean())

    pairs = costly_pairs(table)
    assert [p.cost for p in pairs] == sorted((p.cost for p in pairs), reverse=True)
    for p in pairs:
        mended = table.copy()
        mended[p.truth, p.truth] += mended[p.truth, p.said]
        mended[p.truth, p.said] = 0
        assert p.cost == pytest.approx(mean_iu(mended) - mean_iu(table))
        assert p.share == pytest.approx(table[p.truth, p.said] / table[p.truth].sum())
