"""Upsampling of coarse scores, and what is wanted of the result, without holding it: labels, confidence, loss.

Every function takes coarse scores N K h w (float32, float64, bfloat16 or float16; half types are computed in float32)
and the geometry of the last upsampling: `stride` s (whole) and `offset` (pixels, whole or rational, one number or
(rows, columns)). Definition: the transposed convolution with the bilinear kernel of width 2 s - s % 2 and stride s,
cropped from `offset` as Caffe does; see `fullyconv.ops.sampling` for rational offsets. Outside the coarse map lies
zero (`border="fade"`, the paper's) or the nearest cell ("replicate"; with offset = s // 2 that is
`interpolate(align_corners=False)`). Stride 1 is a crop.

`impl` names an implementation, None takes the one that `choose` names. All agree with `reference` up to rounding.
Source of the definition: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
2015, 3.3.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

import fullyconv.ops.fused as fused
import fullyconv.ops.reference as reference
from fullyconv.errors import UnknownName, UsageError
from fullyconv.ops.autocast import without_autocast
from fullyconv.ops.loss import Loss, Reduction, check_values, weight_of
from fullyconv.ops.sampling import Border, NotFinite, Offset, Sampling

__all__ = [
    "choose",
    "label_dtype",
    "upsample",
    "upsample_argmax",
    "upsample_cross_entropy",
    "upsample_dice",
    "upsample_focal",
    "upsample_lovasz",
    "upsample_softmax_max",
    "upsample_tversky",
]

IMPLEMENTATIONS = {  # each a module with the same functions, imported when it is asked for
    "chunked": "fullyconv.ops.chunked",
    "numba": "fullyconv.ops.numba",
    "reference": "fullyconv.ops.reference",
    "triton": "fullyconv.ops.triton",
}
OPERATIONS = ("upsample", "upsample_argmax", "upsample_cross_entropy", "upsample_softmax_max")


def choose(operation: str, scores: Tensor, impl: str | None = None) -> str:
    """The implementation that `operation` ("upsample", "upsample_argmax", ...) takes for scores like these.

    With `impl` None: `upsample` is torch's own interpolation or two matrix products ("chunked"). The rest runs compiled
    where it can: "numba" on the CPU for float32 and half types, "triton" on a GPU; without these packages, for
    float64 and where a score is not finite, "chunked". A named one is returned if it can be had; raises UnknownName
    or UsageError if not.
    """
    if operation not in OPERATIONS:
        raise UnknownName("operation", operation, OPERATIONS)
    name = _choose(operation, scores, impl)
    if name != "numba" or math.isfinite(float(scores.detach().sum())):
        return name
    return _instead(impl)


def _choose(operation: str, scores: Tensor, impl: str | None) -> str:
    """As `choose`, but the scores' values are not looked at."""
    if impl is None:
        fast = _fast(scores)
        return fast if operation != "upsample" and _obstacle(fast, scores) is None else "chunked"
    if impl not in IMPLEMENTATIONS:
        raise UnknownName("implementation", impl, IMPLEMENTATIONS)
    obstacle = _obstacle(impl, scores)
    if obstacle is not None:
        raise _refusal(impl, obstacle)
    return impl


def _refusal(impl: str, obstacle: str) -> UsageError:
    return UsageError(f"impl={impl!r} cannot run here: {obstacle}; leave impl out to have the best one that can.")


def _instead(impl: str | None) -> str:
    """What takes scores that are not all finite in the place of compiled kernels."""
    if impl is not None:
        raise _refusal(impl, "the scores are not all finite")
    return "chunked"


def _labels_by(
    operation: str,
    impl: str | None,
    scores: Tensor,
    size: Sequence[int],
    stride: int,
    offset: Offset,
    border: Border,
) -> Any:
    """What the module in charge gives. Compiled kernels notice scores that are not finite as they read them: a look at
    all of them beforehand would take a good part of the time, and so would autocast, which they know nothing of.
    """
    sampling, dtype = _sampling(scores, size, stride, offset, border), label_dtype(scores.shape[1])
    function = "label" if operation == "upsample_argmax" else "label_and_confidence"
    name = _choose(operation, scores, impl)
    if name == "numba":
        try:
            return getattr(_module(name), function)(scores, sampling, dtype)
        except NotFinite:
            name = _instead(impl)
    with without_autocast(scores):
        return getattr(_module(name), function)(scores, sampling, dtype)


def _fast(scores: Tensor) -> str:
    return "numba" if scores.device.type == "cpu" else "triton"


def _obstacle(impl: str, scores: Tensor) -> str | None:
    """Why an implementation cannot take these scores, or None."""
    if impl in ("reference", "chunked"):
        return None
    if scores.dtype == torch.float64:
        return "it computes in float32 and the scores are float64"
    if scores.shape[1] > 65535:
        return f"{scores.shape[1]} classes do not fit 16-bit labels"
    if impl == "triton":
        found: str | None = _module(impl).obstacle(scores)
        return found
    if scores.device.type != "cpu":
        return f"it runs on the CPU and the scores are on {scores.device}"
    return None if _installed("numba") else "the package numba is not installed"


