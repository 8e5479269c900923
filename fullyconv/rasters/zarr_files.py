"""Zarr and OME-Zarr by windows (extra `zarr`), from a folder on this machine.

What a folder says of itself is read before the library sees it: codecs are those of the list below (one of the others
is pickle, which runs what it finds), pieces have a bound, nothing is fetched.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, printable
from fullyconv.files.disk import sha256_file
from fullyconv.files.reading import read_json
from fullyconv.rasters.levels import Level, Resolution, choose_level
from fullyconv.rasters.microscopy import LARGEST_CHUNK, by_axes
from fullyconv.rasters.windows import RasterProfile, Window, nodata_pixels

__all__ = ["ZarrSource", "is_zarr"]

CODECS = {
    "blosc", "zstd", "gzip", "zlib", "bz2", "lzma", "lz4", "shuffle", "delta", "bytes", "transpose", "crc32c",
    "sharding_indexed", "numcodecs.zlib", "numcodecs.lz4", "numcodecs.shuffle", "numcodecs.delta",
}  # fmt: skip
DESCRIBED = ("zarr.json", ".zarray", ".zgroup")
LARGEST = 1 << 20  # bytes of JSON that describe an array or a group, and that a stored piece may add to its values
MOST_SIDE = 1 << 31  # pixels along a side, as of a raster
MOST_LEVELS = 64  # of one image: each is half the size of the one before
_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return path.is_dir() and any((path / name).is_file() for name in DESCRIBED)


@final
class ZarrSource:
    """An array (axes Y X, C Y X or Y X C) or the first multiscale image of an OME-Zarr."""

    def __init__(self, path: Path, asked: Resolution) -> None:
        self.path = path
        try:
            import zarr
        except ImportError as error:
            raise MissingExtra(f"Reading {printable(path)}", "zarr", "zarr") from error
        group, parts, axes = _described(path)
        facts = [_array_facts(part) for part in parts]
        axes = axes or _guessed(path, facts[0][0])
        shapes = [shape for shape, *_ in facts]
        for shape in shapes:
            wrong = any(n > 1 for a, n in zip(axes, shape, strict=False) if a not in "YXC")
            if len(axes) != len(shape) or wrong or not {"Y", "X"} <= set(axes):
                raise DataError(
                    f"{printable(path)} holds an array of axes {axes} and shape {shape}, not one plane of bands; save "
                    "the plane that is to be labelled by itself."
                )
        sizes = [(shape[axes.index("Y")], shape[axes.index("X")]) for shape in shapes]
        levels = [Level(size, _pixel(group, i, axes), sizes[0][1] / size[1]) for i, size in enumerate(sizes)]
        self.level = choose_level(levels, asked, path)
        self._root, self._axes, fill = parts[self.level], axes, facts[self.level][1]
        _refuse_others(path, self._root, facts[self.level][2])
        try:
            self._array = zarr.open_array(store=zarr.storage.LocalStore(self._root, read_only=True), mode="r")
            kind = np.dtype(self._array.dtype)
        except Exception as error:  # whatever its parsing runs into
            raise _unreadable(path, error) from error
        if kind.kind not in "uif":
            raise DataError(f"{printable(path)} holds {kind} values; save whole or real numbers.")
        bands = shapes[self.level][axes.index("C")] if "C" in axes else 1
        nodata = float(fill) if isinstance(fill, int | float) and kind.kind == "f" else None
        self.profile = RasterProfile(
            sizes[self.level], bands, kind, nodata=nodata, micrometres=levels[self.level].pixel
        )
        text = f", {levels[self.level].pixel:.3g} um a pixel" if levels[self.level].pixel else ""
        self.note = "" if len(levels) == 1 else (
            f"level {self.level} of {len(levels)} is read ({sizes[self.level][1]} x {sizes[self.level][0]} "
            f"pixels{text}); --resolution chooses another."
        )  # fmt: skip

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        try:
            stored = by_axes(self._array, self._axes, window)
        except Exception as error:
            raise _unreadable(self.path, error) from error
        bad = nodata_pixels(stored, self.profile.nodata)
        return stored, None if bad is None or not bad.any() else ~bad

    def identity(self) -> str:
        """Of every file of the level, under its name."""
        return folder_sum(self._root)

    def close(self) -> None:
        """Nothing is held open."""


def folder_sum(root: Path) -> str:
    """sha256 of the names and bytes of every file below a folder."""
    whole = hashlib.sha256()
    for folder, inner, files in os.walk(root):
        inner.sort()
        for file in sorted(files):
            name = Path(folder, file)
            whole.update(f"{name.relative_to(root).as_posix()!r} {sha256_file(name)}\n".encode())
    return whole.hexdigest()


def _refuse_others(path: Path, root: Path, most: int) -> None:
    """DataError for links below `root` that lead out of the Zarr `path`, for pipes and devices, and for files of over
    `most` bytes."""
    home = os.path.realpath(path)
    waiting = [os.fspath(root)]
    while waiting:
        at = waiting.pop()
        _refuse_outside(at, home)
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _refuse_outside(entry.path, home)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not os.path.isfile(entry.path):
                    raise DataError(f"{printable(entry.path)} is no regular file; a Zarr holds files alone.")
                elif entry.stat().st_size > most:
                    raise DataError(f"{printable(entry.path)} is larger than a piece can be; export it again.")


def _refuse_outside(place: str, home: str) -> None:
    real = os.path.realpath(place)
    if real != home and not real.startswith(home + os.sep):
        raise DataError(f"{printable(place)} leads out of its Zarr; copy what belongs to it into it.")


def _unreadable(path: Path, error: Exception) -> DataError:
    cause = printable(error)[:160] or type(error).__name__
    return DataError(f"{printable(path)} cannot be read ({cause}); it is damaged or cut off: copy or export it again.")


def _described(path: Path) -> tuple[dict[str, Any], list[Path], str]:
    """(the first multiscale's facts, {} for a plain array; the folders of its arrays; its axes, "" where not said)."""
    found = next((path / name for name in DESCRIBED if (path / name).is_file()), None)
    if found is None:
        raise DataError(
            f"{printable(path)} is no Zarr (it has none of {', '.join(DESCRIBED)}); give the array's folder."
        )
    facts: Any = read_json(found, LARGEST)
    more = path / ".zattrs"
    try:
        if found.name == ".zarray" or (found.name == "zarr.json" and facts.get("node_type") == "array"):
            return {}, [path], ""
        attributes: Any = (read_json(more, LARGEST) if more.is_file() else {}) if found.name == ".zgroup" else facts
        attributes = attributes.get("attributes", attributes)
        scales = attributes.get("ome", attributes).get("multiscales")
        first = scales[0]
        names = [str(d["path"]) for d in first["datasets"]]
        axes = "".join(str(a["name"] if isinstance(a, dict) else a).upper() for a in first.get("axes", "tczyx"))
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise DataError(
            f"{printable(path)} is a group without a multiscale image of OME; give the folder of one of its arrays."
        ) from error
    if not names or any(".." in name.split("/") or name.startswith("/") for name in names):
        raise DataError(f"{printable(path)} names arrays outside of itself; export it again.")
    if len(set(names)) < len(names) or len(names) > MOST_LEVELS or len(axes) > MOST_LEVELS:
        raise DataError(f"{printable(path)} names {len(names)} levels, over 64 or some of them twice; export it again.")
    return first, [path / name for name in names], axes


def _array_facts(folder: Path) -> tuple[tuple[int, ...], Any, int]:
    """(shape, fill value, bytes that no file exceeds).

    DataError for codecs that are not in the list, for pieces that are too large, and where two descriptions lie: the
    library would read the other one.
    """
    try:
        old, new = (folder / ".zarray").is_file(), (folder / "zarr.json").is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(folder)[:200]} is no array's folder; export it again.") from error
    if old and new:
        raise DataError(f"{printable(folder)} is described twice (.zarray and zarr.json); remove the wrong one.")
    facts: Any = read_json(folder / (".zarray" if old else "zarr.json"), LARGEST)
    try:
        if old:
            codecs = [*(facts.get("filters") or []), *([facts["compressor"]] if facts.get("compressor") else [])]
            names, chunk = [str(c["id"]) for c in codecs], facts["chunks"]
        else:
            names, chunk = _codec_names(facts["codecs"]), facts["chunk_grid"]["configuration"]["chunk_shape"]
        shape, fill = tuple(int(n) for n in facts["shape"]), facts.get("fill_value")
        sides = [int(n) for n in chunk]
        size = int(np.prod(sides, dtype=np.float64))
    except (TypeError, KeyError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise DataError(f"{printable(folder)} does not describe an array as Zarr does; export it again.") from error
    if unknown := sorted(set(names) - CODECS):
        raise DataError(
            f"{printable(folder)} is coded by {printable(unknown[0])}, which is not read; export it by zstd."
        )
    if size * 8 > LARGEST_CHUNK:
        raise DataError(f"{printable(folder)} is stored in pieces of {size} values; store it in smaller chunks.")
    if any(not 0 < n < MOST_SIDE for n in (*shape, *sides)):
        raise DataError(
            f"{printable(folder)} says a shape of {printable(shape)[:80]} in pieces of {printable(sides)[:80]}; export "
            "it again."
        )
    inner = 20 if "sharding_indexed" in names else 2  # an inner piece of one value has an entry of 16 bytes
    return shape, fill, size * 8 * inner + LARGEST


def _codec_names(codecs: Any) -> list[str]:
    names = []
    for codec in codecs:
        names.append(str(codec["name"]))
        inner = codec.get("configuration") or {}
        names += _codec_names([*(inner.get("codecs") or []), *(inner.get("index_codecs") or [])])
    return names


def _guessed(path: Path, shape: tuple[int, ...]) -> str:
    """Axes of an array that does not name them: bands are the few."""
    few = 64
    if len(shape) == 2:
        return "YX"
    if len(shape) == 3 and min(shape[0], shape[2]) <= few and shape[0] != shape[2]:
        return "CYX" if shape[0] < shape[2] else "YXC"
    raise DataError(
        f"{printable(path)} is an array of shape {shape} without names of its axes; save H x W, C x H x W or H x W x C."
    )


def _pixel(group: dict[str, Any], level: int, axes: str) -> float:
    """Micrometres a pixel of a level, 0 where it does not say."""
    try:
        axis = axes.index("X")
        unit = _MICROMETRES.get(group["axes"][axis].get("unit", ""), 0.0)
        (scale,) = [t["scale"] for t in group["datasets"][level]["coordinateTransformations"] if t["type"] == "scale"]
        return float(scale[axis]) * unit
    except (TypeError, KeyError, ValueError, IndexError, AttributeError):
        return 0.0
