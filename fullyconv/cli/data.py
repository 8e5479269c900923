"""`fullyconv data`: converting, downloading and making data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["data"]

data = typer.Typer(
    name="data",
    help="Convert, download or make a data set.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@data.command("convert")
def convert_data_command(
    source: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder to write.")],
    tool: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="TOOL",
            show_default=False,
            help="Write what an annotation tool opens: labelme, cvat, labelstudio, coco, coco-polygons or voc.",
        ),
    ] = "",
    split: Annotated[list[str] | None, typer.Option(help="A split to write; again for more. Default: all.")] = None,
    inputs: Annotated[str, typer.Option(help="Modalities to write, such as rgb,depth.")] = "",
    option: Annotated[list[str] | None, typer.Option("--set", help="An option of the kind: key=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="{split: images} as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Write any data set as plain folders: SPLIT/images, SPLIT/labels (index PNG), classes.txt."""
    import json

    from fullyconv.annotating.data_sets import convert_annotations
    from fullyconv.data import parse_options
    from fullyconv.data.corpora.conversion import convert_dataset as write
    from fullyconv.errors import UsageError
    from fullyconv.terminal import progress_line, say

    names = [n.strip() for n in inputs.split(",") if n.strip()] or None
    progress = progress_line("converting", quiet)
    options: dict[str, Any] = {"splits": split, "progress": progress, **parse_options(option or [])}
    if tool:
        if names:
            raise UsageError("--as writes the images alone; leave out --inputs.")
        counts, notes = convert_annotations(source, out, tool, **options)
        for note in () if quiet else notes:
            say(f"note: {note}")
    else:
        counts = write(source, out, inputs=names, **options)
    if as_json:
        print(json.dumps(counts))
    else:
        for name, count in counts.items():
            print(f"{out}: {name}: {count} images")


@data.command("cut")
def cut_command(
    source: Annotated[Path, typer.Argument(help="Folder of scenes: images/ beside labels/, or rasters with --labels.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder to write: train/ and val/.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label rasters or polygons: a folder, or one file for all.")
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels along the edge of a window.")] = 512,
    val: Annotated[float, typer.Option(help="Share of the windows that is held out, by whole blocks of ground.")] = 0.2,
    margin: Annotated[int, typer.Option(help="Pixels of ground between train and val.")] = 64,
    least: Annotated[float, typer.Option(help="Share of a window that must be measured and labelled.")] = 0.05,
    field: Annotated[str, typer.Option(help="The field of the polygons that is the class.", show_default=False)] = "",
    outside: Annotated[str, typer.Option(help='Class of ground in no polygon, or "ignore".')] = "background",
    seed: Annotated[int, typer.Option(min=0, help="Another seed holds out other ground.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Windows, hectares and notes as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
) -> None:
    """Cut scenes (GeoTIFF, VRT) and their label rasters or polygons into a data set to train on."""
    import json
    from dataclasses import asdict

    from fullyconv.rasters.cutting import cut_scenes
    from fullyconv.rasters.ground_windows import CutOptions
    from fullyconv.terminal import progress_line, say

    options = CutOptions(size, val, margin, least, seed, field, outside)
    found = cut_scenes(source, out, options, labels, progress_line("cutting", quiet))
    for note in () if quiet else found.notes:
        say(f"note: {note}")
    if as_json:
        print(json.dumps(asdict(found)))
        return
    if found.resolution is not None:
        low, high = (f"{m:.3g}" for m in found.resolution)
        print(f"{out}: ground resolution {low}{f' to {high}' if low != high else ''} m")
    for split, count in sorted(found.windows.items()):
        areas = ", ".join(f"{name} {area:.3g} ha" for name, area in found.hectares.get(split, {}).items())
        print(f"{out}: {split}: {count} windows" + (f" ({areas})" if areas else ""))


@data.command("download")
def download_command(
    name: Annotated[str, typer.Argument(help="voc2012 voc2011 voc2010 voc2007 sbd camvid ade20k")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="New folder (default: NAME).")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the archive in FOLDER.download.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fetch a public data set by https, check it where its sha256 is published, and unpack it safely."""
    import sys

    from fullyconv.data.corpora.download import SOURCES, fetch_corpus

    folder = fetch_corpus(name, out or Path(name), keep=keep, progress=None if quiet else _bytes_line())
    source = SOURCES[name]
    if source.sha256 is None:
        print(f"{name}: no sha256 is published for it; https alone vouches for these bytes.", file=sys.stderr)
    print(f"{name}: terms: {source.terms}", file=sys.stderr)
    print(f"{source.kind}:{folder}")


@data.command("scenes")
def scenes(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    train: Annotated[int, typer.Option(min=0, help="Training scenes.")] = 200,
    val: Annotated[int, typer.Option(min=0, help="Validation scenes.")] = 50,
    height: Annotated[int, typer.Option(min=8, help="Rows.")] = 120,
    width: Annotated[int, typer.Option(min=8, help="Columns.")] = 160,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same files.")] = 0,
) -> None:
    """Make procedural street scenes: images, depth, and semantic and geometric labels."""
    from fullyconv import scenes as procedural

    print(f"folder:{procedural.write_scenes(out, train=train, val=val, size=(height, width), seed=seed)}")


def _bytes_line() -> Any:
    """Progress in MB on stderr: rewritten on a terminal, else a line every tenth of the way."""
    import sys

    from fullyconv.terminal import rewrite, say

    live, last = sys.stderr.isatty(), -1

    def line(done: int, total: int | None) -> None:
        nonlocal last
        tenth = done * 10 // total if total else done >> 26
        if live or tenth != last:
            text = f"{done / 1e6:.1f} MB" + (f" of {total / 1e6:.1f}" if total else "")
            if live:
                rewrite(text, last=done == total)
            else:
                say(text)
        last = tenth

    return line
