"""Weights by Caffe's layer names - the released .caffemodel files and pytorch-fcn's .pth twins - into an FCN.

Everything here is names and checks; the numbers stay as they were stored. Source: the released net definitions
(shelhamer/fcn.berkeleyvision.org), where the two streams' layers end in `color` / `hha` and SIFT Flow's heads in
`_sem` / `_geo`; wkentaro/pytorch-fcn uses the same names with `.weight` and `.bias` behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fullyconv.errors import DataError, UsageError, nearest, printable
from fullyconv.models import create
from fullyconv.models.caffe import read_caffemodel
from fullyconv.models.fcn import FCN
from fullyconv.models.names import Network, parse
from fullyconv.models.trunks.googlenet import BLOCKS
from fullyconv.models.weight_loading import LoadReport, read_tensors
from fullyconv.preprocessing import HHA_MEAN, LOG_DEPTH_MEAN, Preprocessing
from fullyconv.taxonomy import Taxonomy

__all__ = ["bilinear", "convert", "layer_names", "load_layers", "released_preprocessing"]

Layers = Mapping[str, Sequence[NDArray[Any]]]  # layer -> blobs: weight, bias

_VGG = dict(
    zip(
        ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"),
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        strict=True,
    )
)
_FC = {"fc6": "classifier.0", "fc7": "classifier.3"}
_BRANCHES = {
    "1x1": "branch1.0", "3x3_reduce": "branch2.0.0", "3x3": "branch2.1.0", "5x5_reduce": "branch3.0.0",
    "5x5": "branch3.1.0", "pool_proj": "branch4.1.0",
}  # fmt: skip
# Caffe layer -> our module, by trunk.
TRUNK_LAYERS: dict[str, dict[str, str]] = {
    "vgg16": {f"conv{n}": f"features.{i}" for n, i in _VGG.items()} | _FC,
    "vgg16_conv": {f"conv{n}": f"features.{i}" for n, i in _VGG.items()},
    "alexnet": {f"conv{n + 1}": f"features.{i}" for n, i in enumerate((0, 4, 8, 10, 12))} | _FC,
    "googlenet": {
        "conv1/7x7_s2": "stem.conv1.0",
        "conv2/3x3_reduce": "stem.conv2_reduce.0",
        "conv2/3x3": "stem.conv2.0",
    }
    | {f"inception_{b}/{c}": f"inception.{b}.{ours}" for b in BLOCKS for c, ours in _BRANCHES.items()},
}
SCORES = {32: "score_fr", 16: "score_pool4", 8: "score_pool3"}
UPSAMPLINGS = {16: "upscore2", 8: "upscore_pool4"}  # the x2 step that reaches this tap
LAST = {32: "upscore", 16: "upscore16", 8: "upscore8"}
SCALES = {16: "scale_pool4", 8: "scale_pool3"}
STREAMS = {"rgb": "color", "hha": "hha"}
HEADS = {"semantic": "_sem", "geometric": "_geo"}

# Mean pixel in network order (B, G, R), 0..255, by the data the released networks were trained on (their data layers).
MEANS: dict[str, tuple[float, float, float]] = {
    "voc": (104.00698793, 116.66876762, 122.67891434),
    "pascalcontext": (104.007, 116.669, 122.679),
    "nyud": (116.190, 97.203, 92.318),
    "siftflow": (114.578, 115.294, 108.353),
}


# -- names -------------------------------------------------------------------------------------------------------------


def head_suffixes(model: FCN) -> dict[str, str]:
    return {h: "" if len(model.heads) == 1 else HEADS.get(h, f"_{h}") for h in model.heads}


def layer_names(model: FCN) -> dict[str, str]:
    """Caffe's layer name -> our module, for every layer of `model` with weights that a released file holds.

    Errors: UsageError for a trunk that has no Caffe names.
    """
    network = parse(model.name)
    if network.trunk not in TRUNK_LAYERS:
        raise UsageError(
            f"{model.name} has no Caffe twin: its trunk is {network.trunk}; convert into one of "
            f"{', '.join(TRUNK_LAYERS)}."
        )
    if network.pyramid:
        raise UsageError(f"{model.name} has no Caffe twin: no released network has a pyramid; leave -pyramid out.")
    names: dict[str, str] = {}
    for key in model.streams:
        stream = STREAMS[key] if len(model.streams) > 1 else ""
        for layer, module in TRUNK_LAYERS[network.trunk].items():
            bgrd = "_bgrd" if layer == "conv1_1" and "depth" in key else ""
            names[layer + bgrd + stream] = f"streams.{key}.trunk.{module}"
        for head, suffix in head_suffixes(model).items():
            for tap in model.taps:
                names[SCORES[tap] + stream + suffix] = f"streams.{key}.score.{head}.{tap}"
    return names


def released_preprocessing(network: Network, name: str, heads: Mapping[str, int]) -> tuple[Preprocessing, str]:
    """What the authors fed: BGR minus a mean, 0..255; and the data set whose mean that is.

    By the network's name (`nyud-...`), else by its inputs and classes: depth or HHA means NYUDv2, 40 classes too,
    33 + 3 SIFT Flow, 60 PASCAL-Context; VOC's (which is ImageNet's) otherwise.
    """
    data = name.split("-")[0]
    if data not in MEANS:
        by_classes = {(40,): "nyud", (60,): "pascalcontext", (33, 3): "siftflow"}
        data = "nyud" if network.inputs != ("rgb",) else by_classes.get(tuple(heads.values()), "voc")
    order: list[int] = []
    mean: list[float] = []
    log: list[int] = []
    for modality in network.inputs:
        start = len(order)
        if modality == "rgb":
            order += [start + 2, start + 1, start]
            mean += MEANS[data]
        elif modality == "depth":
            order.append(start)
            mean.append(LOG_DEPTH_MEAN)
            log.append(start)
        else:
            order += [start, start + 1, start + 2]
            mean += HHA_MEAN
    return Preprocessing(tuple(order), 1.0, tuple(mean), (1.0,) * len(order), tuple(log)), data


# -- checks ------------------------------------------------------------------------------------------------------------


def bilinear(width: int) -> NDArray[np.float64]:
    """The width x width kernel of bilinear interpolation by (width + 1) // 2 (released surgery.py)."""
    factor = (width + 1) // 2
    centre = factor - 1 if width % 2 else factor - 0.5
    ramp = 1 - np.abs(np.arange(width) - centre) / factor
    return np.outer(ramp, ramp)


