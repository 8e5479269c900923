"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "MaxMemory", "MaxPixels", "Precision", "Tile"]


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
Tile = Annotated[int, typer.Option(help="Compute in tiles of this many pixels; 0: whole images.")]
MaxMemory = Annotated[str, typer.Option(help="Choose the tile for this much, such as 2GiB.", show_default=False)]
Precision = Annotated[
    str, typer.Option(help="auto, fp32 or bf16: auto takes bf16 where the processor has it and it is quicker.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto.")]
