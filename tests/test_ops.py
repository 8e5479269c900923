"""Every implementation computes what the definition says: a transposed convolution, then labels, confidence or loss."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import ops
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.ops import reference, resize

FAST = ("chunked", "numba")


def scores_like(seed: int, shape: tuple[int, ...], smooth: bool = False) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    if not smooth:
        return torch.randn(shape, generator=make) * 3
    coarse = torch.randn(*shape[:2], shape[2] // 4 + 2, shape[3] // 4 + 2, generator=make) * 4
    return F.interpolate(coarse, shape[2:], mode="bicubic")


def labels_like(seed: int, shape: tuple[int, ...], classes: int, ignored: float = 0.2) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, shape, generator=make)
    return labels.masked_fill(torch.rand(shape, generator=make) < ignored, 255)


GEOMETRY = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 33),
        "offset": st.one_of(
            st.integers(-9, 70),
            st.fractions(-5, 40, max_denominator=6),
            st.tuples(st.integers(0, 40), st.fractions(0, 9, max_denominator=4)),
        ),
        "border": st.sampled_from(["fade", "replicate"]),
    }
)


# ---- the definition ----


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8, 16, 32])
@pytest.mark.parametrize("offset", [0, 5, 19, 31])
def test_upsampling_is_the_papers_transposed_convolution_cropped_from_the_offset(stride: int, offset: int) -> None:
    scores = scores_like(0, (2, 3, 6, 7)).double()
    kernel = reference.bilinear_kernel(stride, torch.float64).expand(3, 1, -1, -1)
    full = F.conv_transpose2d(scores, kernel, stride=stride, groups=3)
    cropped = full[:, :, offset:, offset:]
    if 0 in cropped.shape:
        pytest.skip("the crop takes everything")
    for impl in ("reference", "chunked"):
        up = ops.upsample(scores, cropped.shape[2:], stride, offset, "fade", impl)
        torch.testing.assert_close(up, cropped, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "line"), [(1, [1]), (2, [0.25, 0.75, 0.75, 0.25]), (3, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])]
)
def test_the_kernel_is_caffes_bilinear_filler(width: int, line: list[float]) -> None:
    kernel = reference.bilinear_kernel(width, torch.float64)
    torch.testing.assert_close(kernel[len(line) // 2], torch.tensor(line).double() * max(line))
    assert torch.equal(kernel, kernel.T)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8, 9, 16, 32])
def test_replicated_borders_with_half_the_stride_are_interpolate(stride: int) -> None:
    scores = scores_like(1, (1, 4, 5, 6)).double()
    expected = F.interpolate(scores, scale_factor=stride, mode="bilinear", align_corners=False)
    for impl in ("reference", "chunked"):
        up = ops.upsample(scores, expected.shape[2:], stride, stride // 2, "replicate", impl)
        torch.testing.assert_close(up, expected, rtol=0, atol=1e-12)


def test_the_two_borders_differ_at_the_border_of_fcn32s_and_nowhere_else() -> None:
    scores = scores_like(2, (1, 3, 16, 16)) + 5
    fade = ops.upsample(scores, (500, 500), 32, 19, "fade")
    replicate = ops.upsample(scores, (500, 500), 32, 19, "replicate")
    # Cell 0 sits at pixel 31.5 - 19 = 12.5 and cell 15 at 492.5: before and behind them the coarse map ends.
    assert torch.equal(fade[..., 13:493, 13:493], replicate[..., 13:493, 13:493])
    assert (fade[..., :13, 100] < replicate[..., :13, 100]).all()
    assert (fade[..., 493:, 100] < replicate[..., 493:, 100]).all()


def test_stride_one_is_a_crop() -> None:
    scores = scores_like(3, (2, 5, 20, 24))
    for impl in ("reference", "chunked"):
        assert torch.equal(ops.upsample(scores, (11, 13), 1, (4, 7), impl=impl), scores[:, :, 4:15, 7:20])
    for impl in ("reference", *FAST):
        expected = scores[:, :, 4:15, 7:20].argmax(1).to(torch.uint8)
        assert torch.equal(ops.upsample_argmax(scores, (11, 13), 1, (4, 7), impl=impl), expected)


@settings(max_examples=60, deadline=None)
@given(geometry=GEOMETRY, size=st.tuples(st.integers(1, 70), st.integers(1, 70)), seed=st.integers(0, 99))
def test_rational_offsets_continue_the_line_between_whole_ones(geometry: Any, size: Any, seed: int) -> None:
    scores = scores_like(seed, (1, 2, 4, 5)).double()
    full = ops.upsample(scores, size, **geometry, impl="reference")
    torch.testing.assert_close(ops.upsample(scores, size, **geometry, impl="chunked"), full, rtol=0, atol=1e-11)
    # Value at (y, x) by the formula of the positions, one pixel by one.
    stride, offset = geometry["stride"], geometry["offset"]
    pair = offset if isinstance(offset, tuple) else (offset, offset)
    y, x = size[0] - 1, size[1] // 2
    middle = Fraction(2 * stride - stride % 2 - 1, 2)
    at = [(Fraction(p) + o - middle) / stride for p, o in zip((y, x), pair, strict=True)]
    near = [range(math.floor(p) - 1, math.floor(p) + 3) for p in at]
    value = torch.zeros(2, dtype=torch.float64)
    for i, j in itertools.product(*near):
        share = max(0, 1 - abs(at[0] - i)) * max(0, 1 - abs(at[1] - j))
        inside = 0 <= i < 4 and 0 <= j < 5
        if share and (inside or geometry["border"] == "replicate"):
            value += float(share) * scores[0, :, min(max(i, 0), 3), min(max(j, 0), 4)]
    torch.testing.assert_close(full[0, :, y, x], value, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    stride=st.sampled_from([1, 2, 3, 4, 8, 16]),
    offset=st.one_of(st.integers(-70, 70), st.tuples(st.integers(-9, 9), st.integers(0, 40))),
    border=st.sampled_from(["fade", "replicate"]),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_both_ways_to_full_scores_are_the_definition(stride: int, offset: Any, border: Any, size: Any) -> None:
    scores = scores_like(stride, (2, 3, 5, 4)).double()
    expected = ops.upsample(scores, size, stride, offset, border, "reference")
    sampling = ops._sampling(scores, size, stride, offset, border)
    for way in (resize.separable, resize.interpolated):
        torch.testing.assert_close(way(scores, sampling), expected, rtol=0, atol=1e-11)


def test_interpolation_is_taken_where_it_is_exact_and_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(resize, "interpolated", lambda scores, sampling: taken.append(sampling.stride))
    scores = scores_like(0, (1, 2, 3, 3))
    for stride in (1, 2, 3, 4, 6, 8, 16, 32):
        resize.upsample(scores, ops._sampling(scores, (9, 9), stride, 1, "fade"))
    assert taken == [2, 4, 8]
    resize.upsample(scores, ops._sampling(scores, (9, 9), 8, Fraction(1, 3), "fade"))
    leaf = scores.requires_grad_()
    for stride in (2, 4, 8):
        resize.upsample(leaf, ops._sampling(scores, (9, 9), stride, 1, "fade"))
    assert taken == [2, 4, 8, 2]


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("border", ["fade", "replicate"])
def test_upsampling_is_differentiable(impl: str, border: Any) -> None:
    scores = scores_like(4, (1, 2, 3, 4)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: ops.upsample(s, (13, 17), 5, 3, border, impl), scores)
    assert torch.autograd.gradcheck(lambda s: ops.upsample(s, (13, 17), 2, 3, border, impl), scores)


# ---- labels and confidence ----


def assert_same_labels(found: torch.Tensor, full: torch.Tensor) -> None:
    """Equal to argmax but where the two best scores differ by rounding alone."""
    expected = full.argmax(1)
    wrong = found.to(torch.int64) != expected
    chosen = full.gather(1, found.to(torch.int64)[:, None])[:, 0]
    assert ((full.amax(1) - chosen)[wrong] < 1e-5).all(), f"{int(wrong.sum())} of {wrong.numel()} labels differ"


@pytest.mark.parametrize("impl", FAST)
@settings(max_examples=40, deadline=None)
@given(
    geometry=GEOMETRY,
    shape=st.tuples(st.integers(1, 2), st.integers(1, 23), st.integers(1, 21), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 99),
    smooth=st.booleans(),
)
def test_labels_and_confidence_equal_the_reference(
    impl: str, geometry: Any, shape: Any, size: Any, seed: int, smooth: bool
) -> None:
    scores = scores_like(seed, shape, smooth)
    full = ops.upsample(scores, size, **geometry, impl="reference")
    assert_same_labels(ops.upsample_argmax(scores, size, **geometry, impl=impl), full)
    labels, confidence = ops.upsample_softmax_max(scores, size, **geometry, impl=impl)
    assert_same_labels(labels, full)
    torch.testing.assert_close(confidence, full.softmax(1).amax(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", FAST)
def test_equal_scores_go_to_the_first_class(impl: str) -> None:
    scores = torch.zeros(1, 9, 5, 40)
    assert not ops.upsample_argmax(scores, (40, 320), 8, 4, impl=impl).any()
    scores[:, 3] = scores[:, 6] = 1
    assert (ops.upsample_argmax(scores, (40, 320), 8, 4, "replicate", impl) == 3).all()


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_beyond_the_coarse_map_faded_scores_are_zero_and_the_label_is_the_first(impl: str) -> None:
    scores = scores_like(5, (1, 4, 3, 3)) + 9
    scores[:, 2] += 50
    labels = ops.upsample_argmax(scores, (90, 90), 8, 4, impl=impl)
    assert (labels[:, 28:] == 0).all()
    assert (labels[:, :20, :20] == 2).all()
    assert (ops.upsample_argmax(scores, (9, 9), 8, 400, impl=impl) == 0).all()
    assert (ops.upsample_argmax(scores, (9, 9), 8, 400, "replicate", impl) == 2).all()


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_labels_are_bytes_up_to_255_classes_and_two_bytes_beyond(impl: str) -> None:
    for classes, dtype in ((255, torch.uint8), (256, torch.uint16), (700, torch.uint16)):
        scores = scores_like(6, (1, classes, 3, 4))
        scores[:, classes - 1, 1, 1] = 99
        labels = ops.upsample_argmax(scores, (24, 32), 8, 4, "replicate", impl)
        assert labels.dtype == dtype
        assert int(labels[0, 12, 12]) == classes - 1
        assert_same_labels(labels, ops.upsample(scores, (24, 32), 8, 4, "replicate"))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), classes=st.integers(1, 40), levels=st.sampled_from([0, 2, 5]))
def test_pruning_drops_no_class_that_wins_a_pixel(seed: int, classes: int, levels: int) -> None:
    from fullyconv.interpolation import label_kernels
    from fullyconv.ops import numba

    scores = scores_like(seed, (1, classes, 2, 17), smooth=True)
    if levels:  # equal scores abound
        scores = (scores * levels / 16).round()
    # Two rows of cells are one band, 17 columns one block: pixels between them, corners included.
    sampling = ops._sampling(scores, (9, 129), 8, Fraction(15, 2), "replicate")
    plan = numba._plan(scores, sampling)
    work = label_kernels.label_scratch(plan, np.uint8)
    for row, cells, winner in ((0, work.above, work.upper), (1, work.below, work.lower)):
        label_kernels.fetch_cells(numba._flat(scores), 0, row, plan, cells)
        label_kernels._winners(cells, classes, plan.columns, winner)
        assert np.array_equal(winner[:17], scores[0, :, row].argmax(0).numpy())
    columns = plan.columns
    mixed = label_kernels._rivals(work.above, work.below, columns, 0, work.upper, work.lower, work.rival, work.least)
    found = label_kernels._candidates(plan, work, work.above, work.below, 0, mixed)
    pixels = ops.upsample(scores.double(), (9, 129), 8, Fraction(15, 2), "replicate", "reference").argmax(1)[0]
    kept = 0
    for q in range(16):
        winners = set(pixels[:8, 8 * q : 8 * q + 8].unique().tolist())
        if mixed >> q & 1:
            chosen = work.some[work.chosen[: label_kernels._select(work.alive, found, q, work.chosen)]].tolist()
            assert chosen == sorted(set(chosen))
            kept += len(chosen)
        else:
            chosen = [int(work.upper[q])]
        assert winners <= set(chosen)
    assert kept <= classes * int(mixed).bit_count()


def test_pruning_leaves_few_classes_of_smooth_scores() -> None:
    from fullyconv.interpolation import label_kernels
    from fullyconv.ops import numba

    scores = scores_like(7, (1, 21, 33, 33), smooth=True)[:, :, 20:22, :17].contiguous()
    plan = numba._plan(scores, ops._sampling(scores, (8, 128), 8, 8, "replicate"))
    work = label_kernels.label_scratch(plan, np.uint8)
    for row, cells, winner in ((0, work.above, work.upper), (1, work.below, work.lower)):
        label_kernels.fetch_cells(numba._flat(scores), 0, row, plan, cells)
        label_kernels._winners(cells, 21, plan.columns, winner)
    mixed = label_kernels._rivals(
        work.above, work.below, plan.columns, 0, work.upper, work.lower, work.rival, work.least
    )
    found = label_kernels._candidates(plan, work, work.above, work.below, 0, mixed)
    assert 0 < int(mixed).bit_count() < 16
    assert 1 < found < 21 - 6


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scores_are_computed_in_float32(impl: str, dtype: torch.dtype) -> None:
    scores = scores_like(8, (2, 7, 6, 9)).to(dtype)
    wide = scores.to(torch.float32)
    up = (48, 72), 8, 4
    with torch.autocast("cpu"):
        assert torch.equal(ops.upsample_argmax(scores, *up, impl=impl), ops.upsample_argmax(wide, *up, impl=impl))
        full = ops.upsample(scores, *up)
        assert full.dtype == torch.float32
        torch.testing.assert_close(full, ops.upsample(wide, *up, impl="reference"), rtol=0, atol=1e-5)
        labels = labels_like(8, (2, 48, 72), 7)
        leaf = scores.clone().requires_grad_()
        ops.upsample_cross_entropy(leaf, labels, 8, 4, impl=impl).backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


# ---- threads, processes, choices, refusals ----


def test_importing_ops_does_not_import_numba_or_triton() -> None:
    code = "import sys, fullyconv.ops; assert not {'numba', 'triton', 'llvmlite'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_choose_names_the_implementation_and_why_one_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_like(9, (1, 3, 4, 4))
    assert ops.choose("upsample_argmax", scores) == "numba"
    assert ops.choose("upsample_argmax", scores.bfloat16()) == "numba"
    assert ops.choose("upsample", scores) == "chunked"
    assert ops.choose("upsample_argmax", scores.double()) == "chunked"
    assert ops.choose("upsample_argmax", scores * float("nan")) == "chunked"
    assert ops.choose("upsample_argmax", scores, "reference") == "reference"
    with pytest.raises(UsageError, match="float64"):
        ops.choose("upsample_argmax", scores.double(), "numba")
    with pytest.raises(UsageError, match="not all finite"):
        ops.choose("upsample_argmax", scores * float("inf"), "numba")
    with pytest.raises(UnknownName, match="did you mean 'numba'"):
        ops.choose("upsample_argmax", scores, "nunba")
    with pytest.raises(UnknownName, match="upsample_argmax"):
        ops.choose("upsample_argmin", scores)
    monkeypatch.setattr(ops, "_installed", lambda package: False)
    assert ops.choose("upsample_argmax", scores) == "chunked"
    with pytest.raises(UsageError, match="not installed"):
        ops.choose("upsample_argmax", scores, "numba")


def test_bad_geometry_and_scores_are_refused_in_words() -> None:
    scores = scores_like(9, (1, 3, 4, 4))
    with pytest.raises(UsageError, match="stride 0"):
        ops.upsample(scores, (8, 8), 0, 0)
    with pytest.raises(UsageError, match="Cannot upsample to 0 x 8"):
        ops.upsample(scores, (0, 8), 2, 0)
    with pytest.raises(UsageError, match="N K h w"):
        ops.upsample(scores[0], (8, 8), 2, 0)
    with pytest.raises(UsageError, match="int64"):
        ops.upsample(scores.long(), (8, 8), 2, 0)
    with pytest.raises(UnknownName, match="border"):
        ops.upsample(scores, (8, 8), 2, 0, "zeros")  # type: ignore[arg-type]


def test_an_empty_batch_gives_empty_labels() -> None:
    none = torch.zeros(0, 3, 4, 4)
    for impl in ("reference", *FAST):
        assert ops.upsample_argmax(none, (8, 8), 2, 1, impl=impl).shape == (0, 8, 8)


def test_refused_labels_are_named() -> None:
    scores = scores_like(9, (1, 3, 4, 4))
    for impl in ("reference", *FAST):
        with pytest.raises(DataError, match="Label 3 is neither one of 3 classes nor the ignore value 255"):
            ops.upsample_cross_entropy(scores, torch.full((1, 8, 8), 3, dtype=torch.uint8), 2, 1, impl=impl)
        with pytest.raises(DataError, match="Label -7"):
            ops.upsample_cross_entropy(scores, torch.full((1, 8, 8), -7), 2, 1, impl=impl)
    with pytest.raises(UsageError, match="N H W"):
        ops.upsample_cross_entropy(scores, torch.zeros(2, 8, 8), 2, 1)
