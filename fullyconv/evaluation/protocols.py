"""At which size images and labels are scored: their own, or, for comparison with peers, one shorter side for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UsageError

if TYPE_CHECKING:
    from fullyconv.data.base import Sample

__all__ = ["resized", "shorter_side"]


def shorter_side(protocol: str) -> int | None:
    """The side a protocol resizes to; None for the images' own size."""
    kind, _, side = protocol.partition(":")
    if protocol in ("native", "paper"):
        return None
    if kind == "resized" and side.isdecimal() and 1 <= int(side) <= 16384:
        return int(side)
    raise UsageError(
        f"The protocol {protocol!r} is unknown; choose native, paper or resized:SIDE (such as resized:520)."
    )


def resized(sample: Sample, side: int) -> Sample:
    """`sample` with its shorter side `side` pixels: the image bilinear (antialiased), the labels nearest."""
    from PIL import Image

    from fullyconv.data.base import Sample as Resized
    from fullyconv.predict import resize_image

    height, width = sample.image.shape[:2]
    factor = side / min(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))

    def nearest(label: NDArray[np.integer]) -> NDArray[Any]:
        out = Image.fromarray(label.astype(np.int32)).resize(size[::-1], Image.Resampling.NEAREST)
        return np.asarray(out).astype(label.dtype)

    return Resized(sample.name, resize_image(sample.image, size), {h: nearest(v) for h, v in sample.labels.items()})
