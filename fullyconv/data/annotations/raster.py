"""From shapes to pixels: polygons as the formats' own tools fill them, and the run-length codings they store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError

__all__ = ["coco_counts", "coco_polygon", "draw", "ellipse_points", "from_counts", "label_studio_brush"]

Size = tuple[int, int]
Region = NDArray[np.bool_]  # H W: which pixels a shape covers


def from_counts(counts: Iterable[int], size: Size, *, columns: bool) -> Region:
    """Runs of absent and present pixels in turn, absent first, along columns (COCO) or rows (CVAT) -> H W.

    Raises DataError unless the runs are not negative and add up to H * W.
    """
    runs = np.fromiter(counts, np.int64)
    total = int(runs.sum()) if len(runs) else 0
    if (runs < 0).any() or total != size[0] * size[1]:
        raise DataError(
            f"A run-length coded region covers {total} pixels, its picture or box has {size[0]}x{size[1]} (HxW); "
            "export it again."
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F" if columns else "C")


def coco_counts(text: str | bytes) -> list[int]:
    """COCO's compressed runs: base 48 with 5 bits a character, a sign bit, and differences to the last run but one."""
    data = text.encode("latin-1", "replace") if isinstance(text, str) else text
    counts: list[int] = []
    at = 0
    while at < len(data):
        value, shift, more = 0, 0, True
        while more:
            if at >= len(data) or not 48 <= data[at] < 112 or shift > 60:
                raise DataError(
                    "A compressed region holds characters that COCO's coding does not have; export it again."
                )
            part = data[at] - 48
            value |= (part & 31) << shift
            more, at, shift = bool(part & 32), at + 1, shift + 5
            if not more and part & 16:
                value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def coco_polygon(points: Sequence[float], size: Size) -> Region:
    """The pixels of a polygon x0 y0 x1 y1 ... by COCO's own rule (maskApi's rleFrPoly), equal to pycocotools.

    Edges are walked on a grid five times finer; a column of pixels is cut where the outline crosses its centre, and
    everything between two cuts is inside (even-odd).
    """
    height, width = size
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    if len(xy) < 3 or not np.isfinite(xy).all():
        raise DataError(f"A polygon has {len(xy)} points or infinite ones; it needs three finite points (x y).")
    reach = 10 * max(1000, *size)  # farther points are moved to there: no edge may take all memory
    grid = np.trunc(5 * np.clip(xy, -reach, reach) + 0.5).astype(np.int64)
    u, v = (np.concatenate(part) for part in zip(*map(_edge, grid, np.roll(grid, -1, 0)), strict=True))
    step = np.flatnonzero(u[1:] != u[:-1])
    x = np.where(u[step + 1] < u[step], u[step + 1], u[step + 1] - 1)
    x = (x + 0.5) / 5 - 0.5
    y = np.ceil(np.clip((np.minimum(v[step + 1], v[step]) + 0.5) / 5 - 0.5, 0, height))
    keep = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    cuts = (x[keep] * height + y[keep]).astype(np.int64)
    inside: Region = np.cumsum(np.bincount(cuts, minlength=height * width + 1))[: height * width] % 2 == 1
    return inside.reshape(size, order="F")


def _edge(start: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The grid points of one edge, from start to end."""
    (xs, ys), (xe, ye) = start.tolist(), end.tolist()
    dx, dy = abs(xe - xs), abs(ye - ys)
    flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
    if flip:
        xs, xe, ys, ye = xe, xs, ye, ys
    t = np.arange(max(dx, dy) + 1)
    if flip:
        t = t[::-1]
    if dx >= dy:
        slope = (ye - ys) / dx if dx else 0.0
        return t + xs, np.trunc(ys + slope * t + 0.5).astype(np.int64)
    return np.trunc(xs + (xe - xs) / dy * t + 0.5).astype(np.int64), t + ys


def draw(kind: str, points: Sequence[Sequence[float]], size: Size, width: int = 1) -> Region:
    """A shape drawn by Pillow, as labelme does: polygon, rectangle, circle (centre, rim), line, linestrip, point."""
    from PIL import Image, ImageDraw

    picture = Image.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(picture)
    xy = [(float(x), float(y)) for x, y in points]
    turned = kind in ("rectangle", "oriented_rectangle", "rotation") and len(xy) == 4  # labelme's successors
    if (kind == "polygon" and len(xy) > 2) or turned:
        pen.polygon(xy, outline=1, fill=1)
    elif kind == "rectangle" and len(xy) == 2:
        (x0, y0), (x1, y1) = xy
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    elif kind == "circle" and len(xy) == 2:
        (x, y), (px, py) = xy
        r = float(np.hypot(px - x, py - y))
        pen.ellipse((x - r, y - r, x + r, y + r), outline=1, fill=1)
    elif kind in ("line", "linestrip") and len(xy) > 1:
        pen.line(xy, fill=1, width=width)
    elif kind == "point" and len(xy) == 1:
        (x, y), r = xy[0], width / 2
        pen.ellipse((x - r, y - r, x + r, y + r), outline=1, fill=1)
    else:
        raise DataError(f"A shape of kind {kind!r} with {len(xy)} points cannot be painted; export it as a polygon.")
    return np.asarray(picture)


def ellipse_points(x: float, y: float, rx: float, ry: float, degrees: float = 0.0, corners: int = 72) -> list[float]:
    """x0 y0 x1 y1 ... of an ellipse's outline, turned clockwise."""
    t, turn = np.linspace(0, 2 * np.pi, corners, endpoint=False), np.radians(degrees)
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    outline = (x + dx * np.cos(turn) - dy * np.sin(turn), y + dx * np.sin(turn) + dy * np.cos(turn))
    return [float(value) for value in np.stack(outline, -1).ravel()]


def label_studio_brush(data: Sequence[int], size: Size) -> Region:
    """Label Studio's brush strokes: bytes packed by thi.ng/rle-pack, four channels a pixel; the last one counts.

    Header: 32 bits the number of values, 5 the word size - 1, four times 4 the run sizes - 1. Then, again and again: a
    bit (run or not), 2 bits choosing a size, that many bits the length - 1, and one value (run) or length values.
    """
    raw = bytes(data)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        start, at = at, at + count
        if at > len(raw) * 8:
            raise DataError("A brush region is cut off; export the project again.")
        return int.from_bytes(raw[start >> 3 : (at + 7) >> 3], "big") >> (-at & 7) & ((1 << count) - 1)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != size[0] * size[1] * 4:
        raise DataError(
            f"A brush region has {total} values, its picture {size[0]}x{size[1]}x4 (HxWx4); export the project again."
        )
    painted = np.zeros(total, bool)
    found = 0
    while found < total:
        repeated, length = take(1), take(sizes[take(2)]) + 1
        stop = min(found + length, total)
        if repeated:
            painted[found:stop] = take(word) > 0
        else:
            painted[found:stop] = [take(word) > 0 for _ in range(stop - found)]
        found = stop
    return painted.reshape(*size, 4)[..., 3]
