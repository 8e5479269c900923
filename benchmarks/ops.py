"""Labels and loss from coarse scores, beside torch's own ways, interleaved in one run: medians, ratios, extra memory.

    python benchmarks/ops.py [--rounds 7] [--json FILE]

Rivals: F.interpolate + argmax(1), F.interpolate + max(1).indices, F.interpolate + F.cross_entropy, both ways.
Scores are at stride 8: "noise" (every class everywhere, the worst case of pruning) and "smooth" (blobs, as a trained
network makes). Memory is the growth of the process's peak during one call, each in a fresh process, without the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fullyconv import ops

SIZES = ((21, 500, 500), (19, 1024, 2048), (150, 1024, 1024))
STRIDE, OFFSET = 8, 4


def inputs(classes: int, height: int, width: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores 1 K h w and labels 1 H W (bytes)."""
    make = torch.Generator().manual_seed(0)
    h, w = -(-height // STRIDE), -(-width // STRIDE)
    if kind == "noise":
        scores = torch.randn(1, classes, h, w, generator=make)
    else:
        blobs = torch.randn(1, classes, h // 8 + 2, w // 8 + 2, generator=make) * 4
        scores = F.interpolate(blobs, (h, w), mode="bicubic") + 0.05 * torch.randn(1, classes, h, w, generator=make)
    return scores, torch.randint(0, classes, (1, height, width), generator=make, dtype=torch.uint8)


def stock_scores(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What everyone does: interpolate, then crop to the image."""
    full = F.interpolate(scores, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    return full[:, :, : size[0], : size[1]]


def contestants(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Name -> one call; names begin with the operation."""
    size = (labels.shape[1], labels.shape[2])
    wide = labels.to(torch.int64)

    def fused(impl: str) -> Any:
        return ops.upsample_argmax(scores, size, STRIDE, OFFSET, "replicate", impl)

    def loss(impl: str | None) -> Any:
        leaf = scores.clone().requires_grad_()
        if impl is None:
            value = F.cross_entropy(stock_scores(leaf, size), wide, ignore_index=255)
        else:
            value = ops.upsample_cross_entropy(leaf, labels, STRIDE, OFFSET, border="replicate", impl=impl)
        value.backward()
        return leaf.grad

    return {
        "labels interpolate+argmax": lambda: stock_scores(scores, size).argmax(1),
        "labels interpolate+max": lambda: stock_scores(scores, size).max(1).indices,
        "labels numba": lambda: fused("numba"),
        "labels chunked": lambda: fused("chunked"),
        "loss interpolate+cross_entropy": lambda: loss(None),
        "loss numba": lambda: loss("numba"),
        "loss chunked": lambda: loss("chunked"),
        "scores interpolate": lambda: stock_scores(scores, size),
        "scores upsample": lambda: ops.upsample(scores, size, STRIDE, OFFSET, "replicate"),
    }


def timed(calls: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each, one call of each per round."""
    for call in calls.values():
        call()
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = clock()
            call()
            seen[name].append((clock() - begin) * 1e3)
    return {name: statistics.median(times) for name, times in seen.items()}


def extra_memory(case: int, kind: str, name: str) -> float:
    """MiB by which the peak grows during one call in a fresh process, caches warm from a call on a small map."""
    command = [sys.executable, __file__, "--memory", str(case), kind, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_memory(case: int, kind: str, name: str) -> float:
    contestants(*inputs(SIZES[case][0], 64, 96, kind))[name]()
    call = contestants(*inputs(*SIZES[case], kind))[name]
    # The kernel's high-water mark can be set back to what is in use now; where it cannot, growth beyond it counts.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the peak could not be reset: figures are lower bounds", file=sys.stderr)
    before = peak()
    call()
    return peak() - before


def peak() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def gradient_errors() -> dict[str, float]:
    """Relative distance of each gradient from float64's, 21 x 500 x 500."""
    scores, labels = inputs(21, 500, 500, "noise")

    def gradient(scores: torch.Tensor, impl: str) -> torch.Tensor:
        leaf = scores.clone().requires_grad_()
        ops.upsample_cross_entropy(leaf, labels, STRIDE, OFFSET, border="replicate", impl=impl).backward()
        assert leaf.grad is not None
        return leaf.grad.double()

    exact = gradient(scores.double(), "reference")
    calls = contestants(scores, labels)
    found = {
        "stock float32": calls["loss interpolate+cross_entropy"]().double(),
        "numba": gradient(scores, "numba"),
        "chunked": gradient(scores, "chunked"),
    }
    return {name: float((g - exact).norm() / exact.norm()) for name, g in found.items()}


def machine() -> dict[str, Any]:
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def report(size: tuple[int, int, int], kind: str, times: dict[str, float], memory: dict[str, float]) -> None:
    print(f"\n{' x '.join(map(str, size))}, {kind}")
    for name, ms in times.items():
        rivals = [r for r in times if r.split()[0] == name.split()[0] and "interpolate" in r and r != name]
        ratios = "  ".join(f"{times[r] / ms:6.1f}x {r.split(' ', 1)[1]}" for r in rivals)
        held = f"{memory[name]:8.1f} MiB" if name in memory else ""
        print(f"  {name:32} {ms:9.2f} ms {held}  {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=range(len(SIZES)), help="which of the three sizes")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU seconds: on a busy machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(measure_memory(int(options.memory[0]), options.memory[1], options.memory[2]))
        return
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": machine(), "clock": clock.__name__, "rounds": options.rounds, "cases": []}
    for case in options.sizes:
        for kind in ("noise", "smooth"):
            calls = contestants(*inputs(*SIZES[case], kind))
            times = timed(calls, options.rounds, clock)
            measured = calls if kind == "noise" else ("labels numba",)
            memory = {name: extra_memory(case, kind, name) for name in measured}
            report(SIZES[case], kind, times, memory)
            result["cases"].append({"size": SIZES[case], "scores": kind, "ms": times, "extra_mib": memory})
    result["gradient_error"] = gradient_errors()
    print("\nrelative error of the gradient against float64:", result["gradient_error"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
