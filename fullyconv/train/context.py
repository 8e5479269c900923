"""Everything one run holds, as plain data, and how it is put together from a recipe, data and a directory."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import fullyconv.train.caching as caching
import fullyconv.train.planning as planning
import fullyconv.train.training_state as training_state
from fullyconv import doctor, models
from fullyconv.allocator import give_back
from fullyconv.checkpoint import RunDirectory, Stored, read_model
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset, Record
from fullyconv.data.class_weights import median_frequency_weights
from fullyconv.data.pipeline.matching import relabelled
from fullyconv.data.pipeline.own import transform_source
from fullyconv.data.splits import Division, divide, kept_in
from fullyconv.doctor.content import Contents, digests_of
from fullyconv.doctor.summary import Summary
from fullyconv.errors import DataError, FullyconvError, StorageError, UnknownName, UsageError, foreign_values, printable
from fullyconv.files import atomic_write, read_json
from fullyconv.metrics.counting import refuse_many_classes
from fullyconv.models.fcn import FCN
from fullyconv.models.interface import TorchModule, TrainableModel
from fullyconv.preprocessing import Preprocessing
from fullyconv.recipes import Recipe
from fullyconv.taxonomy import Taxonomy, listed_names, match
from fullyconv.train.batch_reader import effects_of
from fullyconv.train.chosen import CHOSEN, choose_settings, cut_to_the_data
from fullyconv.train.display import Clock, Display
from fullyconv.train.loggers import Loggers, open_loggers
from fullyconv.train.machine import settle
from fullyconv.train.network import network, network_name, refuse_single_cells
from fullyconv.train.optimisation import optimizer_for
from fullyconv.train.process_group import ProcessGroup
from fullyconv.train.unfold import unfold

__all__ = ["CUBLAS", "TIMES", "RunContext", "prepare_run", "training_mode"]

NamedData = str | os.PathLike[str] | Dataset  # what a run learns from or measures on: PATH, kind:PATH, or opened
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # what cuBLAS asks for to give the same bits again

DATA = "data.json"  # in a run: every file's sha256 (`data.content`)
HELD_OUT = "held-out"  # the split of what is measured where the data have none
TIMES = "times.json"  # in a run: seconds by what they were spent on


class _Opening(TypedDict):
    inputs: tuple[str, ...] | None
    heads: Mapping[str, object] | Sequence[str] | None


@final
@dataclass
class RunContext:
    """One run. `average`: the running average of the weights, None without. `run`: the first process's alone."""

    recipe: Recipe
    plan: planning.TrainingPlan
    train: Dataset
    val: Dataset | None
    model: FCN
    average: FCN | None
    optimizer: torch.optim.Optimizer
    scaler: Any
    weights: Mapping[str, Tensor | None]
    group: ProcessGroup
    out: Path
    run: RunDirectory | None
    state: training_state.State
    about: dict[str, Any]
    machine: dict[str, Any]
    display: Display
    clock: Clock = field(default_factory=Clock)
    unlogged: int = 0  # rows that the disk refused
    saved: int = -1  # step of the last checkpoint
    loggers: Loggers | None = None  # the first process's alone
    floor_name: str = ""  # the class that occurs most in what was measured last, and its share of the pixels
    floor_share: float = 0.0
    scores: list[float] = field(default_factory=list)  # mean IU of this process's measurements, in order

    def write(self, row: Mapping[str, object]) -> None:
        """A row of metrics.jsonl (and of the loggers). A full disk costs rows, not the run."""
        if self.run is None:
            return
        if self.loggers is not None:
            self.loggers.write(row)
        try:
            self.run.log(row)
        except StorageError as error:
            self.unlogged += 1
            if self.unlogged == 1:
                self.display.note(f"metrics.jsonl is incomplete from step {self.state.step}: {error} Training goes on.")


