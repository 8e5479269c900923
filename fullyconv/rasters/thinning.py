"""Polygons of many corners, as far as they matter to one window.

Polygons are burnt by the even-odd rule along each row. A stretch of an outline that lies wholly above, below, left or
right of a window may therefore be replaced by one straight line on that side: no row of the window, and no parity in
it, changes. No corner is moved, so the pixels are the same to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

__all__ = ["WORTH", "thinned"]

WORTH = 1000  # corners above which a polygon is thinned


def thinned(shape: BaseGeometry, box: Sequence[float]) -> Any:
    """A shapely Polygon or MultiPolygon that covers the same of `box` (left, bottom, right, top); None for nothing."""
    import shapely

    if shape.geom_type == "Polygon":
        return _thinned_polygon(shape, box)
    parts = [made for part in shapely.get_parts(shape) if (made := _thinned_polygon(part, box)) is not None]
    return shapely.multipolygons(parts) if parts else None


def _thinned_polygon(shape: BaseGeometry, box: Sequence[float]) -> Any:
    import shapely

    rings = shapely.get_rings(shape)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    side = _side(xy, box)
    new = np.append(True, ring[1:] != ring[:-1])
    last = np.append(new[1:], True)
    turns = np.append(True, side[1:] != side[:-1])  # another side than the corner before
    keep = (side == 0) | new | last | turns | np.append(turns[1:], True)
    inside = np.bincount(ring, side == 0) + np.bincount(ring, turns & ~new) > 0
    keep &= inside[ring]  # a ring that lies on one side covers nothing of the box
    if not keep.any():
        return None
    numbers = np.unique(ring[keep], return_inverse=True)[1]
    made = shapely.linearrings(xy[keep], indices=numbers)
    return shapely.polygons(made[0], made[1:])


def _side(xy: NDArray[np.float64], box: Sequence[float]) -> NDArray[np.int8]:
    """0 in the box, else one side of it: 1 above, 2 below, 3 left, 4 right."""
    left, bottom, right, top = box
    x, y = xy[:, 0], xy[:, 1]
    return np.select([y > top, y < bottom, x < left, x > right], [1, 2, 3, 4]).astype(np.int8)
