"""Net surgery: starting a network from others (paper section 4.2; the released surgery.py and solve.py).

Staged training is nothing but copying by name: an FCN-16s started from a 32s has the same trunk and the same stride-32
scores, and a pool4 score layer of zeros, so it begins with exactly the 32s's coarse predictions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fullyconv import checkpoint
from fullyconv.errors import DataError, UsageError, foreign_values, printable
from fullyconv.models.fcn import FCN
from fullyconv.models.weight_loading import LoadReport, fit_shape, widen_input
from fullyconv.preprocessing import Preprocessing
from fullyconv.taxonomy import Match, Taxonomy, match

__all__ = ["expand_score", "init_from", "transplant", "widen_input"]

_STREAM = re.compile(r"streams\.([^.]+)\.(.*)")
_HEAD = re.compile(r"(?:streams\.[^.]+\.score|learned)\.([^.]+)\..*")
Classes = Mapping[str, Mapping[str, Taxonomy]]  # source -> head -> its classes


def expand_score(old: Tensor, classes: int) -> Tensor:
    """A score layer's weight (k ...) or bias (k) for k' > k classes: the old rows first, zeros behind.

    Errors: UsageError when there would be fewer classes than before.
    """
    if classes < old.shape[0]:
        raise UsageError(
            f"A score layer of {old.shape[0]} classes cannot expand to {classes}; start it afresh instead."
        )
    return torch.cat([old, old.new_zeros(classes - old.shape[0], *old.shape[1:])])


def transplant(model: FCN, sources: Mapping[str, Mapping[str, Tensor]], classes: Classes | None = None) -> LoadReport:
    """Copy tensors of the same name from each of `sources` (what it is called -> {name: tensor}) into `model`.

    Shapes that differ are made to fit where that has a meaning: equal element counts are coerced (fully connected to
    convolution), score layers get more classes (`expand_score`), the first layer more channels (`widen_input`).
    Where the `classes` of a source are given, a class's scores go to the class of the same name (`taxonomy.match`),
    and classes without one start afresh; without them, row by row, and scores for fewer classes stay at zero. A colour
    stream feeds the early-fusion stream that begins with colour; two trained streams (`rgb`, `hha`) feed their own
    sides of a late-fusion network. Errors: DataError when a tensor
    cannot fit or nothing matches; UsageError when two sources claim the same tensor.
    """
    report = LoadReport(" + ".join(sources))
    targets = model.state_dict()
    taken: dict[str, str] = {}
    for source, tensors in sources.items():
        matches = _matches(model, (classes or {}).get(source, {}), report)
        for name, value in tensors.items():
            ours = _renamed(name, targets)
            if ours not in targets:
                report.dropped.append(name)
                continue
            if ours in taken:
                raise UsageError(f"Both {taken[ours]} and {source} hold {printable(name)}; give one network a stream.")
            taken[ours] = source
            head = _HEAD.fullmatch(ours)
            found = matches.get(head[1]) if head else None
            if found is None or found.how == "same":
                _put(source, ours, value, targets[ours], report)
            else:
                _put_rows(ours, value, targets[ours], found, report)
    report.initial = [
        n for n in targets if n not in taken and n not in report.initial and not n.endswith("num_batches_tracked")
    ] + report.initial
    if not any(n.endswith("weight") for n in (*report.copied, *report.coerced, *report.adapted)):
        raise DataError(f"{report.source} has no tensor in common with {model.name}; start from a related network.")
    return report


def _renamed(name: str, targets: Mapping[str, Tensor]) -> str:
    """`name` as the target calls it: a stream `rgb` is the stream `rgb_depth`'s beginning, and the only one's name."""
    found = _STREAM.fullmatch(name)
    if name in targets or not found:
        return name
    stream, rest = found.groups()
    keys = {m.group(1) for n in targets if (m := _STREAM.fullmatch(n))}
    wider = [k for k in keys if k.startswith(f"{stream}_")]
    return f"streams.{wider[0]}.{rest}" if len(wider) == 1 else name


def _matches(model: FCN, classes: Mapping[str, Taxonomy], report: LoadReport) -> dict[str, Match]:
    """Head -> our classes against the source's; how they were matched is reported where it is not plain."""
    found = {}
    for head, ours in model.taxonomies.items():
        if head not in classes:
            continue
        m = match(ours, classes[head])
        if m.how == "ids" and len(m.ours) != len(m.theirs):  # another set of classes: its numbers say nothing of ours
            m = replace(m, ids=(-1,) * len(m.ours))
        found[head] = m
        if m.how != "same":
            fresh = f"{len(m.unknown)} start afresh" if m.unknown else "none starts afresh"
            report.classes.append(f"{head} scores: {m}; {fresh}")
    return found


