"""Coordinate algebra of dense networks, along one axis and without tensors.

Every layer maps the index of an output cell to an input coordinate by an affine map; composing the maps from the
image onwards says at which pixel a cell is centred (`offset + stride * i`), how many pixels it sees (`field`), where
an upsampled map must be cropped so that it lies on the image (Caffe's 19, 27, 31), and how much context a tile needs.
All numbers are exact fractions. Source: paper section 3 (composition rule), Caffe's coord_map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, final

from fullyconv.errors import InternalError, UsageError

__all__ = [
    "IMAGE",
    "Geometry",
    "Layer",
    "Map",
    "Skip",
    "Tile",
    "UnevenPaths",
    "Upsampling",
    "as_number",
    "compose",
    "fuse",
    "halo",
    "kernel_width",
    "last_upsampling",
    "tiles",
]

Kind = Literal["conv", "pool", "deconv"]
INFINITE = math.inf


@final
@dataclass(frozen=True)
class Layer:
    """One convolution, pooling or transposed convolution, along one axis.

    `ceil` rounds a pooling's output size up (Caffe, torch `ceil_mode`); `after` is padding on the far side only,
    where it differs from `padding`.
    """

    kind: Kind
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    ceil: bool = False
    after: int | None = None

    def size(self, n: int) -> int:
        """Cells out for `n` cells in (0 when the kernel does not fit)."""
        if n <= 0:
            return 0
        far = self.padding if self.after is None else self.after
        if self.kind == "deconv":
            return (n - 1) * self.stride + self.span - self.padding - far
        room = n + self.padding + far - self.span
        if room < 0 and not self.ceil:
            return 0
        out = (-(-room // self.stride) if self.ceil else room // self.stride) + 1
        # The last window of a ceil pooling must start inside the input or its near padding (Caffe and torch alike).
        if self.ceil and (out - 1) * self.stride >= n + self.padding:
            out -= 1
        return max(out, 0)

    @property
    def span(self) -> int:
        """Cells the kernel reaches over: (kernel - 1) * dilation + 1."""
        return (self.kernel - 1) * self.dilation + 1


@final
@dataclass(frozen=True)
class Map:
    """Cells of a feature map in image pixels: cell i is centred at `offset + stride * i` and sees `field` pixels.

    `field` is `math.inf` where context is unbounded (global pooling, attention).
    """

    stride: Fraction
    offset: Fraction
    field: float

    def then(self, layer: Layer) -> Map:
        """The map after one more layer. k' + (k - 1) s' and s * s' (paper, section 3)."""
        centre = Fraction(layer.span - 1, 2) - layer.padding
        if layer.kind == "deconv":
            finer = self.stride / layer.stride
            # An output cell sees ceil(span / stride) inputs, so the field grows by one step less than that.
            seen = -(-layer.span // layer.stride)
            return Map(finer, self.offset - finer * centre, self.field + float((seen - 1) * self.stride))
        grown = self.field + float((layer.span - 1) * self.stride)
        return Map(self.stride * layer.stride, self.offset + self.stride * centre, grown)

    def shifted(self, cells: int) -> Map:
        """The map after `cells` cells were cut off at the near side (negative: added)."""
        return Map(self.stride, self.offset + self.stride * cells, self.field)

    def join(self, other: Map) -> Map:
        """Two branches added or concatenated: the same grid, the wider field. Raises `UnevenPaths` off-grid."""
        if (self.stride, self.offset) != (other.stride, other.offset):
            raise UnevenPaths(self, other)
        return self if self.field >= other.field else other

    def unbounded(self) -> Map:
        return Map(self.stride, self.offset, INFINITE)

    def centre(self, cell: int) -> Fraction:
        return self.offset + self.stride * cell


IMAGE = Map(Fraction(1), Fraction(0), 1.0)


@final
class UnevenPaths(InternalError):
    """Two branches of a network meet on different grids, so their cells do not look at the same pixels."""

    def __init__(self, a: Map, b: Map) -> None:
        self.maps = (a, b)
        super().__init__(
            f"Two branches meet on different grids: cells at {a.stride}i + {a.offset} and at {b.stride}i + {b.offset} "
            "pixels; only branches on one grid can be summed."
        )


def compose(layers: Sequence[Layer], start: Map = IMAGE) -> Map:
    """The map after `layers`, one after the other."""
    for layer in layers:
        start = start.then(layer)
    return start


def kernel_width(factor: int) -> int:
    """Width of the bilinear kernel for an upsampling factor: 2f - f % 2 (4, 8, 16, 32, 64; 1 for no upsampling)."""
    return 2 * factor - factor % 2


@final
@dataclass(frozen=True)
class Skip:
    """How scores on one grid are brought to a finer one: upsample by `factor` from `offset`, crop the finer by `crop`.

    Upsampled index u reads the coarse map at (u + offset - (width - 1) / 2) / factor with width = kernel_width(factor).
    With the paper's padding the upsampled map is whole (offset 0) and the finer map is cropped; with "same" padding
    the finer map is whole and `offset` (any fraction) aligns the upsampled one.
    """

    factor: int
    offset: Fraction
    crop: int


def fuse(coarse: Map, fine: Map, whole: bool) -> tuple[Skip, Map]:
    """How `coarse` scores meet `fine` ones, and the map of the sum. `whole`: the paper's rule (see `Skip`).

    Raises UsageError where the strides are not multiples, and InternalError for Caffe's other two refusals: a crop
    that is negative or not an integer.
    """
    ratio = coarse.stride / fine.stride
    if ratio.denominator != 1 or ratio < 1:
        raise UsageError(
            f"A map of stride {coarse.stride} cannot be upsampled onto stride {fine.stride}; tap coarser first."
        )
    factor = int(ratio)
    lead = Fraction(kernel_width(factor) - 1, 2)
    field = coarse.field + float(coarse.stride)  # bilinear interpolation reads one neighbour more
    if not whole:
        offset = lead - (coarse.offset - fine.offset) / fine.stride
        return Skip(factor, offset, 0), Map(fine.stride, fine.offset, max(field, fine.field))
    up = coarse.offset - fine.stride * lead
    crop = (up - fine.offset) / fine.stride
    if crop.denominator != 1 or crop < 0:
        raise InternalError(
            f"The finer map would be cropped by {crop} cells; a crop must be a whole number, 0 or more."
        )
    return Skip(factor, Fraction(0), int(crop)), Map(fine.stride, up, max(field, fine.field))


@dataclass(frozen=True)
class Upsampling:
    """The last upsampling, from the finest fused scores to the image.

    `offset` goes with `Skip`'s convention and may be fractional (AlexNet: 18.5); `kernel` and `crop` are the
    transposed convolution and the crop that a Caffe net uses for the same map (64/19, 32/27, 16/31; AlexNet 63/18).
    """

    stride: int
    offset: int | float
    kernel: int
    crop: int | float
    border: Literal["fade", "replicate"]


def last_upsampling(scores: Map, border: Literal["fade", "replicate"]) -> Upsampling:
    """From the map of the finest fused scores to image pixels. Raises InternalError on a stride that is not whole."""
    if scores.stride.denominator != 1:
        raise InternalError(f"The finest scores have stride {scores.stride}; it must be a whole number of pixels.")
    stride = int(scores.stride)
    width = kernel_width(stride)
    offset = Fraction(width - 1, 2) - scores.offset
    if offset.denominator != 1 and stride > 1:
        width -= 1  # an odd kernel puts the grid on whole pixels (AlexNet, GoogLeNet: 63)
    return Upsampling(stride, as_number(offset), width, as_number(Fraction(width - 1, 2) - scores.offset), border)


def as_number(value: Fraction) -> int | float:
    """An int where the fraction is whole, else the float (exact here: denominators are powers of two)."""
    return value.numerator if value.denominator == 1 else float(value)


@final
@dataclass(frozen=True)
class Geometry(Upsampling):
    """The last upsampling of a network, the grids of its taps and the context a tile needs (pixels; inf: all of it)."""

    height: int
    width: int
    taps: Mapping[int, Map]
    skips: Mapping[int, Skip]
    halo: float
    exact: bool  # False: grids were probed, not traced

    @property
    def align(self) -> int:
        """The coarsest stride, in whole pixels: windows that begin at its multiples lie on every tap's grid."""
        return max(math.ceil(grid.stride) for grid in self.taps.values())


class OutputGeometry(Protocol):
    """How coarse scores lie on the image, in pixels: upsampled index u reads cell (u + offset - (width - 1)/2) / stride
    with width = 2 stride - stride % 2; outside lies zero ("fade") or the edge ("replicate").

    halo: the context that a tile needs, inf for the whole image. exact: whether the grids are proven, not probed.
    align: the coarsest stride at which features are read.
    """

    @property
    def stride(self) -> int: ...
    @property
    def offset(self) -> int | float: ...
    @property
    def border(self) -> Literal["fade", "replicate"]: ...
    @property
    def halo(self) -> float: ...
    @property
    def exact(self) -> bool: ...
    @property
    def align(self) -> int: ...


@final
@dataclass(frozen=True)
class Tile:
    """Half-open ranges of one axis: the network reads `start:stop`, of its output `keep_from:keep_to` (image pixels,
    inside the range) is kept."""

    start: int
    stop: int
    keep_from: int
    keep_to: int


def halo(fields: Sequence[tuple[Map, float]]) -> float:
    """Pixels of context one side of a tile needs: the widest half field plus the reach of the interpolations.

    `fields` pairs each tap's map with the sum of the strides its scores are interpolated over.
    """
    return max((m.field - 1) / 2 + reach for m, reach in fields)


def tiles(size: int, core: int, align: int, context: int) -> Iterator[Tile]:
    """Tiles along one axis: cores of about `core` pixels cover 0..size once; each reads `context` more on both sides.

    Starts are multiples of `align` (the coarsest stride), so every tile's cells lie on the whole image's grid.
    """
    if size < 1 or core < 1:
        raise UsageError(f"A tile of {core} pixels over {size} pixels is empty; give a tile of at least 1 pixel.")
    core = max(align, core // align * align)
    context = -(-context // align) * align
    for keep_from in range(0, size, core):
        keep_to = min(size, keep_from + core)
        yield Tile(max(0, keep_from - context), min(size, keep_to + context), keep_from, keep_to)
