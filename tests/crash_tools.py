"""Shims over the system calls that a save makes: count them, die at one, fail one, or record them all and replay what
a power loss may leave (writes and renames that were not fsynced may be missing, torn or applied in any combination)."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fullyconv import checkpoint
from fullyconv.checkpoint import RunDirectory
from fullyconv.files import disk

# Every function of `os` through which a save reaches the disk; writes and directory changes, reads and closes alike.
CALLS = (
    "open", "write", "pwrite", "fsync", "ftruncate", "mkdir", "rename", "symlink", "unlink", "rmdir", "close",
    "scandir", "listdir", "statvfs", "fstat", "readlink",
)  # fmt: skip
NAMES = ("a", "b", "c")


def tensors(step: int, size: int = 40) -> dict[str, Any]:
    return {name: np.full((size + i,), step * 10 + i, np.float32) for i, name in enumerate(NAMES)}


def save(run: RunDirectory, step: int, best: bool = False, size: int = 40) -> None:
    """One acknowledged step: a row of the log, then a checkpoint."""
    run.log({"step": step, "loss": 1 / step})
    run.save(
        step,
        tensors=tensors(step, size),
        config={"step": step},
        preprocessor={"mean": [0]},
        card=f"# step {step}\n",
        canary={"input": np.zeros(2, np.float32)},
        state={"step": step, "momentum": np.full(7, step, np.float64)},
        best=best,
    )


def check(path: Path, least: int, best: int | None = None) -> int | None:
    """Resume in `path` and return the step, after checking that everything there is whole and agrees with it."""
    with RunDirectory(path) as run:
        stored = run.resume()
        step = None if stored is None else stored.step
        assert (step or 0) >= least, f"step {least} was acknowledged, {step} is what is left"
        assert [row["step"] for row in run.rows()] == list(range(1, (step or 0) + 1))
        if stored is not None:
            for name, array in tensors(stored.config["step"], stored.header["a"].shape[0]).items():
                assert np.array_equal(stored.tensors[name].numpy(), array)
            assert stored.state["step"] == stored.config["step"] == step
        for link in ("last", "best"):
            if (path / link).is_symlink():
                checkpoint.verify_model(path / link)
        assert best is None or checkpoint.read_model(path / "best").step == best
        return step


class Died(BaseException):
    """Stands for nothing: raised only to leave the shimmed block in the recording of a trace."""


class Shim:
    """Counts the calls under `root`; at call number `at` does `action(name)` in place of it (or before it)."""

    def __init__(self, root: Path, at: int = -1, action: Callable[[str, tuple[Any, ...]], Any] | None = None) -> None:
        self.root, self.at, self.action = str(root), at, action
        self.calls: list[str] = []
        self.fds: set[int] = set()
        self.real: dict[str, Any] = {name: getattr(os, name) for name in CALLS}
        self.exchange = disk.exchange

    def concerns(self, arguments: tuple[Any, ...]) -> bool:
        first = arguments[0] if arguments else None
        if isinstance(first, int):
            return first in self.fds
        return isinstance(first, str | os.PathLike) and os.fspath(first).startswith(self.root)

    def wrap(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "symlink":
                concerned = self.concerns(arguments[1:])
            else:
                concerned = self.concerns(arguments)
            if not concerned:
                return real(*arguments, **options)
            self.calls.append(name)
            if self.action is not None and self.due(len(self.calls) - 1, name):
                self.action(name, arguments)
            if name == "fsync":
                return None  # these tests see what the process sees, so the disk need not be waited for
            result = real(*arguments, **options)
            if name == "open":
                self.fds.add(result)
            elif name == "close":
                self.fds.discard(arguments[0])
            return result

        return call

    def due(self, index: int, name: str) -> bool:
        return index == self.at

    @contextlib.contextmanager
    def installed(self) -> Iterator[Shim]:
        with contextlib.ExitStack() as stack:
            for name, real in self.real.items():
                stack.enter_context(mock.patch.object(os, name, self.wrap(name, real)))
            stack.enter_context(mock.patch.object(disk, "exchange", self.wrap("exchange", self.exchange)))
            yield self


class Lasting(Shim):
    """Fails call `at` and every later call that could change the disk: a disk that is full or read-only stays so."""

    CHANGING = frozenset({"write", "pwrite", "mkdir", "symlink", "rename", "exchange", "unlink", "rmdir", "fsync"})

    def due(self, index: int, name: str) -> bool:
        return index == self.at or (index > self.at and name in self.CHANGING)


def fail_with(number: int) -> Callable[[str, tuple[Any, ...]], Any]:
    def action(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "close":  # the descriptor is gone whatever close says
            os_close(arguments[0])
        raise OSError(number, os.strerror(number))

    return action


os_close, os_write = os.close, os.write


def die(name: str, arguments: tuple[Any, ...]) -> None:
    """kill -9 at this call; of a write, half has reached the file."""
    if name == "write":
        os_write(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def in_fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its wait status (0: it came to its end)."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


# The power-loss model


class Disk:
    """What was asked of the disk, in order. Inodes are integers; 0 is the root directory of the trace."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[tuple[Any, ...]] = []
        self.inodes: dict[str, int] = {"": 0}
        self.kinds: dict[int, Any] = {0: "dir"}
        self.fds: dict[int, int] = {}

    def name(self, path: Any) -> str:
        relative = os.path.relpath(os.fspath(path), self.root)
        return "" if relative == "." else relative

    def new(self, path: Any, kind: Any) -> int:
        self.inodes[self.name(path)] = inode = len(self.kinds)
        self.kinds[inode] = kind
        return inode

    def parent(self, path: Any) -> tuple[int, str]:
        folder, _, last = self.name(path).rpartition("/")
        return self.inodes[folder], last

    def move(self, source: Any, target: Any) -> None:
        old, new = self.name(source), self.name(target)
        for name in [n for n in self.inodes if n == new or n.startswith(new + "/")]:
            del self.inodes[name]
        for name in [n for n in self.inodes if n == old or n.startswith(old + "/")]:
            self.inodes[new + name[len(old) :]] = self.inodes.pop(name)

    def swap(self, first: Any, second: Any) -> None:
        a, b = self.name(first), self.name(second)
        swapped = {}
        for name, inode in self.inodes.items():
            for x, y in ((a, b), (b, a)):
                if name == x or name.startswith(x + "/"):
                    swapped[y + name[len(x) :]] = inode
                    break
            else:
                swapped[name] = inode
        self.inodes = swapped


