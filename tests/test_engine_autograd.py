"""Learning through fast convolutions is learning through torch's own, up to rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv import models
from fullyconv.engine import autograd, winograd
from fullyconv.engine.autograd import conv2d, fast_convolutions
from fullyconv.engine.thresholds import Thresholds


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(call: Any, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, and the gradients of a loss that weighs every number of it differently."""
    given = [t.detach().to(dtype).requires_grad_() for t in tensors]
    y = call(*given)
    (y * drawn(5, *y.shape).to(y.dtype)).sum().backward()
    return [y.detach(), *(t.grad for t in given)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("batch", "size", "padding"),
    [
        (1, (3, 3), (0, 0)),
        (2, (13, 18), (1, 1)),
        (3, (9, 4), (1, 2)),
        (1, (1, 1), (2, 1)),
        (1, (90, 62), (1, 1)),
    ],  # the last in several turns of 2 MiB
)
def test_results_and_all_gradients_are_those_of_torch(batch, size, padding, layout) -> None:
    tensors = [drawn(0, batch, 32, *size).contiguous(memory_format=layout)]
    tensors += [(drawn(1, 48, 32, 3, 3) / 17).contiguous(memory_format=layout), drawn(2, 48)]
    exact = with_gradients(lambda x, w, b: F.conv2d(x, w, b, padding=padding), tensors, torch.float64)
    found = with_gradients(lambda x, w, b: conv2d(x, w, b, padding), tensors, torch.float32)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 3e-6 * theirs.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "padding"), [((7, 7), (0, 0)), ((3, 5), (2, 1)), ((1, 1), (0, 0))])
def test_a_product_with_windows_is_the_convolution_with_all_gradients(kernel, padding, layout) -> None:
    tensors = [drawn(0, 2, 6, 9, 8).contiguous(memory_format=layout)]
    tensors += [drawn(1, 10, 6, *kernel).contiguous(memory_format=layout), drawn(2, 10)]
    exact = with_gradients(lambda x, w, b: F.conv2d(x, w, b, padding=padding), tensors, torch.float64)
    found = with_gradients(lambda x, w, b: autograd.multiply(x, w, b, padding), tensors, torch.float32)
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_very_many_weights_are_multiplied_at_any_precision_unless_windows_are_too_many(monkeypatch, autocast) -> None:
    asked, real = [], autograd.multiply
    monkeypatch.setattr(autograd, "multiply", lambda *given: asked.append(1) or real(*given))
    huge, windows = 16 * 8 * 49 - 1, 6 * 5 * 8 * 49
    x, weight, bias = drawn(0, 1, 8, 12, 11), drawn(1, 16, 8, 7, 7) / 20, drawn(2, 16)
    rest = ((1, 1), (0, 0), (1, 1), 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = F.conv2d(x, weight, bias, *rest)
        with fast_convolutions(Thresholds(product_weights=huge, product_windows=windows)):
            y = F.relu_(F.conv2d(x, weight, bias, *rest))
            F.conv2d(x, weight[1:], None, *rest)  # fewer weights
        with fast_convolutions(Thresholds(product_weights=huge, product_windows=windows - 1)):
            F.conv2d(x, weight, bias, *rest)
    assert asked == [1]
    assert y.dtype == plain.dtype
    assert (y.float() - plain.float().relu()).abs().max() <= (0.05 if autocast else 1e-5)


def test_what_follows_may_change_the_result_in_place() -> None:
    x, weight = drawn(0, 2, 32, 9, 9), drawn(1, 32, 32, 3, 3) / 17
    exact = with_gradients(lambda x, w: F.conv2d(x, w, None, padding=1).relu_(), [x, weight], torch.float64)
    found = with_gradients(lambda x, w: conv2d(x, w, None, (1, 1)).relu_(), [x, weight], torch.float32)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).norm() <= 3e-6 * theirs.norm()


