"""How images and answers are shown to people: under their labels, where they are wrong, small. One module for all.

Arrays in, arrays or encoded bytes out. `labels`: H W ids; `palette[k]`: (R, G, B) of class k, 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Palette", "colours", "encode_jpeg", "error_marks", "inner_line", "overlay", "shrunk", "viewable"]

RED, GREY = (226, 43, 62), (128, 128, 136)
Palette = Sequence[Sequence[int]]


def viewable(image: NDArray[np.number], high_byte: bool = False) -> NDArray[np.uint8]:
    """An image H W C as H W 3 uint8: its first three channels, or the first one as grey; other types than uint8 are
    stretched to their largest value (floats in 1..255 are taken as they are).

    high_byte: of uint16 take the upper 8 bits instead, so that windows of one image are shown alike.
    """
    shown: NDArray[Any] = image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return shown
    if high_byte and shown.dtype == np.uint16:
        return (shown >> 8).astype(np.uint8)
    values = np.nan_to_num(shown.astype(np.float32), nan=0, posinf=0, neginf=0)
    largest = float(values.max(initial=0))
    top = 255.0 if 1 < largest <= 255 else largest or 1.0
    return np.asarray(np.clip(values * (255 / top), 0, 255), np.uint8)


def overlay(
    image: NDArray[np.number], labels: NDArray[np.integer], palette: Palette, parts: tuple[int, int] = (1, 1)
) -> NDArray[np.uint8]:
    """The image under its labels' colours, in `parts` (of the image, of the colour); alone where ids name no class."""
    shown = viewable(image)
    table = np.asarray(palette, np.uint16).reshape(-1, 3)
    known = labels < len(table)
    if known.all():
        return _mixed(shown, table[labels], parts)
    out = shown.copy()
    out[known] = _mixed(shown[known], table[labels[known]], parts)
    return out


def _mixed(image: NDArray[np.uint8], colour: NDArray[np.uint16], parts: tuple[int, int]) -> NDArray[np.uint8]:
    of_image, of_colour = (np.uint16(p) for p in parts)
    mixed: NDArray[np.uint8] = ((image * of_image + colour * of_colour) // (of_image + of_colour)).astype(np.uint8)
    return mixed


def colours(labels: NDArray[np.integer], palette: Palette) -> NDArray[np.uint8]:
    """Labels by their colours alone, H W 3; ids that name no class are white."""
    table = np.full((int(labels.max(initial=0)) + 1, 3), 255, np.uint8)
    table[: len(palette)] = palette[: len(table)]
    shown: NDArray[np.uint8] = table[labels]
    return shown


def shrunk(image: NDArray[np.number], side: int, smooth: bool = False) -> NDArray[Any]:
    """`image` (H W or H W C) at most `side` pixels a side, of its own type; nearest pixels, or their means."""
    from PIL import Image

    longest = max(image.shape[:2])
    if longest <= side:
        return image
    size = (max(1, round(image.shape[1] * side / longest)), max(1, round(image.shape[0] * side / longest)))
    way = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
    source = image if image.dtype == np.uint8 else image.astype(np.int32)
    small: NDArray[Any] = np.asarray(Image.fromarray(source).resize(size, way)).astype(image.dtype)
    return small


def error_marks(truth: NDArray[np.integer], predicted: NDArray[np.integer], ignore: int) -> bytes:
    """A PNG to lie over an image: wrong pixels red, unlabelled ones grey, right ones clear."""
    return _marks(np.where(truth == ignore, 2, truth != predicted), (235, 150))


def inner_line(inside: NDArray[np.bool_]) -> bytes:
    """A PNG to lie over an image: a red line just inside the border of `inside`, all else clear."""
    core = inside
    for _ in range(max(1, round(max(inside.shape) / 110))):  # as thick in a large crop as in a small one
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return _marks(inside & ~core, (255, 0))


def _marks(kind: NDArray[np.integer | np.bool_], opacity: tuple[int, int]) -> bytes:
    """0 clear, 1 red, 2 grey, the latter two so opaque (0..255)."""
    from PIL import Image

    image, out = Image.fromarray(kind.astype(np.uint8)), BytesIO()
    image.putpalette([0, 0, 0, *RED, *GREY])
    image.save(out, "PNG", optimize=True, transparency=bytes([0, *opacity]))
    return out.getvalue()


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90) -> bytes:
    """H W or H W 3 uint8 -> JPEG."""
    from PIL import Image

    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "JPEG", quality=quality)
    return out.getvalue()
