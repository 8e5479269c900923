"""What the machine offers: instruction sets, cores and memory that this process was granted, huge pages.

Whoever needs an instruction set asks here. Processors can be held back to fewer (`held_back`), so that a machine that
has more can stand for one that has not; what is active then is what counts. torch is asked for the processor's sets,
and loaded only for that; without it the system's list is read.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from fullyconv.errors import UnknownName, UsageError

__all__ = [
    "WIDTHS",
    "busy_cores",
    "cores",
    "cores_granted",
    "has_native",
    "held_back",
    "huge_page_setting",
    "instruction_sets",
    "memory",
    "name",
    "numba_note",
    "right_threads",
    "width",
]  # fmt: skip

# By which torch's names a set is known. On x86 all of a group must be there.
SETS = {
    "avx2": ("avx2", "fma3"),
    "avx512": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx512_fp16": ("avx512_fp16",),
    "amx_int8": ("amx_tile", "amx_int8"),
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "amx_fp16": ("amx_tile", "amx_fp16"),
    "neon": ("neon",),
    "sve": ("sve",),
    "arm_bf16": ("bf16",),
    "arm_fp16": ("fp16_arith",),
}
NATIVE = {
    "fp32": (),
    "bf16": ("avx512_bf16", "amx_bf16", "arm_bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "arm_fp16"),
}  # one of them is enough

WIDTHS = ("avx2", "avx512")  # what a processor can be held back to
# The switches by width: oneDNN (convolutions), ATen (everything else of torch), MKL (products), numba (our kernels).
SWITCHES = {
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma",
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx512f,+avx512bw,+avx512vl,+avx512dq",
    },
}  # fmt: skip


def instruction_sets() -> tuple[str, ...]:
    """Those of `SETS` that the processor has and may use here: oneDNN, which convolves, can be held back."""
    able = _capabilities()
    return tuple(s for s, flags in SETS.items() if all(able.get(flag) for flag in flags) and _allowed(s))


def _capabilities() -> dict[str, bool]:
    """What the processor can, under torch's names; by the system's own list where torch is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        lines = (line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("flags"))
        flags = next(lines, ":").split(":", 1)[1].split()
        names = {"fma": "fma3"} | {f"avx512{s}": f"avx512_{s}" for s in ("f", "bw", "vl", "dq")}
        return {names.get(flag, flag): True for flag in flags}
    return dict(torch.cpu.get_capabilities())


def _allowed(instructions: str) -> bool:
    """Whether oneDNN's switch lets it use a set."""
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    family = instructions.partition("_")[0]
    if limit in ("", "DEFAULT", "ALL") or family not in ("avx512", "amx"):
        return True
    if not limit.startswith(("AVX512_CORE", "AVX10")):
        return False
    if family == "amx":
        return "AMX" in limit and (instructions != "amx_fp16" or "AMX_FP16" in limit)
    if instructions == "avx512_fp16":
        return any(name in limit for name in ("FP16", "AMX", "AVX10"))
    if instructions == "avx512_vnni":
        return limit != "AVX512_CORE"
    return instructions != "avx512_bf16" or any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10"))


def width() -> str:
    """The widest instructions that are active: "amx", "avx512_bf16", "avx512", "avx2", "sve", "neon" or "plain"."""
    able = instruction_sets()
    if any(s.startswith("amx") for s in able):
        return "amx"
    return next((s for s in ("avx512_bf16", "avx512", "avx2", "sve", "neon") if s in able), "plain")


def has_native(precision: str) -> bool:
    """Whether the processor computes in "fp32", "bf16" or "fp16" by instructions of its own; else torch imitates them,
    ten to twenty times as slow as float32."""
    sets = NATIVE[precision]
    return not sets or bool(set(sets) & set(instruction_sets()))


def held_back(to: str) -> dict[str, str]:
    """The environment in which a program behaves as on a processor that has no more than `to` (of `WIDTHS`).

    It must be set before the program starts. UsageError where the processor has not even that.
    """
    if to not in WIDTHS:
        raise UnknownName("width", to, WIDTHS)
    if to not in instruction_sets():
        raise UsageError(f"This processor has {width()} at most, so it cannot be held back to {to}; leave it as it is.")
    return dict(SWITCHES[to])


def name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---- what was granted ------------------------------------------------------------------------------------------


def cores() -> int:
    """Cores that this process may run on (`taskset`), whatever share of them a container was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_granted(root: Path = Path("/")) -> float:
    """Cores' worth of time: `cores`, or less where a control group (a container's --cpus) gives less."""
    shares = [q for folder in _groups(root, "cpu") if (q := _quota(folder))]
    return min([float(cores()), *shares])


def right_threads() -> list[str]:
    """Have torch use no more threads than cores were granted: they would wait for each other. What is to be said."""
    try:
        import torch
    except ModuleNotFoundError:  # exported files alone are run, which take no more than are granted
        return []
    asked, granted = torch.get_num_threads(), cores_granted()
    most = max(1, math.ceil(granted))
    if asked <= most:
        return []
    torch.set_num_threads(most)
    message = (
        f"{asked} threads were asked for (OMP_NUM_THREADS, or the machine's cores) but {granted:g} cores are granted"
    )
    return [f"{message} here (taskset, or a container's limit): {most} are used."]


def numba_note() -> str:
    """What to say where numba is missing; empty where it is there."""
    if importlib.util.find_spec("numba"):
        return ""
    return (
        "numba is not installed, so plain torch or numpy upsamples and counts, several times as slow; pip install "
        "numba (on a Python that it has a wheel for)."
    )


def memory(root: Path = Path("/")) -> int:
    """Bytes that this process may take: the machine's, or less where a control group or `ulimit -v` says so."""
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemTotal"):
            found.append(int(line.split()[1]) * 1024)
    for folder in _groups(root, "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            found += [int(text) for text in _lines(folder / file)[:1] if text.isdecimal()]
    if os.name == "posix":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        found += [limit] if limit != resource.RLIM_INFINITY else []
    return min(found, default=0)


def busy_cores() -> float | None:
    """Cores that were busy in the last minute, this process's own work included; None where nobody counts."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def huge_page_setting(root: Path = Path("/")) -> str:
    """The kernel's setting ("always", "madvise", "never"), "none" where it has none."""
    for text in _lines(root / "sys/kernel/mm/transparent_hugepage/enabled"):
        return text.partition("[")[2].partition("]")[0] or "none"
    return "none"


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders that limit this process, from its own control group up (versions 2 and 1)."""
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        place = top / path.strip("/")
        while True:
            yield place
            if place == top or top not in place.parents:
                break
            place = place.parent


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a control group gives; None for no limit."""
    parts = " ".join(_lines(folder / "cpu.max")[:1]).split()
    if not parts:
        parts = [*_lines(folder / "cpu.cfs_quota_us")[:1], *_lines(folder / "cpu.cfs_period_us")[:1]]
    if len(parts) != 2 or not all(p.isdecimal() for p in parts) or not int(parts[1]):
        return None  # "max", or -1
    return int(parts[0]) / int(parts[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
