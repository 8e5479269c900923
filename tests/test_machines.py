"""Labelling on many machines: the bytes of one process, at least once and exactly once, whoever dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_rasters import Small, digest, ground, save

from fullyconv.cli import main
from fullyconv.errors import EXIT_CODES, DataError, StorageError, TryAgain, UsageError
from fullyconv.files import disk, staged
from fullyconv.files.outputs import Outputs
from fullyconv.files.staged import StagedOutputs
from fullyconv.predict import Predictor, units
from fullyconv.predict.label_sources import Labelled, label_sources
from fullyconv.predict.machines import MOST_LOSSES, Machines
from fullyconv.predict.sources import find_sources
from fullyconv.predict.units import UnitOutcome, UnitWorker, WorkerSetup, WorkUnit
from fullyconv.predict.work import LabelOptions

pytest.importorskip("rasterio", reason="the extra geo is not installed")

OPTIONS = LabelOptions(confidence=True, quiet=True)


class Pool:
    """Workers in this process, each doing its unit when it is waited for. `dies`: whether a worker dies over a unit,
    after it did all of it."""

    def __init__(self, setup: WorkerSetup, size: int = 2, dies: Callable[[WorkUnit], bool] = lambda _: False) -> None:
        self.size, self._dies, self._worker, self.closed = size, dies, UnitWorker(setup), False
        self._held: list[WorkUnit] = []
        self.done: list[WorkUnit] = []

    def submit(self, unit: WorkUnit) -> bool:
        if len(self._held) == self.size:
            return False
        self._held.append(unit)
        return True

    def wait(self) -> Sequence[tuple[WorkUnit, UnitOutcome | None]]:
        unit = self._held.pop()  # not in the order in which they were given
        self.done.append(unit)
        outcome = self._worker.do(unit)
        return [(unit, None if self._dies(unit) else outcome)]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers open `Small`, whatever they are told."""
    monkeypatch.setattr(units, "open_network", lambda *_: Small())


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Nine photos, one of them cut off, and two rasters of several blocks."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(ground(30, 40, seed=i)).save(folder / f"p{i}.png")
    (folder / "p4.png").write_bytes((folder / "p4.png").read_bytes()[:90])
    save(folder / "s.tif", ground(90, 100))
    save(folder / "t.tif", ground(60, 70, seed=1), (40, 3), nodata=0)
    return folder


def run(inputs: Path, out: Path, start: Any = None, resume: bool = False, model: Any = None) -> Labelled:
    """Label everything; `start` makes the pool, None works in this process."""
    machines = start and Machines(("model",), "cpu", (40, 40), start)
    ready = Predictor(model or Small(), tile=40)
    return label_sources(ready, find_sources([inputs], out), out, OPTIONS, resume=resume, machines=machines)


def results(out: Path) -> dict[str, str]:
    """name -> sha256, without the records."""
    return {
        p.relative_to(out).as_posix(): digest(p) for p in out.rglob("*") if p.is_file() and not p.name.endswith("256")
    }


def record(out: Path, name: str) -> list[str]:
    return sorted(line for line in (out / name).read_text().split("\n") if line)


def test_many_workers_give_the_files_and_records_of_one_process(inputs: Path, tmp_path: Path) -> None:
    one, many = run(inputs, tmp_path / "one"), run(inputs, tmp_path / "many", Pool)
    assert results(tmp_path / "one") == results(tmp_path / "many")
    assert len(results(tmp_path / "many")) == 3 * (8 + 2)
    for name in (".predicted.sha256", ".written.sha256"):
        assert record(tmp_path / "one", name) == record(tmp_path / "many", name)
    assert one.failed == many.failed == [inputs / "p4.png"]
    assert sorted(what for what, _ in one.written) == sorted(what for what, _ in many.written)
    assert not (tmp_path / "many/.blocks").exists()


