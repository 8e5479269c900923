"""Networks by name (`create`), from a model directory (`load`), and the table of them all (`NETWORKS`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fullyconv.models.store as store
from fullyconv import checkpoint, hub
from fullyconv.arguments import MAPPING, PATH, TEXT, WHOLE, Kind, maybe, takes
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.models.fcn import FCN, Stream
from fullyconv.models.feature_pyramid import Pyramid
from fullyconv.models.names import NETWORKS, OWN, Network, own_name, parse
from fullyconv.models.packaged import timm_names
from fullyconv.models.pretrained import locate
from fullyconv.models.seeding import Seeded
from fullyconv.models.trunks import PAPER, TRUNKS, Given, Trunk, create_trunk
from fullyconv.models.trunks.timm import timm_parameters
from fullyconv.models.weight_loading import LoadReport, load_into, read_tensors, sidecar
from fullyconv.preprocessing import HHA_MEAN, LOG_DEPTH_MEAN, Preprocessing
from fullyconv.taxonomy import Taxonomy
from fullyconv.terminal import say

__all__ = ["FCN", "NETWORKS", "PAPER", "TRUNKS", "LoadReport", "Network", "create", "load", "parse"]


MODULE = Kind("a torch module", lambda v: isinstance(v, nn.Module))


@takes(
    name=TEXT,
    trunk=maybe(MODULE),
    heads=maybe(MAPPING),
    weights=maybe(PATH),
    padding=maybe(TEXT),
    taxonomies=maybe(MAPPING),
    preprocessing=maybe(Kind("a Preprocessing", lambda v: isinstance(v, Preprocessing))),
    seed=WHOLE,
)
def create(
    name: str = "fcn8s",
    classes: int | None = None,
    *,
    trunk: nn.Module | None = None,
    heads: Mapping[str, int] | None = None,
    weights: str | Path | None = None,
    padding: str | None = None,
    preprocessing: Preprocessing | None = None,
    taxonomies: Mapping[str, Taxonomy] | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> FCN:
    """A network by name, for `classes` classes (None: as published, else 21) or for several `heads` by name.

    `trunk`: a module of your own, which makes maps N C h w of images (one, or a list or mapping of them, at strides 2,
    4, ...); `name` then says the rest, such as "fcn16s". It is used as it is, with its weights, in `preprocessing`
    (ImageNet's unless given).
    `weights` is the trunk's: a local .pt, .pth or .safetensors file with torchvision's keys, a model directory of the
    same network, "imagenet" (from an installed package, else downloaded because you asked), or "auto" (a package's,
    else a file downloaded before, else none; nothing is fetched). Without it the trunk starts from random weights.
    `padding`: "paper" | "same" (None: the trunk's default). `preprocessing`, where the weights file has no sidecar.
    The load report goes to stderr unless `quiet`, and is `model.report`.

    Raises UnknownName (with the nearest name), UsageError (a stride the trunk lacks, both `classes` and `heads`),
    DataError (weights of another network).

    >>> fc.create("fcn8s-mobilenet_v2", classes=5)
    FCN(fcn8s-mobilenet_v2, semantic: 5 classes, scores at 32s/16s/8s, 2.2 M parameters)
    """
    if trunk is not None:
        name = own_name(name, trunk)
    network = parse(name)
    _refuse_beside_own(network, trunk, weights, padding)
    if classes is not None and heads is not None:
        raise UsageError(f"classes = {classes} and heads = {dict(heads)} say the same thing twice; give one of them.")
    if heads is None:
        heads = dict(network.heads) if classes is None else {"semantic": classes}
    if taxonomies is not None:
        heads = {head: len(t) for head, t in taxonomies.items()}
    _check_heads(heads)
    heads = {head: int(k) for head, k in heads.items()}
    with Seeded(int(seed)):
        model = _build(name, network, heads, padding, trunk)
    if taxonomies is not None:
        model.taxonomies = dict(taxonomies)
    if preprocessing is not None:
        model.preprocessing = preprocessing
    if weights is not None:
        report = _load_weights(model, str(weights), preprocessing)
        model.report = report
        if not quiet:
            say(report)
    return model


def _refuse_beside_own(network: Network, trunk: nn.Module | None, weights: object, padding: str | None) -> None:
    """UsageError for what cannot be given with a module of one's own."""
    if trunk is None:
        return
    if weights is not None:
        raise UsageError("weights= is for trunks by name; load them into your own module first (load_state_dict).")
    if padding not in (None, "same"):
        raise UsageError(f"padding = {padding!r} is for trunks by name; your own module has the padding of its layers.")
    if network.late:
        raise UsageError("-rgb-hha takes a trunk for each of two inputs; with a module of your own, take one input.")


def _is_head(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name != "out"


def _check_heads(heads: Mapping[str, int]) -> None:
    if not heads:
        raise UsageError("A network needs at least one head; give classes=21 or heads={'semantic': 21}.")
    for head, k in heads.items():
        if not _is_head(head):
            raise UsageError(f"{printable(str(head))!r} cannot name a head; use letters, digits and _ (and not 'out').")
        if not WHOLE.fits(k):
            shown = repr(k) if isinstance(k, str | float | bool) else type(k).__name__
            raise UsageError(f"The head {head!r} has classes = {shown}, which is no whole number; give one such as 21.")
        if k < 2:
            raise UsageError(f"The head {head!r} has {k} class; a network tells at least 2 apart.")


def _build(
    name: str, network: Network, heads: Mapping[str, int], padding: str | None, own: nn.Module | None = None
) -> FCN:
    padding = padding or _default_padding(network)
    groups = [(m,) for m in network.inputs] if network.late else [network.inputs]
    streams: dict[str, Stream] = {}
    start = 0
    taps: tuple[int, ...] = ()
    trunk = None
    for group in groups:
        channels = sum(network.width(m) for m in group)
        trunk = create_trunk(network.trunk, channels, padding) if own is None else _own(own, channels)
        taps = _taps(name, network, trunk.channels)
        pyramid = _pyramid(name, trunk, taps, padding) if network.pyramid else None
        taps = taps[-1:] if network.pyramid else taps
        part = slice(start, start + channels)
        streams["_".join(group)] = Stream(trunk, heads, taps, part, network.scales, pyramid)
        start += channels
    assert trunk is not None
    model = FCN(
        name, streams, heads, taps, "fade" if padding == "paper" else "replicate",
        _preprocessing(network, trunk.preprocessing), network.learned, {"padding": padding},
    )  # fmt: skip
    if network.fixed:
        for p in model.trunk_parameters():
            p.requires_grad_(False)
    return model


def _pyramid(name: str, trunk: Trunk, taps: tuple[int, ...], padding: str) -> Pyramid:
    if padding == "paper":
        raise UsageError(f"{name}: a pyramid has no paper's padding; use padding 'same'.")
    grids, _ = trunk.maps()
    return Pyramid({t: trunk.channels[t] for t in taps}, grids)


def _own(module: nn.Module, channels: int) -> Trunk:
    return module if isinstance(module, Trunk) else Given(module, channels)


def _default_padding(network: Network) -> str:
    """The paper's padding where the paper has the network: skips were VGG16's alone."""
    skips = network.finest < network.coarsest
    if network.pyramid:
        return "same"
    return "paper" if network.trunk in (("vgg16",) if skips else PAPER) else "same"


def _taps(name: str, network: Network, channels: Mapping[int, int]) -> tuple[int, ...]:
    """The strides to score, coarse to fine: from the coarsest the trunk has down to the finest asked for."""
    coarsest = min(network.coarsest, max(channels))
    if network.finest not in channels:
        have = ", ".join(f"{s}s" for s in sorted(channels, reverse=True))
        raise UsageError(f"{name}: the trunk {network.trunk} has no stride {network.finest}; it has {have}.")
    return tuple(s for s in sorted(channels, reverse=True) if network.finest <= s <= coarsest)


def _preprocessing(network: Network, rgb: Preprocessing) -> Preprocessing:
    """The trunk's colour preprocessing, with the other modalities' means in the same scale behind it."""
    if network.inputs == ("rgb",):
        return rgb
    mean: list[float] = []
    std: list[float] = []
    log: list[int] = []
    for modality in network.inputs:
        if modality == "depth":
            log.append(len(mean))
            mean.append(LOG_DEPTH_MEAN)
            std.append(0.5)
        elif modality == "hha":
            mean += [m * rgb.scale for m in HHA_MEAN]
            std += rgb.std
        elif modality == "bands":  # training measures them; until then as the colours are on average
            mean += [sum(rgb.mean) / len(rgb.mean)] * network.bands
            std += [sum(rgb.std) / len(rgb.std)] * network.bands
        else:
            mean += rgb.mean
            std += rgb.std
    return Preprocessing(tuple(range(len(mean))), rgb.scale, tuple(mean), tuple(std), tuple(log))


def _load_weights(model: FCN, weights: str, preprocessing: Preprocessing | None) -> LoadReport:
    """Load a trunk's weights file into every stream, or a model directory of the same network."""
    path = Path(weights)
    if path.is_dir():
        return checkpoint.following(path, lambda stored: _load_stored(model, stored, str(path)))
    located = locate(parse(model.name).trunk, weights)
    if located.path is None:
        return LoadReport(located.note)
    path = located.path
    tensors = read_tensors(path)
    rename = timm_names(tensors) if located.packaged else None
    report = LoadReport(path.name)
    for stream in model.streams.values():
        report = load_into(stream.trunk, tensors, located.note or path.name, rename)  # type: ignore[arg-type]
    if located.packaged:
        model.origin = {**model.origin, "trunk_weights": located.packaged.about()}
    found = sidecar(path)
    if found is not None and found.channels == model.preprocessing.channels:
        model.preprocessing, report.preprocessing = found, f"the sidecar {path.name}.json"
    elif found is not None:
        report.preprocessing = "the network's modalities (the sidecar is for other channels)"
    else:
        report.preprocessing = "the recipe" if preprocessing is not None else "the trunk's default"
    return report


def _load_stored(model: FCN, stored: checkpoint.Stored, source: str) -> LoadReport:
    report = load_into(model, dict(stored.tensors), source)
    if model.preprocessing.channels == len(stored.preprocessor["order"]):
        model.preprocessing = Preprocessing.from_json(stored.preprocessor)
        report.preprocessing = "the model directory"
    return report


@takes(directory=PATH, trunk=maybe(MODULE))
def load(directory: str | Path, *, trunk: nn.Module | None = None) -> FCN:
    """The network in a model directory (written by `save_pretrained`, a training run or `convert`), in eval mode.

    "hf://owner/name" (or "hf://owner/name@revision") is fetched from the Hugging Face Hub; nothing else ever is.
    `trunk`: a module made as the one was that the network was created with, where it was the owner's.
    Sizes, digests, names, shapes, dtypes and a stored canary are checked first; every refusal is one of our errors.

    >>> directory = model.save_pretrained("kept")
    >>> fc.load(directory).heads
    {'semantic': 3}
    """
    path = hub.local(directory)
    return checkpoint.following(path, lambda stored: _from_stored(stored, path, trunk))


def _from_stored(stored: checkpoint.Stored, path: Path, own: nn.Module | None) -> FCN:
    config: dict[str, Any] = stored.config
    try:
        taxonomies = store.taxonomies(config)
        name, heads = str(config["name"]), {str(h): int(k) for h, k in config["heads"].items()}
        padding = config.get("options", {}).get("padding")
        origin = dict(config.get("training") or {})
        network = parse(name)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(
            f"{printable(path)}/config.json does not describe a network ({printable(error)[:200]}); save it again."
        ) from error
    _refuse_other_sizes(stored, network, heads, taxonomies, path)
    if own is not None and not network.trunk.startswith(OWN):
        raise UsageError(
            f"{printable(path)} has the trunk {network.trunk}, which is made by its name; leave trunk= out."
        )
    with Seeded(0), torch.device("cpu" if network.trunk.startswith(("timm:", OWN)) else "meta"):
        model = _build(name, network, heads, padding, own)
    model.taxonomies = taxonomies
    model.origin = origin
    put_preprocessing(model, Preprocessing.from_json(stored.preprocessor), path)
    return store.restore(model, stored)


def _refuse_other_sizes(
    stored: checkpoint.Stored,
    network: Network,
    heads: Mapping[str, int],
    taxonomies: Mapping[str, Taxonomy],
    path: Path,
) -> None:
    """DataError before anything is made where the config asks for more than the weights hold: what is made on the CPU
    (timm's networks) takes its memory at once."""
    fault = ""
    for head, k in heads.items():
        if head in taxonomies and len(taxonomies[head]) != k:
            fault = f"{k} classes and {len(taxonomies[head])} names for {printable(head)[:80]!r}"
    if wrong := [head for head in heads if not _is_head(head)]:
        fault = f"a head {printable(wrong[0])[:80]!r}, whose name is none"
    elif set(heads) != set(taxonomies):
        fault = "other heads than it names the classes of"
    elif len(heads) > len(stored.header):
        fault = f"{len(heads)} heads for {len(stored.header)} tensors"
    elif any(k > max((t.shape[0] for t in stored.header.values() if t.shape), default=0) for k in heads.values()):
        fault = f"more classes ({max(heads.values())}) than any tensor has rows"
    elif network.trunk.startswith("timm:"):
        held = sum(math.prod(t.shape) for t in stored.header.values())
        needed = timm_parameters(network.trunk.removeprefix("timm:"))
        if needed > held:
            fault = f"a trunk of {needed:,} weights, where {held:,} are stored"
    if fault:
        raise DataError(f"{printable(path)}/config.json does not fit its weights: it has {fault}; save it again.")


def put_preprocessing(model: FCN, how: Preprocessing, directory: Path) -> None:
    """Give `model` the stored preprocessing; DataError where it is for another number of channels."""
    if how.channels != model.preprocessing.channels:
        raise DataError(
            f"{printable(directory)}/preprocessor_config.json is for {how.channels} channels, the network takes "
            f"{model.preprocessing.channels}; save it again."
        )
    model.preprocessing = how
