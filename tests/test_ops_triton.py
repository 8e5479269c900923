"""The GPU kernels equal the reference: on a GPU, and under Triton's interpreter in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import pytest
import torch

from fullyconv import ops
from fullyconv.errors import UsageError

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
here = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(), reason="no GPU; run interpreted by the test at the end"
)
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

GEOMETRIES = [
    (8, 4, "replicate", (40, 61)),
    (8, 31, "fade", (33, 29)),
    (5, 2, "fade", (21, 24)),
    (1, 0, "fade", (4, 5)),
    (32, 19, "fade", (70, 66)),
    (3, Fraction(7, 3), "replicate", (11, 13)),
    (2, -3, "fade", (9, 20)),
]


def case(classes: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(0)
    scores = torch.randn((2, classes, 5, 7), generator=make) * 3
    labels = torch.randint(0, classes, (2, *size), generator=make)
    labels[torch.rand(labels.shape, generator=make) < 0.2] = 255
    return scores.to(DEVICE), labels.to(DEVICE)


@here
@pytest.mark.parametrize(("stride", "offset", "border", "size"), GEOMETRIES)
def test_labels_and_confidence_equal_the_reference(stride: int, offset: Any, border: Any, size: Any) -> None:
    scores, _ = case(6, size)
    full = ops.upsample(scores, size, stride, offset, border, "reference")
    labels, confidence = ops.upsample_softmax_max(scores, size, stride, offset, border, "triton")
    alone = ops.upsample_argmax(scores, size, stride, offset, border, "triton")
    assert torch.equal(labels, alone)
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    assert float((full.amax(1) - chosen).max()) < 1e-5
    torch.testing.assert_close(confidence, full.softmax(1).amax(1), rtol=0, atol=2e-6)


@here
@pytest.mark.parametrize(("stride", "offset", "border", "size"), GEOMETRIES)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1, "weight": True}, {"top_k": 0.3}, {"reduction": "none"}]
)
def test_loss_and_gradient_equal_the_reference(
    stride: int, offset: Any, border: Any, size: Any, options: dict[str, Any]
) -> None:
    scores, labels = case(6, size)
    options = {**options, "border": border}
    if "weight" in options:
        options["weight"] = torch.linspace(0.1, 2, 6, device=DEVICE)
    found, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    value = ops.upsample_cross_entropy(found, labels.to(torch.uint8), stride, offset, **options, impl="triton")
    truth = ops.upsample_cross_entropy(exact, labels, stride, offset, **options, impl="reference")
    torch.testing.assert_close(value.double(), truth, rtol=2e-6, atol=5e-6)
    outer = torch.linspace(0.5, 2, value.numel(), device=DEVICE).reshape(value.shape)
    value.backward(outer)
    truth.backward(outer.double())
    assert found.grad is not None
    assert exact.grad is not None
    assert float((found.grad - exact.grad).abs().max()) < 1e-5 * float(exact.grad.abs().max()) + 1e-7


@here
def test_two_byte_labels_and_choice() -> None:
    scores = torch.zeros((1, 300, 3, 3), device=DEVICE)
    scores[:, 299] = 1
    labels = ops.upsample_argmax(scores, (8, 8), 4, 2, "replicate", "triton")
    assert labels.dtype == torch.uint16
    assert (labels.to(torch.int32) == 299).all()
    if DEVICE == "cuda":
        assert ops.choose("upsample_argmax", scores) == "triton"


def test_without_gpu_and_interpreter_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match="runs on a GPU"):
        ops.choose("upsample_argmax", torch.zeros(1, 2, 3, 3), "triton")


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreted run")
def test_the_kernels_equal_the_reference_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout
