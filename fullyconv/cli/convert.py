"""`fullyconv convert`: a foreign weights file -> a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fullyconv.taxonomy import Taxonomy

__all__ = ["convert_command", "parse_heads"]


def convert_command(
    file: Annotated[Path, typer.Argument(help=".caffemodel, pytorch-fcn .pth, or torchvision state dict.")],
    model: Annotated[str, typer.Option("--model", help="Network: voc-fcn8s, siftflow-fcn16s, fcn8s-vgg16, ...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model directory to write.")],
    classes: Annotated[int, typer.Option(help="Classes of its one head.", show_default="the network's")] = 0,
    heads: Annotated[
        str, typer.Option(metavar="NAME=K,...", help="Classes of several heads: semantic=33,geometric=3.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The load report as one JSON object.")] = False,
) -> None:
    """Read released Caffe weights (or their PyTorch twins) without Caffe and keep them as a model directory."""
    import json
    import sys
    from dataclasses import asdict

    from fullyconv.errors import UsageError
    from fullyconv.models.released import convert as read

    if classes and heads:
        raise UsageError("--classes and --heads say the same thing twice; give one of them.")
    if file.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out} holds {file}, which would be replaced with it; name another directory with -o.")
    network = read(file, model, classes or None, parse_heads(heads) or None)
    for head, k in network.heads.items():
        network.taxonomies[head] = published_taxonomy(model, head, k) or network.taxonomies[head]
    network.save_pretrained(out)
    if network.untrained:
        print("note: the file holds no scores, so they start at zero; train before use.", file=sys.stderr)
    if as_json:
        assert network.report is not None
        print(json.dumps({**asdict(network.report), "directory": str(out), "untrained": network.untrained}))
    else:
        print(network.report, f"{out}", sep="\n")


def parse_heads(text: str) -> dict[str, int]:
    """ "semantic=33,geometric=3" as {name: classes}; UsageError for anything else."""
    from fullyconv.errors import UsageError, printable

    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, k = part.partition("=")
        if not (name.strip() and k.strip().isdecimal()) or name.strip() in found:
            raise UsageError(f"--heads {printable(text)!r} is not NAME=K,NAME=K; write semantic=33,geometric=3.")
        found[name.strip()] = int(k)
    return found


def published_taxonomy(model: str, head: str, classes: int) -> Taxonomy | None:
    """The published classes that a released head has: by the network's name, else by their number."""
    from fullyconv.data.corpora.taxonomies import CONTEXT, NYUD40, SIFTFLOW, SIFTFLOW_GEOMETRIC, VOC

    names = {"voc": VOC, "pascalcontext": CONTEXT, "nyud": NYUD40, "siftflow": SIFTFLOW}
    if head == "geometric":
        return SIFTFLOW_GEOMETRIC if classes == 3 else None
    candidates = [names[model.split("-")[0]]] if model.split("-")[0] in names else list(names.values())
    return next((t for t in candidates if len(t) == classes), None) if head == "semantic" else None
