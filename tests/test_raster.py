"""Shapes to pixels: the fast raster against a slow walk along every edge, and what no file may cost."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_oracle

from fullyconv.data.corpora.annotations import paint, raster
from fullyconv.data.corpora.annotations.raster import (
    BadShape,
    coco_counts,
    coco_patch,
    coco_polygon,
    coco_union,
    counts_patch,
    draw,
    draw_patch,
    from_counts,
)
from fullyconv.data.corpora.annotations.shapes import Entry, Pen, Rings, Runs, Strokes, draw_shapes
from fullyconv.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and NumPy 2


def walked(points: list[float], size: tuple[int, int]) -> np.ndarray:
    """COCO's rule step by step: each edge walked on a grid five times finer, cut where a column's centre is crossed."""
    height, width = size
    grid = [(int(5 * x + 0.5), int(5 * y + 0.5)) for x, y in np.reshape(points, (-1, 2)).tolist()]
    walk: list[tuple[int, int]] = []
    for (xs, ys), (xe, ye) in zip(grid, [*grid[1:], grid[0]], strict=True):
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        slope = ((ye - ys) / dx if dx >= dy else (xe - xs) / dy) if max(dx, dy) else 0.0
        steps = range(max(dx, dy) + 1)
        walk += [
            (t + xs, int(ys + slope * t + 0.5)) if dx >= dy else (int(xs + slope * t + 0.5), t + ys)
            for t in (reversed(steps) if flip else steps)
        ]
    toggles = np.zeros(height * width + 1, int)
    for (u0, v0), (u1, v1) in itertools.pairwise(walk):
        column, rest = divmod(max(u0, u1) - 3, 5)
        if u0 != u1 and rest == 0 and 0 <= column < width:
            row = int(np.ceil(min(max((min(v0, v1) + 0.5) / 5 - 0.5, 0), height)))
            toggles[column * height + row] += 1
    return (np.cumsum(toggles)[: height * width] % 2 == 1).reshape(size, order="F")


def oracle(points: list[float], size: tuple[int, int]) -> np.ndarray:
    return np.asarray(coco_oracle.decode(coco_oracle.frPyObjects([points], *size))[..., 0], bool)


near = st.tuples(st.floats(-8, 50), st.floats(-8, 50))
far = st.tuples(st.floats(-1000, 1000), st.floats(-1000, 1000))
fifths = st.tuples(*[st.integers(-100, 300).map(lambda v: v / 10)] * 2)


@given(st.lists(st.one_of(near, far, fifths), min_size=3, max_size=9), st.integers(1, 45), st.integers(1, 45))
@settings(max_examples=250, deadline=None)
def test_the_raster_equals_the_walk_and_pycocotools(corners: list[Any], height: int, width: int) -> None:
    flat = [float(v) for corner in corners for v in corner]
    found = coco_polygon(flat, (height, width))
    assert np.array_equal(found, walked(flat, (height, width)))
    assert np.array_equal(found, oracle(flat, (height, width)))


@pytest.mark.parametrize("seed", range(40))
def test_many_edges_at_once_equal_pycocotools(seed: int) -> None:
    size, r = (97, 131), np.random.default_rng(seed)
    flat = (r.uniform(-40, 170, (60, 2)) * [1, 10 ** r.integers(0, 4)]).ravel().tolist()
    assert np.array_equal(coco_polygon(flat, size), oracle(flat, size))


def test_dividing_and_halving_find_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(3)
    shapes = [r.uniform(-500, 1500, (9, 2)).ravel() for _ in range(30)]
    divided = [coco_polygon(flat, (700, 900)) for flat in shapes]
    monkeypatch.setattr(
        raster, "_step_over", lambda xs, slope, long, step: raster._halved(xs, slope, long, step) if len(xs) else xs
    )
    assert all(np.array_equal(coco_polygon(f, (700, 900)), d) for f, d in zip(shapes, divided, strict=True))


def bounded(act: Any, seconds: float, mebibytes: int) -> Any:
    """What `act` returns or raises, held to time and memory (generous: the machine may be busy)."""
    tracemalloc.start()
    start = time.process_time()
    try:
        return act()
    except BadShape as error:
        return error
    finally:
        spent, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] >> 20
        tracemalloc.stop()
        assert spent < seconds
        assert peak < mebibytes


@pytest.mark.parametrize(("count", "reach"), [(10_000, 1e300), (10_000, 1e6), (300_000, 1e9), (300_000, 60)])
def test_far_or_many_points_take_little_time_and_memory(count: int, reach: float) -> None:
    points = np.random.default_rng(0).uniform(-reach, reach, 2 * count)
    found = bounded(lambda: coco_polygon(points, (48, 64)), 10, 200)
    assert isinstance(found, BadShape | np.ndarray)


def test_an_outline_that_crosses_more_than_all_pixels_is_no_shape() -> None:
    zigzag = np.stack([np.tile([0, 2000], 1500), np.arange(3000) % 50], -1).ravel()
    assert isinstance(bounded(lambda: coco_polygon(zigzag, (50, 2000)), 5, 200), BadShape)
    assert raster.most_cuts((50, 2000)) < 3000 * 2000


HUGE = 2**62


@pytest.mark.parametrize(
    "counts",
    [
        [HUGE, HUGE, HUGE, HUGE + 100],  # the sum wraps to 100
        [HUGE, HUGE, HUGE, HUGE, 100],
        [2**64 + 100],
        [10**5000],
        [-1, 101],
        [99],
        [101],
        [],
        [float("nan")],
        [float("inf")],
        [99.5, 0.5],
        ["100"],
        [None],
        [[100]],
        [True] * 100,
        5,
        {"a": 100},
    ],
    ids=lambda c: str(c)[:30] if c != [10**5000] else "5000 digits",
)
@pytest.mark.parametrize("columns", [True, False])
def test_runs_that_do_not_fill_their_image_are_refused(counts: Any, columns: bool) -> None:
    with pytest.raises(BadShape, match="10x10"):
        from_counts(counts, (10, 10), columns=columns)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    assert from_counts([50.0, 50], (10, 10), columns=True).sum() == 50


@pytest.mark.parametrize("text", ["o" * 11 + "O", "_" * 40, "o" * 100_000, "\x00", "\uffff", "p", "ooooooooooo7" * 50])
def test_numbers_that_no_run_has_are_refused(text: str) -> None:
    with pytest.raises(BadShape):
        from_counts(coco_counts(text), (10, 10), columns=True)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_compressed_runs_equal_pycocotools(runs: list[int]) -> None:
    total = max(sum(runs), 1)
    coded = coco_oracle.frPyObjects({"size": [total, 1], "counts": [*runs, total - sum(runs)]}, total, 1)
    assert np.array_equal(
        coco_oracle.decode(coded)[:, 0] > 0, from_counts(coco_counts(coded["counts"]), (total, 1), columns=True)[:, 0]
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300, 1e9, -1e9])
@pytest.mark.parametrize("kind", ["polygon", "rectangle", "circle", "line", "linestrip", "point"])
def test_pillow_is_never_given_points_that_it_cannot_paint(kind: str, bad: float) -> None:
    points = [[3.0, 4.0], [bad, 9.0], [20.0, 12.0]][: {"polygon": 3, "linestrip": 3, "point": 2}.get(kind, 2)]
    points = points[1:] if kind == "point" else points
    found = bounded(lambda: draw(kind, points, (30, 40), 3), 5, 50)
    assert isinstance(found, BadShape)
    assert "finite" in str(found) or "far outside" in str(found)


def test_an_endless_outline_is_never_given_to_pillow() -> None:
    zigzag = np.stack([np.tile([0.0, 9000.0], 20_000), np.arange(40_000) % 30], -1)
    with pytest.raises(BadShape, match="longer than"):
        draw("linestrip", zigzag, (30, 40))


def test_sound_shapes_are_pillows_own() -> None:
    image = Image.new("1", (40, 30))
    ImageDraw.Draw(image).polygon([(3, 4), (900, 9), (20, 25)], outline=1, fill=1)
    assert np.array_equal(draw("polygon", [[3, 4], [900, 9], [20, 25]], (30, 40)), np.asarray(image))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(1, 12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_patch_of_runs_holds_what_the_whole_image_does(runs: list[int], line: int, columns: bool) -> None:
    total = -(-max(sum(runs), 1) // line) * line
    size = (line, total // line) if columns else (total // line, line)
    counts = [*runs, *([total - sum(runs)] if len(runs) % 2 == 0 else [0, total - sum(runs)][: 1 + len(runs) % 2])]
    found = np.zeros(size, bool)
    patch = raster.counts_patch(counts, size, columns=columns)
    patch.of(found)[:] = patch.covered
    assert np.array_equal(found, from_counts(counts, size, columns=columns))
    assert patch.covered.size == 0 or (patch.covered.any(0)[[0, -1]].all() and patch.covered.any(1)[[0, -1]].all())


def filled(patch: raster.Patch, size: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(size, bool)
    patch.of(whole)[:] = patch.covered
    return whole


@given(
    st.lists(st.lists(st.one_of(near, far, fifths), min_size=3, max_size=6), min_size=1, max_size=9),
    st.sampled_from([7, 1 << 16]),
)
@settings(max_examples=25, deadline=None)
def test_the_union_of_outlines_equals_one_after_the_other(outlines: list[Any], at_once: int) -> None:
    size, alone = (31, 43), np.zeros((31, 43), bool)
    for outline in outlines:
        alone |= coco_polygon(np.ravel(outline), size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raster, "_AT_ONCE", at_once)  # so that one outline's cuts come in several parts
        assert np.array_equal(filled(coco_union([np.ravel(o) for o in outlines], size), size), alone)


KINDS = {"polygon": 5, "rectangle": 2, "rotation": 4, "circle": 2, "line": 2, "linestrip": 4, "point": 1}


@given(st.sampled_from(sorted(KINDS)), st.lists(st.one_of(near, far), min_size=5, max_size=5), st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_a_drawn_patch_holds_what_the_whole_image_does(kind: str, corners: list[Any], width: int) -> None:
    size, points = (45, 61), np.array(corners)[: KINDS[kind]]
    patch = draw_patch(kind, points, size, width)
    assert np.array_equal(filled(patch, size), draw(kind, points, size, width))


def brush(size: tuple[int, int], first: int, painted: int) -> bytes:
    """Label Studio's strokes: `painted` pixels from the `first` on, in runs of at most 2^16 values."""
    bits = f"{size[0] * size[1] * 4:032b}{7:05b}" + 4 * f"{15:04b}"
    for value, count in ((0, first), (255, painted), (0, size[0] * size[1] - first - painted)):
        for at in range(0, 4 * count, 1 << 16):
            bits += f"100{min(4 * count - at, 1 << 16) - 1:016b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_small_shapes_in_a_large_image_cost_what_is_small() -> None:
    size, square = (6000, 6000), np.array([3000.0, 3000, 3009, 3000, 3009, 3009, 3000, 3009])
    runs = [3000 * 6000 + 10, 5, 6000 * 6000 - 3000 * 6000 - 15]
    corners = square.reshape(-1, 2)
    for act in (
        lambda: Pen("polygon", corners, 1).patch(size),
        lambda: Strokes(brush(size, 6000 * 3000 + 20, 5), size).patch(size),
        lambda: Rings((corners, corners + 3)).patch(size),
        lambda: coco_patch(square, size),
        lambda: counts_patch(runs, size, columns=True),
        lambda: Rings((square.reshape(-1, 2),)).patch(size),
        lambda: Runs(np.array(runs), (0, 0, *size), columns=False).patch(size),
    ):
        patch = bounded(act, 0.5, 1)
        assert 0 < patch.covered.size < 200