class Recorder(Shim):
    """Records the calls into a `Disk` while they are carried out."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.disk = Disk(root)

    def mark(self, step: int) -> None:
        self.disk.operations.append(("acknowledged", step))

    def wrap(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if not (self.concerns(arguments) or (name == "symlink" and self.concerns(arguments[1:]))):
                return real(*arguments, **options)
            return getattr(self, f"_{name}", lambda r, *a, **o: r(*a, **o))(real, *arguments, **options)

        return call

    def _open(self, real: Any, path: Any, flags: int, *mode: Any, **options: Any) -> int:
        there = os.path.lexists(path)
        fd: int = real(path, flags, *mode, **options)
        self.fds.add(fd)
        d = self.disk
        if stat.S_ISDIR(self.real["fstat"](fd).st_mode):
            d.fds[fd] = d.inodes[d.name(path)]
        else:
            if not there:
                inode = d.new(path, "file")
                d.operations.append(("link", *d.parent(path), inode))
            inode = d.fds[fd] = d.inodes[d.name(path)]
            if flags & os.O_TRUNC and there:
                d.operations.append(("truncate", inode, 0))
        return fd

    def _write(self, real: Any, fd: int, data: Any) -> int:
        offset = os.lseek(fd, 0, os.SEEK_CUR)
        if self.appending(fd):
            offset = self.real["fstat"](fd).st_size
        count: int = real(fd, data)
        self.disk.operations.append(("write", self.disk.fds[fd], offset, bytes(memoryview(data)[:count])))
        return count

    @staticmethod
    def appending(fd: int) -> bool:
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND)

    def _pwrite(self, real: Any, fd: int, data: Any, offset: int) -> int:
        self.disk.operations.append(("write", self.disk.fds[fd], offset, bytes(data)))
        return int(real(fd, data, offset))

    def _ftruncate(self, real: Any, fd: int, size: int) -> None:
        self.disk.operations.append(("truncate", self.disk.fds[fd], size))
        real(fd, size)

    def _fsync(self, real: Any, fd: int) -> None:
        self.disk.operations.append(("fsync", self.disk.fds[fd]))

    def _close(self, real: Any, fd: int) -> None:
        self.fds.discard(fd)
        real(fd)

    def _mkdir(self, real: Any, path: Any, *mode: Any) -> None:
        real(path, *mode)
        self.disk.operations.append(("link", *self.disk.parent(path), self.disk.new(path, "dir")))

    def _symlink(self, real: Any, to: str, path: Any) -> None:
        real(to, path)
        self.disk.operations.append(("link", *self.disk.parent(path), self.disk.new(path, ("symlink", to))))

    def _rename(self, real: Any, source: Any, target: Any) -> None:
        real(source, target)
        d = self.disk
        d.operations.append(("rename", *d.parent(source), *d.parent(target), d.inodes[d.name(source)]))
        d.move(source, target)

    def _exchange(self, real: Any, first: Any, second: Any) -> None:
        real(first, second)
        d = self.disk
        a, b = d.inodes[d.name(first)], d.inodes[d.name(second)]
        d.operations.append(("exchange", *d.parent(first), *d.parent(second), a, b))
        d.swap(first, second)

    def _unlink(self, real: Any, path: Any) -> None:
        real(path)
        d = self.disk
        d.operations.append(("unlink", *d.parent(path), d.inodes[d.name(path)]))
        del d.inodes[d.name(path)]

    _rmdir = _unlink


def directories(operation: tuple[Any, ...]) -> set[int]:
    """The directories that a change of names touches."""
    if operation[0] in ("link", "unlink"):
        return {operation[1]}
    return {operation[1], operation[3]}


def after_power_loss(operations: list[tuple[Any, ...]], kinds: dict[int, Any], limit: int) -> Iterator[tuple[int, Any]]:
    """(acknowledged step, tree) for every moment of the trace and every combination of what was not yet fsynced.

    Each pending change of names is there or not; each pending write is there, missing, or torn in half. Where there
    are more than `limit` combinations at one moment, that many random ones are taken. A tree is
    {name: bytes | ("symlink", to) | tree}. Equal trees come once per acknowledged step.
    """
    seen: set[Any] = set()
    acknowledged = 0
    for moment in range(len(operations) + 1):
        if moment and operations[moment - 1][0] == "acknowledged":
            acknowledged = operations[moment - 1][1]
        past = operations[:moment]
        pending = [i for i, done in enumerate(is_durable(past)) if not done]
        for choice in combinations([past[i][0] for i in pending], limit, moment):
            tree = replay(past, dict(zip(pending, choice, strict=True)), kinds)
            key = (acknowledged, freeze(tree))
            if key not in seen:
                seen.add(key)
                yield acknowledged, tree


def is_durable(past: list[tuple[Any, ...]]) -> list[bool]:
    """Which operations an fsync has made safe. Renames touching two directories need both."""
    synced_after: list[set[int]] = []
    later: set[int] = set()
    for operation in reversed(past):
        if operation[0] == "fsync":
            later = later | {operation[1]}
        synced_after.append(later)
    durable = []
    for operation, later in zip(past, reversed(synced_after), strict=True):
        if operation[0] in ("write", "truncate"):
            durable.append(operation[1] in later)
        elif operation[0] in ("fsync", "acknowledged"):
            durable.append(True)
        else:
            durable.append(directories(operation) <= later)
    return durable


def combinations(names: list[str], limit: int, seed: int) -> Iterator[tuple[float, ...]]:
    """1.0 applied, 0.0 dropped, 0.5 torn (writes)."""
    choices = [(1.0, 0.0, 0.5) if name == "write" else (1.0, 0.0) for name in names]
    total = np.prod([len(c) for c in choices], dtype=float)
    if total <= limit:
        yield from itertools.product(*choices)
        return
    rng = random.Random(seed)
    yield tuple(1.0 for _ in choices)
    yield tuple(0.0 for _ in choices)
    for i in range(len(choices)):  # all but one, and one alone
        yield tuple(0.0 if j == i else 1.0 for j in range(len(choices)))
        yield tuple(1.0 if j == i else 0.0 for j in range(len(choices)))
    for _ in range(limit):
        yield tuple(rng.choice(c) for c in choices)


def replay(past: list[tuple[Any, ...]], chosen: dict[int, float], kinds: dict[int, Any]) -> Any:
    folders: dict[int, dict[str, int]] = {i: {} for i, kind in kinds.items() if kind == "dir"}
    data: dict[int, bytearray] = {}
    for index, operation in enumerate(past):
        share = chosen.get(index, 1.0)
        if share == 0.0 or operation[0] in ("fsync", "acknowledged"):
            continue
        if operation[0] == "write":
            _, inode, offset, content = operation
            content = content[: int(len(content) * share)]
            file = data.setdefault(inode, bytearray())
            file.extend(b"\0" * (offset - len(file)))
            file[offset : offset + len(content)] = content
        elif operation[0] == "truncate":
            del data.setdefault(operation[1], bytearray())[operation[2] :]
        else:
            rename_in(folders, operation)
    return build(0, folders, data, kinds)


def rename_in(folders: dict[int, dict[str, int]], operation: tuple[Any, ...]) -> None:
    kind = operation[0]
    if kind == "link":
        folders[operation[1]][operation[2]] = operation[3]
    elif kind == "unlink" and folders[operation[1]].get(operation[2]) == operation[3]:
        del folders[operation[1]][operation[2]]
    elif kind == "rename":
        _, d1, n1, d2, n2, inode = operation
        if folders[d1].get(n1) == inode:
            del folders[d1][n1]
            folders[d2][n2] = inode
        else:  # its creation under the old name was never written, but the rename was: journals log the final name
            folders[d2][n2] = inode
    elif kind == "exchange":
        _, d1, n1, d2, n2, a, b = operation
        folders[d1][n1], folders[d2][n2] = b, a


def build(inode: int, folders: dict[int, dict[str, int]], data: dict[int, bytearray], kinds: dict[int, Any]) -> Any:
    kind = kinds[inode]
    if kind == "dir":
        names = folders[inode]
        return {n: build(i, folders, data, kinds) for n, i in names.items() if not n.startswith(disk.PREFIX)}
    return bytes(data.get(inode, b"")) if kind == "file" else kind


def freeze(tree: Any) -> Any:
    return tuple(sorted((n, freeze(t)) for n, t in tree.items())) if isinstance(tree, dict) else tree


def materialise(tree: Any, path: Path) -> None:
    if isinstance(tree, dict):
        path.mkdir()
        for name, child in tree.items():
            materialise(child, path / name)
    elif isinstance(tree, tuple):
        path.symlink_to(tree[1])
    else:
        path.write_bytes(tree)


FAULTS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EROFS", "EDQUOT")}
