"""GeoTIFF, COG, BigTIFF and VRT by windows, through rasterio (extra `geo`).

GDAL is told to stay on this machine, only the two drivers are tried, and of a VRT it sees what `vrt.mosaic` keeps.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, printable
from fullyconv.files.disk import sha256_file
from fullyconv.files.reading import open_regular, read_anywhere, read_ends
from fullyconv.images.limits import BadImage
from fullyconv.images.tiff import Page, first_page
from fullyconv.rasters.vrt import MOST_BANDS, TIFFS, mosaic
from fullyconv.rasters.windows import RasterProfile, Window, nodata_pixels

__all__ = ["GeoTiffSource", "gdal", "rasterio_or_missing"]

CACHE = 64  # MiB of decoded tiles that GDAL keeps; its own choice, 5 % of the machine's memory, is no constant


def rasterio_or_missing(what: str) -> Any:
    """The module, or MissingExtra that says how to install it."""
    try:
        import rasterio
    except ImportError as error:
        raise MissingExtra(what, "geo", "rasterio") from error
    return rasterio


@contextmanager
def gdal(what: str) -> Iterator[Any]:
    """rasterio under our settings; GDAL's own errors become DataError naming `what`."""
    rasterio = rasterio_or_missing(f"Reading {printable(what)} by windows")
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    settings = {
        "GDAL_CACHEMAX": CACHE, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "GDAL_VRT_ENABLE_PYTHON": "NO",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none", "GDAL_TIFF_INTERNAL_MASK": True, "GDAL_PAM_ENABLED": "NO",
    }  # fmt: skip
    try:
        with rasterio.Env(**settings):
            yield rasterio
    except (RasterioError, CPLE_BaseError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{printable(what)} cannot be read ({printable(cause)[:160]}); it is damaged, cut off, or of a kind that "
            "GDAL does not read: copy or export it again."
        ) from error


