"""What an exported file says of itself (one JSON text in its metadata) and the seal that tells when a bit changed.

The seal is the sha256 of the whole file with the seal's own 64 digits as zeros; it stands last in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict, cast

from fullyconv.errors import DataError, foreign_values, printable

__all__ = [
    "ABOUT",
    "BLANK",
    "FORMAT",
    "SEAL",
    "ExportFacts",
    "GeometryFacts",
    "check_seal",
    "checked_about",
    "facts_of",
    "sealed",
]

ABOUT, SEAL, FORMAT = "fullyconv", "fullyconv_seal", 2
BLANK = "0" * 64


class SealedInput(TypedDict):
    name: str
    kind: str  # "uint8" or "float"
    layout: str
    channels: int


class GeometryFacts(TypedDict):
    """The last upsampling as `geometry.OutputGeometry`; halo None where the context is unbounded."""

    stride: int
    offset: int | float
    border: Literal["fade", "replicate"]
    exact: bool
    halo: float | None
    align: int


class ExportFacts(TypedDict):
    """What a file says of itself, as JSON. x, scores, coarse: names of values inside it, by which it is proved and cut
    (None or absent in formats that cannot be cut)."""

    format: int
    name: str
    inputs: list[str]
    input: SealedInput
    output: str
    names: dict[str, list[str]]  # head -> the outputs that answer for it
    scores: dict[str, str]
    coarse: dict[str, str] | None
    x: str | None
    heads: dict[str, int]
    taxonomies: dict[str, dict[str, Any]]
    preprocessing: dict[str, Any]
    geometry: GeometryFacts
    weights_sha256: str
    versions: dict[str, str | int]
    training: NotRequired[Mapping[str, Any]]
    proof: dict[str, Any] | None
    precision: NotRequired[str]
    int8: NotRequired[dict[str, Any]]
    parts: NotRequired[str]


NEEDED = (
    "format", "name", "inputs", "input", "output", "names", "heads", "taxonomies", "preprocessing", "geometry", "x",
    "coarse", "proof",
)  # fmt: skip


def sealed(data: bytes) -> bytes:
    """`data`, written with the seal blank, with its seal."""
    at = data.rindex(BLANK.encode())
    return b"".join((data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + 64 :]))


def check_seal(data: bytes, seal: str, source: object) -> None:
    """`DataError` unless `data` is, to the bit, what was sealed."""
    at = data.rfind(seal.encode()) if len(seal) == 64 else -1
    found = hashlib.sha256()
    if at >= 0:
        view = memoryview(data)
        for part in (view[:at], BLANK.encode(), view[at + 64 :]):
            found.update(part)
    if at < 0 or found.hexdigest() != seal:
        raise DataError(
            f"{printable(source)} is not as it was exported (its sha256 differs): it is damaged or was changed; export "
            "the model again."
        )


def facts_of(text: str | bytes) -> ExportFacts:
    """A file's JSON; ValueError where it is no mapping. What it lacks is found where it is read (`foreign_values`)."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no mapping")
    return cast(ExportFacts, found)


def checked_about(metadata: dict[str, str], source: object) -> ExportFacts:
    """The JSON of an exported file's metadata; `DataError` naming what is missing."""
    missing = [key for key in (ABOUT, SEAL) if key not in metadata]
    if missing:
        raise DataError(
            f"{printable(source)} was not exported by fullyconv: its metadata lacks {' and '.join(missing)}; make it "
            "with  fullyconv export MODEL -o FILE.onnx."
        )
    with foreign_values(source, "export the model again"):
        about = facts_of(metadata[ABOUT])
        lacking = [key for key in NEEDED if key not in about]
        if lacking or about["format"] != FORMAT:
            problem = f"lacks {', '.join(lacking)}" if lacking else f"are of format {about['format']!r}, not {FORMAT}"
            raise DataError(f"{printable(source)}: the metadata {problem}; export the model again.")
        return about
