"""Scenes as a data set: windows of them with their labels, and splits by blocks of ground.

Windows lie on a grid of the ground (see `windows`). Whole blocks of ground go to val, drawn by a seed, and no window of
train comes nearer to them than a margin, measured on the map, so that scenes that overlap, or have other projections,
leak nothing: neighbouring pixels are nearly copies of each other, and figures from a split by windows would flatter.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.class_tables import classes_text, find_tables, read_classes
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files import new_directory, read_file
from fullyconv.files.outputs import Outputs
from fullyconv.rasters.gdal import open_source
from fullyconv.rasters.geotiff import gdal
from fullyconv.rasters.ground_truth import BACKGROUND, GroundTruth, map_bounds, moved_box, open_truth
from fullyconv.rasters.windows import RasterProfile, RasterSource, Window
from fullyconv.taxonomy import Taxonomy

__all__ = ["Cut", "CutOptions", "cut_scenes", "find_scenes"]

RASTERS = (".tif", ".tiff", ".vrt")
LABELS = (*RASTERS, ".gpkg", ".geojson", ".json")
BLOCKS = (4, 2, 1)  # windows along the edge of a block of ground: the most of them that leave `ENOUGH` blocks
ENOUGH = 5
_LARGEST_TABLE = 2**22  # bytes
Box = tuple[float, float, float, float]


@final
@dataclass(frozen=True)
class CutOptions:
    """size: pixels along a window's edge (a rest under half of it joins its neighbour). val: share of the windows.
    margin: pixels of ground between train and val. least: share of a window that must be measured and labelled."""

    size: int = 512
    val: float = 0.2
    margin: int = 64
    least: float = 0.05
    seed: int = 0
    field: str = ""
    outside: str = BACKGROUND

    def __post_init__(self) -> None:
        if self.size < 16 or not 0 <= self.val < 1 or self.margin < 0 or not 0 <= self.least <= 1:
            raise UsageError(
                f"size = {self.size}, val = {self.val}, margin = {self.margin}, least = {self.least}: a window has 16 "
                "pixels or more along its edge, val is in [0, 1), the margin 0 or more, least in [0, 1]."
            )


@final
@dataclass
class Cut:
    """What was written: windows by split; notes; hectares by split and class (empty where no scene lies on a map)."""

    windows: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hectares: dict[str, dict[str, float]] = field(default_factory=dict)
    resolution: tuple[float, float] | None = None  # the finest and coarsest pixel, metres


@final
@dataclass
class _Piece:
    """A window of a scene. ground: its box on the first scene's map, or in pixels of its own scene (`island`)."""

    scene: int
    window: Window
    name: str
    ground: Box
    island: str
    split: str = "train"


def find_scenes(root: Path, labels: Path | None = None) -> list[tuple[Path, Path]]:
    """(scene, its labels): ROOT/images beside ROOT/labels, or the rasters in ROOT with `labels`, a folder of files of
    the same names or one file for all."""
    folder = next((root / n for n in ("images", "scenes", "rasters") if (root / n).is_dir()), root)
    place = labels if labels is not None else root / "labels"
    if not place.exists():
        raise DataError(
            f"{printable(root)} has no labels/ beside its scenes; put label rasters or polygons (GeoPackage, GeoJSON) "
            "of the scenes' names there, or give --labels."
        )
    scenes = sorted(f for f in folder.iterdir() if f.suffix.lower() in RASTERS and not f.name.startswith("."))
    if not scenes:
        raise DataError(f"{printable(folder)} holds no scene ({', '.join(RASTERS)}); name the folder with the rasters.")
    if place.is_file():
        return [(scene, place) for scene in scenes]
    by_stem: dict[str, Path] = {}
    for file in sorted(place.iterdir()):
        if file.suffix.lower() in LABELS and not file.name.startswith("."):
            if file.stem in by_stem:
                raise DataError(f"{printable(file)} and {printable(by_stem[file.stem].name)} are labels of one scene.")
            by_stem[file.stem] = file
    missing = [s.name for s in scenes if s.stem not in by_stem]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(scenes)} scenes have no labels in {printable(place)} (the first: "
            f"{printable(missing[0])}); give them files of the same name, or take the scenes away."
        )
    return [(s, by_stem[s.stem]) for s in scenes]


