"""Samples into batches: mixed sizes are padded, pictures with the mean colour and labels with the ignore value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Sample
from fullyconv.data.transforms import Augmentation, augment, generator
from fullyconv.errors import DataError
from fullyconv.preprocessing import Preprocessing

__all__ = ["Batch", "collate", "fetch", "roles"]


@final
@dataclass(frozen=True)
class Batch:
    """images N C H W (float32 in the network's convention, or as stored), labels {head: N H W int64}, names."""

    images: NDArray[Any]
    labels: Mapping[str, NDArray[np.int64]]
    names: tuple[str, ...]


def roles(dataset: Dataset) -> tuple[int, tuple[int, ...]]:
    """(leading colour channels, channels of depth kind): what `Augmentation.colour` and `.nearest` are to be."""
    if dataset.inputs == ("rgb",):
        return 3, ()
    widths = {m: dataset.read_input(dataset.records[0], m).shape[-1] for m in dataset.inputs}
    starts = dict(zip(dataset.inputs, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    nearest = tuple(starts[m] + c for m in dataset.inputs if m == "depth" for c in range(widths[m]))
    return (3 if dataset.inputs[0] == "rgb" else 0), nearest


def fetch(
    dataset: Dataset, index: int, augmentation: Augmentation, *, seed: int, epoch: int, fill: Sequence[float]
) -> Sample:
    """Sample `index` as it looks in `epoch`: depends on (seed, epoch, index) alone, whoever asks."""
    ignore = {head: taxonomy.ignore for head, taxonomy in dataset.taxonomies.items()}
    return augment(dataset[index], augmentation, generator(seed, epoch, index), fill=fill, ignore=ignore)


def collate(
    samples: Sequence[Sample],
    *,
    ignore: Mapping[str, int],
    fill: Sequence[float] | NDArray[Any],
    preprocessing: Preprocessing | None = None,
) -> Batch:
    """One batch of the largest height and width among `samples`; pictures lie at the top left.

    fill: the stored value of each channel outside a picture; ignore: {head: value outside it}. With `preprocessing`
    the images become network input, float32; without, they keep their dtype.
    """
    if not samples:
        raise DataError("A batch needs at least one sample; this one is empty.")
    height, width = (max(s.image.shape[axis] for s in samples) for axis in (0, 1))
    first = samples[0].image
    stacked = np.empty((len(samples), height, width, first.shape[2]), first.dtype)
    labels = {head: np.full((len(samples), height, width), ignore[head], np.int64) for head in samples[0].labels}
    for i, sample in enumerate(samples):
        h, w, channels = sample.image.shape
        if channels != first.shape[2] or sample.image.dtype != first.dtype:
            raise DataError(
                f"{sample.name} has {channels} channels of {sample.image.dtype}, {samples[0].name} {first.shape[2]} of "
                f"{first.dtype}; a batch needs pictures of one kind."
            )
        if (h, w) != (height, width):
            stacked[i] = np.round(fill) if np.issubdtype(first.dtype, np.integer) else fill
        stacked[i, :h, :w] = sample.image
        for head, label in sample.labels.items():
            labels[head][i, :h, :w] = label
    images = preprocessing(stacked) if preprocessing else np.ascontiguousarray(np.moveaxis(stacked, -1, 1))
    return Batch(images, labels, tuple(s.name for s in samples))
