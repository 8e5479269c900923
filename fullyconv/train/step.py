"""One step of learning: images in, gradients out. Nothing here knows about files, signals or the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fullyconv import ops
from fullyconv.engine.autograd import fast_convolutions
from fullyconv.interpolation.axes import Border
from fullyconv.models.interface import TrainableModel
from fullyconv.preprocessing import Preprocessing
from fullyconv.recipes import Recipe
from fullyconv.train.process_group import ProcessGroup

__all__ = ["Batch", "Outcome", "gradient_norm", "gradients", "network_input"]


@final
@dataclass(frozen=True)
class Batch:
    """One pass through the network: images N H W C (uint8, uint16 or float32), labels {head: N H W}, their names.

    A process without images of its own in a step gets one whose labels are all ignored, and no name.
    """

    images: NDArray[Any]
    labels: Mapping[str, NDArray[Any]]
    names: tuple[str, ...]


class _LossOptions(TypedDict):
    border: Border
    ignore: int
    weight: Tensor | None


@final
@dataclass(frozen=True)
class Outcome:
    """loss: what was minimised, on all processes together; pixel: mean cross-entropy a labelled pixel, unweighted
    units of nats (chance level: ln K, summed over heads); the loss itself where it has other terms."""

    loss: float
    pixel: float


def network_input(images: NDArray[np.number], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """N H W C as stored -> float32 N C H W in the network's convention, channels last in memory.

    Equal to `Preprocessing.__call__` up to rounding, but on the device and without another copy of the batch.
    """
    stored = images.astype(np.int32) if images.dtype == np.uint16 else images
    if not stored.flags.writeable:  # a buffer from a worker: torch takes writable arrays only
        stored = stored.copy()
    x = torch.from_numpy(stored).to(device, non_blocking=True).permute(0, 3, 1, 2)
    if preprocessing.order != tuple(range(x.shape[1])):
        x = x[:, list(preprocessing.order)]
    x = x.to(torch.float32, memory_format=torch.channels_last)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    if preprocessing.log:
        at = list(preprocessing.log)
        missing = x[:, at] <= 0
        logs = torch.where(missing, mean[:, at].expand_as(missing), x[:, at].clamp_min(1e-30).log())
        x = x * preprocessing.scale
        x[:, at] = logs
        return (x - mean).div_(std)
    return x.mul(preprocessing.scale / std).sub_(mean / std)  # not in place: x may be the caller's float32 array


def gradients(
    model: TrainableModel,
    batches: Sequence[Batch],
    recipe: Recipe,
    group: ProcessGroup,
    weights: Mapping[str, Tensor | None],
    scaler: torch.amp.GradScaler,
    clock: Callable[[str], object] = lambda _: None,
) -> Outcome:
    """Leave the gradient of the recipe's loss over all `batches` (of all processes) in the parameters' `.grad`.

    Splitting a step into more batches or processes changes the result by rounding alone (batch norm apart, whose
    statistics are each batch's own, and losses of regions, which see a batch's regions and are averaged by its
    images). weights: class weights by head. clock: told when a phase ends.
    """
    labels = [_labels(batch, model, group.device) for batch in batches]
    sums = _denominators(model, batches, labels, recipe, group, weights)
    total = torch.zeros((), device=group.device)
    for batch, label in zip(batches, labels, strict=True):
        x = network_input(batch.images, model.preprocessing, group.device)
        with _autocast(recipe, group.device), fast_convolutions():
            coarse = model.coarse(x)
        loss = _loss(model, coarse, label, x.shape[2:], recipe, sums, len(batch.names), weights)
        clock("forward")
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        clock("backward")
    group.sum_gradients([p for p in model.parameters() if p.requires_grad])
    group.mean_buffers(list(model.buffers()))
    return _outcome(group.sum(total), sums, recipe)


def _labels(batch: Batch, model: TrainableModel, device: torch.device) -> dict[str, Tensor]:
    """{head: N H W}; uint16 becomes int32, which torch can index with."""
    return {
        head: torch.from_numpy(label.astype(np.int32) if label.dtype == np.uint16 else label).to(device)
        for head, label in batch.labels.items()
        if head in model.heads
    }


@final
@dataclass(frozen=True)
class _Sums:
    """Of a step, over all processes and batches. By head: what the summed cross-entropy is divided by, the labelled
    pixels' class weights, and their number. images: how many."""

    shares: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]
    pixels: Mapping[str, Tensor]
    images: Tensor


