"""The processes that read: a dead, hung or failing one is reported with its cause and files, and never blocks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from training_tools import call, fit, pictures, small

from fullyconv.data.loader import Workers, ordered_map
from fullyconv.errors import DataError, InternalError, TryAgain, UnknownName


def names(item: int) -> str:
    return f"image {item}"


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_whoever_makes_them(workers: int) -> None:
    def make(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(ordered_map(make, iter(range(20)), workers)) == [i * i for i in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_turn_as_its_own_kind(workers: int) -> None:
    def make(item: int) -> int:
        if item == 3:
            raise DataError("image 3 is truncated")
        return item

    stream = ordered_map(make, iter(range(9)), workers)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="image 3 is truncated"):
        next(stream)


def one_failing(error: Exception) -> None:
    def make(item: int) -> int:
        raise error

    list(ordered_map(make, iter([7]), 1, describe=names))


def test_errors_that_do_not_survive_a_pipe_keep_their_sentence_and_exit_code() -> None:
    with pytest.raises(Exception, match="did you mean 'train'") as e:
        one_failing(UnknownName("split", "trian", ["train"]))
    assert e.value.exit_code == 2  # type: ignore[attr-defined]
    with pytest.raises(FileNotFoundError, match=r"x\.png"):
        one_failing(FileNotFoundError(2, "No such file", "x.png"))
    with pytest.raises(TryAgain, match="out of memory"):
        one_failing(MemoryError())
    with pytest.raises(InternalError, match=r"in make[\s\S]*ZeroDivisionError"):
        one_failing(ZeroDivisionError("division"))


def test_a_killed_worker_is_named_with_its_files_at_once() -> None:
    def make(item: int) -> int:
        if item == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    start = time.monotonic()
    with pytest.raises(TryAgain, match=r"died \(killed by SIGKILL; out of memory\?\) while reading image 4"):
        list(ordered_map(make, iter(range(9)), 2, describe=names))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hung_reader_is_named_with_its_files_and_does_not_outlive_the_run(workers: int) -> None:
    def make(item: int) -> int:
        if item == 1:
            time.sleep(30) if workers == 0 else os.kill(os.getpid(), signal.SIGSTOP)
        return item

    start = time.monotonic()
    with pytest.raises(TryAgain, match=r"no answer for 0\.5 s while reading image 1"):
        list(ordered_map(make, iter(range(9)), workers, timeout=0.5, describe=names))
    assert time.monotonic() - start < 10


def test_a_slow_consumer_is_no_hung_worker() -> None:
    for workers in (0, 2):
        stream = ordered_map(lambda i: bytes(200_000), iter(range(6)), workers, timeout=0.3)
        for _ in stream:
            time.sleep(0.2)


def test_workers_end_with_the_run_even_when_stopped() -> None:
    with Workers(lambda i: i, 2) as pool:
        pids = [p.pid for p in pool.processes]
        os.kill(pids[0], signal.SIGSTOP)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _orphan(path: str) -> None:
    pool: Workers[int, int] = Workers(lambda i: i, 2)
    Path(path).write_text(" ".join(str(p.pid) for p in pool.processes))
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    assert call(_orphan, str(tmp_path / "pids")) == -signal.SIGKILL
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    end = time.monotonic() + 5
    while time.monotonic() < end and any(_alive(p) for p in pids):
        time.sleep(0.02)
    assert not any(_alive(p) for p in pids)


def _alive(pid: int) -> bool:
    """Whether the process runs (a zombie, which nobody may have collected, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_dying_worker_ends_the_run_with_the_last_step_kept(tmp_path: Path) -> None:
    def fatal(index: int) -> None:
        if index == 5 and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)

    here = os.getpid()
    with pytest.raises(TryAgain, match="train-5"):
        fit(small(workers=2, epochs=2), tmp_path / "run", train=pictures(broken=fatal))
    kept = (tmp_path / "run" / "last").resolve().name
    fit(small(workers=0, epochs=2), tmp_path / "run", resume=True)
    whole = fit(small(workers=0, epochs=2), tmp_path / "whole")
    rows: list[Any] = [(p / "metrics.jsonl").read_text() for p in (tmp_path / "run", whole)]
    assert rows[0] == rows[1], kept
