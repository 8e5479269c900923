"""A network as an ONNX file that proved itself: `export` writes none that does not compute what the network does."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.arguments import NUMBER, PATH, TEXT, Kind, either, takes
from fullyconv.errors import DataError, UnknownName, UsageError, foreign_values, printable
from fullyconv.exporting import bioimageio, web
from fullyconv.exporting.deepness import deepness
from fullyconv.exporting.graph import OPSET, Graph
from fullyconv.exporting.network_graph import Values, build, output_names
from fullyconv.exporting.proof import ExportProof, by_onnxruntime, centre_crop, compare_engines, drawn
from fullyconv.files import atomic_write, read_file
from fullyconv.models import FCN, load, parse
from fullyconv.predict import Predictor, refuse_untrained
from fullyconv.predict.eager import digest
from fullyconv.runtime.onnx_session import quiet_onnxruntime
from fullyconv.runtime.sealing import ABOUT, BLANK, FORMAT, SEAL, ExportFacts, check_seal, checked_about, sealed

__all__ = ["ExportProof", "export", "exported_bytes", "verify_export"]

FORMATS = ("onnx", "openvino", "pt2", "web", "bioimageio")
TESTED = 256  # pixels a side of the image by which a package of unbounded context is tested
LARGEST = 2**31 - 1  # bytes of one protobuf message


@takes(
    model=Kind("a network or its directory", lambda v: isinstance(v, FCN) or PATH.fits(v)),
    file=PATH,
    to=TEXT,
    int8=either(TEXT, PATH),
    max_loss=NUMBER,
    output=TEXT,
    input=TEXT,
    onnxruntime_web=either(TEXT, PATH),
)
def export(
    model: FCN | str | Path,
    file: str | Path,
    to: str = "onnx",
    output: str = "labels",
    input: str = "uint8",
    images: Sequence[NDArray[np.number]] = (),
    int8: str | Path = "",
    max_loss: float = 0.5,
    onnxruntime_web: str | Path = "",
    fetch: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> ExportProof:
    """Write `model` (a network, or the directory of a model or a run) as one ONNX file for images of any size.

    to: "onnx"; "openvino": FILE.xml and FILE.bin, in fp32, proved once more by OpenVINO itself; "pt2": torch's exported
    program, proved by torch.export.load in a process of its own; "bioimageio": a package (ZIP) for bioimage.io's
    programs; "web": a folder with the file and a page that labels images in the browser, for which onnxruntime-web is
    taken from `onnxruntime_web` (a folder that holds it, or its .tgz) or, with `fetch`, fetched by npm.
    output: "labels" N H W (uint8, uint16 above 255 classes), "scores" or "probabilities" N K H W, "coarse" N K
    h w, or "confidence": labels and their probability. With several heads outputs are named OUTPUT_HEAD. input:
    "uint8", images N H W C as stored, or "float", float32 N C H W as the network's preprocessing makes it. images:
    H W C arrays in the stored range to prove the file on; without any they are drawn.

    int8: labelled data (PATH or kind:PATH) by which the trunk is put into 8 bits: calibrated on its training images,
    the layers that cost most left in fp32, and measured on its validation images; max_loss: points of mean IU that
    this may lose. say: called with what is being done.

    The bytes are run by onnxruntime beside the network before the file appears. Raises DataError, leaving no file,
    where scores differ by more than 1e-4 of the largest or a label changes that is no tie; DataError for a network
    that was never trained or loses more than `max_loss` in 8 bits; UsageError naming the layer that cannot be
    translated.

    >>> proof = fc.export(model, "model.onnx")
    >>> fc.Predictor("model.onnx")(image).shape
    (40, 48)
    """
    _refuse_unfit(to, Path(file), bool(int8), bool(onnxruntime_web or fetch), max_loss)
    network = model if isinstance(model, FCN) else load(model)
    refuse_untrained(network)
    if to == "bioimageio":
        bioimageio.check_describable(network.preprocessing, output, input, network.geometry(1, 1).halo)
    if to == "web":
        web.check_showable(parse(network.name).inputs, network.preprocessing.channels, output, input)
        plan = web.claimed(Path(file))
        engine = web.engine_files(onnxruntime_web, fetch)
    if int8:
        from fullyconv.exporting.int8 import calibration_images

        data = calibration_images(str(int8), "" if isinstance(model, FCN) else str(model), Predictor(network))
    if to == "pt2":
        graph, values = build(network, output, input)
        return _by_torch(graph, _about(network, output, input, values), network, images, Path(file))
    bare, about, values = _graph(network, output, input)
    proof = _by_onnxruntime(_written(bare, about), about, network, images, Path(file).name)
    if int8:
        from fullyconv.exporting.int8 import quantise

        bare, measured = quantise(bare, about, values.trunk, data, max_loss, _written, say)
        about |= {"precision": "int8", "int8": measured.to_json()}
        proof = replace(proof, int8=measured)
    written = _written(bare, about | {"proof": proof.to_json()})
    if to == "openvino":
        return _by_openvino(written, about, network, images, Path(file))
    if to == "bioimageio":
        image = images[0] if images else next(drawn(network, input == "uint8"))
        written = _packaged(written, about | {"proof": proof.to_json()}, image, Path(file).name)
    if to == "web":
        web.write_page(written, about, plan, engine)
    else:
        atomic_write(Path(file), written)
    return proof


def _refuse_unfit(to: str, file: Path, int8: bool, engine: bool, max_loss: float) -> None:
    """What does not go together; engine: whether onnxruntime-web was given or is to be fetched."""
    if to not in FORMATS:
        raise UnknownName("format", to, FORMATS)
    if to == "pt2" and int8:
        raise UsageError("torch's exported program is in fp32; leave out 8 bits, or export to onnx.")
    if to == "openvino" and (int8 or file.suffix != ".xml"):
        raise UsageError("OpenVINO's files are FILE.xml and FILE.bin in fp32; name FILE.xml, and leave out 8 bits.")
    if to != "web" and engine:
        raise UsageError(f"onnxruntime-web is for the page alone, not for {to}; leave it out, or export to web.")
    if int8 and not 0 <= max_loss <= 100:
        raise UsageError(f"The points of mean IU that may be lost are 0 to 100, not {max_loss}; correct max_loss.")


def _packaged(data: bytes, about: ExportFacts, image: NDArray[np.number], name: str) -> bytes:
    """The ONNX file as bioimage.io's package, with the middle of `image` as its test input."""
    least = bioimageio.sides(about["geometry"])[0] if about["geometry"]["halo"] is not None else TESTED
    return bioimageio.package(data, about, centre_crop(image, least, least), name)


