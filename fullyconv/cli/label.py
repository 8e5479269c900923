"""`fullyconv label`: proposals, strokes and learning on a local page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fullyconv.cli.options import MaxPixels

__all__ = ["label_command"]


def label_command(
    model: Annotated[
        str, typer.Argument(help="Run or model directory that proposes, or a network's name to begin without.")
    ],
    images: Annotated[str, typer.Argument(help="Folder of images, or labelled ones of any kind: PATH or kind:PATH.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder that is written; labelled/NAME by default.", show_default=False),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Names of the classes, comma between; else those of the labels or the network.")
    ] = "",
    runs: Annotated[Path, typer.Option(help="Folder of the runs that are trained in the background.")] = Path("runs"),
    train_minutes: Annotated[
        float, typer.Option(min=0, help="Of the whole training after Learn; 0: score layers alone.")
    ] = 10.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0: any free one.")] = 8001,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    rank: Annotated[bool, typer.Option(help="Order the images by what to label next, as `next` does.")] = True,
    max_pixels: MaxPixels = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No notes.")] = False,
) -> None:
    """Label images on a local page: correct what the network proposes, let it learn, label on."""
    from fullyconv.data import parse_spec
    from fullyconv.errors import MissingInput, UsageError, printable
    from fullyconv.files.outputs import safe_name
    from fullyconv.labelling.images import open_images
    from fullyconv.labelling.page_server import run_labelling_server
    from fullyconv.labelling.project import Project, chosen_classes
    from fullyconv.labelling.rounds import Settings
    from fullyconv.terminal import say

    names = tuple(n.strip() for n in classes.split(",")) if classes else ()
    if len(names) == 1 or "" in names:
        raise UsageError(f"--classes {classes!r} names no two classes; write --classes background,leaf.")
    if not Path(model).is_dir():
        if Path(model).exists() or "/" in model:
            raise MissingInput(f"{printable(model)} is no run or model directory; give one, or the name of a network.")
        from fullyconv.labelling.page_network import require_network

        require_network(model)
    place = out or Path("labelled", safe_name(parse_spec(images)[1].resolve().name or "images"))
    found = open_images(images, place)
    taxonomy, why = chosen_classes(names, place, found.taxonomy, model)
    project = Project(found, place, taxonomy)
    if not quiet:
        for note in (*found.notes, *project.notes, why):
            say(f"note: {note}")
        say(
            f"{len(project.photos)} images; label maps go to {place}. Every stroke is on the disk at once; Ctrl-C ends."
        )
    run_labelling_server(
        project,
        Settings(model, runs, train_minutes, rank=rank),
        port,
        lambda address: print(address, flush=True),
        browse,
    )
    if not quiet:
        count = len(project.labelled())
        say(f"{count} images are labelled in {place}: fullyconv train {place}")
