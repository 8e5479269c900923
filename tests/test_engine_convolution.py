"""Convolutions by packed weights, a matrix of windows, Winograd's tiles and products of bytes: each is `F.conv2d`."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv import models
from fullyconv.engine import convolution, split_bytes, winograd
from fullyconv.engine.convolution import (
    Packed,
    Product,
    SplitBytes,
    Winograd,
    algorithm_for,
    choose_algorithm,
    copied_bytes,
    weight_digits,
)
from fullyconv.engine.folding import Convolution, fold_layers
from fullyconv.engine.prepare import prepare
from fullyconv.engine.spec import ConvolutionSpec
from fullyconv.engine.thresholds import Thresholds
from fullyconv.processor import has_native, instruction_sets

exact_bytes = pytest.mark.skipif(
    not ("avx512_vnni" in instruction_sets() and hasattr(torch.ops.onednn, "qconv2d_pointwise")),
    reason="this processor, or what oneDNN may use of it, multiplies bytes inexactly (no VNNI)",
)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def layer(stride=1, dilation=1, groups=1, relu=False, plain=None, **thresholds: int) -> ConvolutionSpec:
    once = (stride, stride), (dilation, dilation)
    return ConvolutionSpec(*once, groups, relu, True, plain or unexpected, Thresholds(**thresholds))


def unexpected(x: Tensor, padding: object) -> Tensor:
    raise AssertionError("the plain convolution was asked for")


def numbers(*shape: int, seed: int = 0, negative: bool = False) -> Tensor:
    """As behind a ReLU: half of them 0, a long tail."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x if negative else x.clamp(min=0) ** 1.5


def weights(out: int, into: int, kernel: int, seed: int = 1) -> Tensor:
    return torch.randn(out, into, kernel, kernel, generator=torch.Generator().manual_seed(seed)) / (into**0.5 * kernel)


