"""FLOPs and memory are known before a network runs, and are what running it takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fullyconv as fc
from fullyconv.cost import Live, estimate, on_meta
from fullyconv.engine.prepare import prepare
from fullyconv.errors import UnknownName, UsageError
from fullyconv.models.fcn import FCN

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))


def shapes_alone(name: str, classes: int = 21) -> FCN:
    with torch.device("meta"):
        return fc.create(name, classes, quiet=True)


def test_flops_are_those_of_the_run_itself() -> None:
    model = fc.create("fcn8s-mobilenet_v2", 3, quiet=True).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.coarse(torch.zeros(2, 3, 45, 70))
    assert estimate(model, 45, 70, batch=2).flops == counter.get_total_flops()


def test_a_training_step_costs_three_times_a_prediction_but_for_the_first_layers_input() -> None:
    model = shapes_alone("fcn8s-resnet18")
    ratio = estimate(model, 128, 128, training=True).flops / estimate(model, 128, 128).flops
    assert 2.7 < ratio < 3


def test_the_papers_network_needs_what_is_published_for_it_and_less_in_its_window() -> None:
    model = shapes_alone("fcn8s-vgg16")
    with torch.inference_mode():
        plain = prepare(on_meta(model).eval(), window=False)
        with FlopCounterMode(display=False) as counter:
            plain(torch.zeros(1, 3, 500, 500, device="meta"))
    assert counter.get_total_flops() / 1e9 == pytest.approx(362, abs=2)  # 300.6 + 52.6 + 8.6, and the scores
    assert estimate(model, 500, 500).flops < 0.72 * counter.get_total_flops()
    assert estimate(model, 500, 500).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_working_memory_is_that_of_the_run_itself() -> None:
    model = fc.create("fcn8s-squeezenet1_0", 3, quiet=True).eval()
    x, ready = torch.zeros(1, 3, 96, 64).contiguous(memory_format=torch.channels_last), prepare(model)
    with torch.inference_mode():
        ready(x)  # packs the weights
        with Live() as live:
            ready(x.clone())
    assert estimate(model, 96, 64).working_bytes == pytest.approx(live.peak, rel=0.02)


@pytest.mark.parametrize("training", [False, True])
def test_memory_grows_with_the_area_and_the_batch(training: bool) -> None:
    model = shapes_alone("fcn8s-resnet18")
    one, four, batch = (
        estimate(model, side, side, batch=n, training=training).working_bytes
        for side, n in ((1024, 1), (2048, 1), (1024, 4))  # large: what large weights are transformed to stays as it is
    )
    least = 2.0 if training else 3.3  # gradients of the weights stay as they are
    assert least < four / one < 4.2
    assert least < batch / one < 4.2


def test_half_the_precision_takes_less_and_adamw_more() -> None:
    model = shapes_alone("fcn8s-resnet18")
    full = estimate(model, 1024, 1024)
    assert estimate(model, 1024, 1024, precision="bf16").working_bytes < 0.8 * full.working_bytes
    sgd, adam = (estimate(model, 64, 64, training=True, optimizer=o).weight_bytes for o in ("sgd", "adamw"))
    assert adam - sgd == 4 * full.parameters


def test_nothing_is_allocated_and_the_network_stays_as_it_is() -> None:
    model = fc.create("fcn16s-squeezenet1_0", 3, quiet=True).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    estimate(model, 4000, 4000, batch=64, training=True)  # hundreds of gigabytes, had they been taken
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())
    assert all(p.is_meta for p in on_meta(model).parameters())


def test_what_cannot_be_measured_is_refused() -> None:
    model = nn.Identity()
    with pytest.raises(UsageError, match="at least 1"):
        estimate(model, 0, 5)
    with pytest.raises(UnknownName, match="bf16"):
        estimate(model, 5, 5, precision="bf61")
    with pytest.raises(UnknownName, match="device"):
        estimate(model, 5, 5, device="tpu")


@pytest.mark.soak
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read as Linux gives it")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (360, 480), (500, 700)])
@pytest.mark.parametrize("name", ["fcn8s-vgg16", "fcn8s-resnet50", "fcn8s-mobilenet_v2"])
def test_the_predicted_peak_is_within_15_percent_of_the_measured(
    name: str, size: tuple[int, int], training: bool
) -> None:
    from memory import measured, predicted

    assert predicted(name, *size, training) == pytest.approx(measured(name, *size, training), rel=0.15)