def prepare_run(
    recipe: Recipe,
    data: NamedData,
    val: NamedData | None,
    out: Path,
    group: ProcessGroup,
    display: Display,
    resume: bool,
    allow: Collection[str],
    check: bool,
    stack: contextlib.ExitStack,
    trunk: nn.Module | None = None,
) -> RunContext:
    """Open and check the data, make or find the network, take the run directory, and go back to its checkpoint."""
    if resume and not (out / "checkpoints").is_dir():  # before the data are read, which takes its time
        raise UsageError(
            f"There is no run to go on with in {out}; name its directory with --out, or leave --resume out."
        )
    begun = time.time_ns()
    train, val, read, summary = _opened(recipe, data, val, kept_in(out) if resume else None, check, display)
    model = network(recipe, train, quiet=display.quiet, trunk=trunk, resume=resume)
    if not resume and recipe.weights == "auto" and "weights" not in model.origin:
        recipe = recipe.replace(weights="")  # what the run says of itself is what it had
    effects_of(train, recipe)
    if not resume:  # before anything is written
        recipe = _settled(recipe, model, train, summary, {}, group, display)
        if recipe.batch_norm == "unfold" and not recipe.frozen_trunk:
            unfold(model, train)
    run = _directory(out, resume, group, stack)
    before = Contents.load(out / DATA) if resume else Contents()
    contents = _contents(train, val, before, read, begun)
    own = transform_source(recipe.transform)
    about = training_state.identity(
        model, train, contents.digest("train"), hashlib.sha256(own).hexdigest() if own else ""
    )
    stored = _stored(out, run, about, allow, display, group, contents.changes(before, "train")) if resume else None
    if stored is not None:
        recipe = _as_begun(recipe, model, stored)
    if changed := contents.changes(before, "val"):
        display.note(f"The data that are measured are not what they were ({changed}): the figures cannot be compared.")
    divided = divide(train, val if val is not None and val.split == HELD_OUT else None)
    train, val = _cached(recipe, train, val, out, run, group, display)
    if recipe.deterministic:
        _refuse_what_cannot_be_repeated()
    model.to(group.device).to(memory_format=torch.channels_last)
    kept = training_state.kept_machine(stored) if stored else {}
    if resume:
        recipe = _settled(recipe, model, train, summary, kept.get("chosen", {}), group, display)
    recipe, cut = cut_to_the_data(recipe, train, summary)
    recipe, machine = settle(recipe, model, train, group, kept, allow, stack)
    machine.facts["chosen"] = {key: getattr(recipe, key) for key in CHOSEN}
    for note in [*machine.notes, *cut]:
        display.note(note)
    average = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema else None
    give_back()  # what laying out and timing the network left: VGG16's 537 MB would lie in pieces under every step
    optimizer = optimizer_for(model, recipe)
    scaler = torch.amp.GradScaler(group.device.type, enabled=recipe.precision == "fp16")
    where = (
        training_state.restore_training(stored, model, average, optimizer, scaler) if stored else training_state.State()
    )
    if stored:
        display.note(f"Going on from step {where.step} of {out}.")
    plan = _plan(recipe, train, val)
    weights = _class_weights(recipe, train, group.device)
    training_mode(model, recipe)
    if run is not None:  # not before: a refused --resume leaves the run's recipe and table of files alone
        _write_facts(out, recipe, divided, contents, own)
    with group.together():
        told = stack.enter_context(open_loggers(recipe, out, resume, display.note)) if run is not None else None
    return RunContext(
        recipe, plan, train, val, model, average, optimizer, scaler, weights, group, out, run, where, about,
        machine.facts, display, _clock(group.device, out if resume else None), saved=where.step if resume else -1,
        loggers=told,
    )  # fmt: skip


def _opened(
    recipe: Recipe, data: NamedData, val: NamedData | None, kept: Division | None, check: bool, display: Display
) -> tuple[Dataset, Dataset | None, dict[Path, str], Summary | None]:
    """`open_checked`, or without the check `open_both` alone; what their readers decided is said."""
    train, measured, read, summary = (
        open_checked(recipe, data, val, display, kept) if check else (*open_both(recipe, data, val, kept), {}, None)
    )
    for note in dict.fromkeys([*train.notes, *(measured.notes if measured else ())]):
        display.note(note)
    return train, measured, read, summary


def _contents(train: Dataset, val: Dataset | None, before: Contents, read: Mapping[Path, str], begun: int) -> Contents:
    """Every file's sha256: of those in `read`, or unchanged since `before`, without reading them again."""
    contents = Contents()
    for part, dataset in (("train", train), ("val", val)):
        if dataset is not None:
            contents.add(part, dataset, before, read, begun)
    return contents


def _cached(
    recipe: Recipe,
    train: Dataset,
    val: Dataset | None,
    out: Path,
    run: RunDirectory | None,
    group: ProcessGroup,
    display: Display,
) -> tuple[Dataset, Dataset | None]:
    """Both with their decoded images on the disk where the recipe asks for it; caches of other data are removed."""
    train = caching.on_disk(recipe, train, out, group, display)
    val = caching.on_disk(recipe, val, out, group, display) if val is not None else None
    if run is not None and recipe.cache == "disk":
        caching.drop(out, but=(train,) if val is None else (train, val))
    return train, val


