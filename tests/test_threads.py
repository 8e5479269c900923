"""Threads: nothing of the process is changed while networks are made, loaded, traced or called for the first time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import fullyconv as fc
from fullyconv.models.trace import Leaves, trace
from fullyconv.models.tracer import QuietTracer, shared_copy
from fullyconv.models.trunks import create_trunk


@contextmanager
def others(count: int = 4) -> Iterator[list[str]]:
    """So many threads call ordinary modules meanwhile; yields what went wrong in them."""
    wrong: list[str] = []
    calls = [0] * count
    stop = threading.Event()

    def work(place: int) -> None:
        module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        x = torch.ones(1, 3)
        with torch.inference_mode():
            want = module(x)
            while not stop.is_set():
                calls[place] += 1
                try:
                    if not torch.equal(module(x), want):
                        wrong.append("another result")
                except Exception as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    while not all(calls) and all(thread.is_alive() for thread in threads):
        time.sleep(0.001)  # each has begun: how often it is let run is the machine's affair
    begun = sum(calls)
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert sum(calls) > begun, "the other threads did not run meanwhile"


def several(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """work(0) ... work(count - 1), each in a thread of its own, begun at once."""
    barrier = threading.Barrier(count)

    def begin(index: int) -> Any:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_tracing_leaves_the_modules_of_other_threads_alone() -> None:
    trunk = create_trunk("squeezenet1_0")
    with others() as wrong:
        for _ in range(20):
            trace(trunk)
    assert not wrong


def test_making_networks_in_several_threads_leaves_the_modules_of_others_alone() -> None:
    with others() as wrong:
        made = several(lambda i: fc.create("fcn16s-squeezenet1_0", 3, seed=i // 2))
    assert not wrong
    assert all(m.maps == made[0].maps for m in made)


def nodes(graph: fx.Graph) -> list[tuple[str, str, str]]:
    return [(n.op, str(n.target), str(n.args)) for n in graph.nodes]


@pytest.mark.parametrize("name", ["squeezenet1_0", "resnet18", "googlenet", "mobilenet_v3_large"])
def test_the_graph_is_the_one_that_torch_records(name: str) -> None:
    class Theirs(Leaves):
        trace = fx.Tracer.trace  # type: ignore[assignment]

    trunk = create_trunk(name)
    assert nodes(Leaves().trace(trunk)) == nodes(Theirs().trace(trunk))


class Odd(nn.Module):
    """Holds its parts where torch does not look for them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.steps = (self.conv,)  # the same module, reached another way
        self.run = self._run  # a method bound to this very module
        self.scale = torch.ones(1)  # neither parameter nor buffer

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps[0](x) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def test_a_module_that_refers_to_itself_is_traced_and_left_as_it_was() -> None:
    odd = Odd()
    graph = QuietTracer().trace(odd)
    assert [(n.op, n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")] == [
        ("call_module", "conv"),
        ("get_attr", "scale"),
    ]
    assert type(odd) is Odd
    assert type(odd.conv) is nn.Conv2d
    assert fx.GraphModule(odd, graph)(torch.ones(1, 3, 5, 5)).equal(odd(torch.ones(1, 3, 5, 5)))


class Scaled(nn.Module):
    """Uses parameters itself, holds a module that is followed and one that has hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.inner = nn.Parameter(torch.tensor(2.0)), Odd()
        self.inner.register_forward_hook(lambda _, given, made: made + 1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.register_forward_hook(lambda _, given, made: made * 3)  # a leaf's: when the graph runs, not before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x)) * (self.gain * self.gain)


def test_parameters_and_hooks_are_recorded_as_torch_records_them() -> None:
    scaled = Scaled().eval()
    graph = Leaves().trace(scaled)

    class Theirs(Leaves):
        trace = fx.Tracer.trace  # type: ignore[assignment]

    assert nodes(graph) == nodes(Theirs().trace(scaled))
    assert [n.target for n in graph.nodes if n.op == "get_attr"] == ["inner.scale", "gain"]
    x = torch.ones(1, 3, 5, 5)
    assert fx.GraphModule(scaled, graph)(x).equal(scaled(x))
    assert [*map(type, scaled.modules())] == [Scaled, Odd, nn.Conv2d, nn.BatchNorm2d]
    assert "forward" not in vars(scaled.inner)


def test_a_shared_copy_has_the_same_tensors_and_its_own_mode() -> None:
    odd = Odd()
    twin = shared_copy(odd).eval()
    assert odd.training
    assert twin.conv.weight is odd.conv.weight
    assert twin.scale is odd.scale


def trained(name: str, classes: int = 4) -> Any:
    """A network with random scores, so that labels mean something."""
    model = fc.create(name, classes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=generator)
    return model


def photos(count: int = 8) -> list[np.ndarray]:
    """Images of three sizes."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (24 + 8 * (i % 3), 40, 3), dtype=np.uint8) for i in range(count)]


@pytest.fixture(
    scope="module",
    params=[
        "fcn16s-squeezenet1_0",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("fcn32s-alexnet", "fcn8s-mobilenet_v3_large")),
    ],
)
def network(request: pytest.FixtureRequest) -> Any:
    """One without norms, one of the paper's padding (whose surroundings are kept), one with norms and gates."""
    return trained(request.param)


