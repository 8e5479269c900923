"""What a checkpoint holds besides the weights, and what must not have changed when a run goes on from one."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from fullyconv.checkpoint import Stored
from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UnknownName, UsageError, foreign_values, printable
from fullyconv.models.interface import TrainableModel

__all__ = ["CHANGES", "State", "identity", "pack_training", "refuse_changes", "restore_training"]

CHANGES = ("network", "classes", "data", "transform")  # of a run's identity
ALLOWED = (*CHANGES, "threads")  # what `allow` may name
MOST_THREADS = 1 << 16  # a checkpoint may ask for: no machine has so many cores, and torch would start them all
SLOTS = (frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset({"momentum_buffer"}), frozenset({"velocity"}))


@final
@dataclass
class State:
    """Where a run is. Everything random is a function of the seed and these numbers, so no generator is stored."""

    step: int = 0  # steps done
    epoch: int = 0
    position: int = 0  # images of this epoch that were learned
    elapsed: float = 0.0  # seconds learned and measured, which a time budget counts
    measured: int = 0  # step of the last measurement
    measuring: float = 0.0  # seconds it took
    measured_in_all: float = 0.0  # seconds all measurements took
    best: float = -1.0  # best mean IU
    best_step: int = 0
    worse: int = 0  # measurements since the best
    at_floor: bool = False  # the last measurement was no better than always answering one class
    best_at_floor: bool = False  # so was the best
    refused: int = 0  # steps in a row that were not taken (NaN)
    bad: list[str] = field(default_factory=list)  # unreadable samples that were replaced
    finished: bool = False


def identity(model: TrainableModel, train: Dataset, content: str, transform: str) -> dict[str, Any]:
    """The network, classes, data and own transform of a run, as JSON; content: a digest of everything that its files
    hold; transform: of the file that a transform of one's own lies in."""
    return {
        "network": {"name": model.name, "heads": dict(model.heads), "options": _plain(model.config())},
        "classes": {head: list(t.names) for head, t in train.taxonomies.items()},
        "data": train.fingerprint,
        "content": content,
        "transform": transform,
    }


def _plain(config: Mapping[str, object]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("taxonomies", "heads", "name")}


def refuse_changes(
    before: Mapping[str, Any], now: Mapping[str, Any], allow: Collection[str], changed: str = ""
) -> None:
    """UsageError when the network, classes, data or transform are not those of the checkpoint and `allow` does not name
    them.

    changed: how the data's files differ, in words, where that is known. Checkpoints of earlier versions have no
    "content" or "transform": theirs is not compared.
    """
    for name in allow:
        if name not in ALLOWED:
            raise UnknownName("change to allow", name, ALLOWED)
    for head, names in (before.get("classes") or {}).items():
        _refuse_moved(head, names, now["classes"].get(head, []))
    for what in CHANGES:
        other = before.get(what) != now[what] and (what != "transform" or what in before)
        if what == "data" and "content" in before:
            other = other or before["content"] != now["content"]
        if other and what not in allow:
            words = changed if what == "data" and changed else _difference(before.get(what), now[what])
            if what == "data" and not changed and before.get(what) == now[what]:
                words = "some files hold something else"
            if what == "transform":
                words = "the code of its file is another; the run's is in transform.py"
            verb = "are" if what in ("classes", "data") else "is"
            raise UsageError(
                f"The {what} {verb} not what this run was started with ({words}); "
                f"start a new run with init_from, or go on all the same with --allow-changed {what}."
            )


def _refuse_moved(head: str, before: Sequence[str], now: Sequence[str]) -> None:
    """UsageError for a class that has another id now, whatever is allowed: it would go on with another's scores.
    A class may only be named otherwise."""
    for k, name in enumerate(before):
        if name in now and now.index(name) != k:
            raise UsageError(
                f"The {head} class {name!r} had id {k} when this run was started and has {now.index(name)} now; put "
                "the classes back into their order, or start a new run with init_from, which matches them by name."
            )


