"""Pages of HTML: one head and style for all, everything escaped, nothing from outside, no value missing in silence."""

from __future__ import annotations

import re
from dataclasses import make_dataclass
from pathlib import Path

import pytest

import fullyconv
from fullyconv.pages import data_address, fill

PACKAGE = Path(fullyconv.__file__).parent
TEMPLATES = sorted(p for p in PACKAGE.rglob("*.html") if p.parent.name not in ("pages", "page"))


def test_the_templates_are_found() -> None:
    assert {"page.html", "leaderboard.html", "paper.html", "contacts.html", "sheet.html"} == {p.name for p in TEMPLATES}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda p: p.name)
def test_a_template_takes_the_common_head_and_names_nothing_outside(template: Path) -> None:
    text = template.read_text()
    assert '{% include "head.html"' in text
    assert "<head" not in text.replace("<header", "")
    assert not re.search(r'(?:src|href)="(?!\{\{|#)', text)


def test_only_one_module_renders_templates_and_writes_heads() -> None:
    others = [p for p in PACKAGE.rglob("*.py") if p.parent.name != "pages"]
    for path in others:
        assert not re.search(r"import jinja2|<!doctype html><|<style>", path.read_text()), path


def test_values_are_escaped_and_a_missing_one_is_an_error() -> None:
    full = make_dataclass("Page", ["title", "lines", "cards", "legend", "width"])
    page = fill("fullyconv.curation", "contacts.html", full("<b>&", ["a\u202eb"], [], [], "1rem"))
    assert "<title>&lt;b&gt;&amp;</title>" in page
    assert r"a\u202eb" in page
    with pytest.raises(ValueError, match="'width' is undefined"):
        fill("fullyconv.curation", "contacts.html", make_dataclass("Page", ["title", "lines", "legend"])("", [], []))


def test_a_data_address_holds_the_bytes() -> None:
    assert data_address(b"\xff\x00", "image/png") == "data:image/png;base64,/wA="
