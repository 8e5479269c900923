"""Counts that need the pixels and not only the table: errors by distance from a border, by size, by confidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import metrics
from fullyconv.evaluation.result import json_number
from fullyconv.regions import border_band, components

__all__ = ["BAND", "BINS", "RINGS", "SIZES", "THICKNESS", "PixelStatistics"]

BINS = 15  # of confidence, equal width
SIZES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)  # region sizes, shares of the image
BAND = 0.0075  # half width of the border band, share of the image diagonal (as the boundary F-score is reported)
RINGS = (1, 2, 4, 8, 16, 32)  # distances from a border in pixels, each ring from the one before to this
THICKNESS = 0.02  # of Boundary IoU's band, share of the image diagonal (Cheng et al. 2021)


@final
@dataclass
class PixelStatistics:
    """Counts over the images added so far (main head).

    band: K x 2 x 2 [class, near a border?, wrong?] pixels. rings: len(RINGS) + 1 x 2 [pixels, wrong pixels] by distance
    from the nearest border. sizes: len(SIZES) - 1 x 4 [regions, pixels, wrong pixels, regions at least half right].
    f_scores: K x 2 [sum of boundary F-scores, images with the class]. boundary: K x 2 of `metrics.boundary_counts`.
    calibration: BINS x 2 [pixels, right] and `confidence`, its sums.
    """

    classes: int
    band: NDArray[np.int64] = field(init=False)
    rings: NDArray[np.int64] = field(init=False)
    sizes: NDArray[np.int64] = field(init=False)
    calibration: NDArray[np.int64] = field(init=False)
    confidence: NDArray[np.float64] = field(init=False)
    f_scores: NDArray[np.float64] = field(init=False)
    boundary: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.band = np.zeros((self.classes, 2, 2), np.int64)
        self.rings = np.zeros((len(RINGS) + 1, 2), np.int64)
        self.sizes = np.zeros((len(SIZES) - 1, 4), np.int64)
        self.calibration = np.zeros((BINS, 2), np.int64)
        self.confidence = np.zeros(BINS)
        self.f_scores = np.zeros((self.classes, 2))
        self.boundary = np.zeros((self.classes, 2), np.int64)

    def add(
        self, label: NDArray[np.integer], predicted: NDArray[np.integer], confidence: NDArray[np.float32], ignore: int
    ) -> None:
        """Count one image: label, said and confidence H W."""
        valid, wrong = label != ignore, (label != predicted).astype(np.int64)
        radius = max(1, round(BAND * float(np.hypot(*label.shape))))
        near = border_band(label, radius).astype(np.int64)
        cell = (label.astype(np.int64) * 2 + near) * 2 + wrong
        self.band += np.bincount(cell[valid], minlength=self.band.size).reshape(self.band.shape)
        table = metrics.calibration_table(label, predicted, np.minimum(confidence, 1), ignore, BINS)
        self.calibration += table[:, [0, 2]].astype(np.int64)
        self.confidence += table[:, 1]
        scores = metrics.boundary_f_scores(label, predicted, self.classes, ignore, BAND)
        self.f_scores += np.stack([np.nan_to_num(scores), ~np.isnan(scores)], axis=1)
        self.boundary += metrics.boundary_counts(label, predicted, self.classes, ignore, THICKNESS)
        self._add_rings(label, wrong, valid)
        self._add_sizes(label, wrong, valid)

    def _add_rings(self, label: NDArray[np.integer], wrong: NDArray[np.int64], valid: NDArray[np.bool_]) -> None:
        ring = np.zeros(label.shape, np.int64)
        for width in RINGS:
            ring += ~metrics.trimap(label, width)
        cell = ring[valid] * 2 + wrong[valid]
        right_and_wrong = np.bincount(cell, minlength=self.rings.size).reshape(self.rings.shape)
        self.rings += np.stack([right_and_wrong.sum(1), right_and_wrong[:, 1]], axis=1)

    def _add_sizes(self, label: NDArray[np.integer], wrong: NDArray[np.int64], valid: NDArray[np.bool_]) -> None:
        region, count = components(label)
        pixels = np.bincount(region[valid], minlength=count)
        errors = np.bincount(region[valid], weights=wrong[valid], minlength=count).astype(np.int64)
        real = pixels > 0
        bucket = np.searchsorted(SIZES, pixels[real] / label.size, side="right") - 1
        bucket = np.clip(bucket, 0, len(SIZES) - 2)
        found = 2 * errors[real] <= pixels[real]
        for column, weight in enumerate((np.ones(int(real.sum())), pixels[real], errors[real], found)):
            self.sizes[:, column] += np.bincount(bucket, weights=weight, minlength=len(self.sizes)).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        table = np.column_stack([self.calibration[:, 0], self.confidence, self.calibration[:, 1]])
        with np.errstate(invalid="ignore"):
            f_scores = self.f_scores[:, 0] / self.f_scores[:, 1]
        return {
            "border": {
                "half_width": BAND,
                "pixels": self.band.tolist(),
                "f_score": _mean(f_scores),
                "f_scores": [json_number(v) for v in f_scores],
                "rings": {"limits": list(RINGS), "pixels": self.rings.tolist()},
                **self._boundary_iou(),
            },
            "sizes": {"limits": list(SIZES), "regions": self.sizes.tolist()},
            "calibration": {
                "bins": self.calibration.tolist(),
                "confidence": self.confidence.tolist(),
                "error": json_number(metrics.expected_calibration_error(table)),
            },
        }

    def _boundary_iou(self) -> dict[str, Any]:
        """Boundary IoU of the classes in the truth, and its mean over them."""
        ratios = np.where(self.f_scores[:, 1] > 0, metrics.boundary_iou(self.boundary), np.nan)
        return {"thickness": THICKNESS, "iou": _mean(ratios), "ious": [json_number(v) for v in ratios]}


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what is a number; None where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
