"""Labelling images, folders of them, rasters and videos into a folder of results: what `fullyconv predict` does.

    found = find_sources([Path("photos")], Path("out"))
    done = label_sources(predictor, found, Path("out"), LabelOptions(confidence=True))

Images are decoded ahead and written behind; one that is damaged does not end the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import encode_jpeg, overlay
from fullyconv.errors import DataError, MissingInput, UsageError, printable
from fullyconv.files.outputs import Outputs
from fullyconv.images import encode_label, encode_png
from fullyconv.predict import Predictor
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.jobs import Finished, claim_results, read_ahead
from fullyconv.predict.raster_files import RasterOptions, claim_raster, label_raster
from fullyconv.predict.sources import InputFiles, Sources, invalid_note
from fullyconv.predict.video_files import VideoOptions, claim_video, label_video
from fullyconv.rasters.journal import job_key
from fullyconv.rasters.polygons import require_polygons
from fullyconv.regions import sieved
from fullyconv.terminal import progress_line, say

__all__ = ["LabelOptions", "Labelled", "label_sources"]

Files = dict[tuple[str, str], str]  # (what, head) -> the name claimed for it
Written = list[tuple[str, Path]]  # (what, file)


@final
@dataclass(frozen=True)
class LabelOptions:
    """What is written of an image: its label map, and if asked the image under it (overlay/NAME.jpg), the label's
    probability (confidence/NAME.png, 0..255) and all probabilities (probabilities/NAME.npy, float32 K H W).

    polygons: of rasters, "gpkg" or "geojson" files too, borders moved at most `tolerance` map units, areas below
    `least` square units joined to a neighbour. Of images, `least` is in pixels: smaller regions become their largest
    neighbour's (`regions.sieved`), with confidence 0. frames, every, smooth: see `VideoOptions`.
    """

    overlay: bool = True
    confidence: bool = False
    probabilities: bool = False
    polygons: str = ""
    tolerance: float = 0
    least: float = 0
    frames: bool = False
    every: int = 1
    smooth: float = 0
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.polygons:
            require_polygons(self.polygons)
        elif self.tolerance:
            raise UsageError("--tolerance is about polygons; add --polygons gpkg.")

    @property
    def raster(self) -> RasterOptions:
        return RasterOptions(
            self.overlay, self.confidence, self.probabilities, self.polygons, self.tolerance, self.least, self.quiet
        )

    @property
    def video(self) -> VideoOptions:
        return VideoOptions(self.overlay, self.frames, self.every, self.smooth, self.quiet)


@final
@dataclass
class Labelled:
    """What came of it: (what, file) of everything written, the sources that could not be labelled, of how many."""

    written: Written = field(default_factory=list)
    failed: list[Path] = field(default_factory=list)
    images: int = 0


@final
@dataclass(frozen=True)
class _Job:
    """One source, and the names claimed for its results."""

    source: Path
    name: str
    kind: Literal["image", "raster", "video"]
    names: dict[Any, str]


def label_sources(
    predictor: Predictor | Ensemble,
    sources: Sources,
    out: Path,
    options: LabelOptions = LabelOptions(),
    *,
    inputs: Mapping[str, Path] | None = None,
    resume: bool = False,
) -> Labelled:
    """Label everything in `sources`; the results lie in `out` under the sources' names.

    inputs: folders of the modalities after the first. resume: leave out what an earlier call of the same network and
    options finished, unchanged since. Every name is claimed before the first image is read: UsageError for one that
    would be an input, or is there twice. What cannot be read is told, counted and passed over.
    """
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
    work = _Work(predictor, reading, Outputs(out, [f for s, _ in sources.pairs for f in reading.files(s)]), options)
    jobs = [work.claim(source, name, sources) for source, name in sources.pairs]
    if resume:
        left = [job for job in jobs if not work.holds(job)]
        say(f"{len(jobs) - len(left)} of {len(jobs)} images were finished by an earlier run.")
        jobs = left
    return work.run(jobs)


@final
class _Work:
    """The order of work. Results are written, and remembered, in a thread of its own, while the next is labelled."""

    def __init__(
        self, predictor: Predictor | Ensemble, reading: InputFiles, plan: Outputs, options: LabelOptions
    ) -> None:
        self.predictor, self.reading, self.plan, self.options = predictor, reading, plan, options
        chosen = {**asdict(options), "quiet": True, "tiling": predictor.tiling}
        model = predictor.identity() if isinstance(predictor, Ensemble) else predictor.backend.identity()
        key = {"model": model, "precision": predictor.precision, "options": chosen}
        self.finished, self.done = Finished(plan.folder, job_key(key)), Labelled()

    def claim(self, source: Path, name: str, sources: Sources) -> _Job:
        heads = list(self.predictor.heads)
        if source in sources.videos:
            return _Job(source, name, "video", dict(claim_video(self.plan, source, name, self.options.video)))
        if source in sources.rasters:
            return _Job(source, name, "raster", dict(claim_raster(self.plan, heads, name, self.options.raster)))
        return _Job(source, name, "image", dict(claim_results(self.plan, heads, name, self.options, (".png", ".npy"))))

    def holds(self, job: _Job) -> bool:
        files = [self.plan.folder / name for name in job.names.values()]
        return self.finished.holds(self.reading.files(job.source), job.name, files)

    def run(self, jobs: Sequence[_Job]) -> Labelled:
        self.done.images = len(jobs)
        self.reading.invalid.clear()
        line = progress_line("labelling", self.options.quiet)
        ahead = read_ahead(jobs, lambda job: job.kind == "image", lambda job: self.reading.read(job.source))
        writing: list[Future[None]] = []
        with ThreadPoolExecutor(1) as writer:
            for done, (job, image) in enumerate(ahead, 1):
                try:
                    if job.kind == "image":
                        answers = _answers(self.predictor, image(), self.plan, job.names, self.options.least)
                        writing.append(writer.submit(self._keep, job, answers))
                    else:
                        _settle(writing, 0)
                        self._keep(job, lambda job=job: self._long(job))  # type: ignore[misc]
                except (DataError, MissingInput) as error:  # one damaged image does not end a folder of them
                    say(f"error: {error}")
                    self.done.failed.append(job.source)
                _settle(writing, 2)
                if line:
                    line(done, len(jobs))
            _settle(writing, 0)
        if (note := invalid_note(self.reading.invalid)) and not self.options.quiet:
            say(f"note: {note}")
        return self.done

    def _long(self, job: _Job) -> Written:
        assert isinstance(self.predictor, Predictor)  # `label_sources` refuses the others
        if job.kind == "video":
            return label_video(self.predictor, job.source, job.name, self.plan, job.names, self.options.video)
        return label_raster(self.predictor, job.source, self.plan, job.names, self.options.raster)

    def _keep(self, job: _Job, write: Callable[[], Written]) -> None:
        self.done.written.extend(write())
        self.finished.add(self.reading.files(job.source), job.name)


def _settle(writing: list[Future[None]], most: int) -> None:
    while len(writing) > most:
        writing.pop(0).result()


def _answers(
    predictor: Predictor | Ensemble, image: Any, plan: Outputs, names: Files, least: float = 0
) -> Callable[[], Written]:
    """Label one image; what is left to do, encoding and writing what was claimed for it, as a function."""
    sure = any(what == "confidence" for what, _ in names)
    found: Mapping[str, tuple[NDArray[Any], NDArray[np.float32] | None]] = (
        predictor.confident_labels(image) if sure else {h: (v, None) for h, v in predictor.labels(image).items()}
    )
    shares = _probabilities(predictor, image) if any(what == "probabilities" for what, _ in names) else {}

    def write() -> Written:
        first = next(iter(image.values())) if isinstance(image, dict) else image
        data: dict[tuple[str, str], bytes] = {}
        for head, (labels, probability) in found.items():
            palette = predictor.taxonomies[head].palette
            if least:
                kept = sieved(labels, math.ceil(least))
                probability = None if probability is None else probability * (kept == labels)
                labels = kept
            data["labels", head] = encode_label(labels, palette)
            if ("overlay", head) in names:
                data["overlay", head] = encode_jpeg(overlay(first, labels, palette))
            if probability is not None:
                data["confidence", head] = encode_png(np.rint(probability * 255).astype(np.uint8))
        data |= shares
        return [(key[0], plan.write(names[key], content)) for key, content in data.items()]

    return write


def _probabilities(predictor: Predictor | Ensemble, image: Any) -> dict[tuple[str, str], bytes]:
    together = predictor if isinstance(predictor, Ensemble) else Ensemble([predictor])
    files = {}
    for head, probabilities in together.probabilities(image).items():
        data = BytesIO()
        np.save(data, probabilities)
        files["probabilities", head] = data.getvalue()
    return files
