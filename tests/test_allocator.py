"""The command line asks for huge pages before torch loads, and the kernel gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fullyconv import allocator

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = """
from fullyconv.allocator import request_huge_pages
request_huge_pages()
import torch
kept = torch.ones(1 << 24)
for line in open("/proc/self/smaps_rollup"):
    if line.startswith("AnonHugePages"):
        print(line.split()[1])
"""
ORDER = """
import os, sys
import fullyconv.cli
try: fullyconv.cli.main(["--version"])
except SystemExit: pass
assert "torch" not in sys.modules
print(os.environ["THP_MEM_ALLOC_ENABLE"])
"""


def run(code: str, **more: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"} | more
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split()[-1]


@pytest.mark.skipif(not MODE.exists() or "[never]" in MODE.read_text(), reason="the kernel offers no huge pages")
@pytest.mark.slow
def test_large_tensors_lie_on_huge_pages() -> None:
    assert int(run(PAGES)) >= 32 * 1024  # half of the 64 MiB tensor, in KiB: the rest may not have been free


def test_the_command_line_asks_before_torch_is_loaded() -> None:
    assert run(ORDER) == "1"


def test_the_users_own_choice_stays() -> None:
    assert run(ORDER, THP_MEM_ALLOC_ENABLE="0") == "0"


GAPS = """
import torch
from fullyconv.allocator import give_back
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
blocks = [torch.ones(25_000) for _ in range(1000)]
between = blocks[::100]  # what is kept lies between what is freed, so the heap cannot shrink by itself
del blocks
before = held()
print(give_back(), before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
@pytest.mark.slow
def test_free_memory_between_kept_tensors_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    asked, mib = done.stdout.split()
    assert asked == "True"
    assert int(mib) > 50


def test_other_systems_keep_their_heap(monkeypatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert not allocator.give_back()
    assert not allocator.keep_freed()


KEPT = """
import resource, sys, torch
from fullyconv.allocator import keep_freed
asked = keep_freed() if sys.argv[1] == "keep" else False
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(6):
    before = faults()
    for size in (3 << 22, 1 << 24):  # 48 and 64 MiB, taken and freed as in every step
        torch.ones(size)
print(asked, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
@pytest.mark.slow
def test_what_tensors_leave_is_kept_for_the_next_ones() -> None:
    def last_turn(how: str, **more: str) -> tuple[str, int]:
        environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0", **more}
        done = subprocess.run(
            [sys.executable, "-c", KEPT, how], capture_output=True, text=True, env=environment, check=True
        )
        asked, faults = done.stdout.split()
        return asked, int(faults)

    asked, faults = last_turn("keep")
    assert asked == "True"
    assert faults < 100
    assert last_turn("default")[1] > 10_000  # a page fault for every 4 KiB
    assert last_turn("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"  # the user's own choice


def test_an_older_glibc_is_asked_for_less(monkeypatch) -> None:
    asked = []

    class Older:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            asked.append((name, value))
            return int(name != allocator.M_MMAP_THRESHOLD or value <= allocator.OLDER_LARGEST)

    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: Older)
    assert allocator.keep_freed()
    assert (allocator.M_MMAP_THRESHOLD, allocator.OLDER_LARGEST) in asked