def _denominators(
    model: TrainableModel,
    batches: Sequence[Batch],
    labels: Sequence[Mapping[str, Tensor]],
    recipe: Recipe,
    group: ProcessGroup,
    weights: Mapping[str, Tensor | None],
) -> _Sums:
    shares, pixels, weighted_pixels = {}, {}, {}
    images = group.sum(torch.tensor(float(sum(len(batch.names) for batch in batches)), device=group.device))
    for head in model.heads:
        counted = torch.zeros(2, device=group.device, dtype=torch.float64)
        for batch in labels:
            counted += _counted(batch[head], model.heads[head], model.taxonomies[head].ignore, weights.get(head))
        weighted, pixel = group.sum(counted)
        by_image = recipe.loss in ("sum", "image-mean")
        shares[head] = (images if by_image else weighted * recipe.top_k).clamp_min(1e-12).float()
        weighted_pixels[head] = weighted.clamp_min(1e-12).float()
        pixels[head] = pixel.clamp_min(1).float()
    return _Sums(shares, weighted_pixels, pixels, images)


def _counted(label: Tensor, classes: int, ignore: int, weight: Tensor | None) -> Tensor:
    """(sum of the labelled pixels' class weights, labelled pixels), float64."""
    if weight is None:
        n = (label != ignore).sum().double()
        return torch.stack((n, n))
    histogram = torch.bincount(label.flatten().long(), minlength=classes)[:classes].double()
    return torch.stack((histogram @ weight.double(), histogram.sum()))


def _autocast(recipe: Recipe, device: torch.device) -> Any:
    dtype = torch.float16 if recipe.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=recipe.precision != "fp32")


def _loss(
    model: TrainableModel,
    coarse: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    size: Sequence[int],
    recipe: Recipe,
    sums: _Sums,
    images: int,
    weights: Mapping[str, Tensor | None],
) -> Tensor:
    """This batch's part of the step's loss, summed over heads. images: of the batch."""
    geometry, parts = model.geometry(*size), []
    for head, label in labels.items():
        options: _LossOptions = {
            "border": geometry.border,
            "ignore": model.taxonomies[head].ignore,
            "weight": weights.get(head),
        }
        given = (coarse[head].float(), label, geometry.stride, geometry.offset)
        for term, factor in recipe.loss_terms.items():
            if term == "cross_entropy":
                part = _cross_entropy(*given, recipe, options) / sums.shares[head]
            elif term == "focal":
                focal = ops.upsample_focal(*given, gamma=recipe.focal_gamma, reduction="sum", **options)
                part = focal / sums.weighted[head]
            else:
                part = _of_regions(term, *given, recipe, options) * (images / sums.images).float()
            parts.append(part if factor == 1 else part * factor)
    return torch.stack(parts).sum()


def _cross_entropy(
    scores: Tensor, label: Tensor, stride: int, offset: float, recipe: Recipe, options: _LossOptions
) -> Tensor:
    """A batch's cross-entropy, summed over pixels, or over images of their means."""
    more: dict[str, Any] = {"label_smoothing": recipe.label_smoothing, "reduction": "sum"}
    if recipe.top_k < 1:
        more["top_k"] = recipe.top_k
    if recipe.loss != "image-mean":
        return ops.upsample_cross_entropy(scores, label, stride, offset, **options, **more)
    more["reduction"] = "mean"
    each = [
        ops.upsample_cross_entropy(scores[i : i + 1], label[i : i + 1], stride, offset, **options, **more)
        for i in range(len(label))
    ]
    return torch.stack(each).sum()


def _of_regions(
    term: str, scores: Tensor, label: Tensor, stride: int, offset: float, recipe: Recipe, options: _LossOptions
) -> Tensor:
    """A loss that compares regions: of all the images of a batch together."""
    if term == "tversky":
        alpha, beta = recipe.tversky
        return ops.upsample_tversky(scores, label, stride, offset, alpha=alpha, beta=beta, **options)
    loss = ops.upsample_dice if term == "dice" else ops.upsample_lovasz
    return loss(scores, label, stride, offset, **options)


def _outcome(total: Tensor, sums: _Sums, recipe: Recipe) -> Outcome:
    loss = float(total)
    if recipe.loss != "sum":
        return Outcome(loss, loss)
    head = next(iter(sums.shares))  # heads share their pixels, so one division serves the sum
    return Outcome(loss, loss * float(sums.shares[head]) / float(sums.pixels[head]))


def gradient_norm(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, limit: float) -> float:
    """Euclidean norm of all gradients (unscaled); they are scaled down to `limit` if that is above 0 and exceeded."""
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if limit > 0:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    return float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
