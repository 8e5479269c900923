"""What grows with what: time and memory of fcn4s-mobilenet_v2 against size, batch, classes and threads, and the start.

    python benchmarks/growth.py [--only size batch classes threads start] [--most 8192] [--rounds 3] [--json FILE]

Each point is a process of its own, so that its peak is its own. Ours is `Predictor` (whole images, and tiles of 1,024
pixels) and a step of `fullyconv train`; beside it the same network as everyone writes it: float32, full-size scores by
interpolation, argmax or torch's cross entropy. "start" is a program from its first instruction to its first labels,
with the compiled functions on the disk and without. docs/speed.py makes tables and a picture of the JSON. Drawn
weights; threads are one unless they are what grows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contest
from engines import drawn
from inference import photo
from train_step import data, ours, plain

NAME = "fcn4s-mobilenet_v2"
WHOLE, TILES, PLAIN = "Predictor", "Predictor, tiles of 1,024", "plain torch"
SIZES, BATCHES, CLASSES, THREADS = (256, 512, 1024, 2048, 4096, 8192), (1, 2, 4, 8, 16), (2, 21, 150, 1000), (1, 2)
WHOLE_UP_TO = 4096  # pixels a side: beyond, maps of the whole image take over 6 GiB, which is what tiles are for
SIDE = 512  # pixels a side where the size does not grow
STEP_SIDE = 256  # the same for training steps


def predicting(who: str, side: int, classes: int) -> Callable[[], Any]:
    import torch

    import fullyconv as fc

    model, image = drawn(NAME, classes), photo(side, side)
    if who != PLAIN:
        predictor = fc.Predictor(model, tile=1024 if who == TILES else None)
        return lambda: predictor(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def call() -> Any:
        with torch.inference_mode():
            x = (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
            coarse = model.coarse(x)["semantic"]
            scores = torch.nn.functional.interpolate(coarse, size=image.shape[:2], mode="bilinear")
            return scores.argmax(1)[0].numpy()

    return call


def stepping(who: str, batch: int) -> Callable[[], object]:
    images, labels = data(batch, STEP_SIDE, STEP_SIDE)
    if who != PLAIN:
        return ours(NAME, "fp32", "", images, labels)
    import torch

    model = drawn(NAME, 12)

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, x: Any) -> Any:
            coarse = self.network.coarse(x)["semantic"]
            return torch.nn.functional.interpolate(coarse, size=x.shape[-2:], mode="bilinear")

    return plain(Plain(), images, labels)


def points(most: int) -> dict[str, list[tuple[int, str]]]:
    """What grows -> (how far, who)."""
    sizes = [(s, who) for s in SIZES if s <= most for who in (WHOLE, TILES, PLAIN) if s <= WHOLE_UP_TO or who == TILES]
    return {
        "size": [(s, who) for s, who in sizes if who != TILES or s > 1024],
        "classes": [(k, who) for k in CLASSES for who in (WHOLE, PLAIN)],
        "batch": [(b, who) for b in BATCHES for who in ("train", PLAIN)],
        "threads": [(t, who) for t in THREADS for who in (WHOLE, PLAIN)],
    }


def measured(what: str, at: int, who: str, rounds: int) -> dict[str, Any]:
    threads = at if what == "threads" else 1
    command = [sys.executable, __file__, "--worker", what, str(at), who]
    settings = {"OMP_NUM_THREADS": str(threads), **({} if who == PLAIN else contest.HUGE)}
    found = contest.compete([contest.Contestant(who, command, settings)], rounds)[who]
    return {"what": what, "at": at, "who": who, **found}


FIRST = """
import time
at = [(time.perf_counter(), 0.0)]
def now():
    at.append((time.perf_counter(), time.process_time()))
import fullyconv as fc, numpy as np
model = fc.load({model!r})
predictor = fc.Predictor(model)
now()
for _ in range(2):
    predictor(np.full((360, 480, 3), 127, np.uint8))
    now()
print(*(b[clock] - a[clock] for clock in (0, 1) for a, b in zip(at, at[1:])))
"""


def starting(rounds: int) -> list[dict[str, Any]]:
    """Seconds, of the clock and of the processor, until the network is there, of the first image and of the second,
    with compiled functions on the disk and without."""
    import statistics

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        drawn(NAME, 11).save_pretrained(Path(folder) / "model")
        program = FIRST.format(model=str(Path(folder) / "model"))
        kept = str(Path(folder) / "kept")
        for kind in ("nothing compiled", "compiled before"):
            found = []
            for n in range(rounds):
                cache = kept if kind == "compiled before" else str(Path(folder) / f"new{n}")
                settings = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "NUMBA_CACHE_DIR": cache}
                if kind == "compiled before" and not n:
                    subprocess.run([sys.executable, "-c", program], env=settings, check=True, capture_output=True)
                line = [sys.executable, "-c", program]
                out = subprocess.run(line, env=settings, check=True, capture_output=True, text=True).stdout
                found.append([float(s) for s in out.split()])
            names = [f"{part}_{clock}" for clock in ("s", "cpu_s") for part in ("ready", "first", "second")]
            middle = [round(statistics.median(column), 3) for column in zip(*found, strict=True)]
            rows.append({"what": "start", "who": kind, **dict(zip(names, middle, strict=True))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = ("size", "batch", "classes", "threads", "start")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="the largest side, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    contest.hold_back(parser)
    a = parser.parse_args()
    if a.worker:
        what, at, who = a.worker[0], int(a.worker[1]), a.worker[2]
        if what == "batch":
            return contest.answer(stepping(who, at))
        side, classes = at if what == "size" else SIDE, at if what == "classes" else 11
        return contest.answer(predicting(who, side, classes))
    before, rows = contest.machine(), []
    for what, wanted in points(a.most).items():
        for at, who in wanted if what in a.only else ():
            rows.append(measured(what, at, who, a.rounds))
            print(rows[-1], flush=True)
    if "start" in a.only:
        rows += starting(a.rounds)
        print(rows[-2:], flush=True)
    return contest.finish({"network": NAME, "machine": before, "rows": rows}, a.json)


if __name__ == "__main__":
    main()
