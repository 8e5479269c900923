"""Measured results beside the published tables: a page with the paper's figure, or Markdown for the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.errors import UnknownName, UsageError
from fullyconv.evaluation.result import Result
from fullyconv.files import atomic_write
from fullyconv.files.outputs import output_file
from fullyconv.pages import fill
from fullyconv.report.collect import KeptEvaluation, address, named_image, read_evaluation
from fullyconv.report.published import FOUR, TABLES, Published, Table
from fullyconv.report.records import ImageFiles, MeasuredData, Training
from fullyconv.report.replication import GEOMETRIC, StandIn, stand_ins
from fullyconv.terminal import plain

__all__ = ["Line", "Measured", "lines", "markdown", "role_of", "write_paper"]

MEASURED = dict(zip(FOUR, ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"), strict=True))
ORDER = ("32s fixed", "32s", "16s", "8s", "16s atonce", "8s atonce", "4s")
TRIED = (
    "Where it says *tried*, the paper's comparison was repeated on other images with other networks: the figures "
    "cannot be set against the printed ones, the order can. A stage is learned on top of those before it, as in the "
    "paper. Intervals resample the images (too narrow where these are frames of one video); they do not cover another "
    "training with another seed."
)


@final
@dataclass(frozen=True)
class Measured:
    """An evaluation to be set beside the paper's (its predictions may lie in its place) and, of a file, its name."""

    kept: KeptEvaluation
    file: str = ""

    @property
    def result(self) -> Result:
        return self.kept.result

    @property
    def data(self) -> MeasuredData:
        return self.kept.about.data

    @property
    def network(self) -> str:
        return self.kept.about.model.name

    @property
    def training(self) -> Training | None:
        """How it was learned, as its run wrote it down; None for other models."""
        return self.kept.about.model.training

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.data.inputs

    @property
    def started(self) -> tuple[str, ...]:
        """The networks that it was started from, first to last."""
        return self.training.stages if self.training else ()

    @property
    def role(self) -> str:
        """Its network's role, with what the run knows: a fixed trunk, or skips learned at once instead of in stages."""
        found = role_of(self.network)
        if self.training and self.training.frozen_trunk and "fixed" not in found:
            return found.replace("32s", "32s fixed")
        atonce = bool(self.training) and not self.started and self.inputs == ("rgb",) and found in ("16s", "8s")
        return f"{found} atonce" if atonce else found

    def role_in(self, table: Table) -> str:
        """The role, or the plain one where the table does not tell stages apart."""
        return self.role if any(r.role == self.role for r in table.rows) else self.role.removesuffix(" atonce")

    @property
    def label(self) -> str:
        """The network and how it was learned, in a few words; where that is unknown, the file's name."""
        if not self.training:
            return f"{self.network} ({self.file})" if self.file else self.network
        stages = ", then ".join(s for name in self.started if (s := role_of(name)))
        how = [
            "trunk fixed" if self.training.frozen_trunk else "",
            f"from {stages}" if self.started else "",
            "at once" if self.role.endswith("atonce") else "",
            " + ".join(self.result.tables) if len(self.result.tables) > 1 else "",
            self.training.length,
        ]
        return f"{self.network} ({', '.join(part for part in how if part)})"

    def column(self, name: str) -> float | None:
        """A table's column for this result, in percent; None where a result does not hold it."""
        if name in MEASURED:
            value = self.result.figure(MEASURED[name])
        elif name == GEOMETRIC and "geometric" in self.result.tables:
            value = self.result.figure("pixel_accuracy", "geometric")
        else:
            return None
        return None if value != value else 100 * value

    def same_data(self, table: Table) -> bool:
        """Whether it was measured on the very images of a published table, at their own size."""
        same = self.data.split in table.splits and table.images in (0, self.result.images)
        return same and self.kept.about.protocol in ("native", "paper") and self.result.average == "present"


@final
@dataclass(frozen=True)
class Line:
    """A row to show: published or measured, and for measured ones whether the data are the table's."""

    system: str
    values: tuple[str, ...]
    source: str
    measured: bool = False
    comparable: bool = False


@final
@dataclass(frozen=True)
class ShownTable:
    """A table of the page; missing: systems that were not measured on its images; tried: on other images."""

    title: str
    note: str
    columns: Sequence[str]
    lines: Sequence[Line]
    missing: Sequence[str]
    tried: Sequence[StandIn]


@final
@dataclass(frozen=True)
class FigureRow:
    """An image's data: addresses, one a column of the figure."""

    name: str
    cells: Sequence[str]


@final
@dataclass(frozen=True)
class PaperFigure:
    head: Sequence[str]
    rows: Sequence[FigureRow]


