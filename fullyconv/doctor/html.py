"""The doctor's sheet: every kind of finding with cropped images, in one HTML file without anything from outside."""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.doctor.findings import Finding
from fullyconv.doctor.summary import Summary
from fullyconv.drawing import colours, shrunk
from fullyconv.errors import FullyconvError, printable
from fullyconv.taxonomy import voc_palette
from fullyconv.terminal import plain

__all__ = ["sheet"]

_SIDE = 160  # pixels of a crop
_IMAGES = 8  # per kind

_STYLE = """
:root{color-scheme:light dark;--error:#a40000;--warning:#8a5a00}
@media(prefers-color-scheme:dark){:root{--error:#ff8a80;--warning:#ffc460}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1,li,.facts td{overflow-wrap:anywhere}
h2 small{font-weight:normal;opacity:.7} .error{color:var(--error)} .warning{color:var(--warning)}
figure{display:inline-block;margin:.5rem 1rem .5rem 0;vertical-align:top;width:22rem;max-width:100%}
img{image-rendering:pixelated;margin-right:4px;max-width:47%;height:auto}
figcaption{font-size:13px;overflow-wrap:anywhere} table{border-collapse:collapse}
td,th{padding:.2rem .8rem;text-align:right}
td:first-child,th:first-child,.facts td{text-align:left} td:first-child{padding-left:0}
"""


def sheet(findings: Sequence[Finding], summary: Summary | None, title: str) -> str:
    """The page as text: the worst first, at most 8 images a kind, then what training will meet.
    Characters that turn the direction of writing are shown as their escapes."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        kinds[f.kind].append(f)
    parts = [_section(kind, some) for kind, some in kinds.items()] or ["<p>Nothing is wrong with this data.</p>"]
    if summary:
        parts.append(_summary(summary))
    name = html.escape(printable(title))
    return plain(
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>Check of {name}</title><style>{_STYLE}</style>'
        f"<h1>Check of {name}</h1>{''.join(parts)}</html>\n"
    )


def _section(kind: str, some: Sequence[Finding]) -> str:
    first = some[0]
    heading = f'<h2 class="{first.level}">{html.escape(kind)} <small>{first.level}, {len(some)} x</small></h2>'
    figures = "".join(_figure(f) for f in some[:_IMAGES])
    rest = [f"<li>{html.escape(f.message)}</li>" for f in some[_IMAGES:200]]
    more = f"<details><summary>{len(some) - _IMAGES} more</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return f"{heading}<p>{html.escape(first.remedy)}</p>{figures}{more}"


def _figure(f: Finding) -> str:
    images = "".join(_image(file, f.place) for file in f.files[:2] if file.suffix.lower() in SUFFIXES)
    return f"<figure>{images}<figcaption>{html.escape(f.message)}</figcaption></figure>"


def _image(file: Path, place: tuple[int, int] | None) -> str:
    """An <img> of the file: the whole made small, or the surroundings of `place`; "" if it cannot be read."""
    try:
        pixels = _pixels(file)
    except (FullyconvError, OSError):
        return ""
    if place:
        top, left = (max(0, p - _SIDE // 2) for p in place)
        pixels = pixels[top : top + _SIDE, left : left + _SIDE]
    small = shrunk(pixels, _SIDE)
    data = base64.b64encode(images.encode_png(small)).decode("ascii")
    return f'<img alt="" width="{small.shape[1]}" height="{small.shape[0]}" src="data:image/png;base64,{data}">'


def _pixels(file: Path) -> NDArray[Any]:
    """An image as RGB; small-valued grey and palette files, which are labels, in the VOC colours."""
    info = images.image_info(file)
    if info.mode in ("L", "P", "1") and info.format == "PNG":
        ids = images.read_label(file)
        if len(np.unique(ids)) <= 64 or info.mode == "P":
            return colours(ids & 255, voc_palette(256))
    return images.read_image(file)


def _summary(s: Summary) -> str:
    rows = [
        ("images", ", ".join(f"{n} in {split}" for split, n in s.images.items())),
        ("size (HxW)", f"{_size(s.smallest)} to {_size(s.largest)}, median {_size(s.median)}"),
        ("channel mean", ", ".join(f"{m:.1f}" for m in s.mean) if s.mean else "not measured"),
        ("channel std", ", ".join(f"{m:.1f}" for m in s.std) if s.std else "not measured"),
        ("what train takes", ", ".join(f"{k} = {v}" for k, v in s.recipe.items())),
    ]
    facts = "".join(f"<tr><td>{html.escape(a)}<td>{html.escape(b)}" for a, b in rows)
    heads = "".join(_head(*h) for h in s.heads.items())
    return f'<h2>What training will meet</h2><table class="facts">{facts}</table>{heads}'


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _head(head: str, table: Any) -> str:
    if "pixels" not in table:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}<td>{pixels}<td>{share:.3%}<td>{weight:.3f}"
        for name, pixels, share, weight in zip(
            table["classes"], table["pixels"], table["frequency"], table["median_frequency_weights"], strict=True
        )
    )
    return (
        f"<h3>{html.escape(head)}</h3><p>{table['ignored']:.2%} of the pixels are ignored.</p>"
        f"<table><tr><th>class<th>pixels<th>share<th>median-frequency weight{rows}</table>"
    )
