"""The processes that read: a dead, hung or failing one is reported with its cause and files, and never blocks."""

from __future__ import annotations

import functools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import save as save_png
from training_tools import call, fit, images, small

from fullyconv.data import open_dataset
from fullyconv.data.pipeline import heartbeat
from fullyconv.data.pipeline.loader import Workers, ordered_map
from fullyconv.data.pipeline.workers import Watch
from fullyconv.errors import DataError, FullyconvError, InternalError, TryAgain, UnknownName


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
        heartbeat.at(f"{item}.png")
        if item == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    start = time.monotonic()
    told = r"died \(killed by SIGKILL; out of memory\?\) while reading 4\.png \(of image 4\)"
    with pytest.raises(TryAgain, match=told):
        list(ordered_map(make, iter(range(9)), 2, describe=names))
    assert time.monotonic() - start < 30


def freeze_at(file: Path, how: str, item: int) -> int:
    """Reads `file` as item 1, in a way that never ends."""
    if item == 1:
        heartbeat.at(file)
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            file.read_bytes()  # a FIFO that nobody writes into: as from a dead mount, the kernel never comes back
    return item


@pytest.mark.parametrize(("workers", "how"), [(0, "fifo"), (1, "fifo"), (2, "fifo"), (1, "stopped"), (2, "stopped")])
def test_a_frozen_reader_is_named_with_its_file_and_does_not_outlive_the_run(
    workers: int, how: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    make = functools.partial(freeze_at, tmp_path / "fifo.png", how)
    fact = "is stopped" if how == "stopped" and workers else r"has not moved on for 0\.5 s"
    start = time.monotonic()
    with pytest.raises(TryAgain, match=rf"{fact}.* while reading .*fifo\.png \(of image 1\)"):
        list(ordered_map(make, iter(range(9)), workers, timeout=0.5, describe=names))
    assert time.monotonic() - start < 30
    if workers == 0:  # let the thread go
        os.close(os.open(tmp_path / "fifo.png", os.O_WRONLY))


@pytest.mark.slow  # it is waited for on purpose
def test_a_stopped_reader_is_told_long_before_one_that_stands_still(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TryAgain, match="is stopped"):
        list(ordered_map(functools.partial(freeze_at, tmp_path, "stopped"), iter(range(9)), 1, timeout=200.0))
    assert time.monotonic() - start < 100


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "how"), [(0, "fifo"), (2, "fifo"), (2, "stopped")])
def test_by_default_a_frozen_reader_is_told_within_ten_seconds(workers: int, how: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    stream = ordered_map(functools.partial(freeze_at, tmp_path / "fifo.png", how), iter(range(9)), workers)
    assert next(stream) == 0
    start = time.monotonic()
    with pytest.raises(TryAgain, match=r"fifo\.png"):
        list(stream)
    took = time.monotonic() - start
    assert took < 30
    if workers == 0:
        os.close(os.open(tmp_path / "fifo.png", os.O_WRONLY))


def test_what_a_worker_finished_before_it_died_still_counts() -> None:
    def make(item: int) -> int:
        heartbeat.at(f"{item}.png")
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with Workers(make, 1, describe=names) as pool:
        for ticket in range(3):
            pool.give(ticket, ticket)
        pool.workers[0].process.join(10)  # dead, with two answers on the way
        assert [pool.take(0), pool.take(1)] == [0, 1]
        with pytest.raises(TryAgain, match=r"reading 2\.png \(of image 2\)"):
            pool.take(2)


@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_a_worker_that_freezes_or_dies_in_the_middle_of_its_answer_is_told(how: str) -> None:
    def make(item: int) -> bytes:
        heartbeat.at("big.png")
        return bytes(20 << 20)

    with Workers(make, 1, timeout=1.0, describe=names) as pool:
        pool.give(0, 0)
        time.sleep(0.3)  # far more than the socket holds: it waits for us to read on
        os.kill(pool.workers[0].process.pid, signal.Signals[how])
        with pytest.raises(TryAgain, match="is stopped" if how == "SIGSTOP" else "killed by SIGKILL"):
            pool.take(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slow_reader_that_moves_from_file_to_file_is_not_hung(workers: int) -> None:
    def make(item: int) -> int:
        for file in range(4):
            heartbeat.at(f"{item}-{file}.png")
            time.sleep(0.3)
        return item

    assert list(ordered_map(make, iter(range(2)), workers, timeout=0.9)) == [0, 1]


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the kernel tells nobody who computes")
def test_a_reader_that_computes_has_ten_times_as_long_as_one_that_stands_still(workers: int) -> None:
    assert list(ordered_map(lambda i: spin(1.5), iter([0]), workers, timeout=0.5)) == [None]
    start = time.monotonic()
    with pytest.raises(TryAgain, match="has not moved on"):
        list(ordered_map(lambda i: spin(30), iter([0]), workers, timeout=0.4))
    assert 1.5 < time.monotonic() - start < 20


def test_a_pause_of_the_waiting_process_does_not_count_against_its_workers() -> None:
    watch = Watch(heartbeat.Slot())
    watch.waited(3600.0)
    assert watch.silent == 1.0
    watch.waited(0.5)
    assert watch.silent == 1.5
    watch.slot.move_on("b.png")
    watch.waited(0.5)
    assert watch.silent == 0.0


def test_a_worker_out_of_memory_is_told_with_its_file() -> None:
    def make(item: int) -> int:
        heartbeat.at("vast.png")
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        return len(bytes(1 << 40))

    with pytest.raises(TryAgain, match=r"out of memory at vast\.png"):
        list(ordered_map(make, iter([0]), 1))


def test_a_data_set_says_which_of_its_files_is_read() -> None:
    slot = heartbeat.Slot()
    seen = []
    heartbeat.live_in(slot)
    try:
        data = images(broken=lambda index: seen.append(slot.where))
        data[0]
    finally:
        heartbeat.live_in(None)
    assert seen == [str(data.records[0].inputs["rgb"]), str(data.records[0].labels["semantic"])]


def test_a_fifo_in_place_of_an_image_is_named_at_once(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        for i in range(3):
            save_png(np.zeros((8, 8, 3) if folder == "images" else (8, 8), np.uint8), tmp_path / folder / f"{i}.png")
    data = open_dataset(f"folder:{tmp_path}")
    file = tmp_path / "images" / "1.png"
    file.unlink()
    os.mkfifo(file)
    start = time.monotonic()
    with pytest.raises(FullyconvError, match=r"1\.png"):
        list(ordered_map(lambda i: data[i].name, iter(range(3)), 2))
    assert time.monotonic() - start < 30


UNKILLABLE = """
import os, signal, sys, time
from fullyconv.data.pipeline import workers
workers.BURIAL = 0.2
pool = workers.Workers(lambda i: i, 1)
process = pool.workers[0].process
os.kill(process.pid, signal.SIGSTOP)
type(process).kill = lambda self: None  # as if the kernel held it
open(sys.argv[1], 'w').write(str(process.pid))
pool.__exit__()
"""


def test_a_worker_that_cannot_be_killed_does_not_keep_the_run(tmp_path: Path) -> None:
    """A process that waits for a dead mount survives SIGKILL."""
    done = subprocess.Popen([sys.executable, "-c", UNKILLABLE, str(tmp_path / "pid")])
    try:
        assert done.wait(60) == 0
    finally:
        done.kill()
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_slow_consumer_is_no_hung_worker() -> None:
    for workers in (0, 2):
        stream = ordered_map(lambda i: bytes(200_000), iter(range(6)), workers, timeout=0.3)
        for _ in stream:
            time.sleep(0.2)


def test_workers_end_with_the_run_even_when_stopped() -> None:
    with Workers(lambda i: i, 2) as pool:
        pids = [w.process.pid for w in pool.workers]
        os.kill(pids[0], signal.SIGSTOP)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def _orphan(path: str) -> None:
    pool: Workers[int, int] = Workers(lambda i: i, 2)
    Path(path).write_text(" ".join(str(w.process.pid) for w in pool.workers))
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
        fit(small(workers=2, epochs=2), tmp_path / "run", train=images(broken=fatal))
    kept = (tmp_path / "run" / "last").resolve().name
    fit(small(workers=0, epochs=2), tmp_path / "run", resume=True)
    whole = fit(small(workers=0, epochs=2), tmp_path / "whole")
    rows: list[Any] = [(p / "metrics.jsonl").read_text() for p in (tmp_path / "run", whole)]
    assert rows[0] == rows[1], kept
