"""The coordinate algebra gives the paper's numbers, and covers every image size."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullyconv.errors import InternalError, UsageError
from fullyconv.geometry import (
    IMAGE,
    Layer,
    Map,
    UnevenPaths,
    as_number,
    compose,
    fuse,
    halo,
    kernel_width,
    last_upsampling,
    tiles,
)

CONV, POOL = Layer("conv", 3, padding=1), Layer("pool", 2, 2, ceil=True)


def vgg(pad: int = 100) -> dict[str, list[Layer]]:
    """The paper's trunk as layers, up to each tap."""
    one = [Layer("conv", 3, padding=pad), CONV, POOL]
    three = [*one, CONV, CONV, POOL, CONV, CONV, CONV, POOL]
    four = [*three, CONV, CONV, CONV, POOL]
    five = [*four, CONV, CONV, CONV, POOL]
    return {"pool3": three, "pool4": four, "pool5": five, "score_fr": [*five, Layer("conv", 7)]}


def size(layers: list[Layer], n: int) -> int:
    for layer in layers:
        n = layer.size(n)
    return n


ALEXNET = [
    Layer("conv", 11, 4, 100), Layer("pool", 3, 2, ceil=True), Layer("conv", 5, padding=2),
    Layer("pool", 3, 2, ceil=True), CONV, CONV, CONV, Layer("pool", 3, 2, ceil=True), Layer("conv", 6),
]  # fmt: skip


def test_vgg_taps_lie_where_the_fact_sheet_says() -> None:
    maps = {name: compose(layers) for name, layers in vgg().items()}
    assert maps["pool3"] == Map(Fraction(8), Fraction(-191, 2), 44.0)
    assert maps["pool4"] == Map(Fraction(16), Fraction(-183, 2), 100.0)
    assert maps["pool5"] == Map(Fraction(32), Fraction(-167, 2), 212.0)
    assert maps["score_fr"] == Map(Fraction(32), Fraction(25, 2), 404.0)


def test_the_crops_are_19_then_5_and_27_then_9_and_31() -> None:
    maps = {name: compose(layers) for name, layers in vgg().items()}
    assert (last_upsampling(maps["score_fr"], "fade").kernel, last_upsampling(maps["score_fr"], "fade").crop) == (
        64,
        19,
    )
    skip, fused = fuse(maps["score_fr"], maps["pool4"], whole=True)
    assert (skip.factor, skip.crop) == (2, 5)
    assert (last_upsampling(fused, "fade").kernel, last_upsampling(fused, "fade").crop) == (32, 27)
    skip, fused = fuse(fused, maps["pool3"], whole=True)
    assert (skip.factor, skip.crop) == (2, 9)
    assert (last_upsampling(fused, "fade").kernel, last_upsampling(fused, "fade").crop) == (16, 31)


def test_alexnet_needs_an_odd_kernel_of_63_and_crop_18() -> None:
    last = last_upsampling(compose(ALEXNET), "fade")
    assert (last.stride, last.kernel, last.crop, last.offset) == (32, 63, 18, 18.5)
    assert compose(ALEXNET).field == 355


@pytest.mark.parametrize("pad", [81, 97, 100, 120])
def test_offsets_follow_the_padding_and_skip_crops_do_not(pad: int) -> None:
    maps = {name: compose(layers) for name, layers in vgg(pad).items()}
    skip4, fused4 = fuse(maps["score_fr"], maps["pool4"], whole=True)
    skip3, fused3 = fuse(fused4, maps["pool3"], whole=True)
    assert last_upsampling(maps["score_fr"], "fade").crop == pad - 81
    assert last_upsampling(fused4, "fade").crop == pad - 73
    assert last_upsampling(fused3, "fade").crop == pad - 69
    assert (skip4.crop, skip3.crop) == (5, 9)


SIZES = {  # image side: pool3, pool4, pool5, score_fr
    1: (25, 13, 7, 1), 224: (53, 27, 14, 8), 256: (57, 29, 15, 9), 360: (70, 35, 18, 12), 375: (72, 36, 18, 12),
    480: (85, 43, 22, 16), 500: (88, 44, 22, 16), 512: (89, 45, 23, 17),
}  # fmt: skip


@pytest.mark.parametrize("side", SIZES)
def test_vgg_sizes_are_those_of_the_fact_sheet(side: int) -> None:
    assert tuple(size(layers, side) for layers in vgg().values()) == SIZES[side]


def test_every_image_side_from_1_to_2999_is_covered_with_the_known_slack() -> None:
    taps = vgg()
    for h in range(1, 3000):
        f, p4, p3 = size(taps["score_fr"], h), size(taps["pool4"], h), size(taps["pool3"], h)
        up2, up4 = 2 * f + 2, 4 * f + 6
        assert 19 <= 32 * f + 32 - h - 19 <= 50
        assert 27 <= 32 * f + 48 - h - 27 <= 58
        assert 31 <= 32 * f + 56 - h - 31 <= 62
        assert 4 <= p4 - up2 - 5 <= 5
        assert 6 <= p3 - up4 - 9 <= 9
        assert (size(ALEXNET, h) - 1) * 32 + 63 - 18 >= h


def test_floor_pooling_would_leave_1139_of_2999_sides_uncovered() -> None:
    floor = [Layer(la.kind, la.kernel, la.stride, la.padding) for la in vgg()["score_fr"]]
    cells = {h: size(floor, h) for h in range(1, 3000)}
    assert sum(f < 1 or (f - 1) * 32 + 64 - 19 < h for h, f in cells.items()) == 1139


