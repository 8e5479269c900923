"""Cutmix of rare classes: a region of a rare class, with what surrounds it, pasted from one image into another.

CutMix (Yun et al., ICCV 2019) pastes random rectangles; here they are those around regions of the rarer half of the
classes (by pixels, of the main head), at the same place of the image relative to its sides, so that scenes
stay in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Sample
from fullyconv.errors import FullyconvError
from fullyconv.regions import bounding_box, components

__all__ = ["Rare", "donor", "pasted", "rare_classes"]

MARGIN = 0.25  # of a region's sides that is cut out round it
LARGEST = 0.5  # of the sides of the image that is pasted into


@final
@dataclass(frozen=True)
class Rare:
    """The rarer half of a head's classes, and in which records each occurs."""

    head: str
    where: dict[int, tuple[int, ...]]


def rare_classes(dataset: Dataset) -> Rare:
    """One pass over the labels of the main head. Records that cannot be read are left to the trainer."""

    head = next(iter(dataset.taxonomies))
    taxonomy = dataset.taxonomies[head]
    pixels = np.zeros(len(taxonomy))
    found: dict[int, list[int]] = {}
    for index, record in enumerate(dataset.records):
        try:
            label = dataset.read_labels(record, head)
        except (FullyconvError, OSError):
            continue
        counts = np.bincount(label[label != taxonomy.ignore].ravel(), minlength=len(taxonomy))[: len(taxonomy)]
        pixels += counts
        for k in np.flatnonzero(counts).tolist():
            found.setdefault(k, []).append(index)
    order = sorted(found, key=lambda k: (pixels[k], k))
    return Rare(head, {k: tuple(found[k]) for k in order[: len(order) // 2]})


def donor(rare: Rare, rng: np.random.Generator) -> tuple[int, int]:
    """(a rare class, every one as likely; a record that has it). Only where there is one."""
    k = list(rare.where)[int(rng.integers(len(rare.where)))]
    return k, int(rng.choice(rare.where[k]))


def pasted(
    sample: Sample, other: Sample, k: int, head: str, change: Callable[[Sample], Sample], rng: np.random.Generator
) -> Sample:
    """`sample` with a region of class k of `other` over it, the piece cut out first and then changed by `change`.

    The region is that of a pixel of the class drawn at random. `sample` as it is where `other` has none of the class.
    """
    label = other.labels[head]
    places = np.flatnonzero(label == k)
    if not len(places):
        return sample
    y, x = divmod(int(rng.choice(places)), label.shape[1])
    window = _around(label, y, x, sample.image.shape[:2])
    piece = change(_part(other, window))
    sides = [min(piece.image.shape[a], max(1, int(LARGEST * sample.image.shape[a]))) for a in (0, 1)]
    piece = _part(piece, (slice(0, sides[0]), slice(0, sides[1])))
    corner = []
    for a, (at, side) in enumerate(zip(window, sides, strict=True)):
        spare, room = other.image.shape[a] - (at.stop - at.start), sample.image.shape[a] - side
        corner.append(round(room * (at.start / spare if spare else 0.5)))
    to = (slice(corner[0], corner[0] + sides[0]), slice(corner[1], corner[1] + sides[1]))
    return Sample(
        sample.name,
        _over(sample.image, piece.image, to),
        {h: _over(sample.labels[h], piece.labels[h], to) for h in sample.labels},
    )


def _around(label: NDArray[np.integer], y: int, x: int, size: Sequence[int]) -> tuple[slice, slice]:
    """The box of the region at (y, x), with its margin; no larger than may be pasted, then about that pixel."""
    region = components(label)[0]
    top, left, bottom, right = bounding_box(region == region[y, x])
    window = []
    for low, high, at, whole, target in (
        (top, bottom, y, label.shape[0], size[0]),
        (left, right, x, label.shape[1], size[1]),
    ):
        margin = max(2, round(MARGIN * (high - low)))
        low, high, most = max(0, low - margin), min(whole, high + margin), max(1, int(LARGEST * target))
        if high - low > most:
            low = min(max(low, at - most // 2), high - most)
            high = low + most
        window.append(slice(low, high))
    return window[0], window[1]


def _part(sample: Sample, window: tuple[slice, slice]) -> Sample:
    return Sample(sample.name, sample.image[window], {h: label[window] for h, label in sample.labels.items()})


def _over(below: NDArray[np.number], above: NDArray[np.number], to: tuple[slice, slice]) -> NDArray[Any]:
    out = below.copy()
    out[to] = above
    return out
