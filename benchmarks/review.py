"""Errors planted in CamVid's training labels, and how many of them `review` finds: precision at 60, and recall.

    python benchmarks/review.py [--data camvid:PATH]      (FULLYCONV_SHARED names the data otherwise)

60 errors of 6 kinds in 60 images (halved, 180 x 240): a region of another class, a region lost to its neighbour, one
pasted where nothing is, a region grown by 8 pixels, half a region, another image's labels. A finding is right where at
least half of it lies in what was changed. The trunk has ImageNet weights; score layers are learned out of fold.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

import fullyconv
from fullyconv.curation.doubted_labels import doubts
from fullyconv.data import open_dataset
from fullyconv.predict import resize_image
from fullyconv.regions import bounding_box, components

KINDS = ("swapped", "lost", "pasted", "grown", "half", "mixed up")


def a_region(label: np.ndarray, draw: Any, low: int, high: int) -> np.ndarray | None:
    number, count = components(label)
    size = np.bincount(number.ravel(), minlength=count)
    value = label.ravel()[np.unique(number.ravel(), return_index=True)[1]]
    fit = np.flatnonzero((size >= low) & (size <= high) & (value != 255))
    return number == int(draw.choice(fit)) if len(fit) else None


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    for _ in range(by):
        padded = np.pad(mask, 1)
        mask = mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def planted(kind: str, label: np.ndarray, other: np.ndarray, draw: Any) -> np.ndarray | None:
    """`label` with one error; None where the image has no place for it."""
    out = label.copy()
    if kind == "mixed up":
        return np.where(label == 255, 255, other).astype(np.uint8)
    mask = a_region(other if kind == "pasted" else label, draw, 300, 6000)
    if mask is None:
        return None
    own = int((other if kind == "pasted" else label)[mask][0])
    around = np.bincount(label[grown(mask, 2) & ~mask], minlength=256)
    around[[255, own]] = 0
    neighbour = int(around.argmax())
    if kind == "swapped":
        present = [k for k in range(11) if k not in (own, neighbour)]
        out[mask] = draw.choice(present)
    elif kind == "lost":
        out[mask] = neighbour
    elif kind == "pasted":
        out[mask & (label != 255)] = own
    elif kind == "grown":
        out[grown(mask, 8) & (label != 255)] = own
    else:
        _, left, _, right = bounding_box(mask)
        half = mask.copy()
        half[:, (left + right) // 2 :] = False
        out[half] = neighbour
    return out if ((out != label) & (label != 255)).sum() >= 200 else None


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--data", default=f"camvid:{os.environ.get('FULLYCONV_SHARED', '.')}/data/camvid/CamVid")
    options.add_argument("--model", default="fcn8s-efficientnet_lite0")
    options.add_argument("--passes", type=float, default=6)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", default="benchmarks/results/review.json")
    given = options.parse_args()
    whole = open_dataset(given.data, "train")
    draw = np.random.default_rng(given.seed)
    truth = [whole.read_labels(r, "semantic")[::2, ::2] for r in whole.records]
    labels = [t.copy() for t in truth]
    error: dict[int, str] = {}
    order = draw.permutation(len(whole)).tolist()
    for n in range(60):
        kind = KINDS[n % 6]
        while kind not in error.values() or Counter(error.values())[kind] <= n // 6:
            i = order.pop()
            found = planted(kind, truth[i], truth[int(draw.integers(len(truth)))], draw)
            if found is not None:
                labels[i], error[i] = found, kind
    place = {r.name: i for i, r in enumerate(whole.records)}

    def half(record: Any, modality: str) -> np.ndarray:
        image = whole.read_input(record, modality)
        return resize_image(image, (image.shape[0] // 2, image.shape[1] // 2))

    data = replace(whole, read_input=half, read_labels=lambda r, _: labels[place[r.name]])
    model = fullyconv.create(given.model, weights="auto", taxonomies=whole.taxonomies, quiet=True)
    start = time.monotonic()
    found, _ = doubts(model, data, passes=given.passes, most=400)
    right = []
    for d in found:
        s = d.suspect
        part = (slice(s.top, s.top + s.inside.shape[0]), slice(s.left, s.left + s.inside.shape[1]))
        changed = (labels[d.record] != truth[d.record])[part]
        right.append(bool(changed[s.inside].mean() >= 0.5))
    result: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "findings": len(found)}
    for depth in (60, 120, 200):
        caught = {d.record for d, r in zip(found[:depth], right[:depth], strict=True) if r}
        result[f"at {depth}"] = {
            "precision": float(np.mean(right[:depth])),
            "recall": len(caught) / 60,
            "by kind": {k: f"{sum(error[i] == k for i in caught)} of 10" for k in KINDS},
        }
    with open(given.out, "w") as file:
        json.dump(result, file, indent=1)
    print(json.dumps(result, indent=1))
    names = whole.taxonomy.names
    others = [d.suspect for d, r in zip(found, right, strict=True) if not r]
    wrong = Counter((names[s.labelled], names[s.predicted]) for s in others)
    print("what is doubted most without an error planted:", wrong.most_common(6))


if __name__ == "__main__":
    main()
