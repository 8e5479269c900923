"""A folder of runs as one table: what each scored, on what, with its interval, to be sorted by any column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.errors import FullyconvError, foreign_values, printable
from fullyconv.evaluation.result import Result
from fullyconv.evaluation.statistics import Interval, counts, interval, resample
from fullyconv.files import read_json
from fullyconv.report.collect import file_within, read_evaluation, read_run

__all__ = ["Leaderboard", "LeaderboardRow", "ShownRow", "leaderboard", "runs_below"]

DEPTH = 2  # folders below the one that is named in which runs are looked for
MOST = 1000  # runs on a page
NOTHING = Interval(None, None)
FOLDS = "folds.json"  # what a cross-validation keeps beside its result


@final
@dataclass(frozen=True)
class LeaderboardRow:
    """One run or evaluation. `protocol` says on what images and how; only equal ones may be set against each other.
    measured: by its kept evaluation; else the mean IU is the best that training saw, without an interval."""

    name: str
    network: str
    protocol: str
    images: int | None
    mean_iu: float
    interval: Interval
    pixel_accuracy: float
    steps: int | None
    minutes: float | None
    measured: bool


@final
@dataclass(frozen=True)
class ShownRow:
    """A run's cells in the order of the page's columns: (text, what it is sorted by)."""

    name: str
    cells: Sequence[tuple[str, str | float]]
    measured: bool


@final
@dataclass(frozen=True)
class Leaderboard:
    """unread: what could not be read, and why; protocols: the ways in which the runs were measured."""

    title: str
    rows: Sequence[ShownRow]
    unread: Sequence[str]
    protocols: Sequence[str]


def runs_below(folder: Path) -> list[Path]:
    """Directories of runs and evaluations in `folder`, at most two levels down, by name; none inside another one."""
    found: list[Path] = []
    level = [folder]
    for _ in range(DEPTH):
        inside = [p for f in level for p in sorted(f.iterdir()) if p.name[0] != "."]
        below = [p for p in inside if p.is_dir() and not p.is_symlink()]
        found += [p for p in below if _holds(p)]
        level = [p for p in below if not _holds(p)]
    return sorted(found)


def _holds(place: Path) -> bool:
    return any((place / name).is_file() for name in ("metrics.jsonl", "result.json", "evaluation/result.json"))


def leaderboard(folder: Path) -> Leaderboard | None:
    """The page, or None where `folder` holds no runs. Those that cannot be read are named, not passed over."""
    places = runs_below(folder)
    if not places:
        return None
    entries, unread = [], []
    for place in places[:MOST]:
        try:
            with foreign_values(place, "evaluate again with --keep, or leave it out"):
                entry = _entry(place, place.relative_to(folder).as_posix())
        except FullyconvError as error:
            unread.append(f"{printable(place.relative_to(folder))}: {error}")
            continue
        if entry is None:
            unread.append(f"{printable(place.relative_to(folder))}: nothing was measured yet")
        else:
            entries.append(entry)
    if len(places) > MOST:
        unread.append(f"{len(places) - MOST} more runs: a page holds {MOST}")
    protocols = sorted({e.protocol for e in entries})
    return Leaderboard(f"Runs in {folder.resolve().name}", _rows(entries), unread, protocols)


def _entry(place: Path, name: str) -> LeaderboardRow | None:
    file_within(place, place)
    run, found = read_run(place), read_evaluation(place)
    steps = run.last.step if run and run.last else None
    minutes = sum(run.times.values()) / 60 if run and run.times else None
    if found is not None:
        result, about, data = found.result, found.about, found.about.data
        return LeaderboardRow(
            name, about.model.name, f"{data.name}, {data.split or 'all'}, {about.protocol}"
            + (f", averaged over {' and '.join(about.tta)}" if about.tta else "")
            + f" [{data.fingerprint[:6]}]",
            result.images, result.mean_iu, _interval(place, result), result.pixel_accuracy, steps, minutes, True,
        )  # fmt: skip
    best = run.best if run else None
    if run is None or best is None or best.mean_iu is None:
        return None
    return LeaderboardRow(
        name, run.recipe.model, f"{best.split or 'val'} while training", None,
        best.mean_iu, NOTHING, math.nan if best.pixel_accuracy is None else best.pixel_accuracy,
        steps, minutes, False,
    )  # fmt: skip


def _interval(place: Path, result: Result) -> Interval:
    """95 % of the mean IU over images drawn anew; of a cross-validation the one that it kept, over groups of images."""
    if (place / FOLDS).is_file():
        low, high = read_json(file_within(place, place / FOLDS))["interval"]
        return NOTHING if low is None else Interval(float(low), float(high))
    return interval(resample([counts(result)], result.average)[0].mean_iu) if result.images > 1 else NOTHING


def _rows(entries: Sequence[LeaderboardRow]) -> list[ShownRow]:
    """Best first; figures in percent, each cell with what it is sorted by."""

    def percent(value: float) -> str:
        return "–" if math.isnan(value) else f"{100 * value:.1f}"

    def place(e: LeaderboardRow) -> tuple[bool, float, str]:
        unknown = math.isnan(e.mean_iu)
        return unknown, 0.0 if unknown else -e.mean_iu, e.name

    rows = []
    for e in sorted(entries, key=place):
        low, high = e.interval.low, e.interval.high
        between = "–" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"
        cells: list[tuple[str, str | float]] = [
            (e.network, e.network), (e.protocol, e.protocol), (_text(e.images), e.images or 0),
            (percent(e.mean_iu), _key(e.mean_iu)), (between, _key(low)),
            (percent(e.pixel_accuracy), _key(e.pixel_accuracy)), (_text(e.steps), e.steps or 0),
            ("–" if e.minutes is None else f"{e.minutes:.1f}", e.minutes or 0),
        ]  # fmt: skip
        rows.append(ShownRow(e.name, cells, e.measured))
    return rows


def _text(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _key(value: float | None) -> float:
    return -1.0 if value is None or math.isnan(value) else value
