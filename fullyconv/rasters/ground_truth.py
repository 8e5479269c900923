"""What lies where on the ground, for a window of a scene: from a label raster or from polygons, whatever projection,
resolution or extent they have. Label rasters are warped by nearest neighbour (classes have no means between them);
polygons are burnt in where they hold a pixel's centre, in the order of their file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, UnknownName, printable
from fullyconv.files.reading import read_ends
from fullyconv.rasters.geopackage import refuse_computed_tables
from fullyconv.rasters.geotiff import gdal
from fullyconv.rasters.thinning import WORTH, thinned
from fullyconv.rasters.windows import RasterProfile, Window

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["BACKGROUND", "GroundTruth", "RasterTruth", "VectorTruth", "open_truth"]

VECTORS = {".gpkg": b"SQLite format 3", ".geojson": b"", ".json": b""}
FIELDS = ("class", "class_name", "label", "name", "category", "class_id")  # where a class is looked for, in this order
BACKGROUND = "background"
MOST_POLYGONS = 50_000  # in one window: each takes some 50 microseconds
FARTHEST = 1e12  # map units: no map reaches as far
Box = tuple[float, float, float, float]  # left, bottom, right, top


class GroundTruth(Protocol):
    """Labels of any window of any scene; `notes` say what was decided on the way."""

    names: tuple[str, ...]  # of the classes, where the source has names; else ()
    notes: list[str]

    def read(self, scene: RasterProfile, window: Window) -> NDArray[np.int64]:
        """H W: values as stored (or class ids where there are names); -1 where the source says nothing."""
        ...

    def overlap(self, scene: RasterProfile) -> float:
        """The share of the scene's box that the source's own box covers."""
        ...

    def warped(self, scene: RasterProfile) -> bool:
        """Whether labels are moved to the scene's pixels from others."""
        ...


def open_truth(path: Path, field: str = "", outside: str = BACKGROUND) -> GroundTruth:
    """The labels in a GeoTIFF, VRT, GeoPackage or GeoJSON; `field` names the polygons' class, `outside` is the class of
    ground in no polygon ("ignore": none)."""
    if path.suffix.lower() in VECTORS:
        return VectorTruth(path, field, outside)
    return RasterTruth(path)


@final
class RasterTruth:
    """A label raster: one band of whole numbers."""

    def __init__(self, path: Path) -> None:
        from fullyconv.rasters.geotiff import GeoTiffSource

        self.path, self.notes = path, list[str]()
        self.names: tuple[str, ...] = ()
        self._source = GeoTiffSource(path)  # no pipe, no VRT that leads elsewhere
        self.profile, self._data = self._source.profile, self._source.opened
        self.notes += [self._source.note] if self._source.note else []
        with gdal(str(path)):
            if self._data.count != 1 or np.dtype(self._data.dtypes[0]).kind not in "ui":
                raise DataError(
                    f"{printable(path)} has {self._data.count} band(s) of {self._data.dtypes[0]}, but labels are one "
                    "band of whole numbers; export the class ids."
                )

    def read(self, scene: RasterProfile, window: Window) -> NDArray[np.int64]:
        h, w = window.size
        with gdal(str(self.path)) as rasterio:
            data, whole = self._data, rasterio.windows.Window(window.left, window.top, w, h)
            if scene.transform is None or self.profile.transform is None:
                self._same_size(scene)
                return self._known(data.read(1, window=whole), data.read_masks(1, window=whole))
            crs = scene.crs or self.profile.crs
            own = self.profile.crs or crs
            if own == crs and self.profile.transform == scene.transform and self.profile.size == scene.size:
                return self._known(data.read(1, window=whole), data.read_masks(1, window=whole))
            from rasterio.vrt import WarpedVRT

            place = rasterio.Affine(*scene.place(window))
            options: dict[str, Any] = {"nodata": data.nodata} if data.nodata is not None else {"add_alpha": True}
            with WarpedVRT(
                data, src_crs=own, crs=crs, transform=place, width=w, height=h,
                resampling=rasterio.enums.Resampling.nearest, **options,
            ) as warped:  # fmt: skip
                mask = warped.read_masks(1) if data.nodata is not None else warped.read(warped.count)
                return self._known(warped.read(1), mask)

    def overlap(self, scene: RasterProfile) -> float:
        if scene.transform is None or self.profile.transform is None:
            self._same_size(scene)
            return 1.0
        return _covered(map_bounds(scene), map_bounds(self.profile), self.profile.crs or scene.crs, scene.crs)

    def warped(self, scene: RasterProfile) -> bool:
        """Whether the labels have another grid than the scene."""
        return scene.transform is not None and self.profile.transform is not None and (
            self.profile.transform != scene.transform or self.profile.size != scene.size
            or bool(self.profile.crs and scene.crs and self.profile.crs != scene.crs)
        )  # fmt: skip

    def _same_size(self, scene: RasterProfile) -> None:
        if self.profile.size != scene.size:
            raise DataError(
                f"{printable(self.path)} is {self.profile.size[0]} x {self.profile.size[1]} and its scene "
                f"{scene.size[0]} x {scene.size[1]} (rows x columns), and one of them does not say where it lies; "
                "georeference it (gdal_edit, gdal_translate -a_ullr -a_srs)."
            )

    @staticmethod
    def _known(stored: NDArray[np.number], mask: NDArray[np.number]) -> NDArray[np.int64]:
        return np.where(mask != 0, stored.astype(np.int64), -1)


