"""Which files are read by windows, and the source that reads them."""

from __future__ import annotations

import os
from pathlib import Path

from fullyconv.errors import DataError
from fullyconv.files.reading import read_anywhere
from fullyconv.images import pixel_cap
from fullyconv.images.limits import BadImage
from fullyconv.images.tiff import first_page, is_tiff
from fullyconv.rasters.windows import RasterSource

__all__ = ["open_source", "read_by_windows"]

ABOVE = 4096 * 4096  # pixels of a TIFF that is not read whole


def read_by_windows(path: Path) -> tuple[bool, bool]:
    """(whether `path` is a raster that is read by windows: a VRT, a TIFF that says where it lies or is large; whether
    it could be read whole instead)."""
    if path.suffix.lower() == ".vrt":
        return True, False
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False, True
    with read_anywhere(path) as at:
        if not is_tiff(at(0, 4)):
            return False, True
        try:
            page = first_page(at, os.fspath(path))
        except (BadImage, DataError):
            return False, True  # the decoder says what is wrong
    pixels = page.size[0] * page.size[1]
    return page.georeferenced or pixels > ABOVE, pixels <= pixel_cap()


def open_source(path: Path) -> RasterSource:
    """The source of a raster; MissingExtra without rasterio, DataError for what cannot be read."""
    from fullyconv.rasters.geotiff import GeoTiffSource

    return GeoTiffSource(path)
