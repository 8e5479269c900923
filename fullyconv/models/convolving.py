"""Four ways to convolve on the CPU without gradients, each for what it is quickest for.

`Packed`: the weights laid out for the processor once instead of in every call. `Product`: 1x1 kernels, and weights that
are too large for that (fc6's 411 MB), stay as they are; the windows are laid out as a matrix instead. `Winograd`: 3x3
kernels by a quarter of the multiplications. `Digits`: float32 by products of bytes, which some processors do sixteen
times as fast. All take x N C H W and padding (rows, columns) and give what `F.conv2d` (and `relu_`) would, up to
rounding; `F.conv2d` is the slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.ops import winograd

__all__ = [
    "Digits",
    "Layer",
    "Packed",
    "Product",
    "Way",
    "Winograd",
    "choose",
    "copied_bytes",
    "has_byte_products",
    "scratch_bytes",
    "way_of",
]

HUGE = 1 << 24  # numbers in a weight beyond which it is not copied: fc6
# What `Product` lays out or converts at a time: as much as C's allocator keeps for the next turn (below 32 MiB).
PART = 26 << 20
TERMS = 2048  # products a result is the sum of, from which `Digits` is worth the splitting (256 channels, 3x3)
HELD = 1 << 20  # numbers in a weight up to which its Winograd transform, four times as large, is kept between calls
FEW = 1024  # results of a layer below which its weights are not transformed; a quarter of it where they are kept
ROOMS: list[Tensor] = []  # where large weights are transformed, one for each thread that predicts: fresh pages are slow
MIDDLE = 128  # `digits.MIDDLE`
MOST_TERMS = (2**31 - 1) // (255 * 128)  # beyond, sums of byte products could leave 32 bits


@final
@dataclass(frozen=True)
class Layer:
    """What a convolution does beside its numbers. plain: itself by `F.conv2d` (x, padding) -> y, for what a way leaves
    out; from_zero_up: whether no number it is given is negative."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    relu: bool
    from_zero_up: bool
    plain: Callable[[Tensor, Sequence[int]], Tensor]


def choose(shape: Sequence[int], dtype: torch.dtype, layer: Layer) -> type[Way]:
    """The way for weights of this shape C' C h w: by layer and processor alone, so that the same picture gives the same
    bits."""
    if layer.groups > 1:
        return Packed
    if math.prod(shape) > HUGE:
        return Product
    digits = dtype == torch.float32 and layer.from_zero_up and TERMS <= math.prod(shape[1:]) <= MOST_TERMS
    if digits and has_byte_products():
        return Digits
    # In bfloat16 oneDNN's convolution is as quick, and transforms would lose too much of eight bits.
    slides = set(layer.stride) | set(layer.dilation) == {1}
    if dtype == torch.float32 and slides and winograd.serves(shape) and winograd.installed():
        return Winograd
    # The layout of packed 1x1 weights suits one size of the image; at others they are 16 to 40 times as slow.
    return Product if tuple(shape[2:]) == (1, 1) else Packed


def way_of(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, layer: Layer) -> Way:
    """The chosen way for inputs of `dtype` with these weights, batch norm folded into them."""
    way = choose(weight.shape, dtype, layer)
    if way is Winograd and bool(weight.isfinite().all()):
        return Winograd(weight, bias, layer)
    bias = None if bias is None else bias.to(dtype)
    if way is Product:
        return Product(weight if weight.numel() > HUGE else weight.to(dtype), bias, layer)
    if way is Digits and bool(weight.isfinite().all()):
        return Digits(weight, bias, layer)
    return Packed(weight.to(dtype), bias, layer)


def copied_bytes(weight: Tensor, dtype: torch.dtype, layer: Layer, folded: bool) -> int:
    """What the chosen way holds beside the network's own `weight`; `folded`: batch norm is put into it."""
    way, numbers = choose(weight.shape, dtype, layer), weight.numel()
    if way is Winograd and numbers <= HELD:
        return numbers * 4 * 4  # 36 float32 for 9 weights
    if way is Winograd or (way is Product and (numbers > HUGE or weight.dtype == dtype)):
        return numbers * weight.element_size() if folded else 0
    return numbers * (3 if way is Digits else dtype.itemsize)


def scratch_bytes(shape: Sequence[int], dtype: torch.dtype, layer: Layer, size: tuple[int, int, int]) -> int:
    """What the chosen way lays out at a time for results of `size` (images, rows, columns): windows, converted or
    transformed weights, and as much again inside the product."""
    way, numbers = choose(shape, dtype, layer), math.prod(shape)
    if way is Winograd and few(numbers, size):
        return numbers * dtype.itemsize  # the packed weights, which are then made
    if way is Winograd:
        return winograd.scratch_bytes(shape, *size) + (0 if numbers <= HELD else numbers * 4 * 4)
    return 3 * PART if way is Product and numbers > HUGE else 0