@final
class VectorTruth:
    """Polygons of a GeoPackage or GeoJSON, each of the class that one of its fields names."""

    def __init__(self, path: Path, field: str, outside: str, most: int = MOST_POLYGONS) -> None:
        try:
            import pyogrio
            import shapely
        except ImportError as error:
            raise MissingExtra(f"Reading {printable(path)}", "geo", "pyogrio") from error
        begins = VECTORS[path.suffix.lower()]
        if not read_ends(path, 16).lstrip().startswith(begins or b"{"):
            raise DataError(f"{printable(path)} is no {path.suffix[1:]} file; export the polygons again.")
        if path.suffix.lower() == ".gpkg":
            refuse_computed_tables(path)
        self.path, self.outside, self.most, self.notes = path, outside, most, list[str]()
        try:
            known = pyogrio.read_info(path)
            chosen = _field(path, [str(f) for f in known["fields"]], field)
            meta, _, stored, columns = pyogrio.raw.read(path, columns=[chosen])
        except pyogrio.errors.DataSourceError as error:
            raise DataError(f"{printable(path)} cannot be read ({printable(error)[:160]}); export it again.") from error
        self.crs = str(meta["crs"] or "")
        shapes = shapely.from_wkb(stored, on_invalid="fix")  # rings that are not closed are; None for what is no shape
        values = [None if v is None or v != v else str(v) for v in columns[0].tolist()]
        areal = np.isin(shapely.get_type_id(shapes), (3, 6)) & ~shapely.is_empty(shapes)
        areal &= (shapely.get_num_coordinates(shapes) > 3) & _somewhere(shapes)
        usable = areal & np.array([v is not None for v in values], bool)
        if not usable.any():
            raise DataError(f"{printable(path)} holds no polygon with a {chosen!r}; name another field or draw some.")
        if count := int((~usable).sum()):
            self.notes.append(
                f"{path.name}: {count} features are no polygons, or of no class or place, and are not used."
            )
        kept = [v for v, u in zip(values, usable, strict=True) if u and v is not None]
        found = sorted(set(kept), key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
        first = [] if outside == "ignore" or outside in found else [outside]
        self.names = (*first, *found)
        if len(self.names) > 255:
            raise DataError(
                f"{printable(path)} has {len(found)} different values in {printable(chosen)!r}, and labels hold 255 "
                "classes; name the field of the class with --field, or join classes."
            )
        number = {name: k for k, name in enumerate(self.names)}
        self.shapes, self.ids = shapes[usable], np.array([number[v] for v in kept])
        self._rows: tuple[tuple[str, float, float], dict[int, Any]] = ("", 0.0, 0.0), {}
        self._moved: dict[str, tuple[NDArray[Any], NDArray[np.float64]]] = {}
        becomes = "ignored" if outside == "ignore" else f"of the class {outside!r}"
        self.notes.append(
            f"{path.name}: {len(kept)} polygons, classes by the field {chosen!r}; a pixel is of the last polygon in "
            f"the file that holds its centre; ground in none is {becomes}."
        )

    def read(self, scene: RasterProfile, window: Window) -> NDArray[np.int64]:
        from rasterio import Affine, features

        if scene.transform is None:
            raise DataError(f"{printable(self.path)} lies on a map and its scene does not; georeference the scene.")
        nothing = -1 if self.outside == "ignore" else self.names.index(self.outside)
        out = np.full(window.size, nothing, np.int32)
        shapes, bounds = self._in(scene.crs)
        place = scene.place(window)
        left, bottom, right, top = _box(place, window.size)
        near = (bounds[:, 0] < right) & (bounds[:, 2] > left) & (bounds[:, 1] < top) & (bounds[:, 3] > bottom)
        here = np.flatnonzero(near)
        if len(here) > self.most:
            raise DataError(
                f"{len(here)} polygons of {printable(self.path)} lie in one window of {window.size[0]} x "
                f"{window.size[1]} pixels; at most {self.most} are drawn: take smaller windows, or join polygons."
            )
        if len(here):
            edge = abs(place[0]) + abs(place[1]) + abs(place[3]) + abs(place[4])  # a pixel and more
            around = left - edge, bottom - edge, right + edge, top + edge
            burnt = [
                (s, int(self.ids[i])) for i in here.tolist() if (s := self._thinned(scene.crs, shapes[i], i, around))
            ]
            if burnt:
                features.rasterize(burnt, out=out, transform=Affine(*place))
        return out.astype(np.int64)

    def _thinned(self, crs: str, shape: BaseGeometry, number: int, box: Box) -> Any:
        """A polygon as far as it matters to a box: of one with many corners, what matters to the box's rows is kept,
        since windows are read row by row."""
        import shapely

        if shapely.get_num_coordinates(shape) < WORTH:
            return shape
        rows = crs, box[1], box[3]
        if self._rows[0] != rows:
            self._rows = rows, {}
        known = self._rows[1]
        if number not in known:
            known[number] = thinned(shape, (-math.inf, box[1], math.inf, box[3]))
        return None if known[number] is None else thinned(known[number], box)

    def overlap(self, scene: RasterProfile) -> float:
        if scene.transform is None:
            raise DataError(f"{printable(self.path)} lies on a map and its scene does not; georeference the scene.")
        _, bounds = self._in(scene.crs)
        bounds = bounds[np.isfinite(bounds).all(1)]
        if not len(bounds):
            return 0.0
        own = (bounds[:, 0].min(), bounds[:, 1].min(), bounds[:, 2].max(), bounds[:, 3].max())
        return _covered(map_bounds(scene), own, scene.crs, scene.crs)

    def warped(self, scene: RasterProfile) -> bool:
        return False

    def _in(self, crs: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """(polygons, their boxes) in the coordinates of a map."""
        if crs not in self._moved:
            import shapely

            shapes = self.shapes
            if crs and self.crs and not _equal(crs, self.crs):
                from rasterio.warp import transform

                def move(xy: NDArray[np.float64]) -> NDArray[np.float64]:
                    return np.stack(transform(self.crs, crs, xy[:, 0], xy[:, 1]), 1)

                try:
                    with gdal(str(self.path)):
                        shapes = shapely.transform(shapes, move)
                except DataError as error:
                    raise DataError(
                        f"The polygons of {printable(self.path)} do not lie on the map that they say "
                        f"({printable(self.crs)[:80]}; GeoJSON that says none is in degrees): "
                        f"{printable(error.__cause__)[:120]}. Export them with their own map (CRS)."
                    ) from error
            shapes = shapes.copy()
            shapes[~_somewhere(shapes)] = None  # beyond that map's edge
            self._moved[crs] = shapes, shapely.bounds(shapes)
        return self._moved[crs]


def _somewhere(shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which shapes have corners on a map alone: neither NaN nor infinite nor beyond all maps."""
    import shapely

    xy, owner = shapely.get_coordinates(shapes, return_index=True)
    lost = ~(np.abs(xy) < FARTHEST).all(1)
    return np.asarray(np.bincount(owner[lost], minlength=len(shapes)) == 0)


def map_bounds(scene: RasterProfile) -> Box:
    """left, bottom, right, top of a georeferenced raster, in its map's coordinates."""
    assert scene.transform is not None
    return _box(scene.transform, scene.size)


def moved_box(bounds: Sequence[float], one: str, two: str) -> Box:
    """A box of the map `one` round the same ground in the map `two`."""
    if not one or not two or _equal(one, two):
        left, bottom, right, top = bounds
        return left, bottom, right, top
    from rasterio.warp import transform_bounds

    with gdal("The map (CRS) of a scene or of its labels"):
        left, bottom, right, top = transform_bounds(one, two, *bounds)
    return left, bottom, right, top


def _box(transform: Sequence[float], size: tuple[int, int]) -> Box:
    a, b, c, d, e, f = transform
    x = [a * j + b * i + c for i in (0, size[0]) for j in (0, size[1])]
    y = [d * j + e * i + f for i in (0, size[0]) for j in (0, size[1])]
    return min(x), min(y), max(x), max(y)


def _covered(scene: Sequence[float], other: Sequence[float], one: str, two: str) -> float:
    left, bottom, right, top = moved_box(other, one, two)
    area = (scene[2] - scene[0]) * (scene[3] - scene[1])
    if not 0 < area < math.inf:
        return 0.0
    width = min(scene[2], right) - max(scene[0], left)
    height = min(scene[3], top) - max(scene[1], bottom)
    return max(0.0, width) * max(0.0, height) / area


def _equal(one: str, two: str) -> bool:
    from rasterio.crs import CRS

    with gdal("The map (CRS) of a scene or of its labels"):
        return bool(CRS.from_user_input(one) == CRS.from_user_input(two))


def _field(path: Path, fields: Sequence[str], wanted: str) -> str:
    """The field that names the class."""
    if wanted:
        if wanted not in fields:
            raise UnknownName(f"field of {printable(path.name)}", wanted, fields)
        return wanted
    by_name = {f.lower(): f for f in reversed(fields)}
    found = next((by_name[f] for f in FIELDS if f in by_name), fields[0] if len(fields) == 1 else "")
    if not found:
        raise DataError(
            f"{printable(path)} does not say which field is the class ({', '.join(map(printable, fields)) or 'none'}); "
            "name it with --field."
        )
    return found
