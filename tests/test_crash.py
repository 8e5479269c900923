"""A crash at any instant leaves the old or the new checkpoint; and each harness finds a writer that breaks this."""

from __future__ import annotations

import errno
import functools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from crash_tools import FAULTS, Lasting, Recorder, Shim, after_power_loss, check, die, fail_with, in_fork, save, tensors
from crash_tools import materialise as put

from fullyconv import checkpoint, tensorfile
from fullyconv.checkpoint import RunDirectory
from fullyconv.errors import DataError, FullyconvError, StorageError
from fullyconv.files import disk

SLOW = pytest.mark.slow
Save = Callable[[RunDirectory], None]


def prepared(path: Path) -> Path:
    """A run with steps 1 (best) and 2, as the last process left it."""
    with RunDirectory(path) as run:
        save(run, 1, best=True)
        save(run, 2)
    return path


def fresh(template: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(template, path, symlinks=True)
    return path


def next_step(run: RunDirectory) -> None:
    """The save under test: a third step that becomes the best, so both links move and step 1 is pruned."""
    save(run, 3, best=True)


def same_step(run: RunDirectory) -> None:
    """The save under test: step 2 once more, in place of the one that `last` points to."""
    run.save(
        2, tensors=tensors(2), config={"step": 2}, preprocessor={"mean": [0]}, card="#", state={"step": 2}, best=True
    )


def large_step(run: RunDirectory) -> None:
    """The save under test: tensors so large that they are hashed by a second thread and written in pieces."""
    save(run, 3, best=True, size=disk.CHUNK // 4 + 1000)


def calls_of(template: Path, path: Path, work: Save) -> list[str]:
    shim = Shim(fresh(template, path))
    with RunDirectory(path) as run:
        run.resume()
        with shim.installed():
            work(run)
    return shim.calls


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("template") / "run")


@pytest.fixture
def ram(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of small saves need no disk."""
    shared = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shared)) if os.access(shared, os.W_OK) else tmp_path
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk: a process that dies or is refused leaves the same files with and without fsync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("work", "new"), [(next_step, 3), *(pytest.param(*w, marks=SLOW) for w in ((same_step, 2), (large_step, 3)))]
)
def test_death_at_every_call_of_a_save_leaves_the_old_or_the_new(
    work: Save, new: int, template: Path, ram: Path
) -> None:
    path = ram / "run"
    calls = calls_of(template, path, work)
    assert len(calls) > 50
    assert {"open", "write", "fsync", "mkdir", "rename", "symlink"} <= set(calls)
    found = set()
    for k in range(len(calls)):

        def saving(k: int = k) -> None:
            with RunDirectory(path) as run:
                run.resume()
                with Shim(path, k, die).installed():
                    work(run)

        fresh(template, path)
        assert in_fork(saving) == signal.SIGKILL
        found.add(check(path, least=2))
        assert not list((path / "checkpoints").glob(f"{disk.PREFIX}*")), "the next run sweeps what was left"
        with RunDirectory(path) as run:  # and training goes on from there
            step = (run.resume() or pytest.fail("nothing left")).step or 0
            save(run, step + 1)
        assert check(path, least=step + 1) == step + 1
    assert found == {2, new}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["ENOSPC", "EIO", *(pytest.param(f, marks=SLOW) for f in ("EROFS", "EDQUOT"))])
@pytest.mark.parametrize("shim", [Shim, pytest.param(Lasting, marks=SLOW)])
@pytest.mark.parametrize(
    ("work", "new"), [(next_step, 3), *(pytest.param(*w, marks=SLOW) for w in ((same_step, 2), (large_step, 3)))]
)
def test_an_error_at_every_call_of_a_save_leaves_the_old_or_the_new(
    work: Save, new: int, shim: type[Shim], fault: str, template: Path, ram: Path
) -> None:
    path = ram / "run"
    calls = calls_of(template, path, work)
    refused = 0
    for k in range(len(calls)):
        fresh(template, path)
        with RunDirectory(path) as run:
            failed = None
            run.resume()
            with shim(path, k, fail_with(FAULTS[fault])).installed():
                try:
                    work(run)
                except FullyconvError as error:
                    failed = error
            if failed is not None:
                assert isinstance(failed, StorageError), (k, calls[k], failed)
                assert str(path) in str(failed)
                refused += 1
            run.close()
        check(path, least=2 if failed else new)
    assert refused > 20


@pytest.mark.usefixtures("quick")
def test_an_error_at_every_call_of_a_resume_is_said_and_changes_nothing(template: Path, ram: Path) -> None:
    path = ram / "run"
    with RunDirectory(fresh(template, path)) as run:
        run.log({"step": 3})
        shim = Shim(path)
        with shim.installed():
            run.resume()
    messages: list[str] = []
    for k in range(len(shim.calls)):
        with RunDirectory(fresh(template, path)) as run:
            run.log({"step": 3})
            with Shim(path, k, fail_with(errno.EIO)).installed():
                try:
                    stored = run.resume()
                except StorageError as error:
                    messages.append(str(error))
                else:
                    assert stored is not None
                    assert stored.step == 2, shim.calls[k]
        assert check(path, least=2) == 2
    assert all(str(path) in sentence for sentence in messages)


def test_a_disk_that_fails_once_can_be_saved_to_again(template: Path, ram: Path) -> None:
    path = fresh(template, ram / "run")
    with RunDirectory(path) as run:
        run.resume()
        with Shim(path, 30, fail_with(errno.ENOSPC)).installed(), pytest.raises(StorageError, match="make room"):
            save(run, 3)
        save_again = RunDirectory.save
        save_again(run, 3, tensors=tensors(3), config={"step": 3}, preprocessor={}, card="", state={"step": 3})
        assert not list((path / "checkpoints").glob(f"{disk.PREFIX}*"))
    check(path, least=3)


def test_a_naive_writer_is_caught_by_the_enumeration(ram: Path) -> None:
    path = ram / "naive.safetensors"

    def naive(step: int) -> None:
        disk.write_file(path, tensorfile.chunks(tensors(step), {}), exclusive=False)

    naive(1)
    shim = Shim(ram)
    with shim.installed():
        naive(1)
    broken = 0
    for k in range(len(shim.calls)):
        naive(1)

        def saving(k: int = k) -> None:
            with Shim(ram, k, die).installed():
                naive(2)

        assert in_fork(saving) == signal.SIGKILL
        try:
            tensorfile.load_tensors(path, numpy=True)
        except FullyconvError:
            broken += 1
    assert broken > 0


# Power loss


def recorded(tmp_path: Path, steps: int) -> Recorder:
    recorder = Recorder(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    with recorder.installed(), RunDirectory(tmp_path / "disk" / "run") as run:
        for step in range(1, steps + 1):
            save(run, step, best=step in (1, 3), size=4)
            recorder.mark(step)
    return recorder


def worst_of(recorder: Recorder, path: Path, limit: int, judge: Callable[[Path, int], object]) -> tuple[int, int]:
    """(states, bad ones) over everything that a power loss may leave."""
    states = bad = 0
    for acknowledged, tree in after_power_loss(recorder.disk.operations, recorder.disk.kinds, limit):
        shutil.rmtree(path, ignore_errors=True)
        put(tree, path)
        states += 1
        try:
            judge(path, acknowledged)
        except (FullyconvError, AssertionError, OSError) as error:
            bad += 1
            if bad == 1:
                print(f"after step {acknowledged}: {error}\n{tree}")
    return states, bad


def resumes(path: Path, acknowledged: int) -> None:
    check(path / "run", least=acknowledged)


def test_power_loss_between_any_two_calls_loses_no_acknowledged_step(ram: Path) -> None:
    states, bad = worst_of(recorded(ram, 3), ram / "after", 12, resumes)
    print(f"{states} states of the disk, {bad} bad")
    assert states > 50
    assert bad == 0


@pytest.mark.slow
def test_every_combination_of_what_a_power_loss_drops_loses_no_acknowledged_step(ram: Path) -> None:
    states, bad = worst_of(recorded(ram, 4), ram / "after", 3_000, resumes)
    print(f"{states} states of the disk, {bad} bad")
    assert states > 200
    assert bad == 0


@pytest.mark.parametrize("missing", ["fsync of files", "fsync of directories"])
def test_power_loss_catches_a_writer_without_fsync(missing: str, ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recorder._fsync

    def fsync(self: Recorder, call: object, fd: int) -> None:
        is_directory = self.disk.kinds[self.disk.fds[fd]] == "dir"
        if is_directory != (missing == "fsync of directories"):
            real(self, call, fd)

    monkeypatch.setattr(Recorder, "_fsync", fsync)
    states, bad = worst_of(recorded(ram, 2), ram / "after", 12, resumes)
    assert bad > 0, states


# kill -9 at random moments


def _say(pipe: int, text: str) -> None:
    os.write(pipe, text.encode())


def killed(path: Path, count: int, work: Callable[[Path, int, Callable[[str], None]], None], judge: Callable[[int], int]
           ) -> tuple[int, int, int]:  # fmt: skip
    """Kill a forked, saving child `count` times at random moments: (kills in mid-write, bad outcomes, steps made)."""
    rng = random.Random(7)
    middle = bad = acknowledged = 0
    longest = 0.5  # seconds; follows what a save takes here, so that kills land before, in and after saves
    for _ in range(count):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            try:
                work(path, acknowledged, functools.partial(_say, write))
            finally:
                os._exit(1)
        os.close(write)
        output = b""
        output = os.read(read, 100)  # the child has begun
        assert output, "the child died of itself"
        start = time.monotonic()
        deadline = start + rng.uniform(0, longest)
        while (left := deadline - time.monotonic()) > 0:
            if select.select([read], [], [], left)[0]:
                output += os.read(read, 65536)
        if done := output.count(b"done"):
            longest = 0.5 * longest + 0.5 * min(2.0, 4 * (time.monotonic() - start) / done)
        else:
            longest = min(2.0, 1.2 * longest)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 65536):
            output += more
        os.close(read)
        words = output.decode().split()
        middle += words[-1].startswith("begin")
        acknowledged = max([acknowledged, *(int(w[4:]) for w in words if w.startswith("done"))])
        try:
            acknowledged = max(acknowledged, judge(acknowledged))
        except (FullyconvError, AssertionError):
            bad += 1
    return middle, bad, acknowledged


def train(path: Path, _: int, say: Callable[[str], None]) -> None:
    """Resume and save step after step, best every third, until killed."""
    with RunDirectory(path) as run:
        stored = run.resume()
        step = (stored.step or 0) if stored else 0
        while True:
            step += 1
            say(f" begin{step}")
            save(run, step, best=step % 3 == 0, size=200_000)
            say(f" done{step}")


def kill_soak(tmp_path: Path, count: int) -> tuple[int, int, int]:
    import torch

    torch.zeros(8).sum()  # the children are forks of a process that has torch, as a trainer's are
    path = tmp_path / "run"
    middle, bad, steps = killed(path, count, train, lambda least: check_steps(path, least))
    print(f"{count} kills, {middle} in mid-write ({middle / count:.0%}), {bad} bad, {steps} steps saved")
    return middle, bad, steps


def check_steps(path: Path, least: int) -> int:
    step = check(path, least) or 0
    with RunDirectory(path) as run:
        assert len(run.steps()) <= 3 + 1
    return step


def test_random_kills_lose_nothing(tmp_path: Path) -> None:
    middle, bad, _ = kill_soak(tmp_path, 12)
    assert bad == 0
    assert middle > 0


@pytest.mark.slow
def test_forty_random_kills_lose_nothing(tmp_path: Path) -> None:
    middle, bad, _ = kill_soak(tmp_path, 40)
    assert bad == 0
    assert middle >= 12


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_thousand_random_kills_lose_nothing(tmp_path: Path) -> None:
    middle, bad, _ = kill_soak(tmp_path, 1000)
    assert bad == 0
    assert middle >= 300


def test_random_kills_catch_a_naive_writer(tmp_path: Path) -> None:
    path = tmp_path / "naive.safetensors"

    def naive(path: Path, step: int, say: Callable[[str], None]) -> None:
        while True:
            step += 1
            say(f" begin{step}")
            disk.write_file(path, tensorfile.chunks(tensors(step, 200_000), {}), exclusive=False)
            say(f" done{step}")

    def judge(_: int) -> int:
        tensorfile.load_tensors(path, numpy=True)
        return 0

    middle, bad, _ = killed(path, 12, naive, judge)
    print(f"naive writer: {bad} of 12 kills ({middle} in mid-write) left nothing to load")
    assert bad > 0


# Real limits of a real system


def test_a_file_size_limit_of_the_system_leaves_the_old_checkpoint(template: Path, tmp_path: Path) -> None:
    path = fresh(template, tmp_path / "run")

    def saving() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with RunDirectory(path) as run:
            run.resume()
            with pytest.raises(StorageError, match="was not saved"):
                save(run, 3, size=5000)
            assert not list((path / "checkpoints").glob(f"{disk.PREFIX}*"))

    assert in_fork(saving) == 0
    assert check(path, least=2) == 2


SMALL_DISK = """
import sys, pathlib, numpy as np
sys.path.insert(0, sys.argv[1])
from crash_tools import save, check
from fullyconv.checkpoint import RunDirectory
from fullyconv.errors import StorageError
from fullyconv.files import disk
path = pathlib.Path(sys.argv[2]) / "run"
with RunDirectory(path) as run:
    save(run, 1)
    for preflight in (True, False):
        if not preflight:
            from fullyconv import tensorfile
            from fullyconv.checkpoint import model
            tensorfile.require_space = model.require_space = lambda *_: None
        try:
            save(run, 2, size=400_000)
        except StorageError as error:
            print(error)
            assert "free" in str(error), error
        else:
            sys.exit("a save larger than the disk succeeded")
        assert not list((path / "checkpoints").glob(disk.PREFIX + "*"))
check(path, least=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs in a namespace of its own")
def test_a_disk_that_is_really_full_is_said_and_survived(tmp_path: Path) -> None:
    mounted = (
        f'mount -t tmpfs -o size=3m none {tmp_path} && exec {sys.executable} -c "$0" {Path(__file__).parent} {tmp_path}'
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mounted, SMALL_DISK], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("free") == 2


STRACE_SAVE = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from crash_tools import save, Shim
from fullyconv.checkpoint import RunDirectory
path = pathlib.Path(sys.argv[2]) / "run"
run = RunDirectory(path)
save(run, 1)
run.close()
import os
run = RunDirectory(path)
shim = Shim(path)
with shim.installed():
    os.write(2, b"")
    os.sync_marker = os.getppid()
    save(run, 2)
    os.getppid()
changing = {"write", "pwrite", "mkdir", "rename", "exchange", "symlink", "unlink", "rmdir", "ftruncate"}
print(sum(name in changing for name in shim.calls))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_shim_sees_every_system_call_that_changes_the_disk(tmp_path: Path) -> None:
    """The kernel's own list of one save (strace) holds exactly as many changes as the shim counted."""
    trace = tmp_path / "trace"
    kinds = "write,pwrite64,writev,mkdir,mkdirat,rename,renameat,renameat2,symlink,symlinkat,unlink,unlinkat,rmdir"
    done = subprocess.run(
        ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={kinds},ftruncate,truncate,getppid,link,linkat",
         sys.executable, "-c", STRACE_SAVE, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0 and "ptrace" in done.stderr:
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    marks = [i for i, line in enumerate(lines) if "getppid" in line]
    between = [line for line in lines[marks[-2] + 1 : marks[-1]] if str(tmp_path) in line]
    assert len(between) == int(done.stdout), between


def test_a_reader_during_saves_always_finds_a_whole_model(tmp_path: Path) -> None:
    """Readers hold no lock: whatever instant they look at `last`, it loads."""
    path = prepared(tmp_path / "run")
    assert checkpoint.read_model(path / "last").tensors  # and torch is loaded before the race begins

    def saving() -> None:
        with RunDirectory(path) as run:
            run.resume()
            for step in range(3, 60):
                save(run, step, best=step % 2 == 0)

    child = os.fork()
    if not child:
        try:
            saving()
        finally:
            os._exit(0)
    seen = set()

    def whole(stored: checkpoint.Stored) -> int:
        step: int = stored.config["step"]
        assert np.array_equal(stored.tensors["a"].numpy(), tensors(step)["a"])
        return step

    while not os.waitpid(child, os.WNOHANG)[0]:
        seen.add(checkpoint.following(path / "last", whole))
    assert len(seen) > 1


def test_what_a_link_led_to_may_go_while_it_is_read_but_not_what_was_named_itself(tmp_path: Path) -> None:
    """The trainer prunes between a reader's first look and its reading of the weights."""
    path = prepared(tmp_path / "run")
    gone = []

    def reading(stored: checkpoint.Stored) -> int:
        if not gone:
            gone.append(stored.directory)
            with RunDirectory(path) as run:
                run.resume()
                for step in (3, 4, 5):
                    save(run, step)
            assert not stored.directory.exists()
        return int(stored.config["step"] + 0 * len(stored.tensors))

    assert checkpoint.following(path / "last", reading) == 5
    gone.clear()
    named = (path / "last").resolve()

    def removing(stored: checkpoint.Stored) -> None:
        shutil.rmtree(named)
        stored.tensors  # noqa: B018

    with pytest.raises(DataError, match=r"model\.safetensors"):
        checkpoint.following(named, removing)
