"""Pixels that were never measured: NaN, infinity, and what a TIFF itself declares as nodata or fully transparent.

They are no data: their label counts as ignored, and the network sees the mean of the image's valid pixels there, so
that nothing round them is spoiled. One rule for learning, measuring and prediction, for files and for arrays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv import images

__all__ = ["filled", "invalid_pixels", "read_valid"]


def invalid_pixels(image: NDArray[np.number], file: Path | None = None) -> NDArray[np.bool_] | None:
    """Which pixels H W of `image` H W C (read from `file`) are none; None where all are valid."""
    bad = None
    if image.dtype.kind == "f":
        finite = np.isfinite(image).all(axis=-1)
        bad = None if finite.all() else ~finite
    if file is not None and file.suffix.lower() in (".tif", ".tiff"):
        declared = images.declared_invalid(file)
        if declared is not None and declared.shape == image.shape[:2]:
            bad = declared if bad is None else bad | declared
    return bad if bad is not None and bad.any() else None


def read_valid(image: NDArray[np.number], file: Path | None = None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(`image` with the mean of its valid pixels, by band, at the invalid ones; which those are, None for none)."""
    return filled(image, invalid_pixels(image, file))


def filled(image: NDArray[np.number], bad: NDArray[np.bool_] | None) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """`read_valid` where it is known which pixels hold no data."""
    if bad is None:
        return image, None
    good = image[~bad]
    mean = good.mean(axis=0, dtype=np.float64) if len(good) else np.zeros(image.shape[2])
    out = image.copy()
    out[bad] = (np.rint(mean) if image.dtype.kind in "ui" else mean).astype(image.dtype)
    return out, bad
