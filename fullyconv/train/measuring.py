"""Measuring on the way: the labels' own resolution, one integer table, the same figures as `fullyconv evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from fullyconv import metrics
from fullyconv.errors import DataError, StorageError, printable
from fullyconv.evaluation import class_figures, evaluate
from fullyconv.evaluation.progress import draw_progress
from fullyconv.evaluation.result import Floor, floor_of
from fullyconv.files import atomic_write
from fullyconv.predict import Predictor
from fullyconv.train.advice import nothing_counted
from fullyconv.train.context import TIMES, RunContext
from fullyconv.train.signals import Stop
from fullyconv.train.training_state import State

__all__ = ["keep_times", "measure"]


@final
class _Abandoned(Exception):
    """A signal came while measuring; the run measures again when it goes on."""


def measure(c: RunContext, stop: Stop) -> None:
    """Measure the weights that would be kept, log the figures, and note whether they are the best so far."""
    assert c.val is not None
    c.display.pause()

    def progress(_done: int, _all: int) -> None:
        if stop and c.group.size == 1:  # with more processes all must measure as many images
            raise _Abandoned

    model = c.average or c.model
    if c.state.step and model.untrained:  # said with its cause, before a predictor refuses such a network
        raise DataError(nothing_counted(c))
    predictor = Predictor(model)
    share = c.group.rank, c.group.size
    try:
        with c.group.together():
            result = evaluate(predictor, c.val, share=share, progress=progress, timeout=c.recipe.worker_timeout)
    except _Abandoned:
        c.clock.lap("measure")
        return
    tables = {h: c.group.sum(torch.from_numpy(t).to(c.group.device)).cpu().numpy() for h, t in result.tables.items()}
    _draw(c, predictor)
    _note(c, tables)
    keep_times(c)


def _draw(c: RunContext, predictor: Predictor) -> None:
    """A few validation images as the network sees them now, for the report; a full disk costs them, not the run."""
    if c.run is None or c.val is None:
        return
    try:
        draw_progress(predictor, c.val, c.out / "progress", c.state.epoch + c.state.position / len(c.train))
    except StorageError as error:
        c.display.note(f"The images of this measurement are missing: {error}")


def keep_times(c: RunContext) -> None:
    """Where the time went so far, for the report; a full disk costs it, not the run."""
    if c.run is None:
        return
    try:
        atomic_write(c.out / TIMES, json.dumps(c.clock.spent).encode())
    except StorageError as error:
        c.display.note(f"{TIMES} is missing: {error}")


def _note(c: RunContext, tables: Mapping[str, NDArray[np.int64]]) -> None:
    state, figures = c.state, {}
    for head, table in tables.items():
        figures[head] = {"mean_iu": metrics.mean_iu(table), "pixel_accuracy": metrics.pixel_accuracy(table)}
    main = next(iter(figures))
    score = figures[main]["mean_iu"]
    c.scores.append(score)
    state.measured, state.worse = state.step, state.worse + 1
    if score == score and score > state.best:  # a NaN never becomes the best
        state.best, state.best_step, state.worse = score, state.step, 0
    state.measuring = c.group.first(c.clock.lap("measure"))
    state.elapsed += c.group.first(c.clock.since_mark())
    state.measured_in_all += state.measuring
    row: dict[str, Any] = {"kind": "measurement", "step": state.step, "split": c.val.split if c.val else ""}
    for head, values in figures.items():
        row |= {(k if head == main else f"heads.{head}.{k}"): v for k, v in values.items()}
    taxonomy = c.model.taxonomies.get(main, c.train.taxonomy)
    floor = floor_of(tables[main], taxonomy)
    state.at_floor = floor.near(figures[main]["pixel_accuracy"], score)
    if state.best_step == state.step:
        state.best_at_floor = state.at_floor
    c.floor_name, c.floor_share = floor.name, floor.pixel_accuracy
    row["floor"] = floor.to_json()
    row["per_class_iu"] = {figure.name: figure.iu for figure in class_figures(tables[main], taxonomy)}
    c.write(row)
    c.display.note(f"step {state.step}: {_said(state, figures[main], floor)}")


def _said(state: State, figures: dict[str, float], floor: Floor) -> str:
    """The measurement in words, beside what always answering one class would score."""
    score, accuracy = figures["mean_iu"], figures["pixel_accuracy"]
    best = "best" if state.best_step == state.step else f"best {state.best:.4f} at step {state.best_step}"
    best += ", no better than the floor" if state.best_at_floor else ""
    return (
        f"mean IU {score:.4f} ({best}), pixel accuracy {accuracy:.4f}; floor (always {printable(floor.name)}) "
        f"{floor.mean_iu:.4f} and {floor.pixel_accuracy:.4f}"
    )