def has_byte_products() -> bool:
    """Whether this processor has matrix instructions for bytes (Intel's AMX), so that `Digits` pays."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(amx()) and hasattr(torch.ops.onednn, "qconv2d_pointwise")


@final
class Packed:
    """oneDNN's convolution with weights in its own layout, chosen by the size of the first image."""

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        self.weight, self.bias, self.layer, self.packed = weight, bias, layer, False

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        stride, dilation, groups = list(self.layer.stride), list(self.layer.dilation), self.layer.groups
        pad = list(padding)
        if not self.packed:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self.weight = reorder(self.weight, pad, stride, dilation, groups, list(x.shape))
            self.packed = True
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, pad, stride, dilation, groups, "relu" if self.layer.relu else "none", [], ""
        )
        return y


@final
class Product:
    """The convolution as oneDNN's product of the weights, as they lie, with a matrix of windows, some rows at a time.

    Where numbers come in another type than the weights', the weights are converted some output channels at a time.
    (torch's own float32 product is MKL's, which takes half the width of some processors: 2.3 times as slow for fc6.)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        self.kernel, self.bias, self.layer = weight.shape[2:], bias, layer
        # both are views of the weights: the matrix' columns are in the order in which they lie
        self.inner = weight.is_contiguous(memory_format=torch.channels_last)
        self.matrix = (weight.permute(0, 2, 3, 1) if self.inner else weight).reshape(len(weight), -1)

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        if not self.inner:
            x = x.contiguous()  # the windows are read along the rows
        if any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        stride, dilation = self.layer.stride, self.layer.dilation
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.kernel, strict=True)]
        rows, columns = ((s - r) // step + 1 for s, r, step in zip(x.shape[2:], reach, stride, strict=True))
        most = max(1, PART // (self.matrix.shape[1] * x.element_size()))
        copied = self.kernel != (1, 1) or any(s > 1 for s in stride)
        together = max(1, most // (len(x) * columns)) if copied else rows
        outputs = len(self.matrix) if x.dtype == self.matrix.dtype else max(1, most // 2)  # both lie in the caches
        if outputs >= len(self.matrix) and together >= rows:
            return self._times(self._windows(x, reach), self.matrix, slice(None), (len(x), rows, columns, -1))
        y = x.new_empty((len(x), len(self.matrix), rows, columns)).contiguous(memory_format=torch.channels_last)
        converted = self.matrix.new_empty(
            (0 if x.dtype == self.matrix.dtype else outputs, self.matrix.shape[1]), dtype=x.dtype
        )
        for row in range(0, rows, together):
            last = min(row + together, rows)
            windows = self._windows(x[:, :, row * stride[0] : (last - 1) * stride[0] + reach[0]], reach)
            for out in range(0, len(self.matrix), outputs):
                part = slice(out, out + outputs)
                matrix = self.matrix[part]
                if x.dtype != matrix.dtype:
                    matrix = converted[: len(matrix)].copy_(matrix)
                y[:, part, row:last] = self._times(windows, matrix, part, (len(x), last - row, columns, -1))
        return y

    def _times(self, windows: Tensor, matrix: Tensor, part: slice, shape: Sequence[int]) -> Tensor:
        """The output channels of `part`, N C H W, of windows in the order of images, rows, columns: `shape`."""
        bias, after = None if self.bias is None else self.bias[part], "relu" if self.layer.relu else "none"
        found: Tensor = torch.ops.mkldnn._linear_pointwise(windows, matrix, bias, after, [], "")
        return found.view(*shape).permute(0, 3, 1, 2)

    def _windows(self, x: Tensor, reach: Sequence[int]) -> Tensor:
        """(windows of x, in the order of images, rows, columns) x (their numbers, in the order of the weights')."""
        stride, dilation = self.layer.stride, self.layer.dilation
        windows = x.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])  # N C rows columns kh kw
        windows = windows[..., :: dilation[0], :: dilation[1]]
        order = (0, 2, 3, 4, 5, 1) if self.inner else (0, 2, 3, 1, 4, 5)
        return windows.permute(order).reshape(-1, self.matrix.shape[1])


