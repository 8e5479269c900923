"""Options that several commands share."""

from __future__ import annotations

import os
from typing import Annotated

import typer

__all__ = ["MaxPixels"]


def _raise_cap(value: int) -> int:
    """By the environment, so that reading processes and supervised trainers have the same cap."""
    if value:
        os.environ["FULLYCONV_MAX_PIXELS"] = str(value)
    return value


MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels", min=0, metavar="N", callback=_raise_cap, show_default=False,
        help="Pixels of the largest image that is read (89 million by default).",
    ),
]  # fmt: skip
