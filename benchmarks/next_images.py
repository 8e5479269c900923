"""Which images to label next: CamVid's own labels answer what the pickers ask; the mean IU after each round is told.

    python benchmarks/next_images.py [--seeds 5] [--data camvid:PATH]      (FULLYCONV_SHARED names the data otherwise)

Start: 20 images drawn by chance, the same for all pickers; four rounds of 20. The trunk has ImageNet weights and stays
as it is, the score layers are learned anew on its kept features after each round: what differs is the choice alone.
Images are halved (180 x 240). A picker's figure is the area under its curve of mean IU on the 101 images of val.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fullyconv
from fullyconv.curation import features
from fullyconv.curation.picking import pick, uncertain_share
from fullyconv.data import open_dataset
from fullyconv.metrics import confusion
from fullyconv.predict import resize_image

START, ROUNDS, STEP = 20, 4, 20
PICKERS = ("random", "alphabetical", "uncertainty", "ours")


class Pool:
    """A split's features and labels at half size."""

    def __init__(self, model: Any, data: Any) -> None:
        self.store, self.labels, pooled = features.FeatureStore(), [], []
        for sample in data:
            height, width = (n // 2 for n in sample.image.shape[:2])
            seen = features.look(model, resize_image(sample.image, (height, width)))
            self.store.add(seen)
            pooled.append(seen.pooled)
            self.labels.append(sample.labels["semantic"][::2, ::2])
        self.pooled = np.stack(pooled)


def mean_iu(model: Any, val: Pool, classes: int) -> float:
    table = np.zeros((classes, classes), np.int64)
    for i, truth in enumerate(val.labels):
        found, _, _ = features.read_out(model, val.store[i], val.store.sizes[i], "semantic")
        table += confusion(truth, found, classes, ignore=255)
    inside = np.diag(table)
    return float(np.mean(inside / np.maximum(table.sum(0) + table.sum(1) - inside, 1)))


def unsure(model: Any, pool: Pool, indices: list[int]) -> np.ndarray:
    read = (features.read_out(model, pool.store[i], pool.store.sizes[i], "semantic") for i in indices)
    return np.array([uncertain_share(labels, confidence) for labels, confidence, _ in read])


def choose(picker: str, model: Any, pool: Pool, known: list[int], left: list[int], seed: int) -> list[int]:
    if picker == "random":
        return [left[int(i)] for i in np.random.default_rng(seed + 1000 * len(known)).permutation(len(left))[:STEP]]
    if picker == "alphabetical":
        return left[:STEP]
    doubt = unsure(model, pool, left)
    if picker == "uncertainty":
        return [left[int(i)] for i in np.argsort(-doubt, kind="stable")[:STEP]]
    return [left[p.index] for p in pick(pool.pooled[left], pool.pooled[known], doubt, STEP)]


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=150)
    options.add_argument("--model", default="fcn8s-efficientnet_lite0")
    options.add_argument("--data", default=f"camvid:{os.environ.get('FULLYCONV_SHARED', '.')}/data/camvid/CamVid")
    options.add_argument("--out", default="benchmarks/results/next_images.json")
    given = options.parse_args()
    torch.manual_seed(0)
    train, val = (open_dataset(given.data, split) for split in ("train", "val"))
    classes = len(train.taxonomy)
    model = features.require_trunk(
        fullyconv.create(given.model, weights="auto", taxonomies=train.taxonomies, quiet=True)
    )
    start = time.monotonic()
    pool, held = Pool(model, train), Pool(model, val)
    print(f"features: {time.monotonic() - start:.0f} s", flush=True)

    def learned(known: list[int], seed: int) -> float:
        features.learn_heads(
            model, pool.store, known, pool.labels.__getitem__, head="semantic", ignore=255, steps=given.steps, seed=seed
        )
        return mean_iu(model, held, classes)

    curves: dict[str, list[list[float]]] = {p: [] for p in PICKERS}
    for seed in range(given.seeds):
        first = sorted(int(i) for i in np.random.default_rng(seed).permutation(len(train))[:START])
        for picker in PICKERS:
            known = list(first)
            curve = [learned(known, seed)]
            for _ in range(ROUNDS):
                left = [i for i in range(len(train)) if i not in set(known)]
                known += choose(picker, model, pool, known, left, seed)
                curve.append(learned(known, seed))
            curves[picker].append(curve)
            shown = " ".join(f"{100 * v:.1f}" for v in curve)
            print(f"seed {seed} {picker:13} {shown}   {time.monotonic() - start:.0f} s", flush=True)
    summary = summarised(curves)
    Path(given.out).write_text(json.dumps({"curves": curves, **summary}, indent=1))
    for picker, line in summary["pickers"].items():
        print(f"{picker:13} area {line['area']:.2f}, over random {line['over_random']:+.2f} "
              f"[{line['low']:+.2f}, {line['high']:+.2f}], above it in {line['above']} of {given.seeds}")  # fmt: skip


def area(curve: list[float]) -> float:
    """The mean height under the curve in per cent (trapezoids)."""
    y = 100 * np.array(curve)
    return float((y[1:] + y[:-1]).mean() / 2)


def summarised(curves: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Each picker's mean area, and its gain over random, paired by seed, with the 95 % interval of Student's t."""
    base = np.array([area(c) for c in curves["random"]])
    quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}.get(len(base), 2.0)
    rows = {}
    for picker, found in curves.items():
        gain = np.array([area(c) for c in found]) - base
        half = quantile * gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else float("nan")
        rows[picker] = {
            "area": float(np.mean([area(c) for c in found])),
            "over_random": float(gain.mean()),
            "low": float(gain.mean() - half),
            "high": float(gain.mean() + half),
            "above": int((gain > 0).sum()),
        }
    return {"pickers": rows}


if __name__ == "__main__":
    main()
