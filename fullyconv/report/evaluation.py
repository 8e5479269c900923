"""What the page shows of an evaluation: figures, classes, confusions, where errors lie, and images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

import fullyconv.report.charts as charts
import fullyconv.report.sentences as sentences
from fullyconv.evaluation.result import ClassFigures, Result
from fullyconv.evaluation.statistics import Interval, Resampled, costly_pairs, counts, image_iu, interval, resample
from fullyconv.report.collect import KeptEvaluation, address, error_map, label_address, named_image, outline
from fullyconv.report.ground import GroundTable, ground
from fullyconv.report.heads import HeadRow, heads, learned
from fullyconv.report.records import (
    Analysis,
    BorderErrors,
    BorderRings,
    GalleryEntry,
    ImageFiles,
    SizeErrors,
    SuspectEntry,
    Tiling,
)

__all__ = ["FIGURES", "EvaluationPage", "evaluation"]

FIGURES = {
    "mean_iu": ("Mean IU", "intersection over union, averaged over classes"),
    "pixel_accuracy": ("Pixel accuracy", "share of labelled pixels that are right"),
    "mean_accuracy": ("Mean accuracy", "recall, averaged over classes"),
    "frequency_weighted_iu": ("Frequency-weighted IU", "IU, every pixel counting the same"),
}
MATRIX = 30  # classes shown in the confusion matrix
LISTED = 1000  # images listed with their figures
PAIRS = 12  # of the costliest confusions
Colour = tuple[int, int, int]


# What the page shows; shares and figures are 0..1, images are data: addresses.


@final
@dataclass(frozen=True)
class FigureTile:
    name: str
    what: str
    value: float
    interval: Interval


@final
@dataclass(frozen=True)
class NamedColour:
    name: str
    colour: Colour


@final
@dataclass(frozen=True)
class ShownClass:
    """A class with the 95 % interval of its IU, its share of the labelled pixels and, where kept, boundary figures."""

    figures: ClassFigures
    interval: Interval
    share: float
    colour: Colour
    f_score: float | None
    boundary_iou: float | None


@final
@dataclass(frozen=True)
class MatrixCell:
    share: float
    same: bool
    pixels: int
    predicted: str


@final
@dataclass(frozen=True)
class MatrixRow:
    name: str
    colour: Colour
    cells: Sequence[MatrixCell]


@final
@dataclass(frozen=True)
class ConfusionMatrix:
    """longest: letters of the longest name; left_out: classes of the truth without a row."""

    rows: Sequence[MatrixRow]
    head: Sequence[NamedColour]
    longest: int
    left_out: int


@final
@dataclass(frozen=True)
class ShownImage:
    name: str
    image: str
    label: str
    prediction: str


@final
@dataclass(frozen=True)
class Crop:
    """Part of an image; outline: a line around what is labelled one class and called the other."""

    name: str
    image: str
    label: str
    prediction: str
    outline: str


@final
@dataclass(frozen=True)
class PairCard:
    """A confusion; cost: the mean IU it costs; crop: an example, where the evaluation was kept."""

    truth: str
    predicted: str
    share: float
    cost: float
    colours: tuple[Colour, Colour]
    crop: Crop | None


@final
@dataclass(frozen=True)
class SuspectCard:
    labelled: str
    predicted: str
    confidence: float
    pixels: int
    window: tuple[int, int, int, int]
    colours: tuple[Colour, Colour]
    crop: Crop


@final
@dataclass(frozen=True)
class GalleryCard:
    """An image whole; further: its inputs besides the first, by name; errors: wrong pixels, to lie over the image."""

    why: str
    name: str
    iu: float | None
    image: str
    label: str
    prediction: str
    further: Mapping[str, str]
    errors: str


@final
@dataclass(frozen=True)
class ErrorCharts:
    """Charts of where errors lie, with the widths (shares of the diagonal) and figures of what they show."""

    borders: Markup
    rings: Markup | None  # None of evaluations kept before they were counted
    half_width: float
    f_score: float | None
    iou: float | None
    thickness: float | None
    near: float
    sizes: Markup
    calibration: Markup
    calibration_error: float | None


@final
@dataclass(frozen=True)
class ImageRow:
    name: str
    iu: float
    accuracy: float


@final
@dataclass(frozen=True)
class ImageTable:
    """Every image's own figures, the worst first; low, middle, high: the deciles 1, 5 and 9 of the mean IU."""

    rows: Sequence[ImageRow]
    left_out: int
    low: float
    middle: float
    high: float
    chart: Markup


