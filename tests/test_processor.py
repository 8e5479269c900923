"""What the machine offers is asked in one place, held back by the documented switches, and read from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fullyconv import processor
from fullyconv.errors import UnknownName, UsageError

AVX2 = {"avx2": True, "fma3": True}
AVX512 = AVX2 | dict.fromkeys(("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"), True)
ZEN4 = AVX512 | {"avx512_bf16": True}
XEON = ZEN4 | {"avx512_fp16": True, "amx_tile": True, "amx_int8": True, "amx_bf16": True}
ARM = {"neon": True, "bf16": True, "fp16_arith": True}


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(switch, raising=False)


@pytest.mark.parametrize(
    ("able", "limit", "width", "bf16", "fp16"),
    [
        ({}, "", "plain", False, False),
        (AVX2, "", "avx2", False, False),
        (AVX2 | {"avx_ne_convert": True}, "", "avx2", False, False),
        (AVX512, "", "avx512", False, False),
        (ZEN4, "", "avx512_bf16", True, False),
        (XEON, "", "amx", True, True),
        (XEON, "AVX2", "avx2", False, False),
        (XEON, "AVX512_CORE", "avx512", False, False),
        (XEON, "avx512_core_bf16", "avx512_bf16", True, False),
        (XEON, "AVX512_CORE_AMX", "amx", True, True),
        (XEON, "DEFAULT", "amx", True, True),
        (ZEN4, "SSE41", "avx2", False, False),
        (ARM, "", "neon", True, True),
        (ARM, "AVX2", "neon", True, True),
    ],
)
def test_what_is_active_is_what_the_processor_has_and_the_switch_allows(
    able: dict[str, bool], limit: str, width: str, bf16: bool, fp16: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor.width() == width
    assert (processor.has_native("fp32"), processor.has_native("bf16"), processor.has_native("fp16")) == (
        True,
        bf16,
        fp16,
    )


def test_a_processor_is_held_back_to_what_it_has_and_to_nothing_more(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: XEON)
    for to in processor.WIDTHS:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        switches = processor.held_back(to)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", switches["ONEDNN_MAX_CPU_ISA"])
        assert processor.width() == to
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AVX2)
    with pytest.raises(UsageError, match="has avx2 at most"):
        processor.held_back("avx512")
    with pytest.raises(UnknownName, match="avx512"):
        processor.held_back("avx511")


@pytest.mark.parametrize(
    ("limit", "exact"), [("", True), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", True), ("AVX2", False)]
)
def test_exact_products_of_bytes_are_active_only_where_the_switch_allows(
    limit: str, exact: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: AVX512 | {"avx512_vnni": True})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert ("avx512_vnni" in processor.instruction_sets()) == exact


@pytest.mark.skipif("avx2" not in processor.instruction_sets(), reason="the processor has no AVX2")
def test_a_program_held_back_to_avx2_computes_with_no_more() -> None:
    """torch and numba themselves say what they use."""
    code = (
        "import torch, numba, fullyconv.processor as p\n"
        "@numba.vectorize(['float32(float32, float32)'])\n"
        "def f(a, b): return a * b + a\n"
        "from numba.core.codegen import get_host_cpu_features\n"
        "from numba.core.registry import cpu_target\n"
        "codegen = cpu_target.target_context.codegen()\n"
        "print(torch.backends.cpu.get_cpu_capability(), p.width(), codegen._tm_features, p.has_native('bf16'))"
    )
    environment = {**os.environ, **processor.held_back("avx2")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["AVX2", "avx2", "+avx2,+fma", "False"], done.stderr


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({}, 4.0),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 4.0),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "0::/gone", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "900000 100000"}, 4.0),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n2:cpu,cpuacct:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/x",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            4.0,
        ),
        ({"proc/self/cgroup": "nonsense", "sys/fs/cgroup/cpu.max": "1 0"}, 4.0),
    ],
)
def test_the_cores_granted_are_the_least_of_affinity_and_quotas(
    files: dict[str, str], granted: float, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(processor, "cores", lambda: 4)
    assert processor.cores_granted(_write(tmp_path, files)) == granted


def test_memory_is_the_least_that_the_machine_and_the_groups_give(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/meminfo": "MemTotal:       1000 kB\nMemFree: 3 kB", "proc/self/cgroup": "0::/a"})
    assert processor.memory(root) == 1_024_000
    _write(root, {"sys/fs/cgroup/a/memory.max": "max", "sys/fs/cgroup/memory.max": "4096"})
    assert processor.memory(root) == 4096


def test_huge_pages_are_what_the_kernel_says(tmp_path: Path) -> None:
    assert processor.huge_page_setting(tmp_path) == "none"
    _write(tmp_path, {"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never"})
    assert processor.huge_page_setting(tmp_path) == "madvise"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_a_process_bound_to_one_core_was_granted_one() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(before)])
        assert processor.cores() == 1
        assert processor.cores_granted() <= 1
    finally:
        os.sched_setaffinity(0, before)
