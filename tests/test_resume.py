"""A run that was stopped anywhere and goes on is the run that was never stopped, to the bit."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from training_tools import call, outcome, start, train_until

from fullyconv.cli.supervise import newest_step, supervise
from fullyconv.processor import has_native

STEPS = 12  # of three epochs of 7 images in steps of 2; measured after 4, 8 and 12

# place -> when, early, in the middle or late: steps (the first; in mid-epoch; the last), measurements, new bests
PLACES = {"after_step": (1, 6, 12), "in_step": (1, 7, 12), "in_measurement": (1, 1, 2), "between_links": (1, 1, 2)}
COLUMNS: dict[str, tuple[Any, ...]] = {
    "place": tuple(PLACES),
    "when": (0, 1, 2),
    "how": ("SIGTERM", "SIGKILL", "SIGINT", "exception"),
    "workers": (0, 2, 4),
    "optimizer": ("adamw", "sgd", "caffe-sgd"),
    "save_every": ("1h", "0.001s"),
    "ema": (0.0, 0.9),
    "precision": ("fp32", "bf16") if has_native("bf16") else ("fp32", "auto"),
    "accumulate": (1, 2),
    "sampling": ("epochs", "replacement"),
}
CODES = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9, "exception": 99}


def pairwise(columns: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rows in which every pair of values of two columns occurs, chosen greedily."""
    names, rng = list(columns), random.Random(0)
    pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in columns[a] for y in columns[b]}
    rows = []
    while pairs:
        best: tuple[int, dict[str, Any]] = (-1, {})
        for _ in range(60):
            (a, x), (b, y) = rng.choice(sorted(pairs, key=repr))
            row = {n: rng.choice(v) for n, v in columns.items()} | {a: x, b: y}
            covered = sum(((p, row[p]), (q, row[q])) in pairs for p, q in itertools.combinations(names, 2))
            best = max(best, (covered, row), key=lambda t: t[0])
        rows.append(best[1])
        pairs -= {((p, best[1][p]), (q, best[1][q])) for p, q in itertools.combinations(names, 2)}
    return rows


def check(row: dict[str, Any], directory: Path) -> None:
    place, how = row["place"], row["how"]
    at = PLACES[place][row["when"]]
    keys = {k: v for k, v in row.items() if k not in ("place", "when", "how")} | {"lr": 1e-3, "seed": 3}
    assert call(train_until, keys, str(directory / "whole"), False) == 0
    code = call(train_until, keys, str(directory / "cut"), False, place, at, how)
    # The best may be found once only: then nothing happens between its link and the other, and the run ends well.
    assert code == CODES[how] or (place == "between_links" and at == 2 and code == 0)
    # A kill in the first step, before any later checkpoint, leaves the one of step 0.
    assert newest_step(directory / "cut") >= 0
    assert call(train_until, keys, str(directory / "cut"), True) == 0
    whole, cut = outcome(directory / "whole"), outcome(directory / "cut")
    for key, value in whole.items():
        assert cut[key] == value, key


FAST: list[dict[str, Any]] = [
    {
        "place": "after_step",
        "when": 1,
        "how": "SIGTERM",
        "workers": 2,
        "optimizer": "adamw",
        "ema": 0.9,
        "accumulate": 2,
    },
    {
        "place": "in_step",
        "when": 1,
        "how": "SIGKILL",
        "optimizer": "sgd",
        "save_every": "0.001s",
        "sampling": "replacement",
    },
    {
        "place": "in_measurement",
        "when": 1,
        "how": "SIGINT",
        "workers": 2,
        "optimizer": "caffe-sgd",
        "precision": "bf16" if has_native("bf16") else "auto",
    },
    {"place": "between_links", "when": 1, "how": "SIGKILL", "ema": 0.9},
]


