"""`fullyconv convolutionalise`: a classifier's coarse heat map of an image (the paper's figure 2)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["convolutionalise_command"]


def convolutionalise_command(
    classifier: Annotated[str, typer.Argument(help="torchvision's name (mobilenet_v2) or timm:NAME.")],
    image: Annotated[Path, typer.Argument(help="An image of at least the classifier's input size.")],
    weights: Annotated[Path, typer.Option(help="Local state dict; FILE.json beside it gives the preprocessing.")],
    what: Annotated[str, typer.Option("--class", help="Class name or number.", show_default="the best anywhere")] = "",
    size: Annotated[int, typer.Option(help="The input size that the classifier was trained at.")] = 224,
    names: Annotated[
        Path | None, typer.Option(help="Class names, one a line; ImageNet's for 1000 classes.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="PNG: the image beside its heat map.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Map, best classes and proof as one JSON object.")] = False,
) -> None:
    """Slide a classifier over an image by turning its fully connected layers into convolutions."""
    import json
    import sys

    import torch

    from fullyconv.convolutionalisation import convolutionalise as densify
    from fullyconv.files import atomic_write
    from fullyconv.files.outputs import output_file
    from fullyconv.images import encode_png, read_image
    from fullyconv.models.weight_loading import read_tensors, sidecar
    from fullyconv.preprocessing import IMAGENET

    if out is not None:
        output_file(out, "a PNG image", b"\x89PNG", [image, weights, *([names] if names else [])])
    pixels = read_image(image)
    network = load_classifier(classifier, read_tensors(weights), weights)
    x = torch.from_numpy((sidecar(weights) or IMAGENET)(pixels)[None])
    dense = densify(network, size, image=x)
    print(dense.proof, file=sys.stderr)
    with torch.inference_mode():
        probabilities = dense(x).softmax(1)[0].numpy()
    index, label, best = choose_class(what, probabilities, class_names(names, len(probabilities)))
    heat = probabilities[index]
    if out is not None:
        atomic_write(out, encode_png(figure(pixels, heat, size, dense.stride)))
    assert dense.proof is not None
    value = {
        "class": label, "index": index, "best": best, "map": heat.tolist(), "stride": dense.stride,
        "input_size": dense.input_size, "file": str(out) if out else None, "proof": dense.proof.to_json(),
    }  # fmt: skip
    print(json.dumps(value) if as_json else heat_text(value, heat))


def load_classifier(name: str, tensors: Mapping[str, object], path: Path) -> nn.Module:
    """The classifier by name, in eval mode, with exactly these tensors."""
    from fullyconv.errors import DataError, MissingExtra, UnknownName

    try:
        import torchvision
    except ImportError:
        raise MissingExtra("convolutionalise", "timm", "torchvision") from None
    if name.startswith("timm:"):
        import timm

        if not timm.is_model(name[5:]):
            raise UnknownName("timm model", name[5:], timm.list_models())
        build = functools.partial(timm.create_model, name[5:])
    else:
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise UnknownName("torchvision classifier", name, known)
        fast = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        build = functools.partial(torchvision.models.get_model, name, weights=None, **fast)
    network = build(num_classes=_classes(build, tensors))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DataError(f"{path} does not hold {name}: {lines[-1].strip()[:200]}; name the network it is of.") from None
    result: nn.Module = network.eval()
    return result


def _classes(build: Callable[..., nn.Module], tensors: Mapping[str, Any]) -> int:
    """How many classes the file is for: the rows of the tensor whose name has 1001 of them in such a network."""
    import torch

    with torch.device("meta"):
        probe = build(num_classes=1001)
    named = [n for n, p in probe.named_parameters() if p.shape[0] == 1001 and n in tensors]
    return int(tensors[named[-1]].shape[0]) if named else 1000


def class_names(file: Path | None, classes: int) -> list[str]:
    from fullyconv.errors import DataError
    from fullyconv.files import read_text

    if file is not None:
        found = [line.strip() for line in read_text(file).splitlines() if line.strip()]
        if len(found) != classes:
            raise DataError(f"{file} names {len(found)} classes, the classifier has {classes}; give one name a line.")
        return found
    if classes == 1000:
        from torchvision.models import MobileNet_V2_Weights

        return list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    return [f"class {k}" for k in range(classes)]


def choose_class(
    what: str, probabilities: NDArray[np.float32], names: list[str]
) -> tuple[int, str, list[dict[str, Any]]]:
    """The class to show (number, exact name, else the one name that contains `what`), and the five best anywhere."""
    from fullyconv.errors import UnknownName, UsageError

    peaks = probabilities.max((1, 2))
    ranked = [int(k) for k in peaks.argsort()[::-1][:5]]
    best = [{"class": names[k], "index": k, "probability": float(peaks[k])} for k in ranked]
    if not what:
        return ranked[0], names[ranked[0]], best
    if what.isdecimal() and int(what) < len(names):
        return int(what), names[int(what)], best
    found = [k for k, n in enumerate(names) if n.lower() == what.lower()]
    found = found or [k for k, n in enumerate(names) if what.lower() in n.lower()]
    if not found:
        raise UnknownName("class", what, names)
    if len(found) > 1:
        raise UsageError(f"{what!r} may be {', '.join(names[k] for k in found[:5])}; write one of them.")
    return found[0], names[found[0]], best


def figure(
    image: NDArray[np.uint8], heat: NDArray[np.float32], size: int, stride: tuple[int, int]
) -> NDArray[np.uint8]:
    """The image beside its heat map, H x 2W x 3: each pixel takes the cell whose window's centre is nearest."""
    import numpy as np

    cells = []
    for side, n, s in zip(image.shape[:2], heat.shape, stride, strict=True):
        cells.append(np.clip(np.rint((np.arange(side) - (size - 1) / 2) / s), 0, n - 1).astype(int))
    shown = heat[np.ix_(*cells)] / max(float(heat.max()), 1e-12)
    ramp = np.clip(np.stack([3 * shown, 3 * shown - 1, 3 * shown - 2], -1), 0, 1) * 255  # black, red, yellow, white
    mixed = (0.75 * ramp + 0.25 * image).astype(np.uint8)
    return np.concatenate([image, mixed], 1)


def heat_text(value: dict[str, Any], heat: NDArray[np.float32]) -> str:
    """The map as digits: tenths of the highest probability."""
    top = max(float(heat.max()), 1e-12)
    rows = ["".join(f"{min(9, int(10 * float(v) / top))}" for v in row) for row in heat]
    best = ", ".join(f"{b['class']} {b['probability']:.2f}" for b in value["best"])
    return "\n".join(
        [f"{value['class']}: {heat.shape[0]} x {heat.shape[1]} cells, at most {top:.3f}", *rows, f"best: {best}"]
    )
