"""The training step against its plain definition, schedules, the sampler, and what a run leaves behind."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
import signal
import time
import tomllib
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tools import CLASSES, call, digest, fit, images, outcome, run_context, small, start

import fullyconv as fc
from fullyconv import models
from fullyconv import train as training
from fullyconv.data.pipeline.loader import order
from fullyconv.errors import (
    DataError,
    FullyconvError,
    Interrupted,
    MissingInput,
    StorageError,
    TryAgain,
    UnknownName,
    UsageError,
)
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.report.collect import read_run
from fullyconv.taxonomy import Taxonomy
from fullyconv.train import checkpointing, measuring, memory_advice, optimisation, planning
from fullyconv.train.batch_reader import BatchReader, tickets
from fullyconv.train.context import held_out, median_frequency
from fullyconv.train.display import Clock, Display, short_duration
from fullyconv.train.process_group import ProcessGroup
from fullyconv.train.step import Batch, gradients
from fullyconv.train.training_state import State
from fullyconv.train.unfold import unfold

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
NO_SCALE = torch.amp.GradScaler("cpu", enabled=False)


def network(trunk: str = "plain", seed: int = 0) -> Any:
    model = models.create(f"fcn2s-{trunk}", classes=CLASSES, seed=seed, quiet=True)
    torch.manual_seed(seed)
    for p in model.head_parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def batch(count: int = 4, seed: int = 0, size: tuple[int, int] = (12, 14)) -> Batch:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, (count, *size)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    images = rng.integers(0, 255, (count, *size, 3)).astype(np.uint8)
    return Batch(images, {"semantic": labels}, tuple(f"i{i}" for i in range(count)))


def grads(model: Any, batches: list[Batch], recipe: Recipe, weight: Any = None) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = gradients(model, batches, recipe, ALONE, {"semantic": weight}, NO_SCALE).loss
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("loss", ["mean", "sum", "image-mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_step_is_the_gradient_of_torchs_cross_entropy_on_full_scores(loss: str, weighted: bool) -> None:
    model, b = network(), batch()
    weight = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    recipe = small(model="fcn2s-plain", loss=loss, lr=1e-9, label_smoothing=0.1 if loss == "mean" else 0.0)
    found, gradient = grads(model, [b], recipe, weight)
    model.zero_grad()
    x = torch.from_numpy(model.preprocessing(b.images))
    y = torch.from_numpy(b.labels["semantic"]).long()
    options: dict[str, Any] = {"ignore_index": 255, "weight": weight, "label_smoothing": recipe.label_smoothing}
    scores = model(x)["out"]
    if loss == "mean":
        expected = F.cross_entropy(scores, y, **options)
    elif loss == "sum":
        expected = F.cross_entropy(scores, y, reduction="sum", **options) / len(y)
    else:
        expected = torch.stack(
            [F.cross_entropy(s[None], t[None], **options) for s, t in zip(scores, y, strict=True)]
        ).mean()
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    for mine, p in zip(gradient, [p for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-3, atol=1e-5)


def test_a_sum_of_losses_is_that_of_their_gradients() -> None:
    model, b = network(), batch(5)
    weight = torch.tensor([0.5, 2.0, 1.0])
    text = "cross_entropy+0.5*dice+2*focal+0.25*lovasz+tversky"
    terms = small(loss=text).loss_terms
    found, gradient = grads(model, [b], small(model="fcn2s-plain", loss=text), weight)
    apart = {t: grads(model, [b], small(model="fcn2s-plain", loss=t), weight) for t in terms}
    assert found == pytest.approx(sum(f * apart[t][0] for t, f in terms.items()), rel=1e-5)
    for i, mine in enumerate(gradient):
        torch.testing.assert_close(mine, sum(f * apart[t][1][i] for t, f in terms.items()), rtol=1e-3, atol=1e-5)


def test_losses_of_regions_of_several_passes_are_averaged_by_their_images() -> None:
    model, b = network(), batch(5)
    parts = [
        Batch(b.images[i:j], {"semantic": b.labels["semantic"][i:j]}, b.names[i:j]) for i, j in ((0, 2), (2, 2), (2, 5))
    ]
    parts[1] = Batch(b.images[:1], {"semantic": np.full_like(b.labels["semantic"][:1], 255)}, ())
    recipe = small(model="fcn2s-plain", loss="dice")
    found = grads(model, parts, recipe)[0]
    first, last = (grads(model, [part], recipe)[0] for part in (parts[0], parts[2]))
    assert found == pytest.approx(0.4 * first + 0.6 * last, rel=1e-5)


@pytest.mark.parametrize("loss", ["mean", "sum", "image-mean", "focal", "cross_entropy+focal"])
def test_splitting_a_step_into_passes_does_not_change_its_gradient(loss: str) -> None:
    model, b = network(), batch(5)
    recipe = small(model="fcn2s-plain", loss=loss, lr=1e-9)
    parts = [
        Batch(b.images[i:j], {"semantic": b.labels["semantic"][i:j]}, b.names[i:j]) for i, j in ((0, 1), (1, 3), (3, 5))
    ]
    whole, split = grads(model, [b], recipe), grads(model, parts, recipe)
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    for a, c in zip(whole[1], split[1], strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)


def test_only_the_hardest_pixels_count_under_top_k() -> None:
    model, b = network(), batch(1)
    all_of_them, _ = grads(model, [b], small(model="fcn2s-plain"))
    hardest, _ = grads(model, [b], small(model="fcn2s-plain", top_k=0.25))
    x, y = torch.from_numpy(model.preprocessing(b.images)), torch.from_numpy(b.labels["semantic"]).long()
    each = F.cross_entropy(model(x)["out"], y, ignore_index=255, reduction="none")[y != 255]
    assert all_of_them == pytest.approx(each.mean().item(), rel=1e-4)
    assert hardest == pytest.approx(each.topk(math.ceil(len(each) / 4)).values.mean().item(), rel=0.02)


def test_caffes_update_is_torchs_while_the_rate_is_constant_and_its_own_when_it_changes() -> None:
    def run(make: Any, rates: list[float]) -> torch.Tensor:
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        optimizer = make([{"params": [p]}])
        for i, lr in enumerate(rates):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = torch.tensor([0.3, -0.1 * i], dtype=torch.float64)
            optimizer.step()
        return p.detach()

    def caffe(g: Any) -> Any:
        return optimisation.CaffeSGD(g, lr=0.1, momentum=0.9, weight_decay=0.01)

    def torchs(g: Any) -> Any:
        return torch.optim.SGD(g, lr=0.1, momentum=0.9, weight_decay=0.01)

    torch.testing.assert_close(run(caffe, [0.1] * 5), run(torchs, [0.1] * 5))
    v, w = np.zeros(2), np.array([1.0, -2.0])
    for i, lr in enumerate([0.1, 0.1, 0.01]):
        v = 0.9 * v + lr * (np.array([0.3, -0.1 * i]) + 0.01 * w)
        w = w - v
    np.testing.assert_allclose(run(caffe, [0.1, 0.1, 0.01]).numpy(), w)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("shared", [False, True], ids=["gradients of their own", "gradients of one message"])
def test_sgd_that_uses_up_the_gradients_is_torchs_to_the_bit_and_goes_on_from_its_state(
    momentum: float, decay: float, shared: bool
) -> None:
    def make(own: bool, weights: list[torch.Tensor]) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        groups = [{"params": parameters}]
        if own:
            return parameters, optimisation.FrugalSGD(groups, 0.1, momentum, decay)
        return parameters, torch.optim.SGD(groups, 0.1, momentum, weight_decay=decay)

    def step(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, n: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 / n
        drawn = [torch.randn(p.shape, generator=torch.Generator().manual_seed(n)) for p in parameters]
        if shared:
            parts = torch.cat([g.flatten() for g in drawn]).split([g.numel() for g in drawn])
            drawn = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
        for p, gradient in zip(parameters, drawn, strict=True):
            p.grad = gradient
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    weights = [torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(5)]
    ours, torchs = make(True, weights), make(False, weights)
    for n in range(1, 4):
        step(*ours, n)
        step(*torchs, n)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], torchs[0], strict=True))
    goes_on = make(True, [p.detach() for p in torchs[0]])
    goes_on[1].load_state_dict(copy.deepcopy(torchs[1].state_dict()))
    step(*goes_on, 4)
    step(*torchs, 4)
    assert all(torch.equal(a, b) for a, b in zip(goes_on[0], torchs[0], strict=True))


def test_a_step_of_sgd_copies_no_gradient() -> None:
    p = torch.nn.Parameter(torch.ones(1000))
    optimizer = optimisation.FrugalSGD([{"params": [p]}], 0.1, 0.9, 0.01)
    taken = p.grad = torch.ones(1000)
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"] is taken
    p.grad = torch.ones(1000)
    with torch.profiler.profile(profile_memory=True) as seen:
        optimizer.step()
    assert max(e.self_cpu_memory_usage for e in seen.key_averages()) < 1000 * 4


def test_biases_have_their_own_rate_and_decay_and_heads_theirs() -> None:
    model = network("tiny")
    groups = optimisation.parameter_groups(model, small(head_lr=3, bias_lr=2, weight_decay=0.5))
    by_name = {n: g for g in groups for n in g["names"]}
    assert sorted(by_name) == sorted(n for n, _ in model.named_parameters())
    for name, group in by_name.items():
        head, bias = "score" in name, dict(model.named_parameters())[name].ndim <= 1
        assert group["factor"] == (3 if head else 1) * (2 if bias else 1), name
        assert group["weight_decay"] == (0 if bias else 0.5), name
    heads_only = optimisation.parameter_groups(model, small(bias_lr=2, bias_scope="heads", weight_decay=0.5))
    trunk_bias = next(g for g in heads_only if any(n.endswith("0.bias") and "score" not in n for n in g["names"]))
    assert (trunk_bias["factor"], trunk_bias["weight_decay"]) == (1, 0.5)


@given(st.sampled_from(["constant", "poly", "one-cycle"]), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_a_rate_is_positive_at_most_its_peak_and_falls_after_the_warm_up(
    schedule: str, warmup: float, a: float, b: float
) -> None:
    recipe = read_recipe(None, {"schedule": schedule, "warmup": warmup, "lr": 0.5})
    first, second = (optimisation.rate(recipe, p) for p in sorted((a, b)))
    assert 0 <= first <= 0.5 + 1e-12
    if min(a, b) >= warmup:
        assert second <= first + 1e-12
    elif max(a, b) <= warmup and schedule != "poly":
        assert second >= first - 1e-12


@given(
    st.integers(1, 9),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["epochs", "replacement"]),
)
def test_the_order_goes_on_from_any_position_and_processes_share_every_step(
    count: int, epoch: int, size: int, processes: int, sampling: str
) -> None:
    recipe = read_recipe(None, {"batch_size": size, "sampling": sampling})
    worlds = [ProcessGroup(r, processes, torch.device("cpu")) for r in range(processes)]
    whole = [t for t, _ in zip(tickets(count, recipe, State(), worlds[0]), range(12), strict=False)]
    there = next((i for i, t in enumerate(whole) if t.epoch == epoch), 0)
    state = State(epoch=whole[there].epoch, position=whole[there].position)
    again = [t for t, _ in zip(tickets(count, recipe, state, worlds[0]), range(12 - there), strict=False)]
    assert again == whole[there:]
    for per_rank in zip(*(tickets(count, recipe, State(), w) for w in worlds), strict=False):
        assert sum((t.mine for t in per_rank), ()) == per_rank[0].everyone
        if per_rank[0].epoch == 2:
            break
    if sampling == "epochs":
        assert sorted(i for t in whole if t.epoch == 0 for i in t.everyone) == list(range(count))


def test_the_sampler_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(order(50, 1, 0)) == list(range(50))
    assert not np.array_equal(order(50, 1, 0), order(50, 1, 1))
    assert not np.array_equal(order(50, 1, 0), order(50, 2, 0))
    drawn = order(5000, 0, 0, "replacement")
    assert 0.6 < len(set(drawn)) / 5000 < 0.66  # 1 - 1/e


def test_the_same_bytes_come_from_a_thread_and_from_processes() -> None:
    recipes = [small(workers=w, rotation=10, batch_size=3) for w in (0, 2)]
    steps = []
    for recipe in recipes:
        from fullyconv.train.batch_reader import read_steps

        stream = read_steps(BatchReader(images(), recipe, np.zeros(3, np.float32)), recipe, State(), ALONE)
        steps.append([next(stream) for _ in range(5)])
        stream.close()
    for a, b in zip(*steps, strict=True):
        assert a.ticket == b.ticket
        np.testing.assert_array_equal(a.batches[0].images, b.batches[0].images)
        np.testing.assert_array_equal(a.batches[0].labels["semantic"], b.batches[0].labels["semantic"])


def test_a_run_learns_and_leaves_what_is_needed(tmp_path: Path) -> None:
    out = fit(small(epochs=25, ema=0.9, class_weights="median-frequency", clip=5.0, tensorboard=True), tmp_path / "run")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in rows if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 101))
    assert steps[-1]["pixel_loss"] < 0.6 * math.log(CLASSES)
    best = max(r["mean_iu"] for r in rows if r["kind"] == "measurement")
    assert best > 0.4
    model = fc.load(out / "best")
    assert fc.evaluate(fc.Predictor(model), images(3, "val")).mean_iu == pytest.approx(best, abs=1e-9)
    assert model.taxonomies["semantic"].names == ("a", "b", "c")
    assert Recipe(**tomllib.loads((out / "recipe.toml").read_text())).ema == 0.9
    assert any((out / "tensorboard").iterdir())
    card = (out / "best" / "README.md").read_text()
    assert f"{best:.4f}" in card
    assert "drawn" in card


def test_an_ended_run_goes_on_under_a_longer_recipe_and_stays_ended_under_its_own(tmp_path: Path) -> None:
    out = fit(small(epochs=1), tmp_path / "run")
    before = outcome(out)
    assert outcome(fit(small(epochs=1), out, resume=True)) == before
    fit(small(epochs=2), out, resume=True)
    state = json.loads((out / "last" / "state.json").read_text())["state"]["train"]
    assert (state["step"], state["measured"], state["finished"]) == (8, 8, True)


def test_time_is_counted_once(tmp_path: Path) -> None:
    begin = time.perf_counter()
    out = fit(small(epochs=2, val_every=0.25), tmp_path / "run")
    state = json.loads((out / "last" / "state.json").read_text())["state"]["train"]
    assert 0 < state["measuring"] <= state["measured_in_all"] <= state["elapsed"] <= time.perf_counter() - begin


def test_a_class_that_is_measured_and_never_learned_is_refused(tmp_path: Path) -> None:
    val = replace(images(3, "val"), taxonomies={"semantic": Taxonomy(("a", "d", "b"))})
    with pytest.raises(DataError, match=r"classes to learn \(a, b, c\) lack d of those to measure \(a, d, b\)"):
        fit(small(), tmp_path / "run", val=val)
    numbered = replace(val, taxonomies={"semantic": Taxonomy.numbered(CLASSES)})
    fit(small(epochs=1), tmp_path / "run", val=numbered)


def test_two_runs_with_one_seed_are_equal_to_the_bit_and_another_seed_is_not(tmp_path: Path) -> None:
    keys = {"ema": 0.9, "seed": 5}
    first, second = (outcome(fit(small(**keys), tmp_path / n)) for n in ("a", "b"))
    assert first == second
    assert outcome(fit(small(**keys | {"seed": 6}), tmp_path / "c"))["metrics"] != first["metrics"]


def test_a_frozen_trunk_stays_and_its_batch_norm_too(tmp_path: Path) -> None:
    out = fit(small(frozen_trunk=True), tmp_path / "run")
    before = models.create("fcn2s-tiny", classes=CLASSES, seed=0, quiet=True).state_dict()
    after = fc.load(out / "last").state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all("score" in k for k in changed), changed


def test_unfolding_batch_norm_keeps_the_function_and_normalises(tmp_path: Path) -> None:
    model = network("tiny").eval()
    x = torch.randn(2, 3, 16, 20)
    before = model(x)["out"].detach()
    unfold(model, images(), images=7)
    torch.testing.assert_close(model(x)["out"].detach(), before, rtol=1e-4, atol=1e-5)
    norm = model.streams["rgb"].trunk.features[1]
    assert not torch.allclose(norm.running_mean, torch.zeros(4), atol=1e-2)


def test_a_refused_step_names_its_images_changes_nothing_and_too_many_end_the_run(tmp_path: Path, capsys: Any) -> None:
    with ExitStack() as stack:
        c = run_context(small(max_bad_steps=2), tmp_path / "run", stack)
        before = {k: v.clone() for k, v in c.model.state_dict().items()}
        c.weights = {"semantic": torch.full((CLASSES,), math.nan)}
        from fullyconv.train import learn
        from fullyconv.train.signals import Stop

        with pytest.raises(FullyconvError, match="not finite for 2 steps in a row") as e:
            learn(c, Stop())
        assert e.value.exit_code == 1
        assert all(torch.equal(v, before[k]) for k, v in c.model.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "refused.jsonl").read_text().splitlines()]
    assert [len(r["files"]) for r in rows] == [2, 2]
    assert all(name in capsys.readouterr().err + str(e.value) for name in rows[1]["files"])
    assert fc.load(tmp_path / "run" / "last") is not None


@pytest.mark.parametrize(("value", "words"), [(-3.4e38, "declare it as the file's nodata value"), (0, "lower lr")])
def test_numbers_that_stand_for_no_data_are_told_as_the_cause_of_a_loss_that_is_not_finite(
    value: float, words: str, tmp_path: Path
) -> None:
    from fullyconv.train.advice import not_finite

    with ExitStack() as stack:
        c = run_context(small(), tmp_path / "run", stack)
        image = np.full((1, 8, 8, 3), 90, np.float32)
        image[0, 2:4] = value
        batch = SimpleNamespace(names=["there"], images=torch.from_numpy(image))
        answer = not_finite(c, [batch])
        assert (words in answer and "there holds -3.4e+38..90" in answer) if value else answer == ""
        next(c.model.parameters()).data[0] = math.nan
        assert "hold numbers that are not finite themselves" in not_finite(c, [batch])


def test_a_run_that_fails_before_its_first_step_says_what_its_folder_holds(
    tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    def fails(*rest: Any) -> None:
        raise DataError("no batch can be read; mend it.")

    monkeypatch.setattr("fullyconv.train.gradients", fails)
    with pytest.raises(DataError):
        fit(small(), tmp_path / "run")
    output = capsys.readouterr().err
    assert "Nothing was learned: " in output
    assert "go on with --resume" in output
    monkeypatch.undo()
    fit(small(), tmp_path / "run", resume=True)


def test_a_network_without_finite_scores_does_not_take_a_good_ones_place(tmp_path: Path, monkeypatch: Any) -> None:
    log = checkpointing.log_step

    def hooked(c: Any, *rest: Any) -> None:
        log(c, *rest)
        if c.state.step == 4:  # the last of the epoch: as after a step that was too large, before any loss shows it
            for p in c.model.parameters():
                p.data.fill_(3e38)

    monkeypatch.setattr(checkpointing, "log_step", hooked)
    with pytest.raises(FullyconvError, match=r"step 4 gives scores that are not finite.*lower lr.*last good"):
        fit(small(val_every=1), tmp_path / "run")
    assert (tmp_path / "run" / "last").resolve().name == "step-0"
    assert fc.load(tmp_path / "run" / "last") is not None


def test_an_image_that_cannot_be_measured_ends_the_run_with_the_step_kept(tmp_path: Path) -> None:
    def broken(index: int) -> None:
        if index == 2:
            raise DataError("val-2.png is truncated")

    def hanging(index: int) -> None:
        if index == 2:
            time.sleep(20)  # as a file on a dead mount

    for name, fault, error, words in (
        ("broken", broken, DataError, r"val-2\.png is truncated"),
        ("hanging", hanging, TryAgain, r"has not moved on for 1 s.*val-2"),
    ):
        with pytest.raises(error, match=words):
            fit(small(val_every=1, worker_timeout=1), tmp_path / name, val=images(3, "val", broken=fault))
        assert (tmp_path / name / "last").resolve().name == "step-4"


def test_an_unreadable_image_ends_the_run_or_is_replaced_and_counted(tmp_path: Path) -> None:
    def broken(index: int) -> None:
        if index == 3:
            raise DataError("train-3.png is truncated")

    with pytest.raises(DataError, match=r"train-3\.png is truncated"):
        fit(small(), tmp_path / "fail", train=images(broken=broken))
    out = fit(small(on_bad_sample="skip", max_bad=0.2), tmp_path / "skip", train=images(broken=broken))
    state = json.loads((out / "last" / "state.json").read_text())["state"]["train"]
    assert state["bad"] == ["train-3: train-3.png is truncated"]
    assert state["finished"]

    def all_broken(index: int) -> None:
        if index:
            raise DataError(f"{index} is truncated")

    with pytest.raises(DataError, match="max_bad allows 1"):
        fit(small(on_bad_sample="skip"), tmp_path / "many", train=images(broken=all_broken))


def test_a_vanished_folder_ends_the_run_at_once(tmp_path: Path) -> None:
    def gone(index: int) -> None:
        if index:
            raise FileNotFoundError(2, "No such file", "x.png")

    data = replace(images(broken=gone), root=tmp_path / "gone")
    with pytest.raises(MissingInput, match="is gone"):
        fit(small(on_bad_sample="skip", max_bad=1.0), tmp_path / "run", train=data)


def test_a_full_disk_costs_rows_of_the_log_but_not_the_run(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    from fullyconv.checkpoint import RunDirectory

    monkeypatch.setattr(RunDirectory, "log", lambda *_: (_ for _ in ()).throw(StorageError("No space left.")))
    out = fit(small(), tmp_path / "run")
    assert capsys.readouterr().err.count("incomplete from step 1") == 1
    assert fc.load(out / "last") is not None


def test_resuming_another_thing_is_refused_unless_named(tmp_path: Path) -> None:
    fit(small(epochs=1), tmp_path / "run")
    with pytest.raises(UsageError, match=r"--allow-changed data"):
        fit(small(epochs=2), tmp_path / "run", resume=True, train=images(9))
    with pytest.raises(UnknownName, match="data"):
        fit(small(epochs=2), tmp_path / "run", resume=True, train=images(9), allow=("dta",))
    fit(small(epochs=2), tmp_path / "run", resume=True, train=images(9), allow=("data",))
    recipe = (tmp_path / "run" / "recipe.toml").read_text()
    with pytest.raises(UsageError, match=r"network is not what .* \(name: fcn2s-tiny then, fcn4s-tiny now\)"):
        fit(small(epochs=2, model="fcn4s-tiny"), tmp_path / "run", resume=True)
    renamed = replace(images(9), taxonomies={"semantic": Taxonomy(("a", "see", "c"))})
    with pytest.raises(UsageError, match=r"classes are not what .* \(semantic: id 1 was 'b', is 'see' now\)"):
        fit(small(epochs=2), tmp_path / "run", resume=True, train=renamed, val=None)
    assert (tmp_path / "run" / "recipe.toml").read_text() == recipe  # so that --resume alone still goes on
    with pytest.raises(UsageError, match="holds a run at step"):
        fit(small(epochs=2), tmp_path / "run")
    with pytest.raises(UsageError, match="no run to go on with"):
        fit(small(epochs=2), tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_second_trainer_in_a_directory_is_refused(tmp_path: Path) -> None:
    with ExitStack() as stack:
        run_context(small(), tmp_path / "run", stack)
        assert call(_train, str(tmp_path / "run")) == 75


def _train(out: str) -> None:
    fit(small(), Path(out))


def test_stages_start_from_the_scores_of_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    from fullyconv import recipes as published
    from fullyconv.train import stages

    table = {f"tiny{s}": {"model": f"fcn{s}s-tiny", "name": f"tiny{s}", "lr": 1e-9, "seed": s} for s in (4, 2)}
    monkeypatch.setattr(stages, "published_recipe", lambda name: small(**table[name]))
    recipe = published.read_recipe(None, {"stages": ["tiny4", "tiny2"], "epochs": 1})
    out = fit(recipe, tmp_path / "run")
    assert sorted(p.name for p in out.iterdir()) == ["1-tiny4", "2-tiny2", "best", "last", "recipe.toml"]
    first, second = fc.load(out / "1-tiny4" / "last"), fc.load(out / "last")
    a, b = first.state_dict(), second.state_dict()
    shared = [k for k in a if k in b and a[k].dtype.is_floating_point and "running" not in k]
    assert any("score" in k for k in shared)
    for k in shared:
        torch.testing.assert_close(a[k], b[k], atol=1e-4, rtol=0)
    before = digest(out / "1-tiny4" / "last" / "model.safetensors")
    with pytest.raises(UsageError, match="holds a staged run"):
        fit(recipe, out)
    fit(published.read_recipe(out / "recipe.toml"), out, resume=True)
    assert digest(out / "1-tiny4" / "last" / "model.safetensors") == before


def test_a_summed_loss_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learns nothing from random weights"):
        fit(small(loss="sum", lr=1e-10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_median_frequency_weights_are_their_definition() -> None:
    data = images()
    weights = median_frequency(data)["semantic"]
    pixels, of = np.zeros(CLASSES), np.zeros(CLASSES)
    for sample in data:
        label = sample.labels["semantic"]
        for k in range(CLASSES):
            pixels[k] += (label == k).sum()
            of[k] += (label != 255).sum() if (label == k).any() else 0
    np.testing.assert_allclose(weights, np.median(pixels / of) / (pixels / of), rtol=1e-6)


@settings(max_examples=20)
@given(st.integers(2, 40))
def test_images_are_held_out_for_good(count: int) -> None:
    train, val = held_out(images(count))
    assert val is not None
    names = [{r.name for r in d.records} for d in (train, val)]
    assert names[0] | names[1] == {f"train-{i}" for i in range(count)}
    assert not names[0] & names[1]
    assert all(names)


def plan_of(**keys: Any) -> planning.TrainingPlan:
    return planning.plan_training(read_recipe(None, {"batch_size": 10} | keys), 100, val_pixels=600, step_pixels=100)


def test_measurements_take_at_most_a_tenth_of_the_work() -> None:
    plan = plan_of(epochs=100)
    assert plan.total == 1000
    # A measurement costs as much as 2 steps: 18 steps between them.
    assert plan.every == 18
    due = [s for s in range(1, 1001) if planning.measurement_due(plan, State(step=s))]
    assert len(due) * 2 <= 0.1 * (1000 + len(due) * 2)


def test_under_a_budget_measurements_are_spaced_by_what_they_took() -> None:
    plan, state, spent = plan_of(time="100s"), State(), 0.0
    while not planning.finished(plan, state, 0):
        state.step += 1
        state.elapsed += 0.05
        if planning.measurement_due(plan, state):
            state.measured, state.measuring = state.step, 1.0
            state.elapsed += 1.0
            state.measured_in_all = spent = spent + 1.0
    assert 5 <= spent <= 0.1 * state.elapsed
    assert spent + 1.0 <= 0.1 * (state.elapsed + 1.0)  # with the one at the end
    assert state.elapsed + state.measuring == pytest.approx(100, abs=1.2)


def test_a_run_ends_early_when_measurements_bring_nothing_better() -> None:
    assert planning.finished(plan_of(epochs=9), State(step=1, worse=3), 3)
    assert not planning.finished(plan_of(epochs=9), State(step=1, worse=2), 3)


def test_memory_advice_says_what_fits() -> None:
    gib = memory_advice.GIB
    assert "so 4 at a time fit: set accumulate = 4 " in memory_advice.advice(10 * gib, 1.5 * gib, 2 * gib, 16, 16)
    assert "one image does not fit" in memory_advice.advice(10 * gib, 1 * gib, math.inf, 4, 4)
    assert "accumulate = 2" in memory_advice.advice(math.nan, 0, 0, 8, 8)


def test_an_out_of_memory_error_becomes_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    def explode(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("fullyconv.train.gradients", explode)
    with pytest.raises(FullyconvError, match="not enough for 2 images of 16x16 at a time"):
        fit(small(), tmp_path / "run")


def test_the_display_names_the_bottleneck_and_writes_plain_lines_off_a_terminal(capsys: Any) -> None:
    clock = Clock()
    clock.spent.update(data=5.0, forward=1.0, backward=2.0)
    assert "bottleneck: reading" in clock.shares()
    clock.spent.update(data=0.1)
    assert "bottleneck: the backward pass" in clock.shares()
    display = Display(every=0)
    facts = {"step": 3, "epoch": 0.5, "loss": 1.0, "chance": 1.1, "lr": 1e-3, "left": 75.0}
    with display:
        display.step(facts, 0.25, 12, clock)
    line = capsys.readouterr().err
    assert "25 %  step 3" in line
    assert "(chance 1.10)" in line
    assert "1m15s left" in line
    assert [short_duration(s) for s in (-1, 8, 750, 3900)] == ["?", "8s", "12m30s", "1h05m"]


def test_ctrl_c_saves_this_very_step(tmp_path: Path, monkeypatch: Any) -> None:
    log, before = checkpointing.log_step, signal.getsignal(signal.SIGINT)

    def hooked(c: Any, *rest: Any) -> None:
        log(c, *rest)
        if c.state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(checkpointing, "log_step", hooked)
    with pytest.raises(Interrupted, match="step 2 is saved"):
        fit(small(), tmp_path / "run")
    assert (tmp_path / "run" / "last").resolve().name == "step-2"
    assert signal.getsignal(signal.SIGINT) is before


def _stubborn(out: str, native: bool) -> None:
    """Train with a first step that never ends, in Python or (as a backward pass of a large network) in native code."""

    def slow(*_: Any) -> Any:
        Path(out, "slow").touch()
        if native:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        while True:
            time.sleep(0.05)

    training.gradients = slow  # type: ignore[attr-defined]
    fit(small(), Path(out))


@pytest.mark.parametrize("native", [False, True])
def test_a_second_ctrl_c_leaves_within_two_seconds(native: bool, tmp_path: Path) -> None:
    process = start(_stubborn, str(tmp_path / "run"), native)
    end = time.monotonic() + 60
    while not (tmp_path / "run" / "slow").exists() and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(2.0)
    assert process.exitcode == 130
    assert fc.load(tmp_path / "run" / "last") is not None


def test_the_networks_input_leaves_the_stored_images_alone_and_takes_read_only_ones() -> None:
    from fullyconv.preprocessing import Preprocessing
    from fullyconv.train.step import network_input

    preprocessing = Preprocessing((0, 1, 2), 0.5, (1.0, 2.0, 3.0), (2.0, 2.0, 4.0))
    for dtype in (np.float32, np.uint8, np.uint16):
        images = np.arange(2 * 3 * 4 * 3).reshape(2, 3, 4, 3).astype(dtype)
        before = images.copy()
        images.flags.writeable = False
        x = network_input(images, preprocessing, torch.device("cpu"))
        assert np.array_equal(images, before)
        assert np.allclose(x.numpy(), preprocessing(images), atol=1e-6)


def test_times_are_kept_at_every_measurement_and_add_up_over_a_run_that_goes_on(tmp_path: Path) -> None:
    kept: list[dict[str, float]] = []

    def look(c: Any) -> None:
        keep(c)
        kept.append(json.loads((c.out / "times.json").read_text()))

    keep = measuring.keep_times
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "keep_times", look)
        fit(small(epochs=2), tmp_path / "run")
        assert len(kept) == 3, "two measurements and the end"
        fit(small(epochs=3), tmp_path / "run", resume=True)
    for before, after in itertools.pairwise(kept):
        assert all(after[phase] >= seconds for phase, seconds in before.items())
    (tmp_path / "run/times.json").write_text("{damaged")
    fit(small(epochs=4), tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/times.json").read_text())["backward"] > 0
    found = read_run(tmp_path / "run")
    assert found is not None
    assert not found.unfinished
    state = json.loads((tmp_path / "run/last/state.json").read_text())["state"]["train"]
    assert found.last is not None
    assert (state["finished"], state["step"]) == (True, found.last.step)
