"""Cross-validation: one run a fold, each measured on the images it did not learn from, and one result of all images.

What is measured is each run's last network, not its best: the best was chosen by the very images of its fold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import metrics
from fullyconv.checkpoint import read_model
from fullyconv.data.base import Dataset, Record
from fullyconv.errors import UsageError
from fullyconv.evaluation import Result, evaluate
from fullyconv.evaluation.result import ImageTables
from fullyconv.files import atomic_write, make_directory
from fullyconv.metrics import Interval
from fullyconv.models import load
from fullyconv.predict import Predictor
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.terminal import say
from fullyconv.train import fit
from fullyconv.train.context import HELD_OUT, NamedData, open_both

__all__ = ["CrossValidation", "cross_validate", "fold_datasets", "fold_numbers"]

FILE = "folds.json"


@final
@dataclass(frozen=True)
class CrossValidation:
    """result: every image once, by the network that had not seen it; folds: each fold's own; interval: of the mean IU,
    over groups of images drawn anew (single images where there are no groups)."""

    result: Result
    folds: tuple[Result, ...]
    interval: Interval

    def to_json(self) -> dict[str, Any]:
        """What folds.json holds."""
        each = [r.mean_iu for r in self.folds]
        return {
            "format": 1,
            "mean_iu": self.result.mean_iu,
            "interval": [self.interval.low, self.interval.high],
            "pixel_accuracy": self.result.pixel_accuracy,
            "folds": [
                {"images": r.images, "mean_iu": r.mean_iu, "pixel_accuracy": r.pixel_accuracy} for r in self.folds
            ],
            "mean_of_folds": float(np.mean(each)),
            "deviation_of_folds": float(np.std(each, ddof=1)),
        }

    def text(self) -> str:
        """One line a fold, then all of them."""
        found = self.to_json()
        lines = [
            f"fold {i}: mean IU {f['mean_iu']:.4f}, pixel accuracy {f['pixel_accuracy']:.4f}, {f['images']} images"
            for i, f in enumerate(found["folds"], 1)
        ]
        low, high = found["interval"]
        between = "" if low is None else f" (95 % interval {low:.4f} to {high:.4f})"
        whole = (
            f"all {self.result.images} images, each by the network that had not seen it: mean IU "
            f"{found['mean_iu']:.4f}{between}, pixel accuracy {found['pixel_accuracy']:.4f}; folds "
            f"{found['mean_of_folds']:.4f} +- {found['deviation_of_folds']:.4f}"
        )
        return "\n".join([*lines, whole])


def fold_numbers(records: Sequence[Record], folds: int) -> list[int]:
    """Which fold (0..folds-1) each record is measured in: whole groups, folds as equal as groups allow, by names alone.

    Groups are dealt out the largest first (equal ones by the hash of their names), each to the fold with the fewest
    images. UsageError where there are fewer groups than folds.
    """
    sizes = Counter(_group(r) for r in records)
    if not 2 <= folds <= len(sizes):
        what = "groups of images" if any(r.group for r in records) else "images"
        raise UsageError(f"{folds} folds cannot be made of {len(sizes)} {what}; give --folds from 2 to {len(sizes)}.")
    filled, place = [0] * folds, {}
    for group in sorted(sizes, key=lambda g: (-sizes[g], hashlib.sha256(g.encode()).digest())):
        place[group] = min(range(folds), key=lambda k: (filled[k], k))
        filled[place[group]] += sizes[group]
    return [place[_group(r)] for r in records]


def _group(record: Record) -> str:
    return record.group or record.name


def fold_datasets(dataset: Dataset, folds: int) -> list[tuple[Dataset, Dataset]]:
    """(to learn, to measure) of every fold."""
    numbers = fold_numbers(dataset.records, folds)
    parts = []
    for k in range(folds):
        inside = [r for r, n in zip(dataset.records, numbers, strict=True) if n == k]
        outside = [r for r, n in zip(dataset.records, numbers, strict=True) if n != k]
        parts.append((replace(dataset, records=outside), replace(dataset, records=inside, split=HELD_OUT)))
    return parts


def cross_validate(
    recipe: Recipe,
    data: NamedData,
    out: Path,
    folds: int,
    *,
    resume: bool = False,
    allow: Collection[str] = (),
    check: bool = True,
    quiet: bool = False,
) -> CrossValidation:
    """Train `folds` runs in `out`/fold-1 ... on the recipe's split of `data`, and measure each image once.

    Writes evaluation/result.json and folds.json into `out`. `resume`: finished folds are passed over, a begun one is
    gone on with. Raises UsageError for stages, several processes, early stopping and too many folds.
    """

    _refuse(recipe)
    dataset, _ = open_both(recipe.replace(val_split=""), data, None)
    parts = fold_datasets(dataset, folds)
    places = [out / f"fold-{k}" for k in range(1, folds + 1)]
    if not resume and any((place / "last").exists() for place in places):
        raise UsageError(f"{out} holds folds; go on with them by --resume, or give another --out.")
    make_directory(out)
    results = []
    for k, ((train, val), place) in enumerate(zip(parts, places, strict=True), 1):
        begun = (place / "last").exists()
        if not (begun and read_model(place / "last").state["train"]["finished"]):
            if not quiet:
                say(f"fold {k} of {folds}: {len(train)} images to learn, {len(val)} to measure")
            once = check and k == 1  # the images of the other folds are the same
            if k > 1:  # what the first left to the data holds for all, whether they are learned in one go or not
                recipe = read_recipe(places[0] / "recipe.toml")
            fit(recipe, train, place, val=val, resume=begun, allow=allow, check=once, quiet=quiet)
        results.append(evaluate(Predictor(load(place / "last")), val))
    found = _merged(dataset, parts, results)
    make_directory(out / "evaluation")
    atomic_write(out / "evaluation" / "result.json", json.dumps(found.result.to_json(), allow_nan=False).encode())
    atomic_write(out / FILE, json.dumps(found.to_json()).encode())
    return found


def _refuse(recipe: Recipe) -> None:
    if recipe.stages:
        raise UsageError("--folds is about one run a fold; a recipe of stages cannot be cross-validated.")
    if recipe.early_stop:
        raise UsageError("early_stop would choose each run's length by the images it is measured on; set it to 0.")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("--folds runs in one process; start it without torchrun.")


def _merged(dataset: Dataset, parts: Sequence[tuple[Dataset, Dataset]], results: Sequence[Result]) -> CrossValidation:
    """The folds' results as one of the whole data set, images in its order."""
    at = {r.name: i for i, r in enumerate(dataset.records)}
    images: list[ImageTables] = sorted(
        (replace(i, index=at[i.name]) for r in results for i in r.per_image), key=lambda i: i.index
    )
    first = results[0]
    tables = {h: np.stack([r.tables[h] for r in results]).sum(0) for h in first.tables}
    seconds = round(sum(float(r.about["seconds"]) for r in results), 3)
    data = {**first.about["data"], "split": f"{dataset.split or 'all'}, {len(results)} folds", "of": len(dataset)}
    data["fingerprint"] = dataset.fingerprint
    hashes = [str(r.about["model"]["sha256"]) for r in results]
    together = hashlib.sha256("".join(hashes).encode()).hexdigest()
    model = {**first.about["model"], "sha256": together, "folds": hashes}
    about = {**first.about, "data": data, "model": model, "seconds": seconds}
    about["images_per_second"] = round(len(images) / seconds, 3) if seconds else None
    result = Result(first.taxonomies, tables, images, about)
    return CrossValidation(result, tuple(results), _interval(dataset, result))


def _interval(dataset: Dataset, result: Result) -> Interval:
    """Of the mean IU, whole groups drawn with replacement: images of one video say nearly the same."""
    classes = len(result.taxonomy)
    by_group: dict[str, NDArray[np.int64]] = {}
    for image in result.per_image:
        group = _group(dataset.records[image.index])
        table = image.table(result.head, classes)
        by_group[group] = by_group[group] + table if group in by_group else table
    return metrics.bootstrap(np.stack(list(by_group.values())), lambda table: metrics.mean_iu(table))