@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def _module(impl: str) -> Any:
    return importlib.import_module(IMPLEMENTATIONS[impl])


def label_dtype(classes: int) -> torch.dtype:
    """uint8 up to 255 classes (255 stays free for "ignore"), else uint16."""
    return torch.uint8 if classes <= 255 else torch.uint16


def upsample(
    scores: Tensor,
    size: Sequence[int],
    stride: int,
    offset: Offset,
    border: Border = "fade",
    impl: str | None = None,
) -> Tensor:
    """Coarse scores N K h w -> full scores N K H W (float32, or float64 as given), differentiable."""
    scores = _checked(scores)
    upsampled = _module(choose("upsample", scores, impl)).upsample
    with without_autocast(scores):
        full: Tensor = upsampled(scores, _sampling(scores, size, stride, offset, border))
    return full


def upsample_argmax(
    scores: Tensor,
    size: Sequence[int],
    stride: int,
    offset: Offset,
    border: Border = "fade",
    impl: str | None = None,
) -> Tensor:
    """The class with the largest upsampled score (the first of equals): N H W, uint8 up to 255 classes, else
    uint16.
    """
    scores = _checked(_detached(scores))
    labels: Tensor = _labels_by("upsample_argmax", impl, scores, size, stride, offset, border)
    return labels