def test_gradients_that_nobody_wants_are_not_computed(monkeypatch) -> None:
    def unexpected(*_: Any) -> Tensor:
        raise AssertionError("computed")

    x, weight = drawn(0, 1, 32, 8, 8), drawn(1, 32, 32, 3, 3)
    y = conv2d(x.requires_grad_(), weight, None, (1, 1))
    monkeypatch.setattr(winograd, "weight_gradient", unexpected)
    y.sum().backward()
    assert weight.grad is None
    monkeypatch.undo()
    y = conv2d(x.detach(), weight.requires_grad_(), None, (1, 1))
    monkeypatch.setattr(winograd, "convolve", unexpected)
    y.sum().backward()
    assert weight.grad is not None


class Counted:
    """How many convolutions went the fast way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        real = autograd.conv2d

        def counting(*given: Any) -> Tensor:
            self.calls += 1
            return real(*given)

        monkeypatch.setattr(autograd, "conv2d", counting)


@pytest.mark.slow
def test_a_network_learns_the_same_and_its_wide_layers_go_the_fast_way(monkeypatch) -> None:
    counted = Counted(monkeypatch)
    model = models.create("fcn8s-resnet18", 3, quiet=True).eval()  # batch statistics would enlarge all rounding
    with torch.no_grad():
        for p in model.head_parameters():
            p.copy_(drawn(p.numel(), *p.shape) * 0.1)
    exact = copy.deepcopy(model).double()

    def distance(x: Tensor) -> float:
        """The largest of all parameters' gradients, relative."""
        with fast_convolutions():
            scores = model.coarse(x)
        for network, found in ((model, scores), (exact, exact.coarse(x.double()))):
            network.zero_grad()
            found["semantic"].square().mean().backward()
        pairs = zip(model.parameters(), exact.parameters(), strict=True)
        return max(float((p.grad - e.grad).norm() / e.grad.norm()) for p, e in pairs)

    # A number at a ReLU's kink may fall on either side of it, with torch's own float32 as well: not in all images.
    assert min(distance(drawn(seed, 1, 3, 232, 232)) for seed in range(4)) <= 1e-5
    assert counted.calls == 4 * 4  # the first stage; further on maps are tiny


def test_what_does_not_pay_or_is_not_served_is_left_to_torch(monkeypatch) -> None:
    counted = Counted(monkeypatch)
    x, weight = drawn(0, 1, 32, 40, 40), drawn(1, 32, 32, 3, 3)
    one = ((1, 1), (1, 1), (1, 1), 1)
    with fast_convolutions():
        F.conv2d(x[:, :, :20, :20], weight, None, *one)
        F.conv2d(x, weight, None, (2, 2), (1, 1), (1, 1), 1)
        F.conv2d(x, weight, None, (1, 1), (2, 2), (2, 2), 1)
        F.conv2d(x, weight, None, (1, 1), (3, 3), (1, 1), 1)
        F.conv2d(x, weight, None, (1, 1), "same", (1, 1), 1)
        F.conv2d(x, weight[:, :16], None, (1, 1), (1, 1), (1, 1), 2)
        F.conv2d(x[0], weight, None, *one)
        F.conv2d(x.double(), weight.double(), None, *one)
        F.conv2d(x.to("meta"), weight.to("meta"), None, *one)
        F.conv2d(x, weight, padding=1)
        with torch.autocast("cpu", torch.bfloat16):
            assert F.conv2d(x, weight, None, *one).dtype == torch.bfloat16
        assert counted.calls == 0
        F.conv2d(x, weight, None, *one)
    assert counted.calls == 1
    F.conv2d(x, weight, None, *one)
    assert counted.calls == 1


def test_without_numba_nothing_changes(monkeypatch) -> None:
    counted = Counted(monkeypatch)
    monkeypatch.setattr(winograd, "installed", lambda: False)
    with fast_convolutions():
        F.conv2d(drawn(0, 1, 32, 40, 40), drawn(1, 32, 32, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    assert counted.calls == 0
