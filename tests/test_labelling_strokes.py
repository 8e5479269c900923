"""Strokes: the quick rules are the slow ones, to the pixel; edits make what their list says, undone and redone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv.errors import DataError
from fullyconv.labelling.canvas import Canvas, Codes, cover_of, replayed
from fullyconv.labelling.edits import BadEdit, packed_runs, parse_edit, unpacked_runs
from fullyconv.labelling.strokes import Cover, brush, on_capsule, polygon, slow_brush, slow_polygon
from fullyconv.regions import components, region_runs
from fullyconv.taxonomy import Taxonomy

points = st.lists(st.tuples(st.integers(-12, 40), st.integers(-12, 40)), min_size=1, max_size=5)
corners = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), min_size=3, max_size=7)
sizes = st.tuples(st.integers(1, 24), st.integers(1, 33))


def whole(cover: Cover, size: tuple[int, int]) -> np.ndarray:
    found = np.zeros(size, bool)
    found[cover.part][cover.inside] = True
    return found


@given(points, st.integers(1, 19), sizes)
@settings(max_examples=150)
def test_a_brush_covers_what_the_definition_says(line: list, diameter: int, size: tuple[int, int]) -> None:
    np.testing.assert_array_equal(whole(brush(line, diameter, size), size), slow_brush(line, diameter, size))


def test_a_long_line_is_exact_too() -> None:
    size = (700, 900)
    for line in ([(3, 5), (890, 640)], [(890, 7), (0, 650)], [(0, 300), (899, 301)], [(400, 0), (402, 699)]):
        np.testing.assert_array_equal(whole(brush(line, 7, size), size), slow_brush(line, 7, size))


def test_the_rules_numbers_are_exact_where_squares_would_not_be() -> None:
    """A pixel just outside and one just inside of a line over a whole image of the largest size."""
    y, x = 30_000, np.arange(29_000, 31_000)
    found = on_capsule(x, np.full(len(x), y), (0, 0), (32_766, 32_765), 1)
    exact = [4 * (y * 32_766 - int(v) * 32_765) ** 2 <= 32_766**2 + 32_765**2 for v in x]
    assert found.tolist() == exact
    assert sum(exact) == 1


@given(corners, sizes)
@settings(max_examples=150)
def test_a_polygon_covers_what_the_definition_says(ring: list, size: tuple[int, int]) -> None:
    np.testing.assert_array_equal(whole(polygon(ring, size), size), slow_polygon(ring, size))


def test_a_rectangle_covers_its_pixels_and_no_more() -> None:
    found = whole(polygon([(2, 1), (5, 1), (5, 3), (2, 3)], (6, 8)), (6, 8))
    assert found.sum() == 6
    assert found[1:3, 2:5].all()


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 11), st.integers(1, 3))
@settings(max_examples=100)
def test_the_runs_of_a_region_are_the_component(seed: int, height: int, width: int, values: int) -> None:
    draw = np.random.default_rng(seed)
    image = draw.integers(0, values, (height, width))
    row, column = int(draw.integers(height)), int(draw.integers(width))
    runs = region_runs(image == image[row, column], row, column)
    found = np.zeros(image.shape, bool)
    for y, first, end in unpacked_runs(packed_runs(runs)).tolist():
        found[y, first:end] = True
    number = components(image)[0]
    np.testing.assert_array_equal(found, number == number[row, column])


CODES = Codes(Taxonomy(("a", "b", "c")))
strokes = st.one_of(
    st.fixed_dictionaries({
        "op": st.just("brush"), "points": points, "diameter": st.integers(1, 9),
        "paint": st.sampled_from([0, 1, 2, "erase", "ignore"]),
    }),
    st.fixed_dictionaries({"op": st.just("polygon"), "points": corners, "paint": st.sampled_from([0, 1, "erase"])}),
    st.fixed_dictionaries({"op": st.sampled_from(["undo", "undo", "redo", "reopen"])}),
)  # fmt: skip


@given(st.lists(strokes, max_size=12))
@settings(max_examples=80)
def test_a_canvas_is_what_its_edits_say_however_often_undone(records: list[dict[str, Any]]) -> None:
    canvas = Canvas((20, 30), CODES)
    for n, record in enumerate(records):
        before = canvas.painted.copy()
        box = canvas.apply(record)
        wanted = replayed(records[: n + 1], (20, 30), CODES)
        np.testing.assert_array_equal(canvas.painted, wanted)
        before[box.top : box.bottom, box.left : box.right] = wanted[box.top : box.bottom, box.left : box.right]
        np.testing.assert_array_equal(before, wanted, "something changed outside of the box that was told")


def test_a_fill_covers_the_region_that_is_shown_not_the_painting_alone() -> None:
    base = CODES.encode(np.repeat([[0, 1]], 4, 0).repeat(3, 1))
    canvas = Canvas((4, 6), CODES, [{"op": "brush", "points": [(1, 0), (1, 3)], "diameter": 1, "paint": 2}])
    runs = canvas.region(base, 0, 0)
    assert runs.tolist() == [[y, 0, 1] for y in range(4)]
    canvas.apply({"op": "region", "runs": packed_runs(runs), "paint": 1})
    assert CODES.decode(canvas.shown(base)).tolist() == [[1, 2, 0, 1, 1, 1]] * 4


def test_codes_come_back_as_ids_and_what_is_none_is_ignored() -> None:
    for classes in (3, 253, 254, 300):
        codes = Codes(Taxonomy.numbered(classes))
        ids = np.array([[0, classes - 1, codes.taxonomy.ignore]])
        assert codes.decode(codes.encode(ids)).tolist() == ids.tolist()
        assert codes.decode(np.zeros((1, 1), codes.dtype)).item() == codes.taxonomy.ignore
        assert codes.of("erase") == 0
        assert codes.of(classes - 1) < codes.of("ignore") == codes.ignored


def test_a_region_of_another_image_is_refused() -> None:
    record = {"op": "region", "runs": packed_runs(np.array([[0, 0, 9]])), "paint": 0}
    with pytest.raises(DataError, match="outside of its image"):
        cover_of(record, (2, 3))


GOOD = b'{"op":"brush","image":0,"id":"0123456789abcdef","points":[[1,2]],"diameter":3,"paint":1}'


def test_an_edit_is_what_it_says() -> None:
    edit = parse_edit(GOOD)
    assert (edit.op, edit.image, edit.points, edit.spent) == ("brush", 0, [[1, 2]], 0.0)


@pytest.mark.parametrize(
    "change",
    [
        (b"brush", b"write"), (b'"image":0', b'"image":-1'), (b'"image":0', b'"image":"../../etc/passwd"'),
        (b"0123456789abcdef", b"../x"), (b"[1,2]", b"[1,2,3]"), (b"[1,2]", b"[1.5,2]"), (b"[1,2]", b"[99999999,2]"),
        (b"[[1,2]]", b"[]"), (b'"diameter":3', b'"diameter":0'), (b'"diameter":3', b'"diameter":4000'),
        (b'"paint":1', b'"paint":-1'), (b'"paint":1', b'"paint":"x"'), (b'"paint":1', b'"paint":true'),
        (b'"paint":1', b'"paint":1,"file":"/etc/passwd"'), (b'"paint":1', b'"paint":1,"spent":1e9'),
        (b'"paint":1', b'"paint":1,"spent":NaN'), (b"}", b""), (GOOD, b"[" * 5000), (GOOD, b"\xff\xfe"), (GOOD, b"{}"),
        (b"[[1,2]]", b"[" + b",".join([b"[1,2]"] * 4097) + b"]"),
    ],
)  # fmt: skip
def test_what_is_no_edit_is_refused_without_a_word_of_what_was_sent(change: tuple[bytes, bytes]) -> None:
    with pytest.raises(BadEdit) as refused:
        parse_edit(GOOD.replace(*change))
    assert "passwd" not in str(refused.value)