def _difference(before: object, now: object) -> str:
    """The first thing that differs, in a few words; classes by their id."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                return f"{key}: {_difference(before.get(key), now.get(key))}"
    if isinstance(before, list) and isinstance(now, list):
        for k, (a, b) in enumerate(zip(before, now, strict=False)):
            if a != b:
                return f"id {k} was {str(a)[:80]!r}, is {str(b)[:80]!r} now"
        return f"{len(before)} then, {len(now)} now"
    return f"{str(before)[:40]} then, {str(now)[:40]} now"


def pack_training(
    state: State,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    about: Mapping[str, object],
    machine: Mapping[str, object],
) -> dict[str, Any]:
    """The nest that `RunDirectory.save` stores as state.json and optim.safetensors.

    The checkpoint's weights are the average's when there is one; the weights being learned stand here then.
    """
    return {
        "train": asdict(state),
        "optimizer": optimizer.state_dict(),
        "weights": dict(model.state_dict()) if average is not None else None,
        "scaler": scaler.state_dict(),
        "identity": about,
        "machine": dict(machine),
        "torch": torch.__version__,
    }


def restore_training(
    stored: Stored,
    model: nn.Module,
    average: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> State:
    """Put everything back from a checkpoint, to the bit; returns where the run was."""
    kept = stored.state
    tensors = stored.tensors
    where = stored.directory / "state.json"
    fresh = [dict(group) for group in optimizer.param_groups]
    try:
        model.load_state_dict(kept["weights"] if kept["weights"] is not None else tensors)
        if average is not None:
            average.load_state_dict(tensors)
        optimizer.load_state_dict(kept["optimizer"])
    except (RuntimeError, ValueError, LookupError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"The checkpoint does not fit this network or optimiser ({printable(first)[:200]}); use init_from."
        ) from error
    except (TypeError, AttributeError, ArithmeticError) as error:  # a stranger's
        raise _foreign(where, f"{type(error).__name__}: {error}") from error
    _refuse_foreign_optimizer(optimizer, fresh, where)
    with foreign_values(where, REMEDY):
        if kept["scaler"]:  # empty where the run was not in fp16
            scaler.load_state_dict(kept["scaler"])
        return read_state(kept["train"], where)


REMEDY = "start a new run with init_from"


def _foreign(where: Path, what: str) -> DataError:
    return DataError(f"{printable(where)} holds what fullyconv does not write ({printable(what)[:200]}); {REMEDY}.")


def kept_machine(stored: Stored) -> Mapping[str, Any]:
    """What the checkpoint's run owes to its machine (`machine.Machine.facts`); DataError for what no run wrote."""
    kept = stored.state.get("machine", {})
    where = stored.directory / "state.json"
    if not isinstance(kept, Mapping) or not isinstance(kept.get("chosen", {}), Mapping):
        raise _foreign(where, "machine")
    if type(kept.get("threads", 0)) is not int or not 0 <= kept.get("threads", 0) <= MOST_THREADS:
        raise _foreign(where, f"threads = {str(kept['threads'])[:40]}")
    if kept.get("precision", "") not in ("", "fp32", "bf16", "fp16"):
        raise _foreign(where, f"precision = {str(kept['precision'])[:40]}")
    return kept


def _refuse_foreign_optimizer(
    optimizer: torch.optim.Optimizer, fresh: Sequence[Mapping[str, object]], where: Path
) -> None:
    """DataError unless the loaded optimiser holds what this one would: numbers of the same kinds, and for each
    parameter tensors of its shape or single numbers."""
    for group, own in zip(optimizer.param_groups, fresh, strict=True):
        for key, value in own.items():
            if key != "params" and not _like(group.get(key), value):
                raise _foreign(where, f"{key} = {str(group.get(key))[:40]}")
        for p in group["params"]:
            kept = optimizer.state.get(p, {})  # empty where it never had a gradient
            shapes = {key: v.shape if isinstance(v, torch.Tensor) else None for key, v in kept.items()}
            wanted = {key: () if key == "step" else p.shape for key in kept}
            if kept and (frozenset(kept) not in SLOTS or shapes != wanted):
                raise _foreign(where, "the optimiser's state")


def _like(value: object, own: object) -> bool:
    """Whether a setting may stand in the place of `own`: a number for a number (finite), else of its very kind."""
    if isinstance(own, bool) or own is None:
        return value is own
    if isinstance(own, int | float):
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if isinstance(own, tuple | list):
        return type(value) is type(own) and len(value) == len(own) and all(map(_like, value, own))
    return type(value) is type(own)


def read_state(kept: object, where: Path) -> State:
    """The state as stored; keys of other versions are passed over."""
    if not isinstance(kept, Mapping) or "step" not in kept:
        raise _foreign(where, "no step")
    found = {f.name: kept[f.name] for f in fields(State) if f.name in kept}
    for name, value in found.items():
        if not _stands_for(getattr(State(), name), value) or (name != "best" and value == -1):
            raise _foreign(where, f"{name} = {str(value)[:40]}")
    return State(**found)


def _stands_for(default: object, value: object) -> bool:
    """Whether a field of `State` may hold `value`: of its default's kind, finite, and no less than -1."""
    if isinstance(default, list):
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(value, int):
        return -1 <= value < 1 << 63
    return isinstance(default, float) and isinstance(value, float) and (value == -1 or 0 <= value < math.inf)
