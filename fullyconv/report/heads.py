"""What the page says of a network's further heads, and of how the network was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from markupsafe import Markup

import fullyconv.report.charts as charts
from fullyconv.evaluation.result import class_figures
from fullyconv.evaluation.statistics import Interval, counts, interval, resample
from fullyconv.report.collect import KeptEvaluation, label_address, named_image
from fullyconv.report.records import Training

__all__ = ["HeadImage", "HeadRow", "heads", "learned"]

SHOWN = 4  # predictions of each further head


@final
@dataclass(frozen=True)
class HeadRow:
    """A head's figures, 0..1 or NaN; of a further head also its classes and some predictions."""

    name: str
    figures: Mapping[str, float]
    bars: Markup | None = None
    images: Sequence[HeadImage] = ()


@final
@dataclass(frozen=True)
class HeadImage:
    name: str
    prediction: str  # a data: address


def heads(found: KeptEvaluation) -> list[HeadRow]:
    """Every head's figures where there are several, main head first; of the further ones also the classes and, from a
    kept evaluation, some predictions."""
    result = found.result
    if len(result.tables) == 1:
        return []
    rows = [HeadRow(h, result.figures(h)) for h in result.tables]
    return [rows[0], *(_further(row, found) for row in rows[1:])]


def _further(row: HeadRow, kept: KeptEvaluation) -> HeadRow:
    result, head = kept.result, row.name
    taxonomy = result.taxonomies[head]
    drawn = resample([counts(result, head)], result.average)[0] if result.images > 1 else None
    bars = []
    present = [(c.iu or 0.0, c) for c in class_figures(result.tables[head], taxonomy) if c.pixels]
    for iu, c in sorted(present, key=lambda pair: -pair[0]):
        found = interval(drawn.iu[:, c.id]) if drawn else Interval(None, None)
        note = f"{c.name}: IU {100 * iu:.1f}"
        bars.append(charts.Bar(c.name, iu, found.low, found.high, taxonomy.palette[c.id], note))
    names = [entry.name for entry in kept.analysis.gallery][:SHOWN]
    files = [(n, named_image(kept.place, f"predictions-{head}/{n}.png")) for n in names]
    return replace(
        row,
        bars=charts.bars(bars, f"IU of every class of the {head} head with its 95 % interval"),
        images=[HeadImage(name, label_address(file, taxonomy.palette)) for name, file in files if file.is_file()],
    )


def learned(training: Training | None) -> str:
    """How the network was learned, in a line; empty where its model does not say."""
    if training is None:
        return ""
    parts = [
        training.recipe or "settings of its own",
        f"{training.length} of {training.images} images" if training.length else "",
        f"inputs {', '.join(training.inputs)}",
        f"from {', then '.join(training.stages)}" if training.stages else "",
        f"weights {training.weights}" if training.weights else "",
        "trunk fixed" if training.frozen_trunk else "",
        *(
            f"{head} derived from {how.source}" if how.source is not None else f"{head} from {how.folder}"
            for head, how in training.heads.items()
        ),
    ]
    return "; ".join(part for part in parts if part)
