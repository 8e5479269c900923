"""`fullyconv compare`: does B beat A, and where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fullyconv.evaluation.comparison import Change, Comparison

__all__ = ["compare_command"]


def compare_command(
    a: Annotated[
        Path, typer.Argument(help="Result A: a JSON file, an evaluation or a run directory; or a network, with DATA.")
    ],
    b: Annotated[Path, typer.Argument(help="Result B, measured on the same data.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="[DATA]", help="Measure A and B, where they are networks, on this first.", show_default=False
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say whether result B beats result A on the same images (paired bootstrap, 95 %), and in which classes."""
    import json

    from fullyconv.cli.exported_files import evaluate_source, refuse_unmeasured
    from fullyconv.errors import foreign_values
    from fullyconv.evaluation import Result
    from fullyconv.evaluation.comparison import compare_results as against
    from fullyconv.runtime.exported import is_exported

    def result(side: Path) -> Result:
        network = is_exported(side) or (side.is_dir() and not (side / "result.json").exists())
        return evaluate_source(side, data) if data and network else Result.load(side)

    for side in () if data else (a, b):
        refuse_unmeasured(side, f"compare {a} {b}")
    with foreign_values(f"{a} or {b}", "write both again with fullyconv evaluate"):
        found = against(result(a), result(b))
        text = json.dumps(found.to_json(), allow_nan=False) if as_json else comparison_text(found)
    print(text)


def comparison_text(found: Comparison) -> str:
    """The comparison as a table in percent; a star marks differences that other images would very likely show too."""
    lines = [found.verdict, *found.notes, "", f"{'':24}{'A':>8}{'B':>8}{'B - A':>9}   95 % interval"]
    lines += [_row(c) for c in (found.mean_iu, found.pixel_accuracy)]
    lines += ["", "IU by class"]
    lines += [_row(c) for c in sorted(found.classes, key=lambda c: c.difference or 0.0)]
    lines += ["", "Pixel accuracy of the images that changed most"]
    lines += [_row(c) for c in found.images]
    return "\n".join(lines)


def _row(c: Change) -> str:
    def percent(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{100 * value:{sign}.2f}"

    low, high = c.interval.low, c.interval.high
    between = "" if low is None or high is None else f"   {percent(low, '+')} to {percent(high, '+')}"
    star = " *" if c.certain else ""
    return f"{c.name[:23]:24}{percent(c.a):>8}{percent(c.b):>8}{percent(c.difference, '+'):>9}{between}{star}"
