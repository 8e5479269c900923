"""From records to batches: which images a step learns, read and transformed ahead of time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, Sample
from fullyconv.data.pipeline.batches import roles, stack
from fullyconv.data.pipeline.effects import Effects, after_crop, before_crop, effects_generator
from fullyconv.data.pipeline.loader import order, ordered_map
from fullyconv.data.pipeline.own import changed_by, find_transform
from fullyconv.data.pipeline.pasting import donor, pasted, rare_classes
from fullyconv.data.pipeline.transforms import Augmentation, augment, generator
from fullyconv.errors import DataError, FullyconvError, MissingInput
from fullyconv.recipes import Recipe
from fullyconv.train.process_group import ProcessGroup
from fullyconv.train.step import Batch
from fullyconv.train.training_state import State

__all__ = [
    "BatchReader",
    "ReadStep",
    "Ticket",
    "crop_of",
    "effects_of",
    "read_steps",
    "refuse_many_unreadable",
    "tickets",
]


@final
@dataclass(frozen=True)
class Ticket:
    """One step's images: which epoch, where in it, the records of all processes and those of this one."""

    epoch: int
    position: int
    everyone: tuple[int, ...]
    mine: tuple[int, ...]
    first: int  # position in the epoch of mine[0]


@final
@dataclass(frozen=True)
class ReadStep:
    """What a ticket became: the passes of this process, and samples that could not be read (replaced by others)."""

    ticket: Ticket
    batches: Sequence[Batch]
    bad: tuple[str, ...] = ()


def tickets(count: int, recipe: Recipe, state: State, group: ProcessGroup) -> Iterator[Ticket]:
    """Every step's images from where the run is, without end. Each process takes its contiguous part of a step."""
    epoch, position = state.epoch, state.position
    while True:
        indices = order(count, recipe.seed, epoch, recipe.sampling)
        for start in range(position, count, recipe.batch_size):
            everyone = indices[start : start + recipe.batch_size]
            offsets = np.array_split(np.arange(len(everyone)), group.size)[group.rank]
            first = start + (int(offsets[0]) if len(offsets) else 0)
            mine = tuple(int(everyone[o]) for o in offsets)
            yield Ticket(epoch, start, tuple(map(int, everyone)), mine, first)
        epoch, position = epoch + 1, 0


def read_steps(
    reader: BatchReader, recipe: Recipe, state: State, group: ProcessGroup
) -> Generator[ReadStep, None, None]:
    """The run's steps, read by the recipe's workers; closing it ends them."""
    stream = tickets(len(reader.dataset), recipe, state, group)
    names = reader.names
    return ordered_map(
        reader, stream, recipe.workers, timeout=recipe.worker_timeout, describe=lambda t: ", ".join(names(t.mine))
    )


def refuse_many_unreadable(bad: Sequence[str], count: int, recipe: Recipe) -> None:
    """DataError when more of the `count` images than the recipe allows (one at least) could not be read."""
    allowed, found = max(1, int(recipe.max_bad * count)), len(set(bad))
    if found > allowed:
        raise DataError(f"{found} of {count} images cannot be read, max_bad allows {allowed}; the last: {bad[-1]}")


