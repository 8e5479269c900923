"""The fused cross entropy is torch's on upsampled scores: values, gradients, every option, any thread or process."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import ops, processor
from fullyconv.errors import UnknownName, UsageError
from fullyconv.ops import threads

FAST = ("chunked", "numba")


def case(seed: int, shape: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=make) * 3
    labels = torch.randint(0, shape[1], (shape[0], *size), generator=make)
    return scores, labels.masked_fill(torch.rand(labels.shape, generator=make) < 0.2, 255)


def value_and_gradient(scores: torch.Tensor, *args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = scores.clone().requires_grad_()
    value = ops.upsample_cross_entropy(leaf, *args, **options)
    outer = torch.linspace(0.5, 2, value.numel()).reshape(value.shape).to(value)
    value.backward(outer)
    assert leaf.grad is not None
    return value.detach(), leaf.grad


OPTIONS = st.fixed_dictionaries(
    {
        "weight": st.sampled_from([None, "some", "a zero"]),
        "label_smoothing": st.sampled_from([0.0, 0.1, 0.5]),
        "reduction": st.sampled_from(["mean", "sum", "none"]),
        "border": st.sampled_from(["fade", "replicate"]),
        "ignore": st.sampled_from([255, 0, -100]),
    }
)


def drawn(options: dict[str, Any], classes: int) -> dict[str, Any]:
    if options["weight"] is None:
        return options
    weight = torch.rand(classes, generator=torch.Generator().manual_seed(3)) + 0.1
    weight[0] *= options["weight"] != "a zero"
    return {**options, "weight": weight}


def test_the_reference_is_torchs_cross_entropy_of_the_upsampled_scores() -> None:
    scores, labels = case(0, (2, 5, 4, 6), (29, 41))
    weight = torch.rand(5)
    full = ops.upsample(scores, (29, 41), 8, 3)
    for how in ("mean", "sum", "none"):
        expected = F.cross_entropy(full, labels, weight, ignore_index=255, label_smoothing=0.1, reduction=how)
        found = ops.upsample_cross_entropy(
            scores,
            labels,
            8,
            3,
            weight=weight,
            label_smoothing=0.1,
            reduction=how,  # type: ignore[arg-type]
            impl="reference",
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", FAST)
@settings(max_examples=40, deadline=None)
@given(
    options=OPTIONS,
    stride=st.sampled_from([1, 2, 3, 8, 16, 32]),
    offset=st.one_of(st.integers(-5, 40), st.fractions(0, 9, max_denominator=4)),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 21), st.integers(1, 11), st.integers(1, 35)),
    size=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    seed=st.integers(0, 99),
)
def test_value_and_gradient_equal_the_reference(
    impl: str, options: Any, stride: int, offset: Any, shape: Any, size: Any, seed: int
) -> None:
    scores, labels = case(seed, shape, size)
    options = drawn(options, shape[1])
    if options["ignore"] != 255:
        labels = labels.clamp(max=shape[1] - 1)
    value, gradient = value_and_gradient(scores, labels, stride, offset, **options, impl=impl)
    exact, slope = value_and_gradient(scores.double(), labels, stride, offset, **options, impl="reference")
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=5e-6)
    scale = float(slope.abs().max()) + 1e-9
    assert float((gradient.double() - slope).abs().max()) < 1e-5 * scale + 1e-7


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize(("stride", "offset"), [(8, 31), (32, 19), (4, 2)])
def test_gradients_are_as_close_to_float64_as_stock_float32s(impl: str, stride: int, offset: int) -> None:
    scores, labels = case(1, (1, 21, 12, 14), (70, 90))
    _, exact = value_and_gradient(scores.double(), labels, stride, offset, impl="reference")
    _, stock = value_and_gradient(scores, labels, stride, offset, impl="reference")
    _, found = value_and_gradient(scores, labels, stride, offset, impl=impl)
    error, allowed = (float((g.double() - exact).norm() / exact.norm()) for g in (found, stock))
    assert error <= max(1.1 * allowed, 2e-7)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_top_k_keeps_the_hardest_share_of_the_labelled_pixels(impl: str) -> None:
    scores, labels = case(2, (2, 6, 5, 7), (40, 56))
    each = F.cross_entropy(ops.upsample(scores, (40, 56), 8, 4), labels, ignore_index=255, reduction="none")
    hard = each[labels != 255].sort(descending=True).values
    count = -(-len(hard) * 3 // 10)
    kept = ops.upsample_cross_entropy(scores, labels, 8, 4, top_k=0.3, impl=impl)
    torch.testing.assert_close(kept, hard[:count].mean(), rtol=1e-5, atol=1e-5)
    map_ = ops.upsample_cross_entropy(scores, labels, 8, 4, top_k=0.3, reduction="none", impl=impl)
    assert int((map_ > 0).sum()) == count
    everything = ops.upsample_cross_entropy(scores, labels, 8, 4, top_k=1.0, impl=impl)
    torch.testing.assert_close(everything, hard.mean(), rtol=1e-5, atol=1e-5)
    _, gradient = value_and_gradient(scores, labels, 8, 4, top_k=0.3, impl=impl)
    _, exact = value_and_gradient(scores.double(), labels, 8, 4, top_k=0.3, impl="reference")
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_second_backward_pass_over_a_kept_graph_adds_the_same_gradient(impl: str, reduction: Any) -> None:
    scores, labels = case(3, (1, 4, 5, 5), (20, 20))
    leaf = scores.requires_grad_()
    loss = ops.upsample_cross_entropy(leaf, labels, 4, 2, reduction=reduction, top_k=0.5, impl=impl).sum() * 3
    loss.backward(retain_graph=True)
    assert leaf.grad is not None
    once = leaf.grad.clone()
    loss.backward()
    torch.testing.assert_close(leaf.grad, 2 * once)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_a_mean_over_no_pixel_is_zero_with_zero_gradient(impl: str) -> None:
    scores, labels = case(3, (1, 4, 5, 5), (20, 20))
    for options in ({}, {"top_k": 0.5}, {"label_smoothing": 0.1}):
        value, gradient = value_and_gradient(scores, torch.full_like(labels, 255), 4, 2, **options, impl=impl)
        assert float(value) == 0
        assert not gradient.any()


@pytest.mark.parametrize("impl", ["reference", "chunked", None])
def test_scores_that_are_not_numbers_make_a_loss_that_is_not_one(impl: str | None) -> None:
    scores, labels = case(4, (1, 4, 5, 5), (20, 20))
    scores[0, 1, 2, 2] = float("nan")
    assert ops.upsample_cross_entropy(scores, labels, 4, 2, impl=impl).isnan()


@pytest.mark.parametrize(
    "dtype",
    [  # the others compile kernels of their own
        torch.uint8, torch.int64,
        *(pytest.param(d, marks=pytest.mark.slow) for d in (torch.uint16, torch.int32, torch.int16)),
    ],
)  # fmt: skip
def test_labels_of_any_integer_type_give_the_same_loss(dtype: torch.dtype) -> None:
    scores, labels = case(5, (1, 4, 5, 5), (20, 20))
    expected = ops.upsample_cross_entropy(scores, labels, 4, 2, impl="reference")
    for impl in FAST:
        found = ops.upsample_cross_entropy(scores, labels.to(dtype), 4, 2, impl=impl)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_neither_scores_nor_labels_are_written_to(impl: str) -> None:
    scores, labels = case(5, (1, 4, 5, 5), (20, 20))
    before = scores.clone(), labels.clone()
    for options in ({}, {"weight": torch.ones(4), "top_k": 0.5, "label_smoothing": 0.1}):
        value_and_gradient(scores, labels, 4, 2, **options, impl=impl)
    assert torch.equal(scores, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize("impl", ["reference", *FAST])
@pytest.mark.parametrize("ignore", [-156, 259, 65535])
def test_an_ignore_value_beyond_a_byte_ignores_no_byte(impl: str, ignore: int) -> None:
    scores, labels = case(5, (1, 200, 3, 3), (20, 20))
    labels = labels.clamp(max=199).to(torch.uint8)
    labels[0, 0] = ignore % 256 if ignore % 256 < 200 else 3
    for top_k in (None, 0.5):
        found = ops.upsample_cross_entropy(scores, labels, 8, 4, ignore=ignore, top_k=top_k, impl=impl)
        exact = ops.upsample_cross_entropy(scores, labels.long(), 8, 4, ignore=-1, top_k=top_k, impl="reference")
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    scores, labels = case(6, (1, 5, 6, 6), (40, 40))
    for impl in FAST:
        value, gradient = value_and_gradient(scores * 1e4, labels, 8, 4, impl=impl)
        exact, slope = value_and_gradient(scores.double() * 1e4, labels, 8, 4, impl="reference")
        torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=1e-5)


def test_no_gradient_is_computed_when_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv.ops import loss_kernels

    scores, labels = case(7, (1, 4, 5, 5), (20, 20))
    monkeypatch.setattr(loss_kernels, "add_spill", lambda *a: pytest.fail("a gradient was summed"))
    ops.upsample_cross_entropy(scores, labels, 4, 2, impl="numba")
    with torch.no_grad():
        ops.upsample_cross_entropy(scores.requires_grad_(), labels, 4, 2, impl="numba")
    with pytest.raises(pytest.fail.Exception, match="a gradient was summed"):
        ops.upsample_cross_entropy(scores, labels, 4, 2, impl="numba")


def test_bad_options_are_refused_in_words() -> None:
    scores, labels = case(8, (1, 4, 5, 5), (20, 20))
    for options, words in (
        ({"weight": torch.ones(3)}, "4 classes"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"top_k": 0.0}, "top_k is 0.0"),
    ):
        with pytest.raises(UsageError, match=words):
            ops.upsample_cross_entropy(scores, labels, 4, 2, **options)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="reduction"):
        ops.upsample_cross_entropy(scores, labels, 4, 2, reduction="median")  # type: ignore[arg-type]


# ---- threads and processes ----


def results(made: tuple[torch.Tensor, torch.Tensor] | None = None) -> list[torch.Tensor]:
    scores, labels = made or case(9, (2, 7, 17, 19), (130, 150))
    value, gradient = value_and_gradient(scores, labels.to(torch.uint8), 8, 4, impl="numba")
    return [value, gradient, *ops.upsample_softmax_max(scores, (130, 150), 8, 4, impl="numba")]


def test_the_number_of_threads_changes_no_bit() -> None:
    before, seen = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            seen.append(results())
    finally:
        torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_python_threads_compute_what_openmps_do(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = results()
        monkeypatch.setattr(threads, "_openmp", lambda: None)
        assert all(torch.equal(a, b) for a, b in zip(expected, results(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU OpenMP is torch's on Linux")
def test_the_threads_are_those_that_torch_keeps_awake() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = threading.Barrier(3)
        seen: set[int] = set()

        def task(index: int) -> None:
            seen.add(threading.get_native_id())
            together.wait(60)

        threads.run_on_openmp(task, 3)
        first = set(seen)
        assert len(first) == 3
        threads.run_on_openmp(task, 3)
        assert seen == first
    finally:
        torch.set_num_threads(before)


def test_server_threads_may_call_at_the_same_time() -> None:
    expected, wrong = results(), []

    def serve() -> None:
        for _ in range(5):
            if not all(torch.equal(a, b) for a, b in zip(expected, results(), strict=True)):
                wrong.append(threading.current_thread().name)

    callers = [threading.Thread(target=serve) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong
    assert not any(caller.is_alive() for caller in callers)


def _child(queue: Any, made: Any) -> None:
    torch.set_num_threads(2)
    queue.put([tensor.numpy() for tensor in results(made)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_worker_computes_the_same_after_the_parent_has_used_its_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # Made before the fork, and bytes: torch's own OpenMP hangs in a forked child on tensors worth two threads.
        scores, labels = case(9, (2, 7, 17, 19), (130, 150))
        made = scores, labels.to(torch.uint8)
        expected = results(made)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        worker = context.Process(target=_child, args=(queue, made), daemon=True)
        worker.start()
        found = queue.get(timeout=200)
        worker.join(60)
        assert worker.exitcode == 0
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(expected, found, strict=True))
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_part_of_the_work_reaches_the_caller() -> None:
    def task(index: int) -> None:
        if index == 3:
            raise ValueError("three")

    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for run in (threads.run_tasks, threads.run_on_pool):
                with pytest.raises(ValueError, match="three"):
                    run(task, 8)
    finally:
        torch.set_num_threads(before)
    done: list[int] = []
    threads.run_tasks(done.append, 20)
    assert sorted(done) == list(range(20))
    threads.run_tasks(done.append, 0)
    assert len(done) == 20


def test_the_pool_has_as_many_threads_as_cores_were_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(processor, "cores_granted", lambda: 2.5)
    with threads._threads() as pool:
        assert pool._max_workers == 3


def test_exponential_and_logarithm_are_exact_to_two_units_in_the_last_place() -> None:
    import numba

    from fullyconv.interpolation import vectors

    x = np.random.default_rng(0).uniform(1e-3, 80, 1 << 16).astype(np.float32)
    x[:1024] = np.linspace(1, 1.01, 1024)
    low, high = np.empty_like(x), np.empty_like(x)

    @numba.njit  # type: ignore[misc]
    def run(x: Any, minus: Any, low: Any, high: Any) -> None:
        for i in range(0, x.size, 16):
            vectors.store(vectors.exp(vectors.load16(minus, i)), low, i)
            vectors.store(vectors.log(vectors.load16(x, i)), high, i)

    run(x, -x, low, high)
    for found, exact in ((low, np.exp(-x.astype(np.float64))), (high, np.log(x.astype(np.float64)))):
        unit = np.spacing(np.abs(exact).astype(np.float32))
        assert (np.abs(found - exact) <= np.maximum(2 * unit, 2e-7 * (np.abs(exact) < 1e-2))).all()
