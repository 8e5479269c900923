"""Networks to and from model directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fullyconv import checkpoint
from fullyconv.models.interface import TrainableModel
from fullyconv.models.tracer import shared_copy
from fullyconv.taxonomy import Taxonomy

__all__ = ["canary", "model_card", "save_model"]

M = TypeVar("M", bound=TrainableModel)


def canary(model: TrainableModel) -> tuple[Tensor, dict[str, Tensor]]:
    """A small fixed image (1 C 37 41) and the coarse scores that this network gives it: re-checked at load."""
    generator = torch.Generator().manual_seed(20150607)
    x = torch.randn(1, model.preprocessing.channels, 37, 41, generator=generator)
    ready = shared_copy(model).eval()
    with torch.inference_mode():
        scores = {head: s.float().cpu() for head, s in ready.coarse(x.to(next(model.parameters()).device)).items()}
    return x, scores


def model_card(model: TrainableModel) -> str:
    """The README of a model directory: what it is, its classes, its input."""
    heads = "\n".join(
        f"- **{head}** ({len(t)} classes, ignore {t.ignore}): {', '.join(t.names)}"
        for head, t in model.taxonomies.items()
    )
    pre = model.preprocessing
    return (
        "---\nlibrary_name: fullyconv\ntags: [semantic-segmentation, fully-convolutional-network]\n---\n"
        f"# {model.name}\n\n"
        f"A fully convolutional network (Long, Shelhamer, Darrell 2015). Any H x W in, labels of the same size out.\n\n"
        f"## Heads\n{heads}\n\n## Input\n{pre.channels} channels, order {list(pre.order)}, scale {pre.scale:g}, "
        f"mean {list(pre.mean)}, std {list(pre.std)}.\n\n"
        '## Use\n```python\nimport fullyconv as fc\nlabels = fc.Predictor(fc.load("."))(image)\n```\n'
    )


def preprocessor_json(model: TrainableModel) -> dict[str, Any]:
    """preprocessor_config.json: Hugging Face's keys beside our own."""
    pre = model.preprocessing
    return {
        **pre.to_json(),
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": False,
        "image_mean": list(pre.mean),
        "image_std": list(pre.std),
        "rescale_factor": pre.scale,
    }


def config_json(model: TrainableModel) -> dict[str, Any]:
    """config.json: what re-creates the network, and how it was learned (`checkpoint` adds Hugging Face's keys)."""
    return {**model.config(), **({"training": model.origin} if model.origin else {})}


def save_model(model: TrainableModel, directory: Path, text: str = "") -> Path:
    """Write the model directory and return it."""
    x, scores = canary(model)
    checkpoint.write_model(
        directory,
        tensors={n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()},
        config=config_json(model),
        preprocessor=preprocessor_json(model),
        card=text or model_card(model),
        canary={"input": x, **scores},
    )
    return directory


def restore(model: M, stored: checkpoint.Stored) -> M:
    """Put stored tensors into `model` (strict: names, shapes, dtypes, before any is read) and check the canary."""
    stored.match(model.state_dict())
    model.load_state_dict(stored.tensors, strict=True, assign=True)
    model.eval()
    with torch.inference_mode():
        checkpoint.check_canary(stored, model.coarse)
    return model


def taxonomies(config: dict[str, Any]) -> dict[str, Taxonomy]:
    return {head: Taxonomy.from_json(value) for head, value in config["taxonomies"].items()}
