"""Threads: nothing of the process is changed while networks are made, loaded, traced or called for the first time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

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
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert min(calls) > 10, "the other threads hardly ran"


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


def test_a_shared_copy_has_the_same_tensors_and_its_own_mode() -> None:
    odd = Odd()
    twin = shared_copy(odd).eval()
    assert odd.training
    assert twin.conv.weight is odd.conv.weight
    assert twin.scale is odd.scale
