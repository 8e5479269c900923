"""What a run owes to its machine: the type of numbers and how many threads compute. Both decide its bits, so they are
settled once, kept in every checkpoint, and set again when the run goes on."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any, final

import numpy as np
import torch

from fullyconv import processor
from fullyconv.data.base import Dataset
from fullyconv.engine import precision
from fullyconv.errors import UsageError
from fullyconv.models.interface import TrainableModel
from fullyconv.recipes import Recipe
from fullyconv.train.process_group import ProcessGroup
from fullyconv.train.step import Batch, gradients

__all__ = ["Machine", "settle"]

TRIED = 2  # images of the step by which "auto" chooses


@final
class Machine:
    """`facts` are what a checkpoint keeps (JSON); `notes` what is said."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []


def settle(
    recipe: Recipe,
    model: TrainableModel,
    train: Dataset,
    group: ProcessGroup,
    kept: Mapping[str, Any],
    allow: Collection[str],
    stack: ExitStack,
) -> tuple[Recipe, Machine]:
    """The recipe with its precision chosen, threads set until `stack` closes, and what was settled.

    kept: `Machine.facts` of the checkpoint that the run goes on from, empty for a new run (and for old checkpoints).
    Raises UsageError where the run computes in numbers that this device has not.
    """
    machine = Machine()
    stack.callback(torch.set_num_threads, torch.get_num_threads())
    machine.notes += [note for note in (processor.numba_note(),) if note]
    if group.device.type == "cpu":
        machine.notes += _threads(kept.get("threads", 0), "threads" in allow)
    recipe, why = _precision(recipe, model, train, group, kept.get("precision", ""), machine.notes)
    machine.facts = {
        "precision": recipe.precision,
        "why": why,
        "threads": torch.get_num_threads(),
        "width": processor.width(),
        "processor": processor.name(),
        "device": group.device.type,
        "torch": str(torch.__version__),
    }
    changed = [k for k in ("device", "width", "torch") if k in kept and kept[k] != machine.facts[k]]
    if changed:
        was = ", ".join(f"{k} {kept[k]} (now {machine.facts[k]})" for k in changed)
        machine.notes.append(f"The run was begun with {was}: it goes on, but not equal to the bit.")
    return recipe, machine


def _threads(kept: int, free: bool) -> list[str]:
    """Set how many threads compute: the run's own, else as many as were asked for and granted. What is to be said."""
    offered, most = torch.get_num_threads(), math.ceil(processor.cores_granted())
    if not kept or kept == offered or free:
        return processor.right_threads()
    if kept <= most:
        torch.set_num_threads(kept)
        note = f"Going on with {_count(kept)} as the run was begun, not {offered}, so that it ends to the bit as if it"
        return [f"{note} had never stopped; --allow-changed threads takes {offered}."]
    note = f"The run was begun with {_count(kept)} but only {_count(most, 'core')} can be had here: it goes on with"
    return [f"{note} fewer and ends not equal to the bit.", *processor.right_threads()]


def _count(n: int, what: str = "thread") -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def _precision(
    recipe: Recipe, model: TrainableModel, train: Dataset, group: ProcessGroup, kept: str, notes: list[str]
) -> tuple[Recipe, str]:
    """The recipe with "auto" chosen, and why."""
    if recipe.precision != "auto":
        if kept and kept != recipe.precision:
            notes.append(f"The run was begun in {kept}; in {recipe.precision} it goes on, but not equal to the bit.")
        return recipe, "given"
    if kept:
        if not precision.device_has_native(kept, group.device):
            raise UsageError(
                f"The run computes in {kept}, which this {group.device.type} has not; go on where it has, or by "
                "--set precision=fp32, which ends not equal to the bit."
            )
        return recipe.replace(precision=kept), "as the run was begun"
    chosen, why = precision.choose_precision(group.device, lambda name: _seconds(name, recipe, model, train, group))
    chosen = "bf16" if group.first(float(chosen == "bf16")) else "fp32"  # all processes compute in the same numbers
    notes.append(f"precision {chosen}: {why}")
    return recipe.replace(precision=chosen), why


def _seconds(name: str, recipe: Recipe, model: TrainableModel, train: Dataset, group: ProcessGroup) -> float:
    """The time of a step of `recipe` on `TRIED` images at a precision; the network stays as it was."""
    image = train.image(0)
    rows, columns = recipe.crop or image.shape[:2]
    count = min(TRIED, recipe.batch_size)
    images = np.zeros((count, rows, columns, image.shape[2]), image.dtype)
    labels = {head: np.zeros((count, rows, columns), np.uint8) for head in model.heads}
    batches = [Batch(images, labels, ("",) * count)]
    tried = recipe.replace(precision=name, loss="mean", top_k=1.0, lr=1e-3)
    before, mode = [b.clone() for b in model.buffers()], model.training
    scaler = torch.amp.GradScaler(group.device.type, enabled=False)
    alone = ProcessGroup(0, 1, group.device)

    def step() -> None:
        gradients(model.train(), batches, tried, alone, dict.fromkeys(model.heads), scaler)
        model.zero_grad(set_to_none=True)

    with torch.random.fork_rng():
        found = precision.seconds(step, group.device, calls=2)
    for b, was in zip(model.buffers(), before, strict=True):
        b.copy_(was)
    model.train(mode)
    return found
