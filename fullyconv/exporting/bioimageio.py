"""An exported file as a package of bioimage.io (model description 0.5): the ONNX file, what goes in and out, and
tensors by which any of its programs can test it.

What only the model's owner knows (authors, licence) is left out and has to be added before publishing.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UsageError, printable
from fullyconv.exporting.graph import OPSET
from fullyconv.preprocessing import Preprocessing
from fullyconv.runtime.onnx_session import OnnxSession
from fullyconv.runtime.sealing import ExportFacts, GeometryFacts

__all__ = ["check_describable", "package", "sides"]

FORMAT = "0.5.4"
BEGUN = (1980, 1, 1, 0, 0, 0)  # of every member, so that the same model gives the same bytes but for the time inside
LARGEST_TEST = 4096  # pixels a side


def check_describable(preprocessing: Preprocessing, output: str, taken: str, halo: float) -> None:
    """UsageError for what a description cannot say."""
    if output == "coarse":
        raise UsageError("bioimage.io's programs expect an answer for every pixel; use --output labels or scores.")
    if taken == "float" and (preprocessing.order != tuple(range(preprocessing.channels)) or preprocessing.log):
        raise UsageError(
            "This network takes its channels in another order or as logarithms, which bioimage.io's preprocessing "
            "cannot say; export it with --input uint8."
        )
    if math.isfinite(halo) and halo * 2 > LARGEST_TEST - 1024:
        raise UsageError(f"A context of {halo:g} pixels on each side leaves no tile of a usual size; export to onnx.")


def sides(geometry: GeometryFacts) -> tuple[int, int, int]:
    """(least side, step of sides, halo) in pixels: tiles of such sides without their halo begin on the network's grid.

    halo 0 where the context is unbounded: only whole images give its labels, of any size from 1 on.
    """
    if geometry["halo"] is None:
        return 1, 1, 0
    align = int(geometry["align"])
    halo = -(-math.ceil(geometry["halo"]) // align) * align
    return 2 * halo + align, align, halo


def package(data: bytes, about: ExportFacts, image: NDArray[np.number], source: object) -> bytes:
    """The package's bytes (ZIP): `data`, an exported file that says `about` of itself, tested on `image` H W C as the
    file takes it (uint8, or float32 of any preprocessing)."""
    small = about["input"]["kind"] == "uint8"
    fed = (
        image[None] if small else np.ascontiguousarray(_scaled(image, about["preprocessing"]).transpose(2, 0, 1)[None])
    )
    session = OnnxSession(data, source, 1)
    found = dict(zip(session.outputs, session({"image": fed}), strict=True))
    # bioimage.io's tensors are stored before its preprocessing, which here is the file's or the description's own.
    tensors = {"image": image[None] if small else image.transpose(2, 0, 1)[None].astype(np.float32), **found}
    members = {f"test_{_ids(about)[name]}.npy": _npy(array) for name, array in tensors.items()}
    members["model.onnx"] = data
    members["README.md"] = _readme(about).encode()
    described = json.dumps(_described(about, members), allow_nan=False, indent=1)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, part in {"bioimageio.yaml": described.encode(), **members}.items():  # JSON is YAML
            archive.writestr(zipfile.ZipInfo(name, BEGUN), part)
    return out.getvalue()


def _scaled(image: NDArray[np.number], how: Mapping[str, Any]) -> NDArray[np.float32]:
    mean, std = (np.float32(how[k]) for k in ("mean", "std"))
    return np.asarray((image.astype(np.float32) * np.float32(how["scale"]) - mean) / std, np.float32)


def _npy(array: NDArray[np.number]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def _ids(about: ExportFacts) -> dict[str, str]:
    """{the file's name of a value: bioimage.io's, a lower-case identifier}."""
    names = ["image", *(n for own in about["names"].values() for n in own)]
    plain = [re.sub(r"\W", "_", n.lower(), flags=re.ASCII).strip("_") for n in names]
    return {n: p if plain.count(p) == 1 and p.isidentifier() else f"value{k}" for k, (n, p) in
            enumerate(zip(names, plain, strict=True))}  # fmt: skip


def _described(about: ExportFacts, members: Mapping[str, bytes]) -> dict[str, Any]:
    def file(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashlib.sha256(members[name]).hexdigest()}

    ids = _ids(about)
    return {
        "format_version": FORMAT, "type": "model", "name": _title(about),
        "description": f"Labels every pixel by a fully convolutional network, {about['name']}.",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "documentation": "README.md",
        "cite": [{
            "text": "Shelhamer, Long, Darrell: Fully Convolutional Networks for Semantic Segmentation (PAMI 2017)",
            "doi": "10.1109/TPAMI.2016.2572683",
        }],
        "tags": ["semantic-segmentation", "fully-convolutional-network", "fullyconv"],
        "inputs": [_input(about, file(f"test_{ids['image']}.npy"))],
        "outputs": [
            _output(about, head, name, ids, file(f"test_{ids[name]}.npy"))
            for head, names in about["names"].items()
            for name in names
        ],
        "weights": {"onnx": {**file("model.onnx"), "opset_version": OPSET}},
        "config": {"fullyconv": {k: about[k] for k in ("name", "geometry", "weights_sha256", "versions")}},
    }  # fmt: skip


def _title(about: ExportFacts) -> str:
    return re.sub(r"[^A-Za-z0-9_+\- ()]", "-", f"fullyconv {about['name']}")[:128]


def _space(about: ExportFacts) -> list[dict[str, Any]]:
    least, step, _ = sides(about["geometry"])
    return [{"type": "space", "id": axis, "size": {"min": least, "step": step}} for axis in ("y", "x")]


def _input(about: ExportFacts, test: Mapping[str, str]) -> dict[str, Any]:
    small, how = about["input"]["kind"] == "uint8", about["preprocessing"]
    count = int(about["input"]["channels"])
    names = ["red", "green", "blue"] if about["inputs"] == ["rgb"] else [f"channel{k}" for k in range(count)]
    channel = {"type": "channel", "channel_names": names}
    axes = [{"type": "batch"}, *_space(about), channel] if small else [{"type": "batch"}, channel, *_space(about)]
    description: dict[str, Any] = {
        "id": "image", "axes": axes, "test_tensor": dict(test), "data": {"type": "uint8" if small else "float32"},
        "description": "Pixels as stored." + (" Their preprocessing is in the file." if small else ""),
    }  # fmt: skip
    if not small:
        kwargs = {"axis": "channel", "mean": [m / how["scale"] for m in how["mean"]],
                  "std": [s / how["scale"] for s in how["std"]]}  # fmt: skip
        description["preprocessing"] = [{"id": "fixed_zero_mean_unit_variance", "kwargs": kwargs}]
    return description


def _output(
    about: ExportFacts, head: str, name: str, ids: Mapping[str, str], test: Mapping[str, str]
) -> dict[str, Any]:
    classes, kind = [printable(n) for n in about["taxonomies"][head]["names"]], about["output"]
    halo = sides(about["geometry"])[2]
    axes: list[dict[str, Any]] = [{"type": "batch"}]
    data: dict[str, Any] = {"type": "float32"}
    if kind in ("labels", "confidence"):
        if name == about["names"][head][0]:
            data = {"type": "uint8" if len(classes) <= 255 else "uint16", "values": classes}
    else:
        axes.append({"type": "channel", "channel_names": classes})
    for axis in ("y", "x"):
        size = {"tensor_id": "image", "axis_id": axis}
        axes.append({"type": "space", "id": axis, "size": size} | ({"halo": halo} if halo else {}))
    what = kind if name == about["names"][head][0] else "confidence"
    described = f"{what} of {printable(head)}"[:128]
    return {"id": ids[name], "axes": axes, "test_tensor": dict(test), "data": data, "description": described}


def _readme(about: ExportFacts) -> str:
    proof, g = about["proof"], about["geometry"]
    assert proof is not None, "a package holds a proven file"
    lines = [
        f"# {about['name']}",
        "",
        "A fully convolutional network that labels every pixel, exported by fullyconv.",
        "",
    ]
    for head, taxonomy in about["taxonomies"].items():
        lines.append(f"- {printable(head)}: {', '.join(printable(n) for n in taxonomy['names'])}")
    context = "unbounded: give whole images" if g["halo"] is None else f"{g['halo']:g} pixels on each side"
    engines, differ = " and ".join(proof["engines"]), f"{proof['difference']:.1e} of the largest score"
    agreed = (
        f"{engines} agreed on {len(proof['sizes'])} batches of {proof['images']} images: largest difference {differ}, "
        f"{proof['changed']} of {proof['pixels']} labels changed. How well it labels your images is measured by  "
        "fullyconv evaluate model.onnx DATA."
    )
    lines += ["", f"Context that a tile needs: {context}.", "", "## Validation", "", agreed, ""]
    lines += ["Authors and licence are not said: add them to bioimageio.yaml before publishing.", ""]
    return "\n".join(lines)
