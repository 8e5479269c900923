"""Writing a run down: rows of the log, checkpoints, the end; and undoing a step that was refused."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor

import fullyconv.models.store as store
import fullyconv.train.advice as advice
import fullyconv.train.caching as caching
import fullyconv.train.measuring as measuring
import fullyconv.train.planning as planning
import fullyconv.train.training_state as training_state
from fullyconv.checkpoint import RunDirectory
from fullyconv.errors import FullyconvError
from fullyconv.files import open_append
from fullyconv.models.interface import TorchModule
from fullyconv.train.advice import not_finite
from fullyconv.train.batch_reader import ReadStep, refuse_many_unreadable
from fullyconv.train.context import RunContext, training_mode
from fullyconv.train.signals import Stop
from fullyconv.train.step import Outcome

__all__ = [
    "accept_step",
    "advance",
    "finish_run",
    "log_step",
    "measure_now",
    "next_step",
    "rescue",
    "save_checkpoint",
    "snapshot",
    "undo",
]


def snapshot(model: TorchModule) -> list[Tensor]:
    """Copies of the buffers (batch norm's statistics), which a forward pass changes before it is known to be good."""
    return [b.clone() for b in model.buffers()]


def undo(model: TorchModule, buffers: list[Tensor]) -> None:
    """Take back what a refused step did to the buffers."""
    for b, before in zip(model.buffers(), buffers, strict=True):
        b.copy_(before)


def accept_step(c: RunContext, outcome: Outcome, norm: float, step: ReadStep, buffers: list[Tensor]) -> bool:
    """Whether the step may be taken. A NaN or infinite loss or gradient is refused: `buffers` are put back, its files
    are named and written to refused.jsonl, and `max_bad_steps` of them in a row end the run."""
    overflow = c.recipe.precision == "fp16" and c.scaler.is_enabled() and math.isfinite(outcome.loss)
    if math.isfinite(outcome.loss) and (math.isfinite(norm) or overflow):
        c.state.refused = 0
        return True
    undo(c.model, buffers)
    c.state.refused += 1
    what = "loss" if not math.isfinite(outcome.loss) else "gradient"
    names = _images(c, step)
    files = ", ".join(names)
    c.display.note(f"step {c.state.step + 1}: the {what} is not finite, the step is not taken; its images: {files}")
    if c.run is not None:
        row = {"step": c.state.step + 1, "epoch": step.ticket.epoch, "what": what, "files": names}
        try:
            with os.fdopen(open_append(c.out / "refused.jsonl"), "ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except (OSError, FullyconvError) as error:
            c.display.note(f"refused.jsonl cannot be written ({error}).")
    if c.state.refused >= c.recipe.max_bad_steps:
        cause = not_finite(c, step.batches) or _UNKNOWN.format(c.recipe.lr)
        raise FullyconvError(
            f"The {what} was not finite for {c.state.refused} steps in a row, the last with {files}; "
            f"{cause}. The last good checkpoint is {c.out / 'last'}."
        )
    return False


_UNKNOWN = "look at these images, or lower lr (now {:g}) or set clip = 1"


def _images(c: RunContext, step: ReadStep) -> list[str]:
    """The images that a step learned from, those of the other processes by its ticket."""
    if c.group.size > 1:
        return [c.train.records[i].name for i in step.ticket.everyone]
    return [name for batch in step.batches for name in batch.names]


@contextmanager
def rescuing(c: RunContext) -> Iterator[None]:
    """When what is inside fails, the last whole step is kept before the error goes on."""
    try:
        yield
    except (FullyconvError, OSError):
        rescue(c)
        raise


def next_step(c: RunContext, steps: Iterator[ReadStep]) -> ReadStep:
    """The next step's images. When they cannot be had, the last whole step is kept before the error goes on."""
    with rescuing(c):
        with c.group.together():
            step = next(steps)
        new = [text for text in dict.fromkeys(c.group.gather(step.bad)) if text not in c.state.bad]
        for text in new:
            c.display.note(f"skipped, another image takes its place: {text}")
        c.state.bad += new
        if new:
            refuse_many_unreadable(c.state.bad, len(c.train), c.recipe)
        return step


def measure_now(c: RunContext, stop: Stop) -> None:
    """`measuring.measure`, with the last whole step kept when it fails (an image that cannot be read)."""
    with rescuing(c):
        measuring.measure(c, stop)


def advance(c: RunContext, step: ReadStep) -> None:
    """Move the state past a step."""
    s, ticket = c.state, step.ticket
    s.step += 1
    s.finished = False  # a longer recipe goes on with a run that had ended
    seconds = c.clock.since_mark()
    s.elapsed += c.group.first(seconds) if c.plan.budget else seconds
    s.epoch, s.position = ticket.epoch, ticket.position + len(ticket.everyone)
    if s.position >= len(c.train):
        s.epoch, s.position = ticket.epoch + 1, 0


def log_step(c: RunContext, step: ReadStep, outcome: Outcome, rate: float, norm: float) -> None:
    """A row of metrics.jsonl, without times, so that a resumed run writes the same bytes; and the live line."""
    epoch = c.state.epoch + c.state.position / len(c.train)
    row = {
        "kind": "step",
        "step": c.state.step,
        "epoch": round(epoch, 6),
        "loss": outcome.loss,
        "pixel_loss": outcome.pixel,
        "lr": rate,
        "gradient": norm,
        "order": f"{zlib.crc32(repr(step.ticket.everyone).encode()):08x}",
    }
    c.write(row)
    facts = {
        "step": c.state.step,
        "epoch": epoch,
        "loss": outcome.pixel,
        "lr": rate,
        "chance": _chance(c),
        "left": planning.seconds_left(c.plan, c.state),
    }
    c.display.step(facts, planning.progress(c.plan, c.state), c.state.step * c.recipe.batch_size, c.clock)


def _chance(c: RunContext) -> float:
    """The cross-entropy of always calling all classes equally likely; 0 where something else is minimised."""
    if c.recipe.loss_terms != {"cross_entropy": 1.0}:
        return 0.0
    return sum(math.log(len(t)) for t in c.model.taxonomies.values())


def save_checkpoint(c: RunContext, *, alone: bool = False) -> None:
    """A checkpoint of this very step, on the first process; the others wait for it unless it is `alone`."""
    with nullcontext() if alone else c.group.together():
        if c.run is not None:
            _save(c, c.run)
    c.clock.saved()
    c.display.pause()
    c.saved = c.state.step


def _save(c: RunContext, run: RunDirectory) -> None:
    model = c.average or c.model
    x, scores = store.canary(model)
    _refuse_broken(c, scores)
    run.save(
        c.state.step,
        tensors={n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()},
        config=store.config_json(model),
        preprocessor=store.preprocessor_json(model),
        card=run_card(c),
        canary={"input": x, **scores},
        state=training_state.pack_training(c.state, c.model, c.average, c.optimizer, c.scaler, c.about, c.machine),
        # What is never measured has no best but its last.
        best=c.val is None or (c.state.best_step == c.state.step and c.state.measured == c.state.step),
    )
    training_mode(c.model, c.recipe)  # the canary ran in evaluation mode


def _refuse_broken(c: RunContext, scores: Mapping[str, Tensor]) -> None:
    """FullyconvError for a network that gives no finite scores any more: it must not take a good one's place."""
    if all(bool(s.isfinite().all()) for s in scores.values()):
        return
    good = c.out / "last"
    remedy = f"the last good checkpoint is {good}" if good.exists() else "look at the weights that it starts from"
    raise FullyconvError(
        f"The network of step {c.state.step} gives scores that are not finite, so it is not kept; lower lr (now "
        f"{c.recipe.lr:g}) or set clip = 1; {remedy}."
    )


def rescue(c: RunContext) -> None:
    """Keep the last whole step when something outside it failed. It must not hide the error that it answers."""
    if c.saved != c.state.step:
        try:
            save_checkpoint(c, alone=True)
        except FullyconvError as error:
            c.display.note(f"The last step could not be kept: {error}")


def finish_run(c: RunContext, stop: Stop) -> None:
    """After the last step: measure, keep, and say where it is; after a signal: keep this step and raise."""
    if c.group.any(bool(stop)):
        if c.saved != c.state.step:
            save_checkpoint(c)
        raise stop.error(f"step {c.state.step} is saved in {c.out}; go on with --resume")
    if c.state.finished:
        _drop_cache(c)
        return
    if c.val is not None and c.state.measured != c.state.step:
        measure_now(c, stop)
        if c.state.measured != c.state.step:  # a signal came
            finish_run(c, stop)
    c.state.finished = True
    save_checkpoint(c)
    _drop_cache(c)
    measuring.keep_times(c)
    c.display.end(c.clock)
    if c.state.best >= 0 and c.state.best_at_floor:
        c.display.note(advice.learned_nothing(c))
    elif note := advice.how_it_ended(c):
        c.display.note(note)


def _drop_cache(c: RunContext) -> None:
    if c.run is not None and c.recipe.cache == "disk":
        caching.drop(c.out)


def run_card(c: RunContext) -> str:
    """README.md of a checkpoint: what it is, the data, the recipe, the score with its protocol."""
    score = (
        f"mean IU {c.state.best:.4f} at step {c.state.best_step} on {c.val.kind}:{c.val.split} ({len(c.val)} images; "
        "labels' own resolution, classes present in the truth, ignored pixels left out)"
        if c.val and c.state.best >= 0
        else "not measured"
    )
    return (
        store.model_card(c.model)
        + f"\n## Training\nData: {c.train.kind}, split {c.train.split}, {len(c.train)} images. Step {c.state.step}.\n\n"
        f"Best score of the run: {score}.\n\nLicence: that of the data and of the weights it started from.\n\n"
        f"```toml\n{c.recipe.to_toml()}```\n"
    )
