"""What a network does for the page: proposals, the order of the images, and score layers learned on kept features.

Features of the trunk are kept in files, float16, a window a file: an image of up to `WHOLE` pixels is one window; of
larger ones, the windows of `WINDOW` pixels a side that hold the most labels are learned from, and each is looked at by
itself. Proposals of images of one window are read off these very features, so that a network with other score layers
needs milliseconds for them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from fullyconv import tensorfile
from fullyconv.curation.features import Features, learn_heads, look, read_out, require_trunk
from fullyconv.errors import DataError, FullyconvError, MissingInput, UsageError
from fullyconv.files import make_directory
from fullyconv.images import read_image, read_label
from fullyconv.models import create, load, parse
from fullyconv.models.fcn import FCN
from fullyconv.models.surgery import init_from
from fullyconv.predict import Predictor
from fullyconv.taxonomy import Taxonomy

__all__ = ["FeatureFiles", "adapted", "learn_score_layers", "proposal", "require_network", "windows"]

WHOLE = 1_500_000  # pixels of an image that is looked at in one piece
WINDOW = 1024  # pixels a side of the windows of larger ones
_MOST_WINDOWS = 4  # of one image that are learned from
_TILE = 1024  # pixels a side of a proposal's tiles, as of the windows that are learned from
_STEPS = 300  # at most, of learning score layers
Window = tuple[int, int, int, int]  # half-open top, left, bottom, right


def require_network(name: str) -> None:
    """Raise what making the network `name` would: UnknownName; UsageError for a stride that its trunk lacks, or inputs
    other than colour. Weights are not allocated, but for trunks of timm, which are found out by looking at an image."""
    with torch.device("cpu" if parse(name).trunk.startswith("timm:") else "meta"):
        _require_colour(create(name, quiet=True))


def _require_colour(model: FCN) -> None:
    if model.preprocessing.channels != 3:
        raise UsageError("Labelling takes a network of colour images; this one takes others.")


def adapted(source: str, taxonomy: Taxonomy) -> FCN:
    """The network `source` (a run or model directory, or a network's name) with a head for the classes of `taxonomy`:
    scores of classes that it knows by name, zeros for the others.

    Raises UsageError for an exported file or a network of other inputs than colour, MissingInput for none of that name.
    """
    if os.path.isdir(source):
        model = require_trunk(load(source))
        _require_colour(model)
        if len(model.heads) > 1 or next(iter(model.taxonomies.values())).names != taxonomy.names:
            ours = create(
                model.name, taxonomies={"semantic": taxonomy}, padding=model.options.get("padding"),
                preprocessing=model.preprocessing, quiet=True,
            )  # fmt: skip
            init_from(ours, source)
            model = ours
        model.taxonomies = {next(iter(model.heads)): taxonomy}
        return model.eval()
    if os.path.exists(source) or "/" in source:
        raise MissingInput(f"{source} is no run or model directory; give one, or the name of a network.")
    parse(source)
    return create(source, taxonomies={"semantic": taxonomy}, weights="auto", quiet=True).eval()


def trunk_digest(model: FCN) -> str:
    """16 digits of the sha256 of all weights but the score layers': what features are kept under."""
    digest = hashlib.sha256(model.name.encode())
    heads = {id(p) for p in model.head_parameters()}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in heads:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@final
class FeatureFiles:
    """Features by (image's key, window) in the folder `folder`, of one trunk. A file that cannot be read is made
    anew."""

    def __init__(self, folder: Path, model: FCN) -> None:
        self.model, self.folder = model, folder / trunk_digest(model)
        make_directory(self.folder)

    def get(self, key: str, window: Window, image: Callable[[], NDArray[np.number]]) -> Features:
        """Kept features, or those of a look at image() now."""
        file = self.folder / f"{key}-{'-'.join(map(str, window))}.safetensors"
        try:
            stored = tensorfile.load_tensors(file)
        except (FullyconvError, OSError):
            stored = {}
        if not stored:
            top, left, bottom, right = window
            seen = look(self.model, np.ascontiguousarray(image()[top:bottom, left:right]))
            stored = {
                f"{stream}/{tap}": value.clamp(-65504, 65504).to(torch.float16).contiguous()
                for stream, taps in seen.features.items()
                for tap, value in taps.items()
            }
            part = self.folder / f".{secrets.token_hex(8)}"
            tensorfile.save_tensors(part, stored)
            os.rename(part, file)
        found: Features = {}
        for name, value in stored.items():
            stream, _, tap = name.rpartition("/")
            found.setdefault(stream, {})[int(tap)] = value.float()
        return found


def windows(labels: NDArray[np.integer], ignore: int) -> list[Window]:
    """The windows of a label map H W to learn from: all of a small one, else those with the most labels; none
    without."""
    height, width = labels.shape
    if height * width <= WHOLE:
        return [(0, 0, height, width)] if bool((labels != ignore).any()) else []
    found = []
    for top in range(0, height, WINDOW):
        for left in range(0, width, WINDOW):
            window = (top, left, min(height, top + WINDOW), min(width, left + WINDOW))
            count = int((labels[top : window[2], left : window[3]] != ignore).sum())
            if count and min(window[2] - top, window[3] - left) >= 32:
                found.append((-count, window))
    return [window for _, window in sorted(found)[:_MOST_WINDOWS]]


def proposal(model: FCN, kept: FeatureFiles, file: Path, key: str) -> NDArray[Any] | None:
    """The labels H W of an image; None of a network whose score layers have learned nothing yet. What the trunk sees
    is kept either way, for when somebody learns from the image."""
    image = read_image(file)
    height, width = image.shape[:2]
    if height * width > WHOLE:
        if model.untrained:
            return None
        found: NDArray[Any] = Predictor(model, tile=_TILE).labels(image)[next(iter(model.heads))]
        return found
    features = kept.get(key, (0, 0, height, width), lambda: image)
    if model.untrained:
        return None
    labels: NDArray[Any] = read_out(model, features, (height, width), next(iter(model.heads)))[0]
    return labels


@final
class _Kept:
    """Features of windows in memory, as `learn_heads` takes them."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._features: list[dict[str, dict[int, torch.Tensor]]] = []
        self.labels: list[NDArray[Any]] = []

    def add(self, features: Features, labels: NDArray[np.integer]) -> None:
        self._features.append({s: {t: v.half() for t, v in taps.items()} for s, taps in features.items()})
        self.sizes.append((labels.shape[0], labels.shape[1]))
        self.labels.append(labels)

    def __getitem__(self, index: int) -> Features:
        return {s: {t: v.float() for t, v in taps.items()} for s, taps in self._features[index].items()}


def learn_score_layers(
    model: FCN,
    kept: FeatureFiles,
    items: Sequence[tuple[str, Path, Path]],
    *,
    seconds: float,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> dict[str, Any]:
    """Learn `model`'s score layers from where they are, on (key, image, label map) each; what was done, as JSON."""
    head = next(iter(model.heads))
    ignore = model.taxonomies[head].ignore
    store = _Kept()
    for n, (key, image, label) in enumerate(items):
        progress("looking", n / len(items))
        labels = read_label(label)
        read: list[NDArray[Any]] = []

        def pixels(image: Path = image, read: list[NDArray[np.number]] = read) -> NDArray[Any]:
            read[:] = read or [read_image(image)]
            return read[0]

        for window in windows(labels, ignore):
            top, left, bottom, right = window
            store.add(kept.get(key, window, pixels), np.ascontiguousarray(labels[top:bottom, left:right]))
    if not store.labels:
        raise DataError("None of the images has a label yet; paint or accept something first.")
    for p in model.trunk_parameters():
        p.requires_grad_(False)
    steps = learn_heads(
        model, store, range(len(store.labels)), lambda i: store.labels[i], head=head, ignore=ignore,
        steps=min(_STEPS, 60 + 10 * len(store.labels)), anew=False, seconds=seconds,
        progress=lambda share: progress("learning", share),
    )  # fmt: skip
    return {"images": len(items), "windows": len(store.labels), "steps": steps}
