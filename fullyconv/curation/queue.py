"""`fullyconv next`: the images of a folder in the order in which to label them, and why each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.curation.features import Look, look, read_out, require_trunk
from fullyconv.curation.picking import Pick, pick, uncertain_share
from fullyconv.errors import DataError, MissingInput, UsageError
from fullyconv.images import read_image
from fullyconv.models.fcn import FCN
from fullyconv.predict import resize_image

__all__ = ["Suggestion", "suggest"]

_MOST_PIXELS = 2_000_000  # of an image that is looked at; larger ones are made smaller for it


@final
@dataclass(frozen=True)
class Suggestion:
    """An image to label. `unsure`: the share 0..1 that the network is unsure of, away from borders."""

    image: Path
    unsure: float
    stands_for: int  # images, itself among them, that are nearest to it of all that is labelled or chosen

    @property
    def reason(self) -> str:
        """Why this one, in words."""
        others = self.stands_for - 1
        group = f"nearest to {others} other{'s' * (others > 1)}" if others else "unlike the others"
        return f"{group}; unsure of {100 * self.unsure:.0f} %"


def suggest(
    model: object,
    images: Sequence[Path],
    labelled: Sequence[Path],
    count: int,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Suggestion], list[str]]:
    """(the `count` of `images` to label next, in order; notes of images that could not be read).

    model: an FCN. labelled: images that have labels, so that what is like them is left for later.
    """
    network = require_trunk(model)
    if network.preprocessing.channels != 3:
        raise UsageError("Choosing what to label next takes a network of colour images; this one takes others.")
    notes: list[str] = []
    done, total = 0, len(images) + len(labelled)

    def seen(file: Path) -> Look | None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)
        try:
            return look(network, _viewed(file))
        except (DataError, MissingInput) as error:
            notes.append(str(error))
            return None

    known = [found.pooled for file in labelled if (found := seen(file))]
    files: list[Path] = []
    pooled: list[NDArray[np.float32]] = []
    unsure: list[float] = []
    for file in images:
        found = seen(file)
        if found is not None:
            files.append(file)
            pooled.append(found.pooled)
            unsure.append(_unsure(network, found))
    if not files:
        raise MissingInput("None of the images can be read; see the notes, and give others.")
    covered = np.stack(known) if known else np.zeros((0, len(pooled[0])), np.float32)
    chosen = pick(np.stack(pooled), covered, np.array(unsure), count)
    return [_suggestion(p, files, unsure) for p in chosen], notes


def _suggestion(found: Pick, files: Sequence[Path], unsure: Sequence[float]) -> Suggestion:
    return Suggestion(files[found.index], unsure[found.index], found.stands_for)


def _viewed(file: Path) -> NDArray[Any]:
    image = read_image(file)
    height, width = image.shape[:2]
    factor = (_MOST_PIXELS / (height * width)) ** 0.5
    if factor >= 1:
        return image
    smaller: NDArray[Any] = resize_image(image, (max(1, round(height * factor)), max(1, round(width * factor))))
    return smaller


def _unsure(model: FCN, found: Look) -> float:
    labels, confidence, _ = read_out(model, found.features, found.size, next(iter(model.heads)))
    return uncertain_share(labels, confidence)
