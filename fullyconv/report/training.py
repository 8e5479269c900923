"""What the page shows of a training run, finished or under way: curves, classes over time, where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from markupsafe import Markup

import fullyconv.report.charts as charts
import fullyconv.report.sentences as sentences
from fullyconv.report.collect import ImageStrip, Run, spaced
from fullyconv.report.records import MeasurementRecord, StepRecord

__all__ = ["ClassTimes", "TrainingPage", "training"]

CURVE = 300  # points of a curve
COLUMNS, ROWS = 12, 40  # measurements and classes in the table of classes over time
Points = list[tuple[float, float]]


@final
@dataclass(frozen=True)
class ClassTimes:
    """IU of classes (rows: name, one a step) at measurements; left_out: how many classes have no row."""

    steps: Sequence[int]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    left_out: int


@final
@dataclass(frozen=True)
class TrainingPage:
    """Charts (empty where there is nothing to draw) and records of a run, as the page shows them."""

    name: str
    loss: Markup
    rate: Markup
    measured: Markup
    measured_names: Sequence[tuple[str, str]]  # (curve, style sheet's class)
    classes: ClassTimes | None
    times: Markup | None
    spent: str
    strips: Sequence[ImageStrip]
    best: MeasurementRecord | None
    last: StepRecord | None
    recipe: Sequence[tuple[str, str]]


def training(run: Run) -> TrainingPage:
    """What the page shows of `run`."""
    last = float(run.last.step) if run.last else None
    measured = [
        charts.Series(name, points, f"s{i + 1}", True) for i, (name, points) in enumerate(_measured(run.measurements))
    ]
    measured += _floor(run.measurements)
    spent = [(k, v) for k, v in run.times.items() if v]
    rate = [charts.Series("", _thin([(s.step, s.lr) for s in run.steps if s.lr is not None]), "s3")]
    return TrainingPage(
        name=run.name,
        loss=charts.line_chart(_loss(run.steps), x="step", y="loss a pixel", left=0, right=last, bottom=0),
        rate=charts.line_chart(rate, x="step", y="learning rate", left=0, right=last, bottom=0),
        measured=charts.line_chart(measured, x="step", y="validation, 0 to 1", left=0, right=last, bottom=0, top=1),
        measured_names=[(s.name, s.style) for s in measured],
        classes=_classes(run.measurements),
        times=charts.stacked_bars(spent, "training time") if spent else None,
        spent=sentences.duration(sum(v for _, v in spent)),
        strips=run.strips,
        best=run.best,
        last=run.last,
        recipe=run.recipe.settings,
    )


def _loss(steps: Sequence[StepRecord]) -> list[charts.Series]:
    losses = [(s.step, s.loss if s.pixel_loss is None else s.pixel_loss) for s in steps if s.loss is not None]
    points = [(float(step), loss) for step, loss in losses if loss is not None]
    if not points:
        return []
    window = max(1, len(points) // 40)
    padded = np.pad([y for _, y in points], (window - 1, 0), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
    smoothed = [(x, float(y)) for (x, _), y in zip(points, smooth, strict=True)]
    return [charts.Series("each step", _thin(points), "s1 faint"), charts.Series("running mean", _thin(smoothed), "s1")]


def _thin(points: Sequence[tuple[float, float]]) -> Points:
    every = max(1, -(-len(points) // CURVE))
    return [(round(x, 6), float(f"{y:.6g}")) for x, y in points[::every]]


def _measured(rows: Sequence[MeasurementRecord]) -> list[tuple[str, Points]]:
    """Every validation figure that is 0..1, over steps: mean IU and pixel accuracy of every head."""
    curves = []
    for key in rows[-1].figures if rows else ():
        points = [(float(r.step), v) for r in rows if (v := r.figures.get(key)) is not None]
        name = key.replace("heads.", "").replace("mean_iu", "mean IU").replace("_", " ").replace(".", ": ")
        curves += [(name, points)] if points else []
    return curves


def _floor(rows: Sequence[MeasurementRecord]) -> list[charts.Series]:
    """Mean IU of always answering the most frequent class: what a network that has learned nothing reaches."""
    points = [(float(r.step), r.floor) for r in rows if r.floor is not None]
    return [charts.Series("floor: mean IU of one class everywhere", points, "s6 dashed")] if points else []


def _classes(rows: Sequence[MeasurementRecord]) -> ClassTimes | None:
    """IU of every class at measurement after measurement, the class that is best now first."""
    known = [(r.step, r.classes) for r in rows if r.classes is not None]
    if not known:
        return None
    shown = spaced(known, COLUMNS)
    now = {name: iu for name, iu in known[-1][1].items() if iu is not None}
    names = sorted(now, key=lambda name: -now[name])
    return ClassTimes(
        [step for step, _ in shown],
        [(name, [classes.get(name) for _, classes in shown]) for name in names[-ROWS:]],
        max(0, len(names) - ROWS),
    )
