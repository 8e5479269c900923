"""3x3 convolutions by a quarter of the multiplications: Winograd's F(4x4, 3x3).

A tile of 4 x 4 outputs is A' [ (G w G') * (B' d B) ] A of the 6 x 6 numbers d under it, where * goes place by place: of
all tiles and channels together 36 matrix products are left, one for each of the 6 x 6 places. The three transforms
evaluate and interpolate polynomials at `POINTS` and infinity: exact but for rounding. The points 0, +-3/4, +-3/2 lose
half as much of it as the usual 0, +-1, +-2 (`tests/test_winograd.py` holds both figures). `reference` is the slow twin.

Sources: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", section 4.1; on the points, Barabasz
et al. 2020, "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks".
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.ops import threads

__all__ = [
    "POINTS",
    "convolve",
    "has_amx",
    "installed",
    "matrices",
    "reference",
    "scratch_bytes",
    "serves",
    "transformed",
    "weight_gradient",
]

TILE, PLACES, WIDTH = 4, 36, 16  # outputs a side, places in a tile, channels taken at a time
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
# Bytes of transformed numbers made at a time: twice those of the weights they meet, within these bounds. Fewer, and the
# weights are read too often; more, and the numbers have left the caches when they are needed.
LEAST_PART, MOST_PART = 2 << 20, 32 << 20
# Numbers in a matrix of weights from which oneDNN's product is quicker than MKL's on AMD's processors (and no slower
# elsewhere); below, what it does before each product costs more.
WIDE = 1 << 15


def installed() -> bool:
    """Whether the transforms, which numba compiles, are there."""
    return importlib.util.find_spec("numba") is not None


def has_amx() -> bool:
    """Whether this processor has Intel's matrix instructions, for bytes and bfloat16: quicker than fewer products."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def serves(shape: Sequence[int]) -> bool:
    """Whether weights of this shape K C h w can be transformed, and gain by it (stride and dilation being 1)."""
    k, c, *kernel = shape
    return kernel == [3, 3] and k % WIDTH == c % WIDTH == 0 and min(k, c) >= 2 * WIDTH


@functools.cache
def matrices(points: tuple[float, ...] = POINTS) -> tuple[Tensor, Tensor, Tensor]:
    """(A' 4 x 6, G 6 x 3, B' 6 x 6), float64, for five points and infinity (Toom and Cook's construction)."""
    a, g, b = (torch.zeros(n, m, dtype=torch.float64) for n, m in ((TILE, 6), (6, 3), (6, 6)))
    a[3, 5] = g[5, 2] = 1
    b[5] = torch.from_numpy(np.poly(points)[::-1].copy())
    for i, p in enumerate(points):
        others = [q for q in points if q != p]
        a[:, i] = torch.tensor([p**j for j in range(TILE)])
        g[i] = torch.tensor([p**j for j in range(3)]) / float(np.prod([p - q for q in others]))
        b[i, :5] = torch.from_numpy(np.poly(others)[::-1].copy())
    return a, g, b


def transformed(weight: Tensor) -> Tensor:
    """Weights K C 3 3 -> G w G' for each K and C, as 36 K C float32."""
    g = matrices()[1]
    with torch.autocast("cpu", enabled=False):
        found = torch.mm(torch.kron(g, g).float(), weight.float().reshape(-1, 9).T)
    return found.view(PLACES, *weight.shape[:2])


def scratch_bytes(shape: Sequence[int], images: int, rows: int, columns: int) -> int:
    """What a convolution by weights K C 3 3 lays out at a time for so many images of results."""
    k, c = shape[:2]
    tiles = images * -(-rows // TILE) * -(-columns // TILE)
    return (k + c) * min(tiles, _together(k, c)) * 4 * PLACES


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], relu: bool) -> Tensor:
    """The convolution (then ReLU, where asked for) of x with zeros of `padding` (rows, columns) round it.

    x: N C H W on the CPU, float32 or bfloat16 (computed with in float32); weight: `transformed`, 36 K C; bias: K
    float32. Returns N K H+2r-2 W+2c-2 of x's type, channels_last. K and C are multiples of 16.
    """
    from fullyconv.ops import winograd_kernels as kernels  # compiled: only where it is used

    (n, c, h, w), k = x.shape, weight.shape[1]
    size = (h + 2 * padding[0] - 2, w + 2 * padding[1] - 2)
    y = torch.empty((n, k, *size), dtype=x.dtype, memory_format=torch.channels_last)
    out = _numbers(y.permute(0, 2, 3, 1).view(-1))
    shift = (torch.zeros(k) if bias is None else bias).numpy()
    numbers = _Places(x, size, (padding[0], padding[1]), _together(k, c), kernels.spread_out)
    after, pitch = _room(k, numbers.together)

    def gather(first: int, begin: int, end: int) -> None:
        place = kernels.Place(first, begin, end, size, numbers.grid, (0, 0), k)
        kernels.gathered(after.numpy(), pitch, place, shift, relu, out, kernels.scratch())

    for first, some in numbers.turns():
        _multiply(numbers.at(first, some), weight, after.as_strided((PLACES, some, k), (pitch, k, 1)))
        _shared(some, functools.partial(gather, first))
    return y


