"""Which labels are probably wrong: regions where a network that did not learn them is confident of another class.

Confident learning (Northcutt et al. 2021), for label maps and without ever holding N x K x H x W: for each class the
threshold is the mean probability that its own labels get, read off a table of integers (class by probability in 256
steps). A pixel is doubted where another class is predicted with at least that one's threshold. Doubted pixels that
touch are one region; a thin rim, where a border lies a little otherwise, is none. Regions are ranked by area times
margin times surprise: how far the two probabilities lie apart, and how seldom the data confuses these two classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.regions import bounding_box, components

__all__ = ["ClassTable", "LabelSuspect", "suspects_in"]

_STEPS = 256  # of confidence in a class's table: as fine as the bytes in which a confidence map is stored
_RIM = 3  # pixels that a border may lie off


@final
class ClassTable:
    """Counts over all images: `own[k, p]` pixels labelled k that get k with probability p / 255, and `confident[k, j]`
    pixels labelled k for which j is predicted with probability 1/2 at least."""

    def __init__(self, classes: int) -> None:
        self.own = np.zeros((classes, _STEPS), np.int64)
        self.confident = np.zeros((classes, classes), np.int64)

    def add(
        self,
        labels: NDArray[np.integer],
        predicted: NDArray[np.integer],
        confidence: NDArray[np.float32],
        own: NDArray[np.float32],
        ignore: int,
    ) -> None:
        """Count an image: labels and predicted ids, the probabilities of both, H W each."""
        k = len(self.own)
        kept = labels != ignore
        ids, step = labels[kept].astype(np.int64), np.rint(own[kept] * (_STEPS - 1)).astype(np.int64)
        self.own += np.bincount(ids * _STEPS + step, minlength=k * _STEPS).reshape(k, _STEPS)
        kept &= confidence >= 0.5
        pairs = labels[kept].astype(np.int64) * k + predicted[kept]
        self.confident += np.bincount(pairs, minlength=k * k).reshape(k, k)

    def thresholds(self) -> NDArray[np.float64]:
        """K: the mean probability that a class's own labels get; 1 for classes without labels."""
        count = self.own.sum(1)
        total = self.own @ (np.arange(_STEPS) / (_STEPS - 1))
        return np.where(count > 0, total / np.maximum(count, 1), 1.0)

    def surprise(self) -> NDArray[np.float64]:
        """K x K: minus the logarithm of the share of labels k for which j is surely predicted."""
        share = (self.confident + 1) / (self.own.sum(1, keepdims=True) + len(self.own))
        found: NDArray[np.float64] = -np.log(np.minimum(share, 1))
        return found


@final
@dataclass(frozen=True)
class LabelSuspect:
    """A doubted region of one image. `labelled` and `predicted`: the classes most of its pixels have. `margin`: the
    mean difference of the two probabilities, 0..1. `inside`: which pixels of the box it covers."""

    top: int
    left: int
    inside: NDArray[np.bool_]
    proposed: NDArray[Any]  # ids in the box
    labelled: int
    predicted: int
    area: int
    margin: float
    score: float


def suspects_in(
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    confidence: NDArray[np.float32],
    own: NDArray[np.float32],
    thresholds: NDArray[np.float64],
    surprise: NDArray[np.float64],
    ignore: int,
    least: int = 100,
) -> list[LabelSuspect]:
    """The doubted regions of one image, the gravest first. least: pixels, of what is left without the rim."""
    doubted = (
        (labels != ignore)
        & (predicted != labels)
        & (confidence >= thresholds[np.minimum(predicted, len(thresholds) - 1)])
    )
    core = _without_rim(doubted)
    if not core.any():
        return []
    grown = _near(core, doubted)
    number, count = components(np.where(grown, 1, 0))
    size = np.bincount(number.ravel(), weights=core.ravel(), minlength=count)
    found = []
    for r in np.flatnonzero(size >= least).tolist():
        inside = number == r
        top, left, bottom, right = bounding_box(inside)
        part = (slice(top, bottom), slice(left, right))
        covered = inside[part]
        a, b = labels[part][covered].astype(np.int64), predicted[part][covered].astype(np.int64)
        apart = (confidence[part] - own[part])[covered]
        weight = float((apart * surprise[a, b])[core[part][covered]].sum())
        found.append(
            LabelSuspect(
                top, left, covered, predicted[part].copy(), int(np.bincount(a).argmax()), int(np.bincount(b).argmax()),
                int(covered.sum()), float(apart.mean()), weight,
            )
        )  # fmt: skip
    return sorted(found, key=lambda s: -s.score)


def _without_rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose (2 rim + 1)-square lies inside `mask`; the image's own border takes nothing off."""
    core = mask
    for axis in (0, 1):
        padded = np.pad(core, [(_RIM, _RIM) if a == axis else (0, 0) for a in (0, 1)], constant_values=True)
        length = core.shape[axis]
        core = np.logical_and.reduce([padded.take(range(s, s + length), axis) for s in range(2 * _RIM + 1)])
    return core


def _near(core: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `mask` within the rim of `core`: the opening, cut to the mask."""
    return mask & ~_without_rim(~core)