@pytest.mark.parametrize("seed", range(4))
def test_workers_that_die_anywhere_lose_nothing_and_nothing_appears_twice(
    inputs: Path, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "one")
    chance = np.random.default_rng(seed)
    adopted: list[str] = []
    real = Outputs.adopt

    def adopt(self: Outputs, made: Any) -> list[Path]:
        adopted.extend(m.name for m in made)
        return real(self, made)

    monkeypatch.setattr(Outputs, "adopt", adopt)
    done = run(inputs, tmp_path / "many", partial(Pool, size=3, dies=lambda u: not u.losses and chance.random() < 0.6))
    assert results(tmp_path / "one") == results(tmp_path / "many")
    assert len(adopted) == len(set(adopted)) == 30
    assert done.failed == [inputs / "p4.png"]
    assert not (tmp_path / "many/.blocks").exists()


def test_an_image_or_a_block_over_which_every_worker_dies_costs_no_other(
    inputs: Path, tmp_path: Path, capsys: Any
) -> None:
    run(inputs, tmp_path / "one")

    def dies(unit: WorkUnit) -> bool:
        return any(job.name == "p2" for job in unit.jobs) or ((1, 1) in unit.places and unit.jobs[0].name == "s")

    done = run(inputs, tmp_path / "many", partial(Pool, dies=dies))
    assert {p.name for p in done.failed} == {"p2.png", "p4.png", "s.tif"}
    assert capsys.readouterr().err.count(f"{MOST_LOSSES} workers died over") == 2
    bad = {"p2", "s"}
    expected = {k: v for k, v in results(tmp_path / "one").items() if Path(k).stem not in bad}
    found = {k: v for k, v in results(tmp_path / "many").items() if not k.startswith(".blocks")}
    assert found == expected
    assert run(inputs, tmp_path / "many", Pool, resume=True).images == 3
    assert results(tmp_path / "many") == results(tmp_path / "one")


def test_a_killed_asker_is_gone_on_from_without_computing_blocks_again(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "one")
    pools: list[Pool] = []

    def start(setup: WorkerSetup) -> Pool:
        pools.append(Pool(setup, 2, dies))
        return pools[-1]

    left = [4]

    def dies(unit: WorkUnit) -> bool:
        if unit.kind == "blocks":
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "many", start)
    assert pools[0].closed
    stale = tmp_path / "many/.blocks/staged-0"
    stale.mkdir()  # what a kill leaves
    (stale / "x").write_bytes(b"half")
    run(inputs, tmp_path / "many", start, resume=True)
    twice = [(u.jobs[0].name, p) for pool in pools for u in pool.done for p in u.places]
    assert len(twice) == len(set(twice)) > 4  # every block once in both runs together
    assert results(tmp_path / "many") == results(tmp_path / "one")


