"""3x3 convolutions by a quarter of the multiplications: Winograd's F(4x4, 3x3).

A tile of 4 x 4 outputs is A' [ (G w G') * (B' d B) ] A of the 6 x 6 numbers d under it, where * goes place by place: of
all tiles and channels together 36 matrix products are left, one for each of the 6 x 6 places. The three transforms
evaluate and interpolate polynomials at `toom_cook.POINTS` and infinity: exact but for rounding. The points 0, +-3/4,
+-3/2 lose half as much of it as the usual 0, +-1, +-2 (`tests/test_engine_winograd.py` holds both). Slow twin:
`convolve_reference`.

Sources: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1; on the points, Barabasz
et al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks".
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.engine.toom_cook import PLACES, TILE, matrices
from fullyconv.ops import threads

__all__ = [
    "convolve",
    "convolve_reference",
    "installed",
    "serves",
    "transformed",
    "weight_gradient",
    "winograd_scratch_bytes",
]

WIDTH = 16  # channels taken at a time
# Bytes of transformed numbers that are made at a time (by each thread, where it works alone): twice those of the
# weights they meet, within these bounds. Fewer, and the weights are read too often; more, and the numbers have left the
# caches when they are needed.
LEAST_PART, MOST_PART = 2 << 20, 16 << 20
# Numbers in a matrix of weights from which all threads work on one product, by oneDNN (twice as quick as MKL on
# processors of AMD whose width MKL does not use). Below, what comes before each product would cost too much: each
# thread works alone, by MKL, where there are enough tiles for it.
WIDE, ENOUGH = 1 << 15, 48


def installed() -> bool:
    """Whether the transforms, which numba compiles, are there."""
    return importlib.util.find_spec("numba") is not None


def serves(shape: Sequence[int]) -> bool:
    """Whether weights of this shape K C h w can be transformed, and gain by it (stride and dilation being 1)."""
    k, c, *kernel = shape
    return kernel == [3, 3] and k % WIDTH == c % WIDTH == 0 and min(k, c) >= 2 * WIDTH


def transformed(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Weights K C 3 3 float32 -> G w G' for each K and C: 36 K C, in the first numbers of `out` where it is given."""
    g, size = matrices()[1], (PLACES, weight.shape[0] * weight.shape[1])
    found = weight.new_empty(size) if out is None else out[: math.prod(size)].view(size)
    with torch.autocast("cpu", enabled=False):
        torch.mm(torch.kron(g, g).float(), weight.reshape(-1, 9).T, out=found)
    return found.view(PLACES, *weight.shape[:2])


