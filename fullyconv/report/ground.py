"""Where images lie on a map: how large a pixel is, and the area of each class as labelled and as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from fullyconv.report.collect import KeptEvaluation

__all__ = ["GroundTable", "ground"]


@final
@dataclass(frozen=True)
class AreaRow:
    """A class: hectares, and what is predicted too much, as a share of the truth (None where there is none)."""

    name: str
    colour: tuple[int, int, int]
    truth: float
    prediction: float
    excess: float | None


@final
@dataclass(frozen=True)
class GroundTable:
    """sentence: what a pixel covers; rows: the largest class first."""

    sentence: str
    rows: Sequence[AreaRow]


def ground(found: KeptEvaluation) -> GroundTable | None:
    """The main head's areas; None where no image lies on a map."""
    told, result = found.about.ground, found.result
    if told is None or result.head not in told.hectares:
        return None
    low, high = told.metres
    some = "" if told.images == result.images else f"; {told.images} of the {result.images} images lie on a map"
    sentence = f"A pixel is {low:.4g}{f' to {high:.4g}' if high > low else ''} m of ground{some}."
    areas, taxonomy = told.hectares[result.head], result.taxonomy
    rows = [
        AreaRow(name, colour, a, b, b / a - 1 if a > 0 else None)
        for name, colour, a, b in zip(taxonomy.names, taxonomy.palette, areas.truth, areas.prediction, strict=False)
        if a or b
    ]
    return GroundTable(sentence, sorted(rows, key=lambda r: -r.truth))
