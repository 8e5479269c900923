"""Whether a confidence of 0.8 means right 8 times in 10."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fullyconv.errors import UsageError

__all__ = ["calibration_table", "expected_calibration_error"]


def calibration_table(
    labels: npt.NDArray[np.integer],
    predictions: npt.NDArray[np.number],
    confidence: npt.NDArray[np.number],
    ignore: int = 255,
    bins: int = 15,
) -> npt.NDArray[np.float64]:
    """bins x 3: pixels, sum of their confidence, how many are right, by confidence in equal steps of 0 .. 1.

    All arrays of one shape; `ignore` labels do not count. A confidence on an edge belongs to the bin below (0 to the
    first). Add tables up over images.
    """
    if not labels.shape == predictions.shape == confidence.shape:
        raise UsageError(
            f"Labels {labels.shape}, predictions {predictions.shape} and confidence {confidence.shape} differ in shape."
        )
    counted = labels != ignore
    probability = confidence[counted].astype(np.float64)
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise UsageError(
            f"Confidence reaches from {probability.min()} to {probability.max()}; give probabilities, 0 to 1."
        )
    place = np.clip(np.ceil(probability * bins).astype(np.int64) - 1, 0, bins - 1)
    right = (labels == predictions)[counted]
    sums = [
        np.bincount(place, weights, bins)
        for weights in (np.ones(probability.size), probability, right.astype(np.float64))
    ]
    return np.stack(sums, 1)


def expected_calibration_error(table: npt.NDArray[np.float64]) -> float:
    """sum_b n_b / n |right_b / n_b - confidence_b / n_b|, in 0 .. 1; NaN for an empty table.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017 (15 bins).
    """
    total = table[:, 0].sum()
    return float(np.abs(table[:, 2] - table[:, 1]).sum() / total) if total else float("nan")
