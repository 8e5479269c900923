"""From a run or evaluation directory to what the page shows: plain values and images as data addresses."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np

from fullyconv.checkpoint.log import parse_log
from fullyconv.drawing import Palette, colours, error_marks, inner_line
from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.evaluation.result import Result
from fullyconv.files import read_file, read_json, read_toml
from fullyconv.files.outputs import name_fault
from fullyconv.files.reading import MOST_TEXT
from fullyconv.images import encode_png, read_label

__all__ = [
    "ImageStrip",
    "Run",
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
SHOWN = ("gallery", "pairs", "suspects")  # the parts of an analysis that name image files
FRAMES = 8  # of a strip


@final
@dataclass(frozen=True)
class ImageStrip:
    """One validation image over time: ("epoch 2.5", address of the image) in order, the oldest first."""

    name: str
    frames: Sequence[tuple[str, str]]


@final
@dataclass(frozen=True)
class Run:
    """A training run as its directory tells it; everything may be missing while it is under way."""

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    measurements: Sequence[Mapping[str, Any]] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    strips: Sequence[ImageStrip] = ()
    state: Mapping[str, Any] = field(default_factory=dict)  # of the last checkpoint; empty before it
    damaged: int = 0  # lines of the log that are no rows

    @property
    def last(self) -> Mapping[str, Any] | None:
        """The last step."""
        return self.steps[-1] if self.steps else None

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The measurement with the highest mean IU."""
        known = [m for m in self.measurements if isinstance(m.get("mean_iu"), int | float)]
        return max(known, key=lambda m: float(m["mean_iu"]), default=None)


def read_run(directory: Path) -> Run | None:
    """The run in `directory`, or None when it is no run directory."""
    log, recipe = directory / "metrics.jsonl", directory / "recipe.toml"
    if not (log.is_file() or recipe.is_file()):
        return None
    rows, damaged = _rows(file_within(directory, log))
    state = _mapping(file_within(directory, directory / "last" / "state.json")).get("state", {})
    return Run(
        directory.resolve().name,
        _recipe(file_within(directory, recipe)),
        [r for r in rows if r.get("kind") == "step"],
        [r for r in rows if r.get("kind") == "measurement"],
        _mapping(file_within(directory, directory / "times.json")),
        _strips(file_within(directory, directory / "progress")),
        state.get("train", {}) if isinstance(state, dict) else {},
        damaged,
    )


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


def read_evaluation(source: Path) -> tuple[Result, Path] | None:
    """The kept evaluation in the directory `source` or its evaluation/ -> (result, where its images lie), or None.
    Of a result file that was moved away from its images, what needs none."""
    if source.is_file():
        return _without_lost_images(Result.load(source), source.parent), source.parent
    for place in (source, source / "evaluation"):
        if (place / "result.json").is_file():
            return Result.load(place / "result.json"), place
    return None


def _without_lost_images(result: Result, place: Path) -> Result:
    shown = [entry for part in SHOWN for entry in result.analysis.get(part, ())]
    if any(named_image(place, file).is_file() for entry in shown for file in entry["files"].values()):
        return result
    return replace(result, analysis={k: v for k, v in result.analysis.items() if k not in SHOWN})


def _rows(log: Path) -> tuple[list[dict[str, Any]], int]:
    """(the log's rows, how many lines are damaged); a last line that is still being written is no damage."""
    content = read_file(log, MOST_TEXT) if os.path.lexists(log) else b""
    torn = b"" if b"\0" in content.rpartition(b"\n")[2] else content.rpartition(b"\n")[2]
    found, damaged = parse_log(content[: len(content) - len(torn)])
    return [row for _, row in found], damaged


def _recipe(path: Path) -> dict[str, Any]:
    return read_toml(path) if os.path.lexists(path) else {}


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


def spaced(items: Sequence[Any], most: int) -> list[Any]:
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
    return f"data:{TYPES[file.suffix]};base64,{base64.b64encode(data).decode()}"


def label_address(file: Path, palette: Palette) -> str:
    """A label map as a data: address that shows its colours, also where ids above 255 keep a palette out of the PNG."""
    labels = read_label(file)
    return address(file) if labels.dtype == np.uint8 else _png_address(encode_png(colours(labels, palette)))


def error_map(label: Path, prediction: Path, ignore: int) -> str:
    """Wrong pixels red, unlabelled ones grey, right ones clear: a data: address."""
    return _png_address(error_marks(read_label(label), read_label(prediction), ignore))


def outline(label: Path, prediction: Path, labelled: int, said: int) -> str:
    """A red line just inside what is labelled one class and called the other, all else clear: a data: address."""
    return _png_address(inner_line((read_label(label) == labelled) & (read_label(prediction) == said)))


def _png_address(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
