"""Looking while training: the same few images, drawn again and again as the network sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullyconv.evaluate.keep import jpeg, viewable
from fullyconv.files import atomic_write, make_directory

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset
    from fullyconv.predict import Predictor

__all__ = ["draw"]

SIDE = 240


def draw(predictor: Predictor, dataset: Dataset, directory: Path, epoch: float, images: int = 4) -> list[Path]:
    """Draw `images` evenly spaced images of `dataset` under the main head's colours, at most 240 pixels a side.

    Writes directory/epochEEEE.EE-NAME.jpg, which the report lines up over time; returns the files.
    """
    from PIL import Image

    make_directory(directory)
    head = next(iter(predictor.heads))
    palette = np.asarray(predictor.model.taxonomies[head].palette, np.uint16)
    files = []
    for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(images, len(dataset)))}):
        image = dataset.image(index)
        colours = palette[predictor.labels(image)[head]]
        mixed = ((viewable(image).astype(np.uint16) * 2 + colours * 3) // 5).astype(np.uint8)
        picture = Image.fromarray(mixed)
        picture.thumbnail((SIDE, SIDE))
        name = dataset.records[index].name.replace("/", "_")
        files.append(directory / f"epoch{epoch:07.2f}-{name}.jpg")
        atomic_write(files[-1], jpeg(np.asarray(picture), 85))
    return files
