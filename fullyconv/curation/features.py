"""What a network sees in an image, kept: pooled features tell images apart, whole ones let score layers learn soon.

A trunk is looked through once an image; its features lie in one temporary file as float16 (0.4 MiB for 360 x 480
pixels and an EfficientNet-Lite0), so memory does not grow with the images.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fullyconv import ops
from fullyconv.errors import UsageError
from fullyconv.files.disk import storage_errors
from fullyconv.models.fcn import FCN
from fullyconv.predict.inputs import Image, as_array, fitted

__all__ = [
    "FeatureStore",
    "Features",
    "KeptFeatures",
    "Look",
    "kept_heads",
    "learn_heads",
    "look",
    "probability_of",
    "read_out",
    "read_scores",
    "require_trunk",
    "scores",
]

Features = dict[str, dict[int, Tensor]]  # stream -> {stride: 1 C h w}


def require_trunk(model: object) -> FCN:
    """`model` where its features can be had; UsageError for an exported file or a network of another kind."""
    if not isinstance(model, FCN):
        raise UsageError("Features are those of a network's trunk; give a model or run directory, no exported file.")
    return model.eval()


@final
@dataclass(frozen=True)
class Look:
    """One image through the trunk: `size` H W, the features at the network's taps, and `pooled`: mean and spread of
    each channel of the coarsest tap, D float32."""

    size: tuple[int, int]
    features: Features
    pooled: NDArray[np.float32]


@torch.inference_mode()
def look(model: FCN, image: Image) -> Look:
    """image (as `Predictor` takes it) -> its features."""
    channels = model.preprocessing.channels
    array = fitted(as_array(image, None), channels, channels == 3)
    device = next(model.parameters()).device
    x = torch.from_numpy(model.preprocessing(array))[None].to(device)
    found: Features = {}
    pooled = []
    for key, stream in model.streams.items():
        every = stream.features(x[:, stream.channels])  # type: ignore[operator,index]
        found[key] = {tap: every[tap] for tap in model.taps}
        coarsest = every[model.taps[0]].float()
        pooled += [coarsest.mean((0, 2, 3)), coarsest.std((0, 2, 3), correction=0)]
    return Look((array.shape[0], array.shape[1]), found, torch.cat(pooled).cpu().numpy())


def scores(model: FCN, features: Features, head: str) -> Tensor:
    """Coarse scores 1 K h w of features that were kept."""
    return model.fuse(features, head)


@torch.inference_mode()
def read_out(model: FCN, features: Features, size: tuple[int, int], head: str) -> Any:
    """(labels H W, their probability H W, coarse scores) of features; nothing of K x H x W is held."""
    coarse = scores(model, features, head)
    return *read_scores(model, coarse, size), coarse


@torch.inference_mode()
def read_scores(model: FCN, coarse: Tensor, size: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """(labels H W, their probability H W) of coarse scores."""
    g = model.geometry(*size)
    labels, confidence = ops.upsample_softmax_max(coarse, size, g.stride, g.offset, g.border)
    return labels[0].cpu().numpy(), confidence[0].cpu().numpy()


@torch.inference_mode()
def probability_of(
    model: FCN, coarse: Tensor, labels: NDArray[np.integer], size: tuple[int, int], ignore: int
) -> NDArray[np.float32]:
    """The probability of the given labels H W (0 where they are `ignore`): exp of minus their cross entropy."""
    g = model.geometry(*size)
    wanted = torch.from_numpy(labels.astype(np.int64))[None]
    loss = ops.upsample_cross_entropy(
        coarse, wanted, g.stride, g.offset, border=g.border, ignore=ignore, reduction="none"
    )
    return np.where(labels == ignore, np.float32(0), torch.exp(-loss)[0].numpy())


class KeptFeatures(Protocol):
    """Features of images by number, and the `sizes` H W of these images."""

    sizes: list[tuple[int, int]]

    def __getitem__(self, index: int) -> Features: ...


@final
class FeatureStore:
    """Features of many images in one temporary file without a name, float16."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+b", buffering=0)  # noqa: SIM115 - closed by `close`
        self._places: list[list[tuple[str, int, tuple[int, ...], int]]] = []
        self.sizes: list[tuple[int, int]] = []
        self._end = 0

    def add(self, seen: Look) -> int:
        """Keep an image's features; its number."""
        places = []
        with storage_errors("Writing", tempfile.gettempdir()):
            for key, taps in seen.features.items():
                for tap, value in taps.items():
                    # Beyond float16 lies nothing that normalised features reach.
                    data = value.clamp(-65504, 65504).to(torch.float16).cpu().contiguous().numpy().tobytes()
                    places.append((key, tap, tuple(value.shape), self._end))
                    written = 0
                    while written < len(data):
                        written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
                    self._end += len(data)
        self._places.append(places)
        self.sizes.append(seen.size)
        return len(self._places) - 1

    def __getitem__(self, index: int) -> Features:
        found: Features = {}
        for key, tap, shape, at in self._places[index]:
            data = os.pread(self._file.fileno(), 2 * math.prod(shape), at)
            found.setdefault(key, {})[tap] = torch.from_numpy(
                np.frombuffer(data, np.float16).reshape(shape).copy()
            ).float()
        return found

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        self._file.close()


@contextmanager
def kept_heads(model: FCN) -> Iterator[None]:
    """Put the score layers back afterwards."""
    before = [p.detach().clone() for p in model.head_parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(model.head_parameters(), before, strict=True):
                p.copy_(old)


def learn_heads(
    model: FCN,
    store: KeptFeatures,
    indices: Sequence[int],
    labels: Callable[[int], NDArray[np.integer]],
    *,
    head: str,
    ignore: int,
    steps: int,
    batch: int = 4,
    lr: float = 2e-3,
    seed: int = 0,
    weight: Tensor | None = None,
    anew: bool = True,
    seconds: float = math.inf,
    progress: Callable[[float], None] | None = None,
) -> int:
    """Learn the score layers on kept features of the images `indices`, from zeros where `anew`; the trunk stays as it
    is.

    labels(i): H W ids of image i. AdamW with a cosine schedule; the same arguments give the same layers, unless
    `seconds` end it first: the schedule then follows the clock. progress: told the share that is done, 0..1. Returns
    how many steps were taken.
    """
    parameters = list(model.head_parameters())
    draw = np.random.default_rng(seed)
    with torch.no_grad():
        for stream in model.streams.values() if anew else ():
            for p in stream.score[head].parameters():  # type: ignore[index,union-attr]
                p.zero_()
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    order: list[int] = []
    begun, done = time.monotonic(), 0
    while done < steps:
        share = max(done / steps, (time.monotonic() - begun) / seconds)
        if share >= 1:
            break
        if progress is not None:
            progress(share)
        rate = lr * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for _ in range(batch):
            order = order or [int(i) for i in draw.permutation(list(indices))]
            i = order.pop()
            size = store.sizes[i]
            g = model.geometry(*size)
            wanted = torch.from_numpy(labels(i).astype(np.int64))[None]
            loss = ops.upsample_cross_entropy(
                scores(model, store[i], head), wanted, g.stride, g.offset,
                border=g.border, ignore=ignore, weight=weight,
            )  # fmt: skip
            (loss / batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        if done == 1:
            begun = time.monotonic()  # kernels that were compiled meanwhile are no step's time
    return done
