"""The network that a recipe learns: made by name for the data's classes, started from weights or from other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fullyconv import models
from fullyconv.checkpoint import model_of, read_model
from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UsageError, foreign_values
from fullyconv.models.fcn import FCN
from fullyconv.models.interface import TrainableModel
from fullyconv.models.names import INPUTS
from fullyconv.models.surgery import init_from
from fullyconv.preprocessing import Preprocessing
from fullyconv.recipes import Recipe
from fullyconv.terminal import say

__all__ = ["fewest_images", "network", "network_name", "origin", "refuse_single_cells"]


def network_name(recipe: Recipe) -> str:
    """The recipe's model, with the ending of its inputs where the name says none: depth -> fcn32s-resnet18-depth."""
    suffix = next((s for s, modalities in INPUTS.items() if modalities == recipe.inputs), "")
    named = models.parse(recipe.model).inputs
    return recipe.model + suffix if suffix and named == INPUTS[""] else recipe.model


def _for_data(name: str, train: Dataset) -> str:
    """`name`, with the number of bands where the data's images are no colours and it says nothing of inputs."""
    if train.inputs == ("bands",) and models.parse(name).inputs == INPUTS[""] and len(train):
        return f"{name}-bands{train.image(0).shape[2]}"
    return name


def network(
    recipe: Recipe, train: Dataset, quiet: bool, trunk: nn.Module | None = None, *, resume: bool = False
) -> FCN:
    """The recipe's network with the data's classes, started as the recipe says; `origin` tells how it is learned.
    resume: a checkpoint's weights are to come, so that neither `weights` nor `init_from` is read or fetched."""
    if resume:
        recipe = recipe.replace(weights="", init_from="")
    _refuse_sum_from_nothing(recipe, resume or bool(recipe.weights or recipe.init_from))
    preprocessing = Preprocessing.from_json(recipe.preprocessing) if recipe.preprocessing else None
    if preprocessing is None and train.inputs == ("bands",):
        preprocessing = measure_preprocessing(train)
    model = models.create(
        _for_data(network_name(recipe), train),
        weights=None if recipe.weights == "auto" and recipe.init_from else recipe.weights or None,
        padding=recipe.padding or None,
        preprocessing=preprocessing,
        taxonomies=train.taxonomies,
        seed=recipe.seed,
        quiet=quiet,
        trunk=trunk,
        **recipe.options,
    )
    started = model.report is not None and bool(model.report.copied)
    _refuse_sum_from_nothing(recipe, resume or started or bool(recipe.init_from))
    _refuse_other_channels(model, train)
    if recipe.init_from:
        report = init_from(model, recipe.init_from)
        if not quiet:
            say(report)
    if recipe.frozen_trunk:
        for p in model.trunk_parameters():
            p.requires_grad_(False)
    model.origin = {**model.origin, **origin(recipe, train)}
    if recipe.weights == "auto":
        package = model.origin.get("trunk_weights", {}).get("package", "a file downloaded before")
        model.origin = {k: v for k, v in model.origin.items() if k != "weights"} | (
            {"weights": package} if started else {}
        )
    return model


def _refuse_sum_from_nothing(recipe: Recipe, started: bool) -> None:
    if recipe.loss == "sum" and not started:
        raise UsageError(
            f"{recipe.name or 'This recipe'} (summed loss, rate {recipe.lr:g}) learns nothing from random weights; "
            "start it from trained ones: --set weights=FILE (the trunk's), or --set init_from=RUN."
        )


def measure_preprocessing(train: Dataset, most: int = 200) -> Preprocessing:
    """Per-band preprocessing from the images themselves: mean 0 and spread 1 in every band, over `most` of them at
    even distances; pixels that hold no data take no part. DataError where an image has another number of bands."""
    chosen = sorted({round(i) for i in np.linspace(0, len(train) - 1, min(most, len(train)))})
    bands = train.image(chosen[0]).shape[2]
    count, mean, spread = 0, np.zeros(bands), np.zeros(bands)  # spread: summed squared distances from the mean
    for i in chosen:
        image, invalid = train.image_and_invalid(i)
        if image.shape[2] != bands:
            raise DataError(
                f"{train.records[i].name} has {image.shape[2]} bands and {train.records[chosen[0]].name} {bands}; give "
                "all images the same bands."
            )
        pixels = image[::2, ::2] if invalid is None else image[::2, ::2][~invalid[::2, ::2]]
        pixels = pixels.reshape(-1, bands).astype(np.float64)
        if not len(pixels):
            continue
        # Merged by means (Chan et al. 1979): sums of squares cancel where a band lies far from 0.
        own, both = pixels.mean(axis=0), count + len(pixels)
        spread += np.square(pixels - own).sum(axis=0) + np.square(own - mean) * (count * len(pixels) / both)
        mean += (own - mean) * (len(pixels) / both)
        count = both
    std = np.sqrt(spread / max(count, 1))
    std[std == 0] = 1
    return Preprocessing(tuple(range(bands)), 1.0, tuple(map(float, mean)), tuple(map(float, std)))


def origin(recipe: Recipe, train: Dataset) -> dict[str, Any]:
    """How the network is learned, as JSON for its config.json: what `evaluate` needs to know of the heads, and what
    tells one run from another in a table. Holds no paths."""
    before: list[str] = []
    for path in filter(None, recipe.init_from.split(",")):
        config = read_model(model_of(path)).config
        with foreign_values(path, "start from a model that fullyconv wrote"):
            before += [*map(str, (config.get("training") or {}).get("from", [])), str(config.get("name"))]
    length = f"{recipe.steps} steps" if recipe.steps else recipe.time or f"{recipe.epochs:g} epochs"
    return {
        "recipe": recipe.name,
        "length": length if recipe.steps or recipe.time or recipe.epochs else "",
        "images": len(train),
        "inputs": list(train.inputs),
        "heads": dict(train.added),
        "weights": Path(recipe.weights).name,
        "from": before,
        "frozen_trunk": recipe.frozen_trunk,
    }


def fewest_images(recipe: Recipe, count: int) -> int:
    """Images in the smallest pass of an epoch over `count`: its last step may have fewer than the others."""
    last = count % recipe.batch_size if recipe.sampling == "epochs" else 0
    return max(1, (last or min(recipe.batch_size, count)) // recipe.accumulate)


def refuse_single_cells(model: TrainableModel, recipe: Recipe, count: int) -> None:
    """UsageError where batch norm would see one cell of one of the `count` images: a single value has no spread."""
    stride, images = model.geometry(1, 1).align, fewest_images(recipe, count)
    if images > 1 or not recipe.crop or max(recipe.crop) > stride or recipe.batch_norm == "frozen":
        return
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        size = "x".join(map(str, recipe.crop))
        raise UsageError(
            f"A step of {images} crop of {size} is a single cell at stride {stride}, over which batch norm cannot be "
            f"learned; take crops above {stride}, another batch_size (there are {count} images), or "
            "batch_norm = 'frozen'."
        )


def _refuse_other_channels(model: TrainableModel, train: Dataset) -> None:
    """DataError when the inputs of the data have other channels than the network's."""
    have = train.image(0).shape[2] if len(train) else model.preprocessing.channels
    if have != model.preprocessing.channels:
        raise DataError(
            f"{model.name} takes {model.preprocessing.channels} channels, the inputs {', '.join(train.inputs)} have "
            f"{have}; choose inputs of the network's, or a network for them ({', '.join(filter(None, INPUTS))})."
        )
