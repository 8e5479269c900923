"""The order of work on photos, rasters and videos: what is asked for (`LabelOptions`), and who does it (`LabelWork`).

Images are decoded ahead and written behind; one that is damaged does not end the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import encode_jpeg, overlay
from fullyconv.errors import DataError, MissingInput, UsageError
from fullyconv.files.staged import ResultFiles
from fullyconv.images import encode_label, encode_png
from fullyconv.predict import Predictor
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.jobs import claim_results, read_ahead
from fullyconv.predict.raster_files import RasterOptions, claim_raster, label_raster
from fullyconv.predict.sources import InputFiles, Sources
from fullyconv.predict.video_files import VideoOptions, claim_video, label_video
from fullyconv.rasters.block_journal import job_key
from fullyconv.rasters.gdal import FINEST
from fullyconv.rasters.levels import Resolution
from fullyconv.rasters.polygons import require_polygons
from fullyconv.regions import sieved
from fullyconv.terminal import progress_line

__all__ = ["LabelJob", "LabelOptions", "LabelWork", "Written", "work_key"]

Given = NDArray[np.number] | dict[str, NDArray[np.number]]  # an image, or one of each modality

Files = dict[tuple[str, str], str]  # (what, head) -> the name claimed for it
Written = list[tuple[str, Path]]  # (what, file)


@final
@dataclass(frozen=True)
class LabelOptions:
    """What is written of an image: its label map, and if asked the image under it (overlay/NAME.jpg), the label's
    probability (confidence/NAME.png, 0..255) and all probabilities (probabilities/NAME.npy, float32 K H W).

    polygons: of rasters, "gpkg", "geojson" or "geoparquet" files too, borders moved at most `tolerance` map units,
    areas below `least` square units joined to a neighbour. Of images, `least` is in pixels: smaller regions become
    their largest neighbour's (`regions.sieved`), with confidence 0. frames, every, smooth: see `VideoOptions`.
    resolution: which level of slides, OME-TIFFs and Zarrs.
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
    resolution: Resolution = FINEST

    def __post_init__(self) -> None:
        if self.polygons:
            require_polygons(self.polygons)
        elif self.tolerance:
            raise UsageError("--tolerance is about polygons; add --polygons gpkg.")

    @property
    def raster(self) -> RasterOptions:
        return RasterOptions(
            self.overlay, self.confidence, self.probabilities, self.polygons, self.tolerance, self.least, self.quiet,
            self.resolution,
        )  # fmt: skip

    @property
    def video(self) -> VideoOptions:
        return VideoOptions(self.overlay, self.frames, self.every, self.smooth, self.quiet)


@final
@dataclass(frozen=True)
class LabelJob:
    """One source, and the names claimed for its results."""

    source: Path
    name: str
    kind: Literal["image", "raster", "video"]
    names: dict[Any, str]

    @classmethod
    def claim(
        cls, plan: ResultFiles, heads: Sequence[str], source: Path, name: str, sources: Sources, options: LabelOptions
    ) -> LabelJob:
        if source in sources.videos:
            return cls(source, name, "video", dict(claim_video(plan, source, name, options.video)))
        if source in sources.rasters:
            return cls(source, name, "raster", dict(claim_raster(plan, heads, name, options.raster)))
        return cls(source, name, "image", dict(claim_results(plan, heads, name, options, (".png", ".npy"))))


def work_key(predictor: Predictor | Ensemble, options: LabelOptions) -> str:
    """sha256 (hex) of the network and of what is asked of it: results of one key are the same bytes."""
    chosen = {**asdict(options), "quiet": True, "tiling": predictor.tiling}
    model = predictor.identity() if isinstance(predictor, Ensemble) else predictor.backend.identity()
    return job_key({"model": model, "precision": predictor.precision, "options": chosen})


@final
class LabelWork:
    """Does jobs one after another. Results are written, and told to `keep`, in a thread of its own, while the next is
    labelled; what cannot be read is told to `complain`."""

    def __init__(
        self,
        predictor: Predictor | Ensemble,
        reading: InputFiles,
        plan: ResultFiles,
        options: LabelOptions,
        keep: Callable[[LabelJob, Written], None],
        complain: Callable[[LabelJob, Exception], None],
    ) -> None:
        self.predictor, self.reading, self.plan, self.options = predictor, reading, plan, options
        self.keep, self.complain = keep, complain

    def run(self, jobs: Sequence[LabelJob], quiet: bool) -> None:
        line = progress_line("labelling", quiet)
        ahead = read_ahead(jobs, lambda job: job.kind == "image", lambda job: self.reading.read(job.source))
        writing: list[Future[None]] = []
        with ThreadPoolExecutor(1) as writer:
            for done, (job, image) in enumerate(ahead, 1):
                try:
                    if job.kind == "image":
                        answers = _answers(self.predictor, image(), self.plan, job.names, self.options.least)
                        writing.append(writer.submit(self._write, job, answers))
                    else:
                        _settle(writing, 0)
                        self.keep(job, self._long(job))
                except (DataError, MissingInput) as error:  # one damaged image does not end a folder of them
                    self.complain(job, error)
                _settle(writing, 2)
                if line:
                    line(done, len(jobs))
            _settle(writing, 0)

    def _write(self, job: LabelJob, write: Callable[[], Written]) -> None:
        self.keep(job, write())

    def _long(self, job: LabelJob) -> Written:
        assert isinstance(self.predictor, Predictor)  # `label_sources` refuses the others
        if job.kind == "video":
            return label_video(self.predictor, job.source, job.name, self.plan, job.names, self.options.video)
        return label_raster(self.predictor, job.source, self.plan, job.names, self.options.raster)


def _settle(writing: list[Future[None]], most: int) -> None:
    while len(writing) > most:
        writing.pop(0).result()


def _answers(
    predictor: Predictor | Ensemble, image: Given, plan: ResultFiles, names: Files, least: float = 0
) -> Callable[[], Written]:
    """Label one image; what is left to do, encoding and writing what was claimed for it, as a function."""
    with_confidence = any(what == "confidence" for what, _ in names)
    found: Mapping[str, tuple[NDArray[Any], NDArray[np.float32] | None]] = (
        predictor.confident_labels(image)
        if with_confidence
        else {h: (v, None) for h, v in predictor.labels(image).items()}
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


def _probabilities(predictor: Predictor | Ensemble, image: Given) -> dict[tuple[str, str], bytes]:
    together = predictor if isinstance(predictor, Ensemble) else Ensemble([predictor])
    files = {}
    for head, probabilities in together.probabilities(image).items():
        data = BytesIO()
        np.save(data, probabilities)
        files["probabilities", head] = data.getvalue()
    return files
