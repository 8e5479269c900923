"""Winograd's tiles give the convolution, with the rounding that is said of them."""

from __future__ import annotations

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv.engine import winograd
from fullyconv.engine.toom_cook import matrices
from fullyconv.engine.winograd import convolve, convolve_reference, serves, transformed


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


def test_the_matrices_are_those_of_lavin_and_gray_for_their_points() -> None:
    """Their equation 15 lists them with another scale for each place: what B' and G share cancels out."""
    a, g, b = matrices((0.0, 1.0, -1.0, 2.0, -2.0))
    theirs = torch.tensor(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
         [0, 4, 0, -5, 0, 1]]
    )  # fmt: skip
    assert torch.equal(b, theirs.double())
    assert torch.equal(a[1], torch.tensor([0, 1, -1, 2, -2, 0]).double())
    assert torch.equal(a[3], torch.tensor([0, 1, -1, 8, -8, 1]).double())
    assert torch.allclose(g[0], torch.tensor([1 / 4, 0, 0]).double())
    assert torch.allclose(g[3], torch.tensor([1 / 24, 1 / 12, 1 / 6]).double())


def test_a_tile_of_one_axis_is_the_convolution_exactly() -> None:
    a, g, b = matrices()
    for seed in range(5):
        d, w = drawn(seed, 6).double(), drawn(seed + 9, 3).double()
        exact = torch.stack([(d[i : i + 3] * w).sum() for i in range(4)])
        assert torch.allclose(a @ ((g @ w) * (b @ d)), exact, atol=1e-12)


@pytest.mark.parametrize("case", range(24))
def test_any_size_padding_and_layout_gives_the_convolution(case: int) -> None:
    rng = random.Random(case)
    n, c, k = rng.randint(1, 3), 16 * rng.randint(1, 4), 16 * rng.randint(1, 4)
    height, width = rng.randint(1, 19), rng.randint(1, 19)
    if case % 5 == 0:  # several turns of 2 MiB of transformed numbers, the last one shorter
        n, width = 1, 30 + rng.randint(1, 9)
        height = 4 * math.ceil(1.3 * (2 << 20) / (4 * 36 * max(c, k)) / (width // 4))
    elif case % 4 == 1:  # matrices so wide that all threads work on one product
        c, k = 128, 256
    padding = (
        (rng.randint(1, 3), rng.randint(1, 3)) if min(height, width) < 3 else (rng.randint(0, 3), rng.randint(0, 3))
    )
    x, weight = drawn(case, n, c, height, width), drawn(case + 99, k, c, 3, 3) / (9 * c) ** 0.5
    bias = drawn(case + 7, k) if case % 3 else None
    if case % 2:
        x = x.contiguous(memory_format=torch.channels_last)
    if case % 4 == 3 and min(height, width) > 6:
        x = x[:, :, 2:-1, 1:-2]
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=padding)
    exact = exact.relu() if case % 3 == 1 else exact
    y = convolve(x, transformed(weight), bias, padding, case % 3 == 1)
    assert y.dtype == torch.float32
    assert y.shape == exact.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert (y - exact).abs().max() <= 5e-6 * max(1.0, float(exact.abs().max()))
    slow = convolve_reference(x.double(), transformed(weight).double(), bias, padding, case % 3 == 1)
    assert (slow - exact).abs().max() <= 2e-6  # the transformed weights are float32


@pytest.mark.parametrize(("c", "k"), [(64, 64), (512, 32)])
def test_rounding_is_a_few_times_a_stock_convolutions_and_half_of_the_usual_points(c: int, k: int) -> None:
    x, weight = drawn(0, 1, c, 48, 48).relu(), drawn(1, k, c, 3, 3) * (2 / (9 * c)) ** 0.5
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    stock = distance(F.conv2d(x, weight, padding=1), exact)
    ours = distance(convolve(x, transformed(weight), None, (1, 1), False), exact)
    assert ours <= max(10 * stock, 2e-6)
    assert ours <= 1.6e-6
    usual = matrices((0.0, 1.0, -1.0, 2.0, -2.0))
    weights = torch.einsum("ia,kcab,jb->ijkc", usual[1], weight.double(), usual[1]).float().flatten(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "matrices", lambda: usual)
        assert distance(convolve_reference(x, weights, None, (1, 1), False), exact) > 1.5 * ours


def test_what_is_no_number_stays_none_and_spoils_its_own_tiles_alone() -> None:
    x = drawn(0, 1, 32, 16, 16)
    x[0, 3, 1, 1] = float("nan")
    y = convolve(x, transformed(drawn(1, 32, 32, 3, 3)), None, (1, 1), False)
    assert y[:, :, :3, :3].isnan().all()
    assert y[:, :, 8:, 8:].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing_but_rounding(threads: int) -> None:
    x, weight = drawn(0, 2, 64, 30, 21), transformed(drawn(1, 64, 64, 3, 3) / 24)
    before = torch.get_num_threads()
    one = convolve(x, weight, None, (1, 1), False)
    try:
        torch.set_num_threads(threads)
        found = [convolve(x, weight, None, (1, 1), False) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], one, atol=1e-5)


def test_only_what_gains_is_served() -> None:
    assert serves((64, 32, 3, 3))
    for shape in ((64, 3, 3, 3), (64, 16, 3, 3), (64, 40, 3, 3), (40, 64, 3, 3), (64, 64, 1, 1), (64, 64, 5, 3)):
        assert not serves(shape)
