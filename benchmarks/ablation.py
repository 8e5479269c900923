"""What each lever of the recipe `camvid-cpu` is worth at equal processor time: a short training a lever.

    python benchmarks/ablation.py shared/camvid/CamVid --minutes 4 --json benchmarks/results/ablation.json
    python benchmarks/ablation.py shared/camvid/CamVid --only pyramid ema-off --seeds 0 1 2 --json FILE
    python benchmarks/ablation.py shared/camvid/CamVid --half --minutes 1 --json FILE
    python benchmarks/ablation.py --table --json FILE

Every training has the same budget of processor time of its own process (one thread; the learning rate's schedule
follows that clock too), so that a lever which makes a step dearer gets fewer steps, and what else the machine does
changes little. It is measured once, at its end, on val at the labels' own resolution; measuring is not in the budget.
With --half it learns and is measured on a copy of half the size, which takes a quarter of the time.
FILE keeps a row a training; what it holds already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contest
from PIL import Image

SPLITS = ("train", "val")
BASE = ("model=fcn4s-efficientnet_lite0", "weights=auto")
LEVERS: dict[str, tuple[str, ...]] = {
    "sum": (),
    "pyramid": ("model=fcn4s-pyramid-efficientnet_lite0",),
    "pyramid-head-lr-1": ("model=fcn4s-pyramid-efficientnet_lite0", "head_lr=1.0"),
    "mobilenet_v2": ("model=fcn4s-mobilenet_v2",),  # with its weights only where a file or package has them
    "batch-4": ("batch_size=4",),
    "head-lr-1": ("head_lr=1.0",),
    "head-lr-10": ("head_lr=10.0",),
    "lr-3e-3": ("lr=3e-3",),
    "class-weights-off": ("class_weights=none",),
    "ema-off": ("ema=0.0",),
    "scale-narrow": ("scale=[0.8, 1.25]",),
    "photometric-off": ("photometric=0.0",),
    "one-cycle": ("schedule=one-cycle", "warmup=0.2"),
    "lovasz": ("loss=cross_entropy+0.5*lovasz",),
    "dice": ("loss=cross_entropy+0.5*dice",),
    "focal": ("loss=focal",),
    "cutmix": ("cutmix=0.5",),
}


def halved(source: Path, target: Path) -> Path:
    """A copy of CamVid's train and val at half the size: colours averaged over 2x2 pixels, every second label."""
    for split in SPLITS:
        for kind in (split, f"{split}annot"):
            (target / kind).mkdir(parents=True)
            for file in sorted((source / kind).glob("*.png")):
                with Image.open(file) as image:
                    size = image.width // 2, image.height // 2
                    small = image.reduce(2) if kind == split else image.resize(size, Image.Resampling.NEAREST)
                    small.save(target / kind / file.name, compress_level=1)
    return target


def worker(data: str, minutes: float, settings: list[str]) -> None:
    """Train once, print what came of it as a line of JSON."""
    import torch

    from fullyconv import recipes
    from fullyconv.allocator import keep_freed
    from fullyconv.train import display, fit

    torch.set_num_threads(1)
    keep_freed()
    display.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[attr-defined]
    length = [f"time={60 * minutes:g}s", "val_every=100000", "save_every=10h"]  # measured at the end alone
    with tempfile.TemporaryDirectory() as folder:
        fit(recipes.read_recipe("camvid-cpu", [*BASE, *length, *settings]), data, Path(folder) / "run", quiet=True)
        rows = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "measurement"][-1]
    found = {key: last[key] for key in ("step", "mean_iu", "pixel_accuracy", "per_class_iu")}
    print(json.dumps({**found, "cpu_seconds": round(time.process_time())}))


def trained(data: str, minutes: float, lever: str, seed: int, half: bool) -> dict[str, Any]:
    settings = ["crop=[144, 192]"] * half + [*LEVERS[lever], f"seed={seed}"]
    command = [sys.executable, __file__, data, "--minutes", str(minutes), "--worker", *settings]
    found = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return {"lever": lever, "seed": seed, "minutes": minutes, "half": half, **json.loads(found.stdout.splitlines()[-1])}


def table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, beside the first lever at the same budget, as Markdown."""
    lines = ["| lever | size | minutes | seeds | steps | mean IU | beside the sum |", "|---|---|---|---|---|---|---|"]
    groups: dict[tuple[bool, float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["half"], row["minutes"], row["lever"]), []).append(row)
    for (half, minutes, lever), same in groups.items():
        score, steps = (sum(row[key] for row in same) / len(same) for key in ("mean_iu", "step"))
        base = [row["mean_iu"] for row in groups.get((half, minutes, "sum"), [])]
        beside = f"{100 * (score - sum(base) / len(base)):+.1f}" if base and lever != "sum" else ""
        settings = " ".join(LEVERS.get(lever, ()))
        shown = f"{lever}: `{settings}`" if settings else f"{lever} (the recipe's)"
        where = f"{'half' if half else 'whole'} | {minutes:g} | {len(same)} | {steps:.0f}"
        lines.append(f"| {shown} | {where} | {100 * score:.1f} | {beside} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="CamVid's folder (SegNet's splits, 360x480)")
    parser.add_argument("--minutes", type=float, default=4.0, help="of processor time, a training")
    parser.add_argument("--only", nargs="+", default=list(LEVERS), choices=list(LEVERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    parser.add_argument("--half", action="store_true", help="at half the size, in a quarter of the time")
    parser.add_argument("--table", action="store_true", help="print what FILE holds")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        worker(a.data, a.minutes, a.worker)
        return
    kept = json.loads(a.json.read_text()) if a.json.is_file() else {"machine": contest.machine(), "rows": []}
    done = {(row["half"], row["minutes"], row["lever"], row["seed"]) for row in kept["rows"]}
    left = [(lever, seed) for seed in a.seeds for lever in a.only if (a.half, a.minutes, lever, seed) not in done]
    with tempfile.TemporaryDirectory() as folder:
        if a.data and left and not a.table:
            data = halved(Path(a.data), Path(folder)) if a.half else Path(a.data)
            for lever, seed in left:
                kept["rows"].append(trained(f"camvid:{data}", a.minutes, lever, seed, a.half))
                a.json.write_text(json.dumps(kept, indent=1) + "\n")
                print(json.dumps(kept["rows"][-1]), file=sys.stderr, flush=True)
    print(table(kept["rows"]))


if __name__ == "__main__":
    main()
