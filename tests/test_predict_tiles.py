"""Tiles give the whole image's scores where the network's field is finite; elsewhere they are blended, and say so."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from test_predict import Tiny, photo
from torch import nn

import fullyconv
from fullyconv.errors import UsageError
from fullyconv.geometry import Tile
from fullyconv.models.names import NETWORKS
from fullyconv.models.trunks import TRUNKS
from fullyconv.predict import Predictor
from fullyconv.predict.tiling import _ramp


def trained(name: str, classes: int | None = 5, seed: int = 0, **options: Any) -> Any:
    """A network with random score layers: what it says is as sensitive to its input as a trained one."""
    model = fullyconv.create(name, classes, quiet=True, **options)
    torch.manual_seed(seed)
    for p in model.head_parameters():
        nn.init.normal_(p, std=0.1 if p.ndim > 1 else 0.01)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # random statistics: running means of 0 would hide misplaced padding
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def assert_tiles_equal_whole(model: Any, size: tuple[int, int], tile: int | tuple[int, int]) -> None:
    image = photo(*size, seed=3)
    whole, tiled = Predictor(model).scores(image), Predictor(model, tile=tile)
    assert not tiled.tiling["blended"]
    scale = np.abs(whole).max()
    np.testing.assert_allclose(tiled.scores(image), whole, atol=2e-5 * scale, rtol=0)
    labels = tiled(image)
    assert (labels != whole.argmax(0)).mean() < 1e-4  # ties at rounding level


SMALL = ["fcn32s-squeezenet1_0", "fcn8s-mobilenet_v2", "fcn4s-resnet18"]


@pytest.mark.parametrize(
    ("name", "size", "tile"),
    [(SMALL[0], (40, 301), 64), (SMALL[1], (67, 300), (96, 64)),
     ("fcn4s-pyramid-mobilenet_v2", (67, 300), (96, 64))],
)  # fmt: skip
def test_tiles_give_the_scores_of_the_whole_image(name: str, size: tuple[int, int], tile: Any) -> None:
    name = name.replace("32s-squeeze", "16s-squeeze")
    assert_tiles_equal_whole(trained(name), size, tile)


def test_a_tile_no_smaller_than_the_image_is_the_whole_image() -> None:
    predictor, image = Predictor(Tiny(), tile=64), photo(13, 18)
    np.testing.assert_array_equal(predictor.scores(image), Predictor(Tiny()).scores(image))


@pytest.mark.parametrize("tile", [1, 4, 7, (8, 12)])
def test_any_tile_size_gives_the_whole_scores_and_labels(tile: Any) -> None:
    image = photo(37, 50)
    whole, tiled = Predictor(Tiny()), Predictor(Tiny(), tile=tile)
    np.testing.assert_allclose(tiled.scores(image), whole.scores(image), atol=1e-5)
    np.testing.assert_array_equal(tiled(image), whole(image))
    labels, confidence = tiled.confident_labels(image)["semantic"]
    np.testing.assert_array_equal(labels, whole(image))
    np.testing.assert_allclose(confidence, whole.confident_labels(image)["semantic"][1], atol=1e-5)


@pytest.mark.parametrize("tile", [0, (4, -1)])
def test_an_empty_tile_is_refused(tile: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        Predictor(Tiny(), tile=tile)


class Global(nn.Module):
    """A network whose every score also depends on the mean of the whole image."""

    name, heads = "global", {"semantic": 3}

    def __init__(self) -> None:
        super().__init__()
        self.local = Tiny()
        self.preprocessing, self.score = self.local.preprocessing, self.local.score
        self.trunk_parameters, self.head_parameters = self.local.trunk_parameters, self.local.head_parameters

    def geometry(self, height: int, width: int) -> Any:
        from dataclasses import replace

        return replace(self.local.geometry(height, width), halo=float("inf"))

    def coarse(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {h: s + s.mean((2, 3), keepdim=True) for h, s in self.local.coarse(x).items()}


@pytest.mark.parametrize("tile", [8, 16, (12, 20)])
def test_a_network_of_unbounded_context_is_blended_and_says_so(tile: Any) -> None:
    tiled = Predictor(Global(), tile=tile)
    assert tiled.tiling["blended"]
    assert not tiled.tiling["exact"]
    image = np.full((60, 48, 3), 90, np.uint8)  # constant: every tile sees the same context
    np.testing.assert_allclose(tiled.scores(image), Predictor(Global()).scores(image), atol=1e-4)
    labels, confidence = tiled.confident_labels(photo(61, 50))["semantic"]
    scores = tiled.scores(photo(61, 50))
    np.testing.assert_array_equal(labels, scores.argmax(0))
    np.testing.assert_allclose(confidence, torch.from_numpy(scores).softmax(0).amax(0), atol=1e-6)


@pytest.mark.parametrize(("size", "core", "context"), [(61, 12, 8), (50, 20, 12), (33, 4, 4), (64, 16, 8)])
def test_blending_weights_sum_to_one_everywhere(size: int, core: int, context: int) -> None:
    total = np.zeros(size, np.float32)
    for start in range(0, size, core):
        tile = Tile(max(0, start - context), min(size, start + core + context), start, min(size, start + core))
        total[tile.start : tile.stop] += _ramp(tile, size, core // 2)
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_coarsest_stride_is_what_tiles_are_aligned_to() -> None:
    model = trained("fcn8s-mobilenet_v2")
    assert Predictor(model, tile=100).tiling["tile"] == [96, 96]
    assert Predictor(model, tile=3).tiling["tile"] == [32, 32]
    assert max(g.stride for g in model.geometry(96, 96).taps.values()) == Fraction(32)


LIGHT = [
    "fcn32s-alexnet", "fcn32s-alexnet_tv", "fcn32s-googlenet", "fcn32s-googlenet_tv", "fcn8s-mobilenet_v2",
    "fcn8s-resnet18", "fcn4s-squeezenet1_0", "fcn4s-pyramid-efficientnet_lite0",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_every_light_network_of_finite_field_gives_the_whole_scores_in_tiles(name: str) -> None:
    assert_tiles_equal_whole(trained(name), (160, 590), (192, 160))


# The paper's networks and one for every trunk; MobileNetV3's gates read the mean of the whole image, vgg16_conv has
# names of its own, and tests of training add two.
UNSUITABLE = ("mobilenet_v3_large", "vgg16_conv", "tiny", "plain")
OF_FINITE_FIELD = [
    *NETWORKS,
    *(f"fcn{16 if t == 'squeezenet1_0' else 8}s-{t}" for t in TRUNKS if t not in UNSUITABLE),
]


def thin(model: Any, divide: int = 8, seed: int = 0) -> None:
    """A `divide`-th of the channels between the layers; the same layers else."""
    torch.manual_seed(seed)
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_features //= divide
            for name in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(module, name)[: module.num_features].detach().clone()
                setattr(module, name, nn.Parameter(value) if name in ("weight", "bias") else value)
        if not isinstance(module, nn.Conv2d):
            continue
        if module.in_channels > 6:
            module.groups = module.groups // divide if module.groups == module.in_channels else module.groups
            module.in_channels //= divide
        module.out_channels //= 1 if ".score." in key else divide
        fan = module.in_channels // module.groups * math.prod(module.kernel_size)
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        module.weight = nn.Parameter(torch.randn(shape) * (2 / fan) ** 0.5)
        module.bias = None if module.bias is None else nn.Parameter(torch.randn(module.out_channels) * 0.3)


def assert_all_heads_agree(model: Any, size: tuple[int, int], tile: tuple[int, int]) -> None:
    image = np.random.default_rng(size[0]).integers(0, 256, (*size, model.preprocessing.channels), dtype=np.uint8)
    whole, tiled = Predictor(model).scores(image), Predictor(model, tile=tile)
    assert tiled.tiling["exact"]
    found = tiled.scores(image)
    for head, scores in ({"": whole} if len(model.heads) == 1 else whole).items():
        other = found[head] if head else found
        assert np.abs(other - scores).max() <= 2e-5 * np.abs(scores).max(), (size, tile, head)


@pytest.mark.parametrize("name", ["fcn8s-vgg16", "fcn8s-mobilenet_v2", "siftflow-fcn16s"])
def test_thinned_networks_of_any_size_give_the_whole_scores_in_any_tiles(name: str) -> None:
    model = trained(name, None)
    thin(model, 8)
    assert_all_heads_agree(model, (301, 77), (96, 64))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OF_FINITE_FIELD)
def test_up_to_3000_pixels_every_thinned_network_gives_the_whole_scores_in_any_tiles(name: str) -> None:
    model, rng = trained(name, None), random.Random(name)
    thin(model, 8)
    for _ in range(3):
        size = [rng.randint(1, 3000), rng.randint(1, 900)]
        rng.shuffle(size)
        assert_all_heads_agree(model, (size[0], size[1]), (rng.randint(1, 1200), rng.randint(200, 1200)))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OF_FINITE_FIELD)
def test_up_to_700_pixels_every_network_gives_the_whole_scores_in_tiles(name: str) -> None:
    model, rng = trained(name, None), random.Random(name)
    assert_all_heads_agree(model, (rng.randint(400, 700), rng.randint(500, 700)), (rng.randint(200, 400), 352))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn8s-vgg16", "voc-fcn-pool3"])
def test_the_papers_padding_gives_the_whole_scores_in_tiles(name: str) -> None:
    model, image = trained(name), photo(32, 590)
    whole, tiled = (Predictor(model, tile=tile).scores(image) for tile in (None, (32, 160)))
    np.testing.assert_allclose(tiled, whole, atol=2e-5 * np.abs(whole).max(), rtol=0)
