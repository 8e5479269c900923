"""`fullyconv experiment`: the paper's dense-prediction experiments, one table each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["experiment"]

experiment = typer.Typer(
    help="The paper's dense-prediction experiments: each prints a table.", no_args_is_help=True, rich_markup_mode=None
)
Json = Annotated[bool, typer.Option("--json", help="The rows as one JSON object.")]


@experiment.command("shift-and-stitch")
def shift_and_stitch_command(
    size: Annotated[int, typer.Option(help="Side of the square input in pixels.")] = 64,
    depth: Annotated[int, typer.Option(help="Most pooling layers: stride 2 ** depth.", min=1, max=5)] = 3,
    as_json: Json = False,
) -> None:
    """Shifted passes interlaced = the same network with its filters spread ("à trous"): the difference is 0."""
    from fullyconv.experiments import stitching

    print_rows(stitching(range(1, depth + 1), size), as_json)


@experiment.command("patch-sampling")
def patch_sampling_command(
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    split: Annotated[str, typer.Option(help="Which split to train on.")] = "train",
    model: Annotated[str, typer.Option(help="Network.")] = "fcn16s-squeezenet1_0",
    weights: Annotated[str, typer.Option(help="Its trunk's weights file.", show_default="random")] = "",
    keep: Annotated[str, typer.Option(help="Probabilities that a cell of the loss is kept.")] = "1,0.5,0.25",
    steps: Annotated[int, typer.Option(help="Training steps for each.", min=1)] = 60,
    batch: Annotated[int, typer.Option(help="Images a step at probability 1.", min=1)] = 2,
    size: Annotated[str, typer.Option(help="Crop, HxW.")] = "96x128",
    as_json: Json = False,
) -> None:
    """Training on sampled patches, as a mask on the loss: loss by step and by second for each probability."""
    from fullyconv.data import open_dataset
    from fullyconv.errors import UsageError
    from fullyconv.experiments import patch_sampling as run

    try:
        height, width = (int(n) for n in size.lower().split("x"))
        probabilities = [float(p) for p in keep.split(",")]
    except ValueError:
        raise UsageError(f"--size {size!r} must be HxW and --keep {keep!r} numbers with commas between.") from None
    if not all(0 < p <= 1 for p in probabilities) or min(height, width) < 32:
        raise UsageError("--keep needs probabilities above 0 and up to 1, --size at least 32x32.")
    dataset = open_dataset(data, split)
    print_rows(run(dataset, model, weights or None, probabilities, steps, batch, (height, width)), as_json)


@experiment.command("upper-bounds")
def upper_bounds_command(
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "val",
    factors: Annotated[str, typer.Option(help="Downsampling factors.")] = "128,64,32,16,8,4",
    as_json: Json = False,
) -> None:
    """Mean IU that predictions on a coarser grid cannot exceed, beside the paper's for PASCAL VOC."""
    from fullyconv.data import open_dataset
    from fullyconv.errors import UsageError
    from fullyconv.experiments import upper_bounds as run

    if not all(f.strip().isdecimal() and int(f) > 0 for f in factors.split(",")):
        raise UsageError(f"--factors {factors!r} must be whole numbers with commas between, such as 32,16,8.")
    print_rows(run(open_dataset(data, split), [int(f) for f in factors.split(",")]), as_json)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Rows of one shape as an aligned table on stdout."""
    import json

    if as_json:
        print(json.dumps({"rows": rows}))
        return
    cells = [list(rows[0]), *([_cell(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[c]) for line in cells) for c in range(len(cells[0]))]
    print("\n".join("  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)) for line in cells))


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
