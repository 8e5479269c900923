"""What the files of a run or an evaluation say, as typed records: read once, checked as a whole, then only looked at.

The files may be a stranger's. pydantic holds them against the types below, so whatever comes after may rely on these;
keys that no page shows are passed over. Every fault is a ValueError that names the place (`errors.foreign_values`
makes one sentence of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, final

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from fullyconv.errors import printable

__all__ = [
    "About",
    "Analysis",
    "BorderErrors",
    "BorderRings",
    "Calibration",
    "GalleryEntry",
    "ImageFiles",
    "MeasuredGround",
    "MeasurementRecord",
    "PairEntry",
    "SizeErrors",
    "StepRecord",
    "SuspectEntry",
    "Tiling",
    "Training",
    "parse_record",
]

T = TypeVar("T")
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Share = FiniteFloat | None
_adapters: dict[Any, TypeAdapter[Any]] = {}  # by type: to make one takes longer than to use it
Limits = Annotated[tuple[FiniteFloat, ...], Field(min_length=4)]


def parse_record(kind: type[T], value: object) -> T:
    """`value`, as JSON holds it, as a record of `kind`; ValueError that says where it is not one and why."""
    try:
        adapter = _adapters.get(kind) or _adapters.setdefault(kind, TypeAdapter(kind))
        found: T = adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = printable(".".join(map(str, first["loc"])))[:80]
        raise ValueError(f"{place or kind.__name__}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    return found


# ---- metrics.jsonl ----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of training. loss: of the whole batch; pixel_loss: of a pixel, where the loss is a sum."""

    step: Count
    epoch: Share = None
    loss: Share = None
    pixel_loss: Share = None
    lr: Share = None


@final
@dataclass(frozen=True, slots=True)
class MeasurementRecord:
    """One measurement on the validation images. figures: mean IU and pixel accuracy, 0..1, of every head, by the log's
    key; floor: the mean IU of one class everywhere; classes: each class's IU, None where the truth lacks it."""

    step: Count
    split: str | None = None
    figures: Mapping[str, Share] = field(default_factory=dict)
    floor: Share = None
    classes: Mapping[str, Share] | None = None

    @classmethod
    def of(cls, row: Mapping[str, object]) -> MeasurementRecord:
        """From a row of the log."""
        figures = {k: v for k, v in row.items() if k.endswith(("mean_iu", "pixel_accuracy"))}
        floor = row.get("floor")
        known = {"step": row.get("step"), "split": row.get("split"), "classes": row.get("per_class_iu")}
        mean = floor.get("mean_iu") if isinstance(floor, Mapping) else None
        return parse_record(cls, {**known, "figures": figures, "floor": mean})

    @property
    def mean_iu(self) -> float | None:
        return self.figures.get("mean_iu")

    @property
    def pixel_accuracy(self) -> float | None:
        return self.figures.get("pixel_accuracy")


# ---- result.json: what was measured, and how ------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class MeasuredData:
    """The images: `of` is how many the split has."""

    kind: str
    name: str
    split: str
    fingerprint: str
    of: Count
    inputs: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class AddedHead:
    """Where a head that is not the data set's own has its labels from: another head, or a folder."""

    source: Annotated[str | None, Field(alias="from")] = None
    folder: str | None = None


@final
@dataclass(frozen=True)
class Training:
    """How a network was learned, as its run wrote it down. stages: the networks it was started from, first to last."""

    recipe: str = ""
    length: str = ""
    images: Count = 0
    inputs: tuple[str, ...] = ()
    stages: Annotated[tuple[str, ...], Field(alias="from")] = ()
    weights: str = ""
    frozen_trunk: bool = False
    heads: Mapping[str, AddedHead] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class MeasuredModel:
    name: str
    sha256: str
    training: Training | None = None


@final
@dataclass(frozen=True)
class Tiling:
    """tile: (H, W) and `context` in pixels; None: whole images."""

    tile: tuple[Count, Count] | None
    context: Count
    blended: bool


