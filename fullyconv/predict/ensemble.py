"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UsageError, printable
from fullyconv.predict import Predictor
from fullyconv.predict.inputs import Image
from fullyconv.taxonomy import Taxonomy

__all__ = ["Ensemble"]

Probabilities = dict[str, NDArray[np.float32]]


@final
class Ensemble:
    """Labels images by the mean of the probabilities of several predictors (at least one), each counting as much.

    They must tell the same classes apart, in the same order, and take the same modalities: UsageError otherwise. Holds
    K x H x W probabilities of two networks at a time.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        first, *others = predictors
        for other in others:
            for head, taxonomy in first.taxonomies.items():
                _refuse_unlike(head, taxonomy, other.taxonomies.get(head))
            if set(other.taxonomies) != set(first.taxonomies) or other.inputs != first.inputs:
                raise UsageError(
                    f"{first!r} and {other!r} differ in their label heads or inputs; an ensemble needs networks that "
                    "answer the same question about the same images."
                )
        self.predictors = tuple(predictors)

    @property
    def heads(self) -> dict[str, int]:
        return self.predictors[0].heads

    @property
    def taxonomies(self) -> dict[str, Taxonomy]:
        return self.predictors[0].taxonomies

    @property
    def inputs(self) -> tuple[str, ...] | None:
        return self.predictors[0].inputs

    @property
    def tiling(self) -> list[dict[str, Any]]:
        return [p.tiling for p in self.predictors]

    @property
    def precision(self) -> str:
        return "+".join(p.precision for p in self.predictors)

    def identity(self) -> str:
        """sha256 of all networks; their order does not matter to the mean, but to its rounding."""
        return hashlib.sha256("".join(p.backend.identity() for p in self.predictors).encode()).hexdigest()

    def probabilities(self, image: Image) -> Probabilities:
        """image -> {head: float32 K H W}, the mean."""
        total: Probabilities = {}
        for predictor in self.predictors:
            for head, one in _probabilities(predictor, image).items():
                total[head] = total[head] + one if head in total else one
        return {head: p / np.float32(len(self.predictors)) for head, p in total.items()}

    def labels(self, image: Image) -> dict[str, NDArray[Any]]:
        """image -> {head: labels H W}, uint8 (uint16 above 255 classes)."""
        return {head: labels for head, (labels, _) in self.confident_labels(image).items()}

    def confident_labels(self, image: Image) -> dict[str, tuple[NDArray[Any], NDArray[np.float32]]]:
        """image -> {head: (labels H W, the mean probability of that label H W float32 in 0..1)}."""
        kind = {h: np.uint8 if k <= 255 else np.uint16 for h, k in self.heads.items()}
        return {h: (p.argmax(0).astype(kind[h]), p.max(0)) for h, p in self.probabilities(image).items()}


def _probabilities(predictor: Predictor, image: Image) -> Probabilities:
    scores = predictor.scores(image)
    by_head = scores if isinstance(scores, dict) else {next(iter(predictor.heads)): scores}
    return {h: predictor.backend.probabilities(s, False, s.shape[1:]) for h, s in by_head.items()}


def _refuse_unlike(head: str, one: Taxonomy, other: Taxonomy | None) -> None:
    if other is None or one.names == other.names:
        return
    theirs = set(other.names)
    lacking = next((n for n in one.names if n not in theirs), None)
    how = f"one has {printable(lacking)}, the other has not" if lacking else "their classes differ in order or number"
    raise UsageError(
        f"The networks tell different {head} classes apart ({how}), so their probabilities cannot be averaged; "
        "learn them from the same classes.txt."
    )
