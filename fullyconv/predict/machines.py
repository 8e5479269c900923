"""Labelling on many machines: units of work go to workers, results get their names here.

At least once, and exactly once: a unit whose worker died is given to another, and what a unit made appears under its
name only when this process adopts it. This process holds the locks and is the only one that writes records, so a disk
that several machines share needs to give nothing but whole files and renames.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, final

from fullyconv.errors import EXIT_CODES, UsageError, printable
from fullyconv.files.disk import Lock, make_directory, remove_tree
from fullyconv.files.outputs import Outputs
from fullyconv.files.staged import refuse_outside
from fullyconv.predict import Predictor
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.jobs import Finished
from fullyconv.predict.raster_files import BLOCKS, journal_of
from fullyconv.predict.sources import invalid_note
from fullyconv.predict.units import UnitOutcome, WorkerSetup, WorkUnit
from fullyconv.predict.work import LabelJob, LabelOptions, work_key
from fullyconv.rasters.block_journal import BlockJournal
from fullyconv.terminal import progress_line, say

if TYPE_CHECKING:
    from fullyconv.predict.label_sources import Labelled

__all__ = ["Machines", "WorkerPool", "label_on_machines"]

MOST_LOSSES = 3  # workers that may die over one image or block before it is passed over
IMAGES, PLACES = 16, 8  # the most of a unit: little is lost with a worker, and a unit is seconds of work
STAGED, LOCK = "staged-", "machines.lock"


class WorkerPool(Protocol):
    """Workers, each with room for units."""

    @property
    def size(self) -> int: ...
    def submit(self, unit: WorkUnit) -> bool:
        """False where no worker has room. A unit that cost a worker already is given to one that has no other."""
        ...

    def wait(self) -> Sequence[tuple[WorkUnit, UnitOutcome | None]]:
        """What was done, at least one; None for a unit whose worker died."""
        ...

    def close(self) -> None: ...


@final
@dataclass(frozen=True)
class Machines:
    """Where work is done. models, device, tile: of the networks, as every worker opens them; start: makes the pool for
    what the workers are told."""

    models: tuple[str, ...]
    device: str
    tile: int | tuple[int, int] | None
    start: Callable[[WorkerSetup], WorkerPool]


def label_on_machines(
    machines: Machines,
    predictor: Predictor | Ensemble,
    jobs: Sequence[LabelJob],
    plan: Outputs,
    finished: Finished,
    done: Labelled,
    options: LabelOptions,
    inputs: Mapping[str, Path],
) -> None:
    """Label `jobs`, telling `done`. Raises what would end one process too: a full disk, a network that differs."""
    if not jobs:
        return
    held = plan.folder / BLOCKS
    make_directory(held)
    with Lock(held / LOCK), ExitStack() as stack:
        stack.callback(_tidy, held)
        for old in held.glob(f"{STAGED}*"):  # of runs that were killed, which we know by the lock
            remove_tree(old)
        staging = held.absolute() / f"{STAGED}{secrets.token_hex(8)}"
        make_directory(staging)
        stack.callback(remove_tree, staging)
        setup = WorkerSetup(
            tuple(str(Path(m).absolute()) for m in machines.models), machines.device, machines.tile,
            predictor.precision, replace(options, quiet=True),
            tuple((n, str(f.absolute())) for n, f in inputs.items()), str(plan.folder.absolute()), str(staging),
            work_key(predictor, options),
        )  # fmt: skip
        pool = machines.start(setup)
        stack.callback(pool.close)
        _Schedule(pool, plan, finished, done, options, staging).run(jobs)


def _tidy(held: Path) -> None:
    """Nothing stays where nothing is left to be gone on with."""
    if all(entry.name == LOCK for entry in held.iterdir()):
        remove_tree(held)


@final
@dataclass
class _Raster:
    """One raster under way: its blocks not computed yet."""

    journal: BlockJournal
    left: int = 0


@final
@dataclass
class _Schedule:
    pool: WorkerPool
    plan: Outputs
    finished: Finished
    done: Labelled
    options: LabelOptions
    staging: Path
    again: deque[WorkUnit] = field(default_factory=deque)  # what must be done before anything new is begun
    rasters: dict[Path, _Raster] = field(default_factory=dict)
    invalid: dict[Path, tuple[int, int]] = field(default_factory=dict)
    given: dict[Path, Path] = field(default_factory=dict)  # a source's whole path -> as the user wrote it
    settled: int = 0
    running: int = 0

    def run(self, jobs: Sequence[LabelJob]) -> None:
        line = progress_line("labelling", self.options.quiet)
        self.given = {job.source.absolute(): job.source for job in jobs}
        fresh = deque(_units(jobs, self.pool.size))
        told = 0
        try:
            while fresh or self.again or self.running:
                self._fill(fresh)
                for unit, outcome in self.pool.wait():
                    self.running -= 1
                    self._lost(unit) if outcome is None else self._take(unit, outcome)
                if line and self.settled > told:
                    told = self.settled
                    line(told, len(jobs))
        finally:
            for raster in self.rasters.values():
                raster.journal.__exit__()
        if (note := invalid_note(self.invalid)) and not self.options.quiet:
            say(f"note: {note}")

    def _fill(self, fresh: deque[WorkUnit]) -> None:
        while self.again or fresh:
            queue = self.again or fresh
            if queue is fresh and len(self.rasters) > self.pool.size and queue[0].kind == "prepare":
                break  # as many rasters are open as there are workers
            if not self.pool.submit(queue[0]):
                break
            queue.popleft()
            self.running += 1

    def _lost(self, unit: WorkUnit) -> None:
        """Its worker died: others do it, in the smallest pieces, so that one bad image costs no other."""
        lost = replace(unit, losses=unit.losses + 1)
        if len(unit.jobs) > 1:
            self.again += [replace(lost, jobs=(job,)) for job in unit.jobs]
        elif len(unit.places) > 1:
            self.again += [replace(lost, places=(place,)) for place in unit.places]
        elif lost.losses < MOST_LOSSES:
            self.again.append(lost)
        else:
            self._fail(unit.jobs[0], f"{lost.losses} workers died over {printable(unit.jobs[0].source)}; look at it.")

    def _fail(self, job: LabelJob, why: str) -> None:
        given = self.given[job.source]
        if given in self.done.failed:
            return
        say(f"error: {why}")
        self.done.failed.append(given)
        self.settled += 1
        self._close(job)

    def _close(self, job: LabelJob) -> None:
        if (raster := self.rasters.pop(job.source, None)) is not None:
            raster.journal.__exit__()
            self.again = deque(u for u in self.again if u.jobs[0].source != job.source)

    def _take(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        if outcome.fatal:
            raise {c.__name__: c for c in EXIT_CODES}.get(outcome.fatal[0], UsageError)(outcome.fatal[1])
        self.invalid.update(outcome.invalid)
        for index, why in outcome.failed:
            self._fail(unit.jobs[index], why)
        if unit.kind == "prepare" and not outcome.failed:
            self._begin(unit.jobs[0], outcome)
        elif unit.kind == "blocks" and not outcome.failed and (raster := self.rasters.get(unit.jobs[0].source)):
            raster.left -= len(unit.places)
            if not raster.left:
                self.again.append(replace(unit, kind="assemble", places=(), losses=0))
        self._adopt(unit, outcome)

    def _begin(self, job: LabelJob, outcome: UnitOutcome) -> None:
        if not self.options.quiet:
            for note in outcome.notes:
                say(f"note: {note}")
            if found := outcome.blocks - len(outcome.todo):
                text = f"{found} of {outcome.blocks} blocks were finished by an earlier run."
                say(f"{printable(job.source)}: {text}")
        journal = journal_of(self.plan.folder, job.names, outcome.key)
        journal.__enter__()
        self.rasters[job.source] = _Raster(journal, len(outcome.todo))
        unit = WorkUnit("assemble", (job,), outcome.key, outcome.stamp)
        some = min(PLACES, -(-len(outcome.todo) // (2 * self.pool.size)))
        parts = [outcome.todo[i : i + some] for i in range(0, len(outcome.todo), some)] if some else []
        self.again += [replace(unit, kind="blocks", places=part) for part in parts] or [unit]

    def _adopt(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        """Names first, then the record that they are done: a kill between the two costs work, never a result."""
        if not outcome.results:
            return
        files = [(kind, f) for r in outcome.results for kind, f in zip(r.kinds, r.files, strict=True)]
        refuse_outside((f for _, f in files), self.staging)
        paths = self.plan.adopt([f for _, f in files])
        self.done.written += [(kind, path) for (kind, _), path in zip(files, paths, strict=True)]
        self.finished.add_lines([r.line for r in outcome.results])
        self.settled += len(outcome.results)
        if unit.kind == "assemble":
            job = unit.jobs[0]
            self.rasters[job.source].journal.remove()
            self._close(job)


def _units(jobs: Sequence[LabelJob], workers: int) -> Iterable[WorkUnit]:
    """Units of the jobs, in their order: runs of images, a unit for every video and raster."""
    some = max(1, min(IMAGES, len(jobs) // (4 * workers)))
    run: list[LabelJob] = []
    for job in (replace(job, source=job.source.absolute()) for job in jobs):
        if job.kind == "image":
            run.append(job)
        if run and (job.kind != "image" or len(run) == some):
            yield WorkUnit("images", tuple(run))
            run = []
        if job.kind != "image":
            yield WorkUnit("video" if job.kind == "video" else "prepare", (job,))
    if run:
        yield WorkUnit("images", tuple(run))
