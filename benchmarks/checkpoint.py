"""What a save and a load cost: ours against a plain safetensors write plus one sha256 pass, interleaved in one run.

    python benchmarks/checkpoint.py [--megabytes 540] [--rounds 5] [--directory DIR] [--json FILE]

Both write the same tensors to the same disk and both are made durable (the plain write is fsynced too; its time
without fsync is given beside it). Medians; ratios are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fullyconv import checkpoint
from fullyconv.files import sha256_file


def network(megabytes: int) -> dict[str, torch.Tensor]:
    """Tensors like FCN-VGG16's: one that holds three quarters of all, and many small ones."""
    total = megabytes * 250_000
    tensors = {"fc6.weight": torch.randn(total * 3 // 4)}
    return tensors | {f"conv{i}.weight": torch.randn(total // 4 // 40) for i in range(40)}


def plain(tensors: dict[str, torch.Tensor], path: Path, durable: bool) -> None:
    save_file(tensors, path)
    if durable:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    sha256_file(path)


def plain_load(path: Path) -> None:
    sha256_file(path)
    for tensor in load_file(path).values():
        tensor.sum()  # the file is memory-mapped: make it really come


def our_load(path: Path) -> None:
    for tensor in checkpoint.read_model(path).tensors.values():
        tensor.sum()


def measure(rounds: int, tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each task; the tasks take turns, the disk is idle before each."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for i in range(rounds + 1):
        for name, task in tasks.items():
            os.sync()
            start = time.perf_counter()
            task()
            if i:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=540)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tensors = network(options.megabytes)
    root = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        ours, theirs = root / "ours", root / "plain.safetensors"
        tasks: dict[str, Callable[[], object]] = {
            "plain write, sha256": lambda: plain(tensors, theirs, durable=False),
            "plain write, fsync, sha256": lambda: plain(tensors, theirs, durable=True),
            "fullyconv save": lambda: checkpoint.write_model(
                ours, tensors=tensors, config={}, preprocessor={}, card="# benchmark\n"
            ),
            "plain sha256, load": lambda: plain_load(theirs),
            "fullyconv load": lambda: our_load(ours),
        }
        seconds = measure(options.rounds, tasks)
    finally:
        shutil.rmtree(root)
    result = {
        "megabytes": options.megabytes,
        "rounds": options.rounds,
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine(), "system": platform.system()},
        "torch": torch.__version__,
        "seconds": seconds,
        "save_ratio": round(seconds["fullyconv save"] / seconds["plain write, fsync, sha256"], 3),
        "save_ratio_without_fsync": round(seconds["fullyconv save"] / seconds["plain write, sha256"], 3),
        "load_ratio": round(seconds["fullyconv load"] / seconds["plain sha256, load"], 3),
    }
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    if result["save_ratio"] > 1.1:
        print("a save costs more than 10 % over a durable plain write and a sha256 pass", file=sys.stderr)


if __name__ == "__main__":
    main()
