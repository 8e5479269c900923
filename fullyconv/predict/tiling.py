"""Reading a network's answer for an image piece by piece.

Where the network sees a bounded field, every tile is read with enough context (`geometry`'s halo) on the network's own
grid, so its core equals the whole image's answer. Where context is unbounded (global pooling, attention) no tile can;
overlapping tiles are then blended with weights that fall off linearly, which is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.allocator import give_back
from fullyconv.errors import UsageError
from fullyconv.geometry import OutputGeometry, Tile, tiles
from fullyconv.interpolation.axes import Border, Offset
from fullyconv.preprocessing import Preprocessing

if TYPE_CHECKING:
    from fullyconv.models.interface import SegmentationModel
    from fullyconv.runtime.exported import ExportedNetwork

__all__ = ["Backend", "InferenceModel", "Readout", "Scores", "TilePlan", "plan_tiles", "read_tiles", "read_whole"]

Readout = Literal["labels", "scores", "confident labels"]  # what is wanted of the scores
Scores = Any  # a backend's own arrays: torch's tensors, numpy's


class _Upsampled(TypedDict):
    size: tuple[int, int]
    stride: int
    offset: Offset
    border: Border


Coarse = Callable[[slice, slice], Mapping[str, Scores]]  # a window of the image -> {head: 1 K h w}


class InferenceModel(Protocol):
    """What prediction asks of a network, whatever computes it. One that also has `name`, `taxonomies` and `origin` is
    told by them in results."""

    @property
    def heads(self) -> Mapping[str, int]:
        """Head -> number of classes, the main head first."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How stored pixels become the input."""

    def geometry(self, height: int, width: int, /) -> OutputGeometry:
        """How coarse scores lie on an image of height x width pixels."""


class Backend(Protocol):
    """What computes: torch (`predict.eager`), or onnxruntime without torch (`runtime.backend`)."""

    @property
    def network(self) -> SegmentationModel | ExportedNetwork: ...

    @property
    def inputs(self) -> tuple[str, ...] | None: ...
    @property
    def device(self) -> Any: ...
    @property
    def precision(self) -> str: ...
    @property
    def chosen(self) -> str: ...
    @property
    def batch_pixels(self) -> int:
        """How many pixels of small images are computed at once where that is quicker than one by one; 0: never."""

    @property
    def versions(self) -> dict[str, str]: ...
    def digest(self) -> str:
        """sha256 of the weights."""

    def identity(self) -> str:
        """sha256 of all that its answers follow from: weights, what they make up, how pixels become input."""

    def threads(self) -> int: ...
    def computing(self) -> AbstractContextManager[Any]: ...
    def whole(self, image: NDArray[np.number], readout: Readout) -> dict[str, tuple[NDArray[Any], ...]] | None:
        """The answer for a whole image where there is a shorter way than by coarse scores."""

    def coarse(self, window: NDArray[np.number]) -> dict[str, Scores]:
        """window h w C, as stored -> {head: coarse scores 1 K h w, float32}."""

    def coarse_of(self, x: NDArray[np.float32]) -> dict[str, Scores]:
        """The network's own input 1 C H W -> {head: coarse scores 1 K h w, float32}."""

    def read(
        self, readout: Readout, scores: Scores, size: Sequence[int], stride: int, offset: Offset, border: Border
    ) -> tuple[NDArray[Any], ...]:
        """What is wanted, ... H W, from coarse scores and the geometry of the last upsampling."""

    def upsample(self, scores: Scores, size: Sequence[int], stride: int, offset: Offset, border: Border) -> Scores:
        """Full scores K H W."""

    def room(self, scores: Scores, shape: Sequence[int]) -> Scores:
        """Zeros like `scores`."""

    def weigh(self, scores: Scores, weight: NDArray[np.float32]) -> Scores:
        """scores K H W x weight H W."""

    def read_full(self, readout: Readout, full: Scores) -> tuple[NDArray[Any], ...]:
        """What is wanted, from full scores K H W."""

    def probabilities(self, scores: NDArray[np.float32], mirrored: bool, size: tuple[int, int]) -> NDArray[np.float32]:
        """Full scores K h w, mirrored back and resized to `size` (bilinear), as softmax probabilities."""


