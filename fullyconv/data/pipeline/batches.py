"""Samples into batches: mixed sizes are padded, images with the mean colour and labels with the ignore value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Sample
from fullyconv.errors import DataError, printable

__all__ = ["roles", "stack"]


def roles(dataset: Dataset) -> tuple[int, tuple[int, ...]]:
    """(leading colour channels, channels of depth kind): what `Augmentation.colour` and `.nearest` are to be."""
    if dataset.inputs == ("rgb",):
        return 3, ()
    widths = {m: dataset.read_input(dataset.records[0], m).shape[-1] for m in dataset.inputs}
    starts = dict(zip(dataset.inputs, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    nearest = tuple(starts[m] + c for m in dataset.inputs if m == "depth" for c in range(widths[m]))
    return (3 if dataset.inputs[0] == "rgb" else 0), nearest


def stack(
    samples: Sequence[Sample], *, fill: Sequence[float] | NDArray[np.number], ignore: Mapping[str, int]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """(images N H W C, labels {head: N H W}) of the largest height and width; images lie at the top left.

    fill: the stored value of each channel outside an image; ignore: {head: value outside it}. Types stay as they are:
    DataError where images, or labels of a head, differ in type or bands, since one would be cut to fit the other.
    """
    if not samples:
        raise DataError("A batch needs at least one sample; this one is empty.")
    _refuse_unlike([(s.name, s.image) for s in samples], "image")
    for head in samples[0].labels:
        _refuse_unlike([(s.name, s.labels[head][..., None]) for s in samples], f"{head} label")
    height, width = (max(s.image.shape[axis] for s in samples) for axis in (0, 1))
    first = samples[0].image
    images = np.empty((len(samples), height, width, first.shape[2]), first.dtype)
    labels = {h: np.empty((len(samples), height, width), v.dtype) for h, v in samples[0].labels.items()}
    for i, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        if (h, w) != (height, width):
            images[i] = np.asarray(fill).astype(first.dtype)
        images[i, :h, :w] = sample.image
        for head, label in sample.labels.items():
            labels[head][i] = ignore[head]
            labels[head][i, :h, :w] = label
    return images, labels


def _refuse_unlike(named: Sequence[tuple[str, NDArray[np.number]]], what: str) -> None:
    """DataError naming two of unlike type or bands, in the same words whichever comes first."""
    kinds = {(a.shape[2], a.dtype.str[1:]): (name, a) for name, a in sorted(named, key=lambda n: n[0], reverse=True)}
    if len(kinds) > 1:
        (one, a), (two, b) = (kinds[k] for k in sorted(kinds)[:2])
        raise DataError(
            f"The {what} of {printable(one)} has {a.shape[2]} bands of {a.dtype} and that of {printable(two)} "
            f"{b.shape[2]} of {b.dtype}; save all with the same bands and bits, or take the others away."
        )