def test_a_first_call_from_eight_threads_at_once_gives_what_one_thread_gives(network: Any) -> None:
    images = photos()
    serial = [fc.Predictor(network)(image) for image in images]
    for _ in range(3):
        predictor = fc.Predictor(network)
        for got, want in zip(several(lambda i: predictor(images[i]), 8), serial, strict=True):  # noqa: B023
            np.testing.assert_array_equal(got, want)


def test_many_images_mapped_over_threads_are_labelled_as_one_after_another(network: Any) -> None:
    predictor, images = fc.Predictor(network), photos(24)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.scores, images))
    for got, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(got, predictor.scores(image))


def test_weights_are_packed_once_however_many_threads_call_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv.engine import convolution

    packed = []
    real = torch.ops.mkldnn._reorder_convolution_weight

    class Slow:
        def __call__(self, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            packed.append(id(weight))
            time.sleep(0.01)
            return real(weight, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", Slow())
    layer = convolution.ConvolutionSpec((1, 1), (1, 1), 1, False, False, lambda x, _: x)
    weight, x = torch.ones(4, 3, 3, 3), torch.ones(1, 3, 8, 8)
    one = convolution.Packed(weight, None, layer)

    def call(_: int) -> torch.Tensor:
        with torch.inference_mode():
            return one(x, [1, 1])

    want = torch.nn.functional.conv2d(x, weight, padding=1)
    assert all(torch.equal(y, want) for y in several(call, 8))
    assert len(packed) == 1


def test_labelling_goes_on_while_the_network_changes_its_mode(network: Any) -> None:
    predictor, image = fc.Predictor(network), photos(1)[0]
    want = predictor.scores(image)
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            network.train()
            network.eval()

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        found = [predictor.scores(image) for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert all(np.array_equal(f, want) for f in found)


def test_a_network_in_training_mode_is_labelled_with_as_in_evaluation_and_left_training(network: Any) -> None:
    image = photos(1)[0]
    want = fc.Predictor(network.eval())(image)
    np.testing.assert_array_equal(fc.Predictor(network.train())(image), want)
    assert all(m.training for m in network.modules())
    network.eval()


def test_directories_are_loaded_in_several_threads_at_once(network: Any, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "model")
    image = photos(1)[0]
    want = fc.Predictor(network)(image)
    with others() as wrong:
        found = several(lambda _: fc.Predictor(fc.load(tmp_path / "model"))(image))
    assert not wrong
    for labels in found:
        np.testing.assert_array_equal(labels, want)