def distance(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


# -- digits of numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(12))
def test_digits_are_those_of_the_slow_twin(case: int) -> None:
    rng = random.Random(case)
    x = numbers(rng.randint(1, 3), rng.randint(1, 20), rng.randint(1, 30), rng.randint(1, 30), seed=case)
    if case % 3 == 0:
        x = x.contiguous(memory_format=torch.channels_last)
    if case % 4 == 1:
        x = x.contiguous(memory_format=torch.channels_last)[:, :, x.shape[2] // 3 :, x.shape[3] // 2 :]
    scale = split_bytes.scale_of(x)
    assert scale is not None
    padding = (rng.randint(0, 3), rng.randint(0, 3))
    found = split_bytes.split(x, scale, padding)
    for a, b in zip(found, split_bytes.split_reference(x, scale, padding), strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous(memory_format=torch.channels_last)


def test_three_digits_make_up_the_number_to_half_a_step() -> None:
    x = numbers(1, 16, 40, 40)
    scale = split_bytes.scale_of(x)
    assert scale is not None
    a, b, c = (d.double() for d in split_bytes.split(x, scale, (0, 0)))
    whole = a * 65536 + (b - split_bytes.MIDDLE) * 256 + (c - split_bytes.MIDDLE)
    assert a.max() == 255  # all of the range is used
    assert (whole / scale - x.double()).abs().max() <= 1.01 / scale  # the product with the scale is rounded too


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-40])
def test_numbers_that_have_no_digits_are_told(value: float) -> None:
    assert split_bytes.scale_of(torch.full((1, 1, 2, 2), value)) is None


def test_zeros_have_digits() -> None:
    assert split_bytes.scale_of(torch.zeros(1, 1, 2, 2)) == 1


def test_weight_digits_make_up_the_weight_channel_by_channel() -> None:
    weight = weights(8, 16, 3) * torch.logspace(-6, 6, 8).view(-1, 1, 1, 1)
    weight[3] = 0
    scale, (a, b, c) = weight_digits(weight)
    whole = a.double() * 65536 + b.double() * 256 + c.double()
    assert all(d.dtype == torch.int8 for d in (a, b, c))
    assert ((whole / scale.view(-1, 1, 1, 1) - weight.double()).abs() <= 0.5001 / scale.view(-1, 1, 1, 1)).all()


# -- the four ways -----------------------------------------------------------------------------------------------------


@exact_bytes
@pytest.mark.parametrize(
    ("into", "out", "kernel", "stride", "dilation", "padding", "size"),
    [
        (256, 32, 3, 1, 1, (0, 0), (9, 11)),
        (256, 40, 3, 1, 1, (1, 2), (9, 7)),
        (300, 16, 3, 2, 1, (1, 1), (12, 9)),
        (256, 24, 3, 1, 2, (2, 2), (10, 10)),
        (2048, 64, 1, 1, 1, (0, 0), (6, 5)),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_products_of_bytes_are_as_near_to_float64_as_float32_is(
    into, out, kernel, stride, dilation, padding, size, batch
):
    x, weight = numbers(batch, into, *size), weights(out, into, kernel)
    bias = torch.linspace(-0.1, 0.1, out)
    way = SplitBytes(weight, bias, layer(stride, dilation))
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation)
    stock = F.conv2d(x, weight, bias, stride, padding, dilation)
    for _ in range(2):  # packing at the first call, as packed at the second
        y = way(x, padding)
        assert y.dtype == torch.float32
        assert y.shape == exact.shape
        assert distance(y, exact) <= max(2 * distance(stock, exact), 5e-7)


@exact_bytes
def test_products_of_bytes_end_in_relu_and_take_zeros() -> None:
    weight, bias = weights(32, 256, 3), torch.linspace(-1, 1, 32)
    way = SplitBytes(weight, bias, layer(relu=True))
    x = numbers(1, 256, 8, 8)
    assert torch.allclose(way(x, (1, 1)), F.conv2d(x, weight, bias, padding=1).relu(), atol=2e-5)
    assert torch.equal(way(torch.zeros(1, 256, 4, 4), (1, 1)), bias.clamp(min=0).view(1, -1, 1, 1).expand(1, 32, 4, 4))


@exact_bytes
def test_whole_numbers_convolve_without_any_error() -> None:
    """Weights and numbers that digits hold exactly: TOP and its parts, sums below 2^24 steps of float32."""
    x = torch.randint(0, 2, (1, 256, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    weight = torch.randint(-1, 2, (16, 256, 3, 3), generator=torch.Generator().manual_seed(1)).float()
    y, exact = SplitBytes(weight, None, layer())(x, (1, 1)), F.conv2d(x, weight, padding=1)
    assert (y - exact).abs().max() <= 2e-4
    assert torch.equal(y.round(), exact)


def test_what_is_not_finite_is_convolved_plainly() -> None:
    asked = []

    def plain(x: Tensor, padding: object) -> Tensor:
        asked.append(padding)
        return x

    x = numbers(1, 256, 4, 4)
    x[0, 0, 0, 0] = float("inf")
    SplitBytes(weights(8, 256, 3), None, layer(plain=plain))(x, (1, 1))
    assert asked == [(1, 1)]


HALF = pytest.mark.skipif(
    not has_native("bf16"), reason="the processor has no bfloat16, in which oneDNN has no product"
)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=HALF)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "size", "batch"),
    [
        (7, 1, 1, (0, 0), (22, 19), 1),
        (3, 2, 1, (1, 2), (13, 9), 2),
        (3, 1, 2, (2, 2), (9, 12), 1),
        (1, 1, 1, (0, 0), (40, 30), 1),
    ],
)
def test_a_matrix_of_windows_gives_the_convolution(kernel, stride, dilation, padding, size, batch, dtype, inner):
    x, weight = numbers(batch, 5, *size, negative=True).to(dtype), weights(6, 5, kernel).to(dtype)
    bias = torch.linspace(-1, 1, 6).to(dtype)
    if inner:
        weight = weight.contiguous(memory_format=torch.channels_last)
    turns = layer(stride, dilation, relu=True, part_bytes=37 * 45 * 4)  # several, the last one shorter
    way = Product(weight, bias, turns)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding, dilation).relu()
    y = way(x.contiguous(memory_format=torch.channels_last), padding)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y.double() - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 5e-2)


