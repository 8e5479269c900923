"""Four ways to convolve on the CPU without gradients, each for what it is quickest for.

`Packed`: the weights laid out for the processor once instead of in every call. `Product`: 1x1 kernels, and weights that
are too large for that (fc6 has 411 MB), stay as they are; the windows are laid out as a matrix instead. `Winograd`: 3x3
kernels by a quarter of the multiplications. `SplitBytes`: float32 by products of bytes, which some processors do
sixteen times as fast. All take x N C H W and padding (rows, columns) and give what `F.conv2d` (and `relu_`) would, to
rounding; `F.conv2d` is the slow twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fullyconv.engine import winograd
from fullyconv.engine.locking import preparing
from fullyconv.engine.product import Product
from fullyconv.engine.spec import ConvolutionSpec
from fullyconv.engine.thresholds import THRESHOLDS, Thresholds
from fullyconv.processor import instruction_sets

__all__ = [
    "Algorithm",
    "Packed",
    "Product",
    "SplitBytes",
    "Winograd",
    "algorithm_for",
    "choose_algorithm",
    "copied_bytes",
    "has_byte_products",
    "scratch_bytes",
]

# Where large weights are transformed, one for each thread that predicts: fresh pages are slow.
SCRATCH: list[Tensor] = []
MIDDLE = 128  # `split_bytes.MIDDLE`
MOST_TERMS = (2**31 - 1) // (255 * 128)  # beyond, sums of byte products could leave 32 bits


def choose_algorithm(shape: Sequence[int], dtype: torch.dtype, layer: ConvolutionSpec) -> type[Algorithm]:
    """The algorithm for weights of this shape C' C h w: by layer and processor alone, so that the same image gives
    the same bits."""
    if layer.groups > 1:
        return Packed
    if math.prod(shape) > layer.thresholds.product_weights:
        return Product
    digits = (
        dtype == torch.float32
        and layer.from_zero_up
        and layer.thresholds.split_terms <= math.prod(shape[1:]) <= MOST_TERMS
    )
    if digits and has_byte_products():
        return SplitBytes
    # In bfloat16 oneDNN's convolution is as quick, and transforms would lose too much of eight bits.
    slides = set(layer.stride) | set(layer.dilation) == {1}
    if dtype == torch.float32 and slides and winograd.serves(shape) and winograd.installed():
        return Winograd
    # The layout of packed 1x1 weights suits one size of the image; at others they are 16 to 40 times as slow.
    return Product if tuple(shape[2:]) == (1, 1) else Packed


def algorithm_for(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, layer: ConvolutionSpec) -> Algorithm:
    """The chosen algorithm for inputs of `dtype` with these weights, batch norm folded into them."""
    algorithm = choose_algorithm(weight.shape, dtype, layer)
    if algorithm is Winograd and bool(weight.isfinite().all()):
        return Winograd(weight, bias, layer)
    bias = None if bias is None else bias.to(dtype)
    if algorithm is Product:
        return Product(weight if weight.numel() > layer.thresholds.product_weights else weight.to(dtype), bias, layer)
    if algorithm is SplitBytes and bool(weight.isfinite().all()):
        return SplitBytes(weight, bias, layer)
    return Packed(weight.to(dtype), bias, layer)


def copied_bytes(weight: Tensor, dtype: torch.dtype, layer: ConvolutionSpec, folded: bool) -> int:
    """What the chosen algorithm holds beside the network's own `weight`; `folded`: batch norm is put into it."""
    algorithm, numbers = choose_algorithm(weight.shape, dtype, layer), weight.numel()
    if algorithm is Winograd and numbers <= layer.thresholds.kept_transform:
        return numbers * 4 * 4  # 36 float32 for 9 weights
    if algorithm is Winograd or (
        algorithm is Product and (numbers > layer.thresholds.product_weights or weight.dtype == dtype)
    ):
        return numbers * weight.element_size() if folded else 0
    return numbers * (3 if algorithm is SplitBytes else dtype.itemsize)


def scratch_bytes(shape: Sequence[int], dtype: torch.dtype, layer: ConvolutionSpec, size: tuple[int, int, int]) -> int:
    """What the chosen algorithm lays out at a time for results of `size` (images, rows, columns): windows, converted or
    transformed weights, and as much again inside the product."""
    algorithm, numbers = choose_algorithm(shape, dtype, layer), math.prod(shape)
    if algorithm is Winograd and too_few(numbers, size, layer.thresholds):
        return numbers * dtype.itemsize  # the packed weights, which are then made
    if algorithm is Winograd:
        return winograd.winograd_scratch_bytes(shape, *size) + (
            0 if numbers <= layer.thresholds.kept_transform else numbers * 4 * 4
        )
    return 3 * layer.thresholds.part_bytes if algorithm is Product and numbers > layer.thresholds.product_weights else 0


