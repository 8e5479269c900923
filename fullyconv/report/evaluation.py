"""What the page shows of an evaluation: figures, classes, confusions, where errors lie, and images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fullyconv.report.charts as charts
import fullyconv.report.sentences as sentences
from fullyconv.evaluation.result import Result
from fullyconv.evaluation.statistics import Interval, Resampled, costly_pairs, counts, image_iu, interval, resample
from fullyconv.report.collect import address, error_map, label_address, named_image, outline
from fullyconv.report.heads import heads, learned

__all__ = ["FIGURES", "evaluation"]

FIGURES = {
    "mean_iu": ("Mean IU", "intersection over union, averaged over classes"),
    "pixel_accuracy": ("Pixel accuracy", "share of labelled pixels that are right"),
    "mean_accuracy": ("Mean accuracy", "recall, averaged over classes"),
    "frequency_weighted_iu": ("Frequency-weighted IU", "IU, every pixel counting the same"),
}
MATRIX = 30  # classes shown in the confusion matrix
LISTED = 1000  # images listed with their figures


def evaluation(result: Result, place: Path) -> dict[str, Any]:
    """What the page shows of `result`, whose images lie in `place`."""
    drawn = resample([counts(result)], result.average)[0] if result.images > 1 else None
    intervals = {key: interval(getattr(drawn, key)) if drawn else Interval(None, None) for key in FIGURES}
    tiles = [
        {"name": name, "what": what, "value": result.figure(key), "interval": intervals[key]}
        for key, (name, what) in FIGURES.items()
    ]
    rows = _class_rows(result, drawn)
    return {
        "summary": sentences.summary(result, intervals["mean_iu"]),
        "result": {
            "figures": tiles,
            "bars": _class_bars(rows),
            "classes": rows,
            "borders": any(r["f_score"] is not None for r in rows),
            "matrix": _matrix(result),
            "pairs": _pairs(result, place),
            "where": _where(result.analysis),
            "images": _images(result),
            "gallery": [_scene(g, place, result) for g in result.analysis.get("gallery", [])],
            "suspects": [_suspect(s, place, result) for s in result.analysis.get("suspects", [])],
            "about": _about(result),
            "heads": heads(result, place),
            "legend": [
                {"name": n, "colour": c} for n, c in zip(result.taxonomy.names, result.taxonomy.palette, strict=True)
            ],
        },
    }


def _class_rows(result: Result, drawn: Resampled | None) -> list[dict[str, Any]]:
    """Every class with its interval, share of the labelled pixels and, where they were kept, boundary figures."""
    border, labelled = result.analysis.get("border", {}), max(int(result.confusion.sum()), 1)
    unknown = [None] * len(result.taxonomy)
    f_scores, ious = (border.get(key, unknown) for key in ("f_scores", "ious"))
    return [
        {
            **c,
            "interval": interval(drawn.iu[:, c["id"]]) if drawn is not None else Interval(None, None),
            "share": c["pixels"] / labelled,
            "colour": result.taxonomy.palette[c["id"]],
            "f_score": f_scores[c["id"]],
            "boundary_iou": ious[c["id"]],
        }
        for c in result.per_class
    ]


def _class_bars(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The classes of the truth, best first."""
    items = []
    for r in sorted((r for r in rows if r["pixels"]), key=lambda r: -r["iu"]):
        low, high = r["interval"].low, r["interval"].high
        note = f"{r['name']}: IU {100 * r['iu']:.1f}"
        note += f", 95 % interval {100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
        items.append(charts.Bar(r["name"], r["iu"], low, high, r["colour"], note))
    return charts.bars(items, "IU of every class with its 95 % interval")


def _matrix(result: Result) -> dict[str, Any]:
    """Row shares of the confusion table, for the classes with the largest confusions when there are many."""
    table, names, palette = result.confusion, result.taxonomy.names, result.taxonomy.palette
    labelled = np.flatnonzero(table.sum(1))
    columns = sorted(_most_confused(table)) if len(labelled) > MATRIX else np.flatnonzero(table.sum(0) + table.sum(1))
    rows = []
    for i in (k for k in columns if table[k].any()):
        total = int(table[i].sum())
        cells = [
            {"share": table[i, j] / total, "same": i == j, "pixels": int(table[i, j]), "said": names[j]}
            for j in columns
        ]
        rows.append({"name": names[i], "colour": palette[i], "cells": cells})
    return {
        "rows": rows,
        "head": [{"name": names[j], "colour": palette[j]} for j in columns],
        "longest": max((len(names[j]) for j in columns), default=0),
        "left_out": len(labelled) - len(rows),
    }


def _most_confused(table: NDArray[np.int64]) -> set[int]:
    """As many classes as are shown: both sides of the largest confusion, of the next one, and so on."""
    off = table.copy()
    np.fill_diagonal(off, 0)
    chosen: set[int] = set()
    for cell in np.argsort(-off, axis=None, kind="stable"):
        pair = {int(k) for k in divmod(cell, len(table))}
        if len(chosen | pair) <= MATRIX:
            chosen |= pair
        if len(chosen) == MATRIX:
            break
    return chosen


def _pairs(result: Result, place: Path) -> list[dict[str, Any]]:
    """The costliest confusions, with a cropped example where the evaluation was kept."""
    names, palette = result.taxonomy.names, result.taxonomy.palette
    kept = {(p["truth"], p["said"]): p for p in result.analysis.get("pairs", [])}
    out = []
    for p in costly_pairs(result.confusion, result.average)[:12]:
        example = kept.get((p.truth, p.said))
        out.append(
            {
                **(_crop(example, place, result, p.truth, p.said) if example else {"image": None}),
                "truth": names[p.truth],
                "said": names[p.said],
                "share": p.share,
                "cost": p.cost,
                "colours": (palette[p.truth], palette[p.said]),
            }
        )
    return out


