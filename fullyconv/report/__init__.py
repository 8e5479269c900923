"""One HTML file that shows a run or an evaluation: offline, light and dark, readable on a phone and in print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import fullyconv.report.sentences as sentences
from fullyconv.errors import MissingInput, foreign_values, printable
from fullyconv.files import atomic_write
from fullyconv.files.outputs import output_file
from fullyconv.pages import fill
from fullyconv.report.collect import KeptEvaluation, Run, read_evaluation, read_run
from fullyconv.report.evaluation import EvaluationPage, evaluation
from fullyconv.report.leaderboard import leaderboard
from fullyconv.report.training import TrainingPage, training

__all__ = ["ReportPage", "render", "write"]


@final
@dataclass(frozen=True)
class ReportPage:
    """A page on a run (`run`), an evaluation (`result`) or both; summary: sentences, the most important first."""

    title: str
    summary: Sequence[str]
    run: TrainingPage | None
    result: EvaluationPage | None


def write(source: str | Path, out: str | Path | None = None) -> Path:
    """Write the report on a run directory (also one under way), an evaluation directory, or a folder of these (one
    table of all, to be sorted); returns the file.

    out: the file; `report.html` in `source` by default. Raises `MissingInput` when there is nothing to report on.
    """
    source = Path(source)
    target = Path(out) if out else (source if source.is_dir() else source.parent) / "report.html"
    output_file(target, "a report", b"<!doctype html", [p for p in (source,) if p.is_file()])
    page = render(source)
    atomic_write(target, page.encode())
    return target


def render(source: Path) -> str:
    """The page's HTML."""
    if not source.exists():
        raise MissingInput(f"{printable(source)} does not exist; give a run or an evaluation directory.")
    with foreign_values(source, "evaluate again with --keep, or name a run of your own"):
        return _rendered(source)


def _rendered(source: Path) -> str:
    run = read_run(source) if source.is_dir() else None
    found = read_evaluation(source)
    if run is None and found is None:
        table = leaderboard(source) if source.is_dir() else None
        if table is not None:
            return fill("fullyconv.report", "leaderboard.html", table)
        raise MissingInput(
            f"{printable(source)} holds neither a run (metrics.jsonl) nor an evaluation (result.json); "
            "write one with fullyconv train, or fullyconv evaluate --keep DIR."
        )
    summary, shown = evaluation(found) if found else ([], None)
    if found:
        summary += sentences.evaluated(run)
    elif run:
        summary = sentences.under_way(run, source)
    return fill(
        "fullyconv.report", "page.html", ReportPage(_title(run, found), summary, training(run) if run else None, shown)
    )


def _title(run: Run | None, found: KeptEvaluation | None) -> str:
    if found:
        return f"{found.about.model.name} on {found.about.data.name}"
    return run.name if run else "report"
