"""The confusion table equals a slow twin to the last integer, and the figures are what their definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fullyconv import metrics
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.metrics import counting

IMPLEMENTATIONS = ("numba", "numpy", "torch")


def slow_table(labels: np.ndarray, predictions: np.ndarray, classes: int, ignore: int) -> np.ndarray:
    table = np.zeros((classes, classes), np.int64)
    for t, p in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if t != ignore:
            table[t, p] += 1
    return table


def slow_figures(table: np.ndarray) -> tuple[float, float, float, float]:
    """The paper's four figures with Python's integers, over the classes present in the truth."""
    n = table.tolist()
    classes = range(len(n))
    t = [sum(row) for row in n]
    p = [sum(n[i][j] for i in classes) for j in classes]
    present = [i for i in classes if t[i]]
    iu = {i: n[i][i] / (t[i] + p[i] - n[i][i]) for i in present}
    return (
        sum(n[i][i] for i in classes) / sum(t),
        sum(n[i][i] / t[i] for i in present) / len(present),
        sum(iu.values()) / len(present),
        sum(t[i] * iu[i] for i in present) / sum(t),
    )


def case(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Labels, predictions, K, ignore: any rank, few or many classes, some absent, some pixels ignored."""
    classes = int(random.choice([1, 2, 3, 21, 150, 254, 255, 256, 257, 1000]))
    ignore = 255 if classes <= 255 else 65535
    if random.random() < 0.1:
        ignore = int(random.integers(0, classes))
    wide = classes > 255 or ignore > 255
    kind = random.choice(["uint16", "int64", "int32"] if wide else ["uint8", "uint8", "uint16", "int64"])
    shape = [(), (7,), (3, 5), (2, 3, 4), (0, 4)][random.integers(0, 5)]
    few = random.permutation(classes)[: random.integers(1, min(classes, 9) + 1)]
    labels, predictions = random.choice(few, shape).astype(kind), random.choice(few, shape).astype(kind)
    labels = np.where(random.random(shape) < 0.2, np.array(ignore, kind), labels)
    return labels, predictions, classes, ignore


@pytest.mark.parametrize("tables", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_random_tables_equal_the_slow_twin(tables: int) -> None:
    random = np.random.default_rng(0)
    for number in range(tables):
        labels, predictions, classes, ignore = case(random)
        impl = IMPLEMENTATIONS[number % 3] if classes < 1000 or number % 9 < 3 else "numpy"
        table = metrics.confusion(labels, predictions, classes, ignore, impl=impl)
        table = table.numpy() if impl == "torch" else table
        counted = labels.ravel() != ignore
        flat = labels.ravel()[counted].astype(np.int64), predictions.ravel()[counted].astype(np.int64)
        assert table.dtype == np.int64
        assert table.shape == (classes, classes)
        assert int(table.sum()) == int(counted.sum())
        pairs: dict[tuple[int, int], int] = {}
        for pair in zip(flat[0].tolist(), flat[1].tolist(), strict=True):
            pairs[pair] = pairs.get(pair, 0) + 1
        assert all(table[pair] == count for pair, count in pairs.items()), (number, impl, classes, ignore)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("classes", "kind"), [(21, np.uint8), (255, np.uint8), (300, np.uint16), (21, np.int64)])
def test_a_map_is_counted_as_by_the_slow_twin(impl: str, classes: int, kind: type) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, classes, (61, 83)).astype(kind)
    predictions = random.integers(0, classes, (61, 83)).astype(kind)
    labels[:5] = 255 if classes <= 255 else 65535
    ignore = int(labels[0, 0])
    table = np.asarray(metrics.confusion(labels, predictions, classes, ignore, impl=impl))
    assert (table == slow_table(labels, predictions, classes, ignore)).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_values_outside_the_table_are_refused_and_named(impl: str) -> None:
    for kind in (np.uint8, np.int64):
        good, bad = np.array([0, 1, 2], kind), np.array([0, 1, 7], kind)
        with pytest.raises(DataError, match="Label 7 is neither one of 3 classes nor the ignore value 255"):
            metrics.confusion(bad, good, 3, impl=impl)
        with pytest.raises(DataError, match="Prediction"):
            metrics.confusion(good, bad, 3, impl=impl)
        with pytest.raises(DataError, match="Prediction"):
            metrics.confusion(good, np.array([0, 1, 3], kind), 3, impl=impl)  # exactly K, the classic corruption
    with pytest.raises(DataError, match="Label -1"):
        metrics.confusion(np.array([-1, 0, 0]), np.array([0, 0, 0]), 3, impl=impl)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_prediction_under_an_ignored_label_may_be_anything(impl: str) -> None:
    labels, predictions = np.array([255, 1], np.uint8), np.array([255, 0], np.uint8)
    assert np.asarray(metrics.confusion(labels, predictions, 2, impl=impl)).tolist() == [[0, 0], [1, 0]]


