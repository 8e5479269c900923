"""What to try when a run has learned nothing: the most likely cause first, from what the run itself knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fullyconv.errors import printable

if TYPE_CHECKING:
    from fullyconv.train.context import RunContext
    from fullyconv.train.step import Batch

__all__ = ["how_it_ended", "learned_nothing", "not_finite", "nothing_counted"]

HUGE = 1e4  # spreads from the mean: what no measurement is

TELLING = 0.01  # of mean IU: a point, less than which two measurements of one network's course often differ by
PAST_THE_BEST = 0.05  # of mean IU: what is lost to the best before it is worth a word

FEW_STEPS = 300  # steps in which a network from random weights seldom learns to tell classes apart


def learned_nothing(c: RunContext) -> str:
    """A sentence for the end of a run whose best measurement is no better than always answering one class."""
    tried = [*_steps(c), *_start(c), *_rate(c), *_balance(c), *_crop(c)]
    return (
        f"This run has learned nothing yet: its best mean IU, {c.state.best:.4f}, is no better than answering one "
        f"class everywhere. Try, one after the other: {'; '.join(tried)}; and see what fullyconv check says."
    )


def how_it_ended(c: RunContext) -> str:
    """A sentence where the measurements say that the run was too short, or that it went past its best; else ""."""
    if len(c.scores) < 2:
        return ""
    before, last = c.scores[-2:]
    if c.state.worse == 0 and last - before > TELLING:
        return (
            f"Mean IU was still rising when the run ended ({100 * before:.1f} %, then {100 * last:.1f} %, in "
            f"{c.state.step} steps): a longer one (--time, or --set epochs) is likely to give more."
        )
    if c.state.best - last > PAST_THE_BEST:
        return (
            f"The best network is that of step {c.state.best_step} ({100 * c.state.best:.1f} %), which `best` holds; "
            f"the last has {100 * last:.1f} %: a shorter run, a lower rate or more images would suit these data."
        )
    return ""


def _steps(c: RunContext) -> list[str]:
    length = f"--set steps={max(2000, 10 * c.state.step)}"
    return (
        [f"more steps ({length}; these were {c.state.step})"]
        if c.state.step < FEW_STEPS or not c.recipe.weights
        else []
    )


def _start(c: RunContext) -> list[str]:
    if c.recipe.weights or c.recipe.init_from:
        return []
    return ["trained weights to start from (--set weights=auto or weights=FILE, or --init-from RUN)"]


def _rate(c: RunContext) -> list[str]:
    """The rate by the usual range of the optimiser."""
    low, high = (1e-4, 3e-3) if c.recipe.optimizer == "adamw" else (1e-3, 1e-1)
    if c.recipe.loss == "sum" or math.isclose(c.recipe.lr, 1e-3):
        return [f"another learning rate (--set lr={c.recipe.lr * 3:g} or {c.recipe.lr / 3:g})"]
    if not low <= c.recipe.lr <= high:
        return [f"a usual learning rate (--set lr={math.sqrt(low * high):.0e}; this was {c.recipe.lr:g})"]
    return [f"another learning rate (--set lr={c.recipe.lr * 3:g} or {c.recipe.lr / 3:g})"]


def _balance(c: RunContext) -> list[str]:
    if c.recipe.class_weights != "none":
        return []
    name = printable(c.floor_name)
    often = f" ({name} is {100 * c.floor_share:.0f} % of the measured pixels)" if c.floor_share else ""
    return [f"--set class_weights=median-frequency{often}"]


def _crop(c: RunContext) -> list[str]:
    return ["crops in which the classes are large (--set crop=[256,256])"] if not c.recipe.crop else []


def not_finite(c: RunContext, batches: Sequence[Batch]) -> str:
    """Why a step's loss was not finite, with what to do, as far as its images and the network say it; else ""."""
    if broken := [name for name, p in c.model.named_parameters() if not bool(p.isfinite().all())]:
        return (
            f"{len(broken)} tensors of the network hold numbers that are not finite themselves (the first: "
            f"{printable(broken[0])}): start again from weights that are sound"
        )
    for batch in batches:
        for name, image in zip(batch.names, batch.images, strict=True):
            x = c.model.preprocessing(np.asarray(image))
            if not np.isfinite(x).all():
                return f"{printable(name)} holds numbers that are not finite: declare them as nodata, or leave it out"
            if float(np.abs(x).max()) > HUGE:
                low, high = float(np.asarray(image).min()), float(np.asarray(image).max())
                return (
                    f"{printable(name)} holds {low:.6g}..{high:.6g}, far from all other images: if that stands for "
                    "pixels without data, declare it as the file's nodata value (gdal_edit.py -a_nodata VALUE FILE)"
                )
    return ""


def nothing_counted(c: RunContext, most: int = 50) -> str:
    """Why every score weight is still exactly 0 after steps of training: no pixel counted. Looks at some labels."""
    head, taxonomy = next(iter(c.train.taxonomies.items()))
    some = [c.train[i].labels[head] for i in range(min(most, len(c.train)))]
    seen = sorted({int(v) for label in some for v in np.unique(label)} - {taxonomy.ignore})
    weights = c.weights.get(head)
    before = f"Nothing was learned in {c.state.step} steps: "
    if not seen and any(bool((c.train.read_labels(r, head) != taxonomy.ignore).any()) for r in c.train.records[:most]):
        return (
            f"{before}every labelled pixel of the images looked at ({len(some)}) lies where its image holds no data "
            "(NaN, infinite or declared nodata); give images that hold data, or correct the declared nodata value."
        )
    if not seen:
        return (
            f"{before}every pixel of the {head} labels looked at ({len(some)}) holds {taxonomy.ignore}, the ignored "
            "value; give labels that hold class ids, or name the value that is ignored in classes.txt."
        )
    if weights is not None and not any(float(weights[v]) for v in seen):
        named = ", ".join(printable(taxonomy.names[v]) for v in seen[:5])
        return f"{before}class_weights are 0 for every class that occurs ({named}); give these a weight above 0."
    if 0 < c.recipe.clip < 1e-9:
        return f"{before}clip = {c.recipe.clip:g} leaves nothing of a gradient; give one of about 1, or 0 for none."
    return (
        f"{before}no gradient reached the score layers; raise the learning rate (this was {c.recipe.lr:g}), or see "
        "what fullyconv check says of the images."
    )
