"""`fullyconv export`: a model in, one ONNX file that proved itself out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["export_command"]

# What our own files begin with, which alone are replaced: ONNX's IR version 8 and the producer; OpenVINO's graph.
BEGINS, BEGINS_XML = b"\x08\x08\x12\x09fullyconv", b'<?xml version="1.0"?>\n<net name="fullyconv"'
BEGINS_PACKAGE = b"PK\x03\x04\x14\0\0\0\0\0\0\0!\0"  # a ZIP whose first member is dated 1980-01-01
BEGINS_ZIP = b"PK\x03\x04"  # torch's exported programs, ours among them
MOST = 8  # images of the data that a proof looks at


def export_command(
    model: Annotated[str, typer.Argument(help="Model or run directory.", show_default=False)] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="The file (web: the folder) to write, such as model.onnx.", show_default=False
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            help="Format: onnx, openvino (FILE.xml, FILE.bin), pt2, bioimageio (FILE.zip) or web (a page that labels)."
        ),
    ] = "onnx",
    output: Annotated[str, typer.Option(help="labels, scores, probabilities, coarse or confidence.")] = "labels",
    taken: Annotated[
        str, typer.Option("--input", help="uint8 (N H W C as stored) or float (N C H W, preprocessed).")
    ] = "uint8",
    data: Annotated[
        str, typer.Option(help="Images to prove it on: PATH or kind:PATH; drawn ones without.", show_default=False)
    ] = "",
    int8: Annotated[
        str,
        typer.Option(
            "--int8",
            metavar="DATA",
            help="Compute in 8 bits, calibrated and measured on this data.",
            show_default=False,
        ),
    ] = "",
    max_loss: Annotated[
        float, typer.Option(min=0, max=100, help="Points of mean IU (mIoU) that 8 bits may lose.")
    ] = 0.5,
    engine: Annotated[
        str,
        typer.Option(
            "--onnxruntime-web", metavar="PATH", help="web: a folder or .tgz that holds it.", show_default=False
        ),
    ] = "",
    fetch: Annotated[bool, typer.Option("--fetch", help="web: have npm fetch onnxruntime-web (33 MB).")] = False,
    check: Annotated[
        Path | None, typer.Option("--verify", help="Prove this file against the model again.", show_default=False)
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a Python script that labels an image with the file alone.")
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Print the config.pbtxt by which Triton serves this file.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The proof as one JSON object.")] = False,
) -> None:
    """Write a model as ONNX for any runtime; no file appears that does not label as the model does."""
    import json

    from fullyconv.errors import UsageError, printable

    if example:
        print(_script(), end="")
        return
    if triton is not None:
        from fullyconv.runtime.exported import ExportedNetwork
        from fullyconv.runtime.triton_config import triton_config

        print(triton_config(ExportedNetwork(triton).about), end="")
        return
    if not model:
        raise UsageError("Name the model or run directory to export:  fullyconv export MODEL -o FILE.onnx.")
    from fullyconv.exporting import export, verify_export
    from fullyconv.files.outputs import output_file
    from fullyconv.terminal import say

    if (out is None) == (check is None):
        raise UsageError("Give either -o FILE.onnx to write or --verify FILE.onnx to prove again.")
    if check is not None:
        proof = verify_export(check, model, _images(data))
    else:
        assert out is not None
        if to != "web":
            begins = {"openvino": BEGINS_XML, "pt2": BEGINS_ZIP, "bioimageio": BEGINS_PACKAGE}.get(to, BEGINS)
            output_file(out, "an exported model", begins if to != "pt2" or _is_ours(out) else b"FILE OF OTHERS")
        if to == "openvino" and (weights := out.with_suffix(".bin")).exists() and not out.exists():
            raise UsageError(f"{printable(weights)} is there already and is another file's; name another FILE.xml.")
        proof = export(model, out, to, output, taken, _images(data or int8), int8, max_loss, engine, fetch, say)
    say(proof)
    print(json.dumps(proof.to_json()) if as_json else check or out)


def _is_ours(file: Path) -> bool:
    """Whether no FILE.pt2 is there, or one that we wrote."""
    from fullyconv.errors import DataError
    from fullyconv.exporting import pt2

    try:
        return not file.exists() or bool(pt2.read_pt2(file))
    except DataError:
        return False


def _script() -> str:
    from importlib.resources import files

    return files("fullyconv").joinpath("exporting", "example.py").read_text("utf-8")


def _images(data: str) -> list[NDArray[Any]]:
    """The first images of a data set's validation split, or of all of it."""
    from fullyconv.data import open_dataset
    from fullyconv.data.corpora.layout import NoSplits

    if not data:
        return []
    try:
        found = open_dataset(data, "val")
    except NoSplits:
        found = open_dataset(data, "all")
    return [found[i].image for i in range(min(MOST, len(found)))]
