"""How well boundaries are drawn: boundary F-score, Boundary IoU, and any figure within a band around the true
boundaries.

Labels and predictions are H x W integers of one image; distances are in pixels of that image. Ignored pixels count
nowhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.errors import UsageError
from fullyconv.metrics.counting import confusion

__all__ = ["boundary_counts", "boundary_f_scores", "boundary_iou", "trimap", "trimap_confusion"]

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[Any]


def boundary_f_scores(
    labels: Ints, predictions: Ints, classes: int, ignore: int = 255, tolerance: float = 0.0075
) -> npt.NDArray[np.float64]:
    """BF of one image: K floats in 0 .. 1, NaN for classes not in its truth; average over images with nanmean.

    Precision is the share of the predicted boundary within `tolerance` (share of the diagonal) of the true one,
    recall the share of the true boundary within it of the predicted one, BF their harmonic mean. A boundary pixel has
    a neighbour above, below or beside it of another class. A class without any boundary in truth and prediction (it
    fills the image) has 1. Source: Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic
    segmentation?", BMVC 2013.
    """
    valid = _valid(labels, predictions, ignore)
    reach = tolerance * math.hypot(*labels.shape)
    scores = np.full(classes, np.nan)
    for k in range(classes):
        labelled, predicted = labels == k, predictions == k
        if not labelled.any():
            continue
        around = _around(labelled | predicted)  # edges lie inside their class, so nothing beyond is asked
        truth, guess = (_edge(inside[around], valid[around]) for inside in (labelled, predicted))
        precision = _share(guess, _dilate(truth, reach), bool(truth.any()))
        recall = _share(truth, _dilate(guess, reach), bool(guess.any()))
        scores[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def boundary_counts(
    labels: Ints, predictions: Ints, classes: int, ignore: int = 255, thickness: float = 0.02
) -> npt.NDArray[np.int64]:
    """K x 2 pixel counts (intersection, union) of the classes' inner boundary bands; add them up over images.

    A class's band is what `thickness` (share of the diagonal, at least one pixel) steps of 3 x 3 erosion take away;
    beyond the image lies nothing. Source: Cheng et al., "Boundary IoU", CVPR 2021.
    """
    valid = _valid(labels, predictions, ignore)
    depth = max(1, round(thickness * math.hypot(*labels.shape)))
    counts = np.zeros((classes, 2), np.int64)
    for k in range(classes):
        labelled, predicted = (labels == k) & valid, (predictions == k) & valid
        either = labelled | predicted
        if either.any():
            around = _around(either)
            truth, guess = _band(labelled[around], depth), _band(predicted[around], depth)
            counts[k] = (truth & guess).sum(), (truth | guess).sum()
    return counts


def boundary_iou(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """K x 2 summed counts -> K ratios in 0 .. 1, NaN where 0 / 0."""
    with np.errstate(invalid="ignore"):
        return np.asarray(counts[:, 0] / counts[:, 1], np.float64)


def trimap(labels: Ints, width: float) -> Bools:
    """H x W: pixels at most `width` pixels (Euclidean) from one beside another label, ignored areas' edges included.

    Source: Kohli, Ladicky, Torr, "Robust higher order potentials for enforcing label consistency", IJCV 2009.
    """
    near = np.zeros(labels.shape, np.bool_)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    near[:, 1:] |= across
    near[:, :-1] |= across
    near[1:] |= down
    near[:-1] |= down
    return _dilate(near, width)


def trimap_confusion(labels: Ints, predictions: Ints, classes: int, width: float, ignore: int = 255) -> Any:
    """The confusion table of the pixels inside `trimap` alone: from it accuracy and IU near boundaries."""
    inside = trimap(labels, width)
    return confusion(labels[inside], predictions[inside], classes, ignore)


def _valid(labels: Ints, predictions: Ints, ignore: int) -> Bools:
    if labels.ndim != 2 or labels.shape != predictions.shape:
        raise UsageError(f"Labels {labels.shape} and predictions {predictions.shape} must be H x W of one size.")
    return np.asarray(labels != ignore)


def _edge(inside: Bools, valid: Bools) -> Bools:
    """Valid pixels of a class beside a valid one that is not."""
    edge = np.zeros_like(inside)
    for here, there in (
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
    ):
        edge[here] |= inside[here] & ~inside[there] & valid[here] & valid[there]
    return edge


def _share(edge: Bools, near: Bools, other: bool) -> float:
    """Share of an edge that is near the other; without an edge 1 if the other has none either."""
    count = int(edge.sum())
    return int((edge & near).sum()) / count if count else float(not other)


def _around(inside: Bools) -> tuple[slice, slice]:
    """The smallest window of an image that holds all pixels inside (at least one), and one pixel more to each side."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]


def _dilate(inside: Bools, reach: float) -> Bools:
    """Pixels at most `reach` from one inside: distances within each row first, then rows put together."""
    height = len(inside)
    beside = _row_distance(inside)
    out = np.zeros_like(inside)
    for dy in range(min(int(reach), height - 1) + 1):
        near = beside <= math.isqrt(int(reach * reach - dy * dy))
        out[dy:] |= near[: height - dy]
        out[: height - dy] |= near[dy:]
    return out


def _row_distance(inside: Bools) -> npt.NDArray[np.int32]:
    """Columns to the nearest pixel inside in the same row, H x W; far more than the width where there is none."""
    far = 1 << 30
    columns = np.arange(inside.shape[1], dtype=np.int32)
    before = np.maximum.accumulate(np.where(inside, columns, np.int32(-far)), 1)
    after = np.minimum.accumulate(np.where(inside, columns, np.int32(far))[:, ::-1], 1)[:, ::-1]
    return np.minimum(columns - before, after - columns)


def _band(inside: Bools, depth: int) -> Bools:
    """What `depth` erosions by 3 x 3 take away from `inside`: all whose square of 2 depth + 1 is not inside."""
    return inside & ~_erode_rows(_erode_rows(inside, depth).T, depth).T


def _erode_rows(inside: Bools, depth: int) -> Bools:
    """Pixels with `depth` more inside on both sides of their row; beyond the image nothing is inside."""
    height, width = inside.shape
    sums = np.zeros((height, width + 2 * depth + 1), np.int32)
    np.cumsum(np.pad(inside, ((0, 0), (depth, depth))), 1, out=sums[:, 1:])
    return np.asarray(sums[:, 2 * depth + 1 :] - sums[:, :width] == 2 * depth + 1)
