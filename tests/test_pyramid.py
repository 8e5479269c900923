"""The pyramid is a decoder like the paper's sum: exact grids, any size, the same scores prepared, saved and traced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_models import scored
from test_own_trunk import Tiny
from test_predict_tiles import trained

import fullyconv as fc
from fullyconv.cost import estimate
from fullyconv.engine.prepare import prepare
from fullyconv.errors import UsageError
from fullyconv.geometry import IMAGE, Layer, fuse
from fullyconv.models.feature_pyramid import WIDTH
from fullyconv.models.released import layer_names
from fullyconv.models.score_layers import UpsampledSum
from fullyconv.models.surgery import transplant
from fullyconv.models.trace import trace
from fullyconv.models.trunks import create_trunk
from fullyconv.recipes import Recipe
from fullyconv.train.optimisation import parameter_groups

NAME = "fcn4s-pyramid-mobilenet_v2"


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(NAME)


@pytest.mark.parametrize("size", [(1, 1), (1, 65), (33, 2), (47, 31)])
def test_any_size_in_gives_exactly_that_size_out_and_the_prepared_network_says_the_same(
    model: Any, size: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    with torch.inference_mode():
        assert model(x)["out"].shape == (2, 5, *size)
        slow, fast = model.coarse(x)["semantic"], prepare(model)(x)["semantic"]
    assert torch.allclose(slow, fast, atol=1e-5 * float(slow.abs().max()))


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("stride", [2, 4])
def test_a_coarser_map_of_coordinates_lands_on_the_finer_ones(kernel: int, stride: int) -> None:
    fine = IMAGE.then(Layer("conv", 3, 2, 1))
    coarse = fine.then(Layer("conv", kernel, stride, 1))
    cells = torch.arange(12.0) * float(coarse.stride) + float(coarse.offset)
    join = UpsampledSum(fuse(coarse, fine, whole=False)[0])
    found = join(torch.zeros(1, 1, 1, 12 * stride), cells[None, None, None])[0, 0, 0]
    want = torch.arange(12.0 * stride) * float(fine.stride) + float(fine.offset)
    assert torch.allclose(found[2 * stride : -2 * stride], want[2 * stride : -2 * stride])


def test_one_map_is_scored_and_all_that_are_read_decide_grid_and_context(model: Any) -> None:
    g, plain = model.geometry(64, 96), fc.create("fcn4s-mobilenet_v2", 5).geometry(64, 96)
    assert (model.taps, g.align, g.exact) == ((4,), 32, True)
    assert (g.stride, g.offset, g.border) == (plain.stride, plain.offset, plain.border)
    smoothed = 32 + 16 + 8 + 4  # a 3x3 convolution at every level, beside the same interpolations
    assert g.halo == plain.halo + smoothed


def test_traced_sizes_and_channels_are_the_real_ones(model: Any) -> None:
    features = model.streams["rgb"].features
    traced = features.trace()
    for size in [(1, 7), (50, 61)]:
        sizes = traced.sizes(*size)
        with torch.inference_mode():
            maps = features(torch.zeros(1, 3, *size))
        assert {s: tuple(m.shape[2:]) for s, m in maps.items()} == {s: sizes[traced.outputs[s]] for s in maps}
        assert {s: m.shape[1] for s, m in maps.items()} == features.channels
    assert features.channels[4] == WIDTH
    assert any(step.upsampled for step in trace(features).steps)


def test_saved_equals_loaded_to_the_bit(model: Any, tmp_path: Path) -> None:
    again = fc.load(model.save_pretrained(tmp_path / "m"))
    x = torch.randn(1, 3, 31, 45)
    with torch.inference_mode():
        assert torch.equal(model(x)["out"], again(x)["out"])


def test_it_starts_from_the_trunks_weights_and_from_a_sum_on_the_same_trunk(tmp_path: Path) -> None:
    trunk = create_trunk("mobilenet_v2")
    save_file(trunk.state_dict(), tmp_path / "w.safetensors")
    model = fc.create(NAME, 3, weights=tmp_path / "w.safetensors", quiet=True, seed=4)
    assert torch.equal(model.streams["rgb"].trunk.features[0][0].weight, trunk.features[0][0].weight)
    report = transplant(model, {"sum": scored(fc.create("fcn4s-mobilenet_v2", 3)).state_dict()})
    assert sum(".trunk." in name for name in report.copied) == len(trunk.state_dict())
    assert {name for name in report.initial if ".score." in name} == {"streams.rgb.score.semantic.4.weight"}


def test_the_pyramid_learns_at_the_heads_rate_and_stays_learned_where_the_trunk_is_fixed() -> None:
    model = fc.create("fcn8s-fixed-pyramid-mobilenet_v2", 3)
    groups = parameter_groups(model, Recipe(head_lr=3.0, bias_lr=2.0))
    assert {group["factor"] for group in groups} == {3.0, 6.0}
    names = {name.split(".")[2] for group in groups for name in group["names"]}
    assert names == {"pyramid", "score"}
    heads = {id(p) for p in model.head_parameters()}
    assert not any(id(p) in heads for p in model.streams["rgb"].pyramid.parameters())


def test_every_layer_gets_a_gradient_once_the_scores_are_not_zero() -> None:
    model = trained(NAME, 3).train()
    model(torch.randn(2, 3, 64, 64))["out"].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_a_new_pyramid_is_a_sum_of_projections() -> None:
    pyramid = fc.create(NAME, 3).eval().streams["rgb"].pyramid
    generator = torch.Generator().manual_seed(0)
    maps = [
        {
            s: torch.randn(1, pyramid.lateral[str(s)][0].in_channels, 64 // s, 64 // s, generator=generator)
            for s in pyramid.strides
        }
        for _ in range(2)
    ]
    both = {s: maps[0][s] + maps[1][s] for s in pyramid.strides}
    with torch.inference_mode():
        assert torch.allclose(pyramid(both), pyramid(maps[0]) + pyramid(maps[1]), atol=1e-4)


def test_a_new_one_scores_zero_and_says_it_is_untrained() -> None:
    model = fc.create(NAME, 3).eval()
    assert model.untrained
    assert not model(torch.randn(1, 3, 20, 20))["out"].any()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_trunk_of_ones_own_takes_it_and_probed_grids_are_said_to_be(hidden: bool) -> None:
    module = Tiny(hidden=hidden)
    model = fc.create("fcn4s-pyramid", 5, trunk=module)
    assert (model.name, model.taps, model.exact) == ("fcn4s-pyramid-own:Tiny", (4,), not hidden)
    assert model(torch.zeros(1, 3, 37, 41))["out"].shape == (1, 5, 37, 41)


def test_timms_networks_take_it_from_one_pixel_on() -> None:
    pytest.importorskip("timm")
    model = scored(fc.create("fcn8s-pyramid-timm:resnet18", 3))
    assert model.exact
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 3, 50))["out"].shape == (1, 3, 3, 50)


def test_two_inputs_have_a_pyramid_each_and_their_scores_are_averaged() -> None:
    model = scored(fc.create("fcn8s-pyramid-resnet18-rgb-hha", 4))
    x = torch.randn(1, 6, 33, 40)
    with torch.inference_mode():
        parts = [s(s.features(x[:, s.channels]), "semantic", 8) for s in model.streams.values()]
        assert torch.allclose(model.coarse(x)["semantic"], (parts[0] + parts[1]) / 2, atol=1e-6)


def test_it_costs_what_its_layers_do() -> None:
    pyramid, plain = (estimate(fc.create(f"fcn4s{flag}-mobilenet_v2", 5), 64, 64) for flag in ("-pyramid", ""))
    assert pyramid.flops > plain.flops + 2 * 16 * 16 * 9 * WIDTH * WIDTH
    assert pyramid.parameters > plain.parameters


@pytest.mark.parametrize(
    ("name", "message"),
    [("fcn8s-pyramid-atonce-vgg16", "adds no scores up"), ("fcn8s-learned-pyramid-resnet18", "adds no scores up")],
)
def test_what_does_not_go_with_it_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fc.create(name, 3)


def test_the_papers_padding_and_caffes_files_are_refused() -> None:
    with pytest.raises(UsageError, match="no paper's padding"):
        fc.create("fcn8s-pyramid-alexnet", 3, padding="paper")
    with torch.device("meta"):
        model = fc.create("fcn8s-pyramid-vgg16", 3)
    with pytest.raises(UsageError, match="no released network has a pyramid"):
        layer_names(model)
