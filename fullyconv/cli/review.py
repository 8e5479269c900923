"""`fullyconv review`: labels that are probably wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import MaxPixels
from fullyconv.errors import UsageError
from fullyconv.terminal import progress_line, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fullyconv.curation.doubted_labels import Doubt
    from fullyconv.curation.sheet import Card
    from fullyconv.data.base import Dataset

__all__ = ["review_command"]

_SIDE = 260  # pixels of a crop
_AROUND = 0.4  # of the box, shown on each side


def review_command(
    model: Annotated[str, typer.Argument(help="Run or model directory.")],
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the page, the findings and corrections.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many regions to show.")] = 60,
    split: Annotated[str, typer.Option(help="Which split to review.")] = "train",
    folds: Annotated[
        int, typer.Option(help="Learn the score layers so often without the images judged; 0: judge as it is.")
    ] = 5,
    accept: Annotated[
        str, typer.Option(help="Write copies with these findings corrected, such as 1,4,7-9.", show_default=False)
    ] = "",
    max_pixels: MaxPixels = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The files written as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
) -> None:
    """Show the regions of labels that are probably wrong; write accepted corrections as copies."""
    import json

    from fullyconv.curation.corrections import keep, parse_numbers, write_corrections
    from fullyconv.curation.doubted_labels import doubts
    from fullyconv.curation.sheet import page
    from fullyconv.data import open_dataset
    from fullyconv.files.outputs import Outputs
    from fullyconv.predict import Predictor, open_network

    if folds < 0 or folds == 1:
        raise UsageError(f"--folds {folds} leaves nothing to learn from; give 2 or more, or 0 to judge as it is.")
    numbers = parse_numbers(accept) if accept else set()
    dataset = open_dataset(data, split)
    if numbers:
        written = write_corrections(numbers, dataset, out)
    else:
        plan = Outputs(out, dataset.files)
        sheet = plan.claim("index.html")
        lines: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            line = lines.setdefault(what, progress_line(what, quiet))
            if line:
                line(done, total)

        ready = Predictor(open_network(model))
        found, _ = doubts(ready.model, dataset, folds=folds, most=count, progress=progress)
        file = keep(found, dataset, out, ready.backend.identity())
        message = (
            "The network learned from these labels"
            if folds == 0
            else f"Score layers were learned in {folds} folds, "
            "each without the images it judges; the trunk has seen them"
        )
        order = (
            "the gravest first: area, how much surer the network is of another class, how seldom the two are confused"
        )
        facts = [
            f"{len(found)} regions in {len(dataset)} images, {order}.",
            f"{message}. To take corrections over as copies: the same command with --accept 1,4,7-9.",
        ]
        legend = list(zip(dataset.taxonomy.names, dataset.taxonomy.palette, strict=True))
        text = page(f"Labels to look at: {dataset.root.name}", facts, _cards(found, dataset), legend, "30rem")
        written = [plan.write(sheet, text), file]
        if not quiet:
            say(f"{len(found)} regions are doubted.")
    print(json.dumps({"files": [str(p) for p in written]}) if as_json else "\n".join(map(str, written)))


def _cards(found: Sequence[Doubt], dataset: Dataset) -> list[Card]:
    """Crop, label, and what is proposed, side by side."""
    import numpy as np

    from fullyconv.curation.sheet import Card
    from fullyconv.drawing import overlay, shrunk, viewable

    names, palette = dataset.taxonomy.names, dataset.taxonomy.palette
    cards = []
    for n, doubt in enumerate(found, 1):
        s, record = doubt.suspect, dataset.records[doubt.record]
        labels = dataset.read_labels(record, next(iter(dataset.taxonomies)))
        proposed = labels.copy()
        height, width = s.inside.shape
        proposed[s.top : s.top + height, s.left : s.left + width][s.inside] = s.proposed[s.inside]
        by = round(_AROUND * max(height, width)) + 8
        part = (slice(max(0, s.top - by), s.top + height + by), slice(max(0, s.left - by), s.left + width + by))
        image = viewable(dataset.image(doubt.record))[part]
        shown = [
            ("image", np.ascontiguousarray(image)),
            ("label", overlay(image, labels[part], palette)),
            ("proposal", overlay(image, proposed[part], palette)),
        ]
        cards.append(
            Card(
                f"{n}. {names[s.labelled]} → {names[s.predicted]}",
                [(what, shrunk(crop, _SIDE, smooth=True)) for what, crop in shown],
                [f"{record.name}, row {s.top}, column {s.left}: {s.area} pixels, margin {100 * s.margin:.0f} %"],
            )
        )
    return cards
