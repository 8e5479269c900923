"""What the page says of a network's further heads, and of how the network was learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fullyconv.report.charts as charts
from fullyconv.evaluation.result import Result, class_figures
from fullyconv.evaluation.statistics import Interval, counts, interval, resample
from fullyconv.report.collect import label_address, named_image

__all__ = ["heads", "learned"]

SHOWN = 4  # predictions of each further head


def heads(result: Result, place: Path) -> list[dict[str, Any]]:
    """Every head's figures where there are several, main head first; of the further ones also the classes and, from a
    kept evaluation, some predictions."""
    if len(result.tables) == 1:
        return []
    rows: list[dict[str, Any]] = [{"name": h, **result.figures(h), "bars": None, "images": []} for h in result.tables]
    for row in rows[1:]:
        row |= _further(result, str(row["name"]), place)
    return rows


def _further(result: Result, head: str, place: Path) -> dict[str, Any]:
    taxonomy = result.taxonomies[head]
    drawn = resample([counts(result, head)], result.average)[0] if result.images > 1 else None
    bars = []
    for c in sorted((c for c in class_figures(result.tables[head], taxonomy) if c["pixels"]), key=lambda c: -c["iu"]):
        found = interval(drawn.iu[:, c["id"]]) if drawn else Interval(None, None)
        note = f"{c['name']}: IU {100 * c['iu']:.1f}"
        bars.append(charts.Bar(c["name"], c["iu"], found.low, found.high, taxonomy.palette[c["id"]], note))
    names = [entry["name"] for entry in result.analysis.get("gallery", [])][:SHOWN]
    files = [(n, f) for n in names if (f := named_image(place, f"predictions-{head}/{n}.png")).is_file()]
    return {
        "bars": charts.bars(bars, f"IU of every class of the {head} head with its 95 % interval"),
        "images": [
            {"name": name, "prediction": label_address(file, taxonomy.palette)}
            for name, file in files
            if file.is_file()
        ],
    }


def learned(training: Mapping[str, Any]) -> str:
    """How the network was learned, in a line; empty where its model does not say."""
    if not training:
        return ""
    stages = ", then ".join(training.get("from", ()))
    parts = [
        str(training.get("recipe") or "settings of its own"),
        f"{training['length']} of {training['images']} images" if training.get("length") else "",
        f"inputs {', '.join(training.get('inputs', ()))}",
        f"from {stages}" if stages else "",
        f"weights {training['weights']}" if training.get("weights") else "",
        "trunk fixed" if training.get("frozen_trunk") else "",
        *(_added(head, how) for head, how in (training.get("heads") or {}).items()),
    ]
    return "; ".join(part for part in parts if part)


def _added(head: str, how: Mapping[str, Any]) -> str:
    return f"{head} derived from {how['from']}" if "from" in how else f"{head} from {how.get('folder')}"
