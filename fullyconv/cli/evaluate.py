"""`fullyconv evaluate`: a model and labelled images in, figures out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.cli.options import Device, MaxMemory, MaxPixels, Precision, Tile
from fullyconv.errors import printable
from fullyconv.terminal import progress_line, say

if TYPE_CHECKING:
    from fullyconv.evaluation import Result
    from fullyconv.evaluation.result import ClassFigures
    from fullyconv.models import FCN
    from fullyconv.predict import Predictor
    from fullyconv.runtime.exported import ExportedNetwork

__all__ = ["device_for", "evaluate_command", "predictor", "table"]


def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model or run directory, or an exported file.")],
    data: Annotated[str, typer.Argument(help="Labelled images: PATH or kind:PATH.")],
    split: Annotated[
        str,
        typer.Option(
            help="Which split to measure; val by default, else what the run held out; all for everything.",
            show_default=False,
        ),
    ] = "",
    protocol: Annotated[
        str, typer.Option(help="native, paper, or resized:SIDE (shorter side, as peers do).")
    ] = "native",
    average: Annotated[str, typer.Option(help="Mean over classes 'present' in the truth, or 'all'.")] = "present",
    tta: Annotated[str, typer.Option(help="Average over flip, scales, or both: flip,scales.", show_default=False)] = "",
    tile: Tile = 0,
    max_memory: MaxMemory = "",
    precision: Precision = "auto",
    device: Device = "auto",
    unknown_classes: Annotated[
        str, typer.Option(help="Classes that the network lacks: refuse, missed (count as wrong) or ignored.")
    ] = "refuse",
    max_pixels: MaxPixels = 0,
    keep: Annotated[
        Path | None, typer.Option(help="Directory for result, predictions and what the report shows.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File for the result alone (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Measure a model: the paper's four figures, each class, and what was measured how."""
    import json

    from fullyconv.evaluation import evaluate as measure
    from fullyconv.evaluation.choice import images_to_measure
    from fullyconv.files import atomic_write
    from fullyconv.files.outputs import output_file

    if out:
        output_file(out, "an evaluation's result", b'{"format":')
    ready = predictor(model, device=device, tile=tile, max_memory=max_memory, precision=precision, quiet=quiet)
    dataset = images_to_measure(data, split, ready, model)
    line = progress_line("evaluating", quiet)
    for note in () if quiet else dataset.notes:
        say(note)
    variants = [v for v in tta.split(",") if v]
    how: dict[str, Any] = {"protocol": protocol, "average": average, "tta": variants, "unknown": unknown_classes}
    result = measure(ready, dataset, progress=line, keep=keep, **how)
    for head, words in result.about.get("classes", {}).items():
        say(f"{head}: {words}.")
    text = json.dumps(result.to_json(), allow_nan=False)
    if out:
        atomic_write(out, text.encode())
    print(text if as_json else table(result))


def predictor(
    model: str,
    *,
    device: str,
    tile: int,
    max_memory: str,
    precision: str = "auto",
    engine: str = "torch",
    quiet: bool = False,
) -> Predictor:
    """The predictor for a model or run directory, on a device, its tile given or chosen for a memory limit. engine:
    what computes a network (exported files are onnxruntime's)."""
    import sys

    from fullyconv import processor
    from fullyconv.errors import UsageError
    from fullyconv.predict import Predictor, open_network
    from fullyconv.predict.memory_limit import parse_size, tile_for
    from fullyconv.runtime.exported import ExportedNetwork, is_exported

    if tile < 0 or (tile and max_memory):
        raise UsageError("Give either --tile PIXELS or --max-memory, not both, and no negative tile.")
    where = device_for(model, device)
    if not is_exported(model):
        for note in (*processor.right_threads(), processor.numba_note()):
            if note and not quiet:
                say(note)
    network = open_network(model, where)
    if engine != "torch" and not isinstance(network, ExportedNetwork):
        network = _by_engine(network, engine, precision, quiet)
    budget = parse_size(max_memory) if max_memory else 0
    size = tile_for(network, budget) if budget else tile
    ready = Predictor(network, tile=size or None, precision=precision)
    if ready.chosen and not quiet:
        say(f"precision {ready.precision}: {ready.chosen}")
    if budget:
        print(f"tiles of {size} pixels (+ {ready.tiling['context']} around) for {max_memory}", file=sys.stderr)
    if ready.tiling["blended"]:
        print("this network's context is unbounded: overlapping tiles are blended, an approximation", file=sys.stderr)
    return ready


def _by_engine(network: FCN, engine: str, precision: str, quiet: bool) -> FCN | ExportedNetwork:
    """The network, or a file made of it, by what computes it sooner here; one line says which."""
    from fullyconv.exporting.quickest import choose_engine

    chosen, why = choose_engine(network, engine, precision, say=say)
    if not quiet:
        say(f"engine {why.engine}: {why.reason}")
    return chosen