def cut_scenes(
    root: Path,
    out: Path,
    options: CutOptions,
    labels: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Cut:
    """Write windows of all scenes and their labels as the new folder data set `out` (train/ and val/).

    Raises DataError (no scenes, labels elsewhere, bands that differ), UsageError (`out` exists), MissingExtra (geo).
    Nothing is left after an error.
    """
    if out.exists():
        raise UsageError(f"{printable(out)} exists already; name a new folder.")
    pairs = find_scenes(root, labels)
    cut = Cut()
    opened = [open_source(scene) for scene, _ in pairs]
    truths = {file: open_truth(file, options.field, options.outside) for _, file in pairs}
    truth = [truths[file] for _, file in pairs]
    for one in truths.values():
        cut.notes += one.notes
    _checked(pairs, opened, truth, cut)
    table = _classes(root, pairs, truth)
    writer = _Writer(opened, truth, table, options, cut)
    pieces = [p for p in _pieces(pairs, [s.profile for s in opened], options) if writer.look(p)]
    pieces = _split(pieces, options, opened[0].profile, cut)
    classes = f"classes{table.file.suffix.lower()}" if table.file else "classes.txt"
    plan = Outputs(out, [f for pair in pairs for f in pair])
    places = [
        (plan.claim(p.split, "images", f"{p.name}.tif"), plan.claim(p.split, "labels", f"{p.name}.png")) for p in pieces
    ]
    plan.claim(classes)
    with new_directory(out) as folder:
        plan.moved(folder)
        for done, (piece, (image, label)) in enumerate(zip(pieces, places, strict=True), 1):
            writer.write(piece, plan.place(image), plan.place(label))
            if progress is not None:
                progress(done, len(pieces))
        writer.finish()
        if text := table.text():
            plan.place(classes).write_bytes(text)
        os.sync()
    for source in opened:
        source.close()
    return cut


def _checked(
    pairs: Sequence[tuple[Path, Path]], opened: Sequence[RasterSource], truths: Sequence[GroundTruth], cut: Cut
) -> None:
    """What would be wrong in every window is said before one is written."""
    first = opened[0].profile
    for (scene, labels), source, truth in zip(pairs, opened, truths, strict=True):
        here = source.profile
        if (here.bands, here.dtype) != (first.bands, first.dtype):
            raise DataError(
                f"{printable(scene)} has {here.bands} bands of {here.dtype} and {printable(pairs[0][0].name)} "
                f"{first.bands} of {first.dtype}; a data set has one kind: cut them apart."
            )
        share = truth.overlap(here)
        if share < 0.01:
            raise DataError(
                f"The labels {printable(labels)} cover {100 * share:.1f} % of {printable(scene)}: they lie elsewhere "
                "on the map, or say a wrong projection (CRS); correct it (gdal_edit -a_srs), or take the scene away."
            )
        if share < 0.9:
            cut.notes.append(f"{scene.name}: its labels cover {100 * share:.0f} % of it; the rest is ignored.")
        if truth.warped(here):
            cut.notes.append(f"{scene.name}: its labels have another grid and were warped to it (nearest neighbour).")
    cut.notes += _unlike([s.name for s, _ in pairs], opened)


def _unlike(names: Sequence[str], opened: Sequence[RasterSource]) -> list[str]:
    """Scenes whose bands are far from the others': another sensor, season, scale or order of bands."""
    if len(opened) < 3:
        return []
    found = []
    for source in opened:
        h, w = source.profile.size
        values, good = source.read(Window(h // 3, w // 3, min(h, h // 3 + 512), min(w, w // 3 + 512)))
        pixels = values.reshape(-1, values.shape[2]).astype(np.float64)
        pixels = pixels if good is None else pixels[good.ravel()]
        found.append((pixels.mean(0), pixels.std(0)) if len(pixels) else (np.full(values.shape[2], np.nan),) * 2)
    means, stds = (np.array([f[i] for f in found]) for i in (0, 1))
    far = np.abs(means - np.nanmedian(means, 0)) > 3 * np.maximum(np.nanmedian(stds, 0), 1e-6)
    return [
        f"{name}: band {', '.join(str(b + 1) for b in np.flatnonzero(row))} is far from the other scenes' (another "
        "sensor, season or scale?)."
        for name, row in zip(names, far, strict=True)
        if row.any()
    ]


# ---- windows and blocks of ground ------------------------------------------------------------------------------


def _edges(length: int, size: int, origin: int) -> list[int]:
    """Windows' edges on the ground's grid; a rest under half a window joins its neighbour."""
    inner = [e for e in range((-origin) % size, length, size) if size / 2 <= e <= length - size / 2]
    return [0, *inner, length]


def _pieces(pairs: Sequence[tuple[Path, Path]], profiles: Sequence[RasterProfile], options: CutOptions) -> list[_Piece]:
    found = []
    first = next((p for p in profiles if p.transform is not None), profiles[0])
    stems = [s.stem for s, _ in pairs]
    for i, (profile, stem) in enumerate(zip(profiles, stems, strict=True)):
        name = stem if stems.count(stem) == 1 else pairs[i][0].name.replace(".", "_")
        rows = _edges(profile.size[0], options.size, profile.origin[0])
        columns = _edges(profile.size[1], options.size, profile.origin[1])
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                window = Window(top, left, bottom, right)
                ground: Box = (left, top, right, bottom)
                if profile.transform is not None:
                    part = RasterProfile(window.size, 1, profile.dtype, profile.place(window))
                    ground = moved_box(map_bounds(part), profile.crs, first.crs)
                island = "" if profile.transform is not None else name
                found.append(_Piece(i, window, f"{name}_r{top:06d}_c{left:06d}", ground, island))
    return found


def _split(pieces: list[_Piece], options: CutOptions, first: RasterProfile, cut: Cut) -> list[_Piece]:
    """The pieces with their splits, without those of train that lie within the margin round val."""
    if not pieces:
        raise DataError(
            f"No window is measured and labelled on {100 * options.least:g} % of its pixels; look at the labels, or "
            "give a smaller --least."
        )
    if options.val == 0:
        return pieces
    pixel = 1.0 if first.transform is None else math.hypot(first.transform[0], first.transform[3])
    for along in BLOCKS:
        edge = {"": options.size * along * pixel}
        blocks = [_block(p, edge.get(p.island, float(options.size * along))) for p in pieces]
        if len(set(blocks)) >= ENOUGH:
            break
    if len(set(blocks)) < 2:
        raise DataError(
            f"All of the ground is one window of {options.size} pixels, so nothing can be held out; give a smaller "
            "--size, or --val 0."
        )
    drawn = sorted(set(blocks), key=lambda b: hashlib.sha256(f"{options.seed}:{b}".encode()).digest())
    held: set[Any] = set()
    for block in drawn[:-1]:
        if held and sum(b in held for b in blocks) >= options.val * len(pieces):
            break
        held.add(block)
    for piece, block in zip(pieces, blocks, strict=True):
        piece.split = "val" if block in held else "train"
    near = _near([p for p in pieces if p.split == "val"], options.margin, pixel)
    kept = [p for p in pieces if p.split == "val" or not near(p)]
    cut.notes.append(
        f"val is {len(held)} of {len(drawn)} blocks of ground, {along} windows wide; {len(pieces) - len(kept)} windows "
        f"within {options.margin} pixels of them are in neither."
    )
    if not any(p.split == "train" for p in kept):
        raise DataError(f"Within {options.margin} pixels of val lies all the rest; give a smaller --margin or --size.")
    return kept


def _block(piece: _Piece, edge: float) -> tuple[str, int, int]:
    x, y = (piece.ground[0] + piece.ground[2]) / 2, (piece.ground[1] + piece.ground[3]) / 2
    return piece.island, math.floor(y / edge), math.floor(x / edge)


def _near(val: Sequence[_Piece], margin: int, pixel: float) -> Callable[[_Piece], bool]:
    """Whether a piece touches the margin round one of `val`, on the map."""
    by_island: dict[str, NDArray[np.float64]] = {}
    for island in {p.island for p in val}:
        grown = margin * (pixel if not island else 1.0)
        boxes = np.array([p.ground for p in val if p.island == island])
        by_island[island] = boxes + np.array([-grown, -grown, grown, grown])

    def near(piece: _Piece) -> bool:
        if piece.island not in by_island:
            return False
        left, bottom, right, top = piece.ground
        boxes, rounding = by_island[piece.island], 1e-6 * (right - left)  # that neighbours share an edge is no overlap
        return bool(
            ((boxes[:, 0] < right - rounding) & (boxes[:, 2] > left + rounding)
             & (boxes[:, 1] < top - rounding) & (boxes[:, 3] > bottom + rounding)).any()
        )  # fmt: skip

    return near


# ---- classes ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Classes:
    """What stored values are called: by the polygons' classes, by a table beside the label rasters (which goes into the
    data set as it is), or by their numbers."""

    taxonomy: Taxonomy | None = None
    file: Path | None = None

    def name(self, value: int) -> str:
        if self.file is not None:
            coding = read_classes(self.file)
            value, names = coding.values.get(value, value), coding.taxonomy.names
        else:
            names = self.taxonomy.names if self.taxonomy else ()
        return names[value] if 0 <= value < len(names) else str(value)

    def text(self) -> bytes:
        if self.file is not None:
            return read_file(self.file, _LARGEST_TABLE)
        return classes_text(self.taxonomy).encode() if self.taxonomy else b""


def _classes(root: Path, pairs: Sequence[tuple[Path, Path]], truths: Sequence[GroundTruth]) -> _Classes:
    named = [t.names for t in truths if t.names]
    if not named:
        tables = find_tables([root, pairs[0][1].parent])
        return _Classes(file=tables[0] if tables else None)
    if len(named) != len(truths):
        raise DataError("Some scenes have polygons and others label rasters; cut them apart.")
    return _Classes(Taxonomy(tuple(dict.fromkeys(n for names in named for n in names))))


# ---- writing ---------------------------------------------------------------------------------------------------


@final
class _Writer:
    """Writes windows and counts what they hold, by split and stored value: pixels, and hectares on a map."""

    def __init__(
        self,
        opened: Sequence[RasterSource],
        truths: Sequence[GroundTruth],
        table: _Classes,
        options: CutOptions,
        cut: Cut,
    ) -> None:
        self.opened, self.truths, self.table, self.options, self.cut = opened, truths, table, options, cut
        self.areas: dict[str, dict[int, float]] = {"train": {}, "val": {}}
        self.metres: list[float] = []
        self.empty = 0

    def look(self, piece: _Piece) -> bool:
        """Whether enough of a window is measured and labelled."""
        labels = self._read(piece)[1]
        enough = bool((labels >= 0).mean() >= max(self.options.least, 1 / labels.size))
        self.empty += not enough
        return enough

    def write(self, piece: _Piece, image: Path, label: Path) -> None:
        """The window and its labels."""
        values, labels = self._read(piece)
        if labels.max() > 254:
            raise DataError(
                f"The labels of {printable(piece.name)} hold the value {int(labels.max())}; ids go up to 254: renumber "
                "the classes, or declare the value as nodata."
            )
        profile = self.opened[piece.scene].profile
        self._count(piece, profile, labels)
        stored: NDArray[np.uint8] = np.where(labels < 0, 255, labels).astype(np.uint8)
        label.write_bytes(images.encode_label(stored, self.table.taxonomy.palette if self.table.taxonomy else ()))
        _write_window(image, values, profile, piece.window)

    def _read(self, piece: _Piece) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(values H W C, labels H W as they are written; -1 for none)."""
        source, truth = self.opened[piece.scene], self.truths[piece.scene]
        values, good = source.read(piece.window)
        labels = truth.read(source.profile, piece.window)
        if self.table.taxonomy is not None:
            labels = np.array([*(self.table.taxonomy.names.index(n) for n in truth.names), -1])[labels]
        if good is not None:
            labels = np.where(good, labels, -1)
        return values, labels

    def _count(self, piece: _Piece, profile: RasterProfile, labels: NDArray[np.int64]) -> None:
        self.cut.windows[piece.split] = self.cut.windows.get(piece.split, 0) + 1
        metres = pixel_metres(profile, piece.window)
        self.metres += [math.sqrt(metres[0] * metres[1])] if metres else []
        hectares = metres[0] * metres[1] / 10_000 if metres else 0.0
        found = self.areas[piece.split]
        for k, n in zip(*(u.tolist() for u in np.unique(labels[labels >= 0], return_counts=True)), strict=True):
            found[k] = found.get(k, 0.0) + n * hectares

    def finish(self) -> None:
        """The figures and the notes."""
        cut, options = self.cut, self.options
        if self.empty:
            share = f"{100 * options.least:g} %"
            cut.notes.append(f"{self.empty} windows are measured and labelled on less than {share} and left out.")
        if self.metres:
            cut.resolution = min(self.metres), max(self.metres)
            cut.hectares = {
                split: {self.table.name(k): area for k, area in sorted(found.items())}
                for split, found in self.areas.items()
                if found
            }
        if options.val and (lost := sorted(set(self.areas["train"]) - set(self.areas["val"]))):
            names = ", ".join(printable(self.table.name(k)) for k in lost)
            cut.notes.append(f"val has nothing of: {names} (another --seed draws other ground).")


def pixel_metres(profile: RasterProfile, window: Window) -> tuple[float, float] | None:
    """(height, width) of a pixel on the ground; on a map of degrees, at the window's own latitude; None off a map."""
    if profile.transform is None or not profile.crs:
        return None
    from rasterio.crs import CRS

    crs = CRS.from_user_input(profile.crs)
    a, b, _, d, e, f = profile.transform
    width, height = math.hypot(a, d), math.hypot(b, e)
    if crs.is_projected:
        metres = float(crs.linear_units_factor[1])
        return height * metres, width * metres
    if not crs.is_geographic:
        return None
    latitude = d * (window.left + window.right) / 2 + e * (window.top + window.bottom) / 2 + f
    degree = 111_320.0  # metres of a degree along a meridian, and along the equator
    return height * degree, width * degree * math.cos(math.radians(latitude))


def _write_window(path: Path, values: NDArray[np.number], profile: RasterProfile, window: Window) -> None:
    """A GeoTIFF of the window that lies where the scene has it."""
    import warnings

    h, w, bands = values.shape
    colour = bands == 3 and values.dtype == np.uint8
    with gdal(str(path)) as rasterio, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        placed: dict[str, Any] = {}
        if profile.transform is not None:
            placed = {
                "transform": rasterio.Affine(*profile.place(window)),
                "crs": profile.crs or None,
            }
        with rasterio.open(
            path, "w", driver="GTiff", height=h, width=w, count=bands, dtype=values.dtype, nodata=profile.nodata,
            compress="deflate", photometric="RGB" if colour else "MINISBLACK", **placed,
        ) as file:  # fmt: skip
            file.write(np.moveaxis(values, -1, 0))
