"""The memory that `fullyconv.cost` predicts beside what processes really took, each case in a process of its own.

    python benchmarks/memory.py [--json FILE] [NETWORK ...]

Peak resident memory (Linux) of one prediction and of two training steps (SGD with momentum, one image, float32, as
`fullyconv train` does them).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NETWORKS = ("fcn8s-vgg16", "fcn8s-resnet50", "fcn8s-mobilenet_v2")
SIZES = ((224, 224), (360, 480), (500, 700))
CHILD = """
import json, sys
import numpy as np, torch
import fullyconv as fc
from fullyconv import allocator, ops
from fullyconv.engine.autograd import fast_convolutions
name, height, width, training = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "training"
model = fc.create(name, 21, quiet=True).to(memory_format=torch.channels_last)
if training:
    allocator.keep_freed()
    model.train()
    at = model.geometry(height, width)
    optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)
    x = torch.zeros(1, 3, height, width).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(1, height, width, dtype=torch.uint8)
    for _ in range(2):
        optimizer.zero_grad()
        with fast_convolutions():
            scores = model.coarse(x)["semantic"]
        ops.upsample_cross_entropy(scores, labels, at.stride, at.offset, border=at.border).backward()
        optimizer.step()
else:
    with torch.no_grad():
        for p in model.head_parameters():
            p.fill_(0.01)
    predictor = fc.Predictor(model.eval())
    for _ in range(2):
        predictor(np.zeros((height, width, 3), np.uint8))
# VmHWM: ru_maxrss would begin with what the process that started this one held.
status = open("/proc/self/status")
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024)
"""


def measured(name: str, height: int, width: int, training: bool) -> int:
    """Peak resident bytes of a fresh process that predicts or trains."""
    command = [sys.executable, "-c", CHILD, name, str(height), str(width), "training" if training else "prediction"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "THP_MEM_ALLOC_ENABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(json.loads(done.stdout.splitlines()[-1]))


def predicted(name: str, height: int, width: int, training: bool) -> int:
    import torch

    import fullyconv as fc
    from fullyconv.cost import estimate

    with torch.device("meta"):
        model = fc.create(name, 21, quiet=True)
    return estimate(model, height, width, training=training).peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        for height, width in SIZES:
            for training in (False, True):
                guess, truth = (f(name, height, width, training) >> 20 for f in (predicted, measured))
                work = "training" if training else "prediction"
                rows.append({"network": name, "size": [height, width], "work": work, "predicted_mib": guess,
                             "measured_mib": truth, "ratio": round(guess / truth, 3)})  # fmt: skip
                print(f"{name:24s} {height:4d}x{width:<4d} {work:10s} {guess:6d} {truth:6d} MiB  {guess / truth:.2f}",
                      flush=True)  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
