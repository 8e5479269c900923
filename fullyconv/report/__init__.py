"""One HTML file that shows a run or an evaluation: offline, light and dark, readable on a phone and in print."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.errors import MissingInput, printable
from fullyconv.evaluate.result import Result
from fullyconv.evaluate.statistics import Interval, Resampled, costly_pairs, counts, interval, resample
from fullyconv.files import atomic_write
from fullyconv.report import charts, words
from fullyconv.report.gather import Run, address, error_map, read_evaluation, read_run
from fullyconv.report.heads import heads, learned

__all__ = ["fill", "render", "write"]

FIGURES = {
    "mean_iu": ("Mean IU", "intersection over union, averaged over classes"),
    "pixel_accuracy": ("Pixel accuracy", "share of labelled pixels that are right"),
    "mean_accuracy": ("Mean accuracy", "recall, averaged over classes"),
    "frequency_weighted_iu": ("Frequency-weighted IU", "IU, every pixel counting the same"),
}
MATRIX = 30  # classes shown in the confusion matrix
CURVE = 300  # points of a curve


def write(source: str | Path, out: str | Path | None = None) -> Path:
    """Write the report on a run directory (also one under way) or an evaluation directory; returns the file.

    out: the file; `report.html` in `source` by default. Raises `MissingInput` when there is nothing to report on.
    """
    source = Path(source)
    target = Path(out) if out else (source if source.is_dir() else source.parent) / "report.html"
    page = render(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, page.encode())
    return target


def render(source: Path) -> str:
    """The page's HTML."""
    if not source.exists():
        raise MissingInput(f"{printable(source)} does not exist; give a run or an evaluation directory.")
    run = read_run(source) if source.is_dir() else None
    found = read_evaluation(source)
    if run is None and found is None:
        raise MissingInput(
            f"{printable(source)} holds neither a run (metrics.jsonl) nor an evaluation (result.json); "
            "write one with fullyconv train, or fullyconv evaluate --keep DIR."
        )
    values: dict[str, Any] = {"title": _title(run, found), "run": _run(run), "result": None, "summary": []}
    if found:
        values |= _evaluation(*found)
    elif run:
        values["summary"] = _under_way(run, source)
    return fill("page.html", values)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """One of this package's pages with its values, style and script inside; every value is escaped."""
    import jinja2
    import markupsafe

    def part(name: str) -> str:
        return importlib.resources.files("fullyconv.report").joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda v, digits=1: "–" if v is None else f"{100 * v:.{digits}f}"
    style, script = (markupsafe.Markup(part(name)) for name in ("page.css", "page.js"))
    return environment.from_string(part(template)).render(values, style=style, script=script)


def _markup(text: str) -> Any:
    import markupsafe

    return markupsafe.Markup(text)


def _title(run: Run | None, found: tuple[Result, Path] | None) -> str:
    if found:
        about = found[0].about
        return f"{about['model']['name']} on {about['data']['name']}"
    return run.name if run else "report"


# The evaluation


def _evaluation(result: Result, place: Path) -> dict[str, Any]:
    drawn = resample([counts(result)], result.average)[0] if result.images else None
    mean = interval(drawn.mean_iu) if drawn else Interval(None, None)
    accuracy = interval(drawn.pixel_accuracy) if drawn else Interval(None, None)
    tiles = [
        {
            "name": name,
            "what": what,
            "value": result.figure(key),
            "interval": {"mean_iu": mean, "pixel_accuracy": accuracy}.get(key),
        }
        for key, (name, what) in FIGURES.items()
    ]
    return {
        "summary": words.summary(result, mean),
        "result": {
            "figures": tiles,
            "bars": _class_bars(result, drawn),
            "classes": _class_rows(result, drawn),
            "matrix": _matrix(result),
            "pairs": _pairs(result, place),
            "where": _where(result.analysis),
            "gallery": [_picture(g, place, result) for g in result.analysis.get("gallery", [])],
            "suspects": [_picture(s, place, result) for s in result.analysis.get("suspects", [])],
            "about": _about(result),
            "heads": [{**h, "bars": h["bars"] and _markup(h["bars"])} for h in heads(result, place)],
            "legend": [
                {"name": n, "colour": c} for n, c in zip(result.taxonomy.names, result.taxonomy.palette, strict=True)
            ],
        },
    }


def _class_rows(result: Result, drawn: Resampled | None) -> list[dict[str, Any]]:
    rows = []
    for c in result.per_class:
        found = interval(drawn.iu[:, c["id"]]) if drawn is not None else Interval(None, None)
        share = c["pixels"] / max(int(result.confusion.sum()), 1)
        rows.append({**c, "interval": found, "share": share, "colour": result.taxonomy.palette[c["id"]]})
    return rows


