"""From shapes to pixels: polygons as the formats' own tools fill them, and the run-length codings they store."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, printable

__all__ = [
    "BadShape",
    "Patch",
    "check_outlines",
    "checked_counts",
    "checked_points",
    "coco_counts",
    "coco_patch",
    "coco_polygon",
    "coco_union",
    "counts_patch",
    "draw",
    "draw_patch",
    "ellipse_points",
    "from_counts",
    "label_studio_brush",
    "label_studio_counts",
    "most_cuts",
]

Size = tuple[int, int]
Region = NDArray[np.bool_]  # H W: which pixels a shape covers


class Patch(NamedTuple):
    """The box of an image in which a shape covers something: its first row and column, and what is covered in it."""

    top: int
    left: int
    covered: Region
    worked: int = 0  # pixels that were worked on to find it, where they are more than the box's

    @classmethod
    def within(cls, covered: Region, top: int = 0, left: int = 0) -> Patch:
        """`covered`, cut to the rows and columns that have something in them."""
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        if not len(rows):
            return cls(top, left, covered[:0, :0], covered.size)
        box = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(top + int(rows[0]), left + int(columns[0]), box, covered.size)

    def of(self, image: NDArray[np.number]) -> NDArray[Any]:
        """The box's part of an image H W, as a view."""
        height, width = self.covered.shape
        return image[self.top : self.top + height, self.left : self.left + width]

    def without(self, other: Patch) -> Patch:
        """What is covered here and not there."""
        (h, w), (oh, ow) = self.covered.shape, other.covered.shape
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom, right = min(self.top + h, other.top + oh), min(self.left + w, other.left + ow)
        if top >= bottom or left >= right:
            return self
        rest = self.covered.copy()
        hole = other.covered[top - other.top : bottom - other.top, left - other.left : right - other.left]
        rest[top - self.top : bottom - self.top, left - self.left : right - self.left] &= ~hole
        return self._replace(covered=rest)


