"""What a page may ask for, checked before anything is done, and what of it is written down."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Annotated, Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fullyconv.errors import DataError
from fullyconv.labelling.strokes import MOST_DIAMETER, MOST_SIDE

__all__ = ["BadEdit", "Edit", "Paint", "packed_runs", "parse_edit", "unpacked_runs"]

MOST_POINTS = 4096  # of one stroke or outline: its cost grows with them
_FAR = 2 * MOST_SIDE  # strokes may leave the image
Coordinate = Annotated[int, Field(ge=-MOST_SIDE, le=_FAR)]
Corner = Annotated[int, Field(ge=0, le=MOST_SIDE)]
Paint = Annotated[int, Field(ge=0, le=65_533)] | Literal["erase", "ignore"]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    image: int = Field(ge=0, le=10_000_000)
    id: str = Field(pattern="^[0-9a-f]{16,32}$")  # the page's own, so that asking twice does it once
    spent: float = Field(0.0, ge=0, le=600)  # seconds of work since the last edit


@final
class Brushed(_Asked):
    """A line of a brush, through pixels [x, y]; "erase" takes painting away."""

    op: Literal["brush"]
    points: list[Annotated[list[Coordinate], Field(min_length=2, max_length=2)]] = Field(
        min_length=1, max_length=MOST_POINTS
    )
    diameter: int = Field(ge=1, le=MOST_DIAMETER)
    paint: Paint


@final
class Outlined(_Asked):
    """A polygon, through corners of pixels [x, y]."""

    op: Literal["polygon"]
    points: list[Annotated[list[Corner], Field(min_length=2, max_length=2)]] = Field(
        min_length=3, max_length=MOST_POINTS
    )
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


def unpacked_runs(text: str) -> NDArray[np.int64]:
    """The inverse; DataError for what is none."""
    try:
        return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").reshape(-1, 3).astype(np.int64)
    except (ValueError, zlib.error, binascii.Error) as error:
        raise DataError("The journal holds a region that cannot be read; restore it from a copy.") from error