def _class_bars(result: Result, drawn: Resampled | None) -> Any:
    """The classes of the truth, best first."""
    rows = [r for r in _class_rows(result, drawn) if r["pixels"]]
    items = []
    for r in sorted(rows, key=lambda r: -r["iu"]):
        low, high = r["interval"].low, r["interval"].high
        note = f"{r['name']}: IU {100 * r['iu']:.1f}"
        note += f", 95 % interval {100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
        items.append(charts.Bar(r["name"], r["iu"], low, high, r["colour"], note))
    return _markup(charts.bars(items, "IU of every class with its 95 % interval"))


def _matrix(result: Result) -> dict[str, Any]:
    """Row shares of the confusion table, for the classes that matter most when there are many."""
    table, names = result.confusion, result.taxonomy.names
    shown = [k for k in range(len(names)) if table[k].sum()]
    if len(shown) > MATRIX:
        worth = table.sum(1) + table.sum(0) - 2 * np.diag(table)
        shown = sorted(sorted(shown, key=lambda k: -int(worth[k]))[:MATRIX])
    columns = [k for k in range(len(names)) if k in shown or (len(shown) < MATRIX and table[:, k].sum())]
    rows = []
    for i in shown:
        total = int(table[i].sum())
        cells = [
            {"share": table[i, j] / total, "same": i == j, "pixels": int(table[i, j]), "said": names[j]}
            for j in columns
        ]
        rows.append({"name": names[i], "colour": result.taxonomy.palette[i], "cells": cells})
    head = [{"name": names[j], "colour": result.taxonomy.palette[j]} for j in columns]
    longest = max((len(h["name"]) for h in head), default=0)
    return {
        "rows": rows,
        "head": head,
        "longest": longest,
        "left_out": sum(1 for k in range(len(names)) if table[k].sum()) - len(shown),
    }


def _pairs(result: Result, place: Path) -> list[dict[str, Any]]:
    """The costliest confusions, with a cropped example where the evaluation was kept."""
    names = result.taxonomy.names
    kept = {(p["truth"], p["said"]): p for p in result.analysis.get("pairs", [])}
    out = []
    for p in costly_pairs(result.confusion, result.average)[:12]:
        entry: dict[str, Any] = {
            "truth": names[p.truth],
            "said": names[p.said],
            "share": p.share,
            "cost": p.cost,
            "pixels": p.pixels,
        }
        entry["colours"] = (result.taxonomy.palette[p.truth], result.taxonomy.palette[p.said])
        example = kept.get((p.truth, p.said))
        out.append(entry | (_picture(example, place, result, entry) if example else {"image": None}))
    return out


