"""The rasters among the images of `fullyconv predict`: read by windows, written as GeoTIFFs and polygons."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from fullyconv.drawing import encode_jpeg, overlay
from fullyconv.errors import printable
from fullyconv.files.disk import PREFIX, make_directory, sync_file
from fullyconv.files.outputs import flat_name
from fullyconv.files.staged import ResultFiles
from fullyconv.predict import Predictor
from fullyconv.predict.jobs import claim_results, head_folder
from fullyconv.predict.scene import SceneCounts, SceneJob, label_blocks
from fullyconv.rasters.assembling import RasterLayer, write_geotiff
from fullyconv.rasters.block_journal import BlockJournal
from fullyconv.rasters.gdal import FINEST, open_source
from fullyconv.rasters.levels import Resolution
from fullyconv.rasters.polygons import SUFFIXES, draw_polygons, write_polygons
from fullyconv.terminal import rewrite, say

__all__ = ["BLOCKS", "RasterOptions", "RasterWork", "claim_raster", "journal_of", "label_raster"]

BLOCKS = ".blocks"  # beside the results, until they are whole


@final
@dataclass(frozen=True)
class RasterOptions:
    overlay: bool
    confidence: bool
    probabilities: bool
    polygons: str = ""
    tolerance: float = 0
    least: float = 0
    quiet: bool = False
    resolution: Resolution = FINEST


def claim_raster(
    plan: ResultFiles, heads: Sequence[str], name: str, options: RasterOptions
) -> dict[tuple[str, str], str]:
    """(what, head) -> the name claimed for it."""
    found = claim_results(plan, heads, name, options, (".tif", ".tif"))
    if options.polygons:
        for i, head in enumerate(heads):
            found["polygons", head] = plan.claim(*head_folder(i, head), f"{name}.{SUFFIXES[options.polygons]}")
    return found


@final
class RasterWork:
    """One raster, opened, with the plan of its blocks: `with` closes it."""

    def __init__(self, ready: Predictor, source: Path, options: RasterOptions) -> None:
        self.source, self.options, self.raster = source, options, open_source(source, options.resolution)
        try:
            tile = ready.tiling["tile"]
            with_confidence = options.confidence or bool(options.polygons)
            self.job = SceneJob.plan(ready, self.raster, tile[0] if tile else 0, with_confidence, options.probabilities)
        except BaseException:
            self.raster.close()
            raise

    def __enter__(self) -> RasterWork:
        return self

    def __exit__(self, *_: object) -> None:
        self.raster.close()

    def notes(self) -> list[str]:
        return notes(self.job, self.source)

    def assemble(
        self, journal: BlockJournal, plan: ResultFiles, names: dict[tuple[str, str], str]
    ) -> list[tuple[str, Path]]:
        """Write what was claimed, from finished blocks."""
        return _assemble(self.job, journal, plan, names, self.options)


def journal_of(folder: Path, names: dict[tuple[str, str], str], key: str) -> BlockJournal:
    """Where the blocks of a raster are kept until its results lie in `folder` under `names`."""
    main = next(name for (what, _), name in names.items() if what == "labels")
    return BlockJournal(folder / BLOCKS, flat_name(Path(main).stem), key)


def label_raster(
    ready: Predictor, source: Path, plan: ResultFiles, names: dict[tuple[str, str], str], options: RasterOptions
) -> list[tuple[str, Path]]:
    """Label one raster and write what was claimed for it: (what, file). Finished blocks stay until all is written."""
    with RasterWork(ready, source, options) as work:
        for note in () if options.quiet else work.notes():
            say(f"note: {note}")
        with journal_of(plan.folder, names, work.job.key()) as journal:
            counts = label_blocks(work.job, journal, None if options.quiet else _progress(source, work.job))
            if counts.found and not options.quiet:
                say(f"{printable(source)}: {counts.found} of {counts.blocks} blocks were finished by an earlier run.")
            if counts.invalid and not options.quiet:
                say(f"note: {describe_invalid(source, counts, work.job.grid.size)}")
            written = work.assemble(journal, plan, names)
            journal.remove()
        return written


def notes(job: SceneJob, source: Path) -> list[str]:
    """What a user should know of how a raster is read."""
    profile, grid, name = job.source.profile, job.grid, printable(source)
    found = [f"{name}: {job.source.note}"] if job.source.note else []
    if profile.transform is None and not profile.micrometres:
        found.append(f"{name} does not say where on a map it lies; neither do its results.")
    elif profile.transform is not None and profile.rotated:
        found.append(f"{name} is rotated on the map: its blocks start at its own corner, not on the map's grid.")
    elif profile.transform is not None and not profile.crs:
        found.append(f"{name} names no coordinate system; neither do its results.")
    if any(n % grid.align for n in grid.origin):
        found.append(
            f"{name} is read on the ground's own grid of {grid.align} pixels, {-grid.begin[0]} above and "
            f"{-grid.begin[1]} left of its first pixel, so that other cuts of the scene get the same labels."
        )
    if job.blended:
        found.append(f"this network's context is unbounded: blocks of {grid.core} pixels are blended over half of it.")
    return found


def describe_invalid(source: Path, counts: SceneCounts, size: tuple[int, int]) -> str:
    """How much of a raster holds no data, and what its results say there."""
    least = "at least " if counts.found else ""  # of blocks that an earlier run finished nothing is known
    return (
        f"{printable(source)} holds no data in {least}{counts.invalid:,} of {size[0] * size[1]:,} pixels (NaN, "
        "infinite, or declared so): the network saw the mean colour there, and the labels there are the ignored value."
    )


def _progress(source: Path, job: SceneJob) -> Any:
    """Blocks done, megapixels a second of those computed now, and the time left."""
    start, live, first = time.monotonic(), sys.stderr.isatty(), [-1]
    pixels = job.grid.size[0] * job.grid.size[1]

    def line(done: int, total: int) -> None:
        if first[0] < 0:
            first[0] = 0 if done == 1 else done  # what an earlier run finished is told first
        now = done - first[0]
        seconds = time.monotonic() - start
        speed = pixels / total * now / max(seconds, 1e-9) / 1e6
        left = seconds / now * (total - done) if now else 0
        text = f"{printable(source.name)} {done}/{total} blocks  {speed:.2f} MP/s  {left:.0f} s left"
        if live:
            rewrite(text, last=done == total)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            say(text)

    return line


def _assemble(
    job: SceneJob, journal: BlockJournal, plan: ResultFiles, names: dict[tuple[str, str], str], options: RasterOptions
) -> list[tuple[str, Path]]:
    written: list[tuple[str, Path]] = []
    profile = job.source.profile
    journal.most = job.block_bytes
    byte = np.dtype(np.uint8)
    for head, classes in job.predictor.heads.items():
        taxonomy = job.predictor.taxonomies[head]
        tags = (("CLASS_NAMES", json.dumps(list(taxonomy.names))),)
        kind = np.dtype(np.uint8 if classes <= 255 else np.uint16)
        layers = {
            "labels": RasterLayer(f"labels/{head}", kind, taxonomy.ignore, 1, taxonomy.palette, tags),
            "confidence": RasterLayer(f"confidence/{head}", byte, None),
            "probabilities": RasterLayer(f"probabilities/{head}", byte, None, classes, (), tags),
        }
        made: dict[str, Path] = {}
        for what, layer in layers.items():
            if (what, head) in names or (what == "confidence" and options.polygons):
                target = plan.folder / names.get((what, head), names["labels", head])
                make_directory(target.parent)
                made[what] = write_geotiff(target, profile, job.grid, journal, layer)
        try:
            if options.polygons:
                written.append(_polygons(job, head, made, plan, names["polygons", head], options))
            written += [
                (what, plan.publish(names[what, head], made.pop(what))) for what in list(made) if (what, head) in names
            ]
        finally:
            for left in made.values():
                left.unlink(missing_ok=True)
        if ("overlay", head) in names:
            written.append(("overlay", plan.write(names["overlay", head], _overlay(job, journal, head))))
    return written


def _polygons(
    job: SceneJob, head: str, made: dict[str, Path], plan: ResultFiles, name: str, options: RasterOptions
) -> tuple[str, Path]:
    drawn = draw_polygons(made["labels"], made.get("confidence"), tolerance=options.tolerance, least=options.least)
    a, b, _, d, e, _ = job.source.profile.transform or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    temporary = (plan.folder / name).parent / f"{PREFIX}{secrets.token_hex(8)}.{SUFFIXES[options.polygons]}"
    try:
        taxonomy = job.predictor.taxonomies[head]
        write_polygons(
            temporary, options.polygons, drawn, taxonomy.names, job.source.profile.crs, abs(a * e - b * d), head
        )
        sync_file(temporary)
        if not options.quiet:
            less = f", {drawn.merged} pixels of smaller areas given to their neighbours" if drawn.merged else ""
            say(f"{printable(name)}: {len(drawn.shapes)} polygons{less}.")
        return "polygons", plan.publish(name, temporary)
    finally:
        temporary.unlink(missing_ok=True)


def _overlay(job: SceneJob, journal: BlockJournal, head: str) -> bytes:
    """The raster, at most 1,600 pixels a side, under its labels; what has no data is left as it is."""
    palette = job.predictor.taxonomies[head].palette
    step, (h, w) = job.step, job.grid.size
    out = np.zeros((-(-h // step), -(-w // step), 3), np.uint8)
    for block in job.grid.blocks():
        found = journal.read(block.row, block.column) or {}
        core = block.core
        labels = found[f"labels/{head}"][-core.top % step :: step, -core.left % step :: step]
        preview = found.get("preview")
        if preview is None or preview.shape != (*labels.shape, 3) or preview.dtype != np.uint8:
            raise journal.forged(block.row, block.column)
        mixed = overlay(preview, labels, palette)
        y, x = -(-core.top // step), -(-core.left // step)
        out[y : y + mixed.shape[0], x : x + mixed.shape[1]] = mixed
    return encode_jpeg(out)
