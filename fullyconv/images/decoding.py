"""Images as arrays, their headers and their palettes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.files.reading import read_anywhere
from fullyconv.images.limits import BadImage, Source, pixel_cap
from fullyconv.images.opening import decode, name_of, open_image, orientation_of, read_bytes, words
from fullyconv.images.png import plain_samples, wide_grey_as_rgba
from fullyconv.images.tiff import Page, check_page, check_pages, first_page, is_tiff, pages, same_value, samples

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageFile import ImageFile

__all__ = [
    "ImageInfo",
    "declared_invalid",
    "image_info",
    "image_size",
    "is_lossy",
    "read_image",
    "read_palette",
    "read_wide",
    "read_wide_grey",
    "stored_bits",
    "turn",
]


@final
@dataclass(frozen=True)
class ImageInfo:
    """What an image's header says. `size` (H, W) is as displayed, `stored` as written; they differ by EXIF turns."""

    format: str
    mode: str  # Pillow's name of the pixel layout
    bits: int  # per channel as stored
    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int  # EXIF 1..8
    frames: int  # 2 stands for "more than one"
    lossy: bool


def turn(image: NDArray[np.generic], orientation: int) -> NDArray[Any]:
    """`image` H W ... as a viewer shows it: EXIF orientation 1..8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image if orientation == 1 else np.ascontiguousarray(image)


def read_image(source: Source, *, mode: Literal["rgb", "bands"] = "rgb", max_pixels: int | None = None) -> NDArray[Any]:
    """The image in a file or in bytes as displayed: H W 3 uint8 RGB, or with mode="bands" H W C as stored.

    Raises `BadImage` (not an image of the formats read, damaged, cut off, over `max_pixels`, not a regular file) or
    `MissingInput`. The table at the top of this module says what becomes of every kind of pixel.
    """
    cap, name = max_pixels or pixel_cap(), name_of(source)
    data = read_bytes(source)
    if (quick := plain_samples(data, cap, colours=(2,))) is not None:
        return quick
    if mode == "bands" and is_tiff(data) and (deep := _tiff_bands(data, name, cap)) is not None:
        return deep
    image: NDArray[Any]
    if (grey := read_wide_grey(data, name, cap)) is not None:
        image, orientation = grey
        return turn(image if mode == "bands" else np.repeat((image[..., :1] >> 8).astype(np.uint8), 3, -1), orientation)
    opened = open_image(data, name, cap)
    if mode == "bands" and stored_bits(opened, data) == 16 and opened.mode in ("RGB", "RGBA", "LA"):
        image = read_wide(opened, data, name, cap)
    else:
        decode(opened, data, name, cap)
        image = _rgb(opened, name) if mode == "rgb" else _bands(opened, name)
    return turn(image, orientation_of(opened))


def _rgb(opened: PILImage.Image, name: str) -> NDArray[np.uint8]:
    if opened.mode == "RGB":
        return np.asarray(opened)
    if opened.mode.startswith("I;16"):
        grey = (decode_integers(opened) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if opened.mode in ("I", "F", "LAB", "HSV"):
        raise BadImage(
            name, f"has {opened.mode} pixels, whose range is not known; export it with 8 or 16 bits a channel."
        )
    try:
        return np.asarray(opened.convert("RGB"))
    except Exception as error:
        raise BadImage(name, f"cannot be shown in colour ({words(error)}); export it as RGB.") from error


def _bands(opened: PILImage.Image, name: str) -> NDArray[Any]:
    try:
        if opened.mode in ("P", "PA", "1", "YCbCr"):
            opened = opened.convert({"P": "RGB", "PA": "RGBA", "1": "L", "YCbCr": "RGB"}[opened.mode])
        image = decode_integers(opened) if opened.mode.startswith("I") else np.asarray(opened)
    except Exception as error:
        raise BadImage(name, f"cannot be read by bands ({words(error)}); export it again.") from error
    return image if image.ndim == 3 else image[..., None]


def _tiff_bands(data: bytes, name: str, cap: int) -> NDArray[Any] | None:
    """A TIFF's bands H W C as stored: uint8 and uint16 so, all other numbers as float32; None where its numbers are
    no bands (a palette, YCbCr, less than 8 bits) or packed as images."""
    page = check_pages(lambda start, count: data[start : start + count], len(data), name, cap)[0]
    if page.photometric not in (0, 1, 2, 5) or page.bits < 8 or not page.readable:
        return None
    values = samples(data, page, name)
    return turn(values if values.dtype in (np.uint8, np.uint16) else values.astype(np.float32), page.orientation)


def decode_integers(opened: PILImage.Image) -> NDArray[Any]:
    """A 16- or 32-bit image H W as native uint16 where it fits, else float32."""
    values = np.asarray(opened)
    if values.dtype.kind == "u":
        return values.astype(np.uint16, copy=False)
    return values.astype(np.uint16 if values.min() >= 0 and values.max() <= 65535 else np.float32)


def stored_bits(opened: PILImage.Image, data: bytes) -> int:
    """Bits per channel as stored; Pillow keeps only the high byte of 16-bit colour."""
    if opened.format == "PNG":
        return data[24]
    if opened.format == "TIFF":
        bits: Any = getattr(opened, "tag_v2", {}).get(258, (8,))
        return int(bits[0] if isinstance(bits, tuple) else bits)
    if opened.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(opened.mode, 8)


def read_wide(opened: ImageFile, data: bytes, name: str, cap: int) -> NDArray[np.uint16]:
    """A 16-bit colour image as uint16: decoded once for the high and once for the low bytes.

    Pillow unpacks such files to 8 bits by taking one byte of two: the high one of the file's byte order. Told the
    other byte order it takes the low one.
    """
    raw = opened.tile[0].args if opened.tile else None
    raw = raw[0] if isinstance(raw, tuple) else raw
    swap = {"16B": "16L", "16L": "16B"}
    if (
        not isinstance(raw, str)
        or raw[-3:] not in swap
        or opened.mode == "LA"
        or opened.tile[0].codec_name == "libtiff"
    ):
        raise BadImage(
            name,
            f"holds 16-bit {opened.mode} in a layout that is read as 8 bits only; save it as uncompressed TIFF, "
            "or as PNG with 3 or 4 channels.",
        )
    low = open_image(data, name, cap)
    other = raw[:-3] + swap[raw[-3:]]
    low.tile = [t._replace(args=(other, *t.args[1:]) if isinstance(t.args, tuple) else other) for t in low.tile]
    decode(opened, data, name, cap)
    decode(low, data, name, cap)
    wide: NDArray[np.uint16] = np.asarray(opened).astype(np.uint16) << 8 | np.asarray(low)
    return wide


def read_wide_grey(data: bytes, name: str, cap: int) -> tuple[NDArray[np.uint16], int] | None:
    """(grey and alpha H W 2, EXIF orientation) of a PNG of 16-bit grey with alpha; None for every other file."""
    if (plain := wide_grey_as_rgba(data)) is None:
        return None
    opened = open_image(plain, name, cap)
    decode(opened, plain, name, cap)
    pairs: NDArray[np.uint16] = np.asarray(opened).astype(np.uint16)
    pairs[..., ::2] <<= 8
    return pairs[..., ::2] | pairs[..., 1::2], orientation_of(opened)


def declared_invalid(source: str | os.PathLike[str]) -> NDArray[np.bool_] | None:
    """Which pixels H W (as displayed) a TIFF declares not to be measured: its nodata value (in unsigned integers in all
    bands, as GDAL means it; in others in any band), an alpha of 0, or a 0 in its mask, a page of its own or the file
    beside it whose name ends in .msk; and those of parts that it leaves out. None where it declares nothing."""
    name, msk = name_of(source), f"{os.fspath(source)}.msk"
    with read_anywhere(source) as at:
        if not is_tiff(at(0, 4)):
            return None
        page, *others = pages(at, name)
        mask = next((p for p in others if p.mask and p.size == page.size), None)
    declared = (page.nodata is not None or page.alpha) and page.readable
    beside = mask is None and os.path.isfile(msk)
    absent = page.absent_pixels(0, 0, *page.size)
    if not (declared or mask is not None or beside or absent is not None):
        return None
    data = read_bytes(source)
    bad: NDArray[np.bool_] = np.zeros(page.size, bool) if absent is None else absent
    if declared:
        check_page(page, len(data), name, pixel_cap())
        bad |= _nothing(samples(data, page, name), page)
    if mask is not None:
        bad |= _masked(data, mask, name)
    if beside:
        data = read_bytes(msk)
        bad |= _masked(data, first_page(lambda start, count: data[start : start + count], msk), msk, page.size)
    return turn(bad, page.orientation)


def _nothing(values: NDArray[np.number], page: Page) -> NDArray[np.bool_]:
    """Pixels H W of the nodata value, or of an alpha of 0."""
    colours = values[..., :-1] if page.alpha and page.bands > 1 else values
    same = same_value(colours, page.nodata)
    bad = np.asarray(same.all(axis=-1) if values.dtype.kind == "u" else same.any(axis=-1))
    return bad | (values[..., -1] == 0) if page.alpha and page.bands > 1 else bad


def _masked(data: bytes, page: Page, name: str, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Pixels H W that a mask page does not hold to be valid (0 in every band); BadImage for one of another size."""
    check_page(page, len(data), name, pixel_cap())
    if size not in (None, page.size):
        h, w = page.size
        raise BadImage(name, f"is a mask of {h}x{w} (HxW) for an image of {size[0]}x{size[1]}; export it again.")
    return np.asarray((samples(data, page, name) == 0).all(axis=-1))