def _refuse_what_cannot_be_repeated() -> None:
    """From here on torch ends the run at an operation that does not give the same bits again."""
    os.environ.setdefault(CUBLAS, ":4096:8")  # cuBLAS reads it when it starts
    torch.set_deterministic_debug_mode("error")  # `use_deterministic_algorithms(True)` without its imports


def _write_facts(out: Path, recipe: Recipe, divided: Division, contents: Contents, own: bytes) -> None:
    """What a run says of itself before its first step: the images held out, the files, the recipe, the transform."""
    divided.write(out)
    atomic_write(out / DATA, json.dumps(contents.to_json()).encode())
    atomic_write(out / "recipe.toml", recipe.to_toml().encode())
    if own:
        atomic_write(out / "transform.py", own)


def _as_begun(recipe: Recipe, model: FCN, stored: Stored) -> Recipe:
    """Give the network the preprocessing and the beginnings that its checkpoint tells, for `weights` and `init_from`
    are not read again; the recipe as the run that was begun has it."""
    if not recipe.preprocessing:
        models.put_preprocessing(model, Preprocessing.from_json(stored.preprocessor), stored.directory)
    begun, training = ("from", "weights", "trunk_weights"), stored.config.get("training")
    if isinstance(training, Mapping):
        model.origin = {key: value for key, value in model.origin.items() if key not in begun}
        model.origin |= {key: training[key] for key in begun if key in training}
    return recipe.replace(weights="") if recipe.weights == "auto" and "weights" not in model.origin else recipe


def _settled(
    recipe: Recipe,
    model: TrainableModel,
    train: Dataset,
    summary: Summary | None,
    kept: Mapping[str, object],
    group: ProcessGroup,
    display: Display,
) -> Recipe:
    """The recipe with what it leaves to the data, the same in every process; refused where batch norm cannot learn."""
    recipe, notes = choose_settings(recipe, model, train, summary, kept, group.device)
    recipe = recipe.replace(batch_size=int(group.first(float(recipe.batch_size))))  # each may see other memory
    refuse_single_cells(model, recipe, len(train))
    for note in notes:
        display.note(note)
    return recipe


def open_checked(
    recipe: Recipe, data: NamedData, val: NamedData | None, display: Display, kept: Division | None = None
) -> tuple[Dataset, Dataset | None, dict[Path, str], Summary | None]:
    """`open_both` after the fast check: everything that is wrong at once, before anything is written; the sha256 of
    the files that it has read, and the doctor's summary."""
    try:
        train, val = open_both(recipe, data, val, kept)
    except DataError:
        if not isinstance(data, Dataset):
            doctor.refuse_errors(doctor.check(data, fast=True))
        raise
    both = [d for d in (train, val) if d is not None]
    filed = [d for d in both if any(r.inputs or r.labels for r in d.records)]
    if not filed:  # what no files hold is checked as it is read
        return train, val, {}, None
    given = val is not None and val.root != train.root  # the user's own choice of what to measure on: said, not refused
    if given and val is not None and val.split == train.split:
        filed = [replace(d, split="val") if d is val else d for d in filed]
    found = doctor.examine(filed, fast=True)
    twice = [f for f in found.findings if given and f.kind == "duplicate-across-splits"]
    doctor.refuse_errors([f for f in found.findings if f not in twice])
    for warning in doctor.warnings([f for f in found.findings if f.level == "warning" or f in twice]):
        display.note(warning)
    return train, val, digests_of(found.facts), found.summary


