"""Result: what was measured, on what, by which protocol. One integer table per head; every figure derives from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import metrics
from fullyconv.errors import DataError, MissingInput, UsageError, foreign_values, printable
from fullyconv.files import read_json
from fullyconv.taxonomy import Taxonomy

__all__ = ["AVERAGES", "ClassFigures", "Floor", "ImageTables", "Result", "class_figures", "floor_of", "merge"]

FORMAT = 1
MOST_PIXELS = 1 << 50  # in a cell of a table: sums over all of them stay within 64 bits
AVERAGES = ("present", "all")
Table = NDArray[np.int64]


@final
@dataclass(frozen=True)
class ImageTables:
    """One image's share of the tables, sparse: `cells[head]` are flat indices truth * K + prediction, `counts[head]`
    their pixels."""

    index: int  # position in the data set
    name: str
    size: tuple[int, int]
    cells: Mapping[str, NDArray[np.int64]]
    counts: Mapping[str, NDArray[np.int64]]

    def table(self, head: str, classes: int) -> Table:
        """int64 K x K, rows = truth."""
        table = np.zeros(classes * classes, np.int64)
        table[self.cells[head]] = self.counts[head]
        return table.reshape(classes, classes)

    @classmethod
    def of(cls, index: int, name: str, size: tuple[int, int], tables: Mapping[str, Table]) -> ImageTables:
        flat = {h: t.reshape(-1) for h, t in tables.items()}
        cells = {h: np.flatnonzero(t) for h, t in flat.items()}
        return cls(index, name, size, cells, {h: flat[h][c] for h, c in cells.items()})


@final
@dataclass(frozen=True)
class Result:
    """An evaluation. `taxonomies` and `tables` (int64 K x K, rows = truth) are by head, the main head first.

    `about` says what was measured and how: data (kind, split, fingerprint), model, protocol, average, tiling, tta,
    versions, machine, seconds, images_per_second. `analysis` holds what a kept evaluation adds for the report.
    """

    taxonomies: Mapping[str, Taxonomy]
    tables: Mapping[str, Table]
    per_image: Sequence[ImageTables]
    about: Mapping[str, Any]
    analysis: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Result({self.images} images, mean IU {self.mean_iu:.4f}, pixel accuracy {self.pixel_accuracy:.4f})"

    def _repr_html_(self) -> str:
        """A notebook's: the line, then IU and accuracy of every class of the main head."""
        rows = "".join(
            f"<tr><td>{escape(printable(c.name))}</td><td>{_shown(c.iu)}</td><td>{_shown(c.accuracy)}</td></tr>"
            for c in self.classes
        )
        head = "<tr><th>class</th><th>IU</th><th>accuracy</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{rows}</table>"

    @property
    def head(self) -> str:
        """The main head's name."""
        return next(iter(self.tables))

    @property
    def taxonomy(self) -> Taxonomy:
        """The main head's classes."""
        return self.taxonomies[self.head]

    @property
    def average(self) -> str:
        """ "present": means over classes that occur in the truth; "all": over all, an unseen class counting 0."""
        return str(self.about.get("average", "present"))

    @property
    def images(self) -> int:
        return len(self.per_image)

    @property
    def confusion(self) -> Table:
        """The main head's table: int64 K x K, rows = truth."""
        return self.tables[self.head]

    @property
    def mean_iu(self) -> float:
        return self.figure("mean_iu")

    @property
    def pixel_accuracy(self) -> float:
        return self.figure("pixel_accuracy")

    @property
    def mean_accuracy(self) -> float:
        return self.figure("mean_accuracy")

    @property
    def frequency_weighted_iu(self) -> float:
        return self.figure("frequency_weighted_iu")

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """The main head's classes, in order of id, as JSON holds them: see `ClassFigures`."""
        return [c.to_json() for c in self.classes]

    @property
    def classes(self) -> list[ClassFigures]:
        """The main head's classes, in order of id."""
        return class_figures(self.confusion, self.taxonomy)

    def figure(self, name: str, head: str | None = None) -> float:
        """One of the paper's four figures (0..1) of a head."""
        return FIGURES[name](self.tables[head or self.head], self.average)

    def figures(self, head: str | None = None) -> dict[str, float]:
        """The paper's four figures of a head, 0..1."""
        return {name: self.figure(name, head) for name in FIGURES}

    def floor(self, head: str | None = None) -> Floor:
        """The figures of always answering the class that occurs most in a head's truth."""
        head = head or self.head
        return floor_of(self.tables[head], self.taxonomies[head], self.average)

    def to_json(self) -> dict[str, Any]:
        """A mapping that JSON can hold; absent figures are None. `Result.from_json` reads it back."""
        heads = {h: self._head_json(h) for h in self.tables}
        return {
            "format": FORMAT,
            **{k: v for k, v in heads[self.head].items() if k in FIGURES or k in ("per_class", "absent", "floor")},
            "images": self.images,
            **self.about,
            "heads": heads,
            "per_image": [_image_json(i) for i in self.per_image],
            "analysis": dict(self.analysis),
        }

    def _head_json(self, head: str) -> dict[str, Any]:
        classes = class_figures(self.tables[head], self.taxonomies[head])
        return {
            **{k: json_number(v) for k, v in self.figures(head).items()},
            "floor": self.floor(head).to_json(),
            "per_class": [c.to_json() for c in classes],
            "absent": [c.name for c in classes if not c.pixels],
            "taxonomy": self.taxonomies[head].to_json(),
            "confusion": self.tables[head].tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Result:
        """The result that `to_json` wrote; `DataError` for anything else."""
        if value.get("format") != FORMAT:
            raise DataError(f"This is a result of format {value.get('format')!r}; this version reads format {FORMAT}.")
        derived = {"format", "images", "heads", "per_image", "analysis", "per_class", "absent", "floor", *FIGURES}
        with foreign_values("This result", "write it again with fullyconv evaluate"):
            found = cls(
                {h: Taxonomy.from_json(v["taxonomy"]) for h, v in value["heads"].items()},
                {h: _square(v["confusion"]) for h, v in value["heads"].items()},
                [_image_from(i) for i in value["per_image"]],
                {k: v for k, v in value.items() if k not in derived},
                value.get("analysis", {}),
            )
            _check(found)
        return found

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """The result in a file, or in `result.json` of an evaluation's or run's directory."""
        path = Path(path)
        tried = [path] if path.is_file() else [path / "result.json", path / "evaluation" / "result.json"]
        found = next((p for p in tried if os.path.lexists(p)), None)
        if found is None:
            raise MissingInput(f"{path} holds no result.json; write one with fullyconv evaluate --keep DIR or -o FILE.")
        value = read_json(found)
        if not isinstance(value, dict):
            raise DataError(f"{found} is not a result; give the file fullyconv evaluate wrote.")
        return cls.from_json(value)


FIGURES: dict[str, Callable[..., float]] = {
    "pixel_accuracy": metrics.pixel_accuracy,
    "mean_accuracy": metrics.mean_accuracy,
    "mean_iu": metrics.mean_iu,
    "frequency_weighted_iu": metrics.frequency_weighted_iu,
}


NEAR = 0.02  # of the way from the floor to 1: not told apart from it


@final
@dataclass(frozen=True)
class Floor:
    """What always answering `name`, the class that occurs most, would score (0..1; NaN without a labelled pixel)."""

    name: str
    pixel_accuracy: float
    mean_iu: float

    def near(self, pixel_accuracy: float, mean_iu: float) -> bool:
        """Whether figures are no better than the floor: both less than 2 % of the way from it to 1."""
        ways = ((pixel_accuracy, self.pixel_accuracy), (mean_iu, self.mean_iu))
        return all(value - low < NEAR * (1 - low) or value <= low for value, low in ways)

    def to_json(self) -> dict[str, Any]:
        return {
            "class": self.name,
            "pixel_accuracy": json_number(self.pixel_accuracy),
            "mean_iu": json_number(self.mean_iu),
        }


def floor_of(table: Table, taxonomy: Taxonomy, average: str = "present") -> Floor:
    """The floor of a table (see `metrics.constant_answer`)."""
    constant, name = metrics.constant_answer(table), taxonomy.names[int(table.sum(1).argmax())]
    return Floor(name, FIGURES["pixel_accuracy"](constant, average), FIGURES["mean_iu"](constant, average))


@final
@dataclass(frozen=True)
class ClassFigures:
    """One class of a table: its pixels in the truth, the pixels predicted as it, and its figures 0..1.

    With n_ij pixels of class i called j and t_i = sum_j n_ij: iu = n_ii / (t_i + sum_j n_ji - n_ii), accuracy =
    n_ii / t_i, precision = n_ii / sum_j n_ji, f1 = 2 n_ii / (t_i + sum_j n_ji); None where 0 / 0.
    """

    id: int
    name: str
    pixels: int
    predicted: int
    iu: float | None
    accuracy: float | None
    precision: float | None
    f1: float | None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def class_figures(table: Table, taxonomy: Taxonomy) -> list[ClassFigures]:
    """Each class of a table, in order of id."""
    own, truth, predicted = metrics.per_class(table), table.sum(1), table.sum(0)
    columns = zip(own.iu, own.accuracy, own.precision, own.f1, strict=True)
    return [
        ClassFigures(k, name, int(truth[k]), int(predicted[k]), *map(json_number, figures))
        for k, (name, figures) in enumerate(zip(taxonomy.names, columns, strict=True))
    ]


def merge(results: Sequence[Result]) -> Result:
    """Results of disjoint shares of one data set (one a process) as one result: tables add, images interleave.

    Seconds are the slowest share's. `UsageError` when the shares are of different measurements or overlap.
    """
    first = results[0]
    timing = {"seconds", "images_per_second", "share"}
    for other in results[1:]:
        differs = [k for k in first.about if k not in timing and first.about[k] != other.about.get(k)]
        if differs:
            raise UsageError(f"Shares of different evaluations cannot be merged: they differ in {', '.join(differs)}.")
    images = sorted((i for r in results for i in r.per_image), key=lambda i: i.index)
    if len({i.index for i in images}) != len(images):
        raise UsageError("Two shares measured the same image; give every process a share of its own.")
    seconds = max(float(r.about.get("seconds", 0.0)) for r in results)
    about = {**first.about, "seconds": seconds, "images_per_second": len(images) / seconds if seconds else None}
    about.pop("share", None)
    tables = {h: np.stack([r.tables[h] for r in results]).sum(0) for h in first.tables}
    return Result(first.taxonomies, tables, images, about, first.analysis)


def json_number(value: float) -> float | None:
    """`value` for JSON: None where it is not a number."""
    return float(value) if np.isfinite(value) else None


def _square(rows: object) -> Table:
    table = np.asarray(rows, np.int64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or (table < 0).any() or (table > MOST_PIXELS).any():
        raise ValueError(f"a confusion table of shape {table.shape}")
    return table


def _check(result: Result) -> None:
    """ValueError where the parts do not fit each other."""
    if not result.tables:
        raise ValueError("no head")
    for head, table in result.tables.items():
        classes = len(result.taxonomies[head])
        if len(table) != classes:
            raise ValueError(f"{classes} classes but a table of {len(table)}")
        for image in result.per_image:
            cells, counts = image.cells[head], image.counts[head]
            if cells.shape != counts.shape or cells.ndim != 1 or (counts < 0).any() or (counts > MOST_PIXELS).any():
                raise ValueError(f"the table of {image.name!r}")
            if len(cells) and not 0 <= cells.min() <= cells.max() < classes**2:
                raise ValueError(f"cells of {image.name!r} beyond {classes} classes")
    if not isinstance(result.analysis, Mapping):
        raise TypeError("analysis is no object")


def _image_json(image: ImageTables) -> dict[str, Any]:
    heads = {h: [image.cells[h].tolist(), image.counts[h].tolist()] for h in image.cells}
    return {"index": image.index, "name": image.name, "size": list(image.size), "tables": heads}


def _image_from(value: Mapping[str, Any]) -> ImageTables:
    tables = {h: [np.asarray(part, np.int64) for part in pair] for h, pair in value["tables"].items()}
    height, width = value["size"]
    return ImageTables(
        int(value["index"]),
        str(value["name"]),
        (int(height), int(width)),
        {h: pair[0] for h, pair in tables.items()},
        {h: pair[1] for h, pair in tables.items()},
    )


def _shown(value: float | None) -> str:
    return "not in the truth" if value is None else f"{value:.4f}"
