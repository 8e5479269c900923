"""A prepared network gives the network's own scores: folded, packed, and computed only where it sees the image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fullyconv as fc
from fullyconv.engine import window
from fullyconv.engine.folding import Convolution, fold_layers
from fullyconv.engine.prepare import prepare
from fullyconv.engine.visibility import background_side, visible_axis
from fullyconv.engine.window import Windowed
from fullyconv.models.fcn import FCN
from fullyconv.models.trace import trace
from fullyconv.processor import has_native

PAPER = ["fcn8s-vgg16", "fcn32s-alexnet", "fcn8s-googlenet"]


def thin(trunk: nn.Module, divide: int = 16) -> None:
    """Every convolution with a part of its channels (a multiple of 4; the image's stay), weights random, biases too:
    an empty image must not give zeros everywhere."""
    for m in trunk.modules():
        if not isinstance(m, nn.Conv2d):
            continue
        inside = m.in_channels if m.in_channels <= 6 else max(4, m.in_channels // divide // 4 * 4)
        out = max(4, m.out_channels // divide // 4 * 4)
        m.in_channels, m.out_channels = inside, out
        fan = inside // m.groups * m.kernel_size[0] * m.kernel_size[1]
        m.weight = nn.Parameter(torch.randn(out, inside // m.groups, *m.kernel_size) * (2 / fan) ** 0.5)
        m.bias = nn.Parameter(torch.randn(out) * 0.3)


def small(name: str, seed: int = 0, divide: int = 16) -> FCN:
    """The network with thin channels where they line up (VGG16, AlexNet), random scores and biases, in eval mode."""
    with torch.device("cpu" if "googlenet" in name else "meta"):
        model = fc.create(name, 3, quiet=True)
    torch.manual_seed(seed)
    for stream in model.streams.values():
        if "googlenet" not in name:
            thin(stream.trunk, divide)  # type: ignore[arg-type]
        for heads in stream.score.values():  # type: ignore[union-attr]
            for tap in list(heads):
                width = _width(stream.trunk, int(tap))
                heads[tap] = nn.Conv2d(width, 3, 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.normal_(0, 0.3)
    return model.eval()


def _width(trunk: nn.Module, stride: int) -> int:
    with torch.no_grad():
        return int(trunk(torch.zeros(1, next(trunk.parameters()).shape[1], 8, 8))[stride].shape[1])


def agree(model: FCN, x: Tensor, window: bool = True) -> None:
    """Prepared and plain scores agree up to rounding, and name the same class wherever rounding cannot decide."""
    with torch.inference_mode():
        plain, fast = model.coarse(x), prepare(model, window=window)(x)
    for head, scores in plain.items():
        limit = 2e-5 * float(scores.abs().max() + 1)
        assert fast[head].shape == scores.shape
        assert float((fast[head] - scores).abs().max()) <= limit
        best = scores.topk(2, 1).values
        clear = best[:, 0] - best[:, 1] > 2 * limit
        assert torch.equal(fast[head].argmax(1)[clear], scores.argmax(1)[clear])


MODELS: dict[str, FCN] = {}


@pytest.mark.parametrize("name", ["fcn8s-vgg16", "fcn32s-alexnet"])
@settings(max_examples=4)
@given(h=st.integers(1, 130), w=st.integers(1, 130), n=st.integers(1, 2))
@example(h=1, w=1, n=1)
@example(h=1, w=129, n=1)
def test_the_window_gives_the_whole_networks_scores_for_any_size(name: str, h: int, w: int, n: int) -> None:
    model = MODELS.setdefault(name, small(name))
    agree(model, torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(h * 131 + w)) * 3)


@pytest.mark.parametrize("name", ["fcn8s-vgg16", "fcn32s-alexnet"])
@pytest.mark.parametrize("size", [(37, 64), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 1), (150, 91)))])
def test_maps_handed_on_in_strips_are_the_whole_maps(name: str, size: tuple[int, int]) -> None:
    model, x = small(name), torch.randn(2, 3, *size)
    windows, found = [], {}
    for strip in (1 << 40, 20_000, 1):  # all at once, some rows, row by row
        ready = prepare(model, strip=strip)
        with torch.no_grad():
            found[strip] = ready(x)["semantic"]
        windows = ready.windows
    scale = found[1 << 40].abs().max()
    for strip in (20_000, 1):
        assert (found[strip] - found[1 << 40]).abs().max() <= 1e-5 * scale
    plan = windows[0].plan(*size)
    rows = [window._rows_together(windows[0].nodes[a : b + 1], plan, 2, 1) for a, b in windows[0]._chains.items()]
    assert any(rows)  # row by row was not whole


def test_what_is_computed_once_leaves_no_copies_of_weights() -> None:
    layer = Convolution(nn.Conv2d(32, 32, 3, padding=1), None, True, torch.float32)
    with torch.no_grad():
        x = torch.randn(1, 32, 9, 9)
        assert torch.allclose(layer.once(x), layer(x), atol=1e-5)
        fresh = Convolution(nn.Conv2d(32, 32, 3, padding=1), None, True, torch.float32)
        fresh.once(x)
    assert fresh.algorithm is None


def test_the_window_handles_branches_that_meet() -> None:
    model = small("fcn8s-googlenet")
    for h, w in [(1, 1), (37, 61)]:
        agree(model, torch.randn(1, 3, h, w, generator=torch.Generator().manual_seed(h)) * 3)


def test_both_streams_of_a_late_fusion_are_windowed() -> None:
    agree(small("fcn32s-vgg16-rgb-hha"), torch.randn(1, 6, 20, 45, generator=torch.Generator().manual_seed(1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_at_full_width_a_photo_sized_image_keeps_its_scores(name: str) -> None:
    model = fc.create(name, 21, quiet=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.normal_(0, 0.1, generator=generator)
        for p in model.head_parameters():
            p.normal_(0, 0.02, generator=generator)
    agree(model.eval(), torch.randn(1, 3, 331, 500, generator=generator) * 60)


@pytest.mark.parametrize("name", ["fcn8s-resnet18", "fcn16s-mobilenet_v3_large", "fcn8s-squeezenet1_0"])
def test_folded_and_packed_networks_keep_their_scores(name: str) -> None:
    model = fc.create(name, 3, quiet=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=generator)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                for t in (m.weight, m.bias, m.running_mean):
                    t.normal_(0.5, 0.2, generator=generator)  # type: ignore[union-attr]
                m.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    agree(model.eval(), torch.randn(2, 3, 70, 45, generator=generator))


def test_batch_norm_and_relu_are_gone_and_unused_strides_are_not_computed() -> None:
    trunk = fc.create("fcn8s-resnet18", 3, quiet=True).eval().streams["rgb"].trunk
    network = fold_layers(trunk, (8,))  # type: ignore[arg-type]
    kinds = [type(m) for m in network.modules()]
    assert nn.BatchNorm2d not in kinds
    assert 0 < kinds.count(Convolution) < sum(isinstance(m, nn.Conv2d) for m in trunk.modules())  # type: ignore[union-attr]
    assert list(network(torch.zeros(1, 3, 32, 32))) == [8]


def test_changed_weights_are_noticed() -> None:
    model = small("fcn32s-alexnet")
    x, ready = torch.randn(1, 3, 40, 40), prepare(model)
    with torch.inference_mode():
        before = ready(x)["semantic"]
    with torch.no_grad():
        next(model.trunk_parameters()).mul_(1.5)
    with torch.inference_mode():
        after = ready(x)["semantic"]
        assert not torch.allclose(before, after)
        torch.testing.assert_close(after, model.coarse(x)["semantic"], rtol=1e-4, atol=1e-4)


def test_a_network_in_training_mode_scores_as_in_evaluation_and_goes_on_training() -> None:
    model, x = small("fcn32s-alexnet"), torch.ones(1, 3, 9, 9)
    with torch.inference_mode():
        want = prepare(model)(x)["semantic"]
        torch.testing.assert_close(prepare(model.train())(x)["semantic"], want)
    assert all(m.training for m in model.modules())


@pytest.mark.skipif(not has_native("bf16"), reason="the processor has no bfloat16, for which oneDNN has no layout then")
def test_bf16_scores_are_near_and_come_back_as_float32() -> None:
    model = small("fcn8s-vgg16")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        plain, fast = model.coarse(x)["semantic"], prepare(model, "bf16")(x)["semantic"]
    assert fast.dtype == torch.float32
    assert float((fast - plain).abs().max()) < 0.05 * float(plain.abs().max())
    assert not torch.equal(fast, plain)


def test_what_is_computed_grows_with_the_image_not_with_its_padding() -> None:
    network = Windowed(fold_layers(small("fcn8s-vgg16").streams["rgb"].trunk, (32, 16, 8)))  # type: ignore[arg-type]
    first = network.nodes[0].name
    plan = network.plan(10, 20)
    (top, bottom), (left, right) = plan.computed[first]
    assert bottom - top <= 10 + 8
    assert right - left <= 20 + 8
    assert plan.whole(first) == ((0, 208), (0, 218))


def test_large_images_share_a_small_background_and_the_cache_is_bounded() -> None:
    model = small("fcn8s-vgg16")
    network = Windowed(fold_layers(model.streams["rgb"].trunk, (32, 16, 8)))  # type: ignore[arg-type]
    plans = [network.plan(h, w) for h, w in [(500, 375), (500, 407), (2000, 3063)]]
    assert plans[0].small == plans[1].small
    assert max(plans[2].small) < 128
    with torch.inference_mode():
        for h in range(1, 14):
            network(torch.zeros(1, 3, h, 5))
    assert len(network._backgrounds) <= 8


@given(side=st.integers(1, 700))
@settings(max_examples=15)
def test_the_planned_sizes_are_the_traced_ones(side: int) -> None:
    trunk = MODELS.setdefault("fcn32s-alexnet", small("fcn32s-alexnet")).streams["rgb"].trunk
    nodes = Windowed(fold_layers(trunk, (32,))).nodes  # type: ignore[arg-type]
    found, traced = visible_axis(nodes, side, 0), trace(trunk).sizes(side, 1)  # type: ignore[arg-type]
    for node in nodes:
        low, high = found[node.name].seen
        assert 0 <= low < high <= found[node.name].size
    assert found[nodes[-1].name].size == traced["classifier.5"][0]
    assert background_side(nodes, side, 0, [nodes[-3].name], 32) <= side
