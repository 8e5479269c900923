"""A torch module of one's own as a trunk: created, learned, kept, loaded; and what cannot be one ends in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_tools import images

import fullyconv as fc
from fullyconv.errors import UnknownName, UsageError
from fullyconv.models.names import own_name, parse
from fullyconv.preprocessing import Preprocessing
from fullyconv.recipes import Recipe


class Tiny(nn.Module):
    """Two maps by name, the coarse one first; nothing that torch.fx can follow with `hidden`."""

    def __init__(self, channels: int = 3, hidden: bool = False) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.hidden = hidden

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.hidden and float(x.detach().sum()) == 12345.678:
            x = x + 1
        fine = self.fine(x)
        return {"high": self.coarse(fine), "low": fine}


@pytest.mark.parametrize("hidden", [False, True])
def test_a_module_of_ones_own_is_a_trunk_with_its_own_weights(hidden: bool) -> None:
    torch.manual_seed(3)
    module = Tiny(hidden=hidden)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    model = fc.create("fcn4s", 5, trunk=module)
    assert (model.name, model.taps, model.exact) == ("fcn4s-own:Tiny", (8, 4), not hidden)
    trunk: Any = model.streams["rgb"].trunk
    assert trunk.net is module
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert model(torch.zeros(1, 3, 37, 41))["out"].shape == (1, 5, 37, 41)
    assert module.training


@pytest.mark.parametrize(
    ("form", "strides"),
    [
        (lambda: nn.Conv2d(3, 4, 3, 2, 1), (2,)),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)), (4,)),
        (lambda: _Listed(), (4, 2)),
    ],
)
def test_one_map_or_a_list_of_them_will_do(form: Any, strides: tuple[int, ...]) -> None:
    assert fc.create(f"fcn{strides[-1]}s", 2, trunk=form()).taps == strides


class _Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(k, 4, 3, s, 1) for k, s in ((3, 2), (4, 1), (4, 2)))

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.a(x)
        second = self.b(first)
        return [first, second, self.c(second)]  # the last map of a stride counts


def test_the_last_map_of_a_stride_counts() -> None:
    module = _Listed()
    trunk: Any = fc.create("fcn2s", 2, trunk=module).streams["rgb"].trunk
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(trunk(x)[2], module(x)[1])


class _Returns(nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Any:
        return self.value


@pytest.mark.parametrize(
    ("trunk", "words"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), r"makes \(1, 3\) of an image, no maps"),
        (nn.Linear(3, 4), "does not take an image"),
        (_Returns([]), "makes nothing of an image"),
        (_Returns({"a": 3}), "makes int of an image"),
        (nn.Conv2d(3, 4, 3, 3), "a stride of 3"),
        (nn.Conv2d(4, 4, 3, 2, 1), "does not take an image of 1x3"),
        (np.zeros(3), "a torch module or None, not ndarray"),
        ("resnet18", "a torch module or None, not str"),
    ],
)
def test_what_makes_no_maps_is_refused_in_a_sentence(trunk: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fc.create("fcn8s", 3, trunk=trunk)


def test_what_does_not_go_with_an_own_trunk_is_refused() -> None:
    for more, words in (
        ({"weights": "imagenet"}, "by name"),
        ({"padding": "paper"}, "padding"),
        ({"name": "fcn8s-rgb-hha"}, "two inputs"),
        ({"name": "fcn16s"}, "has no stride 16"),
    ):
        with pytest.raises(UsageError, match=words):
            fc.create(**{"name": "fcn4s", "classes": 3, "trunk": Tiny(), **more})
    with pytest.raises(UnknownName):
        fc.create()


def test_names_say_all_but_the_trunk() -> None:
    names = ("fcn8s", "fcn8s-learned", "fcn16s-bands5", "fcn8s-efficientnet_lite0", "fcn8s-own:Old")
    assert [own_name(n, Tiny()) for n in names] == [
        *("fcn8s-own:Tiny", "fcn8s-learned-own:Tiny", "fcn16s-own:Tiny-bands5", "fcn8s-own:Tiny", "fcn8s-own:Tiny")
    ]
    assert parse("fcn16s-own:Tiny-bands5").bands == 5
    model = fc.create(
        "fcn4s-bands5", 2, trunk=Tiny(5), preprocessing=Preprocessing((0, 1, 2, 3, 4), 1.0, (0,) * 5, (1,) * 5)
    )
    assert model(torch.zeros(1, 5, 16, 16))["out"].shape == (1, 2, 16, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_timms_feature_extractors_are_trunks_of_ones_own(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, features_only=True, pretrained=False)
    model = fc.create("fcn8s", 3, trunk=net)
    assert dict(model.streams["rgb"].trunk.channels) == dict(
        zip(net.feature_info.reduction(), net.feature_info.channels(), strict=True)
    )
    for parameter in model.head_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = images(1)[0].image
    scores = fc.Predictor(model)(image)
    assert scores.shape == image.shape[:2]
    model.eval()
    with torch.inference_mode():
        x = torch.from_numpy(model.preprocessing(image)[None])
        np.testing.assert_array_equal(model(x)["out"][0].argmax(0), scores)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timms_networks_of_one_size_are_refused_with_those_that_will_do(name: str) -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(UsageError, match="takes images of any size"):
        fc.create("fcn8s", 3, trunk=timm.create_model(name, features_only=True, pretrained=False))


@pytest.mark.slow
def test_a_network_with_an_own_trunk_is_learned_kept_and_loaded_with_the_module(tmp_path: Path) -> None:
    recipe = Recipe(model="fcn4s", steps=2, batch_size=2, crop=(32, 32), device="cpu", val_split="")
    fc.fit(recipe, images(4), tmp_path / "run", trunk=Tiny(), check=False, quiet=True)
    with pytest.raises(UsageError, match=r"trunk Tiny is a module of its owner's.*trunk=module"):
        fc.load(tmp_path / "run" / "last")
    model = fc.load(tmp_path / "run" / "last", trunk=Tiny())
    assert model.name == "fcn4s-own:Tiny"
    image = images(1)[0].image
    assert fc.Predictor(model)(image).shape == image.shape[:2]
    fc.fit(recipe.replace(steps=3), images(4), tmp_path / "run", trunk=Tiny(), check=False, quiet=True, resume=True)
    with pytest.raises(UsageError, match="leave trunk= out"):
        fc.load(fc.create("fcn16s-squeezenet1_0", 2).save_pretrained(tmp_path / "other"), trunk=Tiny())


def test_a_networks_repr_is_a_line_and_its_page_names_the_classes() -> None:
    model = fc.create("fcn4s", 3, trunk=Tiny())
    assert repr(model) == "FCN(fcn4s-own:Tiny, semantic: 3 classes, scores at 8s/4s, 0.0 M parameters)"
    assert model._repr_html_().count("<tr>") == 4