@HALF
def test_weights_of_another_type_are_converted_in_parts() -> None:
    x, weight, bias = numbers(1, 5, 9, 8).bfloat16(), weights(6, 5, 3), torch.linspace(-1, 1, 6).bfloat16()
    found = Product(weight, bias, layer(part_bytes=4 * 45 * 2))(x, (1, 1))
    assert torch.equal(found, Product(weight.bfloat16(), bias, layer())(x, (1, 1)))
    for tensor in (algorithm_for(weight, bias.float(), torch.bfloat16, layer()).weight, found):
        assert tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("inner", [False, True])
def test_the_matrix_of_windows_holds_no_copy_of_the_weights(inner: bool) -> None:
    weight = weights(6, 5, 3)
    if inner:
        weight = weight.contiguous(memory_format=torch.channels_last)
    assert Product(weight, None, layer()).matrix.data_ptr() == weight.data_ptr()


def test_packed_weights_serve_every_size() -> None:
    weight, bias = weights(8, 4, 3), torch.linspace(-1, 1, 8)
    way = Packed(weight, bias, layer(relu=True))
    for side in (5, 40, 9):
        x = numbers(1, 4, side, side + 1, negative=True).contiguous(memory_format=torch.channels_last)
        assert torch.allclose(way(x, (1, 1)), F.conv2d(x, weight, bias, padding=1).relu(), atol=1e-5)


# -- which one --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amx", [False, True])
def test_the_way_is_chosen_by_the_layer_and_the_processor(monkeypatch, amx: bool) -> None:
    monkeypatch.setattr(convolution, "has_byte_products", lambda: amx)
    monkeypatch.setattr(winograd, "installed", lambda: True)
    f32, b16 = torch.float32, torch.bfloat16
    signed = ConvolutionSpec((1, 1), (1, 1), 1, False, False, unexpected)
    assert choose_algorithm((512, 512, 3, 3), f32, layer()) is (SplitBytes if amx else Winograd)
    assert choose_algorithm((512, 512, 3, 3), b16, layer()) is Packed
    assert choose_algorithm((512, 512, 3, 3), f32, signed) is Winograd
    assert choose_algorithm((64, 64, 3, 3), f32, layer()) is Winograd
    assert choose_algorithm((64, 64, 3, 3), f32, layer(stride=2)) is Packed
    assert choose_algorithm((64, 64, 3, 3), f32, layer(dilation=2)) is Packed
    assert choose_algorithm((512, 256, 3, 3), f32, layer(groups=2)) is Packed
    assert choose_algorithm((64, 3, 3, 3), f32, layer()) is Packed
    assert choose_algorithm((48, 40, 3, 3), f32, layer()) is Packed  # not whole groups of 16 channels
    assert choose_algorithm((64, 64, 5, 5), f32, layer()) is Packed
    assert choose_algorithm((4096, 512, 7, 7), f32, layer()) is Product
    assert choose_algorithm((4096, 512, 7, 7), b16, signed) is Product
    assert choose_algorithm((4096, 4096, 1, 1), f32, layer()) is (SplitBytes if amx else Product)
    assert choose_algorithm((256, 64, 1, 1), f32, layer()) is Product
    monkeypatch.setattr(winograd, "installed", lambda: False)
    assert choose_algorithm((64, 64, 3, 3), f32, layer()) is Packed


