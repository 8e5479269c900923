"""From finished blocks to a GeoTIFF: one pass from top to bottom, every stored tile written once, never read back into.

The file appears under its name only after it was read again and found to hold what was written (GDAL reports a disk
that fills while a file is closed to nobody).
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import StorageError, printable
from fullyconv.files.disk import PREFIX, remove_tree, sync_file
from fullyconv.rasters.block_journal import BlockJournal
from fullyconv.rasters.geotiff import rasterio_or_missing
from fullyconv.rasters.levels import resolution_tags
from fullyconv.rasters.windows import BlockGrid, RasterProfile

__all__ = ["RasterLayer", "quiet_gdal", "strips", "write_geotiff"]

TILE = 512  # pixels a side of the stored tiles, as COGs have them


@final
@dataclass(frozen=True)
class RasterLayer:
    """One raster of results. key: its name in the blocks; bands; nodata: the stored value that stands for none."""

    key: str
    dtype: np.dtype[Any]
    nodata: int | None
    bands: int = 1
    palette: Sequence[Sequence[int]] = ()
    tags: tuple[tuple[str, str], ...] = ()


def strips(journal: BlockJournal, grid: BlockGrid, layer: RasterLayer, height: int = TILE) -> Iterator[NDArray[Any]]:
    """The layer from top to bottom, `height` rows a time: arrays bands h W. One row of blocks is held at most."""
    h, w = grid.size
    rows, columns = grid.spans(0), grid.spans(1)
    held: tuple[int, list[NDArray[Any]]] = (-1, [])
    for top in range(0, h, height):
        bottom = min(h, top + height)
        out = np.empty((layer.bands, bottom - top, w), layer.dtype)
        for i, r in enumerate(rows):
            a, b = max(top, r.keep_from), min(bottom, r.keep_to)
            if a >= b:
                continue
            if held[0] != i:
                held = (
                    i,
                    [
                        _layer(journal, (i, j), layer, (r.keep_to - r.keep_from, c.keep_to - c.keep_from))
                        for j, c in enumerate(columns)
                    ],
                )
            for c, part in zip(columns, held[1], strict=True):
                out[:, a - top : b - top, c.keep_from : c.keep_to] = part[:, a - r.keep_from : b - r.keep_from]
        yield out


def _layer(journal: BlockJournal, place: tuple[int, int], layer: RasterLayer, size: tuple[int, int]) -> NDArray[Any]:
    """The layer B H W of the block at `place`, `size` H W pixels of it."""
    row, column = place
    found = journal.read(row, column)
    if found is None:
        raise StorageError(
            f"A finished block vanished or was torn ({row}-{column} in {printable(journal.folder)}); run the command "
            "again: it is computed anew."
        )
    part = found.get(layer.key)
    if part is not None and part.ndim == 2:
        part = part[None]
    if part is None or part.shape != (layer.bands, *size) or part.dtype != layer.dtype:
        raise journal.forged(row, column)
    return part


def write_geotiff(
    target: Path, profile: RasterProfile, grid: BlockGrid, journal: BlockJournal, layer: RasterLayer
) -> Path:
    """Write `layer` with the place, the tags and the layout of `profile` beside `target`; returns that temporary file,
    which the caller gives its name. Tiled, deflated; a COG where the source is one."""
    temporary = target.parent / f"{PREFIX}{secrets.token_hex(8)}.tif"
    final_ = target.parent / f"{PREFIX}{secrets.token_hex(8)}.tif"
    try:
        sums = _write(temporary, profile, grid, journal, layer)
        made = temporary
        if profile.cloud_optimised:
            _as_cog(temporary, final_, layer)
            remove_tree(temporary)
            made = final_
        _prove(made, target, sums, layer)
        sync_file(made)
        return made
    except BaseException:
        remove_tree(temporary)
        remove_tree(final_)
        raise


def _options(profile: RasterProfile, layer: RasterLayer) -> dict[str, Any]:
    from affine import Affine

    h, w = profile.size
    placed = {"transform": Affine(*profile.transform)} if profile.transform else {}
    return {
        "driver": "GTiff", "height": h, "width": w, "count": layer.bands, "dtype": layer.dtype.name,
        "crs": profile.crs or None, "nodata": layer.nodata, "tiled": True, "blockxsize": TILE, "blockysize": TILE,
        "compress": "deflate", "bigtiff": "if_safer", "interleave": "band", "sparse_ok": False,
        **({"predictor": 2} if layer.dtype.itemsize > 1 else {}), **placed,
    }  # fmt: skip


def _write(path: Path, profile: RasterProfile, grid: BlockGrid, journal: BlockJournal, layer: RasterLayer) -> list[int]:
    """Write the file; the crc32 of every strip."""
    rasterio = rasterio_or_missing("Writing a GeoTIFF")
    sums: list[int] = []
    with _storage(path), quiet_gdal(rasterio), rasterio.open(path, "w", **_options(profile, layer)) as out:
        if profile.control_points and not profile.transform:
            out.gcps = profile.control_points
        if profile.rpcs:
            out.rpcs = profile.rpcs
        out.update_tags(**{k: v for k, v in profile.tags.items() if not k.startswith("STATISTICS_")})
        out.update_tags(**resolution_tags(profile.micrometres))
        out.update_tags(1, **dict(layer.tags))
        if layer.palette and layer.dtype == np.uint8:
            out.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(layer.palette[:256])})
        top = 0
        for strip in strips(journal, grid, layer):
            window = rasterio.windows.Window(0, top, strip.shape[2], strip.shape[1])
            out.write(strip, window=window)
            sums.append(zlib.crc32(strip.tobytes()))
            top += strip.shape[1]
    return sums


def _as_cog(source: Path, target: Path, layer: RasterLayer) -> None:
    rasterio = rasterio_or_missing("Writing a COG")
    from rasterio import shutil

    # Labels are no quantities: an overview shows one of them, never a mean.
    how = "nearest" if layer.key.startswith("labels") else "average"
    options: Mapping[str, Any] = {
        "compress": "DEFLATE", "blocksize": TILE, "bigtiff": "IF_SAFER", "overview_resampling": how,
        **({"predictor": "YES"} if layer.dtype.itemsize > 1 else {}),
    }  # fmt: skip
    with _storage(target), quiet_gdal(rasterio):
        shutil.copy(source, target, driver="COG", **options)


def _prove(path: Path, target: Path, sums: Sequence[int], layer: RasterLayer) -> None:
    rasterio = rasterio_or_missing("Reading a GeoTIFF")
    with _storage(target), quiet_gdal(rasterio), rasterio.open(path) as data:
        for i, known in enumerate(sums):
            rows = min(TILE, data.height - i * TILE)
            found = data.read(window=rasterio.windows.Window(0, i * TILE, data.width, rows)).astype(layer.dtype)
            if zlib.crc32(found.tobytes()) != known:
                raise StorageError(
                    f"{printable(target)} did not keep what was written to it; check the space and the disk there, "
                    "then run the command again."
                )


def quiet_gdal(rasterio: Any) -> Any:
    """Settings of ours, and no warning that an image has no place on the map: it had none before."""
    import contextlib
    import warnings

    from fullyconv.rasters.geotiff import CACHE

    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    stack.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_PAM_ENABLED="NO"))
    return stack


def _storage(path: Path) -> Any:
    import contextlib

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        from rasterio.errors import RasterioError

        try:
            yield
        except RasterioError as error:
            raise StorageError(
                f"Writing {printable(path)} failed ({printable(error.__cause__ or error)[:160]}); check the space and "
                "the rights there, then run the command again: finished blocks are kept."
            ) from error

    return guard()
