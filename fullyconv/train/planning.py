"""When things happen: how far a run is, when it measures, saves and ends. Functions of the recipe and the state."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import final

from fullyconv.recipes import Recipe, parse_time
from fullyconv.train.state import State

__all__ = ["Plan", "finished", "measurement_due", "plan", "progress", "saving_due", "seconds_left", "step_seed"]

DEFAULT_EPOCHS = 50.0


@final
@dataclass(frozen=True)
class Plan:
    """A run's length and rhythm. total: steps, 0 when `budget` seconds decide. every: steps between measurements, 0
    when their measured time decides, inf for none before the end. ratio: work of a measurement by that of a step."""

    steps_per_epoch: int
    total: int
    budget: float
    every: float
    ratio: float
    share: float
    save_every: float


def plan(recipe: Recipe, images: int, val_pixels: float, step_pixels: float) -> Plan:
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
    return Plan(per_epoch, total, recipe.seconds, every, ratio, recipe.val_share, parse_time(recipe.save_every))


def progress(plan: Plan, state: State) -> float:
    """Share of the run that is done, 0..1: of the steps, or of the budget less the last measurement's time."""
    if plan.total:
        return min(1.0, state.step / plan.total)
    return min(1.0, state.elapsed / max(1e-9, plan.budget - state.measuring))


def finished(plan: Plan, state: State, early_stop: int) -> bool:
    """Whether the run's length is reached, or `early_stop` measurements brought nothing better."""
    return progress(plan, state) >= 1 or bool(early_stop and state.worse >= early_stop)


def measurement_due(plan: Plan, state: State) -> bool:
    """Whether to measure after this step. By step counts, so that a resumed run measures where the first would;
    under a time budget, once all measurements together stay within their share of the time."""
    if state.measured == state.step:
        return False
    if plan.every:
        return state.step % plan.every == 0
    cost = state.measuring or plan.ratio * state.elapsed / max(1, state.step)
    # This one and the one at the end must fit into the share.
    fits = state.measured_in_all + 2 * cost <= plan.share * (state.elapsed + 2 * cost)
    return fits and state.step - state.measured >= min(20, plan.steps_per_epoch)


def saving_due(plan: Plan, since_save: float) -> bool:
    return since_save >= plan.save_every


def seconds_left(plan: Plan, state: State) -> float:
    """Estimate from the run so far; -1 when unknown."""
    done = progress(plan, state)
    return state.elapsed * (1 - done) / done if done > 0 and state.elapsed > 0 else -1.0


def step_seed(seed: int, step: int, rank: int) -> int:
    """64 bits for torch's generator at this step on this process, unlike those of its neighbours."""
    digest = hashlib.sha256(repr((seed, step, rank)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
