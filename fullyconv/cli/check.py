"""`fullyconv check`: everything that is wrong with a data set, before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import MaxPixels
from fullyconv.terminal import progress_line

if TYPE_CHECKING:
    from fullyconv.doctor import Checked
    from fullyconv.doctor.summary import Summary

__all__ = ["check_command"]


def check_command(
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH; every split is checked.")],
    fix: Annotated[Path | None, typer.Option(help="Write a repaired copy into this new folder.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with cropped images of the findings.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="As training does by itself: images are not decoded.")] = False,
    max_pixels: MaxPixels = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Find everything that is wrong with a data set, say what to do, and what training on it will meet."""
    import json

    from fullyconv.doctor import examine
    from fullyconv.doctor.html import sheet
    from fullyconv.doctor.repair import repair
    from fullyconv.files import atomic_write
    from fullyconv.files.outputs import output_file

    if html:
        output_file(html, "a page of findings", b"<!doctype html")
    found = examine(data, fast=fast, progress=progress_line("checking", quiet))
    if html:
        atomic_write(html, sheet(found.findings, found.summary, data))
    repaired = repair(found.datasets, found.facts, found.findings, fix) if fix else None
    if as_json:
        answer: dict[str, Any] = {"findings": [f.to_json() for f in found.findings]}
        answer["summary"] = found.summary.to_json() if found.summary else None
        if repaired is not None:
            answer["repaired"] = repaired
        print(json.dumps(answer))
    else:
        print(findings_text(found))
        for what, count in (repaired or {}).items():
            print(f"{count} x {what}")
    if any(f.level == "error" for f in found.findings):
        raise typer.Exit(65)


def findings_text(found: Checked) -> str:
    """The findings by kind (the first five of each), and the summary, as lines."""
    from collections import defaultdict

    kinds: dict[str, list[Any]] = defaultdict(list)
    for f in found.findings:
        kinds[f.kind].append(f)
    lines: list[str] = []
    for kind, some in kinds.items():
        lines.append(f"{some[0].level}: {kind} ({len(some)})")
        lines += [f"  {f.message}" for f in some[:5]]
        lines += [f"  ... and {len(some) - 5} more (--json lists all)"] if len(some) > 5 else []
        lines.append(f"  -> {some[0].remedy}")
    errors = sum(f.level == "error" for f in found.findings)
    warnings = len(found.findings) - errors
    lines.append(f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    lines += [f"note: {note}" for note in dict.fromkeys(note for d in found.datasets for note in d.notes)]
    return "\n".join(lines + (summary_lines(found.summary) if found.summary else []))


_CLASSES = 50  # shown at most


def summary_lines(s: Summary) -> list[str]:
    """What training will meet, as lines."""
    size = [f"{h}x{w}" for h, w in (s.smallest, s.median, s.largest)]
    lines = [
        f"images: {', '.join(f'{n} in {split}' for split, n in s.images.items())}",
        f"sizes (HxW): {size[0]} to {size[2]}, median {size[1]}",
    ]
    if s.mean and s.std:
        lines.append(f"channel mean {[round(v, 1) for v in s.mean]}, std {[round(v, 1) for v in s.std]}")
    for head, table in s.heads.items():
        if table.pixels:
            lines.append(f"{head}: {len(table.classes)} classes, {table.ignored:.2%} of the pixels ignored")
            rows = list(zip(table.frequency, table.median_frequency_weights, table.classes, strict=True))
            shown = rows if len(rows) <= _CLASSES else sorted(rows, key=lambda row: -row[0])[: _CLASSES - 10]
            lines += [f"  {share:8.3%}  weight {weight:7.3f}  {name}" for share, weight, name in shown]
            lines += [f"  ... and {len(rows) - len(shown)} rarer ones (--json lists all)"] if shown != rows else []
    return [*lines, "what train takes: " + ", ".join(f"{k}={v}" for k, v in s.recipe.items())]
