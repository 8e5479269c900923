"""Scenes as a data set on the disk: windows of them with their labels, as the plain folders that everything reads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.class_tables import classes_text, read_classes
from fullyconv.errors import UsageError, printable
from fullyconv.files import new_directory, read_file
from fullyconv.files.outputs import Outputs
from fullyconv.rasters.geotiff import gdal
from fullyconv.rasters.ground_windows import CutOptions, Piece, pixel_metres
from fullyconv.rasters.scene_set import IGNORED, SceneClasses, SceneSet
from fullyconv.rasters.windows import RasterProfile, Window, nodata_pixels

__all__ = ["Cut", "cut_scenes"]

_LARGEST_TABLE = 2**22  # bytes


@final
@dataclass
class Cut:
    """What was written: windows by split; notes; hectares by split and class (empty where no scene lies on a map)."""

    windows: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    hectares: dict[str, dict[str, float]] = field(default_factory=dict)
    resolution: tuple[float, float] | None = None  # the finest and coarsest pixel, metres


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
    scenes = SceneSet.of(root, options, labels)
    cut = Cut(notes=scenes.notes)
    writer, table = _Writer(scenes, cut), scenes.classes
    classes = f"classes{table.file.suffix.lower()}" if table.file else "classes.txt"
    plan = Outputs(out, [f for pair in scenes.pairs for f in pair])
    places = [
        (plan.claim(p.split, "images", f"{p.name}.tif"), plan.claim(p.split, "labels", f"{p.name}.png"))
        for p in scenes.pieces
    ]
    plan.claim(classes)
    with new_directory(out) as folder:
        plan.moved(folder)
        for done, (piece, (image, label)) in enumerate(zip(scenes.pieces, places, strict=True), 1):
            writer.write(piece, plan.place(image), plan.place(label))
            if progress is not None:
                progress(done, len(places))
        writer.finish()
        if text := _text(table):
            plan.place(classes).write_bytes(text)
        os.sync()
    scenes.close()
    return cut


def _text(table: SceneClasses) -> bytes:
    """The table of classes that is written; the user's own goes into the data set as it is."""
    if table.file is not None:
        return read_file(table.file, _LARGEST_TABLE)
    return classes_text(table.taxonomy).encode() if table.taxonomy else b""


def _name(table: SceneClasses, value: int) -> str:
    if table.file is not None:
        coding = read_classes(table.file)
        value, names = coding.values.get(value, value), coding.taxonomy.names
    else:
        names = table.taxonomy.names if table.taxonomy else ()
    return names[value] if 0 <= value < len(names) else str(value)


@final
class _Writer:
    """Writes windows and counts what they hold, by split and stored value: pixels, and hectares on a map."""

    def __init__(self, scenes: SceneSet, cut: Cut) -> None:
        self.scenes, self.cut = scenes, cut
        self.areas: dict[str, dict[int, float]] = {"train": {}, "val": {}}
        self.metres: list[float] = []

    def write(self, piece: Piece, image: Path, label: Path) -> None:
        """The window and its labels."""
        values, good, labels = self.scenes.read(piece)
        profile, taxonomy = self.scenes.opened[piece.scene].profile, self.scenes.classes.taxonomy
        self._count(piece, profile, labels)
        stored: NDArray[np.uint8] = np.where(labels < 0, IGNORED, labels).astype(np.uint8)
        label.write_bytes(images.encode_label(stored, taxonomy.palette if taxonomy else ()))
        _write_window(image, values, good, profile, piece.window)

    def _count(self, piece: Piece, profile: RasterProfile, labels: NDArray[np.int64]) -> None:
        self.cut.windows[piece.split] = self.cut.windows.get(piece.split, 0) + 1
        metres = pixel_metres(profile, piece.window)
        self.metres += [math.sqrt(metres[0] * metres[1])] if metres else []
        hectares = metres[0] * metres[1] / 10_000 if metres else 0.0
        found = self.areas[piece.split]
        for k, n in zip(*(u.tolist() for u in np.unique(labels[labels >= 0], return_counts=True)), strict=True):
            found[k] = found.get(k, 0.0) + n * hectares

    def finish(self) -> None:
        """The figures and the notes."""
        cut, table = self.cut, self.scenes.classes
        if self.metres:
            cut.resolution = min(self.metres), max(self.metres)
            cut.hectares = {
                split: {_name(table, k): area for k, area in sorted(found.items())}
                for split, found in self.areas.items()
                if found
            }
        if self.scenes.options.val and (lost := sorted(set(self.areas["train"]) - set(self.areas["val"]))):
            names = ", ".join(printable(_name(table, k)) for k in lost)
            cut.notes.append(f"val has nothing of: {names} (another --seed draws other ground).")


def _write_window(
    path: Path, values: NDArray[np.number], good: NDArray[np.bool_] | None, profile: RasterProfile, window: Window
) -> None:
    """A GeoTIFF of the window that lies where the scene has it; what was not measured has a mask, where the nodata
    value does not say it already."""
    import warnings

    h, w, bands = values.shape
    colour = bands == 3 and values.dtype == np.uint8
    nodata = nodata_pixels(values, profile.nodata)
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
            if good is not None and not np.array_equal(~good, np.zeros((h, w), bool) if nodata is None else nodata):
                file.write_mask(good)
