"""The documentation as a site: `scripts/docs` builds it, warnings are errors.

The pages are the Markdown files of this folder; the reference is read from the docstrings, which are plain text: names
in single backticks, indented blocks as they stand.
"""

from __future__ import annotations

import re
from typing import Any

project = "fullyconv"
copyright = "The fullyconv authors, Apache-2.0"
extensions = ["sphinx.ext.autodoc", "myst_parser"]
html_theme = "furo"
html_title = "fullyconv"
exclude_patterns = ["results", "_build"]
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
add_module_names = False
# Pages link to files of the repository (code, scripts) that are no pages of the site.
suppress_warnings = ["myst.xref_missing"]
nitpicky = False


def as_restructured_text(lines: list[str]) -> list[str]:
    """A plain-text docstring's lines: `name` as code, indented blocks literal, other marks taken as they are."""
    out: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not literal:
            out += ["", "::", ""]
        if literal and line and not indented:
            out.append("")
        literal = indented or (literal and not line)
        out.append(line if literal else _escaped(line))
    return [*out, ""]


def _escaped(line: str) -> str:
    """Everything between single backticks becomes code; * | _ elsewhere lose their meaning."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{p}`" if p.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", p) for p in parts)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", lambda _a, _w, _n, _o, _p, lines: _replace(lines))


def _replace(lines: list[str]) -> None:
    lines[:] = as_restructured_text(lines)
