"""`fullyconv review`: regions of a data set's labels that are probably wrong, and corrections as copies.

The labels doubted must not have been learned by the network that doubts them. Where a run learned them, its score
layers are learned anew on its kept trunk features, once for each fold of the images and without that fold; the trunk
itself has seen them, which is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.curation import features
from fullyconv.curation.suspects import ClassTable, LabelSuspect, suspects_in
from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, printable
from fullyconv.models.fcn import FCN
from fullyconv.taxonomy import Taxonomy, match

__all__ = ["Doubt", "doubts", "fold_of"]

Progress = Callable[[str, int, int], None]


@final
@dataclass(frozen=True)
class Doubt:
    """A suspect and the record (its place in the data set) whose labels it doubts."""

    record: int
    suspect: LabelSuspect


def doubts(
    model: object,
    dataset: Dataset,
    *,
    folds: int = 5,
    passes: float = 6,
    most: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[list[Doubt], ClassTable]:
    """(the `most` gravest regions, the gravest first; the table that the thresholds were read off).

    folds: learn the score layers so many times, each without the images that are then judged; 0: judge by the network
    as it is. passes: how often each image is seen in learning. The data's classes must be the network's.
    """
    network = features.require_trunk(model)
    head = next(iter(network.heads))
    taxonomy = _same_classes(network, head, dataset)
    store = features.FeatureStore()
    try:
        for i in range(len(dataset)):
            store.add(features.look(network, dataset.image(i)))
            if progress:
                progress("looking at", i + 1, len(dataset))
        fold = fold_of(dataset, folds) if folds else np.zeros(len(dataset), int)
        read = _Judged(network, store, dataset, head, taxonomy.ignore)
        table = ClassTable(len(taxonomy))
        coarse: list[Any] = [None] * len(dataset)
        with features.kept_heads(network):
            for f in range(max(folds, 1)):
                if folds:
                    others = np.flatnonzero(fold != f).tolist()
                    steps = max(20, round(passes * len(others) / 4))
                    features.learn_heads(
                        network,
                        store,
                        others,
                        read.labels,
                        head=head,
                        ignore=taxonomy.ignore,
                        steps=steps,
                        seed=seed + f,
                    )
                    if progress:
                        progress("learning without a fold", f + 1, folds)
                for i in np.flatnonzero(fold == f).tolist():
                    labels, predicted, confidence, own, coarse[i] = read(i)
                    table.add(labels, predicted, confidence, own, taxonomy.ignore)
        thresholds, surprise = table.thresholds(), table.surprise()
        found: list[Doubt] = []
        for i in range(len(dataset)):
            labels, predicted, confidence, own, _ = read(i, coarse[i])
            some = suspects_in(labels, predicted, confidence, own, thresholds, surprise, taxonomy.ignore)
            found = sorted([*found, *(Doubt(i, s) for s in some)], key=lambda d: -d.suspect.score)[:most]
            if progress:
                progress("judging", i + 1, len(dataset))
    finally:
        store.close()
    return found, table


def fold_of(dataset: Dataset, folds: int) -> NDArray[np.int64]:
    """Each record's fold: records of one group (a video, a patient) in one, the largest groups first, evenly filled;
    single images and data of one group alone by turns."""
    groups: dict[str, list[int]] = {}
    for i, record in enumerate(dataset.records):
        groups.setdefault(record.group or f"\0{i}", []).append(i)
    if len(groups) < folds:
        groups = {str(i): [i] for i in range(len(dataset))}
    found, filled = np.zeros(len(dataset), np.int64), np.zeros(folds, int)
    for members in sorted(groups.values(), key=lambda m: (-len(m), m[0])):
        f = int(filled.argmin())
        found[members] = f
        filled[f] += len(members)
    return found


def _same_classes(network: FCN, head: str, dataset: Dataset) -> Taxonomy:
    if not dataset.taxonomies:
        raise DataError(f"{printable(dataset.root)} has no labels to review; give labelled images.")
    theirs = network.taxonomies[head]
    if match(dataset.taxonomy, theirs).ids != tuple(range(len(theirs))):
        raise DataError(
            f"The classes of {printable(dataset.root)} are not the network's, in its order; review the data that it "
            "was trained on, or train on these first."
        )
    return dataset.taxonomy


@final
class _Judged:
    """(labels, predicted, its probability, the labels' probability, coarse scores) of a record, H W each."""

    def __init__(self, network: FCN, store: features.FeatureStore, data: Dataset, head: str, ignore: int) -> None:
        self._network, self._store, self._data, self._head, self._ignore = network, store, data, head, ignore

    def labels(self, i: int) -> NDArray[Any]:
        record = self._data.records[i]
        found = self._data.read_labels(record, next(iter(self._data.taxonomies)))
        if found.shape != self._store.sizes[i]:
            raise DataError(f"{printable(record.name)}: its label is not of its image's size; run fullyconv check.")
        return found

    def __call__(self, i: int, coarse: Any = None) -> Any:
        size = self._store.sizes[i]
        labels = self.labels(i)
        if coarse is None:
            coarse = features.scores(self._network, self._store[i], self._head).detach()
        predicted, confidence = features.read_scores(self._network, coarse, size)
        own = features.probability_of(self._network, coarse, labels, size, self._ignore)
        return labels, predicted, confidence, own, coarse
