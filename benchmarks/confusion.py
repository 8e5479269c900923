"""Counting a confusion table of 21 classes, 500 x 500 bytes with ignored pixels, beside the usual ways, in one run.

    python benchmarks/confusion.py [--rounds 30] [--json FILE]

Rivals: torch.bincount over masked int64 pairs, the original release's fast_hist (numpy), scikit-learn, and
torchmetrics where installed. Medians of interleaved calls; every rival's table is checked against ours first.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from fullyconv import metrics

CLASSES, SIZE = 21, (500, 500)


def inputs() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Blobs, mostly predicted right, with a tenth ignored."""
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, CLASSES, (20, 20)), np.ones((25, 25))).astype(np.uint8)
    predictions = np.where(random.random(SIZE) < 0.9, labels, random.integers(0, CLASSES, SIZE)).astype(np.uint8)
    labels[:50] = 255
    return labels, predictions


def torch_bincount(labels: torch.Tensor, predictions: torch.Tensor) -> Any:
    counted = labels != 255
    pair = labels[counted].to(torch.int64) * CLASSES + predictions[counted].to(torch.int64)
    return torch.bincount(pair, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def fast_hist(labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any]) -> Any:
    counted = (labels >= 0) & (labels < CLASSES)
    pair = CLASSES * labels[counted].astype(int) + predictions[counted]
    return np.bincount(pair, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def contestants() -> dict[str, Callable[[], Any]]:
    labels, predictions = inputs()
    truth, guess = torch.from_numpy(labels), torch.from_numpy(predictions)

    def sklearn() -> Any:
        counted = labels != 255
        return confusion_matrix(labels[counted], predictions[counted], labels=np.arange(CLASSES))

    calls: dict[str, Callable[[], Any]] = {
        "ours numba": lambda: metrics.confusion(labels, predictions, CLASSES, impl="numba"),
        "ours numpy": lambda: metrics.confusion(labels, predictions, CLASSES, impl="numpy"),
        "ours torch": lambda: metrics.confusion(truth, guess, CLASSES, impl="torch"),
        "torch.bincount": lambda: torch_bincount(truth, guess),
        "fast_hist": lambda: fast_hist(labels, predictions),
        "scikit-learn": sklearn,
    }
    if importlib.util.find_spec("torchmetrics"):
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        def torchmetrics() -> Any:
            return multiclass_confusion_matrix(guess.long(), truth.long(), CLASSES, ignore_index=255)

        calls["torchmetrics"] = torchmetrics
    else:
        print("torchmetrics is not installed: not measured")
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, CPU seconds: on a busy machine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    calls = contestants()
    expected = np.asarray(calls["fast_hist"]())
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        assert (np.asarray(call()) == expected).all(), name
    for _ in range(options.rounds):
        for name, call in calls.items():
            begin = clock()
            call()
            seen[name].append(clock() - begin)
    rates = {name: SIZE[0] * SIZE[1] / statistics.median(times) / 1e6 for name, times in seen.items()}
    for name, rate in rates.items():
        print(f"{name:16} {rate:8.0f} Mpixel/s   {rate / rates['torch.bincount']:6.1f}x torch.bincount")
    if options.json:
        result = {
            "machine": {"cpu": cpu(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]},
            "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
            "clock": clock.__name__,
            "mpixel_per_s": rates,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


if __name__ == "__main__":
    main()
