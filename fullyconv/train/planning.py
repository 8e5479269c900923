"""When things happen: how far a run is, when it measures, saves and ends. Functions of the recipe and the state."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import final

from fullyconv.recipes import Recipe, parse_time
from fullyconv.train.training_state import State

__all__ = [
    "TrainingPlan",
    "finished",
    "measurement_due",
    "plan_training",
    "progress",
    "saving_due",
    "seconds_left",
    "step_seed",
]

DEFAULT_EPOCHS = 50.0  # where a recipe names neither a time nor a length


@final
@dataclass(frozen=True)
class TrainingPlan:
    """A run's length and rhythm. total: steps, 0 when `budget` seconds decide. every: steps between measurements, 0
    when their measured time decides, inf for none before the end. ratio: work of a measurement by that of a step."""

    steps_per_epoch: int
    total: int
    budget: float
    every: float
    ratio: float
    share: float
    save_every: float


def plan_training(recipe: Recipe, images: int, val_pixels: float, step_pixels: float) -> TrainingPlan:
    """val_pixels: pixels of the whole measured split; step_pixels: pixels a step learns from.

    A pixel that is learned costs about three that are labelled (forward; backward to inputs and to weights).
    """
    per_epoch = math.ceil(images / recipe.batch_size)
    epochs = recipe.epochs or DEFAULT_EPOCHS
    total = 0 if recipe.time else recipe.steps or max(1, round(epochs * per_epoch))
    ratio = val_pixels / (3 * step_pixels)
    if not val_pixels:
        every = math.inf
    elif recipe.val_every:
        every = max(1.0, round(recipe.val_every * per_epoch))
    elif recipe.time:
        every = 0.0
    else:
        every = max(per_epoch, math.ceil(ratio * (1 - recipe.val_share) / recipe.val_share))
    return TrainingPlan(per_epoch, total, recipe.seconds, every, ratio, recipe.val_share, parse_time(recipe.save_every))


def progress(plan_training: TrainingPlan, state: State) -> float:
    """Share of the run that is done, 0..1: of the steps, or of the budget less the last measurement's time."""
    if plan_training.total:
        return min(1.0, state.step / plan_training.total)
    return min(1.0, state.elapsed / max(1e-9, plan_training.budget - state.measuring))


def finished(plan_training: TrainingPlan, state: State, early_stop: int) -> bool:
    """Whether the run's length is reached, or `early_stop` measurements brought nothing better."""
    return progress(plan_training, state) >= 1 or bool(early_stop and state.worse >= early_stop)


def measurement_due(plan_training: TrainingPlan, state: State) -> bool:
    """Whether to measure after this step. By step counts, so that a resumed run measures where the first would;
    under a time budget, once all measurements together stay within their share of the time."""
    if state.measured == state.step:
        return False
    if plan_training.every:
        return state.step % plan_training.every == 0
    cost = state.measuring or plan_training.ratio * state.elapsed / max(1, state.step)
    # This one and the one at the end must fit into the share.
    fits = state.measured_in_all + 2 * cost <= plan_training.share * (state.elapsed + 2 * cost)
    return fits and state.step - state.measured >= min(20, plan_training.steps_per_epoch)


def saving_due(plan_training: TrainingPlan, since_save: float) -> bool:
    return since_save >= plan_training.save_every


def seconds_left(plan_training: TrainingPlan, state: State) -> float:
    """Estimate from the run so far; -1 when unknown."""
    done = progress(plan_training, state)
    return state.elapsed * (1 - done) / done if done > 0 and state.elapsed > 0 else -1.0


def step_seed(seed: int, step: int, rank: int) -> int:
    """64 bits for torch's generator at this step on this process, unlike those of its neighbours."""
    digest = hashlib.sha256(repr((seed, step, rank)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
