"""Scenes with their labels: which belong together, what is wrong with them, and what each of their windows holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.corpora.class_tables import class_table, find_tables
from fullyconv.data.corpora.coding import Coding
from fullyconv.errors import DataError, printable
from fullyconv.rasters.gdal import open_source
from fullyconv.rasters.ground_truth import GroundTruth, open_truth
from fullyconv.rasters.ground_windows import CutOptions, Piece, divided, first_placed, pieces_of
from fullyconv.rasters.windows import RasterSource, Window
from fullyconv.taxonomy import Taxonomy

__all__ = ["IGNORED", "RASTERS", "VECTORS", "Doubts", "SceneClasses", "SceneSet", "find_scenes"]

RASTERS = (".tif", ".tiff", ".vrt")
VECTORS = (".gpkg", ".geojson")
LABELS = (*RASTERS, *VECTORS, ".json")
IGNORED = 255  # what is stored where nothing is labelled
Doubts = list[tuple[str, Path, str]]  # (kind of finding, file, words)


def find_scenes(root: Path, labels: Path | None = None) -> list[tuple[Path, Path]]:
    """(scene, its labels): ROOT/images beside ROOT/labels, or the rasters in ROOT with `labels`, a folder of files of
    the same names or one file for all; without either, the polygons (GeoPackage, GeoJSON) that lie beside the rasters.
    ROOT may be one raster."""
    one = root if root.is_file() else None
    folder = root.parent if one else next((root / n for n in _SIDES if (root / n).is_dir()), root)
    place = _labels_of(root, folder) if labels is None else labels
    if place is not None and not place.exists() and labels is not None and (folder / labels).exists():
        place = folder / labels
    beside = [f for f in _in(folder, VECTORS) if place is None]
    if (place is None or not place.exists()) and not beside:
        raise DataError(
            f"{printable(root)} has no labels/ beside its scenes; put label rasters or polygons (GeoPackage, GeoJSON) "
            "of the scenes' names there, or give --labels."
        )
    scenes = [one] if one else _in(folder, RASTERS)
    if not scenes:
        raise DataError(f"{printable(folder)} holds no scene ({', '.join(RASTERS)}); name the folder with the rasters.")
    if place is None and len(beside) == 1:
        place = beside[0]
    if place is not None and place.is_file():
        return [(scene, place) for scene in scenes if scene != place]
    by_stem: dict[str, Path] = {}
    for file in beside if place is None else _in(place, LABELS):
        if file.stem in by_stem:
            raise DataError(f"{printable(file)} and {printable(by_stem[file.stem].name)} are labels of one scene.")
        by_stem[file.stem] = file
    missing = [s.name for s in scenes if s.stem not in by_stem]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(scenes)} scenes have no labels in {printable(place or folder)} (the first: "
            f"{printable(missing[0])}); give them files of the same name, or take the scenes away."
        )
    return [(s, by_stem[s.stem]) for s in scenes]


_SIDES = ("images", "scenes", "rasters")


def _in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith("."))


def _labels_of(root: Path, folder: Path) -> Path | None:
    """The folder labels/ that belongs to scenes in `folder`; None without one."""
    tops = [root, folder.parent] if folder.name in _SIDES else [folder]
    return next((top / "labels" for top in tops if (top / "labels").is_dir()), None)


# ---- classes ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class SceneClasses:
    """What stored values are called: by the polygons' classes, by a table beside the label rasters, or by numbers."""

    taxonomy: Taxonomy | None = None
    file: Path | None = None

    def coding(self, values: Sequence[int]) -> Coding:
        """How labels that hold `values` (as written, without what is ignored) are read, as the reader of folders reads
        those that were cut."""
        if self.file is not None:
            found = class_table(self.file)[0]
            return Coding(found.taxonomy, found.values, numbered=found.numbered)
        return Coding(self.taxonomy or Taxonomy.numbered(max(values, default=0) + 1))


def _classes(root: Path, pairs: Sequence[tuple[Path, Path]], truths: Sequence[GroundTruth]) -> SceneClasses:
    named = [t.names for t in truths if t.names]
    if not named:
        tables = find_tables(dict.fromkeys([root if root.is_dir() else root.parent, pairs[0][1].parent]))
        return SceneClasses(file=tables[0] if tables else None)
    if len(named) != len(truths):
        raise DataError("Some scenes have polygons and others label rasters; cut them apart.")
    return SceneClasses(Taxonomy(tuple(dict.fromkeys(n for names in named for n in names))))


# ---- the set ---------------------------------------------------------------------------------------------------


