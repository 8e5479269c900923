"""`fullyconv report`: a run or an evaluation in, one HTML page out; `fullyconv report paper`: the published tables."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Run or evaluation directory, or a folder of them; or: FILE.onnx DATA; or: paper RESULT...",
            metavar="RUN",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The page; report.html in RUN, or FILE.html, by default.")
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--picture", metavar="NAME", help="paper: an image to show in every result's prediction; repeatable."
        ),
    ] = None,
) -> None:
    """Show a run, an evaluation, or a folder of runs (a leaderboard) as one HTML page; `report paper RESULT...` sets
    results beside the paper's. An exported file is measured on DATA first."""
    from fullyconv.errors import UsageError

    if source[0] == "paper" and not Path("paper").is_dir():
        from fullyconv.report.paper import write_paper

        print(write_paper([Path(s) for s in source[1:]], out or Path("paper.html"), images or ()))
        return
    from fullyconv.cli.exported_files import evaluate_source, refuse_unmeasured
    from fullyconv.files.outputs import output_file
    from fullyconv.report import write
    from fullyconv.runtime.exported import is_exported

    if len(source) == 2 and is_exported(source[0]):
        page = output_file(out or Path(source[0]).with_suffix(".html"), "a report", b"<!doctype html")
        with tempfile.TemporaryDirectory() as folder:
            evaluate_source(source[0], source[1], Path(folder))
            print(write(folder, page))
        return
    if len(source) != 1:
        raise UsageError("Name one run or evaluation directory; fullyconv compare A B sets two side by side.")
    refuse_unmeasured(source[0], f"report {source[0]}")
    print(write(source[0], out))