@pytest.mark.parametrize(
    "row",
    [row if row["place"] == "in_step" else pytest.param(row, marks=pytest.mark.slow) for row in FAST],
    ids=lambda row: f"{row['how']}-{row['place']}",
)
def test_an_interrupted_run_ends_as_the_uninterrupted_one(row: dict[str, Any], tmp_path: Path) -> None:
    check(row, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("row", pairwise(COLUMNS), ids=lambda row: "-".join(str(v) for v in row.values()))
def test_every_pair_of_circumstances_resumes_to_the_bit(row: dict[str, Any], tmp_path: Path) -> None:
    check(row, tmp_path)


def test_the_matrix_covers_every_pair() -> None:
    rows = pairwise(COLUMNS)
    for a, b in itertools.combinations(COLUMNS, 2):
        assert {(r[a], r[b]) for r in rows} == set(itertools.product(COLUMNS[a], COLUMNS[b]))


class Forked:
    """A trainer as the supervisor sees it, killed some checkpoints and some seconds after its start."""

    def __init__(self, process: Any, out: Path, steps: float, seconds: float) -> None:
        self.process, self.pid, self.out = process, int(process.pid), out
        self.goal, self.seconds = newest_step(out) + steps, seconds
        self.killed = False

    def wait(self) -> int:
        while self.process.exitcode is None and newest_step(self.out) < self.goal:
            time.sleep(0.002)
        self.process.join(self.seconds)
        if self.process.exitcode is None:
            self.killed = True
            os.kill(self.pid, signal.SIGKILL)
            self.process.join()
        return int(self.process.exitcode)


def supervised(out: Path, kills: int, keys: dict[str, Any]) -> int:
    """Supervise a run that is killed up to `kills` times; how many kills it took. One kill in three comes at a random
    moment of starting and resuming, the others in or after the 1st to 4th checkpoint from there."""
    rng = random.Random(1)
    trainers: list[Forked] = []

    def start_one(resume: bool) -> Forked:
        steps: float = rng.choice((0, 0, 1, 2, 3, 4))
        seconds = rng.uniform(0.0, 0.6 if steps == 0 else 0.05)
        if sum(t.killed for t in trainers) >= kills:
            steps = float("inf")
        trainers.append(Forked(start(train_until, keys, str(out), resume), out, steps, seconds))
        return trainers[-1]

    assert supervise(start_one, out, patience=kills + 1) == 0
    return sum(t.killed for t in trainers)


KEYS = {"lr": 1e-3, "ema": 0.9, "workers": 2, "save_every": "0.001s"}


@pytest.mark.slow
def test_a_supervised_run_survives_kills_and_ends_as_if_unkilled(tmp_path: Path, capsys: Any) -> None:
    assert call(train_until, KEYS, str(tmp_path / "whole"), False) == 0
    assert supervised(tmp_path / "killed", 4, KEYS) >= 1
    assert "starting it again" in capsys.readouterr().err
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    for key, value in whole.items():
        assert killed[key] == value, key


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_kills(tmp_path: Path) -> None:
    keys = KEYS | {"epochs": 110}
    assert call(train_until, keys, str(tmp_path / "whole"), False, timeout=3600) == 0
    done = supervised(tmp_path / "killed", 200, keys)
    print(f"{done} kills")
    assert done == 200
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "killed")


def test_a_trainer_that_never_gets_anywhere_is_given_up(tmp_path: Path, capsys: Any) -> None:
    class Dies:
        pid = 0

        def wait(self) -> int:
            return -11

    resumed: list[bool] = []

    def start_one(resume: bool) -> Dies:
        resumed.append(resume)
        return Dies()

    assert supervise(start_one, tmp_path, patience=2) == 1
    assert resumed == [False, False]
    assert "SIGSEGV" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 2, 65, 66])
def test_an_end_that_starting_again_cannot_change_is_the_end(code: int, tmp_path: Path) -> None:
    class Ends:
        pid = 0

        def wait(self) -> int:
            return code

    starts: list[bool] = []

    def start_one(resume: bool) -> Ends:
        starts.append(resume)
        return Ends()

    assert supervise(start_one, tmp_path) == code
    assert len(starts) == 1


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("step", [None, 7])
def test_the_first_start_is_the_one_that_was_asked_for(resume: bool, step: int | None, tmp_path: Path) -> None:
    """--resume never silently starts over, and without it nothing goes on with a run that was there before."""
    if step is not None:
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    codes = [-9, 0]
    starts: list[bool] = []

    class Dies:
        pid = 0

        def wait(self) -> int:
            (tmp_path / "checkpoints" / "step-9").mkdir(parents=True, exist_ok=True)
            return codes.pop(0)

    def start_one(again: bool) -> Dies:
        starts.append(again)
        return Dies()

    assert supervise(start_one, tmp_path, resume=resume) == 0
    assert starts == [resume, True]
