"""AlexNet on a 10 x 10 grid of windows: one convolutionalised pass against the same 100 windows one by one.

    python benchmarks/convolutionalise.py [--threads N] [--json FILE]

The paper (section 4.1): 22 ms for the grid against 1.2 ms a window in efficient batches, more than 5 times faster, and
nearly 25 times against lone windows (5.4 ms). Random weights; time does not depend on them. Windows of 227 pixels, 32
apart, make the image 515 x 515 (theirs is 500 x 500, padded). Times are the processor's own (user + system), so
that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision

import fullyconv as fc

WINDOW, STRIDE, GRID = 227, 32, 10


def fastest(call: Callable[[], Any], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    classifier = torchvision.models.alexnet().eval()
    dense = fc.convolutionalise(classifier, WINDOW, windows=2)
    side = WINDOW + (GRID - 1) * STRIDE
    image = torch.randn(1, 3, side, side)
    places = [(i * STRIDE, j * STRIDE) for i in range(GRID) for j in range(GRID)]
    windows = torch.cat([image[:, :, y : y + WINDOW, x : x + WINDOW] for y, x in places])
    with torch.inference_mode():
        assert dense(image).shape[2:] == (GRID, GRID)
        whole = fastest(lambda: dense(image), arguments.runs)
        batches = fastest(lambda: [classifier(b) for b in windows.split(25)], arguments.runs)
        lone = fastest(lambda: [classifier(w[None]) for w in windows], arguments.runs)
    result = {
        "network": "torchvision alexnet, random weights",
        "grid": f"{GRID}x{GRID} windows of {WINDOW} px in {side}x{side} (HxW)",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads",
        "torch": torch.__version__,
        "whole_image_seconds": round(whole, 4),
        "windows_in_batches_of_25_seconds": round(batches, 3),
        "lone_windows_seconds": round(lone, 3),
        "times_faster_than_batches": round(batches / whole, 1),
        "times_faster_than_lone_windows": round(lone / whole, 1),
    }
    text = json.dumps(result, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
