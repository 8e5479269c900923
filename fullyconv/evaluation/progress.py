"""Looking while training: the same few images, drawn again and again as the network sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import Palette, encode_jpeg, overlay, shrunk
from fullyconv.files import atomic_write, make_directory
from fullyconv.files.outputs import flat_name

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset
    from fullyconv.predict import Predictor

__all__ = ["draw_progress"]

SIDE = 240  # pixels of the longer side of an image in the report's strip of them


def draw_progress(predictor: Predictor, dataset: Dataset, directory: Path, epoch: float, images: int = 4) -> list[Path]:
    """Draw `images` evenly spaced images of `dataset` under the main head's colours, at most 240 pixels a side.

    Writes directory/epochEEEE.EE-NAME.jpg and, the first time, label-NAME.jpg, which the report lines up over time;
    returns the former.
    """
    make_directory(directory)
    head = next(iter(predictor.heads))
    palette = predictor.taxonomies[head].palette
    files = []
    for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(images, len(dataset)))}):
        image = dataset.image(index)
        name = flat_name(dataset.records[index].name)
        files.append(directory / f"epoch{epoch:07.2f}-{name}.jpg")
        atomic_write(files[-1], _small(image, predictor.labels(image)[head], palette))
        truth = directory / f"label-{name}.jpg"
        if not truth.exists():
            labels = dataset[index].labels
            atomic_write(truth, _small(image, labels.get(head, next(iter(labels.values()))), palette))
    return files


def _small(image: NDArray[np.number], labels: NDArray[np.integer], palette: Palette) -> bytes:
    return encode_jpeg(shrunk(overlay(image, labels, palette, (2, 3)), SIDE, smooth=True), 85)
