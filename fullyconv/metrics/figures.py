"""Figures that are pure functions of a confusion table K x K (rows = truth)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

from fullyconv.errors import UnknownName, UsageError

__all__ = [
    "Average",
    "PerClass",
    "absent",
    "constant_answer",
    "frequency_weighted_iu",
    "iu_of",
    "mean_accuracy",
    "mean_iu",
    "per_class",
    "pixel_accuracy",
]

Average = Literal["present", "all"]
Floats = npt.NDArray[np.float64]


@final
@dataclass(frozen=True)
class PerClass:
    """K figures each, in 0 .. 1, NaN where 0 / 0. With n_ij pixels of class i predicted j, t_i labelled and p_i
    predicted i:

    iu n_ii / (t_i + p_i - n_ii); accuracy = recall n_ii / t_i; precision n_ii / p_i; f1 2 n_ii / (t_i + p_i).
    """

    iu: Floats
    accuracy: Floats
    precision: Floats
    recall: Floats
    f1: Floats


def per_class(table: npt.ArrayLike) -> PerClass:
    """Every class's own figures."""
    hit, labelled, predicted = _parts(table)
    accuracy = _ratio(hit, labelled)
    return PerClass(
        iu=iu_of(hit, labelled, predicted),
        accuracy=accuracy,
        precision=_ratio(hit, predicted),
        recall=accuracy,
        f1=_ratio(2 * hit, labelled + predicted),
    )


def iu_of(hit: npt.ArrayLike, labelled: npt.ArrayLike, predicted: npt.ArrayLike) -> Floats:
    """n_ii / (t_i + p_i - n_ii) of counts of any shape, in 0 .. 1; NaN where 0 / 0."""
    hit = np.asarray(hit)
    return _ratio(hit, np.asarray(labelled) + np.asarray(predicted) - hit)


def absent(table: npt.ArrayLike) -> list[int]:
    """Classes that never occur in the truth: those that "present" leaves out of its means."""
    return [int(k) for k in np.flatnonzero(_parts(table)[1] == 0)]


def constant_answer(table: npt.ArrayLike) -> npt.NDArray[Any]:
    """The table K x K of always answering the class that occurs most: what a network must beat to have learned
    anything. Every figure of it is that figure's floor."""
    labelled = _parts(table)[1]
    floor = np.zeros((len(labelled),) * 2, np.int64)
    floor[:, int(labelled.argmax())] = labelled
    return floor


def pixel_accuracy(table: npt.ArrayLike, average: Average = "present") -> float:
    """sum_i n_ii / sum_i t_i, in 0 .. 1; NaN for an empty table. The averaging rule makes no difference."""
    _checked(average)
    hit, labelled, _ = _parts(table)
    return float(_ratio(hit.sum(), labelled.sum()))


def mean_accuracy(table: npt.ArrayLike, average: Average = "present") -> float:
    """Mean over classes of n_ii / t_i, in 0 .. 1; a class without truth has none, by either rule."""
    return _mean(per_class(table).accuracy, table, average)


def mean_iu(table: npt.ArrayLike, average: Average = "present") -> float:
    """Mean over classes of n_ii / (t_i + sum_j n_ji - n_ii), in 0 .. 1."""
    return _mean(per_class(table).iu, table, average)


def frequency_weighted_iu(table: npt.ArrayLike, average: Average = "present") -> float:
    """sum_i t_i IU_i / sum_i t_i, in 0 .. 1. The averaging rule makes no difference: an absent class weighs
    nothing.
    """
    _checked(average)
    _, labelled, _ = _parts(table)
    return float(_ratio((labelled * np.nan_to_num(per_class(table).iu)).sum(), labelled.sum()))


def _parts(table: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    counts = table.cpu().numpy() if hasattr(table, "cpu") else np.asarray(table)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise UsageError(f"A confusion table is K x K; this one is {counts.shape}.")
    return np.diag(counts), counts.sum(1), counts.sum(0)


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.asarray(part, np.float64) / np.asarray(whole, np.float64))


def _checked(average: Average) -> None:
    if average not in ("present", "all"):
        raise UnknownName("averaging rule", str(average), ["all", "present"])


def _mean(values: Floats, table: npt.ArrayLike, average: Average) -> float:
    _checked(average)
    counted = values[_parts(table)[1] > 0] if average == "present" else values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else float("nan")
