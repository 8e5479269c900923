"""What one worker of many does: units of work in, whole files under chance names and finished blocks out.

A unit may be done twice, here or elsewhere, at the same time or after a worker was killed: blocks are the same bytes
and replace each other in one rename, all other results have no name until the one process that asked for them adopts
them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import fullyconv
from fullyconv.errors import DataError, FullyconvError, MissingInput, UsageError, printable
from fullyconv.files.outputs import name_fault
from fullyconv.files.staged import StagedFile, StagedOutputs
from fullyconv.predict import Predictor, open_network
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.jobs import Finished
from fullyconv.predict.raster_files import RasterWork, journal_of
from fullyconv.predict.scene import label_blocks
from fullyconv.predict.sources import InputFiles
from fullyconv.predict.work import LabelJob, LabelOptions, LabelWork, Written, work_key
from fullyconv.rasters.block_journal import BlockJournal

__all__ = ["JobResult", "UnitOutcome", "UnitWorker", "WorkUnit", "WorkerSetup"]

BlockIndex = tuple[int, int]  # row and column of a block


@final
@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is told once. folder: of the results; staging: where files wait for their names; key: `work_key`,
    which the worker has to arrive at by itself."""

    models: tuple[str, ...]
    device: str
    tile: int | tuple[int, int] | None
    precision: str
    options: LabelOptions
    inputs: tuple[tuple[str, str], ...]
    folder: str
    staging: str
    key: str
    version: str = fullyconv.__version__


@final
@dataclass(frozen=True)
class WorkUnit:
    """images: label `jobs`. video: the one job. prepare: look at a raster. blocks: compute those at `places`, if the
    raster is still the file that was looked at (`stamp`). assemble: write a raster's results from its blocks."""

    kind: Literal["images", "video", "prepare", "blocks", "assemble"]
    jobs: tuple[LabelJob, ...]
    key: str = ""
    stamp: tuple[int, int] = (0, 0)
    places: tuple[BlockIndex, ...] = ()
    losses: int = 0  # workers that died over it


@final
@dataclass(frozen=True)
class JobResult:
    """One job's files, and its line in the record of what is finished."""

    index: int
    files: tuple[StagedFile, ...]
    kinds: tuple[str, ...]
    line: str


@final
@dataclass
class UnitOutcome:
    """What came of a unit. failed: (index of the job, why); fatal: (kind of error, why) where no other unit would fare
    better; invalid: files with pixels without data (how many, of how many)."""

    results: list[JobResult] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)
    fatal: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    key: str = ""
    stamp: tuple[int, int] = (0, 0)
    todo: tuple[BlockIndex, ...] = ()
    blocks: int = 0
    invalid: dict[Path, tuple[int, int]] = field(default_factory=dict)


@final
class UnitWorker:
    """Holds the network. Raises UsageError where it would not give the bytes that the asking process would."""

    def __init__(self, setup: WorkerSetup) -> None:
        if setup.version != fullyconv.__version__:
            raise UsageError(
                f"A worker has fullyconv {fullyconv.__version__}, not {setup.version}; install one version everywhere."
            )
        made = [
            Predictor(open_network(model, setup.device), tile=setup.tile, precision=setup.precision)
            for model in setup.models
        ]
        self._predictor: Predictor | Ensemble = made[0] if len(made) == 1 else Ensemble(made)
        options = replace(setup.options, quiet=True)
        if work_key(self._predictor, options) != setup.key:
            raise UsageError(
                f"A worker's network is not the one asked for ({printable(setup.models[0])} differs there); give every "
                "machine the same files."
            )
        self._setup, self._options = setup, options
        self._reading = InputFiles(self._predictor.inputs or ("rgb",), {n: Path(f) for n, f in setup.inputs})
        self._staged = StagedOutputs(Path(setup.staging))
        self._raster: RasterWork | None = None

    def do(self, unit: WorkUnit) -> UnitOutcome:
        """Never raises what is about the work: that is said in the outcome."""
        self._staged.take()
        self._reading.invalid.clear()
        out = UnitOutcome()
        try:
            for job in unit.jobs:
                _refuse_paths(job)
            {
                "images": self._images, "video": self._images, "prepare": self._prepare, "blocks": self._blocks,
                "assemble": self._finish,
            }[unit.kind](unit, out)  # fmt: skip
        except (DataError, MissingInput) as error:
            out.failed.append((0, str(error)))
        except FullyconvError as error:
            out.fatal = (type(error).__name__, str(error))
        out.invalid = dict(self._reading.invalid)
        return out

    def _images(self, unit: WorkUnit, out: UnitOutcome) -> None:
        index = {id(job): i for i, job in enumerate(unit.jobs)}

        def keep(job: LabelJob, written: Written) -> None:
            out.results.append(self._result(index[id(job)], job, written))

        def complain(job: LabelJob, error: Exception) -> None:
            self._staged.take()
            out.failed.append((index[id(job)], str(error)))

        LabelWork(self._predictor, self._reading, self._staged, self._options, keep, complain).run(unit.jobs, True)

    def _result(self, index: int, job: LabelJob, written: Written) -> JobResult:
        files = self._staged.take()
        what = {path: kind for kind, path in written}
        line = Finished(Path(self._setup.folder), self._setup.key).line(self._reading.files(job.source), job.name)
        return JobResult(index, files, tuple(what[f.path] for f in files), line)

    def _prepare(self, unit: WorkUnit, out: UnitOutcome) -> None:
        (job,) = unit.jobs
        out.stamp = _stamp(job.source)
        work = self._opened(job)
        out.key, out.notes, out.blocks = work.job.key(), work.notes(), len(work.job.grid)
        journal = self._journal(job, out.key)
        places = ((b.row, b.column) for b in work.job.grid.blocks())
        out.todo = tuple(place for place in places if not journal.is_whole(*place))

    def _blocks(self, unit: WorkUnit, out: UnitOutcome) -> None:
        (job,) = unit.jobs
        if _stamp(job.source) != unit.stamp:
            raise DataError(f"{printable(job.source)} was changed while it was labelled; run the command again.")
        label_blocks(self._opened(job).job, self._journal(job, unit.key), only=frozenset(unit.places))

    def _finish(self, unit: WorkUnit, out: UnitOutcome) -> None:
        (job,) = unit.jobs
        written = self._opened(job).assemble(self._journal(job, unit.key), self._staged, job.names)
        out.results.append(self._result(0, job, written))

    def _opened(self, job: LabelJob) -> RasterWork:
        """The raster of a job; the last one stays open."""
        assert isinstance(self._predictor, Predictor)
        if self._raster is None or self._raster.source != job.source:
            if self._raster is not None:
                self._raster.raster.close()
                self._raster = None
            self._raster = RasterWork(self._predictor, job.source, self._options.raster)
        return self._raster

    def _journal(self, job: LabelJob, key: str) -> BlockJournal:
        """The lock is held by the process that asks."""
        names: Mapping[Any, str] = job.names
        return journal_of(Path(self._setup.folder), dict(names), key)


def _refuse_paths(job: LabelJob) -> None:
    """UsageError for results that would lie elsewhere: the asking process claims none such."""
    for name in job.names.values():
        if fault := name_fault(name):
            raise UsageError(
                f"A unit of work names the result {printable(name)[:200]!r}, which {fault}; it is not done."
            )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise MissingInput(f"{printable(path)} is not there any more; check the path.") from error
    return found.st_size, found.st_mtime_ns
