"""The network that a recipe learns: made by name for the data's classes, started from weights or from other runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fullyconv import models
from fullyconv.checkpoint import read_model
from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UsageError
from fullyconv.models.names import INPUTS
from fullyconv.models.surgery import init_from
from fullyconv.preprocessing import Preprocessing
from fullyconv.recipes import Recipe
from fullyconv.train.unfold import unfold

__all__ = ["network", "network_name", "origin"]


def network_name(recipe: Recipe) -> str:
    """The recipe's model, with the ending of its inputs where the name says none: depth -> fcn32s-resnet18-depth."""
    suffix = next((s for s, modalities in INPUTS.items() if modalities == recipe.inputs), "")
    named = models.parse(recipe.model).inputs
    return recipe.model + suffix if suffix and named == INPUTS[""] else recipe.model


def network(recipe: Recipe, train: Dataset, quiet: bool) -> Any:
    """The recipe's network with the data's classes, started as the recipe says; `origin` tells how it is learned."""
    if recipe.loss == "sum" and not recipe.weights and not recipe.init_from:
        raise UsageError(
            f"{recipe.name or 'This recipe'} (summed loss, rate {recipe.lr:g}) learns nothing from random weights; "
            "start it from trained ones: --set weights=FILE (the trunk's), or --set init_from=RUN."
        )
    preprocessing = Preprocessing.from_json(recipe.preprocessing) if recipe.preprocessing else None
    model = models.create(
        network_name(recipe),
        weights=recipe.weights or None,
        padding=recipe.padding or None,
        preprocessing=preprocessing,
        taxonomies=train.taxonomies,
        seed=recipe.seed,
        quiet=quiet,
        **recipe.options,
    )
    _refuse_other_channels(model, train)
    if recipe.init_from:
        report = init_from(model, [model_directory(path) for path in recipe.init_from.split(",")])
        if not quiet:
            print(report, file=sys.stderr)
    if recipe.batch_norm == "unfold":
        unfold(model, train)
    if recipe.frozen_trunk:
        for p in model.trunk_parameters():
            p.requires_grad_(False)
    model.origin = origin(recipe, train)
    return model


def model_directory(path: str) -> Path:
    """A run's last model, or the model directory itself."""
    return Path(path, "last") if Path(path, "last").is_dir() else Path(path)


def origin(recipe: Recipe, train: Dataset) -> dict[str, Any]:
    """How the network is learned, as JSON for its config.json: what `evaluate` needs to know of the heads, and what
    tells one run from another in a table. Holds no paths."""
    before: list[str] = []
    for path in filter(None, recipe.init_from.split(",")):
        config = read_model(model_directory(path)).config
        before += [*(config.get("training") or {}).get("from", []), str(config.get("name"))]
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


def _refuse_other_channels(model: Any, train: Dataset) -> None:
    """DataError when the inputs of the data have other channels than the network's."""
    have = train.image(0).shape[2] if len(train) else model.preprocessing.channels
    if have != model.preprocessing.channels:
        raise DataError(
            f"{model.name} takes {model.preprocessing.channels} channels, the inputs {', '.join(train.inputs)} have "
            f"{have}; choose inputs of the network's, or a network for them ({', '.join(filter(None, INPUTS))})."
        )
