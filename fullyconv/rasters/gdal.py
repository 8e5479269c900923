"""Which files are read by windows, and the source that reads them."""

from __future__ import annotations

import os
from pathlib import Path

from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files.reading import read_anywhere
from fullyconv.images import pixel_cap
from fullyconv.images.limits import BadImage
from fullyconv.images.tiff import first_page, is_tiff
from fullyconv.rasters.geotiff import GeoTiffSource
from fullyconv.rasters.levels import Resolution
from fullyconv.rasters.microscopy import SLIDES, PlainTiffSource, SlideSource, is_ome
from fullyconv.rasters.windows import RasterSource
from fullyconv.rasters.zarr_files import ZarrSource, is_zarr

__all__ = ["BIG", "FINEST", "kind_of", "open_source", "read_by_windows"]

BIG = (".btf", ".tf2", ".tf8")  # BigTIFF by name
FINEST = Resolution()
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


def kind_of(path: Path, asked: Resolution) -> str:
    """Which source reads `path` by windows: "zarr", "slide", "tiff" (OME, BigTIFF by name, or a TIFF of which a level
    is asked for), "geo", or "" where it is read whole."""
    if is_zarr(path):
        return "zarr"
    if path.suffix.lower() in SLIDES:
        return "slide"
    if path.suffix.lower() in BIG or (path.suffix.lower() in (".tif", ".tiff") and (is_ome(path) or asked)):
        return "tiff"
    return "geo" if read_by_windows(path)[0] else ""


def open_source(path: Path, asked: Resolution = FINEST) -> RasterSource:
    """The source of a raster; MissingExtra without what reads it, DataError for what cannot be read."""
    kind = kind_of(path, asked)
    if kind == "zarr":
        return ZarrSource(path, asked)
    if kind == "slide":
        return SlideSource(path, asked)
    if kind == "tiff":
        return PlainTiffSource(path, asked)
    if asked:
        raise UsageError(
            f"--resolution is about slides, OME-TIFF and Zarr; resample {printable(path)} by gdalwarp -tr."
        )
    return GeoTiffSource(path)