def image_info(source: Source, *, max_pixels: int | None = None) -> ImageInfo:
    """Format, layout and sizes from the header; the pixels are not decoded."""
    data, name = read_bytes(source), name_of(source)
    opened = open_image(data, name, max_pixels or pixel_cap())
    orientation = orientation_of(opened)
    stored = (opened.height, opened.width)
    size = stored
    if orientation >= 5:  # Pillow gives a TIFF's size as displayed, the others' as stored
        turned = (opened.width, opened.height)
        size, stored = (stored, turned) if opened.format == "TIFF" else (turned, stored)
    try:
        frames = 2 if getattr(opened, "is_animated", False) else 1
    except Exception:
        frames = 1
    kind = opened.format or ""
    bits = stored_bits(opened, data)
    return ImageInfo(kind, opened.mode, bits, size, stored, orientation, frames, is_lossy(data))


def is_lossy(data: bytes) -> bool:
    """Whether a JPEG or a WebP of the lossy kind: pixels that are near those that were saved, not equal."""
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= min(len(data), 1 << 20):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        at += 24 if kind == b"ANMF" else 8 + length + length % 2  # a frame holds parts after 16 bytes of its own
    return data[:3] == b"\xff\xd8\xff" or data[:4] == b"RIFF"


def image_size(source: Source) -> tuple[int, int]:
    """(H, W) of the image as displayed, from its header."""
    return image_info(source).size


def read_palette(source: Source) -> tuple[tuple[int, int, int], ...]:
    """The colours (R, G, B) by index of a palette file; () for one without."""
    opened = open_image(read_bytes(source), name_of(source), pixel_cap())
    flat = (opened.getpalette("RGB") or []) if opened.mode == "P" else []
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))
