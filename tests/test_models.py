"""Any size in, the same size out, on exact grids; trunks are torchvision's; names, weights and directories hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fullyconv as fc
from fullyconv import ops
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError
from fullyconv.models import NETWORKS, TRUNKS, parse
from fullyconv.models.fcn import FCN
from fullyconv.models.score_layers import LearnedUpsampling
from fullyconv.models.trace import CannotTrace, probe, trace
from fullyconv.models.trunks import create_trunk
from fullyconv.models.weight_loading import load_into
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Taxonomy

LIGHT = ["mobilenet_v2", "mobilenet_v3_large", "resnet18", "squeezenet1_0", "googlenet", "googlenet_tv"]


def scored(model: FCN, seed: int = 1) -> FCN:
    """The network with random scores instead of zeros, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=generator)
    return model.eval()


@pytest.mark.parametrize("trunk", LIGHT)
@pytest.mark.parametrize("finest", [16, 8])
def test_any_size_in_gives_exactly_that_size_out(trunk: str, finest: int) -> None:
    model = scored(fc.create(f"fcn{finest}s-{trunk}", 3))
    generator = torch.Generator().manual_seed(0)
    for h, w in [(1, 1), (1, 65), (33, 2), (47, 31), (64, 64)]:
        with torch.inference_mode():
            out = model(torch.randn(2, 3, h, w, generator=generator))
        assert out["semantic"].shape == (2, 3, h, w)
        assert out["out"] is out["semantic"]
        assert bool(torch.isfinite(out["out"]).all())


def test_several_heads_have_scores_each_and_no_out() -> None:
    model = scored(fc.create("fcn8s-resnet18", heads={"semantic": 5, "geometric": 3}))
    out = model(torch.zeros(1, 3, 20, 30))
    assert {k: tuple(v.shape) for k, v in out.items()} == {"semantic": (1, 5, 20, 30), "geometric": (1, 3, 20, 30)}


def test_a_new_network_scores_exactly_zero_and_says_it_is_untrained() -> None:
    model = fc.create("fcn8s-squeezenet1_0", 4).eval()
    assert model.untrained
    assert not model(torch.randn(1, 3, 40, 40))["out"].any()
    assert not scored(model).untrained


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (fc.create("fcn16s-squeezenet1_0", 2, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


@pytest.mark.parametrize("trunk", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "squeezenet1_0"])
def test_trunks_have_torchvisions_keys_and_give_its_features(trunk: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, trunk)(weights=None).eval()
    ours = create_trunk(trunk).eval()
    report = load_into(ours, theirs.state_dict(), trunk)
    assert not report.initial
    assert all(name.startswith(("classifier", "fc.")) for name in report.dropped)
    if trunk == "squeezenet1_0":
        return  # pooled on another grid ("same" padding): equal weights, other windows
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        last = ours(x)[32]
        if trunk.startswith("resnet"):
            want = nn.Sequential(*list(theirs.children())[:-2])(x)
        else:
            want = theirs.features(x)
    assert torch.allclose(last, want, atol=1e-5)


def test_classes_and_heads_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match=r"classes = 3 and heads = {'a': 2} say the same thing twice"):
        fc.create("fcn16s-squeezenet1_0", 3, heads={"a": 2})


