"""A convolution as a product of matrices: the weights, as they lie, with the windows of the image that they meet.

`Product` predicts (some rows at a time, in bounded memory); `multiply` learns (all windows at once, with gradients).
The slow twin of both is `F.conv2d`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.engine.spec import ConvolutionSpec

__all__ = ["Product", "multiply"]


def _weight_matrix(weight: Tensor) -> tuple[Tensor, bool]:
    """(C' x the numbers of a window, a view in the order in which they lie; whether channels are innermost)."""
    inner = weight.is_contiguous(memory_format=torch.channels_last)
    return (weight.permute(0, 2, 3, 1) if inner else weight).reshape(len(weight), -1), inner


def _window_matrix(x: Tensor, kernel: Sequence[int], spacing: Sequence[Sequence[int]], inner: bool) -> Tensor:
    """(windows of x N C H W in the order of images, rows, columns) x (their numbers in the order of the weights').

    kernel: rows, columns; spacing: (strides, dilations) along rows and columns.
    """
    stride, dilation = spacing
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    windows = x.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])  # N C rows columns kh kw
    windows = windows[..., :: dilation[0], :: dilation[1]]
    order = (0, 2, 3, 4, 5, 1) if inner else (0, 2, 3, 1, 4, 5)
    return windows.permute(order).reshape(-1, x.shape[1] * kernel[0] * kernel[1])


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int]) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=padding)` up to rounding, with gradients: the weights, as they lie, times a
    matrix of windows. (A convolution lays fc6's 411 MB out anew three times a step.)
    """
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    matrix, inner = _weight_matrix(weight)
    rows, columns = (x.shape[2 + i] - weight.shape[2 + i] + 1 for i in (0, 1))
    windows = _window_matrix(x, weight.shape[2:], ((1, 1), (1, 1)), inner)
    return F.linear(windows, matrix, bias).view(len(x), rows, columns, -1).permute(0, 3, 1, 2)


@final
class Product:
    """The convolution as oneDNN's product of the weights, as they lie, with a matrix of windows, some rows at a time.

    Where numbers come in another type than the weights', the weights are converted some output channels at a time.
    (torch's own float32 product is MKL's, which takes half the width of some processors: 2.3 times as slow for fc6.)
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, layer: ConvolutionSpec) -> None:
        self.kernel, self.bias, self.layer = weight.shape[2:], bias, layer
        self.matrix, self.inner = _weight_matrix(weight)

    def __call__(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        if not self.inner:
            x = x.contiguous()  # the windows are read along the rows
        if any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        stride, dilation = self.layer.stride, self.layer.dilation
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.kernel, strict=True)]
        rows, columns = ((s - r) // step + 1 for s, r, step in zip(x.shape[2:], reach, stride, strict=True))
        most = max(1, self.layer.thresholds.part_bytes // (self.matrix.shape[1] * x.element_size()))
        copied = self.kernel != (1, 1) or any(s > 1 for s in stride)
        together = max(1, most // (len(x) * columns)) if copied else rows
        outputs = len(self.matrix) if x.dtype == self.matrix.dtype else max(1, most // 2)  # both lie in the caches
        if outputs >= len(self.matrix) and together >= rows:
            return self._times(self._windows(x), self.matrix, slice(None), (len(x), rows, columns, -1))
        y = x.new_empty((len(x), len(self.matrix), rows, columns)).contiguous(memory_format=torch.channels_last)
        converted = self.matrix.new_empty(
            (0 if x.dtype == self.matrix.dtype else outputs, self.matrix.shape[1]), dtype=x.dtype
        )
        for row in range(0, rows, together):
            last = min(row + together, rows)
            windows = self._windows(x[:, :, row * stride[0] : (last - 1) * stride[0] + reach[0]])
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

    def _windows(self, x: Tensor) -> Tensor:
        return _window_matrix(x, self.kernel, (self.layer.stride, self.layer.dilation), self.inner)
