"""What a recipe leaves to the data, chosen from what the doctor found in it: crop, batch size, class weights, and
what becomes of batch norm.

A key that says "auto" is settled once, before the first step; the run's recipe.toml holds what was taken, so a run
that goes on, or is repeated, has the same.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from fullyconv import cost, doctor, processor
from fullyconv.data.base import Dataset
from fullyconv.doctor.summary import Summary, summarise_samples
from fullyconv.errors import FullyconvError, printable
from fullyconv.models.interface import TrainableModel
from fullyconv.recipes import AUTO_BATCH, AUTO_CROP, Recipe
from fullyconv.train.batch_reader import crop_of
from fullyconv.train.network import fewest_images

__all__ = ["CHOSEN", "choose_settings", "cut_to_the_data", "fitting_batch", "sample_summary"]

BatchNorm = Literal["train", "frozen", "unfold"]
CHOSEN = ("crop", "batch_size", "class_weights", "batch_norm")
PLAIN = {"batch_norm": "train"}  # what is not worth a word

LOOKED_AT = 100  # images whose sizes and labels are read where the data were not checked
FEW_CELLS = 16  # a dozen values say little of a mean and nothing of a spread; 2 crops of 96x96 have 18 at stride 32
SHARE = 0.6  # of the memory there is that a step may take: the rest is for reading, measuring, and other programs
FALLBACK = {"crop": (512, 512), "batch_size": 4, "class_weights": "none"}  # where nothing could be read


def choose_settings(
    recipe: Recipe,
    model: TrainableModel,
    train: Dataset,
    summary: Summary | None,
    kept: Mapping[str, object],
    device: torch.device,
) -> tuple[Recipe, list[str]]:
    """The recipe without "auto" for the keys of `CHOSEN`, and a sentence that says what was taken.

    summary: of the doctor's pass over the data; None: some images are looked at here. kept: what the run that goes on
    had taken (`{key: value}`), which stays.
    """
    autos = {"crop": AUTO_CROP, "batch_size": AUTO_BATCH}
    open_keys = [key for key in CHOSEN if getattr(recipe, key) == autos.get(key, "auto")]
    if not open_keys:
        return recipe, []
    found: dict[str, Any] = {key: kept[key] for key in open_keys if key in kept}
    if len(found) == len(open_keys):
        return recipe.replace(**found), []
    if open_keys != ["batch_norm"]:
        summary = summary or sample_summary(train)
    offered = {"batch_norm": "auto", **FALLBACK, **({} if summary is None else summary.recipe)}
    for key in open_keys:
        found.setdefault(key, offered[key])
    chosen = recipe.replace(**found)
    if "crop" in open_keys and summary is not None:
        chosen = chosen.replace(crop=crop_of(chosen, summary.sides))
    why = {
        "crop": "" if summary is None else f"images are {_sizes(summary)}",
        "batch_size": "",
        "class_weights": _imbalance(train, summary),
        "batch_norm": "",
    }
    if "batch_size" in open_keys and "batch_size" not in kept:
        fits, why["batch_size"] = fitting_batch(chosen, model, train, device)
        chosen = chosen.replace(batch_size=fits)
    if chosen.batch_norm == "auto":
        taken, why["batch_norm"] = batch_norm_for(chosen, model, train)
        chosen = chosen.replace(batch_norm=taken)
    settings = ", ".join(_setting(chosen, key, why[key]) for key in open_keys if getattr(chosen, key) != PLAIN.get(key))
    return chosen, [f"Chosen for these data (--set KEY=VALUE takes another): {settings}."] if settings else []


def batch_norm_for(recipe: Recipe, model: TrainableModel, train: Dataset) -> tuple[BatchNorm, str]:
    """(what "auto" is for batch norm, why where that is worth a word). Trained statistics stay where a pass has fewer
    than `FEW_CELLS` cells at the coarsest stride to measure others by."""
    if not model.origin.get("weights"):
        return "train", ""
    sides, stride = recipe.crop or largest_sides(train) or (1, 1), model.geometry(1, 1).align
    each = math.prod(-(-side // stride) for side in sides)
    cells = each * (recipe.batch_size // recipe.accumulate)
    if cells < FEW_CELLS or each * fewest_images(recipe, len(train)) < 2:
        return "frozen", f"a step has {cells} cells of stride {stride}, too few to learn its statistics from"
    return "unfold", ""


def cut_to_the_data(recipe: Recipe, train: Dataset, summary: Summary | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with a crop that these data can fill, and what is said where it asks for larger steps or crops."""
    notes = []
    if recipe.batch_size > len(train):
        notes.append(f"batch_size {recipe.batch_size} is more than all images: a step learns all {len(train)}.")
    if not recipe.crop:
        return recipe, notes
    sides = largest_sides(train) if summary is None else summary.sides
    if sides is None:
        return recipe, notes
    crop = crop_of(recipe, sides)
    if crop is not None and crop != recipe.crop:
        asked, taken, most = ("x".join(map(str, s)) for s in (recipe.crop, crop, sides))
        notes.append(f"crop {asked} is larger than any image (up to {most}) can be scaled to: {taken} is taken.")
        recipe = recipe.replace(crop=crop)
    return recipe, notes


