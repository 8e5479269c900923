"""Labelling a raster of any size: blocks are read, computed and kept one after another, in constant memory.

Where the network's field is bounded every block is read with the context that its labels depend on, on one grid, so
that the scores are those of the whole. Elsewhere blocks overlap and their scores are blended. Reading and preprocessing
run a block ahead, writing a block behind.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import viewable
from fullyconv.errors import DataError, UsageError
from fullyconv.geometry import Tile
from fullyconv.predict.memory_limit import peak_bytes
from fullyconv.predict.tiling import Scores, _at, plan_tiles
from fullyconv.rasters.block_journal import BlockJournal, job_key
from fullyconv.rasters.windows import Block, BlockGrid, RasterProfile, RasterSource, Span, Window
from fullyconv.runtime.exported import ExportedNetwork

if TYPE_CHECKING:
    from fullyconv.models.interface import SegmentationModel
    from fullyconv.predict import Predictor

__all__ = ["SceneCounts", "SceneJob", "core_for", "label_blocks"]

# Pixels a side of a block, the largest first: context is read twice, so larger blocks compute less, as memory allows.
CORES = (4096, 3072, 2048, 1536, 1024, 512)
EXPORTED = 1024  # pixels a side where nothing tells what a block takes
BUDGET = 400 << 20  # bytes of tensors alive at once: what a process takes comes to 2.4 times that (`memory_limit`)
BLEND_BYTES = 512 << 20  # bytes of coarse scores kept for blending; what was let go is computed again
PREVIEW = 1600  # pixels of the longer side of a scene's small image

Progress = Callable[[int, int], None]


def core_for(model: SegmentationModel | ExportedNetwork, tile: int = 0) -> int:
    """Pixels a side of a block: about `tile`, else the largest of a few whose computation fits `BUDGET`, by the sizes
    of tensors alone, so that a job that is run again has the blocks it had."""
    if tile:
        core = plan_tiles(model, tile).core
        assert core is not None
        return core[0]
    if isinstance(model, ExportedNetwork):  # the sizes of its tensors are not known before it runs
        return core_for(model, EXPORTED)
    for side in CORES:
        plan = plan_tiles(model, side)
        if plan.blended and side > 1024:
            continue  # K x side x side sums are held
        core = plan.core
        if core and (side == CORES[-1] or peak_bytes(model, side + 2 * plan.context) <= BUDGET):
            return core[0]
    raise UsageError("No block fits; give --tile.")


@final
@dataclass(frozen=True)
class SceneJob:
    """What is computed of one raster. confidence and probabilities: also those layers (uint8, 255 for 1)."""

    predictor: Predictor
    source: RasterSource
    grid: BlockGrid
    blended: bool
    confidence: bool
    probabilities: bool

    @classmethod
    def plan(
        cls, predictor: Predictor, source: RasterSource, tile: int, confidence: bool, probabilities: bool
    ) -> SceneJob:
        """Refuses, before anything is computed, a raster whose bands are not the network's."""
        model = predictor.model
        _refuse_bands(predictor, source.profile)
        core = core_for(model, tile)
        cut = plan_tiles(model, core)
        grid = BlockGrid(source.profile.size, core, cut.align, cut.context, source.profile.origin)
        return cls(predictor, source, grid, cut.blended, confidence, probabilities)

    def key(self) -> str:
        """sha256 of all that a block's bytes follow from."""
        g, p = self.grid, self.predictor
        return job_key(
            {
                "model": p.backend.identity(), "source": self.source.identity(), "precision": p.precision,
                "device": str(p.device).split(":")[0], "size": list(g.size), "core": g.core, "align": g.align,
                "context": g.context, "origin": list(g.origin), "blended": self.blended,
                "layers": [self.confidence, self.probabilities], "transform": self.source.profile.transform,
            }
        )  # fmt: skip

    @property
    def block_bytes(self) -> int:
        """The most bytes that the layers of a block take, unpacked."""
        pixels = [max(s.keep_to - s.keep_from for s in self.grid.spans(axis)) for axis in (0, 1)]
        depth = 3 + sum(2 + 1 + classes for classes in self.predictor.heads.values())
        return pixels[0] * pixels[1] * depth + (1 << 20)  # names and sizes

    @property
    def step(self) -> int:
        """One pixel of so many, down and across, is in the small image."""
        return max(1, -(-max(self.grid.size) // PREVIEW))


def _refuse_bands(predictor: Predictor, profile: RasterProfile) -> None:
    inputs = predictor.inputs or ("rgb",)
    if len(inputs) > 1:
        raise UsageError(
            f"This network takes {', '.join(inputs)} as images of their own; a raster is read by windows for "
            "networks of one input only: train on rasters that hold all bands."
        )
    takes = predictor.model.preprocessing.channels
    if inputs == ("rgb",):
        if profile.bands not in (1, 3):
            raise DataError(
                f"The raster has {profile.bands} bands, the network takes 3 (red, green, blue); write those three with "
                "gdal_translate -b."
            )
        if profile.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"The raster holds {profile.dtype} numbers, whose range is not known to be that of colours; scale it "
                "to 8 bits with gdal_translate -ot Byte -scale."
            )
    elif profile.bands != takes:
        raise DataError(
            f"The raster has {profile.bands} bands, the network takes {takes}; give those it was trained with."
        )


class SceneCounts(NamedTuple):
    """Blocks in all, of them found finished; of what was computed now: blocks without any data, and pixels without."""

    blocks: int
    found: int
    empty: int
    invalid: int = 0


class _Read(NamedTuple):
    x: NDArray[np.float32] | None  # 1 C H W, the network's input; None where no pixel of the core was measured
    valid: NDArray[np.bool_] | None  # H W of the core
    preview: NDArray[np.uint8]


def label_blocks(
    job: SceneJob,
    journal: BlockJournal,
    progress: Progress | None = None,
    only: Collection[tuple[int, int]] | None = None,
) -> SceneCounts:
    """Compute every block that `journal` does not hold whole, and keep it there; of those at `only` (row, column)."""
    todo, total, found = [], len(job.grid) if only is None else len(only), 0
    for block in job.grid.blocks():
        if only is not None and (block.row, block.column) not in only:
            continue
        if journal.is_whole(block.row, block.column):
            found += 1
        else:
            todo.append(block)
    if progress and found:
        progress(found, total)
    empty = invalid = 0
    scores = _Blended(job) if job.blended else None
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, job.predictor.backend.computing():
        writing: list[Future[None]] = []
        for n, (block, read) in enumerate(_ahead(job, todo, reader, scores is None), 1):
            empty += read.x is None and read.valid is not None and not read.valid.any()
            invalid += 0 if read.valid is None else int(read.valid.size - np.count_nonzero(read.valid))
            layers = _layers(job, block, read, scores)
            writing.append(writer.submit(journal.write, block.row, block.column, layers))
            while len(writing) > 2:
                writing.pop(0).result()
            if progress:
                progress(found + n, total)
        for future in writing:
            future.result()
    return SceneCounts(total, found, empty, invalid)


def _ahead(
    job: SceneJob, todo: list[Block], reader: ThreadPoolExecutor, prepared: bool
) -> Iterator[tuple[Block, _Read]]:
    """The blocks with what was read for them, one read ahead."""
    if not prepared:
        yield from ((block, _read(job, block, False)) for block in todo)
        return
    waiting: list[tuple[Block, Future[_Read]]] = []
    for block in todo:
        waiting.append((block, reader.submit(_read, job, block, True)))
        if len(waiting) > 1:
            first, future = waiting.pop(0)
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _read(job: SceneJob, block: Block, whole: bool) -> _Read:
    """A block's window as the network's input (`whole`), and what of its core was measured."""
    window = _inside(block.rows, block.columns) if whole else block.core
    values, valid = job.source.read(window)
    core, at = block.core, (slice(block.core.top - window.top, block.core.bottom - window.top),
                            slice(block.core.left - window.left, block.core.right - window.left))  # fmt: skip
    inner = None if valid is None else valid[at]
    preview = viewable(_thinned(values[at], core, job.step), high_byte=True)
    if inner is not None and not inner.any():
        return _Read(None, inner, preview)
    x = _input(job, values, valid, block.rows, block.columns, window) if whole else None
    return _Read(x, inner, preview)


def _inside(rows: Span, columns: Span) -> Window:
    return Window(max(0, rows.start), max(0, columns.start), rows.stop, columns.stop)


def _input(
    job: SceneJob,
    values: NDArray[np.number],
    valid: NDArray[np.bool_] | None,
    rows: Span,
    columns: Span,
    window: Window,
) -> NDArray[np.float32]:
    """1 C H W: preprocessed; what was not measured, and what lies between the grid's edge and the raster's, is the
    mean colour, which is 0 to the network."""
    prepared: NDArray[np.float32] = job.predictor.model.preprocessing(_colours(job, values))
    if valid is not None:
        prepared[:, ~valid] = 0
    above, before = window.top - rows.start, window.left - columns.start
    if above or before:
        prepared = np.pad(prepared, ((0, 0), (above, 0), (before, 0)))
    return prepared[None]


def _colours(job: SceneJob, values: NDArray[np.number]) -> NDArray[Any]:
    """Bands as the network takes them: for colour networks grey is repeated, of 16 bits the upper 8 are taken, as for
    images that are read whole."""
    if (job.predictor.inputs or ("rgb",)) != ("rgb",):
        return values
    if values.dtype == np.uint16:
        values = (values.view(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def _thinned(values: NDArray[np.number], core: Window, step: int) -> NDArray[Any]:
    """Every `step`-th pixel of the raster that lies in the core."""
    return values[-core.top % step :: step, -core.left % step :: step]


def _layers(job: SceneJob, block: Block, read: _Read, scores: _Blended | None) -> dict[str, NDArray[Any]]:
    """What is kept of a block, by name."""
    out: dict[str, NDArray[Any]] = {"preview": read.preview}
    none = read.valid is not None and not read.valid.any()
    full = None if none or scores is None else scores.block(block)
    coarse = None if none or scores is not None else _coarse(job, read.x)
    h, w = block.core.size
    for head, classes in job.predictor.heads.items():
        kind = np.dtype(np.uint8 if classes <= 255 else np.uint16)
        ignore = job.predictor.taxonomies[head].ignore
        if none:
            found = {
                "labels": np.full((h, w), ignore, kind), "confidence": np.zeros((h, w), np.uint8),
                "probabilities": np.zeros((classes, h, w), np.uint8),
            }  # fmt: skip
        elif full is not None:
            found = _of_scores(full[head], kind, job)
        else:
            assert coarse is not None
            found = _of_coarse(job, block, coarse[head], kind)
        for what, values in found.items():
            if (what == "confidence" and not job.confidence) or (what == "probabilities" and not job.probabilities):
                continue
            if read.valid is not None and not none:
                values = np.where(read.valid, values, values.dtype.type(ignore if what == "labels" else 0))
            out[f"{what}/{head}"] = values
    return out


def _coarse(job: SceneJob, x: NDArray[np.float32] | None) -> dict[str, Scores]:
    assert x is not None
    return job.predictor.backend.coarse_of(x)


def _of_coarse(job: SceneJob, block: Block, s: Scores, kind: np.dtype[np.generic]) -> dict[str, NDArray[Any]]:
    """{layer: values} of a block's core from its coarse scores 1 K h w."""
    r, c = _tile(block.rows), _tile(block.columns)
    at = _at(job.predictor.model, r, c, (r.keep_from, r.keep_to), (c.keep_from, c.keep_to))
    backend = job.predictor.backend
    if job.probabilities:
        return _of_scores(backend.upsample(s, **at), kind, job)
    if not job.confidence:
        return {"labels": backend.read("labels", s, **at)[0].astype(kind, copy=False)}
    labels, confidence = backend.read("confident labels", s, **at)
    return {"labels": labels.astype(kind, copy=False), "confidence": _bytes(confidence)}


def _of_scores(full: Scores, kind: np.dtype[np.generic], job: SceneJob) -> dict[str, NDArray[Any]]:
    """{layer: values} from full scores K H W."""
    backend = job.predictor.backend
    if not job.confidence and not job.probabilities:
        return {"labels": backend.read_full("labels", full)[0].astype(kind, copy=False)}
    labels, confidence = backend.read_full("confident labels", full)
    found = {"labels": labels.astype(kind, copy=False), "confidence": _bytes(confidence)}
    if job.probabilities:
        (scores,) = backend.read_full("scores", full)
        found["probabilities"] = _bytes(backend.probabilities(scores, False, scores.shape[1:]))
    return found


def _tile(span: Span) -> Tile:
    return Tile(span.start, span.stop, span.keep_from, span.keep_to)


def _bytes(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    out: NDArray[np.uint8] = np.rint(share * 255).astype(np.uint8)
    return out


@final
class _Blended:
    """Scores of blocks of a network whose context is unbounded: a mean over the blocks that overlap there, whose
    weights fall off linearly. Coarse scores of neighbours are kept while they are wanted."""

    def __init__(self, job: SceneJob) -> None:
        self._job, self._held = job, OrderedDict[tuple[int, int], dict[str, Scores]]()
        self._rows, self._columns = job.grid.spans(0), job.grid.spans(1)
        self._bytes = 0

    def block(self, block: Block) -> dict[str, Scores]:
        """{head: K h w} of the core."""
        total: dict[str, Scores] = {}
        core, backend = block.core, self._job.predictor.backend
        for i in range(max(0, block.row - 1), min(len(self._rows), block.row + 2)):
            for j in range(max(0, block.column - 1), min(len(self._columns), block.column + 2)):
                r, c = self._rows[i], self._columns[j]
                rows = max(core.top, r.start), min(core.bottom, r.stop)
                columns = max(core.left, c.start), min(core.right, c.stop)
                if rows[0] >= rows[1] or columns[0] >= columns[1]:
                    continue
                weight = self._ramp(0, i, rows)[:, None] * self._ramp(1, j, columns)[None, :]
                if not bool(weight.any()):
                    continue
                at = _at(self._job.predictor.model, _tile(r), _tile(c), rows, columns)
                for head, s in self._coarse(i, j).items():
                    if head not in total:
                        total[head] = backend.room(s, (s.shape[1], *core.size))
                    part = total[head][:, rows[0] - core.top : rows[1] - core.top,
                                       columns[0] - core.left : columns[1] - core.left]  # fmt: skip
                    part += backend.weigh(backend.upsample(s, **at), weight)
        return total

    def _coarse(self, i: int, j: int) -> dict[str, Scores]:
        if (i, j) in self._held:
            self._held.move_to_end((i, j))
            return self._held[i, j]
        rows, columns = self._rows[i], self._columns[j]
        window = _inside(rows, columns)
        values, valid = self._job.source.read(window)
        found = _coarse(self._job, _input(self._job, values, valid, rows, columns, window))
        self._held[i, j] = found
        self._bytes += sum(t.nbytes for t in found.values())
        while self._bytes > BLEND_BYTES and len(self._held) > 9:
            _, old = self._held.popitem(last=False)
            self._bytes -= sum(t.nbytes for t in old.values())
        return found

    def _ramp(self, axis: int, index: int, at: tuple[int, int]) -> NDArray[np.float32]:
        """Weights of one block's pixels at[0]..at[1] along an axis: as `tiling._ramp`."""
        span, begin, size = (
            (self._rows, self._columns)[axis][index],
            self._job.grid.begin[axis],
            self._job.grid.size[axis],
        )
        overlap = max(1, self._job.grid.core // 2)
        y = np.arange(at[0], at[1], dtype=np.float32) + np.float32(0.5)
        weight = np.ones(at[1] - at[0], np.float32)
        if span.keep_from > 0:
            reach = min(overlap, size - span.keep_from, span.keep_from - begin)
            weight = weight * ((y - (span.keep_from - reach)) / (2 * reach)).clip(0, 1)
        if span.keep_to < size:
            reach = min(overlap, size - span.keep_to, span.keep_to - begin)
            weight = weight * ((span.keep_to + reach - y) / (2 * reach)).clip(0, 1)
        return weight
