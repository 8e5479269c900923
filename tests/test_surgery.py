"""Networks started from others: by name, with coercion; a new stage begins with exactly the old coarse predictions."""

from __future__ import annotations

import pytest
import torch
from test_parity import thinned
from training_tools import Tiny

from fullyconv import models, ops
from fullyconv.errors import DataError, UsageError
from fullyconv.models.surgery import expand_score, init_from, transplant, widen_input
from fullyconv.taxonomy import Taxonomy

DIVIDE = 64


def drawn(name: str, classes: int | None = None, seed: int = 0) -> models.FCN:
    """A thin network with random weights everywhere, scores too."""
    model = thinned(name, DIVIDE, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            bound = (6 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
            p.copy_((torch.rand(p.shape, generator=generator) * 2 - 1) * bound)
    return model.eval()


def blank(name: str, classes: int | None = None) -> models.FCN:
    """A thin network whose trunk is random and whose scores are zero: a fresh start."""
    model = drawn(name, classes, seed=1)
    with torch.no_grad():
        for p in model.head_parameters():
            p.zero_()
    return model


def up(scores: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        size = tuple(2 * n + 2 for n in scores.shape[2:])
        scores = ops.upsample(scores, size, 2, 0)
    return scores


@pytest.mark.parametrize(("old", "new", "times"), [("32", "16", 1), ("16", "8", 1), ("32", "8", 2)])
@pytest.mark.parametrize("data", ["voc", "siftflow"])
def test_a_new_stage_starts_with_exactly_the_old_coarse_predictions(data, old, new, times) -> None:
    before, after = drawn(f"{data}-fcn{old}s"), blank(f"{data}-fcn{new}s")
    report = transplant(after, {"old": before.state_dict()})
    assert set(report.copied) == set(before.state_dict())
    assert {n.split(".")[-2] for n in report.initial} == {"16", "8"} - ({"16"} if old == "16" else set()) - (
        {"8"} if new == "16" else set()
    )
    x = torch.randn(1, 3, 45, 70)
    with torch.inference_mode():
        for head, scores in before.coarse(x).items():
            assert torch.equal(after.coarse(x)[head], up(scores, times))


def test_more_classes_keep_the_old_rows_and_start_the_new_at_zero() -> None:
    before, after = drawn("voc-fcn16s", 5), blank("voc-fcn16s", 8)
    report = transplant(after, {"old": before.state_dict()})
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        new, old = after.coarse(x)["semantic"], before.coarse(x)["semantic"]
    torch.testing.assert_close(new[:, :5], old, rtol=1e-5, atol=1e-6)  # another width may round otherwise
    assert not new[:, 5:].any()
    kept = before.state_dict()
    rows = {name: t[: len(kept[name])] for name, t in after.state_dict().items() if t.shape != kept[name].shape}
    assert rows
    assert all(torch.equal(t[:, : kept[name].shape[1]] if t.ndim > 1 else t, kept[name]) for name, t in rows.items())
    assert len(report.adapted) == 4
    with pytest.raises(UsageError):
        expand_score(torch.zeros(5, 3), 4)


def test_fewer_classes_take_the_trunk_alone_and_say_so() -> None:
    before, after = drawn("voc-fcn32s", 8), blank("voc-fcn32s", 5)
    report = transplant(after, {"old": before.state_dict()})
    assert after.untrained
    assert len([n for n in report.initial if ".score." in n]) == 2
    assert len(report.copied) == 30


def test_the_fourth_channel_is_the_mean_of_three_and_a_grey_depth_sees_what_grey_colour_does() -> None:
    before, after = drawn("nyud-fcn32s-color"), blank("nyud-fcn32s-color-d")
    report = transplant(after, {"old": before.state_dict()})
    first, wide = (
        m.get_parameter(f"streams.{s}.trunk.features.0.weight") for m, s in ((before, "rgb"), (after, "rgb_depth"))
    )
    assert torch.equal(wide[:, :3], first)
    assert torch.equal(wide[:, 3], first.mean(1))
    assert report.adapted == ["streams.rgb_depth.trunk.features.0.weight"]
    x = torch.randn(1, 3, 40, 50)
    with torch.inference_mode():
        got = after.coarse(torch.cat([x, torch.zeros(1, 1, 40, 50)], 1))["semantic"]
        torch.testing.assert_close(got, before.coarse(x)["semantic"])
    assert widen_input(torch.ones(2, 3, 1, 1), 5).shape == (2, 5, 1, 1)


@pytest.mark.parametrize("stride", ["32", "16"])
def test_late_fusion_from_two_trained_streams_averages_their_scores(stride) -> None:
    colour, hha = drawn("nyud-fcn32s-color"), drawn("nyud-fcn32s-hha", seed=3)
    both = blank(f"nyud-fcn{stride}s-color-hha")
    report = transplant(both, {"colour": colour.state_dict(), "hha": hha.state_dict()})
    assert not report.dropped
    x, y = torch.randn(2, 1, 3, 40, 50)
    with torch.inference_mode():
        mean = (colour.coarse(x)["semantic"] + hha.coarse(y)["semantic"]) / 2
        got = both.coarse(torch.cat([x, y], 1))["semantic"]
    torch.testing.assert_close(got, mean if stride == "32" else up(mean, 1))


def test_two_sources_for_one_stream_and_strangers_are_refused() -> None:
    colour, target = drawn("nyud-fcn32s-color"), blank("nyud-fcn32s-color-hha")
    with pytest.raises(UsageError, match="Both"):
        transplant(target, {"a": colour.state_dict(), "b": colour.state_dict()})
    with pytest.raises(DataError, match="no tensor in common"):
        transplant(target, {"a": {"x.weight": torch.ones(1)}})
    state = colour.state_dict()
    state["streams.rgb.trunk.features.2.weight"] = torch.ones(5, 5)
    with pytest.raises(DataError, match=r"features\.2"):
        transplant(target, {"a": state})


def test_init_from_reads_model_directories_and_brings_their_preprocessing(tmp_path) -> None:
    colour, hha = drawn("nyud-fcn32s-color"), drawn("nyud-fcn32s-hha", seed=3)
    from fullyconv.models.names import parse
    from fullyconv.models.released import released_preprocessing

    for model, name in ((colour, "nyud-fcn32s-color"), (hha, "nyud-fcn32s-hha")):
        model.preprocessing = released_preprocessing(parse(name), name, model.heads)[0]
        model.save_pretrained(tmp_path / name)
    both = blank("nyud-fcn32s-color-hha")
    init_from(both, f"{tmp_path}/nyud-fcn32s-color,{tmp_path}/nyud-fcn32s-hha")
    wanted = released_preprocessing(parse(both.name), both.name, both.heads)[0]
    assert both.preprocessing == wanted
    depth = blank("nyud-fcn32s-color-d")
    init_from(depth, tmp_path / "nyud-fcn32s-color")
    assert depth.preprocessing.mean[:3] == wanted.mean[:3]
    assert depth.preprocessing.log == (3,)
    assert depth.preprocessing.mean[3] == 7.844


NAMES = ("background", "disc", "square", "ring")


def named(model: models.FCN, names: tuple[str, ...]) -> models.FCN:
    model.taxonomies = {"semantic": Taxonomy(names)}
    return model


@pytest.mark.parametrize(
    ("network", "names", "ids"),
    [
        ("voc-fcn16s", ("square", "background", "ring", "disc"), (2, 0, 3, 1)),  # the same classes in another order
        ("voc-fcn16s", ("background", "Square"), (0, 2)),
        ("voc-fcn16s", ("tree", "ring", "background", "house", "sky"), (-1, 3, 0, -1, -1)),
    ],
)
def test_scores_go_to_the_classes_of_the_same_name(network: str, names: tuple[str, ...], ids: tuple[int, ...]) -> None:
    before = named(drawn(network, 4), NAMES)
    after = named(blank(network, len(names)), names)
    report = transplant(after, {"old": before.state_dict()}, {"old": before.taxonomies})
    x = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        new, old = after.coarse(x)["semantic"], before.coarse(x)["semantic"]
    for k, to in enumerate(ids):
        torch.testing.assert_close(
            new[:, k], old[:, to] if to >= 0 else torch.zeros_like(new[:, k]), rtol=1e-4, atol=1e-5
        )
    fresh = ids.count(-1)
    summary = f"{len(ids) - fresh} of {len(ids)} classes matched by name"
    assert summary in str(report)
    assert (f"{fresh} start afresh" if fresh else "none starts afresh") in str(report)


@pytest.mark.parametrize("names", [("tree", "house", "sky"), tuple("pqrst")])
def test_without_a_class_in_common_all_scores_start_afresh_and_it_is_said(names: tuple[str, ...]) -> None:
    before, after = named(drawn("voc-fcn32s", 4), NAMES), named(blank("voc-fcn32s", len(names)), names)
    report = transplant(after, {"old": before.state_dict()}, {"old": before.taxonomies})
    assert after.untrained
    assert f"0 of {len(names)} classes matched" in str(report)


def test_numbered_classes_are_others_by_id_only_where_there_are_as_many() -> None:
    before = drawn("voc-fcn32s", 4)  # class 0 .. class 3
    same, fewer = named(blank("voc-fcn32s", 4), NAMES), named(blank("voc-fcn32s", 3), NAMES[:3])
    assert "4 of 4 classes matched by id" in str(
        transplant(same, {"old": before.state_dict()}, {"old": before.taxonomies})
    )
    assert not same.untrained
    transplant(fewer, {"old": before.state_dict()}, {"old": before.taxonomies})
    assert fewer.untrained


def test_init_from_a_run_takes_its_best_and_matches_by_name(tmp_path) -> None:
    run = tmp_path / "run"
    for step, seed in ((1, 5), (2, 6)):
        named(drawn("voc-fcn32s", 3, seed=seed), ("sky", "road", "car")).save_pretrained(
            run / f"checkpoints/step-{step}"
        )
    (run / "best").symlink_to("checkpoints/step-1")
    (run / "last").symlink_to("checkpoints/step-2")
    after = named(blank("voc-fcn32s", 3), ("car", "sky", "road"))
    report = init_from(after, str(run))
    best = drawn("voc-fcn32s", 3, seed=5)
    ours, its = (m.streams["rgb"].score["semantic"]["32"].weight for m in (after, best))
    assert torch.equal(ours, its[[2, 0, 1]])
    assert "3 of 3 classes matched by name" in str(report)


def test_learned_upsampling_goes_to_the_classes_of_the_same_name_too() -> None:
    assert models.TRUNKS["tiny"][0] is Tiny
    before, after = (models.create("fcn2s-learned-tiny", 4, quiet=True).eval() for _ in range(2))
    with torch.no_grad():
        for p in before.head_parameters():
            p.uniform_(-1, 1)
    names, ids = ("square", "background", "ring", "disc"), [2, 0, 3, 1]
    transplant(named(after, names), {"old": before.state_dict()}, {"old": named(before, NAMES).taxonomies})
    x = torch.randn(1, 3, 20, 24)
    with torch.inference_mode():
        torch.testing.assert_close(after.coarse(x)["semantic"], before.coarse(x)["semantic"][:, ids])
