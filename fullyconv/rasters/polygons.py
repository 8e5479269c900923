"""Areas of one label as polygons: without seams, because the finished raster is walked and never its blocks.

Corners lie on pixels' corners, so the polygons fill the raster exactly: they are rasterised back to prove it, which
also gives each its mean confidence. Simplified they stay a coverage (shapely's `coverage_simplify`, the TopoJSON-like
simplification of shared borders): neighbours keep one border, so there is neither gap nor overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, InternalError, MissingExtra, UsageError
from fullyconv.rasters.assembling import quiet_gdal
from fullyconv.rasters.geotiff import rasterio_or_missing

__all__ = ["FORMATS", "SUFFIXES", "LabelPolygons", "draw_polygons", "require_polygons", "write_polygons"]

FORMATS = {"gpkg": "GPKG", "geojson": "GeoJSON", "geoparquet": "Parquet"}  # GDAL's names
SUFFIXES = {"gpkg": "gpkg", "geojson": "geojson", "geoparquet": "parquet"}
ROWS = 512  # of the raster read at a time: a row of the stored tiles (`assembling.TILE`)


def require_polygons(kind: str) -> None:
    """Refuse an unknown format, or a missing extra, before work starts."""
    if kind not in FORMATS:
        raise UsageError(f"Polygons are written as {' or '.join(FORMATS)}, not {kind!r}; choose one of them.")
    for module in ("rasterio", "shapely", "pyarrow" if kind == "geoparquet" else "pyogrio"):
        try:
            __import__(module)
        except ImportError as error:
            raise MissingExtra("Writing polygons", "geo", module) from error


@final
@dataclass(frozen=True)
class LabelPolygons:
    """shapes: shapely polygons; labels, pixels (area of the raster) and confidence (0..1, NaN without) of each."""

    shapes: NDArray[Any]
    labels: NDArray[np.int64]
    pixels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    merged: int  # pixels that changed their class because their area was below the least


def draw_polygons(labels: Path, confidence: Path | None, *, tolerance: float = 0, least: float = 0) -> LabelPolygons:
    """The polygons of a label raster, in its map's coordinates, sorted by their first corner.

    least: areas of less (square map units) become part of their largest neighbour; tolerance (map units): how far a
    border may move; the raster's own border and that of pixels without data never move.
    """
    rasterio = rasterio_or_missing("Drawing polygons")
    import shapely
    from rasterio import features

    with quiet_gdal(rasterio), rasterio.open(labels) as data:
        a, b, c, d, e, f = tuple(data.transform)[:6]
        pixel = abs(a * e - b * d)
        whole, merged = _sieved(data, int(np.ceil(least / pixel - 1e-9))) if least > 0 else (None, 0)
        source = rasterio.band(data, 1) if whole is None else whole
        found = list(features.shapes(source, connectivity=4))
        values = np.array([int(v) for _, v in found], np.int64)
        back = ~data.transform if whole is None else rasterio.Affine.identity()  # a band's shapes come in map units
        shapes = np.array([shapely.Polygon(s["coordinates"][0], s["coordinates"][1:]) for s, _ in found], object)
        del found
        if len(shapes):
            shapes = shapely.transform(shapes, lambda xy: np.rint(_moved(xy, tuple(back)[:6])))
        if data.nodata is not None:
            kept = values != int(data.nodata)
            values, shapes = values[kept], shapes[kept]
        order = _in_order(shapes)
        values, shapes = values[order], shapes[order]
        pixels, means = _measured(shapes, values, data, whole, confidence)
        if len(shapes):
            shapes = _with_junctions(shapes, data, whole)
    if len(shapes):
        shapes = shapely.transform(shapes, lambda xy: _moved(xy, (a, b, c, d, e, f)))
    if tolerance > 0 and len(shapes):
        # The threshold of Visvalingam's rule is an area: shapely takes its square root, a length.
        shapes = shapely.coverage_simplify(shapes, tolerance, simplify_boundary=False)
    return LabelPolygons(shapes, values, pixels, means, merged)


def _moved(xy: NDArray[np.float64], by: Sequence[float]) -> NDArray[np.float64]:
    """Points N 2 under the affine map `by` (a, b, c, d, e, f): equal points stay equal to the last bit."""
    a, b, c, d, e, f = by
    return np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], 1)


def _sieved(data: Any, pixels: int) -> tuple[NDArray[Any], int]:
    """The raster with areas of less than `pixels` given to their largest neighbour, and how many pixels that were."""
    from rasterio import features

    stored = data.read(1)
    mask = None if data.nodata is None else stored != int(data.nodata)
    kind = np.uint8 if stored.dtype == np.uint8 else np.int32
    out = features.sieve(stored.astype(kind, copy=False), max(1, pixels), mask=mask, connectivity=4)
    if mask is not None:
        out[~mask] = int(data.nodata)
    out = out.astype(stored.dtype, copy=False)
    return out, int((out != stored).sum())


def _in_order(shapes: NDArray[np.number]) -> NDArray[np.int64]:
    import shapely

    if not len(shapes):
        return np.zeros(0, np.int64)
    box = shapely.bounds(shapes)
    return np.lexsort((box[:, 2], box[:, 3], box[:, 0], box[:, 1]))


def _rows(data: Any, whole: NDArray[np.number] | None, top: int, bottom: int) -> NDArray[Any]:
    from rasterio.windows import Window

    if whole is not None:
        return whole[top:bottom]
    rows: NDArray[Any] = data.read(1, window=Window(0, top, data.width, bottom - top))
    return rows


def _measured(
    shapes: NDArray[np.number],
    values: NDArray[np.int64],
    data: Any,
    whole: NDArray[np.number] | None,
    confidence: Path | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(pixels, mean confidence) of each polygon, by rasterising them again; InternalError where they do not give the
    labels that they were drawn from."""
    import contextlib

    import rasterio
    import shapely
    from affine import Affine
    from rasterio import features
    from rasterio.windows import Window

    n = len(shapes)
    pixels, sums = np.zeros(n, np.int64), np.zeros(n)
    box = shapely.bounds(shapes) if n else np.zeros((0, 4))
    known = np.append(values, -1 if data.nodata is None else int(data.nodata))
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(rasterio.open(confidence)) if confidence else None
        for top in range(0, data.height, ROWS):
            bottom = min(data.height, top + ROWS)
            here = np.flatnonzero((box[:, 1] < bottom) & (box[:, 3] > top))
            ids = np.full((bottom - top, data.width), n, np.int32)
            if len(here):
                pairs = ((shapes[i], int(i)) for i in here)
                features.rasterize(pairs, out=ids, transform=Affine(1, 0, 0, 0, 1, top))
            if not np.array_equal(known[ids], _rows(data, whole, top, bottom)):
                raise InternalError("The polygons do not fill the raster that they were drawn from; please report it.")
            flat = ids.ravel()
            pixels += np.bincount(flat, minlength=n + 1)[:n]
            if file is not None:
                seen = file.read(1, window=Window(0, top, data.width, bottom - top)).ravel()
                sums += np.bincount(flat, seen, minlength=n + 1)[:n]
    return pixels, sums / np.maximum(pixels, 1) / 255 if confidence else np.full(n, np.nan)