def exported_bytes(
    network: FCN, output: str, input: str, images: Sequence[NDArray[np.number]], source: object
) -> tuple[bytes, ExportProof]:
    """What `export` would write as an ONNX file, proved; `source`: what messages call it."""
    bare, about, _ = _graph(network, output, input)
    proof = _by_onnxruntime(_written(bare, about), about, network, images, source)
    return _written(bare, about | {"proof": proof.to_json()}), proof


def _graph(network: FCN, output: str, input: str) -> tuple[Any, ExportFacts, Values]:
    """(the network as an ONNX graph, what it says of itself, names of its values)."""
    graph, values = build(network, output, input)
    bare = graph.model()
    if bare.ByteSize() > LARGEST - (1 << 20):
        raise UsageError(f"This network takes {bare.ByteSize() / 1e9:.1f} GB and an ONNX file holds 2; export another.")
    return bare, _about(network, output, input, values), values


def _by_onnxruntime(
    data: bytes, about: ExportFacts, model: FCN, images: Sequence[NDArray[np.number]], source: object
) -> ExportProof:
    engines = by_onnxruntime(data, about, source)
    return compare_engines(engines, {"onnxruntime": _onnxruntime_version()}, about, model, images, source)


def _by_openvino(
    data: bytes, about: ExportFacts, model: FCN, images: Sequence[NDArray[np.number]], file: Path
) -> ExportProof:
    """Write FILE.bin, then FILE.xml, once OpenVINO gave the network's scores from both."""
    from fullyconv.exporting import openvino

    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / file.name
        openvino.converted(data, about, there)
        engines, by = openvino.open_compiled(there, about["scores"]), {"openvino": openvino.version()}
        proof = compare_engines(engines, by, about, model, images, file.name)
        openvino.converted(data, {**about, "proof": proof.to_json()}, there)
        for part in (there.with_suffix(".bin"), there):
            atomic_write(file.with_suffix(part.suffix), part.read_bytes())
    return proof


def _by_torch(
    graph: Graph, about: ExportFacts, model: FCN, images: Sequence[NDArray[np.number]], file: Path
) -> ExportProof:
    """Write FILE.pt2 once a torch that knows nothing of fullyconv gave the network's scores from it."""
    from fullyconv.exporting import pt2

    small = about["input"]["kind"] == "uint8"
    program = pt2.exported_program(graph, model.preprocessing.channels, small)
    # Values inside the file bear torch's names; there is no value to cut the file at.
    about = {**about, "scores": pt2.scores_of(program, about["names"]), "coarse": None, "x": None}
    proof = _in_fresh_torch(pt2.written(program, about), about, model, images, file)
    atomic_write(file, pt2.written(program, about | {"proof": proof.to_json()}))
    return proof