def weight_gradient(x: Tensor, gradient: Tensor, padding: Sequence[int]) -> Tensor:
    """The gradient of a loss for the weights K C 3 3 float32, from the gradient for the results of convolving x with
    them; both as in `convolve`, where `gradient` stands for what it returns.
    """
    from fullyconv.ops import winograd_kernels as kernels

    c, k, size = x.shape[1], gradient.shape[1], (gradient.shape[2], gradient.shape[3])
    together = _together(k, c)
    numbers = _Places(x, size, (padding[0], padding[1]), together, kernels.spread_out)
    results = _Places(gradient, size, (0, 0), together, kernels.spread_gradient)
    total = torch.empty(PLACES, k, c)
    g = matrices()[1]
    with torch.autocast("cpu", enabled=False):
        for first, some in numbers.turns():
            theirs, ours = results.at(first, some).transpose(1, 2), numbers.at(first, some)
            torch.bmm(theirs, ours, out=total) if first == 0 else total.baddbmm_(theirs, ours)
        found = torch.mm(torch.kron(g, g).float().T, total.view(PLACES, -1))
    return found.view(3, 3, k, c).permute(2, 3, 0, 1)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], relu: bool) -> Tensor:
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


def _together(k: int, c: int) -> int:
    """Tiles that are transformed and multiplied at a time."""
    part = min(MOST_PART, max(LEAST_PART, 2 * 4 * PLACES * k * c))
    return max(WIDTH, part // (4 * PLACES * max(k, c)))


@final
class _Places:
    """The tiles of a map, `together` at a time, in their 36 places.

    size: rows and columns of the results that the tiles make up; make: the kernel that transforms them.
    """

    def __init__(
        self, x: Tensor, size: tuple[int, int], padding: tuple[int, int], together: int, make: Callable[..., None]
    ) -> None:
        n, self.channels, h, w = x.shape
        dense = x if _runs(x) else x.contiguous(memory_format=torch.channels_last)
        self.pitches = (dense.stride(0), dense.stride(2))
        span = (n - 1) * self.pitches[0] + (h - 1) * self.pitches[1] + w * self.channels
        self.numbers = _numbers(torch.as_strided(dense, (span,), (1,)))
        self.map, self.padding, self.make = (h, w), padding, make
        self.grid = (-(-size[0] // TILE), -(-size[1] // TILE))
        self.tiles = n * self.grid[0] * self.grid[1]
        self.together = min(self.tiles, together)
        self.room, self.pitch = _room(self.channels, self.together)

    def turns(self) -> Iterator[tuple[int, int]]:
        """(first tile, how many) of each turn."""
        for first in range(0, self.tiles, self.together):
            yield first, min(self.together, self.tiles - first)

    def at(self, first: int, some: int) -> Tensor:
        """36 T C: `some` tiles from `first` on, until the next turn."""
        _shared(some, functools.partial(self._make, first))
        return self.room.as_strided((PLACES, some, self.channels), (self.pitch, self.channels, 1))

    def _make(self, first: int, begin: int, end: int) -> None:
        from fullyconv.ops import winograd_kernels as kernels

        place = kernels.Place(first, begin, end, self.map, self.grid, self.padding, self.channels)
        self.make(self.numbers, self.pitches, place, self.room.numpy(), self.pitch, kernels.scratch())


def _room(channels: int, tiles: int) -> tuple[Tensor, int]:
    """(numbers for 36 places, from one place to the next). The distance is an odd multiple of 16: places a power of two
    apart would share the same cache lines."""
    pitch = (-(-tiles * channels // WIDTH) | 1) * WIDTH
    return torch.empty(PLACES * pitch), pitch


def _multiply(numbers: Tensor, weight: Tensor, out: Tensor) -> None:
    """numbers 36 T C times weight 36 K C -> out 36 T K."""
    if weight[0].numel() < WIDE:
        with torch.autocast("cpu", enabled=False):
            torch.bmm(numbers, weight.transpose(1, 2), out=out)
        return
    product = torch.ops.mkldnn._linear_pointwise
    for i in range(PLACES):
        out[i] = product(numbers[i], weight[i], None, "none", [], "")


def _shared(tiles: int, some: Callable[[int, int], None]) -> None:
    """some(first, last) for parts of the tiles, spread over the threads."""
    each = max(1, -(-tiles // (4 * torch.get_num_threads())))
    threads.run(lambda i: some(i * each, min(tiles, (i + 1) * each)), -(-tiles // each))


def _numbers(flat: Tensor) -> np.ndarray:
    """As numpy knows them: bfloat16 as unsigned integers."""
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


def _runs(x: Tensor) -> bool:
    """Whether each row of cells, with its channels innermost, is one run of numbers."""
    return (x.shape[1] == 1 or x.stride(1) == 1) and (x.shape[3] == 1 or x.stride(3) == x.shape[1])
