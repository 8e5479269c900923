"""An image of any size as tiles: level 0 is the image, each further level half as large (the mean of 2 x 2 pixels).

A tile of level L holds pixels i, j that stand for the image's from i 2^L, j 2^L on; label planes show the first of
them.
"""

from __future__ import annotations

import tempfile
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import encode_jpeg
from fullyconv.files import storage_errors

__all__ = ["TILE", "ImagePyramid", "level_count", "tile_box"]

TILE = 512  # pixels a side
_IN_MEMORY = 20_000_000  # pixels; larger images lie in a temporary file without a name
_STRIP = 1024  # rows halved at a time
_QUALITY = 93  # of JPEG: high, since borders are drawn at several times the size


def level_count(size: tuple[int, int]) -> int:
    """Levels until one tile holds the image."""
    return max(1, (max(size) - 1).bit_length() - (TILE - 1).bit_length() + 1)


def tile_box(size: tuple[int, int], level: int, x: int, y: int) -> tuple[int, int, int, int] | None:
    """Half-open top, left, bottom, right of a tile in its level's pixels; None where there is none."""
    if not 0 <= level < level_count(size):
        return None
    height, width = (-(-n // 2**level) for n in size)
    top, left = TILE * y, TILE * x
    if not (0 <= top < height and 0 <= left < width):
        return None
    return top, left, min(height, top + TILE), min(width, left + TILE)


@final
class ImagePyramid:
    """The levels of an image H W 3 uint8."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.size = (image.shape[0], image.shape[1])
        self._levels = [_kept(image)]
        while len(self._levels) < level_count(self.size):
            self._levels.append(_kept(_halved(self._levels[-1])))

    def tile(self, level: int, x: int, y: int) -> bytes | None:
        """A tile as JPEG; None where there is none."""
        box = tile_box(self.size, level, x, y)
        if box is None:
            return None
        return encode_jpeg(np.ascontiguousarray(self._levels[level][box[0] : box[2], box[1] : box[3]]), _QUALITY)


def _kept(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.shape[0] * image.shape[1] <= _IN_MEMORY:
        return image
    with storage_errors("Writing", tempfile.gettempdir()):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the array keeps it open
        found: NDArray[Any] = np.memmap(file, np.uint8, "w+", shape=image.shape)
        found[:] = image
    return found


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    half = np.empty((-(-height // 2), -(-width // 2), 3), np.uint8)
    for top in range(0, height, _STRIP):
        strip = image[top : top + _STRIP].astype(np.uint16)
        strip = np.pad(strip, ((0, strip.shape[0] % 2), (0, width % 2), (0, 0)), "edge")
        mean = (strip[::2, ::2] + strip[1::2, ::2] + strip[::2, 1::2] + strip[1::2, 1::2] + 2) // 4
        half[top // 2 : top // 2 + mean.shape[0]] = mean
    return half
