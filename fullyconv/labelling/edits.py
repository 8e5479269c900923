"""What a page may ask for, checked before anything is done, and what of it is written down."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fullyconv.errors import DataError, printable
from fullyconv.labelling.strokes import MOST_DIAMETER, MOST_SIDE

__all__ = ["BadEdit", "Edit", "Paint", "packed_runs", "parse_edit", "refuse_foreign", "unpacked_runs"]

MOST_POINTS = 4096  # of one stroke or outline: its cost grows with them
MOST_RUNS = 1 << 28  # bytes of a region's runs, unpacked: each row of the largest image cut a hundred times
_FAR = 2 * MOST_SIDE  # strokes may leave the image
Coordinate = Annotated[int, Field(ge=-MOST_SIDE, le=_FAR)]
Corner = Annotated[int, Field(ge=0, le=MOST_SIDE)]
Line = Annotated[
    list[Annotated[list[Coordinate], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=MOST_POINTS)
]
Corners = Annotated[
    list[Annotated[list[Corner], Field(min_length=2, max_length=2)]], Field(min_length=3, max_length=MOST_POINTS)
]
Diameter = Annotated[int, Field(ge=1, le=MOST_DIAMETER)]
Identity = Annotated[str, Field(pattern="^[0-9a-f]{16,32}$")]  # the page's own, so that asking twice does it once
Spent = Annotated[float, Field(ge=0, le=600)]  # seconds of work since the last edit
Paint = Annotated[int, Field(ge=0, le=65_533)] | Literal["erase", "ignore"]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    image: int = Field(ge=0, le=10_000_000)
    id: Identity
    spent: Spent = 0.0


@final
class Brushed(_Asked):
    """A line of a brush, through pixels [x, y]; "erase" takes painting away."""

    op: Literal["brush"]
    points: Line
    diameter: Diameter
    paint: Paint


@final
class Outlined(_Asked):
    """A polygon, through corners of pixels [x, y]."""

    op: Literal["polygon"]
    points: Corners
    paint: Paint


@final
class Filled(_Asked):
    """The region that is shown at a pixel [x, y]."""

    op: Literal["region"]
    point: Annotated[list[Corner], Field(min_length=2, max_length=2)]
    paint: Paint


@final
class Told(_Asked):
    """accept: what is not painted is as proposed. reopen: it is not. undo, redo: of the image's last edit."""

    op: Literal["accept", "reopen", "undo", "redo"]


Edit = Brushed | Outlined | Filled | Told
_EDIT: TypeAdapter[Any] = TypeAdapter(Annotated[Edit, Field(discriminator="op")])


class _Kept(BaseModel):
    """What the journal holds of an edit: the image by its name, and what was found out when it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    image: str = Field(min_length=1, max_length=4096)
    id: Identity
    spent: Spent = 0.0
    time: float


@final
class KeptBrush(_Kept):
    op: Literal["brush"]
    points: Line
    diameter: Diameter
    paint: Paint


@final
class KeptPolygon(_Kept):
    op: Literal["polygon"]
    points: Corners
    paint: Paint


@final
class KeptRegion(_Kept):
    op: Literal["region"]
    point: list[Corner]
    runs: str
    paint: Paint


@final
class KeptAccept(_Kept):
    op: Literal["accept"]
    base: str = Field(pattern="^[0-9a-f]{64}$")  # becomes part of a path
    source: Literal["existing", "proposal"]
    model: str


@final
class KeptWord(_Kept):
    op: Literal["reopen", "undo", "redo"]


_KEPT: TypeAdapter[Any] = TypeAdapter(
    Annotated[KeptBrush | KeptPolygon | KeptRegion | KeptAccept | KeptWord, Field(discriminator="op")]
)


def refuse_foreign(records: Sequence[Mapping[str, object]], classes: int, journal: object) -> None:
    """DataError for a journal that no labelling page wrote: its sums tell damage, not who wrote it."""
    for line, record in enumerate(records, 1):
        try:
            _KEPT.validate_python(record)
            paint = record.get("paint")
            if not isinstance(paint, int) or paint < classes:
                continue
        except ValidationError:
            pass
        raise DataError(
            f"{printable(journal)} holds at line {line} what no labelling page wrote; restore it from a copy, or move "
            "it away to begin anew."
        )


@final
class BadEdit(DataError):
    """What was asked for is no edit."""


def parse_edit(body: bytes) -> Edit:
    """The edit that a request's body says; BadEdit, without a word of what was sent."""
    try:
        value = json.loads(body)
        edit: Edit = _EDIT.validate_python(value)
        return edit
    except ValidationError as error:
        where = ".".join(str(p) for p in error.errors()[0]["loc"][1:2])
        raise BadEdit(
            f"This is no edit that is known{f' (see {where})' if where in Brushed.model_fields else ''}."
        ) from None
    except (ValueError, RecursionError):
        raise BadEdit("The body is no JSON.") from None


def packed_runs(runs: NDArray[np.int64]) -> str:
    """N x 3 whole numbers (row, first, past-the-last column) as text."""
    return base64.b64encode(zlib.compress(runs.astype("<i4").tobytes(), 6)).decode()


def unpacked_runs(text: str, most: int = MOST_RUNS) -> NDArray[np.int64]:
    """The inverse; DataError for what is none."""
    try:
        reading = zlib.decompressobj()
        data = reading.decompress(base64.b64decode(text), most)
        if not reading.eof:
            raise ValueError
        return np.frombuffer(data, "<i4").reshape(-1, 3).astype(np.int64)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise DataError("The journal holds a region that cannot be read; restore it from a copy.") from error