@final
@dataclass(frozen=True)
class PaperPage:
    """What paper.html shows."""

    title: str
    tables: Sequence[ShownTable]
    about_tried: str
    image: PaperFigure | None


def role_of(network: str) -> str:
    """What a network stands for in the tables: "8s", "8s atonce", "32s fixed", "32s rgb-hha", "alexnet", ..."""
    text = network.lower()
    for trunk in ("alexnet", "googlenet"):
        if trunk in text:
            return trunk
    stride = re.search(r"fcn(\d+)s", text)
    if not stride:
        return ""
    inputs = {"rgb-hha": r"rgb-hha|color-hha", "rgbd": r"rgbd|color-d\b", "hha": r"hha"}
    found = next((name for name, pattern in inputs.items() if re.search(pattern, text)), "")
    flag = next((f for f in ("fixed", "atonce") if f in text), "")
    return " ".join(part for part in (f"{stride[1]}s", flag, found) if part)


def read_results(paths: Iterable[Path]) -> list[Measured]:
    """Results in files, evaluation or run directories. `UsageError` when there are none."""
    found = []
    for path in paths:
        kept = read_evaluation(path)
        name = path.stem if path.is_file() else ""
        found.append(Measured(kept or KeptEvaluation.of(Result.load(path), path), name))
    if not found:
        raise UsageError("Name the results to set beside the paper's: fullyconv report paper RESULT...")
    return sorted(found, key=lambda m: (ORDER.index(m.role) if m.role in ORDER else len(ORDER), m.network))


def lines(table: Table, measured: Sequence[Measured]) -> list[Line]:
    """The table's published rows, each followed by the measured networks of its role; then the others on such data."""
    mine = [m for m in measured if table.kind and m.data.kind == table.kind]
    if table.columns[:1] != FOUR[:1]:  # further tables on the same data show the networks they are about
        mine = [m for m in mine if m.role_in(table) in {row.role for row in table.rows}]
    last = {row.role: i for i, row in enumerate(table.rows) if row.role}
    out: list[Line] = []
    for i, row in enumerate(table.rows):
        out.append(Line(row.system, _printed(row), row.source))
        if last.get(row.role) == i:
            out += [_measured(m, table) for m in mine if m.role_in(table) == row.role]
    out += [_measured(m, table) for m in mine if m.role_in(table) not in last]
    return [line for line in out if not line.measured or set(line.values) != {"–"}]


def _printed(row: Published) -> tuple[str, ...]:
    return tuple("–" if v is None else v if isinstance(v, str) else f"{v:.1f}" for v in row.values)


def _measured(m: Measured, table: Table) -> Line:
    values = tuple("–" if (v := m.column(c)) is None else f"{v:.1f}" for c in table.columns)
    same = m.same_data(table)
    data = f"{m.data.name} {m.data.split}, {m.result.images} images, {m.kept.about.protocol}"
    return Line(m.label, values, f"measured here on {data}" + ("" if same else "; other images"), True, same)


def elsewhere(measured: Sequence[Measured]) -> list[Table]:
    """Tables without published rows for measured data that no published table is about, one a data set and split."""
    known = {t.kind for t in TABLES}
    others: dict[tuple[str, str, str], list[Measured]] = {}
    for m in measured:
        if m.data.kind not in known:
            others.setdefault((m.data.kind, m.data.name, m.data.split), []).append(m)
    return [
        Table(f"{name}, split {split}", kind, (split,), 0, _columns(found), ())
        for (kind, name, split), found in others.items()
    ]


def _columns(measured: Sequence[Measured]) -> tuple[str, ...]:
    """The paper's four figures, and the geometric accuracy where any result has it."""
    return (*FOUR, *([GEOMETRIC] if any(m.column(GEOMETRIC) is not None for m in measured) else []))


def unmeasured_systems(table: Table, measured: Sequence[Measured]) -> list[str]:
    """The systems of the table that fullyconv has a network for and that no result was measured on the table's data."""
    done = {m.role_in(table) for m in measured if m.data.kind == table.kind and m.same_data(table)}
    return list(dict.fromkeys(r.system for r in table.rows if r.role and r.role not in done))