def _picture(
    entry: Mapping[str, Any], place: Path, result: Result, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    files = {what: place / name for what, name in entry["files"].items()}
    names, shown = result.taxonomy.names, dict(entry)
    if "labelled" in entry:
        colours = (result.taxonomy.palette[entry["labelled"]], result.taxonomy.palette[entry["said"]])
        shown |= {"labelled": names[entry["labelled"]], "said": names[entry["said"]], "colours": colours}
    return {
        **shown,
        **(more or {}),
        "further": {modality: address(place / file) for modality, file in entry.get("inputs", {}).items()},
        "image": address(files["image"]),
        "label": address(files["label"]),
        "prediction": address(files["prediction"]),
        "errors": error_map(files["label"], files["prediction"], result.taxonomy.ignore),
    }


def _where(analysis: Mapping[str, Any]) -> dict[str, Any] | None:
    """Charts of where errors lie: along borders, by region size, by confidence."""
    if "border" not in analysis:
        return None
    table = np.asarray(analysis["border"]["pixels"]).sum(0)
    rate = [float(table[i, 1] / table[i].sum()) if table[i].sum() else None for i in (1, 0)]
    limits, rows = analysis["sizes"]["limits"], np.asarray(analysis["sizes"]["regions"])
    sizes = [
        charts.Bar(
            f"{100 * low:g}–{100 * high:g}\u202f% ({n:,})", float(found / n) if n else None,
            note=f"{n} regions, {100 * wrong / max(pixels, 1):.1f} % of their pixels wrong",
        )
        for low, high, (n, pixels, wrong, found) in zip(limits, limits[1:], rows.tolist(), strict=False)
    ]  # fmt: skip
    bins = [
        (n, r, s)
        for (n, r), s in zip(analysis["calibration"]["bins"], analysis["calibration"]["confidence"], strict=True)
    ]
    borders = [charts.Bar("along borders", rate[0]), charts.Bar("inside regions", rate[1])]
    return {
        "borders": _markup(charts.bars(borders, "share of wrong pixels along borders and inside regions")),
        "half_width": analysis["border"]["half_width"],
        "f_score": analysis["border"].get("f_score"),  # None in evaluations kept before it was counted
        "near": float(table[1].sum() / max(int(table.sum()), 1)),
        "sizes": _markup(charts.bars(sizes, "share of regions found, by size")),
        "calibration": _markup(charts.reliability(bins)),
        "calibration_error": analysis["calibration"]["error"],
    }


def _about(result: Result) -> list[tuple[str, str]]:
    """What was measured and how, as (term, words)."""
    a = result.about
    data, machine = a["data"], a["machine"]
    native = a["protocol"] in ("native", "paper")
    size = "images and labels at their own size" if native else "images and labels resized (labels nearest)"
    averaging = "classes that occur in the truth" if result.average == "present" else "all classes, unseen ones as 0"
    augmented = f"mean over {' and '.join(a['tta'])}" if a["tta"] else "no augmentation"
    how = learned(a["model"].get("training") or {})
    return [
        ("Data", f"{data['name']} ({data['kind']}), split {data['split']}, {result.images} of {data['of']} images"),
        ("Fingerprint", data["fingerprint"]),
        ("Model", f"{a['model']['name']}, weights sha256 {a['model']['sha256']}"),
        *([("Learned", how)] if how else []),
        ("Protocol", f"{a['protocol']}: {size}"),
        ("Means over", averaging),
        ("Ignored label", ", ".join(f"{h}: {v}" for h, v in a["ignore"].items())),
        ("Computed in", f"{_tiling(a['tiling'])}; {a['precision']}; {augmented}"),
        ("Intervals", "bootstrap over images, 1,000 draws, 95 %; too narrow where images are frames of one video"),
        ("Machine", f"{machine['processor']}, {_number(machine['cores'], 'core')}, {machine['device']}"),
        ("Speed", f"{a['images_per_second']} images/s, {a['seconds']} s in all"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in a["versions"].items())),
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _tiling(tiling: Mapping[str, Any]) -> str:
    if not tiling["tile"]:
        return "whole images"
    how = "blended, an approximation" if tiling["blended"] else "equal to whole images"
    return f"tiles of {tiling['tile'][0]}x{tiling['tile'][1]} pixels with {tiling['context']} around, {how}"


# The run


def _run(run: Run | None) -> dict[str, Any] | None:
    if run is None:
        return None
    best = run.best
    loss = charts.lines(_loss(run.steps), x="step", y="loss a pixel", bottom=0)
    rate = charts.lines(
        [charts.Series("learning rate", _thin([(r["step"], r["lr"]) for r in run.steps if "lr" in r]), "s3")],
        x="step",
        y="learning rate",
        bottom=0,
    )
    measured = [
        charts.Series(name, points, f"s{i + 1}", True) for i, (name, points) in enumerate(_measured(run.measurements))
    ]
    return {
        "name": run.name,
        "loss": _markup(loss),
        "rate": _markup(rate),
        "measured": _markup(charts.lines(measured, x="step", y="validation, 0 to 1", bottom=0, top=1)),
        "measured_names": [s.name for s in measured],
        "times": _markup(charts.stack([(k, v) for k, v in run.times.items()], "training time")) if run.times else None,
        "strips": run.strips,
        "best": best,
        "last": run.steps[-1] if run.steps else None,
        "recipe": [(k, v) for k, v in run.recipe.items() if v not in ("", [], {}, ())],
    }


def _loss(steps: Sequence[Mapping[str, Any]]) -> list[charts.Series]:
    points = [
        (float(r["step"]), float(r.get("pixel_loss", r["loss"])))
        for r in steps
        if isinstance(r.get("loss"), int | float)
    ]
    window = max(1, len(points) // 40)
    values = np.array([p[1] for p in points])
    if not len(values):
        return []
    kernel = np.ones(window) / window
    smooth = np.convolve(np.pad(values, (window - 1, 0), mode="edge"), kernel, mode="valid")
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


def _under_way(run: Run, source: Path) -> list[str]:
    """Words for a run without a kept evaluation."""
    said = []
    if run.best:
        best = run.best
        said.append(f"The best mean IU so far is {words.percent(best['mean_iu'], 1)}, at step {best['step']}.")
    elif run.steps:
        said.append(
            "Nothing has been measured yet: the run has no validation split, or has not come to its first measurement."
        )
    else:
        said.append("The run has not taken its first step yet.")
    said.append(
        "No evaluation is kept in this run, so classes and pictures are not shown; "
        f"fullyconv evaluate {source.name} DATA --keep {source.name}/evaluation adds them."
    )
    return said
