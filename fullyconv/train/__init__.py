"""fit: recipe x data -> a run directory. `learn` is the loop, top to bottom on one screen.

Everything random (sample order, augmentation, dropout) is a function of the seed and the step, so a run that goes on
from a checkpoint is the run that was never stopped, bit for bit (same machine, CPU or `deterministic`; a time budget
and its schedule follow the clock instead).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch.nn import Module

import fullyconv.train.checkpointing as checkpointing
import fullyconv.train.optimisation as optimisation
import fullyconv.train.planning as planning
from fullyconv.arguments import PATH, TEXTS, Kind, either, maybe, takes
from fullyconv.data.base import Dataset
from fullyconv.data.pairs import from_pairs
from fullyconv.data.pipeline.own import find_transform
from fullyconv.engine.precision import refuse
from fullyconv.errors import Interrupted, Terminated, UsageError, printable
from fullyconv.models.names import own_name
from fullyconv.recipes import Recipe, read_recipe
from fullyconv.taxonomy import Taxonomy
from fullyconv.train.batch_reader import BatchReader, read_steps
from fullyconv.train.context import CUBLAS, NamedData, RunContext, held_out, prepare_run, training_mode
from fullyconv.train.display import Display
from fullyconv.train.loggers import refuse_missing
from fullyconv.train.memory_advice import explained
from fullyconv.train.process_group import join, resolve_device
from fullyconv.train.signals import Stop
from fullyconv.train.stages import run_stages
from fullyconv.train.step import gradient_norm, gradients

__all__ = ["fit"]


@takes(
    recipe=maybe(either(Kind("a Recipe", lambda v: isinstance(v, Recipe)), PATH)),
    out=PATH,
    trunk=maybe(Kind("a torch module", lambda v: isinstance(v, Module))),
    allow=either(TEXTS, Kind("a set of texts", lambda v: isinstance(v, set | frozenset))),
)
def fit(
    recipe: Recipe | str | Path | None = None,
    data: str | os.PathLike[str] | Dataset | Sequence[tuple[object, object]] = "",
    out: str | os.PathLike[str] = "runs/model",
    *,
    val: str | os.PathLike[str] | Dataset | Sequence[tuple[object, object]] | None = None,
    classes: int | Sequence[str] | Taxonomy | None = None,
    trunk: Module | None = None,
    resume: bool = False,
    allow: Collection[str] = (),
    check: bool = True,
    quiet: bool = False,
) -> Path:
    """Train by `recipe` (a Recipe, a published name, a TOML file or None for the defaults) on `data` into `out`.

    data, val: a `Dataset`, what `open_dataset` takes, or a sequence of (image, label) such as a torch `Dataset`
    (`data.pairs`); without `val`, the recipe's `val_split` of `data`, of a sequence a fifth.
    trunk: a torch module of your own in place of the recipe's trunk (`create`); it is trained itself, no copy.
    classes: of a sequence, how many classes there are, their names, or a `Taxonomy`.
    resume: go on from the newest checkpoint in `out`. allow: "network", "classes", "data",
    "transform" or "threads" that may have changed since.
    check: look for everything that is wrong with the data first (`fullyconv check`, fast).
    Returns `out`, whose `best` and `last` are model directories and whose `metrics.jsonl` has a row a step.
    Raises UsageError for a recipe or run directory that cannot be used, DataError for data that cannot be learned,
    Interrupted or Terminated after a signal, with the step saved.

    >>> recipe = fc.Recipe(model="fcn16s-squeezenet1_0", weights="", steps=1, batch_size=2)
    >>> run = fc.fit(recipe, [(image, labels)] * 5, "runs/one", classes=3, quiet=True)
    >>> fc.load(run / "best").heads
    {'semantic': 3}
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    recipe = recipe if trunk is None else _with_own(recipe, trunk)
    data, val = _datasets(recipe, data, val, classes)
    refuse(recipe.precision, resolve_device(recipe.device))
    refuse_missing(recipe)
    if recipe.transform:  # a file that cannot be run is told before anything starts
        find_transform(recipe.transform)
    if recipe.stages:
        return run_stages(recipe, Path(out), resume, fit, data=data, val=val, allow=allow, check=check, quiet=quiet)
    with ExitStack() as stack:
        stack.enter_context(_as_before())
        group = stack.enter_context(join(recipe.device))
        display = stack.enter_context(Display(quiet=quiet, silent=group.rank > 0))
        context = prepare_run(recipe, data, val, Path(out), group, display, resume, allow, check, stack, trunk)
        with _told_if_nothing_was_learned(context):
            learn(context, stack.enter_context(Stop()))
    return Path(out)