def markdown(measured: Sequence[Measured]) -> str:
    """docs/results.md: every table with its measured rows in bold, and how each was measured."""
    text = [
        "# Results",
        "",
        "Generated by `fullyconv report paper RESULT... -o docs/results.md` from Result files. Figures in percent, the",
        "mean IU (mIoU) too; rows in bold were measured with fullyconv, the others printed where their source says.",
        *([f"\n{TRIED}"] if any(stand_ins(t, measured) for t in TABLES) else []),
    ]
    for table in (*TABLES, *elsewhere(measured)):
        rows = lines(table, measured) if table.rows else _only(table, measured)
        text += ["", f"## {table.title}", ""]
        text += [f"{table.note}", ""] if table.note else []
        text.append("| | " + " | ".join(table.columns) + " | source |")
        text.append("|---|" + "---|" * (len(table.columns) + 1))
        for line in rows:
            cells = [line.system, *line.values, line.source]
            text.append("| " + " | ".join(f"**{c}**" if line.measured else c for c in cells) + " |")
        missing = unmeasured_systems(table, measured) if table.rows else []
        text += ["", f"Not measured on these images: {', '.join(missing)}."] if missing else []
        for found in stand_ins(table, measured):
            text += _tried(found)
    text += [
        "",
        "## How they were measured",
        "",
        "Images per second are of the measurement itself, whatever else the machine did; they are no benchmark.",
        "",
        "| network | data | fingerprint | weights sha256 | machine | images/s |",
    ]
    text.append("|---|---|---|---|---|---|")
    text += [_method(m) for m in measured]
    return "\n".join(text) + "\n"


def _tried(found: StandIn) -> list[str]:
    """A stand-in as Markdown."""
    text = ["", f"### {found.title}", "", "| | " + " | ".join(found.columns) + " | network |"]
    text.append("|---|" + "---|" * (len(found.columns) + 1))
    for name, values, label in found.rows:
        *own, published = values
        cells = [*(f"**{c}**" for c in (name, *own)), published, label]
        text.append(f"| {' | '.join(cells)} |")
    return [*text, "", *(f"- {line}" for line in found.verdicts)]


def _only(table: Table, measured: Sequence[Measured]) -> list[Line]:
    """The measured rows of a data set without published ones."""
    mine = [m for m in measured if m.data.kind == table.kind and f"{m.data.name}, split {m.data.split}" == table.title]
    return [_measured(m, table) for m in mine]


def _method(m: Measured) -> str:
    a, data = m.kept.about, m.data
    machine = f"{a.machine.processor}, {a.machine.device}"
    cells = [m.label, f"{data.name} {data.split}", data.fingerprint[:12], a.model.sha256[:12], machine]
    return f"| {' | '.join(cells)} | {a.images_per_second} |"


def write_paper(paths: Sequence[Path], out: Path, images: Sequence[str] = ()) -> Path:
    """Write the tables to `out`: Markdown for a name ending in .md, else one HTML page with the image as well.

    images: names of images to show; by default those that every result's evaluation kept, at most four.
    """
    measured = read_results(paths)
    begins = b"#" if out.suffix == ".md" else b"<!doctype html"
    text = plain(markdown(measured)) if out.suffix == ".md" else _html(measured, images)
    atomic_write(output_file(out, "such tables", begins, [p for p in paths if p.is_file()]), text.encode())
    return out


def _html(measured: Sequence[Measured], images: Sequence[str]) -> str:
    tables = [
        ShownTable(
            title=t.title,
            note=t.note,
            columns=t.columns,
            lines=lines(t, measured) if t.rows else _only(t, measured),
            missing=unmeasured_systems(t, measured) if t.rows else [],
            tried=stand_ins(t, measured),
        )
        for t in (*TABLES, *elsewhere(measured))
    ]
    # Tables with measured rows first: they are what the reader came for.
    tables.sort(key=lambda t: not (t.tried or any(line.measured for line in t.lines)))
    return fill(
        "fullyconv.report",
        "paper.html",
        PaperPage("Measured beside the paper", tables, TRIED, paper_figure(measured, images)),
    )


def paper_figure(measured: Sequence[Measured], names: Sequence[str]) -> PaperFigure | None:
    """The paper's figure: each image's predictions by every kept result, coarse to fine, then truth and input."""
    kept = [m for m in measured if m.kept.analysis.gallery]
    shown: dict[str, tuple[Path, ImageFiles]] = {}
    for m in kept:
        for entry in m.kept.analysis.gallery:
            shown.setdefault(entry.name, (m.kept.place, entry.files))
    if not kept:
        return None
    for name in names:
        if name not in shown:
            raise UnknownName("kept image", name, shown)
    chosen = list(names) or list(shown)
    rows = []
    for name in chosen:
        files = [named_image(m.kept.place, f"predictions/{name}.png") for m in kept]
        if not all(f.is_file() for f in files):
            continue
        place, named = shown[name]
        cells = [address(f) for f in files]
        cells += [address(named_image(place, file)) for file in (named.label, named.image)]
        rows.append(FigureRow(name, cells))
    if not rows:
        return None
    return PaperFigure([*(m.label for m in kept), "truth", "image"], rows if names else rows[:4])