@final
@dataclass(frozen=True)
class EvaluationPage:
    """All that the page shows of an evaluation."""

    figures: Sequence[FigureTile]
    bars: Markup
    classes: Sequence[ShownClass]
    borders: bool  # whether any class has boundary figures
    matrix: ConfusionMatrix
    pairs: Sequence[PairCard]
    where: ErrorCharts | None
    images: ImageTable | None
    gallery: Sequence[GalleryCard]
    suspects: Sequence[SuspectCard]
    ground: GroundTable | None
    about: Sequence[tuple[str, str]]
    heads: Sequence[HeadRow]
    legend: Sequence[NamedColour]


def evaluation(found: KeptEvaluation) -> tuple[list[str], EvaluationPage]:
    """(the first sentences, what the page shows) of an evaluation."""
    result, analysis = found.result, found.analysis
    drawn = resample([counts(result)], result.average)[0] if result.images > 1 else None
    intervals = {key: interval(getattr(drawn, key)) if drawn else Interval(None, None) for key in FIGURES}
    rows = _class_rows(result, analysis.border, drawn)
    page = EvaluationPage(
        figures=[FigureTile(name, what, result.figure(k), intervals[k]) for k, (name, what) in FIGURES.items()],
        bars=_class_bars(rows),
        classes=rows,
        borders=any(r.f_score is not None for r in rows),
        matrix=_matrix(result),
        pairs=_pairs(found),
        where=_where(analysis),
        images=_images(result),
        gallery=[_scene(g, found) for g in analysis.gallery],
        suspects=[_suspect(s, found) for s in analysis.suspects],
        ground=ground(found),
        about=_about(found),
        heads=heads(found),
        legend=[NamedColour(n, c) for n, c in zip(result.taxonomy.names, result.taxonomy.palette, strict=True)],
    )
    return sentences.summary(result, analysis, intervals["mean_iu"]), page


def _class_rows(result: Result, border: BorderErrors | None, drawn: Resampled | None) -> list[ShownClass]:
    labelled, unknown = max(int(result.confusion.sum()), 1), (None,) * len(result.taxonomy)
    f_scores, ious = (border.f_scores, border.ious) if border else (None, None)
    return [
        ShownClass(
            c,
            interval(drawn.iu[:, c.id]) if drawn is not None else Interval(None, None),
            c.pixels / labelled,
            result.taxonomy.palette[c.id],
            (f_scores or unknown)[c.id],
            (ious or unknown)[c.id],
        )
        for c in result.classes
    ]


def _class_bars(rows: Sequence[ShownClass]) -> Markup:
    """The classes of the truth, best first."""
    items = []
    for iu, r in sorted(((r.figures.iu or 0.0, r) for r in rows if r.figures.pixels), key=lambda pair: -pair[0]):
        low, high, name = r.interval.low, r.interval.high, r.figures.name
        note = f"{name}: IU {100 * iu:.1f}"
        note += f", 95 % interval {100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
        items.append(charts.Bar(name, iu, low, high, r.colour, note))
    return charts.bars(items, "IU of every class with its 95 % interval")


def _matrix(result: Result) -> ConfusionMatrix:
    """Row shares of the confusion table, for the classes with the largest confusions when there are many."""
    table, names, palette = result.confusion, result.taxonomy.names, result.taxonomy.palette
    labelled = np.flatnonzero(table.sum(1))
    columns = sorted(_most_confused(table)) if len(labelled) > MATRIX else np.flatnonzero(table.sum(0) + table.sum(1))
    rows = []
    for i in (k for k in columns if table[k].any()):
        total = int(table[i].sum())
        cells = [MatrixCell(table[i, j] / total, bool(i == j), int(table[i, j]), names[j]) for j in columns]
        rows.append(MatrixRow(names[i], palette[i], cells))
    return ConfusionMatrix(
        rows,
        [NamedColour(names[j], palette[j]) for j in columns],
        max((len(names[j]) for j in columns), default=0),
        len(labelled) - len(rows),
    )