def device_for(model: str, name: str) -> str:
    """cpu, cuda or cuda:N; auto is cuda where there is one. Exported files are run on the CPU."""
    from fullyconv.errors import UnknownName, UsageError
    from fullyconv.runtime.exported import is_exported

    if is_exported(model):
        if name not in ("auto", "cpu"):
            raise UsageError(f"An exported file is run on the CPU here, not on {name!r}; use --device cpu.")
        return "cpu"
    import torch

    kind, _, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UnknownName("device", name, ("auto", "cpu", "cuda"))
    count = torch.cuda.device_count()
    if kind == "auto":
        return "cuda" if count else "cpu"
    if kind == "cuda" and int(number or 0) >= count:
        raise UsageError(f"This machine has {count} CUDA devices, so no {name!r}; use --device cpu.")
    return name


def table(result: Result) -> str:
    """A result as text: the figures of every head, its classes, and how it was measured."""
    from fullyconv.evaluation import class_figures

    lines = []
    for head in result.tables:
        figures = result.figures(head)
        if len(result.tables) > 1:
            lines.append(f"[{head}]")
        lines += [
            f"{name.replace('_', ' ').replace(' iu', ' IU'):24}{_percent(value)}" for name, value in figures.items()
        ]
        lines += _floor(result, head)
        lines += ["", f"{'class':24}{'IU':>7}{'accuracy':>10}{'precision':>11}{'F1':>7}{'pixels':>14}"]
        lines += [_row(c) for c in class_figures(result.tables[head], result.taxonomies[head])]
        lines.append("")
    about, data = result.about, result.about["data"]
    means = "present in the truth" if about["average"] == "present" else about["average"]
    absent = [c.name for c in result.classes if not c.pixels]
    lines.append(
        f"{result.images} images of {data['name']}, split {data['split'] or 'all'}; protocol {about['protocol']}"
        f"{_ways(about)}, means over classes {means}; "
        f"{about['images_per_second']} images/s."
    )
    lines += _ground(result)
    if absent:
        lines.append(f"Not in the truth: {', '.join(absent)}.")
    return "\n".join(lines)


def _floor(result: Result, head: str) -> list[str]:
    """The mean IU and accuracy of answering one class everywhere, and whether the network is any better."""
    floor = result.floor(head)
    if floor.mean_iu != floor.mean_iu:
        return []
    low = f"always {printable(floor.name)}"
    lines = [f"{low[:23]:24}{_percent(floor.mean_iu)} mean IU, {_percent(floor.pixel_accuracy)} pixel accuracy"]
    if floor.near(result.figure("pixel_accuracy", head), result.figure("mean_iu", head)):
        lines.append(
            f"No better than answering {printable(floor.name)} everywhere: the network tells nothing apart here."
        )
    return lines


def _ground(result: Result) -> list[str]:
    """How large a pixel is on the ground, and each class's hectares in the truth and as answered."""
    ground = result.about.get("ground")
    if not ground:
        return []
    low, high = ground["metres"]
    some = "" if ground["images"] == result.images else f" ({ground['images']} of the images lie on a map)"
    lines = [f"A pixel is {low:.4g}{f' to {high:.4g}' if high > low else ''} m of ground{some}."]
    for head, areas in ground["hectares"].items():
        if len(ground["hectares"]) > 1:
            lines.append(f"[{head}]")
        lines.append(f"{'class':24}{'ha, truth':>14}{'ha, predicted':>16}")
        rows = zip(result.taxonomies[head].names, areas["truth"], areas["prediction"], strict=True)
        lines += [f"{printable(name)[:23]:24}{a:>14,.4g}{b:>16,.4g}" for name, a, b in rows]
    return lines


def _ways(about: Mapping[str, Any]) -> str:
    """What was not done plainly: augmentation, tiles, a smaller precision."""
    ways = [f"averaged over {' and '.join(about['tta'])}"] if about["tta"] else []
    if tile := about["tiling"]["tile"]:
        ways.append(f"tiles of {tile[0]}x{tile[1]}{' blended' if about['tiling']['blended'] else ''}")
    ways += [about["precision"]] if about["precision"] != "fp32" else []
    return "".join(f", {way}" for way in ways)


def _row(c: ClassFigures) -> str:
    figures = [_percent(value) for value in (c.iu, c.accuracy, c.precision, c.f1)]
    return f"{c.name[:23]:24}{figures[0]:>7}{figures[1]:>10}{figures[2]:>11}{figures[3]:>7}{c.pixels:>14,}"


def _percent(value: float | None) -> str:
    return "-" if value is None or value != value else f"{100 * value:.2f}"
