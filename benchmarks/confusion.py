"""Counting a confusion table of 21 classes, 500 x 500 bytes with ignored pixels, beside the usual ways, in one run.

    python benchmarks/confusion.py [--rounds 30] [--json FILE]

Rivals: torch.bincount over masked int64 pairs, the original release's fast_hist (numpy), scikit-learn, and
torchmetrics where installed (pip install --no-deps --target DIR torchmetrics lightning-utilities, and PYTHONPATH=DIR).
Medians of calls, five in a row and then the next one's turn; every table is checked against the others first.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
import numpy as np
import sklearn
import torch
from sklearn.metrics import confusion_matrix

from fullyconv import metrics

CLASSES, SIZE = 21, (500, 500)
IN_A_ROW = 5  # calls before the next one's turn: the caches are its own in most of them


def inputs(smooth: bool) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Blobs with a tenth ignored; predictions are moved by three pixels (smooth), or one pixel in ten is drawn."""
    random = np.random.default_rng(0)
    labels = np.kron(random.integers(0, CLASSES, (20, 20)), np.ones((25, 25))).astype(np.uint8)
    drawn = np.where(random.random(SIZE) < 0.9, labels, random.integers(0, CLASSES, SIZE)).astype(np.uint8)
    predictions = np.ascontiguousarray(np.roll(labels, 3, 1)) if smooth else drawn
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


def contestants(smooth: bool) -> dict[str, Callable[[], Any]]:
    labels, predictions = inputs(smooth)
    truth, guess = torch.from_numpy(labels), torch.from_numpy(predictions)

    def by_sklearn() -> Any:
        counted = labels != 255
        return confusion_matrix(labels[counted], predictions[counted], labels=np.arange(CLASSES))

    calls: dict[str, Callable[[], Any]] = {
        "ours numba": lambda: metrics.confusion(labels, predictions, CLASSES, impl="numba"),
        "ours numpy": lambda: metrics.confusion(labels, predictions, CLASSES, impl="numpy"),
        "ours torch": lambda: metrics.confusion(truth, guess, CLASSES, impl="torch"),
        "torch.bincount": lambda: torch_bincount(truth, guess),
        "fast_hist": lambda: fast_hist(labels, predictions),
        "scikit-learn": by_sklearn,
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
    found = {
        name: measure(contestants(smooth), options.rounds, clock)
        for name, smooth in (("smooth predictions", True), ("one pixel in ten drawn at random", False))
    }
    for name, rates in found.items():
        print(name)
        for who, rate in rates.items():
            print(f"  {who:16} {rate:8.0f} Mpixel/s   {rate / rates['torch.bincount']:6.1f}x torch.bincount")
    result = {
        "machine": contest.machine(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__},
        "clock": clock.__name__,
        "threads": torch.get_num_threads(),
        "mpixel_per_s": found,
        "ours_numba_over": {
            name: {who: round(rates["ours numba"] / rate, 1) for who, rate in rates.items()}
            for name, rates in found.items()
        },
    }
    contest.finish(result, options.json)


def measure(calls: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Mpixel/s by contestant, medians of interleaved calls; all must count the same."""
    expected = np.asarray(calls["fast_hist"]())
    for name, call in calls.items():
        assert (np.asarray(call()) == expected).all(), name
    seen: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(IN_A_ROW):
                begin = clock()
                call()
                seen[name].append(clock() - begin)
    return {name: round(SIZE[0] * SIZE[1] / statistics.median(times) / 1e6, 1) for name, times in seen.items()}


if __name__ == "__main__":
    main()
