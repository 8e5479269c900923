"""The command line asks for huge pages before torch loads, and the kernel gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGES = """
from fullyconv.allocator import huge_pages
huge_pages()
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
def test_large_tensors_lie_on_huge_pages() -> None:
    assert int(run(PAGES)) >= 32 * 1024  # half of the 64 MiB tensor, in KiB: the rest may not have been free


def test_the_command_line_asks_before_torch_is_loaded() -> None:
    assert run(ORDER) == "1"


def test_the_users_own_choice_stays() -> None:
    assert run(ORDER, THP_MEM_ALLOC_ENABLE="0") == "0"