def open_both(
    recipe: Recipe, data: NamedData, val: NamedData | None, kept: Division | None = None
) -> tuple[Dataset, Dataset | None]:
    """The split to learn and the one to measure (None without), with the network's inputs and the recipe's heads."""
    named = models.parse(network_name(recipe)).inputs
    inputs = recipe.inputs or (None if named == ("rgb",) else named)  # None: the data's own, colour or bands
    options: _Opening = {"inputs": inputs, "heads": recipe.heads or None}
    train = data if isinstance(data, Dataset) else _split(data, recipe, "split", options)
    assert train is not None
    if val is None and not isinstance(data, Dataset) and recipe.val_split:
        val = _split(data, recipe, "val_split", options)
        unnamed = recipe.val_split == Recipe.model_fields["val_split"].default
        if val is None or (not val.taxonomies and unnamed):  # as published without labels
            why = f"The split {val.split!r} has no labels" if val else "There is no val split"
            train, val = held_out(train, why=why, kept=kept)
    elif val is not None and not isinstance(val, Dataset):
        val = _beside(val, recipe, options)
    for dataset in (train, val):
        if dataset is not None and not len(dataset):
            raise DataError(
                f"The split {dataset.split!r} of {dataset.root} has no images; nothing can be learned from it."
            )
        if dataset is not None and not dataset.taxonomies:
            raise DataError(f"The split {dataset.split!r} of {dataset.root} has no labels; give it label maps.")
    for taxonomy in val.taxonomies.values() if val is not None else ():
        refuse_many_classes(len(taxonomy))
    return train, None if val is None else _in_the_classes_learned(train, val)


def _in_the_classes_learned(train: Dataset, val: Dataset) -> Dataset:
    """`val` with the ids of `train`, class by class of the same name, and a note where they are not simply the same.
    DataError for a class that is measured and never learned."""
    matches = {head: match(t, train.taxonomies[head]) for head, t in val.taxonomies.items() if head in train.taxonomies}
    for head, m in matches.items():
        if m.unknown:
            raise DataError(
                f"The {head} classes to learn ({listed_names(m.theirs)}) lack {listed_names(Taxonomy(m.unknown))} of "
                f"those to measure ({listed_names(m.ours)}); give both the same classes.txt."
            )
    matches = {h: m for h, m in matches.items() if m.how != "same" or m.ours.ignore != m.theirs.ignore}
    notes = tuple(f"{head} classes to measure: {m}." for head, m in matches.items() if m.how != "same")
    return replace(relabelled(val, matches), notes=(*val.notes, *notes)) if matches else val


def _beside(val: str | os.PathLike[str], recipe: Recipe, options: _Opening) -> Dataset:
    """The data that were named to be measured: their split that the recipe names; where nobody named one, their "val",
    their only split, or all of them when they are one whole."""
    usual = Recipe.model_fields["val_split"].default
    try:
        return open_dataset(val, recipe.val_split or usual, **options)
    except UnknownName as error:
        if error.kind != "split" or recipe.val_split not in ("", usual):
            raise
        if len(error.known) > 1:
            raise UsageError(
                f"{printable(val)} has the splits {', '.join(map(printable, error.known))}; name the one to measure "
                f"with --set val_split={printable(error.known[-1])}."
            ) from error
        return open_dataset(val, error.known[0] if error.known else "all", **options)


def _split(data: str | os.PathLike[str], recipe: Recipe, key: str, options: _Opening) -> Dataset | None:
    """The split that `key` names. Where the recipe did not name it and the data has none: all, or None to measure."""
    try:
        return open_dataset(data, getattr(recipe, key), **options)
    except UnknownName as error:
        if error.kind != "split" or getattr(recipe, key) != Recipe.model_fields[key].default:
            raise
    return open_dataset(data, None, **options) if key == "split" else None


def held_out(
    dataset: Dataset, share: float = 0.2, why: str = "There is no val split", kept: Division | None = None
) -> tuple[Dataset, Dataset | None]:
    """(train, val) of a data set without splits: whole groups (one of each image that has none) by their names' hash,
    so that the division stays when images are added; those of a division that was `kept` stay on their side. None when
    nothing can be spared."""

    def place(record: Record) -> int:
        return int.from_bytes(hashlib.sha256((record.group or record.name).encode()).digest()[:8], "big")

    places = sorted({place(r) for r in dataset.records})
    if len(places) < 2:
        return dataset, None
    limit = places[max(1, round(share * len(places))) - 1]
    spared = {r.name: place(r) <= limit for r in dataset.records}
    if kept is not None and kept.held_out:
        before = {r.name: kept.place(r) for r in dataset.records}
        spared = {n: before[n] == "held-out" or (before[n] == "new" and out) for n, out in spared.items()}
    val = [r for r in dataset.records if spared[r.name]]
    train = [r for r in dataset.records if not spared[r.name]]
    note = f"{why}: {len(val)} of {len(dataset)} images are held out to be measured."
    learned = replace(dataset, records=train, notes=(*dataset.notes, note))
    return learned, replace(dataset, records=val, split=HELD_OUT)