def _check_upsampling(source: str, layer: str, blobs: Sequence[NDArray[np.number]], classes: int, width: int) -> None:
    """A released upsampling is dense (K K k k) or grouped (K 1 k k), bilinear on its diagonal, zero elsewhere."""
    shape = blobs[0].shape
    if shape not in ((classes, classes, width, width), (classes, 1, width, width)):
        raise DataError(
            f"{source}: {layer} is {shape}, {classes} classes need ({classes}, {classes}, {width}, {width}); "
            "give the network and the classes that this file was trained with."
        )
    kernel = bilinear(width)
    for k in range(classes):
        for j in range(shape[1]):
            off = float(np.abs(blobs[0][k, j] - (kernel if j == k or shape[1] == 1 else 0)).max())
            if not off <= 1e-5:
                raise DataError(
                    f"{source}: {layer} is not bilinear interpolation (off by {off:.3g} at [{k}, {j}]): it was "
                    "learned; convert into a network with -learned in its name."
                )
    if any(np.any(b) for b in blobs[1:]):
        raise DataError(f"{source}: {layer} has a bias, which interpolation cannot have; this is another network.")


def _check_scales(source: str, layers: Layers, model: FCN, demanded: bool) -> set[str]:
    """At-once weights live behind fixed scales (pool4 x 0.01, pool3 x 0.0001): file and network must agree on them."""
    scales: dict[int, float] = next(iter(model.streams.values())).scales  # type: ignore[assignment]
    for tap, layer in SCALES.items():
        wanted = scales.get(tap)
        blobs = layers.get(layer)
        if blobs is None and wanted is not None and demanded:
            raise DataError(f"{source} has no {layer}: it is no at-once network; convert into fcn8s-vgg16 instead.")
        if blobs is not None and wanted is None:
            raise DataError(
                f"{source} scales its skips ({layer}): it is an at-once network; convert into voc-fcn8s-atonce."
            )
        if blobs is not None and not np.allclose(blobs[0], wanted, rtol=1e-5):  # type: ignore[arg-type]
            raise DataError(f"{source}: {layer} is {float(blobs[0].ravel()[0]):.3g}, the network has {wanted}.")
    return set(SCALES.values())


# -- loading -----------------------------------------------------------------------------------------------------------


def load_layers(model: FCN, layers: Layers, source: str, scales_stored: bool = True) -> LoadReport:
    """Copy blobs into `model` by Caffe's names and check its fixed upsamplings; nothing is copied twice.

    A file without any score layer is a classifier: its scores stay at zero and are reported. Errors: DataError names
    the layer that is missing (with the nearest name there is), misshapen, not finite or not bilinear.
    """
    report = LoadReport(source)
    names = layer_names(model)
    scores = {layer for layer, ours in names.items() if ".score." in ours}
    classifier = not any(n.startswith("score") for n in layers)
    used = _check_scales(source, layers, model, scales_stored and not classifier)
    used |= _load_upsamplings(model, layers, source, report)
    for layer, ours in names.items():
        parameters = dict(model.get_submodule(ours).named_parameters(prefix=ours))
        if layer in layers:
            _copy(layer, layers[layer], parameters, report)
        elif layer in scores and classifier:
            report.initial += parameters
        else:
            _missing(source, layer, layers)
    report.dropped = [n for n in layers if n not in names and n not in used]
    return report


