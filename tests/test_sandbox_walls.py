"""Each wall around the child, by itself and all together, against what native code might try; and with none, it works.

What is not "done" without a wall proves nothing and is not counted; on a usual Linux everything is done.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sandbox_attempts
from sandbox_attempts import ATTEMPTS, DEADLY, FILES, OTHERS, READS

from fullyconv import sandbox
from fullyconv.sandbox import calls, landlock, seccomp

pytestmark = pytest.mark.skipif(not seccomp.supported(), reason="these walls are Linux's")
Outcomes = dict[str, dict[str, Any]]
ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    folder = tmp_path_factory.mktemp("attempts")
    root = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{root.parent}:{root}"}
    command = [
        sys.executable,
        sandbox_attempts.__file__,
        str(folder),
        "free",
        "seccomp",
        "landlock",
        "namespaces",
        "all",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    return dict(json.loads(done.stdout))


def held(outcomes: Outcomes, mode: str, names: set[str]) -> set[str]:
    """Those of `names` that work in the open and are refused behind the walls of `mode`; all must be."""
    live = {name for name in names if outcomes["free"][name] == "done"}
    escaped = {name: answer for name in live if (answer := outcomes[mode][name]) not in ("refused", "SIGSYS")}
    assert not escaped
    return live


def test_without_walls_the_attempts_succeed(outcomes: Outcomes) -> None:
    assert len(ATTEMPTS) >= 70
    live = {name for name, answer in outcomes["free"].items() if answer == "done"}
    assert len(live) > 50, outcomes["free"]
    assert live >= {"write the file", "read another file", "signal", "renice", "flock", "alarm clock", "fork",
                    "signals of a descriptor to another", "survive the parent", "local socket"}  # fmt: skip


def test_seccomp_alone_stops_all_but_reading_other_files(outcomes: Outcomes) -> None:
    assert len(held(outcomes, "seccomp", ATTEMPTS.keys() - READS.keys())) > 45
    for name in held(outcomes, "seccomp", set(DEADLY)):
        assert outcomes["seccomp"][name] == "SIGSYS", name


def test_landlock_alone_stops_files_from_being_opened_or_changed(outcomes: Outcomes) -> None:
    if outcomes["kernel"]["landlock"] < 3:
        pytest.skip("this kernel's Landlock does not know all of these")
    assert held(outcomes, "landlock", FILES.keys() | READS.keys()) >= {"read another file", "remove", "truncate"}


def test_namespaces_alone_put_other_processes_out_of_reach(outcomes: Outcomes) -> None:
    if not outcomes["kernel"]["namespaces"]:
        pytest.skip("this system gives no namespaces")
    assert held(outcomes, "namespaces", set(OTHERS)) >= {"signal", "renice"}


def test_all_walls_together_stop_everything(outcomes: Outcomes) -> None:
    names = ATTEMPTS.keys() - (set() if outcomes["kernel"]["landlock"] else READS.keys())
    assert len(held(outcomes, "all", set(names))) > 45


def test_which_walls_stand_is_told_and_every_one_that_the_kernel_has_stands(outcomes: Outcomes) -> None:
    answer = sandbox.walls()
    assert answer["seccomp"] is True
    assert answer["landlock"] == outcomes["kernel"]["landlock"]
    assert {"pid", "net", "ipc"} <= set(answer["namespaces"]) or not outcomes["kernel"]["namespaces"]


def test_no_folder_of_the_users_counts_as_a_library() -> None:
    found = landlock.libraries()
    assert os.path.realpath(os.path.dirname(os.__file__)) in found
    assert not {"/", os.path.realpath(Path.home()), os.path.realpath(Path.cwd()), "/tmp", "/etc"} & set(found)


# The filter itself, on both processors: a few lines that run it


def decision(machine: str, name: str | int, *arguments: int, arch: int | None = None) -> int:
    """What the filter says to a call with these arguments, as the kernel would run it."""
    which, own = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[machine]
    number = name if isinstance(name, int) else calls.NUMBERS[name][which]
    assert number is not None
    words = [number, own if arch is None else arch, 0, 0]
    for value in (*arguments, *[0] * (6 - len(arguments))):
        words += [value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF]
    program, at, held = seccomp.program(machine, 77), 0, 0
    while True:
        code, yes, no, constant = program[at]
        if code == 0x06:
            return constant
        if code == 0x20:
            held = words[constant // 4]
        elif code == 0x54:
            held &= constant
        else:
            test = {0x15: held == constant, 0x35: held >= constant, 0x45: bool(held & constant)}[code]
            at += yes if test else no
        at += 1


CLONE_THREAD = 0x3D0F00
CASES: list[tuple[str, tuple[int, ...], int]] = [
    ("read", (), ALLOW), ("futex", (), ALLOW), ("exit_group", (), ALLOW), ("seccomp", (), EPERM),
    ("ptrace", (), KILL), ("mount", (), KILL), ("bpf", (), KILL), ("clone3", (), ENOSYS), ("openat2", (), ENOSYS),
    ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), ALLOW), ("openat", (0, 0, os.O_WRONLY), EPERM),
    ("openat", (0, 0, os.O_RDWR), EPERM), ("openat", (0, 0, os.O_CREAT), EPERM), ("openat", (0, 0, os.O_TRUNC), EPERM),
    ("openat", (0, 0, os.O_PATH), EPERM), ("openat", (0, 0, os.O_TMPFILE), EPERM),
    ("openat", (0, 0, os.O_ASYNC), EPERM),
    ("clone", (CLONE_THREAD,), ALLOW), ("clone", (CLONE_THREAD | 0x400000,), ALLOW), ("clone", (17,), EPERM),
    ("clone", (CLONE_THREAD | 0x10000000,), EPERM), ("clone", (0x10000,), EPERM),
    ("kill", (77, 9), ALLOW), ("kill", (78, 9), EPERM), ("kill", (0, 9), EPERM), ("kill", (0xFFFFFFFF, 9), EPERM),
    ("tgkill", (77, 77, 6), ALLOW), ("tgkill", (78, 78, 6), EPERM),
    ("fcntl", (3, 3), ALLOW), ("fcntl", (3, 1030), ALLOW), ("fcntl", (3, 4), EPERM), ("fcntl", (3, 8), EPERM),
    ("fcntl", (3, 10), EPERM), ("fcntl", (3, 6), EPERM), ("fcntl", (3, 1024), EPERM), ("fcntl", (3, 1026), EPERM),
    ("ioctl", (3, 0x5401), ALLOW), ("ioctl", (3, 0x40086602), EPERM), ("ioctl", (3, 0x5412), EPERM),
    ("prctl", (15,), ALLOW), ("prctl", (1,), EPERM), ("prctl", (4,), EPERM), ("prctl", (22,), EPERM),
    ("prlimit64", (0, 7, 0, 1 << 40), ALLOW), ("prlimit64", (0, 7, 8), EPERM), ("prlimit64", (0, 7, 1 << 32), EPERM),
    ("mmap", (0, 1, 3), ALLOW), ("mmap", (0, 1, 5), ALLOW), ("mmap", (0, 1, 6), EPERM), ("mmap", (0, 1, 7), EPERM),
    ("mprotect", (0, 1, 3), ALLOW), ("mprotect", (0, 1, 4), EPERM), ("mprotect", (0, 1, 7), EPERM),
    ("sched_getaffinity", (0,), ALLOW), ("sched_getaffinity", (78,), EPERM),
]  # fmt: skip


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_by_call_and_argument_on_both_processors(machine: str) -> None:
    wrong = [(name, arguments) for name, arguments, answer in CASES if decision(machine, name, *arguments) != answer]
    assert not wrong


def test_another_processors_calls_and_x32_end_the_process_and_unknown_calls_do_not_exist() -> None:
    assert decision("x86_64", "read", arch=0x40000003) == KILL  # the 32-bit calls
    assert decision("aarch64", "read", arch=0x40000028) == KILL
    assert decision("x86_64", 0x40000000) == KILL
    for machine in ("x86_64", "aarch64"):
        assert decision(machine, 470) == decision(machine, 9999) == ENOSYS


def test_no_call_that_changes_anything_is_let_through() -> None:
    telling = r"set(?!_robust|_tid)|send|conn|bind|exec|fork|unlink|rename|mkdir|symlink|chmod|chown|trunc|alloc|lock$"
    assert [name for name in calls.ALLOWED if re.search(telling, name)] == []


@pytest.mark.parametrize(
    ("which", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_those_of_the_kernels_headers(which: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    found.setdefault("newfstatat", found.get("fstatat", ""))
    for name, numbers in calls.NUMBERS.items():
        assert found.get(name) == (None if numbers[which] is None else str(numbers[which])), name