def upsample_softmax_max(
    scores: Tensor,
    size: Sequence[int],
    stride: int,
    offset: Offset,
    border: Border = "fade",
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(labels, confidence): labels as `upsample_argmax`; confidence N H W float32, that class's softmax
    probability.
    """
    scores = _checked(_detached(scores))
    labels, confidence = _labels_by("upsample_softmax_max", impl, scores, size, stride, offset, border)
    return labels, confidence.to(torch.float32)


def upsample_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    *,
    border: Border = "fade",
    ignore: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    top_k: float | None = None,
    reduction: Reduction = "mean",
    impl: str | None = None,
) -> Tensor:
    """Softmax cross entropy between upsampled scores and labels N H W (any integer dtype; `ignore` does not count).

    weight: K positive class weights; the mean divides by the sum of the counted pixels' weights, as torch's does.
    label_smoothing: share in [0, 1) of the label spread over all classes. top_k: share in (0, 1] of the labelled
    pixels that count, the hardest first (ties with the last of them count too). A mean over no pixel at all is 0,
    with zero gradient. Returns a number, or N H W for reduction "none". Raises DataError for a label that is neither
    a class nor `ignore`.
    """
    scores = _checked(scores)
    loss = _loss(scores, ignore, weight, label_smoothing, top_k, reduction)
    _check_labels(scores, labels)
    name = choose("upsample_cross_entropy", scores, impl)
    sampling = _sampling(scores, labels.shape[1:], stride, offset, border)
    if name != "numba":  # whose kernel looks at every label anyway
        check_values(labels, scores.shape[1], ignore)
    with without_autocast(scores):
        if name == "reference":
            return reference.cross_entropy(scores, labels.to(torch.int64), sampling, loss)
        return fused.fused_cross_entropy(scores, labels, sampling, loss, _module(name).ENGINE)


def upsample_focal(
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    *,
    gamma: float = 2.0,
    border: Border = "fade",
    ignore: int = 255,
    weight: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    impl: str | None = None,
) -> Tensor:
    """Focal loss: cross entropy times (1 - p)^gamma, p the probability of the pixel's own class.

    Arguments as `upsample_cross_entropy`; the mean divides by the sum of the labelled pixels' class weights. impl:
    "chunked" (None) or "reference". Source: Lin et al., ICCV 2017.
    """
    if not 0 <= gamma < math.inf:
        raise UsageError(f"gamma is {gamma}; give a number of at least 0 (2 is usual).")
    if reduction not in ("mean", "sum"):
        raise UnknownName("reduction", reduction, ["mean", "sum"])
    total = _by_strips("focal", scores, labels, stride, offset, border, ignore, weight, impl, float(gamma))
    if reduction == "sum":
        return total
    share = weight_of(labels, Loss(ignore, None if weight is None else weight.to(total))).sum().to(total.dtype)
    return total / share if bool(share > 0) else total * 0


def upsample_tversky(
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    border: Border = "fade",
    ignore: int = 255,
    weight: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Tversky loss: 1 - TP / (TP + alpha FP + beta FN) by probabilities, summed over the labelled pixels of the batch.

    The mean is over the classes that occur in the labels, by their `weight`; 0 where none does. beta above alpha
    counts what is missed more than what is too much. impl: "chunked" (None; two passes over strips) or "reference".
    Source: Salehi et al., MLMI 2017.
    """
    if not (alpha > 0 and beta > 0 and alpha + beta < math.inf):
        raise UsageError(f"alpha and beta are {alpha} and {beta}; give two numbers above 0, such as 0.3 and 0.7.")
    return _by_strips(
        "tversky", scores, labels, stride, offset, border, ignore, weight, impl, float(alpha), float(beta)
    )


def upsample_dice(
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    *,
    border: Border = "fade",
    ignore: int = 255,
    weight: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Dice loss, 1 - 2 sum(p t) / (sum(p) + sum(t)): `upsample_tversky` with alpha = beta = 1/2."""
    return upsample_tversky(
        scores, labels, stride, offset, alpha=0.5, beta=0.5, border=border, ignore=ignore, weight=weight, impl=impl
    )


def upsample_lovasz(
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    *,
    border: Border = "fade",
    ignore: int = 255,
    weight: Tensor | None = None,
    impl: str | None = None,
) -> Tensor:
    """Lovász-Softmax: the convex extension of 1 - IU over the labelled pixels of the batch.

    The mean is over the classes that occur in the labels, by their `weight`; 0 where none does. Every class's pixels
    are sorted, which takes N H W numbers (never N K H W). impl: "chunked" (None) or "reference".
    Source: Berman et al., CVPR 2018.
    """
    return _by_strips("lovasz", scores, labels, stride, offset, border, ignore, weight, impl)


def _by_strips(
    name: str,
    scores: Tensor,
    labels: Tensor,
    stride: int,
    offset: Offset,
    border: Border,
    ignore: int,
    weight: Tensor | None,
    impl: str | None,
    *options: float,
) -> Tensor:
    """A loss of `strip_losses`, or its twin of `reference_losses`."""
    if impl not in (None, "chunked", "reference"):
        raise UnknownName("implementation", str(impl), ["chunked", "reference"])
    scores = _checked(scores)
    weight = _loss(scores, ignore, weight, 0.0, None, "sum").weight
    _check_labels(scores, labels)
    check_values(labels, scores.shape[1], ignore)
    sampling = _sampling(scores, labels.shape[1:], stride, offset, border)
    module = importlib.import_module(f"fullyconv.ops.{'reference' if impl == 'reference' else 'strip'}_losses")
    # int64: torch cannot compare uint16, and a negative ignore value would wrap around in uint8.
    with without_autocast(scores):
        loss: Tensor = getattr(module, name)(scores, labels.to(torch.int64), sampling, ignore, weight, *options)
    return loss


def _checked(scores: Tensor) -> Tensor:
    if scores.dim() != 4 or not scores.is_floating_point() or 0 in scores.shape[1:]:
        raise UsageError(
            f"Scores of shape {tuple(scores.shape)} and type {scores.dtype} cannot be upsampled; "
            "give floating N K h w, none empty."
        )
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.to(torch.float32)


def _detached(scores: Tensor) -> Tensor:
    return scores.detach() if scores.requires_grad else scores


def _sampling(scores: Tensor, size: Sequence[int], stride: int, offset: Offset, border: Border) -> Sampling:
    found: Sampling = _sampled((scores.shape[2], scores.shape[3]), (int(size[0]), int(size[1])), stride, offset, border)
    return found


@functools.lru_cache(maxsize=256)
def _sampled(coarse: tuple[int, int], size: tuple[int, int], stride: int, offset: Offset, border: Border) -> Sampling:
    """One object for each geometry: right after a network its code is cold, and Fractions take longer than pixels."""
    height, width = size
    if min(height, width, stride) < 1 or int(stride) != stride:
        raise UsageError(
            f"Cannot upsample to {height} x {width} with stride {stride}; all must be whole and at least 1."
        )
    if border not in ("fade", "replicate"):
        raise UnknownName("border rule", border, ["fade", "replicate"])
    pair = offset if isinstance(offset, tuple) else (offset, offset)
    rows, columns = (Fraction(o).limit_denominator(1 << 16) for o in pair)
    return Sampling.of(coarse, size, int(stride), (rows, columns), border)


def _loss(
    scores: Tensor,
    ignore: int,
    weight: Tensor | None,
    label_smoothing: float,
    top_k: float | None,
    reduction: Reduction,
) -> Loss:
    classes = scores.shape[1]
    if weight is not None:
        if tuple(weight.shape) != (classes,):
            raise UsageError(
                f"Class weights of shape {tuple(weight.shape)} do not fit {classes} classes; give one per class."
            )
        weight = weight.detach().to(scores)
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing is {label_smoothing}; give a share from 0 to below 1.")
    if top_k is not None and not 0 < top_k <= 1:
        raise UsageError(f"top_k is {top_k}; give the share of pixels to keep, above 0 and at most 1.")
    if reduction not in ("mean", "sum", "none"):
        raise UnknownName("reduction", reduction, ["mean", "sum", "none"])
    return Loss(ignore, weight, float(label_smoothing), top_k, reduction)


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if labels.dim() != 3 or labels.is_floating_point() or labels.shape[0] != scores.shape[0]:
        raise UsageError(
            f"Labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit scores of shape "
            f"{tuple(scores.shape)}; give integers N H W."
        )
    if labels.device != scores.device:
        raise UsageError(f"Labels are on {labels.device} and scores on {scores.device}; move one to the other.")
