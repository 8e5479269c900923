"""One integer table over a whole set of images, and the figures that are pure functions of it.

Rows are the truth, columns the prediction: n_ij pixels of class i predicted j, t_i = sum_j n_ij (Long, Shelhamer,
Darrell 2015, section 5). `average="present"` averages over the classes that occur in the truth (the paper's rule: a
class that is never labelled says nothing, wherever it may be predicted); "all" over every class whose ratio is not 0
/ 0, so that one predicted but never labelled has IU 0 and lowers the mean (the rule of the original release's
score.py).

Besides the table: figures of boundaries, of calibration, and bootstrap intervals over images.
"""

from __future__ import annotations

from fullyconv.metrics.bootstrap import Interval, bootstrap, draws, interval, paired_bootstrap
from fullyconv.metrics.boundary import (
    boundary_counts,
    boundary_f_scores,
    boundary_iou,
    trimap,
    trimap_confusion,
)
from fullyconv.metrics.calibration import calibration_table, expected_calibration_error
from fullyconv.metrics.counting import confusion
from fullyconv.metrics.figures import (
    Average,
    PerClass,
    absent,
    constant_answer,
    frequency_weighted_iu,
    mean_accuracy,
    mean_iu,
    per_class,
    pixel_accuracy,
)

__all__ = [
    "Average",
    "Interval",
    "PerClass",
    "absent",
    "bootstrap",
    "boundary_counts",
    "boundary_f_scores",
    "boundary_iou",
    "calibration_table",
    "confusion",
    "constant_answer",
    "draws",
    "expected_calibration_error",
    "frequency_weighted_iu",
    "interval",
    "mean_accuracy",
    "mean_iu",
    "paired_bootstrap",
    "per_class",
    "pixel_accuracy",
    "trimap",
    "trimap_confusion",
]