def _in_fresh_torch(
    data: bytes, about: ExportFacts, model: FCN, images: Sequence[NDArray[np.number]], file: str | Path
) -> ExportProof:
    import torch

    from fullyconv.exporting import pt2

    engine = pt2.open_fresh(data, about, file)
    try:
        return compare_engines(
            (engine, engine), {"torch.export.load": str(torch.__version__)}, about, model, images, file
        )
    finally:
        engine.close()


def verify_export(file: str | Path, model: FCN | str | Path, images: Sequence[NDArray[np.number]] = ()) -> ExportProof:
    """Prove a file again: its seal, its sha256 of the weights, and its answers beside those of `model`.

    Raises DataError saying which of them does not hold.
    """
    import onnx

    network = model if isinstance(model, FCN) else load(model)
    if Path(file).suffix == ".xml":
        from fullyconv.exporting import openvino

        about = openvino.read_openvino(Path(file))[1]
        with foreign_values(file, "export the model again"):
            engines = openvino.open_compiled(Path(file), about["scores"])
            _refuse_other(about["weights_sha256"], network, file)
        return compare_engines(engines, {"openvino": openvino.version()}, about, network, images, file)
    if Path(file).suffix == ".pt2":
        from fullyconv.exporting import pt2

        data, about = pt2.read_pt2(file)
        with foreign_values(file, "export the model again"):
            _refuse_other(about["weights_sha256"], network, file)
            return _in_fresh_torch(data, about, network, images, file)
    data = read_file(file, LARGEST)
    try:
        metadata = {p.key: p.value for p in onnx.load_model_from_string(data).metadata_props}
    except Exception as error:  # protobuf's own errors
        raise DataError(f"{printable(file)} is no ONNX file; give one that fullyconv export wrote.") from error
    about = checked_about(metadata, file)
    if about.get("precision") == "int8":
        raise UsageError(
            f"{printable(file)} computes in 8 bits, so its scores differ by design; measure what that costs:  "
            f"fullyconv evaluate {printable(file)} DATA."
        )
    check_seal(data, metadata[SEAL], file)
    _refuse_other(about["weights_sha256"], network, file)
    return _by_onnxruntime(data, about, network, images, file)


def _refuse_other(weights: str, model: FCN, file: object) -> None:
    if weights != digest(model):
        raise DataError(f"{printable(file)} was made from other weights than this model's; export the model again.")


def _onnxruntime_version() -> str:
    return str(quiet_onnxruntime().__version__)


def _written(bare: Any, about: ExportFacts) -> bytes:
    """The file's bytes: the graph with what it says of itself, sealed."""
    from onnx import helper

    metadata = {ABOUT: json.dumps(dict(about), allow_nan=False), **deepness(about), SEAL: BLANK}
    helper.set_model_props(bare, metadata)
    return sealed(bare.SerializeToString(deterministic=True))


def _about(model: FCN, output: str, taken: str, values: Values) -> ExportFacts:
    """What the file says of itself, but for its proof."""
    import onnx
    import torch

    from fullyconv import __version__

    g = model.geometry(1, 1)
    kind = "uint8 N H W C, as stored" if taken == "uint8" else "float32 N C H W, preprocessed"
    return {
        "format": FORMAT,
        "name": model.name,
        "inputs": list(parse(model.name).inputs),
        "input": {"name": "image", "kind": taken, "layout": kind, "channels": model.preprocessing.channels},
        "output": output,
        "names": output_names(output, model.heads),
        "scores": values.scores,
        "coarse": values.coarse,
        "x": values.x,
        "heads": model.heads,
        "taxonomies": {head: t.to_json() for head, t in model.taxonomies.items()},
        "preprocessing": model.preprocessing.to_json(),
        "geometry": {
            "stride": g.stride, "offset": g.offset, "border": g.border, "exact": g.exact,
            "halo": g.halo if math.isfinite(g.halo) else None,
            "align": g.align,
        },
        "weights_sha256": digest(model),
        "versions": {
            "fullyconv": __version__, "torch": str(torch.__version__), "onnx": onnx.__version__, "opset": OPSET,
            "numpy": np.__version__,
        },
        "training": model.origin,
        "proof": None,
    }  # fmt: skip