def test_fifty_thousand_outlines_are_one_shape_in_bounded_time_and_memory() -> None:
    corner = np.random.default_rng(0).uniform(0, 1990, (50_000, 1, 2))
    squares = corner + np.array([[0, 0], [9, 0], [9, 9], [0, 9]])
    patch = bounded(lambda: Rings(tuple(squares)).patch((2000, 2000)), 8, 200)  # one by one over the image: minutes
    assert 0.6 < np.count_nonzero(patch.covered) / 2000**2 < 0.7


def test_many_wide_outlines_are_refused_for_all_of_them_together() -> None:
    wide = np.array([[0.0, 0.0], [2000.0, 0.0], [2000.0, 50.0], [0.0, 50.0]])
    assert filled(coco_union([wide] * 2, (50, 2000)), (50, 2000)).all()
    with pytest.raises(BadShape, match="more often"):
        coco_union([wide] * 1000, (50, 2000))


@pytest.mark.parametrize(
    "shape", [Pen("line", np.array([[390.0, 0.0], [390.0, 299.0]]), 1), Pen("point", np.array([[9.0, 9.0]]), 999)]
)
@pytest.mark.parametrize("by_area", [True, False])
def test_shapes_that_span_an_image_over_and_over_end_in_a_sentence(shape: Pen, by_area: bool) -> None:
    entry = Entry((300, 400), ((1, shape),) * 1000, by_area)
    taxonomy, _ = paint.classes_of(["a"])
    assert paint.paint(*draw_shapes(Entry((300, 400), ((1, shape),) * 9, by_area), {}), taxonomy).max() == 1
    with pytest.raises(DataError, match=r"10[01] times"):
        bounded(lambda: paint.paint(*draw_shapes(entry, {}, most=1 << 20), taxonomy, most=1 << 20), 5, 50)


def test_an_outline_takes_time_in_proportion_to_its_points() -> None:
    points = np.random.default_rng(0).uniform(0, 900, 2 * 3200)
    coco_polygon(points[:100], (900, 900))

    def spent(count: int) -> float:
        start = time.process_time()
        coco_polygon(points[: 2 * count], (900, 900))
        return time.process_time() - start

    few, many = (min(spent(n) for _ in range(2)) for n in (300, 2400))
    assert np.log(many / few) / np.log(8) < 1.4  # quadratic: 2
