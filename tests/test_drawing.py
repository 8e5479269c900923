"""Images and answers as people see them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fullyconv.drawing import colours, encode_jpeg, error_marks, inner_line, overlay, shrunk, viewable

PALETTE = ((0, 0, 0), (200, 10, 50), (7, 255, 1))


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(data)).convert("RGBA"))


def test_an_overlay_is_the_mean_of_image_and_colour_and_leaves_what_has_no_class() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    labels = rng.integers(0, 3, (9, 7), dtype=np.uint8)
    expected = [
        [[(int(i) + c) // 2 for i, c in zip(image[y, x], PALETTE[labels[y, x]], strict=True)] for x in range(7)]
        for y in range(9)
    ]
    np.testing.assert_array_equal(overlay(image, labels, PALETTE), expected)
    labels[2:4] = 255
    shown = overlay(image, labels, PALETTE)
    np.testing.assert_array_equal(shown[2:4], image[2:4])
    np.testing.assert_array_equal(shown[4:], np.array(expected)[4:])
    np.testing.assert_array_equal(overlay(image, np.full((9, 7), 3), PALETTE), image)


def test_parts_say_how_much_of_the_colour_there_is() -> None:
    image, labels = np.full((1, 1, 3), 100, np.uint8), np.ones((1, 1), np.uint16)
    assert overlay(image, labels, PALETTE, (2, 3)).tolist() == [[[160, 46, 70]]]
    assert overlay(image, labels, PALETTE, (0, 1)).tolist() == [[list(PALETTE[1])]]


def test_deep_images_are_made_viewable() -> None:
    assert viewable(np.full((2, 2, 1), 4000, np.uint16)).tolist() == [[[255] * 3] * 2] * 2
    assert viewable(np.full((2, 2, 4), 200.0, np.float32)).max() == 200
    depth = np.array([[[np.nan], [2000]], [[np.inf], [1000]]], np.float32)
    assert viewable(depth)[..., 0].tolist() == [[0, 255], [0, 127]]


def test_windows_of_one_deep_image_are_shown_alike() -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (8, 8, 3)).astype(np.uint16)
    whole = viewable(image, high_byte=True)
    np.testing.assert_array_equal(viewable(image[:3, 2:], high_byte=True), whole[:3, 2:])


def test_small_labels_are_labels_that_were_there() -> None:
    labels = np.random.default_rng(0).integers(0, 300, (1300, 20)).astype(np.uint16)
    small = shrunk(labels, 640)
    assert small.shape == (640, 10)
    assert set(np.unique(small)) <= set(np.unique(labels))
    assert shrunk(labels, 1300) is labels


def test_ids_beyond_the_palette_are_white() -> None:
    assert colours(np.array([[1, 5]]), PALETTE).tolist() == [[list(PALETTE[1]), [255] * 3]]


def test_errors_are_red_unlabelled_grey_and_right_ones_clear() -> None:
    marks = opened(error_marks(np.array([[0, 1, 255]]), np.array([[0, 2, 1]]), 255))[0]
    assert marks[0, 3] == 0
    assert marks[1].tolist() == [226, 43, 62, 235]
    assert marks[2].tolist() == [128, 128, 136, 150]


@pytest.mark.parametrize(("side", "thick"), [(40, 1), (440, 4)])
def test_a_line_runs_just_inside_a_region(side: int, thick: int) -> None:
    inside = np.zeros((side, side), bool)
    inside[5:-5, 5:-5] = True
    line = opened(inner_line(inside))[..., 3] > 0
    core = np.zeros_like(inside)
    core[5 + thick : -5 - thick, 5 + thick : -5 - thick] = True
    np.testing.assert_array_equal(line, inside & ~core)


def test_a_jpeg_is_of_the_size_it_was_given() -> None:
    assert Image.open(BytesIO(encode_jpeg(np.zeros((3, 5), np.uint8)))).size == (5, 3)