@final
class BadShape(DataError):
    """A shape that cannot be painted; `reason` says why in words that follow "shapes" ("of fewer than 3 points")."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"A shape {reason} cannot be painted; leave it out or draw it again.")


def from_counts(counts: Iterable[int], size: Size, *, columns: bool) -> Region:
    """Runs of absent and present pixels in turn, absent first, along columns (COCO) or rows (CVAT) -> H W.

    Raises BadShape unless the runs are whole, not negative and add up to H * W.
    """
    runs = checked_counts(counts, size)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F" if columns else "C")


def counts_patch(counts: Iterable[int], size: Size, *, columns: bool) -> Patch:
    """`from_counts`, as the box between the first and the last pixel: its cost is the runs' and the box's."""
    runs = checked_counts(counts, size)
    present = np.flatnonzero(runs[1::2]) * 2 + 1
    line = size[0] if columns else size[1]
    if not len(present):
        return Patch(0, 0, np.zeros((0, 0), bool))
    end = np.cumsum(runs)
    first, last = (int(end[present[0] - 1]) // line, (int(end[present[-1]]) - 1) // line)
    part = runs[: present[-1] + 1].copy()
    part[: present[0]] = 0
    part[0] = end[present[0] - 1] - first * line
    flat = np.zeros((last - first + 1) * line, bool)
    filled = np.repeat(np.arange(len(part)) % 2 == 1, part)
    flat[: len(filled)] = filled
    box = flat.reshape(-1, line)
    return Patch.within(box.T, 0, first) if columns else Patch.within(box, first, 0)


def checked_counts(counts: Iterable[int], size: Size) -> NDArray[np.int64]:
    """`counts` as int64 that fill `size` exactly, else BadShape. No sum can wrap: each run is checked first."""
    pixels = size[0] * size[1]
    stated = f"of runs that do not fill their {size[0]}x{size[1]} (HxW)"
    try:
        values = counts if isinstance(counts, np.ndarray) else [_whole(c) for c in counts]
        runs = np.asarray(values, np.int64).reshape(-1)
    except (OverflowError, TypeError, ValueError) as error:  # beyond int64, or no numbers
        raise BadShape(stated) from error
    if not len(runs) or int(runs.min()) < 0 or int(runs.max()) > pixels or int(runs.sum()) != pixels:
        raise BadShape(stated)
    return runs


def _whole(value: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise TypeError("no whole number")


def coco_counts(text: str | bytes) -> NDArray[np.int64]:
    """COCO's compressed runs: base 48 with 5 bits a character, a sign bit, and differences to the last run but one.

    Raises BadShape for characters outside the code, a cut number, and numbers of more than 60 bits.
    """
    try:
        data = np.frombuffer(text.encode("ascii") if isinstance(text, str) else bytes(text), np.uint8).astype(np.int64)
    except ValueError as error:
        raise BadShape("of characters that COCO's runs do not have") from error
    part = data - 48
    last = (part & 32) == 0
    if not len(part):
        return part
    if int(part.min()) < 0 or int(part.max()) > 63 or not last[-1]:
        raise BadShape("of characters that COCO's runs do not have")
    end = np.flatnonzero(last)
    start = np.concatenate([[0], end[:-1] + 1])
    length = end - start + 1
    if int(length.max()) > 12:
        raise BadShape("of runs that no image has")
    shift = 5 * (np.arange(len(part)) - np.repeat(start, length))
    value = np.add.reduceat((part & 31) << shift, start)
    value -= np.where(part[end] & 16, np.int64(1) << 5 * length, 0)
    return _undo_differences(value)


def _undo_differences(value: NDArray[np.int64]) -> NDArray[np.int64]:
    """From the fourth on, each number is the difference to the one two before: the odd and even ones added up."""
    if int(np.abs(value).max()) >= 1 << 40 or len(value) > 1 << 22:  # so that no sum can wrap
        raise BadShape("of runs that no image has")
    counts = value.copy()
    counts[1::2] = np.cumsum(value[1::2])
    counts[2::2] = np.cumsum(value[2::2])
    return counts


_FAR = 1 << 26  # pixels: farther points are moved to there, so that five times as much fits pycocotools' 32 bits
_AT_ONCE = 1 << 16  # cuts worked out together: a few tens of MiB


def coco_polygon(points: Sequence[float] | NDArray[np.float64], size: Size) -> Region:
    """The pixels of a polygon x0 y0 x1 y1 ... by COCO's own rule (maskApi's rleFrPoly), equal to pycocotools.

    Edges are walked on a grid five times finer; a column of pixels is cut where the outline crosses its centre, and
    everything between two cuts is inside (even-odd). Only those steps of the walk that cross a column of the image
    are worked out: the cost is the points' and the cuts', however far the points lie. Raises BadShape for fewer than
    three points, points that are not finite, and outlines that cross the image's columns over `most_cuts` times.
    """
    covered = np.zeros(size, bool)
    patch = coco_patch(points, size)
    patch.of(covered)[:] = patch.covered
    return covered


def coco_patch(points: Sequence[float] | NDArray[np.float64], size: Size) -> Patch:
    """`coco_polygon`, as the box that the outline fills: a small shape in a large image costs what is small."""
    outline = _outline(points)
    start, end = _edges([outline])
    # Every column is cut an even number of times, so nothing is carried from one to the next: columns without a cut,
    # and rows that no edge comes to, are outside.
    top, left, height, width = _box(start, size)
    toggled = np.zeros(width * height + 1, np.uint8)
    for columns, rows, _ in _cuts(start, end, size) if height and width else ():
        np.bitwise_xor.at(toggled, (columns - left) * height + np.clip(rows - top, 0, height), np.uint8(1))
    inside = np.bitwise_xor.accumulate(toggled)[:-1].view(np.bool_)
    return Patch(top, left, inside.reshape(height, width, order="F"))


def coco_union(outlines: Sequence[Sequence[float] | NDArray[np.float64]], size: Size) -> Patch:
    """The union of `coco_patch`es as one box: its cost is the points', the cuts' and the box's that all fill together,
    however many outlines there are. Raises BadShape as `coco_polygon` does, for all of them together.

    The cuts of one outline, sorted down its columns, are the ends of its runs in turn (cuts that coincide make a run
    of nothing); how many outlines hold a pixel is a sum over the ends of runs.
    """
    checked = [_outline(o) for o in outlines]
    if len(checked) < 2:
        return coco_patch(checked[0], size) if checked else Patch(0, 0, np.zeros((0, 0), bool))
    start, end = _edges(checked)
    top, left, height, width = _box(start, size)
    change = np.zeros(width * height + 1, np.int32)
    owner = np.repeat(np.arange(len(checked)), [len(o) for o in checked])
    for cuts, owners in _by_owner(start, end, owner, size) if height and width else ():
        columns, rows = cuts
        at = (columns - left) * height + np.clip(rows - top, 0, height)
        ends = at[np.lexsort((at, owners))]
        np.add.at(change, ends[::2], 1)
        np.add.at(change, ends[1::2], -1)
    inside = np.cumsum(change, out=change)[:-1] > 0
    return Patch(top, left, inside.reshape(height, width, order="F"))


_Cuts = tuple[NDArray[np.int64], NDArray[np.int64]]


def _by_owner(
    start: NDArray[np.int64], end: NDArray[np.int64], owner: NDArray[np.int64], size: Size
) -> Iterator[tuple[_Cuts, NDArray[np.int64]]]:
    """((columns, rows), owners) of cuts, those of one outline never in two parts."""
    kept: list[NDArray[np.int64]] = []
    for columns, rows, which in _cuts(start, end, size):
        part = np.stack([columns, rows, owner[which]])
        kept.append(part)
        whole = int(np.searchsorted(part[2], part[2, -1]))  # the last outline may go on in the next part
        if whole:
            columns, rows, owners = np.concatenate([*kept[:-1], part[:, :whole]], 1)
            kept = [part[:, whole:]]
            yield (columns, rows), owners
    if kept:
        columns, rows, owners = np.concatenate(kept, 1)
        yield (columns, rows), owners


def _outline(points: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    if len(xy) < 3:
        raise BadShape("of fewer than 3 points")
    if not np.isfinite(xy).all():
        raise BadShape("with points that are no finite numbers")
    return xy


def _box(grid: NDArray[np.int64], size: Size) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part of the image that points of the grid reach; 0 x 0 for none."""
    left, right = (int(v) for v in np.clip((grid[:, 0].min() // 5, grid[:, 0].max() // 5 + 1), 0, size[1]))
    top, bottom = (int(v) for v in np.clip((grid[:, 1].min() // 5 - 1, grid[:, 1].max() // 5 + 2), 0, size[0]))
    return (top, left, bottom - top, right - left) if left < right and top < bottom else (0, 0, 0, 0)


def most_cuts(size: Size) -> int:
    """How often an outline may cross the image's columns: once for each pixel, and a million times in small ones."""
    return size[0] * size[1] + 1_000_000


def check_outlines(outlines: Sequence[NDArray[np.float64]], size: Size) -> None:
    """BadShape for outlines that together cross the image's columns over `most_cuts` times."""
    if sum(map(len, outlines)) * size[1] > 1_000_000:
        _crossings(*_edges(outlines), size)


def _on_grid(points: NDArray[np.float64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.trunc(5 * np.clip(points, -_FAR, _FAR) + 0.5).astype(np.int64)
    return found


def _edges(outlines: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends (x y, on the grid) of all edges of closed outlines, one outline after the other."""
    start = _on_grid(np.concatenate(outlines))
    last = np.cumsum([len(o) for o in outlines]) - 1
    end = np.roll(start, -1, 0)
    end[last] = start[np.concatenate([[0], last[:-1] + 1])]
    return start, end


def _crossings(
    start: NDArray[np.int64], end: NDArray[np.int64], size: Size
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The edges that cross columns, how many each, and the first column of every edge."""
    low, high = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    first = np.maximum((low + 2) // 5, 0)  # the first column c with low <= 5c + 2
    count = np.maximum(np.minimum((high - 3) // 5, size[1] - 1) - first + 1, 0)
    crossing = np.flatnonzero(count)
    if int(count.sum()) > most_cuts(size):
        raise BadShape("whose outline crosses the image's columns more often than it has pixels")
    return crossing, count[crossing], first


def _cuts(
    start: NDArray[np.int64], end: NDArray[np.int64], size: Size
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """(columns, rows, edges) where edges cut columns' centres, some edges at a time."""
    crossing, count, first = _crossings(start, end, size)
    total = np.cumsum(count)
    at = 0
    while at < len(crossing):
        stop = max(int(np.searchsorted(total, (total[at - 1] if at else 0) + _AT_ONCE, "right")), at + 1)
        edges, n = crossing[at:stop], count[at:stop]
        which = np.repeat(edges, n)
        within = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
        columns = first[which] + within
        yield columns, _rows(start[which], end[which], columns, size[0]), which
        at = stop


def _rows(
    start: NDArray[np.int64], end: NDArray[np.int64], columns: NDArray[np.int64], height: int
) -> NDArray[np.int64]:
    """The row at which each edge cuts its column: between the grid's 5c + 2 and 5c + 3, as the walk steps over it."""
    (xs, ys), (xe, ye) = start.T, end.T
    wide = np.abs(xe - xs) >= np.abs(ye - ys)
    flip = np.where(wide, xs > xe, ys > ye)
    xs, xe = np.where(flip, xe, xs), np.where(flip, xs, xe)
    ys, ye = np.where(flip, ye, ys), np.where(flip, ys, ye)
    long, short = np.where(wide, xe - xs, ye - ys), np.where(wide, ye - ys, xe - xs)
    slope = short / long  # an edge that crosses a column is not a point
    step = 5 * columns + 2
    before = np.where(wide, step - xs, 0)
    steep = np.flatnonzero(~wide)
    before[steep] = _step_over(xs[steep], slope[steep], long[steep], step[steep])
    v = np.where(wide, np.minimum(*(np.trunc(ys + slope * (before + k) + 0.5) for k in (0, 1))), before + ys)
    rows: NDArray[np.int64] = np.ceil(np.clip((v + 0.5) / 5 - 0.5, 0, height)).astype(np.int64)
    return rows


def _step_over(
    xs: NDArray[np.int64], slope: NDArray[np.float64], long: NDArray[np.int64], step: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The t at which trunc(xs + slope t + 0.5) goes from `step` to `step` + 1, or back, between t and t + 1.

    Solved by a division, which rounding may put one beside it; where that does not fit, by halving.
    """
    up = slope > 0
    t = np.ceil((step + 0.5 - xs) / slope).astype(np.int64) - 1
    t = np.clip(t, 0, long - 1)
    wrong = np.flatnonzero(_beyond(t, xs, slope, step, up) | ~_beyond(t + 1, xs, slope, step, up))
    if len(wrong):
        t[wrong] = _halved(xs[wrong], slope[wrong], long[wrong], step[wrong])
    return t


def _beyond(
    t: NDArray[np.int64], xs: NDArray[np.int64], slope: NDArray[np.float64], step: NDArray[np.int64], up: object
) -> NDArray[np.bool_]:
    """Whether the walk is past the step at t."""
    return np.asarray((np.trunc(xs + slope * t + 0.5) > step) == up)


def _halved(
    xs: NDArray[np.int64], slope: NDArray[np.float64], long: NDArray[np.int64], step: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The slow twin of the division: rounding keeps the order of its arguments, so the walk is monotone."""
    low, high = np.zeros_like(long), long.copy()
    for _ in range(int(long.max()).bit_length()):
        middle = (low + high) >> 1
        beyond = _beyond(middle, xs, slope, step, slope > 0) & (middle > low)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return low


_MOST_STEPS = 1 << 28  # of Pillow's loops over an outline's pixels and over its edges in each row: under a second


def checked_points(points: Sequence[Sequence[float]] | NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """N x 2 points (x y) that Pillow can paint in bounded time, else BadShape: finite, not far off, not too many."""
    xy = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(xy).all():
        raise BadShape("with points that are no finite numbers")
    if len(xy) and np.abs(xy).max() > 10 * max(1000, *size):
        raise BadShape("with points far outside the image")
    steps = np.abs(np.diff(xy, axis=0)).max(-1, initial=0).sum()
    if max(steps, len(xy) * size[0]) > _MOST_STEPS:
        raise BadShape("with an outline longer than all pixels of the image")
    return xy


def draw(kind: str, points: Sequence[Sequence[float]] | NDArray[np.float64], size: Size, width: int = 1) -> Region:
    """A shape drawn by Pillow, as labelme does: polygon, rectangle, circle (centre, rim), line, linestrip, point.

    Raises BadShape for another kind, a number of points that the kind does not have, and `checked_points`'s reasons.
    """
    return _drawn(*_strokes(kind, checked_points(points, size), width), size, width)


def draw_patch(kind: str, points: Sequence[Sequence[float]] | NDArray[np.float64], size: Size, width: int = 1) -> Patch:
    """`draw`, as the box that the shape fills. Its cost is the rows that the shape spans, up to its right end.

    Pillow reckons along a row in 32-bit floats from the image's left edge, so that the left end is not moved: a pixel
    could fall on the other side. Whole rows may be.
    """
    how, xy = _strokes(kind, checked_points(points, size), width)
    reach = 2 + (width if how == "line" else 0)
    low, high = xy.min(0) - reach, xy.max(0) + reach
    top, bottom = (int(v) for v in np.clip((low[1], high[1]), 0, size[0]))
    right = int(np.clip(high[0], 0, size[1]))
    if bottom <= top or not right:
        return Patch(0, 0, np.zeros((0, 0), bool))
    return Patch.within(_drawn(how, xy - np.array([0, top]), (bottom - top, right), width), top)


def _strokes(kind: str, xy: NDArray[np.float64], width: int) -> tuple[str, NDArray[np.int64]]:
    """Which of Pillow's strokes draws a shape, and its points x y, cut to whole numbers as Pillow does."""
    turned = kind in ("rectangle", "oriented_rectangle", "rotation") and len(xy) == 4  # labelme's successors
    if (kind == "polygon" and len(xy) > 2) or turned:
        how = "polygon"
    elif kind == "rectangle" and len(xy) == 2:
        how, xy = "rectangle", np.stack([xy.min(0), xy.max(0)])
    elif kind == "circle" and len(xy) == 2:
        r = float(np.hypot(*(xy[1] - xy[0])))
        how, xy = "ellipse", np.stack([xy[0] - r, xy[0] + r])
    elif kind in ("line", "linestrip") and len(xy) > 1:
        how = "line"
    elif kind == "point" and len(xy) == 1:
        how, xy = "ellipse", np.stack([xy[0] - width / 2, xy[0] + width / 2])
    else:
        raise BadShape(f"of kind {printable(kind)!r} with {len(xy)} points")
    return how, np.trunc(xy).astype(np.int64)


def _drawn(how: str, xy: NDArray[np.int64], size: Size, width: int) -> Region:
    from PIL import Image, ImageDraw

    image = Image.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(image)
    points = [(x, y) for x, y in xy.tolist()]
    if how == "line":
        pen.line(points, fill=1, width=width)
    else:
        getattr(pen, how)(points, outline=1, fill=1)
    return np.asarray(image)


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
    return from_counts(label_studio_counts(data, size), size, columns=False)


def label_studio_counts(data: Sequence[int], size: Size) -> NDArray[np.int64]:
    """`label_studio_brush` as runs of absent and present pixels in turn, absent first, along rows."""
    try:
        raw = bytes(data if isinstance(data, bytes) else list(data))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadShape("of strokes that are no list of bytes") from error
    at = 0

    def take(count: int) -> int:
        nonlocal at
        start, at = at, at + count
        if at > len(raw) * 8:
            raise BadShape("of strokes that are cut off")
        return int.from_bytes(raw[start >> 3 : (at + 7) >> 3], "big") >> (-at & 7) & ((1 << count) - 1)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != size[0] * size[1] * 4:
        raise BadShape(f"of strokes for another image than one of {size[0]}x{size[1]} (HxW)")
    ends = array("q")  # of stretches of pixels (their fourth channel), one after the other, and what each holds
    present = bytearray()
    found = 0
    while found < total:
        repeated, length = take(1), take(sizes[take(2)]) + 1
        stop = min(found + length, total)
        if repeated:
            ends.append(stop // 4)
            present.append(take(word) > 0)
        else:
            values = np.array([take(word) > 0 for _ in range(stop - found)][3 - found % 4 :: 4], np.uint8)
            if len(values):
                turn = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
                ends.extend((found // 4 + 1 + turn).tolist())
                present += bytes(values[turn])
        found = stop
    holds = np.frombuffer(present, np.uint8)
    changed = np.append(np.flatnonzero(np.diff(holds)), len(holds) - 1)
    bounds = np.concatenate([[0, 0] if present[0] else [0], np.array(ends, np.int64)[changed]])
    return np.diff(bounds).astype(np.int64)
