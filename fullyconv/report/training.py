"""What the page shows of a training run, finished or under way: curves, classes over time, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import fullyconv.report.charts as charts
import fullyconv.report.sentences as sentences
from fullyconv.report.collect import Run, spaced

__all__ = ["training"]

CURVE = 300  # points of a curve
COLUMNS, ROWS = 12, 40  # measurements and classes in the table of classes over time


def training(run: Run) -> dict[str, Any]:
    """Plain values and charts."""
    last = float(run.last["step"]) if run.last else None
    measured = [
        charts.Series(name, points, f"s{i + 1}", True) for i, (name, points) in enumerate(_measured(run.measurements))
    ]
    measured += _floor(run.measurements)
    spent = [(k, float(v)) for k, v in run.times.items() if v]
    rate = [charts.Series("", _thin([(r["step"], r["lr"]) for r in run.steps if "lr" in r]), "s3")]
    return {
        "name": run.name,
        "loss": charts.line_chart(_loss(run.steps), x="step", y="loss a pixel", left=0, right=last, bottom=0),
        "rate": charts.line_chart(rate, x="step", y="learning rate", left=0, right=last, bottom=0),
        "measured": charts.line_chart(measured, x="step", y="validation, 0 to 1", left=0, right=last, bottom=0, top=1),
        "measured_names": [(s.name, s.style) for s in measured],
        "classes": _classes(run.measurements),
        "times": charts.stacked_bars(spent, "training time") if spent else None,
        "spent": sentences.duration(sum(v for _, v in spent)),
        "strips": run.strips,
        "best": run.best,
        "last": run.last,
        "recipe": [(k, v) for k, v in run.recipe.items() if v not in ("", [], {}, ())],
    }


def _loss(steps: Sequence[Mapping[str, Any]]) -> list[charts.Series]:
    points = [
        (float(r["step"]), float(r.get("pixel_loss", r["loss"])))
        for r in steps
        if isinstance(r.get("loss"), int | float)
    ]
    if not points:
        return []
    window = max(1, len(points) // 40)
    padded = np.pad([y for _, y in points], (window - 1, 0), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, mode="valid")
    smoothed = [(x, float(y)) for (x, _), y in zip(points, smooth, strict=True)]
    return [charts.Series("each step", _thin(points), "s1 faint"), charts.Series("running mean", _thin(smoothed), "s1")]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    every = max(1, -(-len(points) // CURVE))
    return [(round(x, 6), float(f"{y:.6g}")) for x, y in points[::every]]


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[tuple[float, float]]]]:
    """Every validation figure that is 0..1, over steps: mean IU and pixel accuracy of every head."""
    keys = [k for k in (rows[-1] if rows else {}) if k.endswith(("mean_iu", "pixel_accuracy"))]
    curves = [(k, [(float(r["step"]), float(r[k])) for r in rows if isinstance(r.get(k), int | float)]) for k in keys]
    return [
        (k.replace("heads.", "").replace("mean_iu", "mean IU").replace("_", " ").replace(".", ": "), points)
        for k, points in curves
        if points
    ]


def _floor(rows: Sequence[Mapping[str, Any]]) -> list[charts.Series]:
    """Mean IU of always answering the most frequent class: what a network that has learned nothing reaches."""
    said = [(float(r["step"]), r["floor"]) for r in rows if isinstance(r.get("floor"), dict)]
    points = [(step, float(f["mean_iu"])) for step, f in said if isinstance(f.get("mean_iu"), int | float)]
    return [charts.Series("floor: mean IU of one class everywhere", points, "s6 dashed")] if points else []


def _classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """IU of every class at measurement after measurement, the class that is best now first."""
    known = [r for r in rows if isinstance(r.get("per_class_iu"), dict)]
    if not known:
        return None
    shown = spaced(known, COLUMNS)
    now = {name: iu for name, iu in known[-1]["per_class_iu"].items() if iu is not None}
    names = sorted(now, key=lambda name: -now[name])
    return {
        "steps": [r["step"] for r in shown],
        "rows": [(name, [r["per_class_iu"].get(name) for r in shown]) for name in names[-ROWS:]],
        "left_out": max(0, len(names) - ROWS),
    }
