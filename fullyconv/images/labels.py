"""Label maps: ids as stored, never brightness, and writing them and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError
from fullyconv.files import atomic_write
from fullyconv.images.limits import BadImage, Source, pixel_cap
from fullyconv.images.opening import decode, name_of, open_picture, orientation_of, read_bytes
from fullyconv.images.png import plain_samples
from fullyconv.images.reading import integers

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["encode_label", "encode_png", "equal_channels", "read_label", "write_label"]


def read_label(source: Source, *, colours: bool = False, max_pixels: int | None = None) -> NDArray[Any]:
    """A label map's raw ids: H W uint8 or uint16, palette indices as stored, never their brightness.

    With `colours` a colour-coded map is returned as H W 3 uint8 for the caller's table; without it one is refused
    (unless its three channels are equal: each is then the ids), as are JPEG (its values are approximate), alpha, floats
    and EXIF-turned labels (they would turn away from their image).
    """
    cap, name = max_pixels or pixel_cap(), name_of(source)
    data = read_bytes(source)
    if (quick := plain_samples(data, cap, colours=(0, 2, 3) if colours else (0, 3))) is not None:
        return quick if quick.shape[2] == 3 else quick[..., 0]
    picture = open_picture(data, name, cap)
    if picture.format == "JPEG":
        raise BadImage(name, "is a JPEG label, whose values are only approximate; export labels as PNG.")
    if orientation_of(picture) != 1:
        raise BadImage(name, "is a label with an EXIF orientation; save it again without, turned as its image is.")
    decode(picture, data, name, cap)
    if picture.mode in ("RGB", "RGBA") and colours:
        return np.asarray(picture)[..., :3]
    return _ids(picture, data, name)


def _ids(picture: PILImage.Image, data: bytes, name: str) -> NDArray[Any]:
    if picture.mode in ("L", "P", "1"):
        ids = np.asarray(picture.convert("L")) // 255 if picture.mode == "1" else np.asarray(picture)
        if picture.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
            ids = ids // (255 // (2 ** data[24] - 1))  # Pillow stretches 2- and 4-bit grey to 0..255
        return ids
    if picture.mode.startswith("I"):
        values = integers(picture)
        if values.dtype == np.uint16:
            return values
        raise BadImage(name, "has label values outside 0..65535; store ids from 0 up.")
    if picture.mode == "RGB" and (one := equal_channels(np.asarray(picture))) is not None:
        return one
    if picture.mode in ("RGB", "RGBA"):
        some = np.asarray(picture)[:: max(1, picture.height // 512), :: max(1, picture.width // 512), :3]
        colours = np.unique(some.reshape(-1, 3), axis=0)
        raise BadImage(
            name,
            f"is a colour label ({picture.mode}, {len(colours)} colours, such as {tuple(map(int, colours[-1]))}); "
            "give the colours in classes.txt (one line a class: name r g b), or store class ids.",
        )
    raise BadImage(name, f"has {picture.mode} pixels, which are no class ids; store ids as 8- or 16-bit grey PNG.")


def equal_channels(label: NDArray[Any]) -> NDArray[Any] | None:
    """The one channel H W of a map H W 3 whose three are equal; None for any other."""
    one = label[..., 0]
    same = np.array_equal(one, label[..., 1]) and np.array_equal(one, label[..., 2])
    return np.ascontiguousarray(one) if same else None


def encode_label(labels: NDArray[Any], palette: Sequence[Sequence[int]] = ()) -> bytes:
    """`labels` H W (ids) as PNG: with a palette when all ids are below 256, else 16-bit grey.

    palette[k] is (R, G, B) of id k; ids without a colour are white.
    """
    from PIL import Image

    if labels.ndim != 2 or labels.size == 0:
        raise DataError(f"A label map is H x W, this has the shape {labels.shape}; give one id a pixel.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise DataError(f"Label ids are 0..65535, these are {low}..{high}; map them first.")
    if high > 255:
        picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16))
    else:
        picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        if palette:
            flat = [int(v) for colour in palette[:256] for v in colour]
            picture.putpalette(flat + [255] * (768 - len(flat)))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def encode_png(image: NDArray[Any]) -> bytes:
    """`image` H W, H W 1, H W 3 or H W 4 uint8 (or H W uint16) as PNG, without any metadata."""
    from PIL import Image

    out = BytesIO()
    flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(flat)).save(out, "PNG")
    return out.getvalue()


def write_label(path: str | os.PathLike[str], labels: NDArray[Any], palette: Sequence[Sequence[int]] = ()) -> None:
    """Writes `encode_label(labels, palette)` to `path`, whole or not at all; the folder must exist."""
    atomic_write(path, encode_label(labels, palette))
