"""What a table of counts can and cannot say: bootstrap intervals over images, and which confusions cost most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from fullyconv import metrics
from fullyconv.evaluation.result import Result
from fullyconv.metrics import Interval, draws, interval
from fullyconv.metrics.figures import iu_of

__all__ = ["Counts", "Interval", "Pair", "Resampled", "costly_pairs", "counts", "image_iu", "interval", "resample"]

Floats = NDArray[np.float64]


@final
@dataclass(frozen=True)
class Counts:
    """Each image's pixels by class: hit (k is right), truth (labelled k), predicted (called k); float64 n x K."""

    hit: Floats
    truth: Floats
    predicted: Floats


@final
@dataclass(frozen=True)
class Resampled:
    """Figures of B bootstrap samples of the images: iu B x K (NaN: class absent), the paper's four B each."""

    iu: Floats
    pixel_accuracy: Floats
    mean_accuracy: Floats
    mean_iu: Floats
    frequency_weighted_iu: Floats


@final
@dataclass(frozen=True)
class Pair:
    """Pixels of class `truth` called `said`: their share of the class, and the mean IU gained were they right."""

    truth: int
    said: int
    pixels: int
    share: float
    cost: float


def counts(result: Result, head: str | None = None) -> Counts:
    """The images' counts of a head, in the order of `result.per_image`."""
    head = head or result.head
    classes = len(result.taxonomies[head])
    out = np.zeros((3, len(result.per_image), classes))
    for row, image in enumerate(result.per_image):
        truth, predicted = np.divmod(image.cells[head], classes)
        pixels = image.counts[head]
        np.add.at(out[0, row], truth[truth == predicted], pixels[truth == predicted])
        np.add.at(out[1, row], truth, pixels)
        np.add.at(out[2, row], predicted, pixels)
    return Counts(*out)


def resample(images: Sequence[Counts], average: str = "present", seed: int = 0) -> list[Resampled]:
    """`metrics.bootstrap` of all these figures at once, the same draws for every member of `images`.

    Means are over the classes in the truth of the whole set ("present"), or over all that are seen at all ("all"), as
    far as a draw holds them.
    """
    weights = draws(images[0].hit.shape[0], seed=seed).astype(np.float64)
    return [_resampled(weights, c, average) for c in images]


def _resampled(weights: Floats, c: Counts, average: str) -> Resampled:
    hit, truth, predicted = weights @ c.hit, weights @ c.truth, weights @ c.predicted
    iu = iu_of(hit, truth, predicted)
    with np.errstate(invalid="ignore"):
        recall = hit / truth
        accuracy = hit.sum(1) / truth.sum(1)
        weighted = (truth * np.nan_to_num(iu)).sum(1) / truth.sum(1)
    counted = c.truth.sum(0) > 0 if average == "present" else np.ones(iu.shape[1], bool)
    return Resampled(iu, accuracy, _row_means(recall[:, counted]), _row_means(iu[:, counted]), weighted)


def _row_means(values: Floats) -> Floats:
    """Each row's mean of what is a number; NaN where nothing is."""
    seen = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(seen, values, 0).sum(1) / seen.sum(1), np.float64)


def image_iu(table: NDArray[np.int64]) -> float | None:
    """An image's own mean IU over the classes it is labelled with; None without a labelled pixel."""
    mean = metrics.mean_iu(table)
    return None if math.isnan(mean) else mean


def costly_pairs(table: NDArray[np.integer], average: str = "present") -> list[Pair]:
    """Every confusion (i called j), the costliest for the mean IU first.

    Cost: the rise of the mean IU if those n_ij pixels were right. IU_i gains n_ij / union_i (its union stays), IU_j
    loses n_ij pixels from its union.
    """
    n = table.astype(np.float64)
    hit, truth, predicted = np.diag(n), n.sum(1), n.sum(0)
    union = truth + predicted - hit
    counted = truth > 0 if average == "present" else union > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.where(counted[:, None], n / union[:, None], 0)
        smaller = union[None, :] - n
        other = np.where(counted & (smaller > 0), hit[None, :] / smaller - (hit / union)[None, :], 0)
        share = n / truth[:, None]
    cost = (own + other) / max(int(counted.sum()), 1)
    np.fill_diagonal(cost, 0)
    cells = [c for c in np.argsort(-cost, axis=None, kind="stable") if cost.flat[c] > 0]
    k = len(table)
    return [Pair(c // k, c % k, int(n.flat[c]), float(share.flat[c]), float(cost.flat[c])) for c in map(int, cells)]
