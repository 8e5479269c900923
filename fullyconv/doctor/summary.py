"""What training on a data set will meet: class frequencies and weights, image statistics, sizes, a first recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset
from fullyconv.data.class_weights import median_frequency_weights
from fullyconv.doctor.scan import InputFacts, LabelFacts, RecordFacts
from fullyconv.errors import DataError

__all__ = ["HeadSummary", "Summary", "summarise", "summarise_samples"]

SMALL = 320  # pixels a side: crops are no smaller where half of the images hold them
SKEWED = 20  # pixels of the largest class by those of the smallest, above which classes are weighted


@final
@dataclass(frozen=True)
class HeadSummary:
    """A head's classes and, where labels were counted, each one's pixels, share of the labelled pixels (0..1) and
    median-frequency weight; ignored: share of all pixels."""

    classes: Sequence[str]
    pixels: Sequence[int] = ()
    frequency: Sequence[float] = ()
    median_frequency_weights: Sequence[float] = ()
    ignored: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self)) if self.pixels else {"classes": self.classes}


@final
@dataclass(frozen=True)
class Summary:
    """images by split; (H, W) range and median by area, the largest H and the largest W in `sides`; channel mean and
    std in stored range (None after a fast pass); and by head: names, share of the labelled pixels by class,
    median-frequency weights, share of ignored pixels."""

    images: Mapping[str, int]
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    heads: Mapping[str, HeadSummary]
    recipe: Mapping[str, Any]
    sides: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": dict(self.images),
            "sizes": {k: list(getattr(self, k)) for k in ("smallest", "median", "largest")},
            "mean": self.mean and list(self.mean),
            "std": self.std and list(self.std),
            "heads": {k: v.to_json() for k, v in self.heads.items()},
            "recipe": dict(self.recipe),
        }


def summarise(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Summary | None:
    """The summary of all splits together, weights and statistics from "train" where there is one."""
    sizes = np.array([r.inputs[0].size for r in facts if r.inputs and r.inputs[0].size])
    if not len(sizes):
        return None
    train = datasets[0].split
    images = {d.split or "all": len(d) for d in datasets}
    mean, std = _moments([r for r in facts if r.split == train])
    heads = {
        head: _head(taxonomy.names, [la for r in facts if r.split == train for la in r.labels if la.head == head])
        for head, taxonomy in datasets[0].taxonomies.items()
    }
    area = sizes.prod(axis=1)
    middle = sizes[np.argsort(area)[len(area) // 2]]
    return Summary(
        images,
        _pair(sizes[area.argmin()]),
        _pair(middle),
        _pair(sizes[area.argmax()]),
        mean,
        std,
        heads,
        _recipe(sizes, heads, images),
        _pair(sizes.max(axis=0)),
    )


def summarise_samples(dataset: Dataset) -> Summary | None:
    """The summary of images and labels that lie in no files (a sequence of one's own), by reading all of them; what
    cannot be read is left to training, which has a rule for it."""
    facts = []
    for i, record in enumerate(dataset.records):
        try:
            sample = dataset[i]
        except DataError:
            continue
        counts = {
            head: np.append(_counts(sample.labels[head], len(taxonomy)), (sample.labels[head] == taxonomy.ignore).sum())
            for head, taxonomy in dataset.taxonomies.items()
        }
        size = (int(sample.image.shape[0]), int(sample.image.shape[1]))
        labels = [LabelFacts(head, Path(), Path(), counts=found) for head, found in counts.items()]
        facts.append(RecordFacts(dataset.split, record, [InputFacts(dataset.inputs[0], Path(), size=size)], labels))
    return summarise([dataset], facts)


def _counts(label: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    return np.bincount(label[label < classes].ravel(), minlength=classes)[:classes]


def _pair(size: NDArray[np.integer]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def _moments(facts: Sequence[RecordFacts]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    some = [r.inputs[0].moments for r in facts if r.inputs and r.inputs[0].moments]
    some = [m for m in some if m is not None and some[0] is not None and len(m[1]) == len(some[0][1])]
    if not some:
        return None, None
    n = sum(m[0] for m in some if m)
    mean = np.sum([m[1] for m in some if m], axis=0) / n
    variance = np.maximum(np.sum([m[2] for m in some if m], axis=0) / n - mean**2, 0)
    return tuple(mean.round(4).tolist()), tuple(np.sqrt(variance).round(4).tolist())


def _head(names: Sequence[str], labels: Sequence[LabelFacts]) -> HeadSummary:
    counts = [la.counts for la in labels if la.counts is not None and len(la.counts) == len(names) + 1]
    if not counts:
        return HeadSummary(list(names))
    total = np.sum(counts, axis=0)
    labelled = max(int(total[:-1].sum()), 1)
    return HeadSummary(
        classes=list(names),
        pixels=total[:-1].tolist(),
        frequency=(total[:-1] / labelled).round(6).tolist(),
        median_frequency_weights=median_frequency_weights([c[:-1] for c in counts]).round(4).tolist(),
        ignored=round(float(total[-1] / max(total.sum(), 1)), 6),
    )


def _recipe(sizes: NDArray[np.integer], heads: Mapping[str, HeadSummary], images: Mapping[str, int]) -> dict[str, Any]:
    """What training takes where a recipe says "auto": a crop that fits most images, weights where classes are very
    unequal (`fullyconv.train.chosen` lowers the batch to what memory holds).

    The crop is what nine of ten images hold. Where sizes differ much that is a crop in which large images show
    nothing whole, so it is at least what half of them hold, up to `SMALL` pixels; the smaller ones are padded."""
    low, middle = np.percentile(sizes, (10, 50), axis=0)
    side = np.maximum(low, np.minimum(middle, SMALL))
    crop = [int(max(32, min(512, n // 32 * 32))) for n in side]
    shares = [f for h in heads.values() for f in h.frequency if f > 0]
    skewed = bool(shares) and max(shares) > SKEWED * min(shares)
    count = next(iter(images.values()))
    return {
        "crop": crop,
        "batch_size": int(max(1, min(8, 2_000_000 // (crop[0] * crop[1]), count))),
        "class_weights": "root-median-frequency" if skewed else "none",
    }