@final
@dataclass(frozen=True)
class TilePlan:
    """How an image is cut. core: (H, W) of the tiles' cores, or None for the whole image; context: pixels read round
    a core; `blended` where the answer only approximates the whole image's."""

    core: tuple[int, int] | None
    align: int
    context: int
    blended: bool
    exact: bool

    def to_json(self) -> dict[str, Any]:
        core = list(self.core) if self.core else None
        return {"tile": core, "context": self.context, "blended": self.blended, "exact": self.exact}


def plan_tiles(model: InferenceModel, tile: int | tuple[int, int] | None) -> TilePlan:
    """The plan for tiles with cores of about `tile` pixels (rounded to the network's coarsest stride)."""
    if tile is None:
        return TilePlan(None, 1, 0, False, True)
    asked = (tile, tile) if isinstance(tile, int) else (int(tile[0]), int(tile[1]))
    if min(asked) < 1:
        raise UsageError(f"A tile of {asked[0]}x{asked[1]} pixels is empty; give at least 1x1.")
    geometry = model.geometry(*asked)
    align = geometry.align
    core = (max(align, asked[0] // align * align), max(align, asked[1] // align * align))
    if math.isfinite(geometry.halo):
        return TilePlan(core, align, -(-math.ceil(geometry.halo) // align) * align, False, geometry.exact)
    # Half a core to each side: the widest overlap in which no pixel belongs to more than two tiles an axis.
    return TilePlan(core, align, -(-(min(core) // 2) // align) * align, True, False)


def read_tiles(
    backend: Backend,
    image: NDArray[np.number],
    cut: TilePlan,
    readout: Readout,
    before: Callable[[], None] | None = None,
) -> dict[str, tuple[NDArray[Any], ...]]:
    """{head: tuple of arrays ... H W}: what `readout` takes of the network's answer for an image H W C. `before` is
    called before every window is computed, and may raise."""
    size = (image.shape[0], image.shape[1])

    def window(rows: slice, columns: slice) -> Mapping[str, Scores]:
        if before:
            before()
        return backend.coarse(image[rows, columns])

    coarse: Coarse = window

    if cut.core is None or (size[0] <= cut.core[0] and size[1] <= cut.core[1]):
        pieces = _exact(coarse, backend, [Tile(0, size[0], 0, size[0])], [Tile(0, size[1], 0, size[1])], readout)
    else:
        coarse = _giving_back(coarse)
        rows, columns = (
            list(tiles(length, core, cut.align, cut.context)) for length, core in zip(size, cut.core, strict=True)
        )
        pieces = (
            _blended(coarse, backend, rows, columns, readout, max(1, min(cut.core) // 2))
            if cut.blended
            else _exact(coarse, backend, rows, columns, readout)
        )
    return _pasted(pieces, size)


def read_whole(
    backend: Backend, shape: tuple[int, ...], scores: Mapping[str, Scores], readout: Readout
) -> dict[str, tuple[NDArray[Any], ...]]:
    """What `readout` takes of the coarse scores {head: 1 K h w} of a whole image of H x W (x C) = `shape`."""
    rows, columns = (Tile(0, length, 0, length) for length in shape[:2])
    at = _at(backend.network, rows, columns, (0, shape[0]), (0, shape[1]))
    return {head: backend.read(readout, s, **at) for head, s in scores.items()}


def _giving_back(coarse: Coarse) -> Coarse:
    """`coarse`, with what the tile before left unused in the heap given back first: the peak is one tile's."""

    def call(rows: slice, columns: slice) -> Any:
        give_back()
        return coarse(rows, columns)

    return call


Piece = tuple[str, int, int, tuple[NDArray[Any], ...]]  # head, top, left, values


def _exact(
    coarse: Coarse, backend: Backend, rows: list[Tile], columns: list[Tile], readout: Readout
) -> Iterator[Piece]:
    for r in rows:
        for c in columns:
            scores = coarse(slice(r.start, r.stop), slice(c.start, c.stop))
            at = _at(backend.network, r, c, (r.keep_from, r.keep_to), (c.keep_from, c.keep_to))
            for head, s in scores.items():
                yield head, r.keep_from, c.keep_from, backend.read(readout, s, **at)


def _at(model: InferenceModel, r: Tile, c: Tile, rows: tuple[int, int], columns: tuple[int, int]) -> _Upsampled:
    """`ops` arguments that upsample a tile's coarse scores onto the given rows and columns of the image."""
    g = model.geometry(r.stop - r.start, c.stop - c.start)
    offset = (g.offset + rows[0] - r.start, g.offset + columns[0] - c.start)
    size = (rows[1] - rows[0], columns[1] - columns[0])
    return {"size": size, "stride": g.stride, "offset": offset, "border": g.border}


def _blended(
    coarse: Coarse, backend: Backend, rows: list[Tile], columns: list[Tile], readout: Readout, overlap: int
) -> Iterator[Piece]:
    """Rows of tiles from the top; what no later row overlaps is read out at once, so at most one row is held."""
    height, width = rows[-1].keep_to, columns[-1].keep_to
    held: dict[str, Scores] = {}
    top = 0
    for i, r in enumerate(rows):
        strip = _strip(coarse, backend, r, columns, (height, width), overlap)
        for head, values in strip.items():
            before = held.get(head)
            if before is not None:
                values[:, : before.shape[1]] += before
        done = rows[i + 1].start if i + 1 < len(rows) else height
        for head, values in strip.items():
            yield head, top, 0, backend.read_full(readout, values[:, : done - top])
        held = {head: values[:, done - top :] for head, values in strip.items()}
        top = done


def _strip(
    coarse: Coarse, backend: Backend, r: Tile, columns: list[Tile], image: tuple[int, int], overlap: int
) -> dict[str, Scores]:
    """{head: K (r.stop - r.start) W}: the weighted scores of one row of tiles."""
    strip: dict[str, Scores] = {}
    for c in columns:
        at = _at(backend.network, r, c, (r.start, r.stop), (c.start, c.stop))
        weight = _ramp(r, image[0], overlap)[:, None] * _ramp(c, image[1], overlap)[None, :]
        for head, s in coarse(slice(r.start, r.stop), slice(c.start, c.stop)).items():
            scores = backend.upsample(s, **at)
            if head not in strip:
                strip[head] = backend.room(scores, (scores.shape[0], r.stop - r.start, image[1]))
            strip[head][:, :, c.start : c.stop] += backend.weigh(scores, weight)
    return strip


def _ramp(tile: Tile, size: int, overlap: int) -> NDArray[np.float32]:
    """Weights of a tile's pixels, start..stop: 1 inside, falling to 0 over `overlap` pixels on both sides of a border
    between cores (fewer where the image ends sooner). Neighbours' weights sum to 1."""
    y = np.arange(tile.start, tile.stop, dtype=np.float32) + np.float32(0.5)
    weight = np.ones(tile.stop - tile.start, np.float32)
    if tile.keep_from > 0:
        reach = min(overlap, size - tile.keep_from)
        weight *= ((y - (tile.keep_from - reach)) / (2 * reach)).clip(0, 1)
    if tile.keep_to < size:
        reach = min(overlap, size - tile.keep_to)
        weight *= ((tile.keep_to + reach - y) / (2 * reach)).clip(0, 1)
    return weight


def _pasted(pieces: Iterator[Piece], size: tuple[int, int]) -> dict[str, tuple[NDArray[Any], ...]]:
    whole: dict[str, tuple[NDArray[Any], ...]] = {}
    for head, top, left, arrays in pieces:
        if arrays[0].shape[-2:] == size:
            whole[head] = arrays
            continue
        if head not in whole:
            whole[head] = tuple(np.empty((*a.shape[:-2], *size), a.dtype) for a in arrays)
        for out, a in zip(whole[head], arrays, strict=True):
            out[..., top : top + a.shape[-2], left : left + a.shape[-1]] = a
    return whole
