"""Several processes of one run: the same steps, the same figures, and a stop of one is a stop of all."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_tools import after_step, fit, images, outcome, small, start

import fullyconv as fc
from fullyconv.checkpoint import RunDirectory
from fullyconv.errors import DataError, StorageError


def _unreadable(index: int) -> None:
    if index == 5:
        raise DataError("train-5.png is truncated")


def _full_disk() -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise StorageError("The disk is full.")

    RunDirectory.save = refuse  # type: ignore[method-assign]


def _rank(
    rank: int, size: int, port: int, out: str, keys: dict[str, Any], resume: bool, stop_at: int, fault: str
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    if stop_at and rank == 1:
        after_step(stop_at, lambda: os.kill(os.getpid(), signal.SIGTERM))
    if fault == "full disk":
        after_step(2, _full_disk)
    broken = _unreadable if fault == "unreadable" else None
    fit(small(**keys), Path(out), resume, train=images(broken=broken))


def _free_port() -> int:
    """A port that nobody listens on, below those that the system gives to connections meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("", port))
            return port
    raise AssertionError("100 ports between 20,000 and 32,000 are taken")


def together(
    out: Path, keys: dict[str, Any], resume: bool = False, stop_at: int = 0, size: int = 2, fault: str = ""
) -> list[int | None]:
    """Exit codes of `size` processes that train as torchrun would start them."""
    port = _free_port()
    run: Callable[[int], Any] = lambda r: start(  # noqa: E731
        _rank, r, size, port, str(out), keys, resume, stop_at, fault
    )
    processes = [run(r) for r in range(size)]
    for p in processes:
        p.join(250)
    return [p.exitcode for p in processes]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = fc.load(out / "last").state_dict()
    return found


@pytest.mark.parametrize("keys", [{"batch_size": 4, "class_weights": "median-frequency"}, {"loss": "image-mean"}])
def test_two_processes_train_as_one_with_an_uneven_last_batch(keys: dict[str, Any], tmp_path: Path) -> None:
    # 7 images: the last step of 4 has 3, of 2 has 1, so that the second process has fewer, or none.
    keys = {"model": "fcn2s-plain", "optimizer": "sgd", "epochs": 2, "lr": 0.05} | keys
    assert together(tmp_path / "two", keys) == [0, 0]
    fit(small(**keys), tmp_path / "one")
    for a, b in zip(weights(tmp_path / "one").values(), weights(tmp_path / "two").values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    rows = [[json.loads(x) for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]]
    assert [r.get("order") for r in rows[0]] == [r.get("order") for r in rows[1]]


@pytest.mark.slow
def test_two_processes_share_a_cache_on_the_disk(tmp_path: Path) -> None:
    keys = {"model": "fcn2s-plain", "epochs": 2}
    for name, cache in (("none", "none"), ("disk", "disk")):
        assert together(tmp_path / name, keys | {"cache": cache}) == [0, 0]
    assert (tmp_path / "none" / "metrics.jsonl").read_text() == (tmp_path / "disk" / "metrics.jsonl").read_text()
    assert not (tmp_path / "disk" / "cache").exists()


def test_the_measurement_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    assert together(tmp_path / "two", {"epochs": 2}) == [0, 0]
    row = json.loads((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    alone = fc.evaluate(fc.Predictor(fc.load(tmp_path / "two" / "last")), images(3, "val"))
    assert row["kind"] == "measurement"
    assert (row["mean_iu"], row["pixel_accuracy"]) == (alone.mean_iu, alone.pixel_accuracy)


@pytest.mark.slow
def test_a_stop_of_one_is_a_stop_of_all_and_resumes_to_the_bit(tmp_path: Path) -> None:
    keys = {"epochs": 2, "ema": 0.9, "workers": 2}
    assert together(tmp_path / "whole", keys) == [0, 0]
    assert together(tmp_path / "cut", keys, stop_at=3) == [143, 143]
    assert together(tmp_path / "cut", keys, resume=True) == [0, 0]
    whole, cut = outcome(tmp_path / "whole"), outcome(tmp_path / "cut")
    for key, value in whole.items():
        assert cut[key] == value, key


def test_an_image_that_one_process_cannot_read_ends_all_with_the_step_kept(tmp_path: Path) -> None:
    codes = together(tmp_path / "run", {"batch_size": 4}, fault="unreadable")
    assert sorted(map(int, filter(None, codes))) == [65, 75]
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert (tmp_path / "run" / "last").resolve().name == f"step-{len(rows)}"


@pytest.mark.slow
def test_an_image_that_any_process_replaced_is_counted_once(tmp_path: Path) -> None:
    keys = {"batch_size": 4, "on_bad_sample": "skip", "max_bad": 0.2, "epochs": 2}
    assert together(tmp_path / "run", keys, fault="unreadable") == [0, 0]
    state = json.loads((tmp_path / "run" / "last" / "state.json").read_text())["state"]["train"]
    assert state["bad"] == ["train-5: train-5.png is truncated"]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_all_processes(tmp_path: Path) -> None:
    assert together(tmp_path / "run", {"val_every": 1}, fault="full disk") == [74, 75]
