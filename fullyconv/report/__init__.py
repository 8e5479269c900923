"""One HTML file that shows a run or an evaluation: offline, light and dark, readable on a phone and in print."""

from __future__ import annotations

import functools
import importlib.resources
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import fullyconv.report.sentences as sentences
from fullyconv.errors import MissingInput, foreign_values, printable
from fullyconv.files import atomic_write
from fullyconv.files.outputs import output_file
from fullyconv.report.collect import KeptEvaluation, Run, read_evaluation, read_run
from fullyconv.report.evaluation import EvaluationPage, evaluation
from fullyconv.report.leaderboard import leaderboard
from fullyconv.report.training import TrainingPage, training
from fullyconv.terminal import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["ReportPage", "fill", "render", "write"]


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
            return fill("leaderboard.html", table)
        raise MissingInput(
            f"{printable(source)} holds neither a run (metrics.jsonl) nor an evaluation (result.json); "
            "write one with fullyconv train, or fullyconv evaluate --keep DIR."
        )
    said, shown = evaluation(found) if found else ([], None)
    if found:
        said += sentences.evaluated(run)
    elif run:
        said = sentences.under_way(run, source)
    return fill("page.html", ReportPage(_title(run, found), said, training(run) if run else None, shown))


def fill(template: str, page: DataclassInstance) -> str:
    """One of this package's pages with the fields of `page`, style and script inside; every value is escaped, and
    characters that turn the direction of writing are shown as their escapes. ValueError where a value is missing."""
    import jinja2
    import markupsafe

    values = {f.name: getattr(page, f.name) for f in fields(page)}
    style, script = (markupsafe.Markup(_part(name)) for name in ("page.css", "page.js"))
    try:
        return plain(str(_template(template).render(values, style=style, script=script)))
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def _part(name: str) -> str:
    return importlib.resources.files("fullyconv.report").joinpath(name).read_text("utf-8")


@functools.cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = _percent
    return environment.from_string(_part(name))


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def _title(run: Run | None, found: KeptEvaluation | None) -> str:
    if found:
        return f"{found.about.model.name} on {found.about.data.name}"
    return run.name if run else "report"
