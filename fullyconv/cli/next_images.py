"""`fullyconv next`: which images to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fullyconv.cli.options import Device, MaxPixels
from fullyconv.errors import MissingInput, UsageError, printable
from fullyconv.terminal import progress_line, say

if TYPE_CHECKING:
    from fullyconv.curation.queue import Suggestion

__all__ = ["next_command"]

_THUMBNAIL = 320  # pixels


def next_command(
    model: Annotated[str, typer.Argument(help="Model or run directory.")],
    folder: Annotated[Path, typer.Argument(help="Folder of images; those that the run learned from are left out.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many to choose.")] = 20,
    labelled: Annotated[
        list[str] | None,
        typer.Option(help="Images labelled elsewhere, PATH or kind:PATH: what looks like them is left for later."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Page to write (HTML) with each image and the reason.")
    ] = None,
    device: Device = "auto",
    max_pixels: MaxPixels = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The list with figures as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")] = False,
) -> None:
    """Choose the images to label next: unlike what is labelled first, then what the network is unsure of."""
    import json

    from fullyconv.cli.evaluate import device_for
    from fullyconv.curation.queue import suggest
    from fullyconv.data import open_dataset
    from fullyconv.files import atomic_write
    from fullyconv.files.outputs import output_file
    from fullyconv.predict import open_network, refuse_untrained
    from fullyconv.predict.sources import SUFFIXES, images_in

    if not folder.is_dir():
        raise MissingInput(f"{printable(folder)} is no folder; give the folder of the images to choose from.")
    if out and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{printable(out)} is to be a page for a browser; name it {printable(out.name)}.html.")
    listed = images_in(folder, SUFFIXES, out.parent if out else Path("."))
    if out:
        output_file(out, "a page of images", b"<!doctype html", listed.files)
    if (note := listed.note(folder)) and not quiet:
        say(f"note: {note}")
    new, learned = _parted(model, folder, listed.files)
    elsewhere = []
    for spec in labelled or []:
        known = open_dataset(spec, "all")
        known.refuse_windows("--labelled")
        elsewhere += [next(iter(r.inputs.values())) for r in known.records if r.inputs]
    if not new:
        raise MissingInput(f"The run learned from all {len(learned)} images of {printable(folder)}; give new ones.")
    network = open_network(model, device_for(model, device))
    refuse_untrained(network)  # type: ignore[arg-type]
    chosen, notes = suggest(network, new, [*learned, *elsewhere], count, progress=progress_line("looking at", quiet))
    for note in () if quiet else notes:
        say(f"note: {note}")
    facts = f"{len(chosen)} of {len(new)} images; {len(learned) + len(elsewhere)} are labelled"
    if not quiet:
        say(facts + ".")
    if out:
        atomic_write(out, _page(folder, chosen, facts, model))
    if as_json:
        keys = ("unsure", "stands_for", "reason")
        rows = [{"image": str(s.image), **{key: getattr(s, key) for key in keys}} for s in chosen]
        print(json.dumps({"images": rows, "page": str(out) if out else None}))
    else:
        print("\n".join(str(s.image) for s in chosen))


def _parted(model: str, folder: Path, files: list[Path]) -> tuple[list[Path], list[Path]]:
    """(images that are new to the run, images that it learned from), by their content."""
    from fullyconv.data.base import Record
    from fullyconv.data.splits import kept_in
    from fullyconv.files.outputs import safe_name

    kept = kept_in(model)
    if kept is None:
        return files, []
    names = [safe_name(f.relative_to(folder).with_suffix("").as_posix()) for f in files]
    learned = [f for f, n in zip(files, names, strict=True) if kept.place(Record(n, {"rgb": f})) == "learned"]
    return [f for f in files if f not in set(learned)], learned


def _page(folder: Path, chosen: list[Suggestion], facts: str, model: str) -> bytes:
    from fullyconv.curation.sheet import Card, page
    from fullyconv.drawing import shrunk
    from fullyconv.images import read_image

    cards = [
        Card(
            f"{n}. {s.image.relative_to(folder).as_posix()}",
            [("", shrunk(read_image(s.image), _THUMBNAIL, smooth=True))],
            [s.reason],
        )
        for n, s in enumerate(chosen, 1)
    ]
    order = "In this order: what stands for the most that is unlike the labelled, of alike ones the most doubted."
    return page(f"Label these next: {folder.name}", [f"{facts}. {order}", f"Chosen by {model}."], cards)