@final
@dataclass
class SceneSet:
    """Open scenes and labels, and the windows of them that are used. notes: said to the user; doubts: what the check
    makes findings of. values: stored in a window's labels, by its name; holed: windows with unmeasured pixels."""

    pairs: Sequence[tuple[Path, Path]]
    opened: Sequence[RasterSource]
    truths: Sequence[GroundTruth]
    classes: SceneClasses
    options: CutOptions
    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: Doubts = field(default_factory=list)
    values: dict[str, set[int]] = field(default_factory=dict)
    holed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, root: Path, options: CutOptions, labels: Path | None = None) -> SceneSet:
        """Every window is looked at once. DataError for no scenes, labels that lie elsewhere, bands that differ,
        nothing labelled; MissingExtra without rasterio."""
        pairs = find_scenes(root, labels)
        opened = [open_source(scene) for scene, _ in pairs]
        by_file = {file: open_truth(file, options.field, options.outside) for _, file in pairs}
        truths = [by_file[file] for _, file in pairs]
        found = cls(pairs, opened, truths, _classes(root, pairs, truths), options)
        found._check()
        found.notes[:0] = [s.note for s in opened if s.note] + [note for t in by_file.values() for note in t.notes]
        profiles = [s.profile for s in opened]
        every = pieces_of(pairs, profiles, options)
        used = [p for p in every if found._look(p)]
        found._left_out(every, used)
        found.pieces, message = divided(used, options, first_placed(profiles))
        found.notes += [message] if message else []
        return found

    def read(self, piece: Piece) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64]]:
        """(values H W C, which of them were measured, labels H W as they are written; -1 for none)."""
        return read_window(self.opened[piece.scene], self.truths[piece.scene], piece.window, self.classes.taxonomy)

    def close(self) -> None:
        for source in self.opened:
            source.close()

    def _look(self, piece: Piece) -> bool:
        """Whether enough of a window is measured and labelled."""
        _, good, labels = self.read(piece)
        if labels.max() >= IGNORED:
            raise DataError(
                f"The labels of {printable(piece.name)} hold the value {labels.max()}; ids go up to 254: renumber "
                "the classes, or declare the value as nodata."
            )
        values = set(np.flatnonzero(np.bincount(labels[labels >= 0])).tolist())
        enough = bool((labels >= 0).mean() >= max(self.options.least, 1 / labels.size))
        if enough:
            self.values[piece.name] = values
            if good is not None:
                self.holed.add(piece.name)
        return enough

    def _left_out(self, every: Sequence[Piece], used: Sequence[Piece]) -> None:
        of, left = Counter(p.scene for p in every), Counter(p.scene for p in every)
        left.subtract(p.scene for p in used)
        if count := sum(left.values()):
            share = f"{100 * self.options.least:g} %"
            self.notes.append(f"{count} windows are measured and labelled on less than {share} and left out.")
        for scene, n in left.items():
            if 2 * n > of[scene]:
                words = f"{n} of its {of[scene]} windows are hardly measured or labelled and left out"
                self.doubts.append(("scene-hardly-labelled", self.pairs[scene][0], words))

    def _check(self) -> None:
        """What would be wrong in every window is said before one is read."""
        first = self.opened[0].profile
        for (scene, labels), source, truth in zip(self.pairs, self.opened, self.truths, strict=True):
            here = source.profile
            if (here.bands, here.dtype) != (first.bands, first.dtype):
                raise DataError(
                    f"{printable(scene)} has {here.bands} bands of {here.dtype} and "
                    f"{printable(self.pairs[0][0].name)} {first.bands} of {first.dtype}; a data set has one kind: cut "
                    "them apart."
                )
            share = truth.overlap(here)
            if share < 0.01:
                raise DataError(
                    f"The labels {printable(labels)} cover {100 * share:.1f} % of {printable(scene)}: they lie "
                    "elsewhere on the map, or say a wrong projection (CRS); correct it (gdal_edit -a_srs), or take the "
                    "scene away."
                )
            if share < 0.9:
                words = f"its labels cover {100 * share:.0f} % of it; the rest is ignored"
                self.notes.append(f"{printable(scene.name)}: {words}.")
                self.doubts.append(("scene-partly-labelled", scene, words))
            if truth.warped(here):
                self.notes.append(
                    f"{printable(scene.name)}: its labels have another grid and were warped to it (nearest neighbour)."
                )
        for scene, words in unlike([s for s, _ in self.pairs], self.opened):
            self.notes.append(f"{printable(scene.name)}: {words}.")
            self.doubts.append(("unlike-scene", scene, words))


def read_window(
    source: RasterSource, truth: GroundTruth, window: Window, taxonomy: Taxonomy | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.int64]]:
    """(values H W C as stored, which pixels were measured: None for all, labels H W in the ids of `taxonomy`, or as
    stored where it is None; -1 for none)."""
    values, good = source.read(window)
    labels = truth.read(source.profile, window)
    if taxonomy is not None:
        labels = np.array([*(taxonomy.names.index(n) for n in truth.names), -1])[labels]
    return values, good, labels if good is None else np.where(good, labels, -1)


def unlike(scenes: Sequence[Path], opened: Sequence[RasterSource]) -> list[tuple[Path, str]]:
    """Scenes whose bands are far from the others', and which: another sensor, season, scale or order of bands."""
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
    note = "is far from the other scenes' (another sensor, season or scale?)"
    return [
        (scene, f"band {', '.join(str(b + 1) for b in np.flatnonzero(row))} {note}")
        for scene, row in zip(scenes, far, strict=True)
        if row.any()
    ]
