"""Labels, confidence and loss on a GPU by Triton kernels; with TRITON_INTERPRET=1 on the CPU too, interpreted.

Triton is imported on first use only.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

import fullyconv.ops.resize as resize
from fullyconv.ops.fused import Engine, Total
from fullyconv.ops.loss import Loss, weight_of
from fullyconv.ops.sampling import Axis, Sampling, coarse_window, fold

__all__ = ["ENGINE", "label", "label_and_confidence", "obstacle", "upsample"]

# Full scores are bound by writing them: nothing compiled here does it quicker.
upsample = resize.upsample

TILE = 512  # pixels of a program


def obstacle(scores: Tensor) -> str | None:
    """Why these kernels cannot run on such scores here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if scores.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on a GPU (or interpreted, with TRITON_INTERPRET=1) and the scores are on {scores.device}"
    return None


def label(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> Tensor:
    """N H W of `dtype` (uint8 or uint16)."""
    return _labels(scores, sampling, dtype, False)[0]


def label_and_confidence(scores: Tensor, sampling: Sampling, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """N H W of `dtype` and N H W float32."""
    return _labels(scores, sampling, dtype, True)


def losses(scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss) -> Tensor:
    """N H W float32, 0 where ignored."""
    return _pass(scores, labels, sampling, loss, None, False)[0]


def total(
    scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, share: Tensor | None, gradient: bool
) -> Total:
    """One pass for the value and, if wanted, the gradient N K h w."""
    each, slope = _pass(scores, labels, sampling, loss, share, gradient)
    weight = weight_of(_plain(labels), loss).double()
    if share is not None:
        each, weight = each * share, weight * share
    return Total(each.sum(dtype=torch.float64).to(torch.float32), weight.sum(), slope)


ENGINE = Engine(losses, total)


def _labels(scores: Tensor, sampling: Sampling, dtype: torch.dtype, with_confidence: bool) -> tuple[Tensor, Tensor]:
    from fullyconv.ops.triton_kernels import labels_kernel

    cells = coarse_window(scores, sampling).contiguous()
    labels = torch.empty((len(scores), *sampling.size), dtype=dtype, device=scores.device)
    confidence = torch.empty(labels.shape if with_confidence else (0,), device=scores.device)
    grid, tile = _grid(cells, sampling)
    # Triton knows no unsigned 16-bit pointers everywhere; the bits are the same.
    raw = labels if dtype == torch.uint8 else labels.view(torch.int16)
    if labels.numel():
        labels_kernel[grid](
            cells, *_phases(sampling, cells), raw, confidence, *_shape(cells, sampling), **tile, SURE=with_confidence
        )
    return labels, confidence


def _pass(
    scores: Tensor, labels: Tensor, sampling: Sampling, loss: Loss, share: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    from fullyconv.ops.triton_kernels import loss_kernel

    cells = coarse_window(scores.detach(), sampling).contiguous()
    images, classes, rows, columns = cells.shape
    each = torch.zeros(labels.shape, device=scores.device)
    weight = torch.ones(classes, device=scores.device) if loss.weight is None else loss.weight.to(torch.float32)
    extra = weight * (loss.label_smoothing / classes)
    corners = torch.empty((4, images, classes, rows - 1, columns - 1) if wanted else (0,), device=scores.device)
    grid, tile = _grid(cells, sampling)
    if each.numel():
        loss_kernel[grid](
            cells,
            *_phases(sampling, cells),
            _plain(labels).contiguous(),
            weight * (1 - loss.label_smoothing),
            extra,
            float(extra.double().sum()) if loss.label_smoothing else 0.0,
            each if share is None else share.detach().to(torch.float32).contiguous(),
            each,
            corners,
            corners.numel() // 4,
            *_shape(cells, sampling),
            loss.ignore,
            **tile,
            SMOOTH=loss.label_smoothing > 0,
            SHARED=share is not None,
            GRADIENT=wanted,
        )
    if not wanted:
        return each, None
    gradient = torch.zeros_like(cells)
    for corner, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        gradient[:, :, down : rows - 1 + down, right : columns - 1 + right] += corners[corner]
    return each, fold(gradient, sampling)


def _plain(labels: Tensor) -> Tensor:
    """Labels of a type that Triton loads and torch compares: bytes and signed integers as they are."""
    return labels.to(torch.int32) if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels


def _grid(cells: Tensor, sampling: Sampling) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Programs (blocks of intervals, bands, images) and their tile."""
    images, _, rows, columns = cells.shape
    side = 1 << (sampling.stride - 1).bit_length()
    intervals = max(1, min(TILE // (side * side), 1 << (columns - 2).bit_length()))
    return (-(-(columns - 1) // intervals), rows - 1, images), {"S": side, "B": intervals}


def _phases(sampling: Sampling, cells: Tensor) -> tuple[Tensor, Tensor]:
    def table(axis: Axis) -> Tensor:
        return torch.tensor(axis.phases(), dtype=torch.float32, device=cells.device)

    return table(sampling.rows), table(sampling.columns)


def _shape(cells: Tensor, sampling: Sampling) -> tuple[Any, ...]:
    """K, rows, columns, H, W, lead of both axes, stride."""
    lead = sampling.rows.lead, sampling.columns.lead
    return (*cells.shape[1:], *sampling.size, *lead, sampling.stride)
