"""`fullyconv models` lists the networks, `fullyconv info` shows one: every layer's size, stride, offset and field."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fullyconv.models.fcn import FCN

__all__ = ["info", "models"]

GRAMMAR = (
    "Names: fcn{32,16,8,4}s[-pyramid|-atonce|-learned][-fixed]-TRUNK[-rgbd|-depth|-hha|-rgb-hha|-bandsN]; "
    "TRUNK is one above or timm:NAME."
)


def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """List the networks of the paper and the trunks: parameters, receptive field, stride, crops, source."""
    import json

    rows = [_row(name) for name in _listed()]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'network':26}{'heads':>10}{'parameters':>13}{'field':>7}{'stride':>8}{'crops':>12}  source")
    for r in rows:
        crops = "/".join(str(c) for c in r["crops"])
        print(
            f"{r['name']:26}{'+'.join(str(k) for k in r['heads'].values()):>10}{r['parameters']:>13,}"
            f"{r['field'] or 'all':>7}{r['stride']:>8}{crops:>12}  {r['source']}"
        )
    print(GRAMMAR)


def _listed() -> list[str]:
    """The paper's networks, then the finest network of every trunk."""
    from fullyconv.models import NETWORKS, TRUNKS

    return [*NETWORKS, *(f"fcn{16 if t.startswith('squeezenet') else 8}s-{t}" for t in TRUNKS if t != "vgg16_conv")]


def _row(name: str) -> dict[str, Any]:
    import math

    import torch

    from fullyconv.models import create, parse

    with torch.device("meta"):  # shapes and grids, no memory
        model = create(name)
    g = model.geometry(1, 1)
    field = max(m.field for m in g.taps.values())
    return {
        "name": name,
        "heads": model.heads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "field": None if math.isinf(field) else int(field),
        "stride": g.stride,
        "crops": [s.crop for s in g.skips.values()] + [g.crop],
        "kernel": g.kernel,
        "border": g.border,
        "source": parse(name).source.replace("grammar", next(iter(model.streams.values())).trunk.source),  # type: ignore[union-attr, arg-type]
    }


def info(
    name: Annotated[
        str,
        typer.Argument(
            help="A network by name, a model or run directory, an exported file; none: the machine.",
            show_default=False,
        ),
    ] = "",
    size: Annotated[str, typer.Option(help="Image size, rows x columns, such as 500x500.")] = "500x500",
    classes: Annotated[int, typer.Option(help="Classes, where a name leaves them open.")] = 21,
    batch: Annotated[int, typer.Option(help="Images at a time, for the costs.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda, for the costs.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show a network at a size: every layer's output, stride, offset and receptive field, and what it costs. Without a
    name: what this machine offers."""
    import json

    if not name:
        from fullyconv.cli.machine_report import print_machine

        print_machine(as_json)
        return
    from fullyconv.runtime.exported import is_exported

    if is_exported(name):
        from fullyconv.cli.exported_files import print_exported as show_exported

        show_exported(name, as_json)
        return
    height, width = _size(size)
    model = _network(name, classes)
    layers = list(_layers(model, height, width))
    g = model.geometry(height, width)
    costs = _costs(model, height, width, batch, device)
    if as_json:
        last = {"stride": g.stride, "offset": g.offset, "kernel": g.kernel, "crop": g.crop, "border": g.border}
        print(
            json.dumps(
                {"name": model.name, "layers": layers, "last_upsampling": last, "halo": _finite(g.halo), **costs}
            )
        )
        return
    print(f"{model.name}, image {height}x{width}, {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"{'layer':34}{'kind':20}{'channels':>9}{'size':>12}{'stride':>8}{'offset':>9}{'field':>8}")
    for la in layers:
        where = f"{la['size'][0]}x{la['size'][1]}"
        print(
            f"{la['name']:34}{la['kind']:20}{la['channels'] or '':>9}{where:>12}{la['stride']:>8g}{la['offset']:>9g}"
            f"{'all' if la['field'] is None else format(la['field'], 'g'):>8}"
        )
    for tap, skip in g.skips.items():
        print(f"skip from stride {tap}: scores upsampled x{skip.factor}, finer scores cropped at {skip.crop}")
    print(
        f"last upsampling: stride {g.stride}, kernel {g.kernel}, crop {g.crop:g}, border {g.border}; "
        f"cell i of the coarse scores is centred at {float(model.fused.stride):g} i {float(model.fused.offset):+g}"
    )
    print("context of a tile: " + ("unbounded" if _finite(g.halo) is None else f"{g.halo:g} pixels on each side"))
    if not g.exact:
        print("the graph could not be traced: offsets are measured, not proven")
    for key, value in costs.items():
        print(f"{key.replace('_', ' ')}: {value}")


def _finite(value: float) -> float | None:
    import math

    return None if math.isinf(value) else value


def _size(text: str) -> tuple[int, int]:
    from fullyconv.errors import UsageError

    rows, x, columns = text.lower().partition("x")
    if not (x and rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise UsageError(f"--size {text!r} is no size; write rows x columns, such as 360x480.")
    return int(rows), int(columns)


def _network(name: str, classes: int) -> FCN:
    import torch

    from fullyconv.models import NETWORKS, create, load

    if Path(name).is_dir():
        return load(name)
    if "timm:" in name:  # timm's layers compute while they are built
        return create(name, classes)
    with torch.device("meta"):
        return create(name) if name in NETWORKS else create(name, classes)


def _layers(model: FCN, height: int, width: int) -> Any:
    """Every layer of the first stream's trunk as a dict."""
    from fullyconv.models.trace import CannotTrace

    trunk: Any = next(iter(model.streams.values())).features
    try:
        traced = trunk.trace()
    except CannotTrace:
        return
    maps, sizes = traced.maps(), traced.sizes(height, width)
    for step in traced.steps:
        m = maps[step.name]
        yield {
            "name": step.name,
            "kind": step.kind,
            "channels": step.channels,
            "size": list(sizes[step.name]),
            "stride": float(m.stride),
            "offset": float(m.offset),
            "field": _finite(m.field),
        }


def _costs(model: FCN, height: int, width: int, batch: int, device: str) -> dict[str, Any]:
    """What prediction and a training step cost, estimated before anything runs (`cost.estimate`)."""
    from fullyconv.cost import estimate

    found = {}
    for what, training in (("prediction", False), ("training_step", True)):
        cost = estimate(model, height, width, batch, training=training, device=device)
        found[f"{what}_gflop"] = round(cost.flops / 1e9, 1)
        found[f"{what}_peak_mib"] = round(cost.peak_bytes / 2**20)
    return found