def _put_rows(name: str, value: Tensor, target: Tensor, found: Match, report: LoadReport) -> None:
    """Copy a score layer's rows, or a learned upsampling's rows and columns, to the classes of the same name."""
    ours = [k for k, to in enumerate(found.ids) if to >= 0]
    its = [to for to in found.ids if to >= 0]
    axes = 2 if name.startswith("learned.") else 1
    if not ours or value.ndim != target.ndim or value.shape[axes:] != target.shape[axes:]:
        report.initial.append(name)
        return
    with torch.no_grad():
        if axes == 2:
            target[torch.tensor(ours)[:, None], torch.tensor(ours)] = value[
                torch.tensor(its)[:, None], torch.tensor(its)
            ]
        else:
            target[ours] = value[its]
    report.adapted.append(name)


def _put(source: str, name: str, value: Tensor, target: Tensor, report: LoadReport) -> None:
    """Copy one tensor, made to fit, and report how."""
    fitted, how = _fitted(name, value, target)
    if fitted is None and ".score." in name:
        report.initial.append(name)  # fewer classes: rows would mean other things; begin at zero, as a new head does
        return
    if fitted is None:
        raise DataError(
            f"{source}: {printable(name)} is {tuple(value.shape)}, the network needs {tuple(target.shape)}; "
            "start from a network of the same trunk."
        )
    with torch.no_grad():
        target.copy_(fitted)
    getattr(report, how).append(name)


def _fitted(name: str, value: Tensor, target: Tensor) -> tuple[Tensor | None, str]:
    want = tuple(target.shape)
    if ".score." in name and tuple(value.shape) != want:
        grows = value.shape[0] < want[0] and tuple(value.shape[1:]) == want[1:]
        return (expand_score(value, want[0]), "adapted") if grows else (None, "")
    return fit_shape(value, want) or (None, "")


def init_from(model: FCN, directories: str | Path | Sequence[str | Path]) -> LoadReport:
    """Start `model` from one or more model directories (`--init-from RUN`, or `RUN,RUN` for two streams).

    A run stands for its best model. Preprocessing comes along with the weights, channel by channel; channels without a
    source keep the network's own.
    Errors: those of `checkpoint.read_model` and `transplant`.
    """
    if isinstance(directories, str):
        directories = directories.split(",")
    paths = [Path(directories)] if isinstance(directories, Path) else [Path(d) for d in directories]
    paths = [checkpoint.model_of(p) for p in paths]
    stored = {str(p): checkpoint.following(p, _parts) for p in paths}
    weights = {name: tensors for name, (tensors, _, _) in stored.items()}
    report = transplant(model, weights, {name: classes for name, (_, _, classes) in stored.items()})
    given = [how for _, how, _ in stored.values()]
    have = sum(p.channels for p in given)
    if have < model.preprocessing.channels:
        given.append(_rest(model.preprocessing, have, given[0].scale))
    if sum(p.channels for p in given) == model.preprocessing.channels and len({p.scale for p in given}) == 1:
        model.preprocessing, report.preprocessing = _joined(given), report.source
    return report


def _parts(stored: checkpoint.Stored) -> tuple[dict[str, Tensor], Preprocessing, dict[str, Taxonomy]]:
    """Weights, preprocessing and classes; DataError where the config is none of ours."""
    with foreign_values(stored.directory / "config.json", "start from a model that fullyconv wrote"):
        classes = {head: Taxonomy.from_json(v) for head, v in stored.config.get("taxonomies", {}).items()}
        return dict(stored.tensors), Preprocessing.from_json(stored.preprocessor), classes


def _rest(whole: Preprocessing, start: int, scale: float) -> Preprocessing:
    """The channels of `whole` from `start` on, for another scale of the image (log channels are not scaled)."""
    places = range(start, whole.channels)
    factor = [1.0 if c in whole.log else scale / whole.scale for c in places]
    return Preprocessing(
        tuple(whole.order[c] - start for c in places),
        scale,
        tuple(whole.mean[c] * f for c, f in zip(places, factor, strict=True)),
        tuple(whole.std[c] * f for c, f in zip(places, factor, strict=True)),
        tuple(c - start for c in whole.log if c >= start),
    )


def _joined(parts: Sequence[Preprocessing]) -> Preprocessing:
    """The preprocessing of inputs concatenated along C; all parts share one scale."""
    order: list[int] = []
    log: list[int] = []
    for part in parts:
        start = len(order)
        log += [start + c for c in part.log]
        order += [start + o for o in part.order]
    mean = tuple(m for p in parts for m in p.mean)
    return Preprocessing(tuple(order), parts[0].scale, mean, tuple(s for p in parts for s in p.std), tuple(log))
