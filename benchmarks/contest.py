"""Contestants in processes of their own, taking turns: what the measurements beside this file share.

A contestant is a command whose process prints one JSON line when it is ready, then answers every line on its stdin
with {"seconds", "cpu_seconds", "peak_mib"} of some calls, one after the other as in a program that does nothing else:
one that is not counted (others have had the caches, and the system may have lent idle memory elsewhere), then `CALLS`
whose mean is. Rounds go through all contestants in turn, so that a noisy machine is noisy for all; figures are medians,
ratios are medians over medians.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RATIOS = ("times_faster", "times_less_cpu")
CALLS = 3
HUGE = {"THP_MEM_ALLOC_ENABLE": "1"}


def answer(call: Callable[[], Any], **facts: Any) -> None:
    """The contestant's side: run `call` once, report, then a turn for every line that arrives."""
    print(json.dumps({"first": _turn(call, 1), **facts}), flush=True)
    for _ in sys.stdin:
        call()
        print(json.dumps(_turn(call, CALLS)), flush=True)


def _turn(call: Callable[[], Any], calls: int) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds / calls, "cpu_seconds": cpu / calls, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """Of this program itself: ru_maxrss would begin with what the process that started it held."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Contestant:
    """One process; `ready` is what it said of itself, `failed` why it cannot take part."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name, self.failed, self.ready = name, "", {}
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.peak = 0.0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
        )
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.failed = f"ended with exit code {self.process.wait()}"
            return {}
        return dict(json.loads(line))

    def turn(self) -> None:
        if self.failed:
            return
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        found = self._read()
        if found:
            self.seconds.append(found["seconds"])
            self.cpu.append(found["cpu_seconds"])
            self.peak = max(self.peak, found["peak_mib"])

    def close(self) -> None:
        self.process.communicate()


def compete(contestants: Sequence[Contestant], rounds: int) -> dict[str, dict[str, Any]]:
    """{name: {"ms", "least_ms", "cpu_ms" (of all threads), "peak_mib", what it said}} after `rounds` rounds in turn."""
    for done in range(rounds):
        for c in contestants:
            c.turn()
        print(f"round {done + 1} of {rounds}", file=sys.stderr)
    found: dict[str, dict[str, Any]] = {}
    for c in contestants:
        c.close()
        if c.failed or not c.seconds:
            found[c.name] = {"failed": c.failed or "no round was run"}
            continue
        found[c.name] = {
            "ms": round(statistics.median(c.seconds) * 1000, 1),
            "least_ms": round(min(c.seconds) * 1000, 1),
            "cpu_ms": round(statistics.median(c.cpu) * 1000, 1),
            "peak_mib": round(c.peak),
            **{k: v for k, v in c.ready.items() if k != "first"},
        }
    return found


def with_ratios(found: dict[str, dict[str, Any]], rival: str) -> dict[str, dict[str, Any]]:
    """Adds "times_faster" than `rival` to all that ran, and "times_less_cpu", which a busy machine disturbs less."""
    base = found.get(rival, {})
    for figures in found.values():
        for key, ratio in (("ms", "times_faster"), ("cpu_ms", "times_less_cpu")):
            if key in base and key in figures:
                figures[ratio] = round(base[key] / figures[key], 2)
    return found


def hold_back(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the option --width, and start this very program again as held back as it asks for; contestants
    inherit it."""
    parser.add_argument("--width", choices=("avx2", "avx512"), help="hold the processor back to this")
    width = parser.parse_known_args()[0].width
    if not width:
        return
    from fullyconv import processor  # not at the top: rivals have environments of their own

    if processor.width() != width:
        os.environ.update(processor.held_back(width))
        os.execv(sys.executable, [sys.executable, *sys.argv])


def machine() -> dict[str, Any]:
    """The machine and how busy it is: figures made under load say so."""
    from fullyconv import processor

    return {
        "processor": processor.name(),
        "width": processor.width(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def show(title: str, found: Mapping[str, Mapping[str, Any]]) -> None:
    """The table, on stdout."""
    print(title)
    for name, figures in found.items():
        if "failed" in figures:
            print(f"  {name:34s} {figures['failed']}")
            continue
        ratio = "".join(f"  {figures[r]:5.2f} {r.replace('_', ' ')}" for r in RATIOS if r in figures)
        print(f"  {name:28s} {figures['ms']:9.1f} ms  {figures['peak_mib']:6d} MiB{ratio}")


def done(command: Sequence[str]) -> None:
    """Run what a contest needs in a process of its own, so that this one stays small."""
    subprocess.run(command, check=True)


def beside(result: Mapping[str, Any], path: Path | None, facts: Sequence[str]) -> None:
    """Put `result` into the list in `path`: those of another width or with other `facts` stay, and of the same those
    contestants or networks that were not measured this time."""
    if not path:
        return

    def what(r: Mapping[str, Any]) -> list[Any]:
        return [r["machine"]["width"], *(r[fact] for fact in facts)]

    known = json.loads(path.read_text()) if path.exists() else []
    for other in known:
        if what(other) == what(result):
            other["figures"] = {n: f for n, f in other["figures"].items() if n not in result["figures"]}
    finish([*(r for r in known if r["figures"]), result], path)


def finish(result: Mapping[str, Any] | Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """JSON to `path`, where one was asked for."""
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n")