@pytest.mark.parametrize("amx", [False, True])
def test_weights_that_are_not_finite_are_packed(monkeypatch, amx: bool) -> None:
    monkeypatch.setattr(convolution, "has_byte_products", lambda: amx)
    weight = weights(32, 256, 3)
    assert isinstance(algorithm_for(weight, None, torch.float32, layer()), SplitBytes if amx else Winograd)
    weight[0, 0, 0, 0] = float("nan")
    assert isinstance(algorithm_for(weight, None, torch.float32, layer()), Packed)


def test_copies_are_counted_by_the_way(monkeypatch) -> None:
    monkeypatch.setattr(convolution, "has_byte_products", lambda: True)
    fc6 = torch.empty(4096, 512, 7, 7, device="meta")
    assert copied_bytes(fc6, torch.float32, layer(), False) == 0
    assert copied_bytes(fc6, torch.float32, layer(), True) == 4 * fc6.numel()
    assert copied_bytes(fc6, torch.bfloat16, layer(), False) == 0
    conv = torch.empty(512, 512, 3, 3, device="meta")
    assert copied_bytes(conv, torch.float32, layer(), False) == 3 * conv.numel()
    assert copied_bytes(conv, torch.bfloat16, layer(), False) == 2 * conv.numel()
    score = torch.empty(64, 32, 1, 1, device="meta")
    assert copied_bytes(score, torch.float32, layer(), False) == 0
    assert copied_bytes(score, torch.bfloat16, layer(), False) == 2 * score.numel()
    monkeypatch.setattr(convolution, "has_byte_products", lambda: False)
    monkeypatch.setattr(winograd, "installed", lambda: True)
    assert copied_bytes(conv, torch.float32, layer(), False) == 0  # transformed anew in every call
    assert copied_bytes(conv, torch.float32, layer(), True) == 4 * conv.numel()
    small = torch.empty(64, 64, 3, 3, device="meta")
    assert copied_bytes(small, torch.float32, layer(), True) == winograd.transformed(torch.zeros(64, 64, 3, 3)).nbytes


def test_what_is_laid_out_beside_a_layer_is_counted_by_the_way(monkeypatch) -> None:
    monkeypatch.setattr(winograd, "installed", lambda: True)
    signed, f32, size = ConvolutionSpec((1, 1), (1, 1), 1, False, False, unexpected), torch.float32, (1, 400, 400)
    assert convolution.scratch_bytes((4096, 512, 7, 7), f32, layer(), (1, 16, 16)) == 3 * Thresholds().part_bytes
    assert convolution.scratch_bytes((64, 3, 3, 3), f32, layer(), size) == 0
    small = convolution.scratch_bytes((64, 64, 3, 3), f32, signed, size)
    workers = torch.get_num_threads()
    assert 1.9 * winograd.LEAST_PART * workers < small <= 2 * winograd.LEAST_PART * workers
    assert convolution.scratch_bytes((64, 64, 3, 3), f32, signed, (8, 5, 7)) == 8 * 2 * 2 * 2 * 64 * 36 * 4
    large = convolution.scratch_bytes((512, 512, 3, 3), f32, signed, size)
    assert 36 * 512 * 512 * 4 < large <= 36 * 512 * 512 * 4 + 2 * winograd.MOST_PART


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(n, 4, 3, padding=1) for n in (4, 4, 8, 4, 4))
        self.pool, self.norm = nn.MaxPool2d(2), nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.pool(self.relu(self.a(x)))
        y = F.relu(self.norm(self.b(x)))
        z = self.c(torch.cat([x, y], 1)) + y
        return {2: self.e(self.d(F.relu(z)))}


def test_layers_know_whether_they_are_given_negative_numbers() -> None:
    graph = fold_layers(Net().eval(), [2])
    known = {name: m.layer.from_zero_up for name, m in graph.named_modules() if isinstance(m, Convolution)}
    assert known == {"a": False, "b": True, "c": True, "d": True, "e": False}


