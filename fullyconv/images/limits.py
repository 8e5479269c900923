"""What is read at all: formats, the caps on pixels and bytes, and the error for everything else."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from fullyconv.errors import DataError, UsageError, printable

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "BadImage",
    "Source",
    "lifted",
    "pixel_cap",
    "pixels_allowed",
    "too_large",
]

Source = str | os.PathLike[str] | bytes
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB: Pillow's own warning level
MAX_BYTES = 2**31  # of a file, which is read whole before it is decoded
MAX_SIDE = 1 << 20  # no image is a million pixels long; such headers are lies


@final
class BadImage(DataError):
    """A file that is not a readable image: `file`, and the `reason` without the file's name."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"{printable(file)}: {reason}")


_allowed: list[int] = []  # of the whole process, its threads and those that it forks


@contextmanager
def pixels_allowed(cap: int) -> Iterator[None]:
    """Read images of up to `cap` pixels in this process while it lasts; the user's environment stays as it is."""
    if cap < 1:
        raise UsageError(f"pixels_allowed({cap}): give a whole number of pixels, such as {MAX_PIXELS}.")
    _allowed.append(cap)
    try:
        yield
    finally:
        _allowed.pop()


def pixel_cap() -> int:
    """The largest number of pixels an image may have: what `pixels_allowed` says, else $FULLYCONV_MAX_PIXELS, else
    `MAX_PIXELS`."""
    if _allowed:
        return _allowed[-1]
    text = os.environ.get("FULLYCONV_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    if not text.isdigit() or int(text) < 1:
        raise DataError(f"FULLYCONV_MAX_PIXELS is {text!r}; give a whole number of pixels, such as {MAX_PIXELS}.")
    return int(text)


def too_large(name: str, pixels: object, cap: int) -> BadImage:
    return BadImage(
        name,
        f"has {pixels} pixels, more than the {cap} that are read; cut it into tiles, or allow more with --max-pixels N "
        "(in Python: fullyconv.images.pixels_allowed, or the variable FULLYCONV_MAX_PIXELS).",
    )


_lock = threading.Lock()


@contextmanager
def lifted(cap: int) -> Iterator[None]:
    """Pillow's own bomb check at `cap`: below its default the warning is an error, above it the limit is lifted."""
    from PIL import Image

    key = ("error", None, Image.DecompressionBombWarning, None, 0)
    if key not in warnings.filters:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
    if cap <= MAX_PIXELS:
        yield
        return
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, cap
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