def _most_confused(table: NDArray[np.int64]) -> set[int]:
    """As many classes as are shown: both sides of the largest confusion, of the next one, and so on."""
    off = table.copy()
    np.fill_diagonal(off, 0)
    chosen: set[int] = set()
    for cell in np.argsort(-off, axis=None, kind="stable"):
        pair = {int(k) for k in divmod(cell, len(table))}
        if len(chosen | pair) <= MATRIX:
            chosen |= pair
        if len(chosen) == MATRIX:
            break
    return chosen


def _pairs(found: KeptEvaluation) -> list[PairCard]:
    """The costliest confusions, with a cropped example where the evaluation was kept."""
    result = found.result
    names, palette = result.taxonomy.names, result.taxonomy.palette
    kept = {(p.truth, p.said): p for p in found.analysis.pairs}
    out = []
    for p in costly_pairs(result.confusion, result.average)[:PAIRS]:
        example = kept.get((p.truth, p.said))
        crop = _crop(example.name, example.files, found, p.truth, p.said) if example else None
        colours = palette[p.truth], palette[p.said]
        out.append(PairCard(names[p.truth], names[p.said], p.share, p.cost, colours, crop))
    return out


def _suspect(entry: SuspectEntry, found: KeptEvaluation) -> SuspectCard:
    """A region whose label is doubted."""
    names, palette = found.result.taxonomy.names, found.result.taxonomy.palette
    labelled, predicted = entry.labelled, entry.said
    return SuspectCard(
        names[labelled],
        names[predicted],
        entry.confidence,
        entry.pixels,
        entry.window,
        (palette[labelled], palette[predicted]),
        _crop(entry.name, entry.files, found, labelled, predicted),
    )


def _crop(name: str, files: ImageFiles, found: KeptEvaluation, labelled: int, predicted: int) -> Crop:
    """A crop's images, with an outline around what is labelled one class and called the other."""
    label, prediction = (named_image(found.place, file) for file in (files.label, files.prediction))
    shown = _shown(name, files, found)
    return Crop(name, shown.image, shown.label, shown.prediction, outline(label, prediction, labelled, predicted))


def _scene(entry: GalleryEntry, found: KeptEvaluation) -> GalleryCard:
    """One image as it was given, labelled, and as it is true, with the errors and the inputs besides the first."""
    label, prediction = (named_image(found.place, file) for file in (entry.files.label, entry.files.prediction))
    shown = _shown(entry.name, entry.files, found)
    further = {modality: address(named_image(found.place, file)) for modality, file in entry.inputs.items()}
    errors = error_map(label, prediction, found.result.taxonomy.ignore)
    return GalleryCard(entry.why, entry.name, entry.iu, shown.image, shown.label, shown.prediction, further, errors)


def _shown(name: str, files: ImageFiles, found: KeptEvaluation) -> ShownImage:
    image, label, prediction, *_ = (named_image(found.place, file) for file in files.all)
    palette = found.result.taxonomy.palette
    return ShownImage(name, address(image), label_address(label, palette), label_address(prediction, palette))


def _images(result: Result) -> ImageTable | None:
    """Every image's own figures, the worst first, and how the mean IU is spread over them."""
    rows = []
    for image in result.per_image:
        table = image.table(result.head, len(result.taxonomy))
        iu = image_iu(table)
        if iu is not None:
            rows.append(ImageRow(image.name, iu, float(np.trace(table) / table.sum())))
    if len(rows) < 2:
        return None
    rows.sort(key=lambda r: r.iu)
    figures = [r.iu for r in rows]
    low, middle, high = map(float, np.percentile(figures, (10, 50, 90)))
    chart = charts.histogram(figures, x="mean IU of an image", y="images")
    return ImageTable(rows[:LISTED], max(0, len(rows) - LISTED), low, middle, high, chart)