@pytest.mark.slow
@pytest.mark.parametrize(
    "trunk", ["googlenet_tv", *(pytest.param(t, marks=pytest.mark.slow) for t in ("vgg16", "vgg16_bn", "alexnet_tv"))]
)
def test_classifiers_weights_are_coerced_into_convolutions(trunk: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    extra = {"aux_logits": False, "init_weights": False} if trunk == "googlenet_tv" else {}
    theirs = getattr(torchvision.models, trunk.removesuffix("_tv"))(weights=None, **extra).eval()
    ours = create_trunk(trunk, padding="same").eval()
    report = load_into(ours, theirs.state_dict(), trunk)
    assert not report.initial
    x = torch.randn(1, 3, 64, 64)
    if trunk.startswith("vgg"):
        assert len(report.coerced) == 2
        with torch.inference_mode():  # fc6 on a 7x7 map is the fully connected layer
            pool5 = theirs.features(torch.randn(1, 3, 224, 224))
            fc6 = F.relu(theirs.classifier[0](pool5.flatten(1)))
            conv = ours.classifier[0]
            ours6 = F.relu(F.conv2d(pool5, conv.weight, conv.bias)).flatten(1)
        assert torch.allclose(fc6, ours6, atol=1e-4)
        with torch.inference_mode():
            assert torch.allclose(nn.Sequential(*ours.features)(x), theirs.features(x), atol=1e-5)


def coordinates(name: str, padding: str | None, h: int, w: int) -> tuple[FCN, Tensor, Tensor]:
    """The fused coarse grid as a network of averages would see it: scores = pixel row (head channel 0) of each cell."""
    with torch.device("meta"):  # only its geometry is asked
        model = fc.create(name, 2, padding=padding)
    g = model.geometry(h, w)
    fused = model.fused
    cells_h = int((h - float(fused.offset)) // g.stride) + 3
    cells_w = int((w - float(fused.offset)) // g.stride) + 3
    rows = torch.arange(cells_h) * float(fused.stride) + float(fused.offset)
    columns = torch.arange(cells_w) * float(fused.stride) + float(fused.offset)
    scores = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    full = ops.upsample(scores, (h, w), g.stride, g.offset, border=g.border)
    return model, full[0, 0], full[0, 1]


@pytest.mark.parametrize(
    ("name", "padding"),
    [("fcn8s-resnet18", None), ("fcn8s-vgg16_conv", "same"), ("fcn8s-vgg16", "paper"),
     ("fcn4s-mobilenet_v2", None), ("fcn4s-pyramid-mobilenet_v2", None),
     ("fcn32s-googlenet", "paper"), ("fcn32s-alexnet", "paper")],
)  # fmt: skip
def test_a_grid_of_coordinates_comes_out_as_the_pixels_own_coordinates(name: str, padding: str | None) -> None:
    _, rows, columns = coordinates(name, padding, 70, 90)
    inside = slice(16, -33)  # away from where a border is replicated or fades
    assert torch.allclose(rows[inside, inside], torch.arange(70.0)[inside, None].expand(-1, 41), atol=1e-3)
    assert torch.allclose(columns[inside, inside], torch.arange(90.0)[None, inside].expand(21, -1), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "padding"),
    [("fcn8s-resnet18", None), ("fcn32s-alexnet", "paper"), ("fcn4s-squeezenet1_0", None),
     ("fcn4s-pyramid-squeezenet1_0", None)],
)  # fmt: skip
def test_an_impulse_moves_only_scores_within_the_receptive_field_and_symmetrically(
    name: str, padding: str | None
) -> None:
    model = scored(fc.create(name, 2, padding=padding))
    for m in model.modules():  # positive weights: nothing cancels
        if isinstance(m, nn.Conv2d):
            m.weight.data.abs_()
    h = w = 161
    y, x = 96, 64
    quiet = torch.zeros(1, 3, h, w)
    loud = quiet.clone()
    loud[..., y, x] = 1.0
    with torch.inference_mode():
        moved = (model(loud)["out"] - model(quiet)["out"]).abs().sum((0, 1)) > 1e-9
    reach = model.geometry(h, w).halo
    rows, columns = moved.any(1).nonzero().flatten(), moved.any(0).nonzero().flatten()
    assert rows.min() <= y <= rows.max()
    assert columns.min() <= x <= columns.max()
    assert y - rows.min() <= reach
    assert columns.max() - x <= reach


def test_same_padded_scores_are_plain_interpolation_where_cells_are_centred() -> None:
    model = scored(fc.create("fcn32s-vgg16_conv", 3, padding="same"))
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        coarse, full = model.coarse(x)["semantic"], model(x)["out"]
    want = F.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    assert model.geometry(64, 96).offset == 16
    assert torch.allclose(full, want, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["voc-fcn-pool3", *(pytest.param(f"voc-fcn-pool{n}", marks=pytest.mark.slow) for n in (4, 5))]
)
def test_published_ablations_cover_their_input(name: str) -> None:
    model = scored(fc.create(name))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 19, 23))["out"].shape == (1, 21, 19, 23)


def test_every_published_network_parses_and_every_trunk_has_a_source() -> None:
    for name in NETWORKS:
        assert parse(name).source
    for name in LIGHT:
        assert name in TRUNKS
        assert create_trunk(name).source


def test_learned_upsampling_starts_as_bilinear_and_is_trained() -> None:
    plain, learned = (scored(fc.create(f"fcn8s{flag}-resnet18", 3)) for flag in ("", "-learned"))
    for module in learned.modules():
        if isinstance(module, LearnedUpsampling):
            fresh = LearnedUpsampling(3, next(iter(learned.skips.values())), learned.border)
            module.weight.data.copy_(fresh.weight)
    learned.streams.load_state_dict(plain.streams.state_dict())
    x = torch.randn(1, 3, 96, 96)
    a, b = plain(x)["out"], learned(x)["out"]
    assert torch.allclose(a[..., 40:56, 40:56], b[..., 40:56, 40:56], atol=1e-3)
    b.sum().backward()
    assert all(p.grad is not None for p in learned.learned.parameters())