def winograd_scratch_bytes(shape: Sequence[int], images: int, rows: int, columns: int) -> int:
    """What a convolution by weights K C 3 3 lays out at a time for so many images of results."""
    k, c = shape[:2]
    tiles = images * -(-rows // TILE) * -(-columns // TILE)
    together, workers = _together(k, c, tiles), torch.get_num_threads() if _alone(k, c, tiles) else 1
    return (k + c) * together * min(workers, -(-tiles // together)) * 4 * PLACES


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], relu: bool) -> Tensor:
    """The convolution (then ReLU, where asked for) of x with zeros of `padding` (rows, columns) round it.

    x: N C H W float32 on the CPU; weight: `transformed`, 36 K C; bias: K float32. Returns N K H+2r-2 W+2c-2 float32,
    channels_last. K and C are multiples of 16.
    """
    import fullyconv.engine.winograd_kernels as kernels  # compiled: only where it is used

    (n, c, h, w), k = x.shape, weight.shape[1]
    size = (h + 2 * padding[0] - 2, w + 2 * padding[1] - 2)
    y = torch.empty((n, k, *size), memory_format=torch.channels_last)
    out = y.permute(0, 2, 3, 1).view(-1).numpy()
    shift = (torch.zeros(k) if bias is None else bias).numpy()
    numbers = _Places(x, size, (padding[0], padding[1]), kernels.spread_out)
    alone, together = _alone(k, c, numbers.tiles), _together(k, c, numbers.tiles)
    rooms: list[tuple[_ScratchBuffer, _ScratchBuffer]] = []

    def gather(room: _ScratchBuffer, first: int, begin: int, end: int) -> None:
        place = kernels.TileSpan(first, begin, end, size, numbers.grid, (0, 0), k)
        kernels.gathered(room.numbers.numpy(), room.pitch, place, shift, relu, out, kernels.tile_scratch())

    def turn(first: int) -> None:
        some = min(together, numbers.tiles - first)
        before, after = rooms.pop() if rooms else (_ScratchBuffer(c, together), _ScratchBuffer(k, together))
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # each thread has modes of its own
            numbers.spread(before, first, some, alone)
            _multiply(before.places(some), weight, after.places(some))
        _shared(some, functools.partial(gather, after, first), alone)
        rooms.append((before, after))

    begins = range(0, numbers.tiles, together)
    if alone:
        threads.run_tasks(lambda i: turn(begins[i]), len(begins))
    else:
        for first in begins:
            turn(first)
    return y


def weight_gradient(x: Tensor, gradient: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a loss for the weights K C 3 3 float32, from the gradient for the results of convolving x with
    them; both as in `convolve`, where `gradient` stands for what it returns.
    """
    import fullyconv.engine.winograd_kernels as kernels

    c, k, size = x.shape[1], gradient.shape[1], (gradient.shape[2], gradient.shape[3])
    numbers = _Places(x, size, (padding[0], padding[1]), kernels.spread_out)
    results = _Places(gradient, size, (0, 0), kernels.spread_gradient)
    together = _together(k, c, numbers.tiles)
    ours, theirs = _ScratchBuffer(c, together), _ScratchBuffer(k, together)
    total = torch.empty(PLACES, k, c)
    g = matrices()[1]
    with torch.autocast("cpu", enabled=False):
        for first in range(0, numbers.tiles, together):
            some = min(together, numbers.tiles - first)
            numbers.spread(ours, first, some)
            results.spread(theirs, first, some)
            product = theirs.places(some).transpose(1, 2), ours.places(some)
            torch.bmm(*product, out=total) if first == 0 else total.baddbmm_(*product)
        found = torch.mm(torch.kron(g, g).float().T, total.view(PLACES, -1))
    return found.view(3, 3, k, c).permute(2, 3, 0, 1)


def convolve_reference(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], relu: bool) -> Tensor:
    """What `convolve` gives, in torch's own operations and in x's type."""
    a, _, b = (m.to(x.dtype) for m in matrices())
    rows, columns = (s + 2 * p - 2 for s, p in zip(x.shape[2:], padding, strict=True))
    x = F.pad(x, (padding[1], padding[1] + -columns % TILE, padding[0], padding[0] + -rows % TILE))
    d = x.unfold(2, 6, TILE).unfold(3, 6, TILE)  # N C tiles tiles 6 6
    v = torch.einsum("ip,ncyxpq,jq->ijncyx", b, d, b).flatten(0, 1)
    m = torch.einsum("pncyx,pkc->pnkyx", v, weight.to(x.dtype))
    y = torch.einsum("ai,ijnkyx,bj->nkyaxb", a, m.view(6, 6, *m.shape[1:]), a)
    y = y.flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]
    y = y if bias is None else y + bias.to(x.dtype).view(-1, 1, 1)
    return y.relu() if relu else y


def _alone(k: int, c: int, tiles: int) -> bool:
    """Whether each thread transforms and multiplies tiles of its own."""
    return k * c < WIDE and tiles >= ENOUGH * torch.get_num_threads()


def _together(k: int, c: int, tiles: int) -> int:
    """Tiles that are transformed and multiplied at a time."""
    part = min(MOST_PART, max(LEAST_PART, 2 * 4 * PLACES * k * c)) // (4 * PLACES * max(k, c))
    share = -(-tiles // torch.get_num_threads()) if _alone(k, c, tiles) else tiles
    return max(1, min(share, part))


@final
class _Places:
    """The tiles of a map, to be spread out in their 36 places.

    size: rows and columns of the results that the tiles make up; make: the kernel that transforms them.
    """

    def __init__(self, x: Tensor, size: tuple[int, int], padding: tuple[int, int], make: Callable[..., None]) -> None:
        n, self.channels, h, w = x.shape
        dense = x if _runs(x) else x.contiguous(memory_format=torch.channels_last)
        self.pitches = (dense.stride(0), dense.stride(2))
        span = (n - 1) * self.pitches[0] + (h - 1) * self.pitches[1] + w * self.channels
        self.numbers = torch.as_strided(dense, (span,), (1,)).numpy()
        self.map, self.padding, self.make = (h, w), padding, make
        self.grid = (-(-size[0] // TILE), -(-size[1] // TILE))
        self.tiles = n * self.grid[0] * self.grid[1]

    def spread(self, room: _ScratchBuffer, first: int, some: int, alone: bool = False) -> None:
        """`some` tiles from `first` on into `room`, by this thread alone or by all."""
        _shared(some, functools.partial(self._make, room, first), alone)

    def _make(self, room: _ScratchBuffer, first: int, begin: int, end: int) -> None:
        import fullyconv.engine.winograd_kernels as kernels

        place = kernels.TileSpan(first, begin, end, self.map, self.grid, self.padding, self.channels)
        self.make(self.numbers, self.pitches, place, room.numbers.numpy(), room.pitch, kernels.tile_scratch())


@final
class _ScratchBuffer:
    """Room for tiles in their 36 places, `pitch` numbers apart: an odd multiple of 16, since places a power of two
    apart would share the same cache lines."""

    def __init__(self, channels: int, tiles: int) -> None:
        self.channels, self.pitch = channels, (-(-tiles * channels // WIDTH) | 1) * WIDTH
        self.numbers = torch.empty(PLACES * self.pitch)

    def places(self, some: int) -> Tensor:
        """The first `some` tiles, 36 T C."""
        return self.numbers.as_strided((PLACES, some, self.channels), (self.pitch, self.channels, 1))


def _multiply(numbers: Tensor, weight: Tensor, out: Tensor) -> None:
    """numbers 36 T C times weight 36 K C -> out 36 T K."""
    if weight[0].numel() < WIDE:
        torch.bmm(numbers, weight.transpose(1, 2), out=out)
        return
    product = torch.ops.mkldnn._linear_pointwise
    for i in range(PLACES):
        out[i] = product(numbers[i], weight[i], None, "none", [], "")


def _shared(tiles: int, some: Callable[[int, int], None], alone: bool = False) -> None:
    """some(first, last) for parts of the tiles, one for each thread, or for all of them in this one."""
    each = tiles if alone else max(1, -(-tiles // torch.get_num_threads()))
    threads.run_tasks(lambda i: some(i * each, min(tiles, (i + 1) * each)), -(-tiles // each))


def _runs(x: Tensor) -> bool:
    """Whether each row of cells, with its channels innermost, is one run of numbers."""
    return (x.shape[1] == 1 or x.stride(1) == 1) and (x.shape[3] == 1 or x.stride(3) == x.shape[1])