@final
class BatchReader:
    """ticket -> Step: reads, transforms and stacks; the same bytes wherever and whenever it runs."""

    def __init__(self, dataset: Dataset, recipe: Recipe, fill: NDArray[np.float32]) -> None:
        self.dataset, self.recipe, self.fill = dataset, recipe, fill
        self.ignore = {head: t.ignore for head, t in dataset.taxonomies.items()}
        self.augmentation, self.effects = _augmentation(dataset, recipe), effects_of(dataset, recipe)
        self.transform = find_transform(recipe.transform) if recipe.transform else None
        self.rare = rare_classes(dataset) if recipe.cutmix else None
        self.cache: dict[int, Sample] = {}
        if recipe.cache == "memory" and recipe.workers:
            self._fill_cache()  # before the processes part, so that they share it

    def names(self, indices: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.dataset.records[i].name for i in indices)

    def __call__(self, ticket: Ticket) -> ReadStep:
        bad: list[str] = []
        samples = [self._sample(ticket, i, bad) for i in range(len(ticket.mine))]
        passes = [p for p in np.array_split(np.arange(len(samples)), self.recipe.accumulate) if len(p)]
        batches = [self._stack([samples[i] for i in p]) for p in passes]
        return ReadStep(ticket, batches or [self._nothing(ticket)], tuple(bad))

    def _sample(self, ticket: Ticket, i: int, bad: list[str]) -> Sample:
        """The i-th sample of this process, or under "skip" one drawn in its place if it cannot be read."""
        index = ticket.mine[i]
        # With replacement an image may come twice in an epoch and is to look different then.
        key = index if self.recipe.sampling == "epochs" else len(self.dataset) + ticket.first + i
        rng = generator(self.recipe.seed, ticket.epoch, key)
        more = effects_generator(self.recipe.seed, ticket.epoch, key)
        for attempt in range(100):
            chosen = index if attempt == 0 else int(rng.integers(len(self.dataset)))
            try:
                return self._changed(self._read(chosen), rng, more)
            except (FullyconvError, OSError) as error:
                if self.dataset.records[chosen].inputs and not self.dataset.root.exists():
                    raise MissingInput(
                        f"{self.dataset.root} is gone; bring it back, then go on with --resume."
                    ) from error
                if self.recipe.on_bad_sample == "fail":
                    raise
                bad.append(f"{self.dataset.records[chosen].name}: {error}")
                refuse_many_unreadable(bad, len(self.dataset), self.recipe)
        raise DataError(f"100 samples in a row could not be read, the last one because {bad[-1]}")

    def _changed(self, sample: Sample, rng: np.random.Generator, more: np.random.Generator) -> Sample:
        """What the recipe makes of a sample: `rng` draws what `augment` does, `more` everything else."""
        around: dict[str, Any] = {"fill": self.fill, "ignore": self.ignore}
        sample = before_crop(sample, self.effects, more)
        sample = augment(sample, self.augmentation, rng, **around)
        if self.rare and self.rare.where and more.random() < self.recipe.cutmix:
            k, index = donor(self.rare, more)
            whole = replace(self.augmentation, crop=None, rotation=0.0)
            other = before_crop(self._read(index), self.effects, more)
            sample = pasted(sample, other, k, self.rare.head, lambda piece: augment(piece, whole, more, **around), more)
        sample = after_crop(sample, self.effects, more, **around)
        if self.transform is None:
            return sample
        return changed_by(self.transform, self.recipe.transform, sample, more)

    def _read(self, index: int) -> Sample:
        if index not in self.cache:
            sample = self.dataset[index]
            if self.recipe.cache != "memory":
                return sample
            self.cache[index] = sample
        return self.cache[index]

    def _fill_cache(self) -> None:
        for index in range(len(self.dataset)):
            with contextlib.suppress(FullyconvError, OSError):  # it fails again, and counts, in its turn
                self._read(index)

    def _stack(self, samples: Sequence[Sample]) -> Batch:
        return Batch(*stack(samples, fill=self.fill, ignore=self.ignore), tuple(s.name for s in samples))

    def _nothing(self, ticket: Ticket) -> Batch:
        """For a process without images in this step: someone else's, with nothing to learn from."""
        sample = self.dataset[ticket.everyone[0]]
        labels: dict[str, NDArray[Any]] = {
            head: np.full_like(label, self.ignore[head])[None] for head, label in sample.labels.items()
        }
        return Batch(sample.image[None], labels, ())


def crop_of(recipe: Recipe, sides: Sequence[int]) -> tuple[int, int] | None:
    """The crop, no larger than images of at most `sides` (rows, columns) can become by the recipe's scale: the rest
    would be padding."""
    if not recipe.crop:
        return None
    most = [math.ceil(side * recipe.scale[1]) for side in sides]
    if recipe.turns:  # either side may come to lie along the other
        most = [max(most)] * 2
    return min(recipe.crop[0], most[0]), min(recipe.crop[1], most[1])


def _augmentation(dataset: Dataset, recipe: Recipe) -> Augmentation:
    colour, nearest = roles(dataset)
    return Augmentation(
        crop=(recipe.crop[0], recipe.crop[1]) if recipe.crop else None,
        scale=recipe.scale,
        flip=recipe.flip,
        flip_vertical=recipe.flip_vertical,
        rotation=recipe.rotation,
        brightness=recipe.photometric,
        contrast=recipe.photometric,
        saturation=recipe.photometric,
        colour=colour,
        nearest=nearest,
    )


def effects_of(dataset: Dataset, recipe: Recipe) -> Effects:
    """The recipe's effects on these data; UsageError where they cannot be had by them."""
    colour, nearest = roles(dataset)
    names = ("turns", "elastic", "blur", "noise", "jpeg")
    effects = Effects(**{name: getattr(recipe, name) for name in names}, colour=colour, nearest=nearest)
    effects.refuse(dataset.image(0))
    return effects
