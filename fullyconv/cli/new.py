"""`fullyconv new`: a recipe with comments, from what the data check found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import MaxPixels
from fullyconv.errors import DataError, printable
from fullyconv.terminal import progress_line, say

if TYPE_CHECKING:
    from fullyconv.doctor.summary import Summary

__all__ = ["new", "recipe_text"]

BEGINS = "# A recipe for "  # by which a file of ours is known, and may be written anew
CLASSES = 50  # listed at most
SMALL = 0.01  # share of the pixels below which a class is called small


def new(
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The recipe; NAME.toml here by default.", show_default=False)
    ] = None,
    max_pixels: MaxPixels = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Write a recipe for your data with comments: what was chosen, why, and what else may help."""
    from fullyconv import doctor, recipes
    from fullyconv.cli.train import data_name
    from fullyconv.files import atomic_write
    from fullyconv.files.outputs import output_file

    target = out or Path(f"{data_name(data)}.toml")
    output_file(target, "a recipe of fullyconv new", BEGINS.encode())
    found = doctor.examine(data, fast=True, progress=progress_line("checking", quiet))
    doctor.refuse_errors(found.findings)
    if found.summary is None:
        raise DataError(f"{printable(data)} holds no image whose size is known; fullyconv check says what is wrong.")
    text = recipe_text(data, target, found.summary)
    atomic_write(target, text.encode())
    recipes.read_recipe(target)  # what is written is what `train` takes
    if not quiet:
        warnings = sum(f.level == "warning" for f in found.findings)
        if warnings:
            say(f"{warnings} warnings about the data: fullyconv check {data} shows them.")
        say(f"train by it with: fullyconv train {data} --recipe {target}")
    print(target)


def recipe_text(data: str, target: Path, s: Summary) -> str:
    """The recipe as TOML with comments, each line of them below 100 columns where names are not longer."""
    return "\n".join(_lines(data, target, s)) + "\n"


def _lines(data: str, target: Path, s: Summary) -> Iterator[str]:

    sizes = ["x".join(map(str, size)) for size in (s.smallest, s.median, s.largest)]
    yield f"{BEGINS}{printable(data)}, written by `fullyconv new`; a # makes a line a comment."
    yield f"# Train by it: fullyconv train {printable(data)} --recipe {printable(target)}"
    yield "# Keys that are not here have the defaults of docs/train.md (`--print-config` shows all)."
    yield "#"
    yield f"# {', '.join(f'{n} images in {printable(split)}' for split, n in s.images.items())}; rows x columns:"
    same = sizes[0] == sizes[2]
    yield f"# all {sizes[0]}." if same else f"# from {sizes[0]} to {sizes[2]}, half of them up to {sizes[1]}."
    yield from _classes(s)
    yield ""
    yield "# --- the network: FCN-8s on a trunk whose ImageNet weights an installed package may bring"
    yield 'model = "fcn8s-efficientnet_lite0"'
    yield 'weights = "auto"  # or a file; "" learns from scratch'
    yield ""
    yield "# --- how long: a wall-clock budget, or epochs = 50"
    yield 'time = "30m"'
    yield ""
    yield "# --- images"
    yield f"crop = {list(s.recipe['crop'])}  # what most images hold, at most 512; [] takes whole images"
    yield f'batch_size = "auto"  # {s.recipe["batch_size"]} here, fewer where memory is short; or a number'
    yield "scale = [0.75, 1.5]  # narrower where all is seen from one distance"
    yield "flip = 0.5  # mirrored left to right; 0 where left and right mean something"
    yield "# flip_vertical = 0.5  # images that have no up: aerial, microscopy"
    yield "# turns = 0.75         # the same, quarter turns"
    yield "# photometric = 0.3    # light that changes"
    yield "# elastic = 8          # soft things: tissue, cloth"
    yield ""
    yield "# --- the loss"
    yield from _loss(s)
    yield ""
    yield "# --- the optimiser: usual values; raise lr only with a larger batch"
    yield "lr = 0.001"
    yield "seed = 0"


def _classes(s: Summary) -> Iterator[str]:
    """Every class with its share of the labelled pixels, the rarest last."""

    for head, table in s.heads.items():
        rows = sorted(zip(table.frequency, table.classes, strict=False), reverse=True)
        yield f"# {printable(head)}: {len(table.classes)} classes; share of the labelled pixels:"
        for share, name in rows[:CLASSES]:
            never = "  (never occurs: it cannot be learned)" if share == 0 else ""
            yield f"#   {share:8.3%}  {printable(name)}{never}"
        if len(rows) > CLASSES:
            yield f"#   ... and {len(rows) - CLASSES} rarer ones"


def _loss(s: Summary) -> Iterator[str]:
    shares = [f for table in s.heads.values() for f in table.frequency if f > 0]
    weights: Any = s.recipe["class_weights"]
    if len(shares) > 1:
        times = max(shares) / min(shares)
        more = f"{times:.0f} times the pixels of the smallest"
        yield f"# The largest class has {more}; above 20 times classes are weighted."
    yield f'class_weights = "{weights}"  # or "none", "median-frequency", or one number a class'
    if len(shares) == 2 or any(f < SMALL for f in shares):
        yield "# Small classes are what dice and pasted regions are for; measure before you believe it:"
    yield '# loss = "cross_entropy+0.5*dice"'
    yield "# cutmix = 0.5"
