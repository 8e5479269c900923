"""Labelling images, folders of them, rasters and videos into a folder of results: what `fullyconv predict` does.

found = find_sources([Path("photos")], Path("out"))
done = label_sources(predictor, found, Path("out"), LabelOptions(confidence=True))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, final

from fullyconv.errors import UsageError, printable
from fullyconv.files.outputs import Outputs
from fullyconv.predict import Predictor
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.jobs import Finished
from fullyconv.predict.sources import InputFiles, Sources, invalid_note
from fullyconv.predict.work import LabelJob, LabelOptions, LabelWork, Written, work_key
from fullyconv.terminal import say

if TYPE_CHECKING:
    from fullyconv.predict.machines import Machines

__all__ = ["LabelOptions", "Labelled", "label_sources"]


@final
@dataclass
class Labelled:
    """What came of it: (what, file) of everything written, the sources that could not be labelled, of how many."""

    written: Written = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    images: int = 0


def label_sources(
    predictor: Predictor | Ensemble,
    sources: Sources,
    out: Path,
    options: LabelOptions | None = None,
    *,
    inputs: Mapping[str, Path] | None = None,
    resume: bool = False,
    machines: Machines | None = None,
) -> Labelled:
    """Label everything in `sources`; the results lie in `out` under the sources' names.

    inputs: folders of the modalities after the first. resume: leave out what an earlier call of the same network and
    options finished, unchanged since. Every name is claimed before the first image is read: UsageError for one that
    would be an input, or is there twice. What cannot be read is told, counted and passed over. machines: who does the
    work, instead of this process.
    """
    options = options or LabelOptions()
    if options.polygons and len(sources.rasters) < len(sources.pairs):
        other = next(source for source, _ in sources.pairs if source not in sources.rasters)
        raise UsageError(f"{printable(other)} is no raster with a place on a map, so it gets no polygons.")
    if options.least and not options.polygons and sources.rasters | sources.videos:
        other = min(sources.rasters | sources.videos)
        raise UsageError(f"--min-area is about photos and polygons, and {printable(other)} is neither; leave it out.")
    if isinstance(predictor, Ensemble) and sources.rasters | sources.videos:
        other = min(sources.rasters | sources.videos)
        raise UsageError(f"Several networks label photos together, and {printable(other)} is none; name one network.")
    reading = InputFiles(predictor.inputs or ("rgb",), inputs or {})
    plan = Outputs(out, [f for s, _ in sources.pairs for f in reading.files(s)])
    heads = list(predictor.heads)
    jobs = [LabelJob.claim(plan, heads, source, name, sources, options) for source, name in sources.pairs]
    finished, done = Finished(plan.folder, work_key(predictor, options)), Labelled()

    def holds(job: LabelJob) -> bool:
        return finished.holds(reading.files(job.source), job.name, [plan.folder / name for name in job.names.values()])

    if resume:
        left = [job for job in jobs if not holds(job)]
        say(f"{len(jobs) - len(left)} of {len(jobs)} images were finished by an earlier run.")
        jobs = left
    done.images = len(jobs)
    if machines is not None:
        from fullyconv.predict.machines import label_on_machines

        label_on_machines(machines, predictor, jobs, plan, finished, done, options, inputs or {})
        return done

    def keep(job: LabelJob, written: Written) -> None:
        done.written.extend(written)
        finished.add(reading.files(job.source), job.name)

    def complain(job: LabelJob, error: Exception) -> None:
        say(f"error: {error}")
        done.failed.append(job.source)

    reading.invalid.clear()
    LabelWork(predictor, reading, plan, options, keep, complain).run(jobs, options.quiet)
    if (note := invalid_note(reading.invalid)) and not options.quiet:
        say(f"note: {note}")
    return done