def test_tensors_give_tensors_and_arrays_give_arrays_and_tables_add_up() -> None:
    labels, predictions = torch.tensor([[0, 1, 255]]), torch.tensor([[0, 0, 1]])
    table = metrics.confusion(labels, predictions, 2)
    assert isinstance(table, torch.Tensor)
    assert table.dtype == torch.int64
    assert (table + table).tolist() == [[2, 0], [2, 0]]
    assert isinstance(metrics.confusion(labels.numpy(), predictions.numpy(), 2), np.ndarray)
    assert metrics.mean_iu(table) == metrics.mean_iu(table.numpy())
    assert metrics.confusion(labels.to(torch.uint8), predictions, 2).tolist() == table.tolist()


def test_wrong_shapes_types_and_names_are_refused() -> None:
    one = np.zeros((2, 2), np.uint8)
    with pytest.raises(UsageError, match="cannot be compared"):
        metrics.confusion(one, one[:1], 2)
    with pytest.raises(UsageError, match="float64 cannot be counted"):
        metrics.confusion(one.astype(float), one, 2)
    with pytest.raises(UsageError, match="1 to 16384"):
        metrics.confusion(one, one, 0)
    with pytest.raises(UnknownName, match="numba"):
        metrics.confusion(one, one, 2, impl="numbar")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="K x K"):
        metrics.mean_iu(np.zeros((2, 3)))
    with pytest.raises(UnknownName, match="averaging rule"):
        metrics.mean_iu(np.eye(2), average="presnt")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="averaging rule"):
        metrics.pixel_accuracy(np.eye(2), average="presnt")  # type: ignore[arg-type]


def test_regions_that_are_counted_at_once_equal_pixels_counted_one_by_one() -> None:
    random = np.random.default_rng(1)
    for size in (1, 7, 8, 9, 63, 64, 65, 1000, 4099):
        runs = [np.repeat(random.choice([0, 3, 7, 255], 400), random.integers(1, 40, 400)) for _ in range(2)]
        labels, predictions = (r[5 : 5 + size].astype(np.uint8) for r in runs)
        predictions[predictions == 255] = 1
        expected = slow_table(labels, predictions, 8, 255)
        for impl in IMPLEMENTATIONS:
            table = metrics.confusion(labels, predictions, 8, impl=impl)  # type: ignore[arg-type]
            np.testing.assert_array_equal(np.asarray(table), expected)
        parts = counting._by_numba(labels, predictions, 8, 255, most=64)  # as 2^31 pixels and more are
        np.testing.assert_array_equal(parts, expected)


def test_without_numba_arrays_are_counted_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert counting._fastest() == "numba"
    monkeypatch.setattr(counting.importlib.util, "find_spec", lambda name: None)
    counting._fastest.cache_clear()
    try:
        assert counting._fastest() == "numpy"
        assert metrics.confusion(np.array([1], np.uint8), np.array([0], np.uint8), 2).tolist() == [[0, 0], [1, 0]]
    finally:
        counting._fastest.cache_clear()


