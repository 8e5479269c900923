"""Microscopes' files by windows (extra `slides`): OME-TIFF and TIFFs with levels through tifffile, whole slides through
tiffslide."""

from __future__ import annotations

import hashlib
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, printable
from fullyconv.files.disk import sha256_file
from fullyconv.files.reading import read_anywhere
from fullyconv.rasters.levels import Level, Resolution, choose_level
from fullyconv.rasters.windows import RasterProfile, Window, nodata_pixels

__all__ = ["SLIDES", "PlainTiffSource", "SlideSource", "is_ome"]

SLIDES = (".svs", ".ndpi", ".scn", ".bif", ".tiffslide")
LARGEST_CHUNK = 1 << 30  # bytes of one stored tile or strip, which is decoded whole
MOST_PAGES = 10_000
_UNITS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def is_ome(path: Path) -> bool:
    """Whether a TIFF's name and first bytes say that it is OME's."""
    return path.name.lower().endswith((".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf2", ".ome.tf8"))


@final
class _Complaints(logging.Handler):
    """What tifffile says is wrong, and goes on."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(record.getMessage())


@contextmanager
def _told(path: Path, module: str) -> Iterator[Any]:
    """The module; whatever it raises about the file becomes DataError."""
    import importlib

    try:
        for name in ("tifffile", "zarr", module):
            found = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"Reading {printable(path)} by windows", "slides", module) from error
    log, kept = logging.getLogger("tifffile"), _Complaints()
    before, log.propagate = log.propagate, False
    log.addHandler(kept)
    try:
        yield found
        if kept.errors:  # what it passes over: pages and tags that are not there
            raise ValueError(kept.errors[0])
    except (DataError, MemoryError):
        raise
    except Exception as error:  # these libraries raise whatever their parsing runs into
        raise DataError(
            f"{printable(path)} cannot be read ({printable(error)[:160] or type(error).__name__}); it is damaged, cut "
            "off, or of a kind that is not read: copy or export it again."
        ) from error
    finally:
        log.removeHandler(kept)
        log.propagate = before


def _refuse_endless_chain(path: Path) -> None:
    """DataError for a TIFF of more pages than any microscope writes, or whose pages lead back to each other: the
    libraries read them all before they say anything. No pipe or device is opened."""
    with read_anywhere(path) as at:
        order = "<" if at(0, 2) == b"II" else ">"
        big = at(2, 2) in (b"+\0", b"\0+")
        wide = big or path.suffix.lower() == ".ndpi"  # NDPI: TIFF with offsets of 8 bytes behind its pages
        start = struct.unpack(f"{order}Q", at(8 if big else 4, 8).ljust(8, b"\0"))[0]
        place = start if wide else struct.unpack(f"{order}I", at(4, 4).ljust(4, b"\0"))[0]
        seen: set[int] = set()
        while place:
            if place in seen or len(seen) >= MOST_PAGES:
                raise DataError(
                    f"{printable(path)} has a chain of over {len(seen)} pages, which leads back to itself or is longer "
                    f"than the {MOST_PAGES} that are read; export the slide again."
                )
            seen.add(place)
            count = int.from_bytes(at(place, 8 if big else 2), "little" if order == "<" else "big")
            following = at(place + (8 + 20 * count if big else 2 + 12 * count), 8 if wide else 4)
            place = int.from_bytes(following, "little" if order == "<" else "big")


@final
class PlainTiffSource:
    """The first image of a TIFF, plain, Big or OME, striped or tiled; its bands may lie in pages of their own."""

    def __init__(self, path: Path, asked: Resolution) -> None:
        self.path = path
        _refuse_endless_chain(path)
        with _told(path, "tifffile") as tifffile:
            self._file = tifffile.TiffFile(path)
            try:
                series = self._file.series[0]
                _refuse_axes(path, series.axes, series.shape)
                levels = _tiff_levels(self._file, series)
                self.level = choose_level(levels, asked, path)
                self._array = _zarr_of(path, series, self.level)
                self._axes = series.axes
            except BaseException:
                self._file.close()
                raise
            nodata = self._file.pages[0].tags.get(42113)
            bands = _along(self._axes, self._array.shape, "CS")
            self.profile = RasterProfile(
                levels[self.level].size, bands, np.dtype(self._array.dtype), nodata=_number(nodata),
                micrometres=levels[self.level].pixel,
            )  # fmt: skip
            self.note = _note(levels, self.level)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        with _told(self.path, "tifffile"):
            stored = by_axes(self._array, self._axes, window)
        bad = nodata_pixels(stored, self.profile.nodata)
        return stored, None if bad is None or not bad.any() else ~bad

    def identity(self) -> str:
        return hashlib.sha256(f"{sha256_file(self.path)} level {self.level}".encode()).hexdigest()

    def close(self) -> None:
        self._file.close()


@final
class SlideSource:
    """A whole slide's colours at one of its levels."""

    def __init__(self, path: Path, asked: Resolution) -> None:
        self.path = path
        _refuse_endless_chain(path)
        with _told(path, "tiffslide") as tiffslide:
            self._slide = tiffslide.TiffSlide(path)
            (width, _), mpp = self._slide.dimensions, self._slide.properties.get("tiffslide.mpp-x")
            levels = [Level((h, w), float(mpp or 0) * width / w, width / w) for w, h in self._slide.level_dimensions]
            self.level = choose_level(levels, asked, path)
            inner = self._slide.ts_tifffile.series[int(self._slide.properties.get("tiffslide.series-index", 0))]
            _refuse_cut(path, inner)
            self.profile = RasterProfile(
                levels[self.level].size, 3, np.dtype(np.uint8), micrometres=levels[self.level].pixel
            )
            self.note = _note(levels, self.level)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        (width, height), (w, h) = self._slide.dimensions, self._slide.level_dimensions[self.level]
        # The least pixel of the finest level that tiffslide takes back to this very pixel of ours.
        at = -(-window.left * width // w), -(-window.top * height // h)
        with _told(self.path, "tiffslide"):
            stored = self._slide.read_region(at, self.level, window.size[::-1], as_array=True)
        return np.ascontiguousarray(stored[..., :3]), None

    def identity(self) -> str:
        return hashlib.sha256(f"{sha256_file(self.path)} level {self.level}".encode()).hexdigest()

    def close(self) -> None:
        self._slide.close()


def by_axes(array: Any, axes: str, window: Window) -> NDArray[Any]:
    """A window H W C of an array whose axes are named (Y, X, and C or S for bands; others have one place)."""
    at: dict[str, Any] = {"Y": slice(window.top, window.bottom), "X": slice(window.left, window.right)}
    stored = np.asarray(array[tuple(at.get(axis, slice(None) if axis in "CS" else 0) for axis in axes)])
    kept = [axis for axis in axes if axis in "YXCS"]
    if stored.ndim == 2:
        stored, kept = stored[..., None], [*kept, "C"]
    bands = next(axis for axis in kept if axis in "CS")
    return np.ascontiguousarray(stored.transpose([kept.index(axis) for axis in ("Y", "X", bands)]))


def _refuse_axes(path: Path, axes: str, shape: tuple[int, ...]) -> None:
    """DataError for more than one plane: focus, times, positions."""
    wrong = {axis: n for axis, n in zip(axes, shape, strict=True) if axis not in "YXCS" and n > 1}
    if "Y" not in axes or "X" not in axes or wrong or ("C" in axes and "S" in axes and _along(axes, shape, "C") > 1):
        raise DataError(
            f"{printable(path)} holds an array of axes {axes} and shape {shape}, not one plane of bands; save the "
            "plane that is to be labelled by itself."
        )


def _along(axes: str, shape: tuple[int, ...], which: str) -> int:
    return int(np.prod([n for axis, n in zip(axes, shape, strict=True) if axis in which], dtype=np.int64))


def _zarr_of(path: Path, series: Any, level: int) -> Any:
    import zarr

    _refuse_cut(path, series)
    array: Any = zarr.open_array(store=series.aszarr(level=level), mode="r")
    chunk = int(np.prod(array.chunks, dtype=np.int64)) * np.dtype(array.dtype).itemsize
    if np.dtype(array.dtype).kind not in "uif":
        raise DataError(f"{printable(path)} holds {array.dtype} values; save whole or real numbers.")
    if chunk > LARGEST_CHUNK:
        raise DataError(
            f"{printable(path)} is stored in pieces of {chunk >> 20} MiB, which are read whole; store it in tiles "
            "(tifffile, bfconvert -tilex 512 -tiley 512)."
        )
    return array


def _refuse_cut(path: Path, series: Any) -> None:
    """ValueError where a stored piece lies beyond the file's end: it would be read as zeros."""
    end = path.stat().st_size
    for page in (page for level in series.levels for page in level.pages):
        if page is not None and any(at + n > end for at, n in zip(page.dataoffsets, page.databytecounts, strict=False)):
            raise ValueError("pieces of it lie beyond its end")


def _tiff_levels(file: Any, series: Any) -> list[Level]:
    pixel = _ome_pixel(file) if file.is_ome else _tiff_pixel(file.pages[0])
    sizes = [(_along(series.axes, s.shape, "Y"), _along(series.axes, s.shape, "X")) for s in series.levels]
    return [Level(size, pixel * sizes[0][1] / size[1], sizes[0][1] / size[1]) for size in sizes]


def _tiff_pixel(page: Any) -> float:
    """Micrometres a pixel, by the TIFF's own tags."""
    across, unit = page.resolution[0], {2: 25_400.0, 3: 10_000.0}.get(int(page.resolutionunit), 0.0)
    return unit / across if across > 1 else 0.0


def _ome_pixel(file: Any) -> float:
    import re

    text = file.ome_metadata or ""
    size = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', text)
    unit = re.search(r'PhysicalSizeXUnit="([^"]*)"', text)
    return float(size[1]) * _UNITS.get(unit[1] if unit else "µm", 0.0) if size else 0.0


def _number(tag: Any) -> float | None:
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _note(levels: list[Level], level: int) -> str:
    if len(levels) == 1:
        return ""
    one, pixel = levels[level], f", {levels[level].pixel:.3g} um a pixel" if levels[level].pixel else ""
    return (
        f"level {level} of {len(levels)} is read ({one.size[1]} x {one.size[0]} pixels{pixel}); --resolution chooses "
        "another."
    )