def _where(analysis: Analysis) -> ErrorCharts | None:
    """Charts of where errors lie: along borders, by region size, by confidence."""
    border, sizes, calibration = analysis.border, analysis.sizes, analysis.calibration
    if border is None or sizes is None or calibration is None:
        return None
    table = np.asarray(border.pixels).sum(0)
    rate = [float(table[i, 1] / table[i].sum()) if table[i].sum() else None for i in (1, 0)]
    both = [charts.Bar("along borders", rate[0]), charts.Bar("inside regions", rate[1])]
    bins = [(n, r, s) for (n, r), s in zip(calibration.bins, calibration.confidence, strict=True)]
    return ErrorCharts(
        borders=charts.bars(both, "share of wrong pixels along borders and inside regions"),
        rings=_rings(border.rings) if border.rings else None,
        half_width=border.half_width,
        f_score=border.f_score,
        iou=border.iou,
        thickness=border.thickness,
        near=float(table[1].sum() / max(int(table.sum()), 1)),
        sizes=_sizes(sizes),
        calibration=charts.reliability(bins),
        calibration_error=calibration.error,
    )


def _rings(rings: BorderRings) -> Markup:
    """Share of wrong pixels by distance from the nearest border."""
    names = [f"{low:g}–{high:g} px" for low, high in itertools.pairwise((0, *rings.limits))]
    total = sum(n for n, _ in rings.pixels) or 1
    items = [
        charts.Bar(name, wrong / n if n else None, note=f"{name}: {100 * n / total:.1f} % of the labelled pixels")
        for name, (n, wrong) in zip((*names, f"over {rings.limits[-1]:g} px"), rings.pixels, strict=True)
    ]
    return charts.bars(items, "share of wrong pixels by distance from the nearest border")


def _sizes(sizes: SizeErrors) -> Markup:
    """Share of labelled regions that are found, by their size."""
    items = [
        charts.Bar(
            f"{100 * low:g}–{100 * high:g}\u202f% ({n:,})",
            found / n if n else None,
            note=f"{n:,} regions, {100 * wrong / max(pixels, 1):.1f} % of their pixels wrong",
        )
        for (low, high), (n, pixels, wrong, found) in zip(itertools.pairwise(sizes.limits), sizes.regions, strict=True)
    ]
    return charts.bars(items, "share of regions found, by size")


def _about(found: KeptEvaluation) -> list[tuple[str, str]]:
    """What was measured and how, as (term, words)."""
    a, result = found.about, found.result
    native = a.protocol in ("native", "paper")
    size = "images and labels at their own size" if native else "images and labels resized (labels nearest)"
    averaging = "classes that occur in the truth" if result.average == "present" else "all classes, unseen ones as 0"
    augmented = f"mean over {' and '.join(a.tta)}" if a.tta else "no augmentation"
    how = learned(a.model.training)
    return [
        ("Data", f"{a.data.name} ({a.data.kind}), split {a.data.split}, {result.images} of {a.data.of} images"),
        ("Fingerprint", a.data.fingerprint),
        ("Model", f"{a.model.name}, weights sha256 {a.model.sha256}"),
        *([("Learned", how)] if how else []),
        ("Protocol", f"{a.protocol}: {size}"),
        *(("Classes", f"{head}: {words}") for head, words in a.classes.items()),
        ("Means over", averaging),
        ("Ignored label", ", ".join(f"{h}: {v}" for h, v in a.ignore.items())),
        ("Computed in", f"{_tiling(a.tiling)}; {a.precision}; {augmented}"),
        ("Intervals", "bootstrap over images, 1,000 draws, 95 %; too narrow where images are frames of one video"),
        ("Machine", f"{a.machine.processor}, {_number(a.machine.cores, 'core')}, {a.machine.device}"),
        ("Speed", f"{a.images_per_second} images/s, {a.seconds} s in all"),
        ("Versions", ", ".join(f"{k} {v}" for k, v in a.versions.items())),
    ]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _tiling(tiling: Tiling) -> str:
    if not tiling.tile:
        return "whole images"
    how = "blended, an approximation" if tiling.blended else "equal to whole images"
    return f"tiles of {tiling.tile[0]}x{tiling.tile[1]} pixels with {tiling.context} around, {how}"