def test_the_figures_of_a_table_worked_by_hand() -> None:
    table = np.array([[3, 1, 0], [1, 2, 1], [0, 0, 2]])  # t = 4 4 2, p = 4 3 3
    assert metrics.pixel_accuracy(table) == pytest.approx(7 / 10)
    assert metrics.mean_accuracy(table) == pytest.approx((3 / 4 + 2 / 4 + 1) / 3)
    assert metrics.mean_iu(table) == pytest.approx((3 / 5 + 2 / 5 + 2 / 3) / 3)
    assert metrics.frequency_weighted_iu(table) == pytest.approx((4 * 3 / 5 + 4 * 2 / 5 + 2 * 2 / 3) / 10)
    each = metrics.per_class(table)
    assert each.precision.tolist() == pytest.approx([3 / 4, 2 / 3, 2 / 3])
    assert each.recall.tolist() == each.accuracy.tolist() == pytest.approx([3 / 4, 2 / 4, 1])
    assert each.f1.tolist() == pytest.approx([6 / 8, 4 / 7, 4 / 5])


def test_sift_flows_trap_a_class_predicted_but_never_labelled_counts_in_all_and_not_in_present() -> None:
    table = np.array([[8, 0, 2], [0, 10, 0], [0, 0, 0]])  # class 2 has no truth, but 2 pixels are called so
    assert metrics.absent(table) == [2]
    assert metrics.mean_iu(table, "present") == pytest.approx((8 / 10 + 1) / 2)
    assert metrics.mean_iu(table, "all") == pytest.approx((8 / 10 + 1 + 0) / 3)
    assert metrics.mean_accuracy(table, "present") == metrics.mean_accuracy(table, "all") == pytest.approx(0.9)
    seen_nowhere = np.pad(table, ((0, 1), (0, 1)))
    assert metrics.mean_iu(seen_nowhere, "all") == pytest.approx((8 / 10 + 1 + 0) / 3)
    assert metrics.absent(seen_nowhere) == [2, 3]


def test_figures_of_random_tables_equal_the_slow_twin_and_score_pys_formulas() -> None:
    random = np.random.default_rng(2)
    for _ in range(300):
        classes = int(random.integers(1, 30))
        table = random.integers(0, 50, (classes, classes)) * (random.random((classes, classes)) < 0.4)
        table[random.random(classes) < 0.3] = 0
        if not table.sum():
            continue
        figures = [
            figure(table)
            for figure in (
                metrics.pixel_accuracy,
                metrics.mean_accuracy,
                metrics.mean_iu,
                metrics.frequency_weighted_iu,
            )
        ]
        assert figures == pytest.approx(slow_figures(table))
        with np.errstate(invalid="ignore"):
            iu = np.diag(table) / (table.sum(1) + table.sum(0) - np.diag(table))
        assert metrics.mean_iu(table, "all") == pytest.approx(np.nanmean(iu))


@pytest.mark.slow  # loading scikit-learn takes longer than all of the quick tests here
def test_the_table_and_the_figures_equal_scikit_learns() -> None:
    sk = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(3)
    labels, predictions = random.integers(0, 6, 500), random.integers(0, 6, 500)
    assert (metrics.confusion(labels, predictions, 6) == sk.confusion_matrix(labels, predictions)).all()
    each = metrics.per_class(metrics.confusion(labels, predictions, 6))
    assert each.iu == pytest.approx(sk.jaccard_score(labels, predictions, average=None))
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predictions)
    assert each.precision == pytest.approx(precision)
    assert each.recall == pytest.approx(recall)
    assert each.f1 == pytest.approx(f1)
    table = metrics.confusion(labels, predictions, 6)
    assert metrics.pixel_accuracy(table) == pytest.approx(sk.accuracy_score(labels, predictions))
    assert metrics.mean_accuracy(table) == pytest.approx(sk.balanced_accuracy_score(labels, predictions))
    assert metrics.mean_iu(table) == pytest.approx(sk.jaccard_score(labels, predictions, average="macro"))
    assert metrics.frequency_weighted_iu(table) == pytest.approx(
        sk.jaccard_score(labels, predictions, average="weighted")
    )


def test_an_empty_table_has_no_figures() -> None:
    empty = np.zeros((3, 3), np.int64)
    assert math.isnan(metrics.pixel_accuracy(empty))
    assert math.isnan(metrics.mean_iu(empty))
    assert math.isnan(metrics.mean_iu(empty, "all"))
    assert math.isnan(metrics.frequency_weighted_iu(empty))
