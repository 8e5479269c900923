"""Images that are more than colour: any number of bands, 8 or 16 bits or float, GeoTIFF through the `geo` extra."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.errors import MissingExtra
from fullyconv.files import open_regular, read_ends
from fullyconv.images import BadImage

__all__ = ["holds_tiff", "is_multiband", "read_bands"]


def is_multiband(file: Path) -> bool:
    """Whether an image is a TIFF that reading as colour would lose or refuse: other than 1, 3 or (as RGBA) 4 bands,
    three or four that are said to be no colours, or numbers of 32 bits."""
    try:
        tags = _tiff_tags(file)
    except (OSError, struct.error):
        return False
    bands, colours = tags.get(_BANDS, 1), tags.get(_PHOTOMETRIC, 2) in _COLOURS
    return bool(tags) and (bands not in (1, 3, 4) or (bands > 1 and not colours) or tags.get(_BITS, 1) >= 32)


_BITS, _PHOTOMETRIC, _BANDS = 258, 262, 277
_COLOURS = (2, 3, 5, 6, 8)  # RGB, palette, CMYK, YCbCr, Lab


def _tiff_tags(file: Path) -> dict[int, int]:
    """The first value of the tags above on a TIFF's (or BigTIFF's) first page; {} for other formats."""
    with os.fdopen(open_regular(file), "rb") as handle:
        head = handle.read(16)
        order, big = {b"II": "<", b"MM": ">"}.get(head[:2], ""), head[2:4] in (b"+\0", b"\0+")
        if not order or not (big or head[2:4] in (b"*\0", b"\0*")):
            return {}
        long, number, size = (order + "Q", order + "Q", 20) if big else (order + "I", order + "H", 12)
        start, width = (8, 8) if big else (4, 4)
        handle.seek(struct.unpack(long, head[start : start + width])[0])
        count = struct.unpack(number, handle.read(struct.calcsize(number)))[0]
        page = handle.read(min(count, 512) * size)
        tags: dict[int, int] = {}
        for i in range(0, len(page) - size + 1, size):
            tag, kind = struct.unpack(order + "HH", page[i : i + 4])
            values, value = struct.unpack(long, page[i + 4 : i + 4 + width])[0], page[i + 4 + width : i + size]
            if tag not in (_BITS, _PHOTOMETRIC, _BANDS) or kind not in (3, 4):
                continue
            if values * (2 if kind == 3 else 4) > width:
                handle.seek(struct.unpack(long, value)[0])
                value = handle.read(4)
            tags[tag] = struct.unpack(order + "HI"[kind - 3], value[: 2 if kind == 3 else 4])[0]
        return tags


def holds_tiff(file: Path) -> bool:
    return read_ends(file, 4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_bands(file: Path) -> NDArray[Any]:
    """An image H W C as stored (uint8, uint16 or float32); what Pillow cannot hold is read by rasterio.

    Raises BadImage, MissingInput, or MissingExtra where rasterio is needed and missing.
    """
    try:
        return images.read_image(file, mode="bands")
    except BadImage:
        if not holds_tiff(file):
            raise
        return _rasterio_bands(file)


def _rasterio_bands(file: Path) -> NDArray[Any]:
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtra(f"Reading {file} by its bands", "geo", "rasterio") from error
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(file, driver="GTiff") as source:
            if source.width * source.height > images.pixel_cap():
                raise BadImage(str(file), f"has {source.width * source.height} pixels; cut it into tiles.")
            planes = source.read()
    except rasterio.errors.RasterioError as error:
        raise BadImage(str(file), f"cannot be read as TIFF ({str(error)[:120]}); export it again.") from error
    image = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
    return image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32)