def test_late_fusion_averages_two_streams_of_their_own_channels() -> None:
    model = scored(fc.create("fcn16s-resnet18-rgb-hha", 4))
    assert model.preprocessing.channels == 6
    assert [*model.streams] == ["rgb", "hha"]
    x = torch.randn(1, 6, 33, 40)
    with torch.inference_mode():
        both = model.coarse(x)["semantic"]
        first = model.streams["rgb"]
        features = {key: s.trunk(x[:, s.channels]) for key, s in model.streams.items()}
        score32 = [s(features[k], "semantic", 32) for k, s in model.streams.items()]
    assert both.shape[1] == 4
    assert torch.allclose((score32[0] + score32[1]) / 2, torch.stack(score32).mean(0))
    assert first.channels == slice(0, 3)


def test_early_fusion_takes_four_channels_and_the_mean_of_three_for_the_fourth(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    trunk = create_trunk("squeezenet1_0")
    save_file(trunk.state_dict(), tmp_path / "w.safetensors")
    model = fc.create("fcn16s-squeezenet1_0-rgbd", 3, weights=tmp_path / "w.safetensors", quiet=True)
    first = model.streams["rgb_depth"].trunk.features[0].weight
    assert first.shape[1] == 4
    assert torch.allclose(first[:, 3], trunk.features[0].weight.mean(1))
    assert model.report.adapted == ["features.0.weight"]


def test_scores_and_their_gradients_are_float32_in_a_bfloat16_forward() -> None:
    """oneDNN's bfloat16 gradient of 4,096 channels to a few writes past its memory (torch 2.15, with AMX)."""
    model = fc.create("fcn16s-mobilenet_v2", 5)
    seen: list[torch.dtype] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "convolution" in str(func):
                tensors = [a for a in args if isinstance(a, torch.Tensor)]
                seen.extend(a.dtype for a in tensors if any(t.ndim == 4 and t.shape[0] == 5 for t in tensors))
            return func(*args, **(kwargs or {}))

    with Watched():
        with torch.autocast("cpu", torch.bfloat16):
            scores = model.coarse(torch.randn(1, 3, 64, 64))["semantic"]
        scores.sum().backward()
    assert scores.dtype == torch.float32
    assert len(seen) == 2 * 2 * 3  # two score layers, there and back; each takes three tensors
    assert set(seen) == {torch.float32}
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_fixed_variant_trains_only_the_scores() -> None:
    model = fc.create("fcn32s-fixed-resnet18", 3)
    assert not any(p.requires_grad for p in model.trunk_parameters())
    assert all(p.requires_grad for p in model.head_parameters())


def test_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(UnknownName, match="fcn8s-vgg16"):
        fc.create("fcn8-vgg16")
    with pytest.raises(UnknownName, match="resnet18"):
        fc.create("fcn8s-resnet19")
    with pytest.raises(UsageError, match=r"no stride 32; it has 16s, 8s"):
        fc.create("fcn32s-squeezenet1_0")
    with pytest.raises(UsageError, match="at-once"):
        fc.create("fcn8s-atonce-resnet18")
    with pytest.raises(UsageError, match="padding exists for"):
        fc.create("fcn8s-resnet18", padding="paper")
    with pytest.raises(UsageError, match="Use padding 'same'"):
        fc.create("fcn8s-googlenet", padding="paper")
    with pytest.raises(UnknownName, match="padding"):
        fc.create("fcn8s-resnet18", padding="valid")


@pytest.mark.parametrize("heads", [{}, {"out": 3}, {"a b": 3}, {"semantic": 1}])
def test_impossible_heads_are_refused(heads: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        fc.create("fcn16s-squeezenet1_0", heads=heads)


def test_images_of_the_wrong_shape_are_refused_in_words() -> None:
    model = fc.create("fcn16s-squeezenet1_0", 2)
    with pytest.raises(DataError, match="N x C x H x W"):
        model.coarse(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match="takes 3 channels, the batch has 4"):
        model.coarse(torch.zeros(1, 4, 8, 8))


def test_saved_equals_loaded_to_the_bit_with_all_it_carries(tmp_path: Path) -> None:
    taxonomies = {"semantic": Taxonomy(("a", "b", "c")), "geometric": Taxonomy(("x", "y"))}
    model = scored(fc.create("fcn8s-squeezenet1_0", taxonomies=taxonomies))
    model.preprocessing = Preprocessing((2, 1, 0), 1.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0))
    model.save_pretrained(tmp_path / "m")
    again = fc.load(tmp_path / "m")
    assert (again.taxonomies, again.preprocessing, again.name) == (taxonomies, model.preprocessing, model.name)
    x = torch.randn(1, 3, 31, 45)
    with torch.inference_mode():
        assert all(torch.equal(model(x)[head], again(x)[head]) for head in taxonomies)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_a_directory_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no model directory"):
        fc.load(tmp_path / "none")
    fc.create("fcn16s-squeezenet1_0", 2).save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json"):
        fc.load(tmp_path / "m")


def test_weights_of_another_network_or_with_nan_are_refused(tmp_path: Path) -> None:
    trunk = create_trunk("squeezenet1_0")
    with pytest.raises(DataError, match="holds no tensor of this network"):
        load_into(trunk, {"foo.weight": torch.zeros(3)}, "x.pth")
    with pytest.raises(DataError, match="of another network"):
        load_into(trunk, {"features.0.weight": torch.zeros(7, 3, 7, 7)}, "x.pth")
    with pytest.raises(DataError, match="NaN"):
        load_into(trunk, {"features.0.weight": torch.full((96, 3, 7, 7), float("nan"))}, "x.pth")


def test_the_sidecar_decides_the_preprocessing_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file(create_trunk("squeezenet1_0").state_dict(), path)
    assert fc.create("fcn16s-squeezenet1_0", 2, weights=path).report.preprocessing == "the trunk's default"
    assert "tensors copied" in capsys.readouterr().err
    pre = {"channels": "BGR", "range": [0, 255], "mean": [104, 117, 123], "std": [1, 1, 1]}
    (tmp_path / "w.safetensors.json").write_text(json.dumps({"preprocessing": pre}))
    model = fc.create("fcn16s-squeezenet1_0", 2, weights=path)
    assert model.preprocessing == Preprocessing((2, 1, 0), 1.0, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0))
    assert "sidecar" in capsys.readouterr().err
    (tmp_path / "w.safetensors.json").write_text("[1")
    with pytest.raises(DataError, match="not a readable sidecar"):
        fc.create("fcn16s-squeezenet1_0", 2, weights=path)