@final
class Winograd:
    """A 3x3 convolution in float32 by a quarter of the multiplications (`ops.winograd`).

    The transform of large weights is made in every call: it takes a tenth of the time, and kept it would take four
    times the memory of the weights. Small maps, for which it does not pay, are convolved by `Packed`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        self.plain, self.bias, self.layer = weight, bias, layer
        self.held = winograd.transformed(weight) if weight.numel() <= HELD else None
        self.packed: Packed | None = None

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        if few(self.plain.numel(), (len(x), x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2)):
            self.packed = self.packed or Packed(self.plain, self.bias, self.layer)
            return self.packed(x, padding)
        if self.held is not None:
            return winograd.convolve(x, self.held, self.bias, padding, self.layer.relu)
        needed = self.plain.numel() * 4  # 36 for 9
        room = ROOMS.pop() if ROOMS else torch.empty(0)
        if len(room) < needed:
            with torch.inference_mode(False):  # so that it may be written to in every mode
                room = torch.empty(needed)
        y = winograd.convolve(x, winograd.transformed(self.plain, room), self.bias, padding, self.layer.relu)
        ROOMS.append(room)
        return y


def few(weights: int, size: tuple[int, int, int]) -> bool:
    """Whether results of `size` (images, rows, columns) are too few for what transforming the weights, or reading them
    transformed, takes."""
    return math.prod(size) < (FEW if weights > HELD else FEW // 4)


@final
class Digits:
    """float32 by exact products of bytes: numbers and weights are cut into three digits (24 bits), the six largest of
    the nine products of digits are summed in 32-bit integers each, and added up from the smallest.

    What is left out and rounded off is of the size of what float32 sums lose: the result is as near to float64's as a
    float32 convolution's is (tests hold that). For x >= 0 only, as behind ReLU; where x is not finite float32 is used.
    """

    ORDER = ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0))  # digits of x and of the weights, smallest first

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: Layer) -> None:
        self.bias, self.layer, self.packed = bias, layer, False
        self.scale, self.parts = weight_digits(weight)
        self.sums = [part.sum((1, 2, 3), dtype=torch.float32) for part in self.parts]
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.ones = torch.ones(len(weight))

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        from fullyconv.ops import digits  # compiled: only where it is used

        scale = digits.scale_of(x)
        if scale is None:
            return self.layer.plain(x, padding)
        cut = digits.split(x, scale, padding)
        if not self.packed:
            pack = torch.ops.onednn.qconv_prepack
            stride, dilation, shape = list(self.layer.stride), list(self.layer.dilation), list(cut[0].shape)
            self.parts = [pack(p, self.ones, 1.0, 0, stride, [0, 0], dilation, 1, shape) for p in self.parts]
            self.packed = True
        y: Tensor | None = None
        for of_x, of_weight in self.ORDER:
            unit = (256.0 ** (4 - of_x - of_weight) / (scale * self.scale)).float()
            last = (of_x, of_weight) == (0, 0)
            # digits below the first are stored too high by MIDDLE: take it times the sum of the weights away again
            bias = -MIDDLE * self.sums[of_weight] * unit if of_x else self.bias if last else None
            y = self._add(y, cut[of_x], self.parts[of_weight], unit, bias, last and self.layer.relu)
        assert y is not None
        return y

    def _add(
        self, y: Tensor | None, x: Tensor, weight: Tensor, unit: Tensor, bias: Tensor | None, relu: bool
    ) -> Tensor:
        """y + unit * (x convolved with weight) + bias."""
        stride, dilation = list(self.layer.stride), list(self.layer.dilation)
        inputs = (x, 1.0, 0, weight, unit, self.zeros)
        layer = (bias, stride, [0, 0], dilation, 1, 1.0, 0, torch.float32)
        convolve = torch.ops.onednn.qconv2d_pointwise
        after = "relu" if relu else "none"
        if y is None:
            first: Tensor = convolve(*inputs, *layer, after, [], "")
            return first
        added: Tensor = convolve.binary(*inputs, y, *layer, 1.0, 0, "sum", 1.0, after, [], "")
        return added


def weight_digits(weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(scale float64 C', three digits int8 C' C h w, highest first) with weight = (2^16 d0 + 2^8 d1 + d2) / scale for
    each output channel, up to rounding at 2^-23 of its largest weight.
    """
    parts = [torch.empty(weight.shape, dtype=torch.int8) for _ in range(3)]
    scale = torch.ones(len(weight), dtype=torch.float64)
    together = max(1, PART // (8 * weight[0].numel()))  # float64 copies of some channels at a time
    for first in range(0, len(weight), together):
        some = slice(first, first + together)
        numbers = weight[some].double()
        largest = numbers.abs().amax((1, 2, 3))
        scale[some] = torch.where(largest > 0, 127.49 * 65536 / largest.clamp(min=1e-300), scale[some])
        rest = numbers.mul_(scale[some].view(-1, 1, 1, 1)).round_().to(torch.int32)
        for part in (parts[2], parts[1]):
            digit = ((rest + 128) & 255) - 128
            part[some] = digit
            rest = (rest - digit) >> 8
        parts[0][some] = rest
    return scale, parts


Way = Packed | Product | Winograd | Digits