def training_mode(model: TorchModule, recipe: Recipe) -> None:
    """Dropout and batch statistics as the recipe learns them: frozen batch norm stays in evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weight = module.weight
            frozen = recipe.batch_norm == "frozen" or (weight is not None and not weight.requires_grad)
            module.train(not frozen)


def _directory(out: Path, resume: bool, group: ProcessGroup, stack: contextlib.ExitStack) -> RunDirectory | None:
    """The run directory, locked; the first process's alone."""
    run = None
    with group.together():
        if group.rank == 0:
            run = stack.enter_context(RunDirectory(out))
            if not resume and run.steps():
                raise UsageError(
                    f"{out} holds a run at step {run.steps()[-1]}; go on with it by --resume, or give another --out."
                )
    return run


def _stored(
    out: Path,
    run: RunDirectory | None,
    about: Mapping[str, object],
    allow: Collection[str],
    display: Display,
    group: ProcessGroup,
    changed: str,
) -> Any:
    """The checkpoint to go on from; UsageError where it is of another network, other classes or other data."""
    with group.together():
        stored = run.resume() if run else None
    step = group.first(float(stored.step if stored and stored.step is not None else -1) if run else 0.0)
    if step < 0:
        raise UsageError(f"The run in {out} has no checkpoint to go on from; start anew without --resume.")
    stored = stored or read_model(out / "checkpoints" / f"step-{int(step)}")
    for note in run.notes if run else ():
        display.note(note)
    if not isinstance(stored.state, Mapping) or "train" not in stored.state:
        raise DataError("The checkpoint holds a model but nothing to go on from; use it as init_from.")
    identity: Any = stored.state.get("identity")
    with foreign_values(stored.directory / "state.json", "start a new run with init_from"):
        training_state.refuse_changes(identity, about, allow, changed)
    if "content" not in identity:
        display.note("The run was begun by an earlier version: of its data only names and sizes could be compared.")
    return stored


def _plan(recipe: Recipe, train: Dataset, val: Dataset | None) -> planning.TrainingPlan:
    """Sizes of whole images are taken from the first of each split."""
    h, w = recipe.crop or train.image(0).shape[:2]
    step = h * w * min(recipe.batch_size, len(train))
    measured = float(np.prod(val.image(0).shape[:2])) * len(val) if val else 0.0
    return planning.plan_training(recipe, len(train), measured, step)


def _clock(device: torch.device, before: Path | None) -> Clock:
    """A clock, with what the run that goes on in `before` had spent."""
    clock = Clock(torch.cuda.synchronize) if device.type == "cuda" else Clock()
    if before and (before / TIMES).is_file():
        with contextlib.suppress(ValueError, FullyconvError):  # damaged: these times are for people to look at
            spent = read_json(before / TIMES)
            clock.spent |= {k: float(spent[k]) for k in clock.spent if k in spent}
    return clock


def _class_weights(recipe: Recipe, train: Dataset, device: torch.device) -> dict[str, Tensor | None]:
    """Weights of the classes by head; given ones are the main head's."""
    if recipe.class_weights == "none":
        return dict.fromkeys(train.taxonomies)
    if isinstance(recipe.class_weights, str):
        power = 0.5 if recipe.class_weights == "root-median-frequency" else 1.0
        return {h: torch.tensor(w**power, device=device) for h, w in median_frequency(train).items()}
    main, *others = train.taxonomies
    if len(recipe.class_weights) != len(train.taxonomies[main]):
        raise UsageError(
            f"class_weights has {len(recipe.class_weights)} numbers, the data {len(train.taxonomies[main])} classes "
            f"({', '.join(train.taxonomies[main].names)}); give one a class."
        )
    return {main: torch.tensor(recipe.class_weights, device=device)} | dict.fromkeys(others)


def median_frequency(dataset: Dataset) -> dict[str, NDArray[np.float32]]:
    """Median frequency weights by head, float32 K; a class that never occurs weighs 1."""

    def counts(head: str, taxonomy: Taxonomy) -> Iterator[NDArray[np.int64]]:
        for record in dataset.records:
            label = dataset.read_labels(record, head)
            labelled = label[label != taxonomy.ignore].ravel()
            yield np.bincount(labelled, minlength=len(taxonomy))[: len(taxonomy)].astype(np.int64)

    heads = dataset.taxonomies.items()
    return {h: median_frequency_weights(counts(h, t), absent=1).astype(np.float32) for h, t in heads}