def drawn_network(width: int) -> tuple[models.FCN, Tensor, Tensor]:
    """(a network, an image, its scores in float64)"""
    model = models.create("fcn8s-resnet18", 5, quiet=True).eval()
    for p in model.head_parameters():
        p.normal_(0, 0.01, generator=torch.Generator().manual_seed(p.numel()))
    x = numbers(1, 3, 97, width, negative=True)
    exact = model.double().coarse(x.double())["semantic"]
    return model.float(), x, exact


@exact_bytes
def test_a_network_computes_the_same_with_bytes_and_without(monkeypatch) -> None:
    model, x, exact = drawn_network(70)
    monkeypatch.setattr(winograd, "installed", lambda: False)
    errors = {}
    for pays in (False, True):
        monkeypatch.setattr(convolution, "has_byte_products", lambda pays=pays: pays)
        errors[pays] = distance(prepare(model)(x)["semantic"], exact)
    assert errors[True] != errors[False]  # it was used
    assert errors[True] <= max(2 * errors[False], 1e-6)


def test_large_weights_are_transformed_in_every_call_and_small_ones_once() -> None:
    weight, bias, x = weights(48, 32, 3), torch.linspace(-1, 1, 48), numbers(2, 32, 29, 18)
    convolution.SCRATCH.clear()
    always = {"kept_transform": 0, "winograd_results": 0}
    once = Winograd(weight, bias, layer(relu=True, winograd_results_kept=0))
    anew = Winograd(weight, bias, layer(relu=True, **always))
    assert anew.held is None
    assert anew.plain.data_ptr() == weight.data_ptr()  # no copy
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
    with torch.autocast("cpu", torch.bfloat16):  # which would compute the products in bfloat16
        found = [way(x, (1, 1)) for way in (once, anew)]
    with torch.inference_mode():  # its tensors may not be written to outside of it
        found.append(anew(x, (1, 1)))
    found.append(anew(x, (1, 1)))
    for y in found:
        assert torch.equal(y, found[0])
        assert distance(y, exact) <= 2e-6
    assert [len(scratch) for scratch in convolution.SCRATCH] == [4 * weight.numel()]
    larger = weights(64, 48, 3)
    assert (
        distance(
            Winograd(larger, None, layer(**always))(found[0], (1, 1)),
            F.conv2d(found[0].double(), larger.double(), padding=1),
        )
        <= 2e-6
    )
    assert [len(scratch) for scratch in convolution.SCRATCH] == [4 * larger.numel()]


def test_small_maps_are_convolved_by_packed_weights_made_when_they_are_met(monkeypatch) -> None:
    weight, bias = weights(48, 32, 3), torch.linspace(-1, 1, 48)
    way = Winograd(weight, bias, layer(relu=True))
    small, large = (numbers(1, 32, side, side).contiguous(memory_format=torch.channels_last) for side in (9, 33))
    for x in (large, small, small):
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()
        assert distance(way(x, (1, 1)), exact) <= 2e-6
        assert (way.packed is None) == (x is large)
    assert convolution.too_few(1 << 20, (1, 9, 9), Thresholds())
    assert not convolution.too_few(1 << 20, (1, 31, 33), Thresholds())
    assert convolution.too_few(2 << 20, (1, 31, 33), Thresholds())
    monkeypatch.setattr(winograd, "installed", lambda: True)
    signed = ConvolutionSpec((1, 1), (1, 1), 1, False, False, unexpected)
    assert convolution.scratch_bytes((48, 32, 3, 3), torch.float32, signed, (1, 9, 9)) == 4 * weight.numel()


def test_a_network_computes_the_same_by_winograds_tiles_and_without(monkeypatch) -> None:
    model, x, exact = drawn_network(170)
    monkeypatch.setattr(convolution, "has_byte_products", lambda: False)
    errors = {}
    for there in (False, True):
        monkeypatch.setattr(winograd, "installed", lambda there=there: there)
        errors[there] = distance(prepare(model)(x)["semantic"], exact)
    assert errors[True] != errors[False]  # it was used
    assert errors[True] <= 5e-6
