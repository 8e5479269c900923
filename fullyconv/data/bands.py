"""Pictures that are more than colour: any number of bands, 8 or 16 bits or float, GeoTIFF through the `geo` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.errors import FullyconvError, MissingExtra
from fullyconv.images import BadImage

__all__ = ["is_multiband", "read_bands"]


def is_multiband(file: Path) -> bool:
    """Whether a picture is a TIFF of other than 1, 3 or (as RGBA) 4 bands, which reading as colour would lose."""
    try:
        return _tiff_bands(file) not in (0, 1, 3, 4)
    except FullyconvError:
        return False


def _tiff_bands(file: Path) -> int:
    """SamplesPerPixel of a TIFF's first page; 0 for other formats. Read from the header: Pillow refuses many bands."""
    data = file.read_bytes()[:8] if file.is_file() else b""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return 0
    order = "little" if data[:2] == b"II" else "big"
    with file.open("rb") as handle:
        handle.seek(int.from_bytes(data[4:8], order))  # type: ignore[arg-type]
        count = int.from_bytes(handle.read(2), order)  # type: ignore[arg-type]
        for _ in range(min(count, 512)):
            entry = handle.read(12)
            if int.from_bytes(entry[:2], order) == 277:  # type: ignore[arg-type]
                return int.from_bytes(entry[8:10], order)  # type: ignore[arg-type]
    return 1


def read_bands(file: Path) -> NDArray[Any]:
    """A picture H W C as stored (uint8, uint16 or float32); what Pillow cannot hold is read by rasterio.

    Raises BadImage, MissingInput, or MissingExtra where rasterio is needed and missing.
    """
    try:
        return images.read_image(file, mode="bands")
    except BadImage:
        if _tiff_bands(file) == 0:
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