def test_traced_sizes_are_the_real_sizes() -> None:
    for trunk in ("resnet18", "squeezenet1_0", "googlenet", "mobilenet_v2"):
        net = create_trunk(trunk).eval()
        traced = net.trace()
        for h, w in ((37, 64), (5, 90)):
            with torch.inference_mode():
                real = {s: tuple(y.shape[2:]) for s, y in net(torch.zeros(1, 3, h, w)).items()}
            sizes = traced.sizes(h, w)
            assert {s: sizes[name] for s, name in traced.outputs.items()} == real


def test_probing_finds_the_grids_that_tracing_proves() -> None:
    for trunk in ("resnet18", "squeezenet1_0"):
        net = create_trunk(trunk).eval()
        maps, exact = net.maps()
        assert exact
        for found, want in zip(probe(net, 192), maps.values(), strict=True):
            assert (found.stride, found.offset) == (want.stride, want.offset)


def test_graphs_that_cannot_be_followed_are_said_to_be() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(x, 1)

    for net in (Odd(), Unknown()):
        with pytest.raises(CannotTrace, match="probed"):
            trace(net)


def test_global_context_is_unbounded() -> None:
    assert fc.create("fcn8s-mobilenet_v3_large", 2).geometry(64, 64).halo == float("inf")
    assert fc.create("fcn8s-mobilenet_v2", 2).geometry(64, 64).halo < 400


@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("convnext_atto", "efficientnet_b0"))]
)
def test_timm_trunks_take_any_size(name: str) -> None:
    pytest.importorskip("timm")
    model = scored(fc.create(f"fcn8s-timm:{name}", 3))
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 3, 50))["out"].shape == (1, 3, 3, 50)
    with pytest.raises(UnknownName, match="timm model"):
        fc.create("fcn8s-timm:resnet1800")


@pytest.mark.parametrize("classes", ["5", 2.5, True, 0, -1, 1])
def test_a_number_of_classes_that_is_none_is_refused_in_words(classes: object) -> None:
    with pytest.raises(UsageError, match=r"give one such as 21|at least 2"):
        fc.create("fcn16s-squeezenet1_0", classes)  # type: ignore[arg-type]