def _with_junctions(shapes: NDArray[np.number], data: Any, whole: NDArray[np.number] | None) -> NDArray[Any]:
    """The polygons with a corner wherever three of them meet: GDAL leaves those out that lie on a straight border, and
    then neighbours' borders would not be one."""
    import shapely

    width = data.width + 1
    nodes = _junctions(data, whole)
    by_row = np.sort(nodes[:, 1] * width + nodes[:, 0])
    height = data.height + 1
    by_column = np.sort(nodes[:, 0] * height + nodes[:, 1])
    rings, polygon = shapely.get_rings(shapes, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    xy = np.rint(xy).astype(np.int64)
    same = ring[1:] == ring[:-1]
    start, stop = xy[:-1], xy[1:]
    level = (start[:, 1] == stop[:, 1]) & same
    upright = (start[:, 0] == stop[:, 0]) & same
    low, high = np.zeros(len(start), np.int64), np.zeros(len(start), np.int64)
    for chosen, keys, fixed, moving, base in ((level, by_row, 1, 0, width), (upright, by_column, 0, 1, height)):
        first = np.minimum(start[chosen, moving], stop[chosen, moving])
        last = np.maximum(start[chosen, moving], stop[chosen, moving])
        low[chosen] = np.searchsorted(keys, start[chosen, fixed] * base + first, "right")
        high[chosen] = np.searchsorted(keys, start[chosen, fixed] * base + last, "left")
    more = np.append(np.maximum(high - low, 0), 0)
    out = np.repeat(xy, more + 1, axis=0)
    owner = np.repeat(np.arange(len(xy)), more + 1)
    nth = np.arange(len(out)) - np.repeat(np.cumsum(more + 1) - (more + 1), more + 1)
    inner = nth > 0
    which, place = owner[inner], nth[inner] - 1
    flat = level[which]
    ahead = np.where(flat, stop[which, 0] > start[which, 0], stop[which, 1] > start[which, 1])
    at = np.where(ahead, low[which] + place, high[which] - 1 - place)
    found = np.where(flat, by_row[np.minimum(at, len(by_row) - 1)] % width if len(by_row) else 0,
                     by_column[np.minimum(at, len(by_column) - 1)] % height if len(by_column) else 0)  # fmt: skip
    spot = out[inner]
    spot[flat, 0], spot[~flat, 1] = found[flat], found[~flat]
    out[inner] = spot
    made = shapely.linearrings(out.astype(float), indices=ring[owner])
    drawn: NDArray[Any] = shapely.polygons(made, indices=polygon)
    return drawn


def _junctions(data: Any, whole: NDArray[np.number] | None) -> NDArray[np.int64]:
    """(column, row) of the pixel corners at which three or four different labels meet."""
    found = []
    last: NDArray[Any] | None = None
    for top in range(0, data.height, ROWS):
        rows = _rows(data, whole, top, min(data.height, top + ROWS))
        rows = rows if last is None else np.concatenate([last, rows])
        p, q, r, s = rows[:-1, :-1], rows[:-1, 1:], rows[1:, :-1], rows[1:, 1:]
        kinds = 1 + (q != p) + ((r != p) & (r != q)) + ((s != p) & (s != q) & (s != r))
        y, x = np.nonzero(kinds > 2)
        found.append(np.stack([x + 1, y + 1 + top - (last is not None)], 1))
        last = rows[-1:]
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


def write_polygons(
    path: Path, kind: str, drawn: LabelPolygons, names: Sequence[str], crs: str, pixel: float, layer: str
) -> None:
    """Write them with class id and name, area (square map units) and mean confidence; `pixel`: area of one pixel."""
    import shapely

    fields = {
        "class_id": drawn.labels.astype(np.int32),
        "class": np.array([names[v] for v in drawn.labels], object),
        "area": drawn.pixels * float(pixel),
        "confidence": drawn.confidence,
    }
    if np.isnan(drawn.confidence).all():
        del fields["confidence"]
    if kind == "geoparquet":
        _write_geoparquet(path, drawn.shapes, fields, crs)
        return
    import pyogrio
    from pyogrio.errors import DataSourceError

    options: dict[str, Any] = {"COORDINATE_PRECISION": "15"} if kind == "geojson" else {}
    try:
        pyogrio.raw.write(
            path, shapely.to_wkb(drawn.shapes), list(fields.values()), list(fields), geometry_type="Polygon",
            crs=crs or None, driver=FORMATS[kind], layer=layer, layer_options=options,
        )  # fmt: skip
    except DataSourceError as error:
        raise DataError(f"The polygons could not be written ({str(error)[:160]}); check the space there.") from error


def _write_geoparquet(
    path: Path, shapes: NDArray[np.number], fields: Mapping[str, NDArray[np.number]], crs: str
) -> None:
    """GeoParquet 1.1 (geoparquet.org/releases/v1.1.0): WKB in a column, and what it is in the file's metadata. Written
    here, since pyogrio's GDAL comes without its Parquet driver."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": _projjson(crs)}
    if len(shapes):
        column["bbox"] = [float(v) for v in shapely.total_bounds(shapes)]
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    columns = {name: pa.array(values) for name, values in fields.items()}
    columns["geometry"] = pa.array(list(shapely.to_wkb(shapes)), pa.binary())
    table = pa.table(columns).replace_schema_metadata({"geo": json.dumps(about)})
    try:
        pq.write_table(table, path, compression="zstd")
    except OSError as error:
        raise DataError(f"The polygons could not be written ({str(error)[:160]}); check the space there.") from error


def _projjson(crs: str) -> Any:
    """A coordinate system as GeoParquet wants it; None (not known) without one."""
    if not crs:
        return None
    from rasterio.crs import CRS

    return CRS.from_user_input(crs).to_dict(projjson=True)
