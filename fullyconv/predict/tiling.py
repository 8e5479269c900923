"""Reading a network's answer for an image piece by piece.

Where the network sees a bounded field, every tile is read with enough context (`geometry`'s halo) on the network's own
grid, so its core equals the whole image's answer. Where context is unbounded (global pooling, attention) no tile can;
overlapping tiles are then blended with weights that fall off linearly, which is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullyconv import ops
from fullyconv.allocator import give_back
from fullyconv.errors import UsageError
from fullyconv.geometry import Tile, tiles

__all__ = ["CONFIDENT_LABELS", "LABELS", "SCORES", "Readout", "TilePlan", "plan_tiles", "read_tiles"]

Coarse = Callable[[slice, slice], Mapping[str, Tensor]]  # a window of the image -> {head: 1 K h w}


@final
@dataclass(frozen=True)
class Readout:
    """What is wanted of the scores, from the coarse ones (`ops` keyword arguments) and from full ones K H W.

    Both give a tuple of tensors ... H W.
    """

    coarse: Callable[..., tuple[Tensor, ...]]
    full: Callable[[Tensor], tuple[Tensor, ...]]


def _label(full: Tensor) -> Tensor:
    return full.argmax(0).to(ops.label_dtype(full.shape[0]))


LABELS = Readout(lambda s, **at: (ops.upsample_argmax(s, **at)[0],), lambda full: (_label(full),))
SCORES = Readout(lambda s, **at: (ops.upsample(s, **at)[0],), lambda full: (full,))
CONFIDENT_LABELS = Readout(
    lambda s, **at: tuple(part[0] for part in ops.upsample_softmax_max(s, **at)),
    lambda full: (_label(full), full.softmax(0).amax(0)),
)


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


def plan_tiles(model: Any, tile: int | tuple[int, int] | None) -> TilePlan:
    """The plan for tiles with cores of about `tile` pixels (rounded to the network's coarsest stride)."""
    if tile is None:
        return TilePlan(None, 1, 0, False, True)
    asked = (tile, tile) if isinstance(tile, int) else (int(tile[0]), int(tile[1]))
    if min(asked) < 1:
        raise UsageError(f"A tile of {asked[0]}x{asked[1]} pixels is empty; give at least 1x1.")
    geometry = model.geometry(*asked)
    align = max(math.ceil(grid.stride) for grid in geometry.taps.values())
    core = (max(align, asked[0] // align * align), max(align, asked[1] // align * align))
    if math.isfinite(geometry.halo):
        return TilePlan(core, align, -(-math.ceil(geometry.halo) // align) * align, False, geometry.exact)
    # Half a core to each side: the widest overlap in which no pixel belongs to more than two tiles an axis.
    return TilePlan(core, align, -(-(min(core) // 2) // align) * align, True, False)


def read_tiles(coarse: Coarse, model: Any, size: tuple[int, int], cut: TilePlan, readout: Readout) -> dict[str, Any]:
    """{head: tuple of arrays ... H W}: what `readout` takes of the network's answer for an image of `size`."""
    if cut.core is None or (size[0] <= cut.core[0] and size[1] <= cut.core[1]):
        pieces = _exact(coarse, model, [Tile(0, size[0], 0, size[0])], [Tile(0, size[1], 0, size[1])], readout)
    else:
        coarse = _giving_back(coarse)
        rows, columns = (
            list(tiles(length, core, cut.align, cut.context)) for length, core in zip(size, cut.core, strict=True)
        )
        pieces = (
            _blended(coarse, model, rows, columns, readout, max(1, min(cut.core) // 2))
            if cut.blended
            else _exact(coarse, model, rows, columns, readout)
        )
    return _pasted(pieces, size)


def _giving_back(coarse: Coarse) -> Coarse:
    """`coarse`, with what the tile before left unused in the heap given back first: the peak is one tile's."""

    def call(rows: slice, columns: slice) -> Any:
        give_back()
        return coarse(rows, columns)

    return call


Piece = tuple[str, int, int, tuple[Tensor, ...]]  # head, top, left, values


def _exact(coarse: Coarse, model: Any, rows: list[Tile], columns: list[Tile], readout: Readout) -> Iterator[Piece]:
    for r in rows:
        for c in columns:
            scores = coarse(slice(r.start, r.stop), slice(c.start, c.stop))
            at = _at(model, r, c, (r.keep_from, r.keep_to), (c.keep_from, c.keep_to))
            for head, s in scores.items():
                yield head, r.keep_from, c.keep_from, readout.coarse(s, **at)


def _at(model: Any, r: Tile, c: Tile, rows: tuple[int, int], columns: tuple[int, int]) -> dict[str, Any]:
    """`ops` arguments that upsample a tile's coarse scores onto the given rows and columns of the image."""
    g = model.geometry(r.stop - r.start, c.stop - c.start)
    offset = (g.offset + rows[0] - r.start, g.offset + columns[0] - c.start)
    size = (rows[1] - rows[0], columns[1] - columns[0])
    return {"size": size, "stride": g.stride, "offset": offset, "border": g.border}


def _blended(
    coarse: Coarse, model: Any, rows: list[Tile], columns: list[Tile], readout: Readout, overlap: int
) -> Iterator[Piece]:
    """Rows of tiles from the top; what no later row overlaps is read out at once, so at most one row is held."""
    height, width = rows[-1].keep_to, columns[-1].keep_to
    held: dict[str, Tensor] = {}
    top = 0
    for i, r in enumerate(rows):
        strip = _strip(coarse, model, r, columns, (height, width), overlap)
        for head, values in strip.items():
            before = held.get(head)
            if before is not None:
                values[:, : before.shape[1]] += before
        done = rows[i + 1].start if i + 1 < len(rows) else height
        for head, values in strip.items():
            yield head, top, 0, readout.full(values[:, : done - top])
        held = {head: values[:, done - top :] for head, values in strip.items()}
        top = done


def _strip(
    coarse: Coarse, model: Any, r: Tile, columns: list[Tile], image: tuple[int, int], overlap: int
) -> dict[str, Tensor]:
    """{head: K (r.stop - r.start) W}: the weighted scores of one row of tiles."""
    strip: dict[str, Tensor] = {}
    for c in columns:
        at = _at(model, r, c, (r.start, r.stop), (c.start, c.stop))
        weight = _ramp(r, image[0], overlap)[:, None] * _ramp(c, image[1], overlap)[None, :]
        for head, s in coarse(slice(r.start, r.stop), slice(c.start, c.stop)).items():
            scores = ops.upsample(s, **at)[0]
            if head not in strip:
                strip[head] = scores.new_zeros((scores.shape[0], r.stop - r.start, image[1]))
            strip[head][:, :, c.start : c.stop] += scores * weight.to(scores)
    return strip


def _ramp(tile: Tile, size: int, overlap: int) -> Tensor:
    """Weights of a tile's pixels, start..stop: 1 inside, falling to 0 over `overlap` pixels on both sides of a border
    between cores (fewer where the image ends sooner). Neighbours' weights sum to 1."""
    y = torch.arange(tile.start, tile.stop) + 0.5
    weight = torch.ones(tile.stop - tile.start)
    if tile.keep_from > 0:
        reach = min(overlap, size - tile.keep_from)
        weight = weight * ((y - (tile.keep_from - reach)) / (2 * reach)).clamp(0, 1)
    if tile.keep_to < size:
        reach = min(overlap, size - tile.keep_to)
        weight = weight * ((tile.keep_to + reach - y) / (2 * reach)).clamp(0, 1)
    return weight


def _pasted(pieces: Iterator[Piece], size: tuple[int, int]) -> dict[str, tuple[NDArray[Any], ...]]:
    whole: dict[str, tuple[NDArray[Any], ...]] = {}
    for head, top, left, values in pieces:
        arrays = [v.cpu().numpy() for v in values]
        if arrays[0].shape[-2:] == size:
            whole[head] = tuple(arrays)
            continue
        if head not in whole:
            whole[head] = tuple(np.empty((*a.shape[:-2], *size), a.dtype) for a in arrays)
        for out, a in zip(whole[head], arrays, strict=True):
            out[..., top : top + a.shape[-2], left : left + a.shape[-1]] = a
    return whole