@final
class GeoTiffSource:
    """A GeoTIFF, plain or Big TIFF, COG or VRT."""

    def __init__(self, path: Path) -> None:
        self.path, self.note = path, ""
        self._table: Any = None  # a VRT as GDAL is told of it
        self._files = [path]
        with gdal(str(path)) as rasterio:
            self._data = self._opened()
            if self._data.count > MOST_BANDS:
                raise DataError(
                    f"{printable(path)} has {self._data.count} bands; at most {MOST_BANDS} are read: leave some out."
                )
            self._msk = self._beside(rasterio)
            self.profile, self._bands, self._alpha, self._masked, self._colours = self._facts()
        self._page = _full_page(path) if path.suffix.lower() != ".vrt" else None

    def _opened(self) -> Any:
        """What rasterio opens: the TIFF itself, or of a VRT what `vrt.mosaic` keeps of it."""
        import warnings

        import rasterio

        os.close(open_regular(self.path))  # no pipe, no device, nothing that blocks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            if self.path.suffix.lower() != ".vrt":
                return rasterio.open(self.path, driver="GTiff", sharing=False)
            text, parts = mosaic(self.path)
            self._files += parts
            home = self.path.absolute().parent
            if away := [p for p in parts if not Path(os.path.normpath(p)).is_relative_to(home)]:
                self.note = (
                    f"{printable(self.path.name)} shows {len(away)} of its {len(parts)} files from outside of its "
                    f"folder (the first: {printable(away[0])})."
                )
            self._table = rasterio.MemoryFile(text.encode(), ext=".vrt")
            return self._table.open(driver="VRT", sharing=False)

    def _beside(self, rasterio: Any) -> Any:
        """The mask in a file of its own (NAME.tif.msk), None without; BadImage for one of another size."""
        name = Path(f"{self.path}.msk")
        if not name.is_file() or read_ends(name, 4) not in TIFFS:
            return None
        mask = rasterio.open(name, driver="GTiff", sharing=False)
        self._files.append(name)
        if mask.shape != self._data.shape:
            sizes = " and ".join("x".join(map(str, d.shape)) for d in (mask, self._data))
            raise DataError(f"{printable(name)} is no mask of its image ({sizes}, HxW); export it again.")
        return mask

    def _facts(self) -> tuple[RasterProfile, list[int], int, bool, NDArray[np.uint8] | None]:
        from rasterio.enums import ColorInterp, MaskFlags

        data = self._data
        alpha = next((i for i, c in enumerate(data.colorinterp, 1) if c == ColorInterp.alpha), 0)
        bands = [i for i in data.indexes if i != alpha]
        if not bands:
            raise DataError(f"{printable(self.path)} holds no band but alpha; export it with its measurements.")
        kinds = {np.dtype(data.dtypes[i - 1]) for i in bands}
        if any(k.kind not in "uif" for k in kinds):
            raise DataError(f"{printable(self.path)} holds complex numbers; save real bands.")
        colours = None
        if len(bands) == 1 and data.colorinterp[0] == ColorInterp.palette:
            table = data.colormap(1)
            colours = np.zeros((256, 3), np.uint8)
            for value, colour in table.items():
                if value < 256:
                    colours[value] = colour[:3]
        masked = not alpha and any(MaskFlags.per_dataset in f for f in data.mask_flag_enums)
        placed = not data.transform.is_identity
        points = data.gcps if data.gcps[0] else None
        if placed and not _is_place(tuple(data.transform)[:6]):
            raise DataError(
                f"{printable(self.path)} says a place on the map that is none (its transform is "
                f"{', '.join(f'{v:g}' for v in tuple(data.transform)[:6])}); correct it (gdal_edit -a_ullr), or take "
                "the georeference off (gdal_edit -unsetgt)."
            )
        profile = RasterProfile(
            (data.height, data.width), 3 if colours is not None else len(bands),
            np.dtype(np.uint8) if colours is not None else np.result_type(*kinds),
            tuple(data.transform)[:6] if placed else None,
            data.crs.to_wkt() if data.crs else "", data.nodata,
            data.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG", dict(data.tags()), points, data.rpcs,
        )  # fmt: skip
        return profile, bands, alpha, masked, colours

    @property
    def opened(self) -> Any:
        """rasterio's own, which `close` closes."""
        return self._data

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        h, w = window.size
        with gdal(str(self.path)) as rasterio:
            at = rasterio.windows.Window(window.left, window.top, w, h)
            stored = np.moveaxis(self._data.read(self._bands, window=at), 0, -1)
            alpha = self._data.read(self._alpha, window=at) if self._alpha else None
            mask = self._data.read_masks(self._bands[0], window=at) if self._masked else None
            mask = self._msk.read(1, window=at) if self._msk is not None else mask
        bad = nodata_pixels(stored, self.profile.nodata)
        lost = self._page.absent_pixels(window.top, window.left, window.bottom, window.right) if self._page else None
        for layer in (lost, None if alpha is None else alpha == 0, None if mask is None else mask == 0):
            if layer is not None:
                bad = layer if bad is None else bad | layer
        values = self._colours[stored[..., 0].astype(np.uint8)] if self._colours is not None else stored
        return values, None if bad is None or not bad.any() else ~bad

    def identity(self) -> str:
        if len(self._files) == 1:
            return sha256_file(self.path)
        whole = hashlib.sha256()
        for file in self._files:
            whole.update(sha256_file(file).encode())
        return whole.hexdigest()

    def close(self) -> None:
        self._data.close()
        if self._table is not None:
            self._table.close()
        if self._msk is not None:
            self._msk.close()


def _full_page(path: Path) -> Page | None:
    """The first page where parts of it were never written: their pixels hold no data, whatever GDAL gives for them.
    DataError where none was, or where it is the page of an overview."""
    try:
        with read_anywhere(path) as at:
            page = first_page(at, os.fspath(path))
    except BadImage:
        return None  # GDAL says what is wrong
    if page.reduced or (page.absent is not None and page.absent.all()):
        raise DataError(
            f"{printable(path)} holds overviews alone: the pixels of its full size were never written; copy or export "
            "it again (gdal_translate)."
        )
    return page if page.absent is not None else None


def _is_place(transform: Sequence[float]) -> bool:
    """Whether pixels lie beside each other on a map: finite numbers, and sides that are neither nothing nor endless."""
    a, b, _, d, e, _ = transform
    sides = math.hypot(a, d), math.hypot(b, e)
    return all(abs(v) < 1e12 for v in transform) and min(sides) > 1e-12 and abs(a * e - b * d) > 1e-9 * math.prod(sides)
