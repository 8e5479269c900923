"""Outlines of regions: filled again they give the region, and they agree with OpenCV's count of holes."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fullyconv.data.corpora.annotations.raster import coco_polygon
from fullyconv.regions import components, outlines

REGIONS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@settings(max_examples=150, deadline=None)
@given(REGIONS)
def test_outer_rings_without_their_holes_give_the_region_back(inside: np.ndarray) -> None:
    found = np.zeros(inside.shape, int)
    for outer, *holes in outlines(inside):
        region = coco_polygon(outer.ravel(), inside.shape)
        for hole in holes:
            cut = coco_polygon(hole.ravel(), inside.shape)
            assert (region[cut]).all()
            region = region & ~cut
        assert components(region)[1] - (not region.all()) >= 1
        found += region
    assert (found == inside).all()


@settings(max_examples=100, deadline=None)
@given(REGIONS)
def test_outer_rings_turn_clockwise_holes_the_other_way_and_only_corners_are_kept(inside: np.ndarray) -> None:
    for rings in outlines(inside):
        areas = [np.sum(r[:, 0] * np.roll(r[:, 1], -1) - np.roll(r[:, 0], -1) * r[:, 1]) for r in rings]
        assert areas[0] > 0
        assert all(a < 0 for a in areas[1:])
        for ring in rings:
            steps = np.sign(np.roll(ring, -1, 0) - ring)
            assert (np.abs(steps).sum(1) == 1).all()
            assert (steps != np.roll(steps, 1, 0)).any(1).all()


@settings(max_examples=60, deadline=None)
@given(REGIONS)
def test_there_are_as_many_regions_and_holes_as_opencv_counts(inside: np.ndarray) -> None:
    found = outlines(inside)
    assert len(found) == cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)[0] - 1
    outside = cv2.connectedComponents(np.pad(~inside, 1, constant_values=True).astype(np.uint8), connectivity=8)[0] - 1
    assert sum(len(rings) - 1 for rings in found) >= outside - 1  # a hole that touches itself at a corner may be two


def test_nothing_has_no_outlines_and_one_pixel_has_four_corners() -> None:
    assert outlines(np.zeros((3, 3), bool)) == []
    assert [r.tolist() for r in outlines(np.ones((1, 1), bool))[0]] == [[[0, 0], [1, 0], [1, 1], [0, 1]]]
