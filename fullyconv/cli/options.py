"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["MaxPixels"]


def _raise_cap(context: typer.Context, value: int) -> int:
    """For as long as the command runs; processes that read for it are forked, and a supervised trainer is given the
    option itself."""
    if value:
        from fullyconv.images.limits import pixels_allowed

        context.with_resource(pixels_allowed(value))
    return value


MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels", min=0, metavar="N", callback=_raise_cap, show_default=False,
        help="Pixels of the largest image that is read (89 million by default).",
    ),
]  # fmt: skip