def test_a_full_disk_ends_the_work_in_one_sentence_and_what_is_done_stays(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(inputs, tmp_path / "one")
    real, calls = staged.write_file, [0]

    def full(*args: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > 10:
            raise StorageError("Writing x failed: No space left on device; make room there and run it again.")
        return real(*args, **more)

    monkeypatch.setattr(staged, "write_file", full)
    with pytest.raises(StorageError, match="make room"):
        run(inputs, tmp_path / "many", Pool)
    kept = results(tmp_path / "many")
    assert not [p for p in kept if "staged-" in p]
    assert {k: v for k, v in kept.items() if not k.startswith(".blocks")}.items() <= results(tmp_path / "one").items()
    monkeypatch.undo()
    monkeypatch.setattr(units, "open_network", lambda *_: Small())
    run(inputs, tmp_path / "many", Pool, resume=True)
    assert results(tmp_path / "many") == results(tmp_path / "one")


def test_a_worker_with_another_network_or_version_does_no_work(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="network is not the one asked for"):
        run(inputs, tmp_path / "out", Pool, model=Small(seed=1))
    with pytest.raises(UsageError, match=r"has fullyconv .*, not 0\.0"):
        UnitWorker(WorkerSetup(("m",), "cpu", None, "fp32", OPTIONS, (), "", str(tmp_path), "", "0.0"))
    assert not results(tmp_path / "out")


def test_a_raster_that_changes_while_it_is_labelled_is_not_mixed(inputs: Path, tmp_path: Path) -> None:
    def dies(unit: WorkUnit) -> bool:
        if unit.kind == "prepare":
            os.utime(unit.jobs[0].source)
        return False

    done = run(inputs, tmp_path / "out", partial(Pool, dies=dies))
    assert {p.name for p in done.failed} == {"p4.png", "s.tif", "t.tif"}


def test_two_askers_do_not_write_into_one_folder(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "out/.blocks").mkdir(parents=True)
    with disk.Lock(tmp_path / "out/.blocks/machines.lock"), pytest.raises(TryAgain):
        run(inputs, tmp_path / "out", Pool)


@pytest.mark.parametrize(
    "way", ["a file of the user's", "a link to it", "a link to its folder", "a way up", "a folder"]
)
def test_a_worker_that_names_a_file_that_it_did_not_write_gets_nothing_moved(
    inputs: Path, tmp_path: Path, way: str
) -> None:
    (own := tmp_path / "own").mkdir()
    (own / "precious").write_bytes(b"1")

    class Lying(Pool):
        def __init__(self, setup: WorkerSetup) -> None:
            super().__init__(setup)
            self.staging = Path(setup.staging)
            (self.staging / "file").symlink_to(own / "precious")
            (self.staging / "folder").symlink_to(own)

        def wait(self) -> Sequence[tuple[WorkUnit, UnitOutcome | None]]:
            ((unit, outcome),) = super().wait()
            path = {
                "a file of the user's": own / "precious", "a link to it": self.staging / "file",
                "a link to its folder": self.staging / "folder/precious", "a folder": self.staging,
                "a way up": self.staging / "../../../own/precious",
            }[way]  # fmt: skip
            for result in outcome.results if outcome else ():
                result.files[0].__dict__["path"] = path
            return [(unit, outcome)]

    with pytest.raises(DataError, match=r"did not write for this job"):
        run(inputs, tmp_path / "out", Lying)
    assert (own / "precious").read_bytes() == b"1"
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_unit_whose_results_would_lie_elsewhere_is_not_done(inputs: Path, tmp_path: Path) -> None:
    tried: list[WorkUnit] = []

    class Forged(Pool):
        def submit(self, unit: WorkUnit) -> bool:
            job = unit.jobs[0]
            tried.append(unit)
            names = dict.fromkeys(job.names, f"../../{tmp_path.name}-evil/a.tif")
            return super().submit(replace(unit, jobs=(replace(job, names=names), *unit.jobs[1:])))

    with pytest.raises(UsageError, match=r"climbs out of its folder by '..'; it is not done"):
        run(inputs, tmp_path / "out", Forged)
    assert tried
    assert not list(tmp_path.parent.glob("*evil"))


def test_what_is_staged_has_no_name_until_it_is_adopted(tmp_path: Path) -> None:
    worker, plan = StagedOutputs(tmp_path / "out/w"), Outputs(tmp_path / "out")
    plan.claim("a", "x.png")
    worker.write("a/x.png", b"1")
    worker.write("a/y.png", b"2")  # a frame of a video, claimed by nobody yet
    assert not (tmp_path / "out/a").exists()
    assert [p.name for p in plan.adopt(worker.take())] == ["x.png", "y.png"]
    assert (tmp_path / "out/a/x.png").read_bytes() == b"1"
    assert len((tmp_path / "out/.written.sha256").read_text().splitlines()) == 2
    worker.write("a/x.png", b"3")
    with pytest.raises(UsageError, match="Two results would be"):
        plan.adopt(worker.take())
    assert (tmp_path / "out/a/x.png").read_bytes() == b"1"
    assert worker.take() == ()


def test_options_of_an_engine_need_one(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv.cli import evaluate

    Image.fromarray(ground(9, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(evaluate, "predictor", lambda *_, **__: Predictor(Small()))
    for more, words in (
        (["--workers", "2"], "add it, or leave them out"),
        (["--engine", "dask"], "not a known engine"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["predict", "m", str(tmp_path / "a.png"), "-o", str(tmp_path / "o"), *more])
        assert end.value.code == EXIT_CODES[UsageError]
        assert words in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit):
        main(["predict", "m", str(tmp_path / "a.png"), "-o", str(tmp_path / "o"), "--engine", "ray"])
    assert "pip install 'fullyconv[ray]'" in capsys.readouterr().err