def largest_sides(train: Dataset) -> tuple[int, int] | None:
    """The largest height and the largest width among at most `LOOKED_AT` images at even distances; None where none of
    them can be read. (Those that cannot are told when a step needs them, as the recipe's `on_bad_sample` has it.)
    """
    found = []
    for i in sorted({round(i) for i in np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train)))}):
        with contextlib.suppress(FullyconvError, OSError):
            found.append(train.image(i).shape[:2])
    return (max(rows for rows, _ in found), max(columns for _, columns in found)) if found else None


def sample_summary(train: Dataset) -> Summary | None:
    """The doctor's summary of at most `LOOKED_AT` images at even distances, whether they lie in files or not."""
    few = sorted({round(i) for i in np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train)))})
    some = replace(train, records=[train.records[i] for i in few])
    if any(record.inputs for record in some.records):
        return doctor.examine(some, fast=True).summary
    return summarise_samples(some)


def fitting_batch(recipe: Recipe, model: TrainableModel, train: Dataset, device: torch.device) -> tuple[int, str]:
    """(batch size, why it is smaller than the recipe's): the largest up to the recipe's whose step takes no more than
    `SHARE` of the memory that this process may have, by the reckoning of one and of two images."""
    room = _memory(device)
    if not room or recipe.batch_size == 1:
        return recipe.batch_size, ""
    rows, columns = recipe.crop or train.image(0).shape[:2]
    kind = "cuda" if device.type == "cuda" else "cpu"
    optimizer: cost.Optimizer = "adamw" if recipe.optimizer == "adamw" else "sgd"
    one, two = (
        cost.estimate(model, rows, columns, n, training=True, device=kind, optimizer=optimizer).peak_bytes
        for n in (1, 2)
    )
    most = int((SHARE * room - one) // max(two - one, 1)) + 1
    if most >= recipe.batch_size:
        return recipe.batch_size, ""
    return max(1, most), f"as many as {room / 2**30:.1f} GiB of memory take"


def _memory(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else processor.memory()


def _sizes(summary: Summary) -> str:
    low, high = ("x".join(map(str, s)) for s in (summary.smallest, summary.largest))
    return low if low == high else f"{low} to {high}"


def _imbalance(train: Dataset, summary: Summary | None) -> str:
    """The rarest and the most frequent class of the main head."""
    head = next(iter(train.taxonomies), "")
    found = summary.heads.get(head) if summary else None
    shares = [(f, n) for f, n in zip(found.frequency, found.classes, strict=False) if f > 0] if found else []
    if len(shares) < 2:
        return ""
    (low, rare), (high, _) = min(shares), max(shares)
    return f"{printable(rare)} has 1/{high / low:.0f} of the pixels of the largest class"


def _setting(recipe: Recipe, key: str, why: str) -> str:
    value = getattr(recipe, key)
    text = "x".join(map(str, value)) or "whole images" if key == "crop" else value
    return f"{key} {text}" + (f" ({why})" if why else "")