def has_byte_products() -> bool:
    """Whether this processor has matrix instructions for bytes (Intel's AMX), so that `SplitBytes` pays."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # asks the kernel's leave too
    return "amx_int8" in instruction_sets() and bool(amx()) and hasattr(torch.ops.onednn, "qconv2d_pointwise")


@final
class Packed:
    """oneDNN's convolution with weights in its own layout, chosen by the size of the first image."""

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: ConvolutionSpec) -> None:
        self.weight, self.bias, self.layer, self.packed = weight, bias, layer, False

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        stride, dilation, groups = list(self.layer.stride), list(self.layer.dilation), self.layer.groups
        pad = list(padding)
        if not self.packed:
            with preparing():
                if not self.packed:
                    reorder = torch.ops.mkldnn._reorder_convolution_weight
                    self.weight = reorder(self.weight, pad, stride, dilation, groups, list(x.shape))
                    self.packed = True
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, pad, stride, dilation, groups, "relu" if self.layer.relu else "none", [], ""
        )
        return y


@final
class Winograd:
    """A 3x3 convolution in float32 by a quarter of the multiplications (`engine.winograd`).

    The transform of large weights is made in every call: it takes a tenth of the time, and kept it would take four
    times the memory of the weights. Small maps, for which it does not pay, are convolved by `Packed`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: ConvolutionSpec) -> None:
        self.plain, self.bias, self.layer = weight, bias, layer
        self.held = winograd.transformed(weight) if weight.numel() <= layer.thresholds.kept_transform else None
        self.packed: Packed | None = None

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        size = (len(x), x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2)
        if too_few(self.plain.numel(), size, self.layer.thresholds):
            if self.packed is None:
                with preparing():
                    self.packed = self.packed or Packed(self.plain, self.bias, self.layer)
            return self.packed(x, padding)
        if self.held is not None:
            return winograd.convolve(x, self.held, self.bias, padding, self.layer.relu)
        needed = self.plain.numel() * 4  # 36 for 9
        scratch = _scratch()
        if len(scratch) < needed:
            with torch.inference_mode(False):  # so that it may be written to in every mode
                scratch = torch.empty(needed)
        y = winograd.convolve(x, winograd.transformed(self.plain, scratch), self.bias, padding, self.layer.relu)
        SCRATCH.append(scratch)
        return y


def _scratch() -> Tensor:
    """Memory that no thread uses now."""
    try:
        return SCRATCH.pop()
    except IndexError:
        return torch.empty(0)


def too_few(weights: int, size: tuple[int, int, int], thresholds: Thresholds) -> bool:
    """Whether results of `size` (images, rows, columns) are too few for what transforming the weights, or reading them
    transformed, takes."""
    kept = weights <= thresholds.kept_transform
    return math.prod(size) < (thresholds.winograd_results_kept if kept else thresholds.winograd_results)


@final
class SplitBytes:
    """float32 by exact products of bytes: numbers and weights are cut into three digits (24 bits), the six largest of
    the nine products of digits are summed in 32-bit integers each, and added up from the smallest.

    What is left out and rounded off is of the size of what float32 sums lose: the result is as near to float64's as a
    float32 convolution's is (tests hold that). For x >= 0 only, as behind ReLU; where x is not finite float32 is used.
    """

    ORDER = ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0))  # digits of x and of the weights, smallest first

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: ConvolutionSpec) -> None:
        self.bias, self.layer, self.packed = bias, layer, False
        self.scale, self.parts = weight_digits(weight)
        self.sums = [part.sum((1, 2, 3), dtype=torch.float32) for part in self.parts]
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.ones = torch.ones(len(weight))

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        from fullyconv.engine import split_bytes  # compiled: only where it is used

        scale = split_bytes.scale_of(x)
        if scale is None:
            return self.layer.plain(x, padding)
        cut = split_bytes.split(x, scale, padding)
        if not self.packed:
            with preparing():
                if not self.packed:
                    self._pack(list(cut[0].shape))
        y: Tensor | None = None
        for of_x, of_weight in self.ORDER:
            unit = (256.0 ** (4 - of_x - of_weight) / (scale * self.scale)).float()
            last = (of_x, of_weight) == (0, 0)
            # digits below the first are stored too high by MIDDLE: take it times the sum of the weights away again
            bias = -MIDDLE * self.sums[of_weight] * unit if of_x else self.bias if last else None
            y = self._add(y, cut[of_x], self.parts[of_weight], unit, bias, last and self.layer.relu)
        assert y is not None
        return y

    def _pack(self, shape: list[int]) -> None:
        """Lay the weights out for the processor and images of this shape."""
        pack, stride, dilation = torch.ops.onednn.qconv_prepack, list(self.layer.stride), list(self.layer.dilation)
        self.parts = [pack(p, self.ones, 1.0, 0, stride, [0, 0], dilation, 1, shape) for p in self.parts]
        self.packed = True

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
    together = max(1, THRESHOLDS.part_bytes // (8 * weight[0].numel()))  # float64 copies of some channels at a time
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


Algorithm = Packed | Product | Winograd | SplitBytes
