"""`fullyconv report`: a run or an evaluation in, one HTML page out; `fullyconv report paper`: the published tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    source: Annotated[
        list[str],
        typer.Argument(help="Run or evaluation directory, or a folder of them; or: paper RESULT...", metavar="RUN"),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The page; report.html in RUN by default.")] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--picture", metavar="NAME", help="paper: an image to show in every result's prediction; repeatable."
        ),
    ] = None,
) -> None:
    """Show a run, an evaluation, or a folder of runs (a leaderboard) as one HTML page; `report paper RESULT...` sets
    results beside the paper's."""
    from fullyconv.errors import UsageError

    if source[0] == "paper" and not Path("paper").is_dir():
        from fullyconv.report.paper import write_paper

        print(write_paper([Path(s) for s in source[1:]], out or Path("paper.html"), images or ()))
        return
    if len(source) != 1:
        raise UsageError("Name one run or evaluation directory; fullyconv compare A B sets two side by side.")
    from fullyconv.cli.exported import refuse_unmeasured
    from fullyconv.report import write

    refuse_unmeasured(source[0])

    print(write(source[0], out))
