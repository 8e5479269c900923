"""Milliseconds a 480x640 image: a network by torch, its exported files by onnxruntime and OpenVINO, in turns.

OMP_NUM_THREADS=1 python benchmarks/exported.py RUN FILE.onnx [FILE.xml ...]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fullyconv as fc

ROUNDS = 15


def by_openvino(file: str) -> Callable[[Any], Any]:
    from fullyconv.exporting.openvino import quiet_openvino

    threads = {"INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS", "0")), "INFERENCE_PRECISION_HINT": "f32"}
    model = quiet_openvino().Core().compile_model(file, "CPU", threads)
    return lambda image: model({"image": image[None]})


def main(names: list[str]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    ways = {name: by_openvino(name) if Path(name).suffix == ".xml" else fc.Predictor(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.perf_counter()
            way(image)
            times[name].append(1000 * (time.perf_counter() - begun))
    for name, found in times.items():
        print(f"{name}: median {np.median(found[2:]):.1f} ms, least {min(found):.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])
