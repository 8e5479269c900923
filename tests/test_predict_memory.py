"""The memory a network takes is measured on it, and a tile chosen for a limit keeps to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_predict import Tiny
from test_predict_tiles import trained

from fullyconv.cost import Live
from fullyconv.errors import UsageError
from fullyconv.predict import memory_limit
from fullyconv.predict.memory_limit import parse_size, peak_bytes, resident, tile_for


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2**31), ("800MB", 8 * 10**8), ("1.5g", 15 * 10**8), ("77", 77)])
def test_amounts_of_memory_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_an_amount_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="2GiB"):
        parse_size("plenty")


def test_live_counts_what_is_alive_at_once_and_nothing_twice() -> None:
    with Live() as live:
        a = torch.zeros(1000)
        a.view(10, 100).t()  # a view owns nothing
        b = a + 1
        del a
        c = b * 2
        assert live.now == 8000
        assert live.peak == 8000
        del b, c
    assert live.now == 0


def test_peak_bytes_grow_with_the_window() -> None:
    small, large = (peak_bytes(Tiny(), side) for side in (64, 128))
    assert 3.5 < large / small < 4.5
    assert small >= 64 * 64 * 3 * 4 * 2  # at least the image and its padded copy


@pytest.mark.slow
def test_a_larger_budget_gives_a_larger_tile_and_a_tiny_one_is_refused_with_what_is_needed() -> None:
    model = trained("fcn8s-mobilenet_v2")
    tile_for(model, 10**10)
    tiles = [tile_for(model, resident() + budget * 10**6) for budget in (600, 1500)]
    assert 32 <= tiles[0] < tiles[1]
    assert tiles[0] % 32 == 0
    with pytest.raises(UsageError, match=r"at least \d+ MiB"):
        tile_for(model, 10**6)
    assert resident() > 10**7


def test_where_the_system_tells_no_peak_the_sizes_of_tensors_decide(monkeypatch) -> None:
    model = trained("fcn8s-mobilenet_v2")
    monkeypatch.setattr(memory_limit, "_forget_peak", lambda: False)
    assert memory_limit._measured(model) is None
    tiles = [tile_for(model, resident() + budget * 10**6) for budget in (800, 1600)]
    assert 32 <= tiles[0] < tiles[1]


def test_a_peak_that_cannot_be_forgotten_is_told(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not memory_limit._forget_peak()


LIMITED = """
import json, sys
import numpy as np, torch
sys.path.insert(0, sys.argv[1])
from test_predict_tiles import trained
from fullyconv.predict import Predictor
from fullyconv.predict.memory_limit import tile_for
torch.set_num_threads(2)
model = trained("fcn8s-squeezenet1_0")
image = np.zeros((2000, 3000, 3), np.uint8)
Predictor(model)(image[:256, :256])
def peak():  # of this program; ru_maxrss would begin with what the process that started it held
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
held = peak()
limit = held + 500 * 2**20
tile = tile_for(model, limit) if sys.argv[2] == "tiled" else None
Predictor(model, tile=tile)(image)
print(json.dumps([tile, held, limit, peak()]))
"""


@pytest.mark.slow
def test_a_tile_chosen_for_a_limit_keeps_the_whole_process_under_it() -> None:
    def measured(how: str) -> tuple[int, int, int]:
        command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        _, held, limit, peak = json.loads(done.stdout)
        return held, limit, peak

    held, limit, peak = measured("tiled")
    assert peak <= limit
    whole_held, _, whole = measured("whole")
    assert whole - whole_held > 2 * (peak - held)
