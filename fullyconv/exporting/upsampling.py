"""`ops.upsample` as ONNX: Pad (the border's cells), Resize (linear), Slice (the crop).

`ops` reads pixel y at (y + base) / s cells, base = offset - (b - 1) / 2. Resize reads pixel u at u / s ("asymmetric")
or at (u + 1/2) / s - 1/2 ("half_pixel"), that is at (u + c) / s with c = 0 or (1 - s) / 2. With P cells before the map
the two agree at u = y + base + P s - c: a whole number for one of the two rules wherever base is a multiple of 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, final

import numpy as np

from fullyconv.errors import UsageError
from fullyconv.exporting.graph import Graph
from fullyconv.geometry import kernel_width

__all__ = ["UpsamplingReading"]


@final
@dataclass(frozen=True)
class UpsamplingReading:
    """How pixels are read off a coarse map, for every size at once: `before` and `after` cells of border, Resize's rule
    and the pixels cut off at the start."""

    stride: int
    before: int
    after: int
    rule: Literal["asymmetric", "half_pixel"]
    start: int
    border: Literal["fade", "replicate"]

    @classmethod
    def of(
        cls, stride: int, offset: Fraction, border: Literal["fade", "replicate"], sizes: Iterable[tuple[int, int]]
    ) -> UpsamplingReading:
        """sizes: every (cells of the coarse map, pixels wanted) that occurs, up to what repeats with the stride.

        Raises UsageError for an offset that neither rule has.
        """
        base = offset - Fraction(kernel_width(stride) - 1, 2)
        rule, c = _rule(stride, base)
        # The first pixel must lie in the resized map; where the border fades, its cells must be there as zeros.
        before = max(0, math.ceil((c - base) / stride), -math.floor(base / stride) if border == "fade" else 0)
        start = base + before * stride - c
        assert start.denominator == 1
        assert start >= 0
        after = 0
        for cells, pixels in sizes:
            last = math.floor((base + pixels - 1) / stride) + 1  # the last cell that is read
            missing = -(-(int(start) + pixels) // stride) - before - cells
            after = max(after, missing, last + 1 - cells if border == "fade" else 0)
        return cls(stride, before, after, rule, int(start), border)

    def write(self, graph: Graph, coarse: str, size: str) -> str:
        """Add the nodes: `coarse` N K h w -> N K H W; `size` names a list (H, W)."""
        x = self.resized(graph, coarse)
        start = graph.whole(self.start, self.start)
        return graph.add("Slice", [x, start, graph.add("Add", [start, size]), graph.whole(2, 3)])

    def write_whole(self, graph: Graph, coarse: str, cells: int, pixels: int) -> str:
        """The same for a map whose pixels follow from its own cells: `pixels` for `cells`, `stride` for each more."""
        rest = (cells + self.before + self.after) * self.stride - self.start - pixels
        end = -rest if rest else np.iinfo(np.int64).max
        x = self.resized(graph, coarse)
        return graph.add("Slice", [x, *(graph.whole(n, n) for n in (self.start, int(end))), graph.whole(2, 3)])

    def resized(self, graph: Graph, x: str) -> str:
        if self.before or self.after:
            pads = graph.whole(0, 0, self.before, self.before, 0, 0, self.after, self.after)
            x = graph.add("Pad", [x, pads], mode="constant" if self.border == "fade" else "edge")
        if self.stride == 1:
            return x
        scales = graph.constant(np.asarray([1, 1, self.stride, self.stride], np.float32), "scales")
        return graph.add("Resize", [x, "", scales], mode="linear", coordinate_transformation_mode=self.rule)


def _rule(stride: int, base: Fraction) -> tuple[Literal["asymmetric", "half_pixel"], Fraction]:
    """Resize's rule and its c, such that base - c is whole."""
    if base.denominator == 1:
        return "asymmetric", Fraction(0)
    c = Fraction(1 - stride, 2)
    if (base - c).denominator == 1:
        return "half_pixel", c
    raise UsageError(
        f"This network cannot be exported: its cells lie {base} pixels off at stride {stride}, and ONNX's Resize reads "
        "whole and half pixels alone."
    )
