"""A convolutionalised classifier is the classifier, at every window, with its own weights; and says where it is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fullyconv as fc
from fullyconv.convolutionalisation.rewriting import spread_kernel
from fullyconv.errors import DataError, UsageError

SIZE = (22, 26)  # native: the trunk below leaves 4 x 5 cells, 4 pixels apart


def trunk() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.MaxPool2d(2, 2))


class Classifier(nn.Module):
    """An unpadded trunk and a head written as functions: `head(self, features)`."""

    def __init__(self, head: str, width: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk(), head
        self.fc, self.norm = nn.Linear(width, 7), nn.LayerNorm(8)
        self.bn = nn.BatchNorm1d(7)
        self.bn.running_mean.uniform_(-1, 1)
        self.hidden, self.last, self.scale = nn.Linear(width, 7), nn.Linear(7, 5), nn.Parameter(torch.rand(7))

    def forward(self, x: Tensor) -> Tensor:
        return HEADS[self.head][1](self, self.trunk(x))


def idle(x: Tensor) -> Tensor:
    return F.dropout(x, training=False)


def gem(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.clamp(min=1e-3).pow(3), (x.size(-2), x.size(-1))).pow(1 / 3)


CELLS, C = 4 * 5, 8
# how the head is written -> features of its first linear layer, and the head
HEADS = {
    "flatten": (C * CELLS, lambda m, f: m.fc(torch.flatten(f, 1))),
    "view by size": (C * CELLS, lambda m, f: m.fc(f.view(f.size(0), -1))),
    "view by number": (C * CELLS, lambda m, f: m.fc(f.view(-1, C * CELLS))),
    "reshape, dropout, two layers": (C * CELLS, lambda m, f: m.last(F.relu(m.fc(idle(f.reshape(f.shape[0], -1)))))),
    "channels last, flattened": (C * CELLS, lambda m, f: m.fc(f.permute(0, 2, 3, 1).flatten(1))),
    "relu between flatten and linear": (C * CELLS, lambda m, f: m.fc(F.relu(f.flatten(1) - 0.0))),
    "adaptive to the cells there are": (C * CELLS, lambda m, f: m.fc(F.adaptive_avg_pool2d(f, (4, 5)).flatten(1))),
    "adaptive to fewer cells": (C * 6, lambda m, f: m.fc(F.adaptive_avg_pool2d(f, (3, 2)).flatten(1))),
    "adaptive to more cells": (C * 42, lambda m, f: m.fc(F.adaptive_avg_pool2d(f, (6, 7)).flatten(1))),
    "adaptive average": (C, lambda m, f: m.fc(F.adaptive_avg_pool2d(f, 1).flatten(1))),
    "adaptive maximum": (C, lambda m, f: m.fc(F.adaptive_max_pool2d(f, 1)[:, :, 0, 0])),
    "mean": (C, lambda m, f: m.fc(f.mean((2, 3)))),
    "mean of means": (C, lambda m, f: m.fc(f.mean(3).mean(2))),
    "mean of merged positions": (C, lambda m, f: m.fc(f.flatten(2).mean(-1))),
    "channels last mean": (C, lambda m, f: m.fc(f.permute(0, 2, 3, 1).mean((1, 2)))),
    "maximum": (C, lambda m, f: m.fc(f.amax(dim=(-2, -1)))),
    "pool of the map's own size": (C, lambda m, f: m.fc(F.avg_pool2d(f, f.shape[2:]).squeeze(-1).squeeze(-1))),
    "pool of a fixed size": (C, lambda m, f: m.fc(F.avg_pool2d(f, (4, 5)).flatten(1))),
    "generalised mean": (C, lambda m, f: m.fc(gem(f).flatten(1))),
    "mean and maximum": (2 * C, lambda m, f: m.fc(torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1))),
    "norm and softmax": (C, lambda m, f: torch.softmax(m.fc(m.norm(f.mean((2, 3)))), -1)),
    "batch norm and a factor": (C, lambda m, f: m.last(m.bn(m.hidden(f.mean((2, 3)))) * m.scale)),
    "convolution, then mean": (C, lambda m, f: F.conv2d(f, m.fc.weight[:, :, None, None]).mean((2, 3))),
}  # fmt: skip


def classifier(head: str) -> Classifier:
    torch.manual_seed(5)
    return Classifier(head, HEADS[head][0]).eval()


def windows(x: Tensor, classify: nn.Module, stride: tuple[int, int], size: tuple[int, int] = SIZE) -> Tensor:
    """The slow twin: the classifier on every crop, K h w."""
    rows = range(0, x.shape[2] - size[0] + 1, stride[0])
    columns = range(0, x.shape[3] - size[1] + 1, stride[1])
    found = [torch.stack([classify(x[:, :, y : y + size[0], z : z + size[1]])[0] for z in columns]) for y in rows]
    return torch.stack(found).permute(2, 0, 1)


@pytest.mark.parametrize("head", HEADS)
def test_without_padding_the_map_is_the_classifier_on_every_window(head: str) -> None:
    model = classifier(head)
    dense = fc.convolutionalise(model, SIZE)
    x = torch.randn(1, 3, SIZE[0] + 21, SIZE[1] + 14)
    with torch.inference_mode():
        expected = windows(x, model, (4, 4))
        got = dense(x)[0]
    assert dense.stride == (4, 4)
    assert got.shape == expected.shape == (expected.shape[0], 6, 4)
    assert got.std((1, 2)).max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert dense.proof.exact
    assert not dense.proof.padded
    assert not dense.proof.whole_image


def test_no_parameter_is_copied_and_the_classifier_is_left_as_it_was() -> None:
    model = classifier("flatten")
    before = {n: (p.data_ptr(), p.clone()) for n, p in model.named_parameters()}
    dense = fc.convolutionalise(model, SIZE)
    assert {p.data_ptr() for p in dense.parameters()} <= {pointer for pointer, _ in before.values()}
    assert all(torch.equal(model.get_parameter(n), p) for n, (_, p) in before.items())
    assert model(torch.randn(2, 3, *SIZE)).shape == (2, 7)


class Padded(nn.Module):
    """VGG-style: padded convolutions, a fixed window of cells, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.MaxPool2d(2, 2),
        )
        self.classifier = nn.Sequential(nn.Linear(8 * 16, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def test_with_padding_the_proof_takes_it_out_of_both_and_names_it() -> None:
    torch.manual_seed(0)
    model = Padded()  # in train mode, but without batch norm: dropout is off in the dense scorer
    proof = fc.convolutionalise(model, 16).proof
    assert proof.native <= 1e-5
    assert proof.unpadded is not None
    assert proof.unpadded <= 1e-5
    assert proof.padded == ("features.0", "features.3")
    assert not proof.exact
    assert "features.0" in str(proof)
    assert model.training


class Gated(nn.Module):
    """Squeeze-excitation in the trunk, a global mean at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.squeeze, self.fc = trunk(), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        f = self.trunk(x)
        gate = torch.sigmoid(self.squeeze(f.mean((2, 3))))[:, :, None, None]
        return self.fc((f * gate).mean((2, 3)))


def test_squeeze_excitation_stays_global_and_is_said() -> None:
    torch.manual_seed(0)
    model = Gated().eval()
    dense = fc.convolutionalise(model, SIZE)
    assert dense.proof.whole_image == ("mean (mean)",)
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        f = model.trunk(x)
        gate = torch.sigmoid(model.squeeze(f.mean((2, 3))))[:, :, None, None]
        expected = F.conv2d(F.avg_pool2d(f * gate, (4, 5), 1), model.fc.weight[:, :, None, None], model.fc.bias)
        torch.testing.assert_close(dense(x), expected)


class Attention(nn.Module):
    def __init__(self, written: str) -> None:
        super().__init__()
        self.trunk, self.written, self.fc = trunk(), written, nn.Linear(8, 5)
        self.module = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.trunk(x).flatten(2).transpose(1, 2)
        if self.written == "module":
            tokens = self.module(tokens, tokens, tokens)[0]
        elif self.written == "sdpa":
            tokens = F.scaled_dot_product_attention(tokens, tokens, tokens)
        else:
            tokens = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        return self.fc(tokens.mean(1))


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.norm, self.fc = trunk(), nn.BatchNorm2d(8, track_running_stats=False), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.trunk(x)).mean((2, 3)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = trunk()

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x).mean((2, 3)) if x.sum() > 0 else self.trunk(-x).mean((2, 3))


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.place, self.fc = trunk(), nn.Parameter(torch.randn(1, 8, 4, 5)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.trunk(x) + self.place).mean((2, 3)))


REFUSED = {
    "attention as a module": (lambda: Attention("module").eval(), "attention"),
    "attention as a function": (lambda: Attention("sdpa").eval(), "attention"),
    "attention written out": (lambda: Attention("matmul").eval(), "attention"),
    "batch norm in train mode": (lambda: nn.Sequential(trunk(), nn.BatchNorm2d(8), nn.Flatten()), "train mode"),
    "batch norm without statistics": (lambda: Statistics().eval(), "batch at hand"),
    "a branch on the values": (lambda: Branching().eval(), "cannot be traced"),
    "a table of positions": (lambda: Positions().eval(), "22x26"),
    "another input size": (lambda: Padded().eval(), "cannot take"),
    "a flat vector as the result": (lambda: nn.Sequential(trunk(), nn.Flatten()).eval(), "before any linear layer"),
    "the standard deviation": (lambda: Reduced(lambda f: f.std((2, 3))).eval(), "cannot slide"),
    "sorting": (lambda: Reduced(lambda f: f.mean((2, 3)).sort(1).values).eval(), "cannot slide"),
}  # fmt: skip


class Reduced(nn.Module):
    def __init__(self, reduce) -> None:
        super().__init__()
        self.trunk, self.reduce, self.fc = trunk(), reduce, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.reduce(self.trunk(x)))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_slide_is_refused_in_one_sentence(case: str) -> None:
    build, fact = REFUSED[case]
    with pytest.raises(UsageError, match=fact) as caught:
        fc.convolutionalise(build(), SIZE)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(UsageError, match="torch module, not str"):
        fc.convolutionalise("resnet18")


def test_an_image_smaller_than_the_window_is_refused() -> None:
    dense = fc.convolutionalise(classifier("mean"), SIZE)
    with pytest.raises(DataError, match="22x26"):
        dense(torch.zeros(1, 3, 22, 25))


def test_the_matrix_of_adaptive_pooling_is_adaptive_pooling() -> None:
    x = torch.randn(2, 3, 5, 7)
    for grid in ((1, 1), (2, 3), (5, 7), (6, 4)):
        expected = F.adaptive_avg_pool2d(x, grid).flatten(2)
        torch.testing.assert_close(torch.einsum("ncp,gp->ncg", x.flatten(2), spread_kernel(grid, (5, 7))), expected)


FAMILIES = ["alexnet", "squeezenet1_1", "resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5"]
MORE = ["vgg11", "googlenet", "mobilenet_v2", "efficientnet_b0", "convnext_tiny", "densenet121", "regnet_y_400mf"]
TIMM = [
    "resnet18",
    "convnext_atto",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "convnextv2_atto",
]


def prove(model: nn.Module, size: int) -> None:
    for module in model.modules():  # at their starts these networks say nearly nothing about their image
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    proof = fc.convolutionalise(model.eval(), size, windows=2).proof
    assert proof.scale > 0
    assert proof.native <= 1e-4 * proof.scale
    assert np.isfinite(proof.window_difference)
    assert proof.stride in ((32, 32), (16, 16))


@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES[1:3])])
def test_torchvision_families(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    prove(torchvision.models.get_model(name), 128 if name != "alexnet" else 96)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES[3:] + MORE)
def test_more_torchvision_families(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    prove(torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {})), 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_families(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    prove(timm.create_model(name), 224)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_transformers_are_refused(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(UsageError, match="attention"):
        fc.convolutionalise(torchvision.models.get_model(name).eval(), 224)


# -- real weights ------------------------------------------------------------------------------------------------------

SHARED = Path(os.environ.get("FULLYCONV_SHARED", "/nonexistent")) / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="FULLYCONV_SHARED is not set")


@pytest.fixture
def photo() -> Path:
    return sorted((SHARED / "voc/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[2]  # a cat


@pytest.mark.slow
@needs_data
def test_the_heat_map_of_a_photo_follows_the_classifier_on_its_windows(photo: Path, tmp_path, capsys) -> None:
    """On real weights the map varies over the image as the classifier does on its windows."""
    from fullyconv import cli

    weights = next((SHARED / "weights").glob("squeezenet1_0*.pt"))
    out = tmp_path / "heat.png"
    with pytest.raises(SystemExit) as done:
        cli.main(["convolutionalise", "squeezenet1_0", str(photo), "--weights", str(weights), "-o", str(out), "--json"])
    assert done.value.code in (0, None)
    value = json.loads(capsys.readouterr().out)
    assert "cat" in value["class"].lower()
    assert np.asarray(value["map"]).shape == (18, 11)
    assert value["proof"]["native"] <= 1e-4 * value["proof"]["scale"]
    assert value["proof"]["correlation"] > 0.85
    from fullyconv.images import read_image

    assert read_image(out).shape == (500, 750, 3)
