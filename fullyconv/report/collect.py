"""From a run or evaluation directory to typed records, and from image files to data addresses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from pydantic import FiniteFloat

from fullyconv.checkpoint.log import parse_log
from fullyconv.drawing import Palette, colours, error_marks, inner_line
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.evaluation.result import Result
from fullyconv.files import read_file, read_json, read_toml
from fullyconv.files.outputs import name_fault
from fullyconv.files.reading import MOST_TEXT
from fullyconv.images import encode_png, read_label
from fullyconv.pages import data_address
from fullyconv.report.records import About, Analysis, MeasurementRecord, StepRecord, parse_record

__all__ = [
    "ImageStrip",
    "KeptEvaluation",
    "Run",
    "RunRecipe",
    "address",
    "error_map",
    "file_within",
    "label_address",
    "named_image",
    "outline",
    "read_evaluation",
    "read_run",
    "spaced",
]

TYPES = {".png": "image/png", ".jpg": "image/jpeg"}
BEGINS = {".png": b"\x89PNG\r\n", ".jpg": b"\xff\xd8\xff"}
LENGTHS = ("time", "epochs", "steps")  # keys of a recipe that say how long it is to last
FRAMES = 8  # of a strip


@final
@dataclass(frozen=True)
class ImageStrip:
    """One validation image over time: ("epoch 2.5", address of the image) in order, the oldest first."""

    name: str
    frames: Sequence[tuple[str, str]]


@final
@dataclass(frozen=True)
class RunRecipe:
    """settings: (key, value as text) of what is set; lasts: "6m" or "10 epochs"; measured: has a validation split."""

    settings: Sequence[tuple[str, str]] = ()
    model: str = "?"
    lasts: str = ""
    measured: bool = True


@final
@dataclass(frozen=True)
class Run:
    """A training run as its directory tells it; everything may be missing while it is under way."""

    name: str
    recipe: RunRecipe = field(default_factory=RunRecipe)
    steps: Sequence[StepRecord] = ()
    measurements: Sequence[MeasurementRecord] = ()
    times: Mapping[str, float] = field(default_factory=dict)  # seconds of each part of the work
    strips: Sequence[ImageStrip] = ()
    unfinished: bool = False  # its last checkpoint says so
    damaged: int = 0  # lines of the log that are no rows

    @property
    def last(self) -> StepRecord | None:
        """The last step."""
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> MeasurementRecord | None:
        """The measurement with the highest mean IU."""
        return max((m for m in self.measurements if m.mean_iu is not None), key=_mean_iu, default=None)


@final
@dataclass(frozen=True)
class KeptEvaluation:
    """A result, and `place`, the folder in which its images lie."""

    result: Result
    place: Path
    about: About
    analysis: Analysis

    @classmethod
    def of(cls, result: Result, place: Path) -> KeptEvaluation:
        """ValueError where what the result says of itself is not what fullyconv writes."""
        return cls(result, place, parse_record(About, result.about), parse_record(Analysis, result.analysis))


def _mean_iu(m: MeasurementRecord) -> float:
    return -1.0 if m.mean_iu is None else m.mean_iu


def read_run(directory: Path) -> Run | None:
    """The run in `directory`, or None when it is no run directory."""
    log, recipe = directory / "metrics.jsonl", directory / "recipe.toml"
    if not (log.is_file() or recipe.is_file()):
        return None
    rows, damaged = _rows(file_within(directory, log))
    return Run(
        directory.resolve().name,
        _recipe(file_within(directory, recipe)),
        [parse_record(StepRecord, r) for r in rows if r.get("kind") == "step"],
        [MeasurementRecord.of(r) for r in rows if r.get("kind") == "measurement"],
        parse_record(dict[str, FiniteFloat], _mapping(file_within(directory, directory / "times.json"))),
        _strips(file_within(directory, directory / "progress")),
        _unfinished(_mapping(file_within(directory, directory / "last" / "state.json"))),
        damaged,
    )


def _unfinished(value: Mapping[str, object]) -> bool:
    """Whether the state of the last checkpoint says that the run is to go on."""
    state = value.get("state", {})
    train = state.get("train", {}) if isinstance(state, dict) else {}
    return isinstance(train, dict) and not train.get("finished", True)


def file_within(folder: Path, file: Path) -> Path:
    """`file`, unless it lies outside of `folder` (by its name or by a link): DataError, so that a run or result from a
    stranger shows nothing that he did not send."""
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise DataError(f"{printable(file)} lies outside of {printable(folder)}, so it is not shown; copy it there.")
    return file


def named_image(place: Path, name: object) -> Path:
    """The image file that a result names: below `place`, which holds the result, else DataError."""
    fault = name_fault(name) if isinstance(name, str) else "is no name"
    if fault or not str(name).endswith(tuple(TYPES)):
        shown, fault = printable(name)[:200], fault or "is no PNG or JPEG"
        raise DataError(f"The result names the image {shown!r}, which {fault}; evaluate again with --keep.")
    return file_within(place, place / str(name))


def read_evaluation(source: Path) -> KeptEvaluation | None:
    """The evaluation in the directory `source` or its evaluation/, or None. Of a result file that was moved away from
    its images, what needs none."""
    if source.is_file():
        return _without_lost_images(KeptEvaluation.of(Result.load(source), source.parent))
    for place in (source, source / "evaluation"):
        if (place / "result.json").is_file():
            return KeptEvaluation.of(Result.load(place / "result.json"), place)
    return None


def _without_lost_images(found: KeptEvaluation) -> KeptEvaluation:
    analysis = found.analysis
    shown = [e.files for e in analysis.gallery] + [e.files for e in analysis.pairs]
    shown += [e.files for e in analysis.suspects]
    if any(named_image(found.place, name).is_file() for files in shown for name in files.all):
        return found
    return replace(found, analysis=replace(analysis, gallery=(), pairs=(), suspects=()))


def _rows(log: Path) -> tuple[list[dict[str, Any]], int]:
    """(the log's rows, how many lines are damaged); a last line that is still being written is no damage."""
    content = read_file(log, MOST_TEXT) if os.path.lexists(log) else b""
    torn = b"" if b"\0" in content.rpartition(b"\n")[2] else content.rpartition(b"\n")[2]
    found, damaged = parse_log(content[: len(content) - len(torn)])
    return [row for _, row in found], damaged


def _recipe(path: Path) -> RunRecipe:
    """What recipe.toml sets; all as it is by default where there is no such file."""
    if not os.path.lexists(path):
        return RunRecipe()
    values = read_toml(path)
    lasts = next((f"{values[k]} {k}".removesuffix(" time") for k in LENGTHS if values.get(k)), "")
    settings = [(k, str(v)) for k, v in values.items() if v not in ("", [], {}, ())]
    return RunRecipe(settings, str(values.get("model", "?")), lasts, not values or bool(values.get("val_split")))


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    found = read_json(path) if os.path.lexists(path) else {}
    return found if isinstance(found, dict) else {}


def _strips(directory: Path) -> list[ImageStrip]:
    """What `evaluate.progress.draw` left: epochEEEE.EE-NAME.jpg over time, and last label-NAME.jpg, the truth."""
    strips: dict[str, list[tuple[str, Path]]] = {}
    for file in sorted(directory.glob("epoch*-*.jpg")):
        epoch, _, name = file_within(directory, file).stem.removeprefix("epoch").partition("-")
        strips.setdefault(name, []).append((f"epoch {float(epoch):g}", file))
    return [
        ImageStrip(
            name,
            [(when, address(file)) for when, file in spaced(frames, FRAMES)]
            + [("label", address(file)) for file in _truth(directory, name)],
        )
        for name, frames in sorted(strips.items())
    ]


def _truth(directory: Path, name: str) -> list[Path]:
    file = file_within(directory, directory / f"label-{name}.jpg")
    return [file] if file.is_file() else []


def spaced(items: Sequence[object], most: int) -> list[Any]:
    """At most `most` of `items`, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def address(file: Path) -> str:
    """An image file as a data: address, so that the page needs no other file."""
    try:
        data = read_file(file, 1 << 30)
    except MissingInput as error:
        raise MissingInput(f"{printable(file)} is missing; evaluate again with --keep.") from error
    if not data.startswith(BEGINS[file.suffix]):
        raise DataError(f"{printable(file)} is no {file.suffix[1:].upper()} image; evaluate again with --keep.")
    return data_address(data, TYPES[file.suffix])


def label_address(file: Path, palette: Palette) -> str:
    """A label map as a data: address that shows its colours, also where ids above 255 keep a palette out of the PNG."""
    labels = read_label(file)
    if labels.dtype == np.uint8:
        return address(file)
    return data_address(encode_png(colours(labels, palette)), TYPES[".png"])


def error_map(label: Path, prediction: Path, ignore: int) -> str:
    """Wrong pixels red, unlabelled ones grey, right ones clear: a data: address."""
    return data_address(error_marks(read_label(label), read_label(prediction), ignore), TYPES[".png"])


def outline(label: Path, prediction: Path, labelled: int, predicted: int) -> str:
    """A red line just inside what is labelled one class and called the other, all else clear: a data: address."""
    doubted = (read_label(label) == labelled) & (read_label(prediction) == predicted)
    return data_address(inner_line(doubted), TYPES[".png"])