@final
@dataclass(frozen=True)
class MachineRecord:
    processor: str
    cores: Count
    device: str


@final
@dataclass(frozen=True)
class Areas:
    """Hectares by class, as labelled and as predicted."""

    truth: tuple[FiniteFloat, ...]
    prediction: tuple[FiniteFloat, ...]


@final
@dataclass(frozen=True)
class MeasuredGround:
    """images: how many lie on a map; metres: along the finest and the coarsest pixel; hectares: by head."""

    images: Count
    metres: tuple[FiniteFloat, FiniteFloat]
    hectares: Mapping[str, Areas]


@final
@dataclass(frozen=True)
class About:
    """What was measured and how: `Result.about`, checked. ignore: by head; classes: by head, in words."""

    data: MeasuredData
    model: MeasuredModel
    protocol: str
    ignore: Mapping[str, int]
    tta: tuple[str, ...]
    tiling: Tiling
    precision: str
    versions: Mapping[str, str]
    machine: MachineRecord
    seconds: FiniteFloat
    images_per_second: Share
    classes: Mapping[str, str] = field(default_factory=dict)
    ground: MeasuredGround | None = None


# ---- result.json: what a kept evaluation adds -----------------------------------------------------------------------


@final
@dataclass(frozen=True)
class ImageFiles:
    """Files of one image, or of a window of it, below the result's folder."""

    image: str
    label: str
    prediction: str
    confidence: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in (self.image, self.label, self.prediction, self.confidence) if name)


@final
@dataclass(frozen=True)
class GalleryEntry:
    """An image that is shown whole, why ("worst", "median", "best"), its own mean IU, and its further inputs' files."""

    why: str
    name: str
    iu: Share
    files: ImageFiles
    inputs: Mapping[str, str] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class PairEntry:
    """An example of a confusion: class `truth` called `said`."""

    truth: Count
    said: Count
    name: str
    files: ImageFiles


@final
@dataclass(frozen=True)
class SuspectEntry:
    """A region whose label is doubted; window: top, left, bottom, right."""

    name: str
    files: ImageFiles
    window: tuple[Count, Count, Count, Count]
    labelled: Count
    said: Count
    pixels: Count
    confidence: FiniteFloat


@final
@dataclass(frozen=True)
class BorderRings:
    """[pixels, wrong pixels] by distance from the nearest border; one row more than limits."""

    limits: Annotated[tuple[FiniteFloat, ...], Field(min_length=1)]
    pixels: tuple[tuple[Count, Count], ...]


@final
@dataclass(frozen=True)
class BorderErrors:
    """pixels: K x 2 x 2 [class, near a border?, wrong?]. What later versions count too is None in older results."""

    half_width: FiniteFloat
    pixels: tuple[tuple[tuple[Count, Count], tuple[Count, Count]], ...]
    f_score: Share = None
    f_scores: tuple[Share, ...] | None = None
    iou: Share = None
    ious: tuple[Share, ...] | None = None
    thickness: Share = None
    rings: BorderRings | None = None


@final
@dataclass(frozen=True)
class SizeErrors:
    """regions: [regions, pixels, wrong pixels, regions found] of each step between two limits, shares of the image."""

    limits: Limits
    regions: Annotated[tuple[tuple[Count, Count, Count, Count], ...], Field(min_length=2)]


@final
@dataclass(frozen=True)
class Calibration:
    """bins: [pixels, right pixels] by confidence; confidence: its sum in each."""

    bins: tuple[tuple[Count, Count], ...]
    confidence: tuple[FiniteFloat, ...]
    error: Share


@final
@dataclass(frozen=True)
class Analysis:
    """What a kept evaluation adds for the page: `Result.analysis`, checked. Empty for one that was not kept."""

    gallery: Sequence[GalleryEntry] = ()
    pairs: Sequence[PairEntry] = ()
    suspects: Sequence[SuspectEntry] = ()
    border: BorderErrors | None = None
    sizes: SizeErrors | None = None
    calibration: Calibration | None = None
