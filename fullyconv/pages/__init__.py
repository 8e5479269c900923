"""Pages of HTML in one file, without anything from outside: one head, style, script and way to escape for all.

A room keeps its templates beside its code and gives a page's values as a dataclass.
"""

from __future__ import annotations

import base64
import functools
import importlib.resources
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fullyconv.terminal import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["data_address", "fill"]


def fill(package: str, template: str, page: DataclassInstance) -> str:
    """The template of a package ("fullyconv.report", "page.html") with the fields of `page`, the common style and
    script; every value is escaped, and characters that turn the direction of writing are shown as their escapes.

    A template may include what lies here (head.html, foot.html). ValueError where a value is missing.
    """
    import jinja2
    import markupsafe

    style, script = (markupsafe.Markup(_part(__name__, name)) for name in ("page.css", "page.js"))
    values = {f.name: getattr(page, f.name) for f in fields(page)}
    try:
        return plain(_environment(package).get_template(template).render(values, style=style, script=script))
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def data_address(data: bytes, kind: str) -> str:
    """Bytes as a data: address, so that the page needs no other file; kind: "image/png"."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _part(package: str, name: str) -> str:
    return importlib.resources.files(package).joinpath(name).read_text("utf-8")


@functools.cache
def _environment(package: str) -> Any:
    import jinja2

    def find(name: str) -> str | None:
        return next(
            (_part(p, name) for p in (package, __name__) if importlib.resources.files(p).joinpath(name).is_file()), None
        )

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(find),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    return environment


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"
