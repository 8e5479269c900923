"""One integer table over a whole set of images, and the figures that are pure functions of it.

Rows are the truth, columns the prediction. Definitions: Long, Shelhamer, Darrell 2015, section 5; n_ij pixels of
class i predicted j, t_i = sum_j n_ij. `average="present"` averages over the classes that occur in the truth (the
paper's rule: a class that is never labelled says nothing, wherever it may be predicted); "all" over every class whose
ratio is not 0 / 0, so that one predicted but never labelled has IU 0 and lowers the mean (the rule of the original
release's score.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fullyconv.errors import DataError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    Array = npt.NDArray[Any] | Tensor

__all__ = [
    "confusion",
    "frequency_weighted_iu",
    "mean_accuracy",
    "mean_iu",
    "pixel_accuracy",
]

Average = Literal["present", "all"]
Table = npt.NDArray[np.int64]


def confusion(labels: Array, predictions: Array, classes: int, ignore: int = 255) -> Any:
    """int64 K x K counts of (truth, prediction) over the pixels whose label is not `ignore`; torch in, torch out on
    that device.
    """
    if tuple(labels.shape) != tuple(predictions.shape):
        raise UsageError(f"Labels {tuple(labels.shape)} and predictions {tuple(predictions.shape)} differ in shape.")
    import torch

    as_numpy = isinstance(labels, np.ndarray)
    truth = torch.as_tensor(labels).reshape(-1).to(torch.int64)
    guess = torch.as_tensor(predictions).reshape(-1).to(torch.int64)
    valid = truth != ignore
    truth, guess = truth[valid], guess[valid]
    for what, values in (("Label", truth), ("Prediction", guess)):
        bad = (values < 0) | (values >= classes)
        if bool(bad.any()):
            raise DataError(
                f"{what} {int(values[bad][0])} is outside the {classes} classes; check the number of classes."
            )
    table = torch.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)
    return table.numpy() if as_numpy else table


def _table(table: Any) -> Table:
    array = table.cpu().numpy() if hasattr(table, "cpu") else np.asarray(table)
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise UsageError(f"A confusion table is K x K; this one is {array.shape}.")
    return array


def _mean(values: npt.NDArray[np.float64], table: Table, average: Average) -> float:
    if average not in ("present", "all"):
        raise UnknownName("averaging rule", average, ["present", "all"])
    counted = values[table.sum(1) > 0] if average == "present" else values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")


def _ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / whole, dtype=np.float64)


def pixel_accuracy(table: Any, average: Average = "present") -> float:
    """sum_i n_ii / sum_i t_i."""
    t = _table(table)
    return float(np.trace(t) / t.sum()) if t.sum() else float("nan")


def mean_accuracy(table: Any, average: Average = "present") -> float:
    """Mean over classes of n_ii / t_i."""
    t = _table(table)
    return _mean(_ratio(np.diag(t), t.sum(1)), t, average)


def mean_iu(table: Any, average: Average = "present") -> float:
    """Mean over classes of n_ii / (t_i + sum_j n_ji - n_ii)."""
    t = _table(table)
    return _mean(_ratio(np.diag(t), t.sum(1) + t.sum(0) - np.diag(t)), t, average)


def frequency_weighted_iu(table: Any, average: Average = "present") -> float:
    """sum_i t_i IU_i / sum_i t_i: every pixel counts the same."""
    t = _table(table)
    iu = np.nan_to_num(_ratio(np.diag(t), t.sum(1) + t.sum(0) - np.diag(t)))
    return float((t.sum(1) * iu).sum() / t.sum()) if t.sum() else float("nan")
