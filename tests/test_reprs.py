"""Data sets, results and classes say in a line what they are, and a notebook shows names as text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from test_compare import result
from training_tools import images

from fullyconv.taxonomy import Taxonomy

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def test_classes_show_some_names_and_a_table() -> None:
    many = Taxonomy(tuple(f"c{k}" for k in range(9)))
    assert repr(many) == "Taxonomy(9 classes: c0, c1, c2, c3, c4, ...; 255 is ignored)"
    assert many._repr_html_().count("<tr>") == 10
    assert "rgb(128,0,0)" in many._repr_html_()


def test_names_are_text_in_a_line_and_in_a_notebook() -> None:
    classes = Taxonomy(("a", HOSTILE, "c"))
    data = replace(images(2), taxonomies={"semantic": classes})
    measured = result(0.9, names=("a", HOSTILE, "c"))
    for thing in (classes, data, measured):
        assert "\x1b" not in repr(thing)
        assert "\n" not in repr(thing)
        page = thing._repr_html_()
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


def test_a_result_shows_every_class_and_those_not_in_the_truth() -> None:
    measured = result(0.9, images=1, names=("a", "b", "c"))
    table = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    page = replace(measured, tables={"semantic": table})._repr_html_()
    assert "0.7500" in page
    assert "not in the truth" in page
