"""Which pixels a stroke covers: one rule in whole numbers, the same in the page (`page/rule.js`) to the pixel.

brush     a pixel is covered where its distance from the line through the points is at most half the diameter
polygon   a pixel is covered where its centre lies inside by the even-odd rule; points are corners of pixels
region    the 4-connected pixels that show the same value as the one that was pointed at

Points are [x, y]. `slow_brush` and `slow_polygon` are the definition; `brush` and `polygon` take time in proportion to
what is covered. Nothing is rounded: m = isqrt(d^2 L^2) is at least 2 |cross| exactly where 4 cross^2 <= d^2 L^2, so all
numbers stay below 2^53, which a page's numbers hold exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_DIAMETER", "MOST_SIDE", "Cover", "brush", "on_capsule", "polygon", "slow_brush", "slow_polygon"]

MOST_SIDE = 32_767  # pixels of an image's side: what keeps the rule's numbers exact
MOST_DIAMETER = 1023  # pixels: as `MOST_SIDE`

Point = Sequence[int]
Mask = NDArray[np.bool_]


class Cover(NamedTuple):
    """Covered pixels: the box's first row and column, and which of its pixels are."""

    top: int
    left: int
    inside: Mask

    @property
    def part(self) -> tuple[slice, slice]:
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def on_capsule(x: NDArray[np.integer], y: NDArray[np.integer], a: Point, b: Point, diameter: int) -> Any:
    """Whether pixels x y (arrays of whole numbers) lie within half the diameter of the line from a to b."""
    ax, ay, dx, dy = int(a[0]), int(a[1]), int(b[0]) - int(a[0]), int(b[1]) - int(a[1])
    u, v = x - ax, y - ay
    square = dx * dx + dy * dy
    near = diameter * diameter
    found = 4 * (u * u + v * v) <= near
    if not square:
        return found
    found |= 4 * ((u - dx) ** 2 + (v - dy) ** 2) <= near
    along = u * dx + v * dy
    return found | ((along > 0) & (along < square) & (2 * np.abs(u * dy - v * dx) <= math.isqrt(near * square)))


def slow_brush(points: Sequence[Point], diameter: int, size: tuple[int, int]) -> Mask:
    """The pixels of an image of `size` H W that a brush covers: the definition."""
    y, x = np.indices(size)
    covered = np.zeros(size, bool)
    for a, b in zip(points, points[1:] or points, strict=False):
        covered |= on_capsule(x, y, a, b, diameter)
    return covered


def brush(points: Sequence[Point], diameter: int, size: tuple[int, int]) -> Cover:
    """`slow_brush` in the box that it touches: along each line only a band beside it is looked at."""
    height, width = size
    reach = diameter // 2 + 1
    xs, ys = [int(p[0]) for p in points], [int(p[1]) for p in points]
    left, right = max(0, min(xs) - reach), min(width, max(xs) + reach + 1)
    top, bottom = max(0, min(ys) - reach), min(height, max(ys) + reach + 1)
    if left >= right or top >= bottom:
        return Cover(0, 0, np.zeros((0, 0), bool))
    inside = np.zeros((bottom - top, right - left), bool)
    for a, b in zip(points, points[1:] or points, strict=False):
        _band(inside, (top, left), a, b, diameter)
    return Cover(top, left, inside)


def _band(inside: Mask, corner: tuple[int, int], a: Point, b: Point, diameter: int) -> None:
    """Add the line from a to b: for every row (column, where it is flat) the pixels about the axis."""
    ax, ay, bx, by = int(a[0]) - corner[1], int(a[1]) - corner[0], int(b[0]) - corner[1], int(b[1]) - corner[0]
    flat = abs(bx - ax) > abs(by - ay)
    target = inside.T if flat else inside
    (ax, ay), (bx, by) = ((ay, ax), (by, bx)) if flat else ((ax, ay), (bx, by))
    if ay > by:
        ax, ay, bx, by = bx, by, ax, ay
    reach = diameter // 2 + 1
    first, last = max(0, ay - reach), min(target.shape[0] - 1, by + reach)
    if first > last:
        return
    rows = np.arange(first, last + 1)
    # In a row, half of what is covered is at most sqrt(2) of the radius wide about the axis; at the ends, the radius.
    half = math.isqrt(diameter * diameter * 2) // 2 + 2
    middle = ax + ((np.clip(rows, ay, by) - ay) * (bx - ax)) // max(1, by - ay)
    columns = middle[:, None] + np.arange(-half - 1, half + 2)
    covered = on_capsule(columns, rows[:, None], (ax, ay), (bx, by), diameter)
    covered &= (columns >= 0) & (columns < target.shape[1])
    at = np.nonzero(covered)
    target[rows[at[0]], columns[at]] = True


def slow_polygon(points: Sequence[Point], size: tuple[int, int]) -> Mask:
    """The pixels of an image of `size` H W that a closed outline covers: the definition."""
    covered = np.zeros(size, bool)
    for y, x in np.ndindex(*size):
        crossings = 0
        for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
            if y1 > y2:
                x1, y1, x2, y2 = x2, y2, x1, y1
            # Both sides twice as large: the centre is odd, corners are even, so no corner lies on its row.
            if 2 * y1 < 2 * y + 1 < 2 * y2:
                crossings += 2 * x1 * (y2 - y1) + (2 * y + 1 - 2 * y1) * (x2 - x1) < (2 * x + 1) * (y2 - y1)
        covered[y, x] = crossings % 2
    return covered


def polygon(points: Sequence[Point], size: tuple[int, int]) -> Cover:
    """`slow_polygon` in its box: where the outline is crossed is turned over, then summed up along the rows."""
    height, width = size
    xs, ys = [int(p[0]) for p in points], [int(p[1]) for p in points]
    left, right = max(0, min(xs)), min(width, max(xs))
    top, bottom = max(0, min(ys)), min(height, max(ys))
    if left >= right or top >= bottom:
        return Cover(0, 0, np.zeros((0, 0), bool))
    turned = np.zeros((bottom - top, right - left + 1), np.uint8)
    for (x1, y1), (x2, y2) in zip(points, [*points[1:], points[0]], strict=True):
        if y1 > y2:
            x1, y1, x2, y2 = x2, y2, x1, y1
        rows = np.arange(max(top, y1), min(bottom, y2))
        if not len(rows):
            continue
        before = (2 * x1 * (y2 - y1) + (2 * rows + 1 - 2 * y1) * (x2 - x1)) // (y2 - y1)
        first = -(-before // 2)  # 2 x + 1 > before
        turned[rows - top, np.clip(first, left, right) - left] ^= 1
    return Cover(top, left, np.bitwise_xor.accumulate(turned, 1)[:, :-1].astype(bool))
