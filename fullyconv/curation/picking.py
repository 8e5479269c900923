"""Which images to label next: those that stand for many unlike anything labelled, and among alike ones the least sure.

With few labels, uncertainty alone picks the odd, many times over, and loses to drawing by chance. So the images are
covered first: each choice is the one that brings all images, those the network doubts counting more, nearest to
something labelled or chosen (greedy facility location on pooled features, within 1 - 1/e of the best set; Nemhauser et
al. 1978). Where several do so about as well, the one with the largest uncertain area is taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from fullyconv.regions import border_band

__all__ = ["Pick", "pick", "uncertain_share"]

_BORDER = 4  # pixels beside a border of labels, where every network is unsure
_AS_GOOD = 0.95  # of the best gain: such images stand for the same ones
_MOST_COVERED = 4000  # images whose nearness is counted; of more, so many at even distances
_AT_ONCE = 512  # rows of distances worked out together


@final
@dataclass(frozen=True)
class Pick:
    """A chosen image: its place among the candidates, and how many images (itself among them) are nearest to it of all
    that is labelled or chosen."""

    index: int
    stands_for: int


def uncertain_share(labels: NDArray[np.integer], confidence: NDArray[np.float32]) -> float:
    """How much of an image the network is unsure of, 0..1: the mean of 1 - probability, away from borders."""
    away = ~border_band(labels, _BORDER)
    return (
        float((1 - confidence)[away].mean(dtype=np.float64))
        if away.any()
        else float((1 - confidence).mean(dtype=np.float64))
    )


def pick(
    candidates: NDArray[np.float32],
    labelled: NDArray[np.float32],
    unsure: NDArray[np.number],
    count: int,
    most_covered: int = _MOST_COVERED,
) -> list[Pick]:
    """`count` of the `candidates` N x D (all, if there are fewer), in the order in which to label them.

    labelled: M x D, the features of what is labelled already; unsure: N, each candidate's uncertain share; of more than
    `most_covered` candidates, so many at even distances are counted.
    """
    n = len(candidates)
    every = _normalised(np.concatenate([candidates, labelled.reshape(-1, candidates.shape[1])]))
    x, known = every[:n], every[n:]
    covered = np.arange(n) if n <= most_covered else np.linspace(0, n - 1, most_covered).astype(int)
    distances = _distances(x, x[covered])
    nearest = _distances(known, x[covered]).min(0) if len(known) else np.full(len(covered), 2.0, np.float32)
    weight = np.asarray(unsure, np.float64)[covered]
    weight = weight / max(float(weight.mean()), 1e-9) + 0.5  # what it is sure of is to be covered too
    left = np.ones(n, bool)
    chosen: list[int] = []
    owner = np.full(len(covered), -1)  # which choice is nearest; -1 something labelled
    while len(chosen) < min(count, n):
        gain = np.concatenate(
            [np.maximum(nearest - distances[at : at + _AT_ONCE], 0) @ weight for at in range(0, n, _AT_ONCE)]
        )
        gain[~left] = -1
        good = np.flatnonzero(left & (gain >= _AS_GOOD * gain.max()))
        best = int(good[np.argmax(np.asarray(unsure)[good])])
        owner[distances[best] < nearest] = len(chosen)
        chosen.append(best)
        nearest = np.minimum(nearest, distances[best])
        left[best] = False
    number = np.bincount(owner[owner >= 0], minlength=len(chosen)) * (n / len(covered))
    return [Pick(i, max(1, round(float(m)))) for i, m in zip(chosen, number, strict=True)]


def _normalised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each channel to mean 0 and spread 1, each image to length 1: no channel, no bright image counts for more."""
    x = features.astype(np.float64)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)


def _distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of every pair of rows of length 1."""
    found: NDArray[np.float32] = np.maximum(1 - a @ b.T, 0)
    return found
