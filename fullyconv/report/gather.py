"""From a run or evaluation directory to what the page shows: plain values and pictures as data addresses."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.evaluate.result import Result
from fullyconv.images import read_label

__all__ = ["Run", "Strip", "address", "error_map", "read_evaluation", "read_run"]

TYPES = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Strip:
    """One validation image over time: ("epoch 2.5", address of the picture) in order, the oldest first."""

    name: str
    frames: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Run:
    """A training run as its directory tells it; everything may be missing while it is under way."""

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    measurements: Sequence[Mapping[str, Any]] = ()
    times: Mapping[str, float] = field(default_factory=dict)
    strips: Sequence[Strip] = ()

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
    rows = _rows(log)
    return Run(
        directory.resolve().name,
        _recipe(recipe),
        [r for r in rows if r.get("kind") == "step"],
        [r for r in rows if r.get("kind") == "measurement"],
        _times(directory, rows),
        _strips(directory / "progress"),
    )


def read_evaluation(directory: Path) -> tuple[Result, Path] | None:
    """The kept evaluation in `directory` or its evaluation/ -> (result, where its pictures lie), or None."""
    if directory.is_file():
        return Result.load(directory), directory.parent
    for place in (directory, directory / "evaluation"):
        if (place / "result.json").is_file():
            return Result.load(place / "result.json"), place
    return None


def _rows(log: Path) -> list[dict[str, Any]]:
    """The log's rows; a last line that is still being written is left out."""
    rows = []
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{printable(log)}: line {number} is not JSON ({error}); is the file damaged?") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{printable(path)} is not TOML ({error}); is the file damaged?") from error


def _times(directory: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by what they were spent on: `times.json`, else the log's last row that has `times`."""
    found: Any = next((r["times"] for r in reversed(rows) if isinstance(r.get("times"), dict)), {})
    file = directory / "times.json"
    if file.is_file():
        found = json.loads(file.read_text())
    return {str(k): float(v) for k, v in found.items() if isinstance(v, int | float) and v > 0}


def _strips(directory: Path) -> list[Strip]:
    """RUN/progress/*.png: NAME-epochNNN.png, or epochNNN-NAME.png, or folders by either."""
    strips: dict[str, list[tuple[str, float, str]]] = {}
    files = sorted(directory.rglob("*.png")) + sorted(directory.rglob("*.jpg")) if directory.is_dir() else []
    for file in files:
        text = file.relative_to(directory).with_suffix("").as_posix()
        found = re.search(r"(epoch|step)[-_]?(\d+(?:\.\d+)?)", text)
        if found:
            name = re.sub(r"[-_/]*$|^[-_/]*", "", text.replace(found[0], "")) or "image"
            strips.setdefault(name, []).append((found[1], float(found[2]), address(file)))
    return [
        Strip(name, [(f"{what} {at:g}", picture) for what, at, picture in _thinned(sorted(frames))])
        for name, frames in sorted(strips.items())
    ]


def _thinned(frames: list[tuple[str, float, str]], most: int = 8) -> list[tuple[str, float, str]]:
    if len(frames) <= most:
        return frames
    return [frames[round(i * (len(frames) - 1) / (most - 1))] for i in range(most)]


def address(file: Path) -> str:
    """A picture file as a data: address, so that the page needs no other file."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise MissingInput(f"{printable(file)} is missing; evaluate again with --keep.") from error
    return f"data:{TYPES[file.suffix]};base64,{base64.b64encode(data).decode()}"


def error_map(label: Path, prediction: Path, ignore: int) -> str:
    """Wrong pixels red, unlabelled ones grey, right ones clear: a palette PNG as a data: address."""
    from PIL import Image

    truth, said = read_label(label), read_label(prediction)
    kind: NDArray[np.uint8] = np.where(truth == ignore, 2, truth != said).astype(np.uint8)
    picture = Image.fromarray(kind)
    picture.putpalette([0, 0, 0, 226, 43, 62, 128, 128, 136])
    out = BytesIO()
    picture.save(out, "PNG", transparency=bytes([0, 235, 150]), optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
