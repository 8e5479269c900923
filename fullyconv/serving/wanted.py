"""What a request may ask for: a fixed set of words and small whole numbers, nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final
from urllib.parse import parse_qsl

__all__ = ["MEDIA", "OUTPUTS", "BadQuery", "Wanted", "wanted"]

OUTPUTS = {
    "labels": "image/png",
    "overlay": "image/jpeg",
    "json": "application/json",
    "probabilities": "application/octet-stream",
}
"""Value of `output` -> the answer's media type."""
MEDIA = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
"""Media types of images that are taken. No TIFF: libtiff is the decoder with the longest list of holes."""


@final
class BadQuery(ValueError):
    """A query that asks for something else; `str` says what may be asked."""


@final
@dataclass(frozen=True)
class Wanted:
    """output: a key of `OUTPUTS`; head: the place of the head among the network's; polygons and labels: whether the
    JSON also holds each class's outlines, and the label map as base64 of the PNG."""

    output: str = "labels"
    head: int = 0
    polygons: bool = False
    labels: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def wanted(query: bytes, heads: int) -> Wanted:
    """The query string of a prediction; BadQuery for unknown or repeated keys, other values, heads that are not."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=4, errors="strict"
        )
    except ValueError as error:
        raise BadQuery("The query cannot be read; give key=value&key=value.") from error
    given = dict(pairs)
    if len(given) != len(pairs) or not set(given) <= {"output", "head", "polygons", "labels"}:
        raise BadQuery("The query may hold output, head, polygons and labels, each once.")
    output = given.get("output", "labels")
    if output not in OUTPUTS:
        raise BadQuery(f"output is one of {', '.join(OUTPUTS)}.")
    head = given.get("head", "0")
    if not (head.isascii() and head.isdigit() and len(head) <= 3 and int(head) < heads):
        raise BadQuery(f"head is a whole number from 0 to {heads - 1}.")
    flags = {key: given.get(key, "0") for key in ("polygons", "labels")}
    if not set(flags.values()) <= {"0", "1"}:
        raise BadQuery("polygons and labels are 0 or 1.")
    return Wanted(output, int(head), flags["polygons"] == "1", flags["labels"] == "1")