def _missing(source: str, layer: str, layers: Layers) -> None:
    near = nearest(layer, list(layers))
    hint = (
        f"; it has {printable(near)}" if near else f"; it has {', '.join(printable(n) for n in list(layers)[:4])}, ..."
    )
    raise DataError(f"{source} has no layer {layer}{hint}. Give the network that this file was trained as.")


def _copy(
    layer: str, blobs: Sequence[NDArray[np.number]], parameters: Mapping[str, torch.Tensor], report: LoadReport
) -> None:
    if len(blobs) < len(parameters):
        raise DataError(f"{report.source}: {layer} has {len(blobs)} blobs where {len(parameters)} are needed.")
    for (name, parameter), blob in zip(parameters.items(), blobs, strict=False):
        shape = tuple(parameter.shape)
        trimmed = list(blob.shape)  # legacy shapes have ones in front: a bias is 1 1 1 O, fc6 is 1 1 O I
        while len(trimmed) > 1 and trimmed[0] == 1 and tuple(trimmed) != shape:
            trimmed.pop(0)
        if tuple(trimmed) != shape and (blob.size != parameter.numel() or trimmed[0] != shape[0] or len(trimmed) != 2):
            raise DataError(
                f"{report.source}: {layer} is {tuple(blob.shape)}, the network needs {shape}; give the network"
                f"{' and --classes' if '.score.' in name else ''} that this file was trained with."
            )
        parameter.detach().numpy()[...] = blob.reshape(shape)  # the flat order is the same: C-major, then H, W
        if not bool(torch.isfinite(parameter).all()):
            raise DataError(f"{report.source}: {layer} holds NaN or infinite values; get the file again.")
        (report.copied if tuple(trimmed) == shape else report.coerced).append(name)


def _load_upsamplings(model: FCN, layers: Layers, source: str, report: LoadReport) -> set[str]:
    """Check every stored upsampling against bilinear interpolation; learned ones are copied. Returns their names."""
    seen: set[str] = set()
    for head, suffix in head_suffixes(model).items():
        steps = {UPSAMPLINGS[tap] + suffix: tap for tap in model.skips} | {LAST[model.taps[-1]] + suffix: 0}
        seen |= steps.keys()
        for layer, tap in steps.items():
            if layer not in layers:
                continue
            if tap and head in model.learned:
                ours = f"learned.{head}.{tap}"
                _copy(layer, layers[layer], dict(model.get_submodule(ours).named_parameters(prefix=ours)), report)
            else:
                width = 4 if tap else _last_width(model)
                _check_upsampling(source, layer, layers[layer], model.heads[head], width)
    return seen


def _last_width(model: FCN) -> int:
    return int(model.geometry(1, 1).kernel)


# -- files -------------------------------------------------------------------------------------------------------------


def convert(
    path: str | Path,
    name: str,
    classes: int | None = None,
    heads: Mapping[str, int] | None = None,
    taxonomies: Mapping[str, Taxonomy] | None = None,
) -> FCN:
    """The network `name` with the weights of a foreign file; `model.report` says what was done with them.

    path: a .caffemodel, a wkentaro/pytorch-fcn .pth (both BGR minus a mean, kept so) or a state dict with torchvision's
    names for the trunk (RGB; scores stay at zero). Errors: UsageError, MissingInput and DataError; see `load_layers`.
    """

    path, network = Path(path), parse(name)
    caffe = path.suffix == ".caffemodel"
    if caffe:  # the file comes before the network: a bad one is refused before 500 MB are filled
        layers: Layers = {n: layer.blobs for n, layer in read_caffemodel(path).items()}
    else:
        tensors = read_tensors(path)
        if not _is_pytorch_fcn(tensors):
            model = create(name, classes, heads=heads, taxonomies=taxonomies, weights=path, quiet=True)
            return model.eval()
        layers = _grouped(tensors)
    model = create(name, classes, heads=heads, taxonomies=taxonomies, quiet=True)
    report = load_layers(model, layers, printable(path.name), scales_stored=caffe)
    model.preprocessing, data = released_preprocessing(network, name, model.heads)
    report.preprocessing = f"the authors (BGR minus the mean of {data})"
    model.report = report
    return model.eval()


def _is_pytorch_fcn(tensors: Mapping[str, object]) -> bool:
    return any(n.startswith(("conv1_1.", "conv1_1_bgrd.", "score_fr.")) for n in tensors)


def _grouped(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[NDArray[Any]]]:
    """{layer.weight, layer.bias} as {layer: [weight, bias]}."""
    layers: dict[str, list[NDArray[Any]]] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].endswith(".bias")):
        layers.setdefault(name.rpartition(".")[0], []).append(tensor.float().numpy())
    return layers