@contextmanager
def _told_if_nothing_was_learned(c: RunContext) -> Iterator[None]:
    """A run that fails before its first step leaves a directory all the same; what to do with it is said."""
    try:
        yield
    except (Interrupted, Terminated):
        raise
    except Exception:
        if c.state.step == 0 and c.run is not None:
            c.display.note(
                f"Nothing was learned: {printable(c.out)} holds the network as it started. When the cause is mended, "
                "go on with --resume, or remove the folder to begin anew under its name."
            )
        raise


def _with_own(recipe: Recipe, trunk: Module) -> Recipe:
    """The recipe with a module of the user's as its trunk; UsageError where it asks for weights, or for stages."""
    if recipe.weights not in ("", "auto"):
        raise UsageError("The recipe's weights are for a trunk by name; load them into your own module first.")
    if recipe.stages:
        raise UsageError("Stages make networks by name; train a trunk of your own by the recipes of the stages.")
    return recipe.replace(model=own_name(recipe.model, trunk), weights="")


def _datasets(
    recipe: Recipe,
    data: NamedData | Sequence[tuple[object, object]],
    val: NamedData | Sequence[tuple[object, object]] | None,
    classes: int | Sequence[str] | Taxonomy | None,
) -> tuple[NamedData, NamedData | None]:
    """`data` and `val` as data sets where they are sequences; without `val`, a fifth of a sequence is held out."""
    if isinstance(data, str | os.PathLike) and not os.fspath(data):
        raise UsageError("Name the labelled images to learn from: data=PATH, kind:PATH or a Dataset.")
    known = (str, os.PathLike, Dataset)
    if classes is not None and isinstance(data, known):
        raise UsageError("classes= is about sequences of (image, label); name a folder's classes in its classes.txt.")
    if val is not None and not isinstance(val, known):
        names = classes if classes is not None else getattr(data, "taxonomies", {}).get("semantic")
        val = from_pairs(val, names, "val")
    if isinstance(data, known):
        return data, val
    data = from_pairs(data, classes)
    return (data, val) if val is not None or not recipe.val_split else held_out(data, why="No val= is given")


@contextmanager
def _as_before() -> Iterator[None]:
    """torch's random numbers and its switches for equal bits, the environment's too, are the caller's again when the
    run has ended."""
    cublas = os.environ.get(CUBLAS)
    mode = torch.get_deterministic_debug_mode()  # (`use_deterministic_algorithms` loads torch's compiler: seconds)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            if cublas is None:
                os.environ.pop(CUBLAS, None)


def learn(c: RunContext, stop: Stop) -> None:
    """Step until the recipe's length is reached or a signal comes; measure and keep on the way."""
    state, plan, recipe = c.state, c.plan, c.recipe
    reader = BatchReader(c.train, recipe, c.model.preprocessing.mean_pixel())
    if state.step == 0:
        checkpointing.save_checkpoint(c)  # whatever happens, there is something to go on from
    elif planning.measurement_due(plan, state):
        checkpointing.measure_now(c, stop)
        checkpointing.save_checkpoint(c)
    c.clock.restart()
    with closing(read_steps(reader, recipe, state, c.group)) as steps:
        while not c.group.any(bool(stop)) and not planning.finished(plan, state, recipe.early_stop):
            step = checkpointing.next_step(c, steps)
            c.clock.lap("data")
            torch.manual_seed(planning.step_seed(recipe.seed, state.step, c.group.rank))
            rate = optimisation.set_rate(c.optimizer, recipe, planning.progress(plan, state))
            buffers = checkpointing.snapshot(c.model)
            with explained(c, step.batches):
                outcome = gradients(c.model, step.batches, recipe, c.group, c.weights, c.scaler, c.clock.lap)
            norm = gradient_norm(c.optimizer, c.scaler, recipe.clip)
            if checkpointing.accept_step(c, outcome, norm, step, buffers):
                c.scaler.step(c.optimizer)
                if c.average is not None:
                    optimisation.average_into(c.average, c.model, recipe.ema, state.step)
            c.scaler.update()
            c.optimizer.zero_grad(set_to_none=True)
            c.clock.lap("backward")
            checkpointing.advance(c, step)
            checkpointing.log_step(c, step, outcome, rate, norm)
            if planning.measurement_due(plan, state):
                checkpointing.measure_now(c, stop)
                training_mode(c.model, recipe)
                checkpointing.save_checkpoint(c)
            elif planning.saving_due(plan, c.clock.since_save()):
                checkpointing.save_checkpoint(c)
    checkpointing.finish_run(c, stop)