@given(
    st.integers(1, 200), st.integers(1, 11), st.integers(1, 4), st.integers(0, 5), st.integers(1, 3), st.booleans(),
    st.sampled_from(["conv", "pool"]),
)  # fmt: skip
def test_sizes_equal_torch(n: int, k: int, s: int, p: int, d: int, ceil: bool, kind: str) -> None:
    import torch
    import torch.nn.functional as F

    layer = Layer(kind, k, s, p, d, ceil and kind == "pool")  # type: ignore[arg-type]
    if kind == "pool" and p > layer.span // 2:
        return
    x = torch.zeros(1, 1, n)
    try:
        if kind == "conv":
            y = F.conv1d(x, torch.zeros(1, 1, k), stride=s, padding=p, dilation=d)
        else:
            y = F.max_pool1d(x, k, s, p, d, ceil_mode=layer.ceil)
    except RuntimeError:
        return  # torch refuses what would be empty
    assert layer.size(n) == y.shape[-1]


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_transposed_sizes_equal_torch(n: int, k: int, s: int, p: int) -> None:
    import torch
    import torch.nn.functional as F

    if (n - 1) * s + k - 2 * p < 1:
        return
    y = F.conv_transpose1d(torch.zeros(1, 1, n), torch.zeros(1, 1, k), stride=s, padding=p)
    assert Layer("deconv", k, s, p).size(n) == y.shape[-1]


@given(st.integers(1, 8), st.integers(0, 3))
def test_a_deconvolution_undoes_the_grid_of_the_convolution_it_mirrors(s: int, p: int) -> None:
    k = 2 * s + 2 * p
    there = IMAGE.then(Layer("conv", k, s, p))
    assert (there.then(Layer("deconv", k, s, p)).stride, there.then(Layer("deconv", k, s, p)).offset) == (1, 0)


def test_dilation_widens_the_field_and_keeps_the_grid() -> None:
    plain_, dilated = IMAGE.then(CONV), IMAGE.then(Layer("conv", 3, padding=2, dilation=2))
    assert (plain_.stride, plain_.offset, dilated.stride, dilated.offset) == (1, 0, 1, 0)
    assert (plain_.field, dilated.field) == (3, 5)


def test_branches_join_on_one_grid_with_the_wider_field_or_are_refused() -> None:
    narrow, wide = IMAGE.then(Layer("conv", 1)), IMAGE.then(CONV)
    assert narrow.join(wide).field == wide.join(narrow).field == 3
    with pytest.raises(UnevenPaths, match="different grids"):
        IMAGE.join(IMAGE.then(Layer("conv", 2)))
    assert IMAGE.unbounded().field == math.inf


def test_caffes_three_refusals() -> None:
    a = Map(Fraction(32), Fraction(0), 1.0)
    with pytest.raises(UsageError, match="cannot be upsampled"):
        fuse(a, Map(Fraction(12), Fraction(0), 1.0), whole=True)
    with pytest.raises(InternalError, match="whole number"):  # fractional
        fuse(a, Map(Fraction(16), Fraction(1), 1.0), whole=True)
    with pytest.raises(InternalError, match="0 or more"):  # negative
        fuse(a, Map(Fraction(16), Fraction(8), 1.0), whole=True)
    with pytest.raises(InternalError, match="whole number of pixels"):
        last_upsampling(Map(Fraction(1, 2), Fraction(0), 1.0), "fade")


def test_same_padding_aligns_by_offset_and_crops_nothing() -> None:
    coarse, fine = Map(Fraction(32), Fraction(0), 1.0), Map(Fraction(16), Fraction(0), 1.0)
    skip, fused = fuse(coarse, fine, whole=False)
    assert (skip.crop, skip.offset) == (0, Fraction(3, 2))
    assert fused.offset == 0
    centred = Map(Fraction(32), Fraction(31, 2), 1.0)
    assert last_upsampling(centred, "replicate").offset == 16  # stride / 2: interpolate(align_corners=False)


def test_kernel_widths() -> None:
    assert [kernel_width(f) for f in (1, 2, 3, 8, 16, 32)] == [1, 4, 5, 16, 32, 64]
    assert as_number(Fraction(3)) == 3
    assert isinstance(as_number(Fraction(3)), int)
    assert as_number(Fraction(5, 2)) == 2.5


@given(st.integers(1, 400), st.integers(1, 200), st.sampled_from([1, 8, 32]), st.integers(0, 90))
def test_tiles_keep_every_pixel_once_on_the_grid_with_their_context(
    n: int, core: int, align: int, context: int
) -> None:
    found = list(tiles(n, core, align, context))
    kept = [p for t in found for p in range(t.keep_from, t.keep_to)]
    assert kept == list(range(n))
    for t in found:
        assert t.start % align == 0
        assert 0 <= t.start <= t.keep_from < t.keep_to <= t.stop <= n
        assert t.start == 0 or t.keep_from - t.start >= context
        assert t.stop == n or t.stop - t.keep_to >= context


def test_an_empty_tile_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1 pixel"):
        list(tiles(10, 0, 8, 0))


def test_halo_is_the_widest_reach() -> None:
    assert halo([(Map(Fraction(8), Fraction(0), 45.0), 8.0), (Map(Fraction(32), Fraction(0), 5.0), 40.0)]) == 42.0
