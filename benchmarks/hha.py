"""Seconds to encode one 480x640 depth frame as HHA, one thread, beside a published Python port in the same run.

    python benchmarks/hha.py [--rival DIR] [--json FILE]

DIR is a checkout of github.com/charlesCXK/Depth2HHA-python (it needs OpenCV and SciPy). With FULLYCONV_SHARED set the
frame is a real NYUDv2 one with holes, else a procedural scene.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # before numpy is loaded

import contest  # noqa: E402
import numpy as np  # noqa: E402

from fullyconv import scenes  # noqa: E402
from fullyconv.data import hha  # noqa: E402


def frame() -> tuple[str, np.ndarray, np.ndarray, dict[str, float]]:
    """(what it is, filled depth in metres, raw depth in metres, camera)."""
    shared = os.environ.get("FULLYCONV_SHARED")
    if shared:
        folder = Path(shared) / "data/hha"
        filled, raw = (hha.read_depth(folder / n, 10000) for n in ("0.png", "0_raw.png"))
        return "NYUDv2 frame with holes", filled, raw, hha.NYUD
    scene = scenes.render_scene(0, (480, 640))
    depth = scene.depth / 1000
    return "procedural scene", depth, depth, scene.camera


def fastest(call: Callable[[], Any], runs: int) -> tuple[dict[str, float], Any]:
    """The least seconds by the clock and by the processor (which other programs on the machine do not change)."""
    wall, processor, result = [], [], None
    for _ in range(runs):
        start, used = time.perf_counter(), time.process_time()
        result = call()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
    return {"seconds": round(min(wall), 4), "processor_seconds": round(min(processor), 4)}, result


def rival(folder: Path, filled: np.ndarray, raw: np.ndarray, camera: dict[str, float]) -> Callable[[], Any]:
    sys.path.insert(0, str(folder))
    from getHHA import getHHA  # type: ignore[import-not-found]

    matrix = np.array([[camera["fx"], 0, camera["cx"]], [0, camera["fy"], camera["cy"]], [0, 0, 1]])
    return lambda: getHHA(matrix, filled, raw)[..., ::-1]  # it returns BGR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rival", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    what, filled, raw, camera = frame()
    ours, image = fastest(lambda: hha.encode(filled, camera, raw), 5)
    result: dict[str, Any] = {
        "frame": f"{what}, {filled.shape[0]}x{filled.shape[1]} (HxW)",
        "machine": contest.machine(),
        "numpy": np.__version__,
        "fullyconv": ours,
    }
    if arguments.rival:
        theirs, other = fastest(rival(arguments.rival, filled, raw, camera), 1)
        equal = (image == other).mean((0, 1))
        result |= {
            "rival": "charlesCXK/Depth2HHA-python",
            "rival_took": theirs,
            "times_faster": round(theirs["processor_seconds"] / ours["processor_seconds"], 1),
            "equal_pixels": dict(zip(("disparity", "height", "angle"), equal.round(4).tolist(), strict=True)),
        }
    text = json.dumps(result, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