def _suspect(entry: Mapping[str, Any], place: Path, result: Result) -> dict[str, Any]:
    """A region whose label is doubted."""
    names, palette, (labelled, said) = (
        result.taxonomy.names,
        result.taxonomy.palette,
        (entry["labelled"], entry["said"]),
    )
    named = {"labelled": names[labelled], "said": names[said], "colours": (palette[labelled], palette[said])}
    return {**entry, **_crop(entry, place, result, labelled, said), **named}


def _crop(entry: Mapping[str, Any], place: Path, result: Result, labelled: int, said: int) -> dict[str, Any]:
    """A crop's images, with an outline around what is labelled one class and called the other."""
    files = {what: named_image(place, name) for what, name in entry["files"].items()}
    return {**_shown(entry, place, result), "outline": outline(files["label"], files["prediction"], labelled, said)}


def _scene(entry: Mapping[str, Any], place: Path, result: Result) -> dict[str, Any]:
    """One image as it was given, labelled, and as it is true, with the errors and the inputs besides the first."""
    files = {what: named_image(place, name) for what, name in entry["files"].items()}
    return {
        **entry,
        **_shown(entry, place, result),
        "further": {modality: address(named_image(place, file)) for modality, file in entry.get("inputs", {}).items()},
        "errors": error_map(files["label"], files["prediction"], result.taxonomy.ignore),
    }


def _shown(entry: Mapping[str, Any], place: Path, result: Result) -> dict[str, Any]:
    files, palette = (
        {what: named_image(place, name) for what, name in entry["files"].items()},
        result.taxonomy.palette,
    )
    return {
        "name": entry["name"],
        "image": address(files["image"]),
        "label": label_address(files["label"], palette),
        "prediction": label_address(files["prediction"], palette),
    }


def _images(result: Result) -> dict[str, Any] | None:
    """Every image's own figures, the worst first, and how the mean IU is spread over them."""
    rows = []
    for image in result.per_image:
        table = image.table(result.head, len(result.taxonomy))
        if table.any():
            rows.append({"name": image.name, "iu": image_iu(table), "accuracy": np.trace(table) / table.sum()})
    if len(rows) < 2:
        return None
    rows.sort(key=lambda r: r["iu"])
    figures = [r["iu"] for r in rows]
    low, middle, high = np.percentile(figures, (10, 50, 90))
    return {
        "rows": rows[:LISTED],
        "left_out": max(0, len(rows) - LISTED),
        "low": low,
        "middle": middle,
        "high": high,
        "chart": charts.histogram(figures, x="mean IU of an image", y="images"),
    }


def _where(analysis: Mapping[str, Any]) -> dict[str, Any] | None:
    """Charts of where errors lie: along borders, by region size, by confidence."""
    if "border" not in analysis:
        return None
    border, calibration = analysis["border"], analysis["calibration"]
    table = np.asarray(border["pixels"]).sum(0)
    rate = [float(table[i, 1] / table[i].sum()) if table[i].sum() else None for i in (1, 0)]
    both = [charts.Bar("along borders", rate[0]), charts.Bar("inside regions", rate[1])]
    bins = [(n, r, s) for (n, r), s in zip(calibration["bins"], calibration["confidence"], strict=True)]
    return {
        "borders": charts.bars(both, "share of wrong pixels along borders and inside regions"),
        "rings": _rings(border["rings"]) if "rings" in border else None,  # evaluations kept before they were counted
        "half_width": border["half_width"],
        "f_score": border.get("f_score"),
        "iou": border.get("iou"),
        "thickness": border.get("thickness"),
        "near": float(table[1].sum() / max(int(table.sum()), 1)),
        "sizes": _sizes(analysis["sizes"]),
        "calibration": charts.reliability(bins),
        "calibration_error": calibration["error"],
    }


def _rings(rings: Mapping[str, Any]) -> Any:
    """Share of wrong pixels by distance from the nearest border."""
    limits, rows = rings["limits"], rings["pixels"]
    names = [f"{low}–{high} px" for low, high in itertools.pairwise((0, *limits))]
    total = sum(n for n, _ in rows) or 1
    items = [
        charts.Bar(name, wrong / n if n else None, note=f"{name}: {100 * n / total:.1f} % of the labelled pixels")
        for name, (n, wrong) in zip((*names, f"over {limits[-1]} px"), rows, strict=True)
    ]
    return charts.bars(items, "share of wrong pixels by distance from the nearest border")


def _sizes(sizes: Mapping[str, Any]) -> Any:
    """Share of labelled regions that are found, by their size."""
    limits = sizes["limits"]
    items = [
        charts.Bar(
            f"{100 * low:g}–{100 * high:g}\u202f% ({n:,})",
            found / n if n else None,
            note=f"{n:,} regions, {100 * wrong / max(pixels, 1):.1f} % of their pixels wrong",
        )
        for (low, high), (n, pixels, wrong, found) in zip(itertools.pairwise(limits), sizes["regions"], strict=True)
    ]
    return charts.bars(items, "share of regions found, by size")


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
        *(("Classes", f"{head}: {words}") for head, words in a.get("classes", {}).items()),
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
