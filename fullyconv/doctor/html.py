"""The doctor's sheet: every kind of finding with cropped images, in one HTML file without anything from outside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.doctor.findings import Finding
from fullyconv.doctor.summary import Summary
from fullyconv.drawing import colours, shrunk
from fullyconv.errors import FullyconvError, printable
from fullyconv.pages import data_address, fill
from fullyconv.taxonomy import voc_palette

__all__ = ["sheet"]

_SIDE = 160  # pixels of a crop
_IMAGES, _LISTED = 8, 200  # findings of a kind shown with images, and at all


@final
@dataclass(frozen=True)
class ShownCrop:
    """An image or part of one, with its size in pixels."""

    width: int
    height: int
    address: str


@final
@dataclass(frozen=True)
class ShownFinding:
    images: Sequence[ShownCrop]
    message: str


@final
@dataclass(frozen=True)
class FindingKind:
    """All findings of a kind: some with images, of `more` only what they say, beyond these only how many."""

    kind: str
    level: str
    count: int
    remedy: str
    shown: Sequence[ShownFinding]
    more: Sequence[str]


@final
@dataclass(frozen=True)
class ClassShare:
    """share: of the labelled pixels, 0..1; weight: by median frequency."""

    name: str
    pixels: int
    share: float
    weight: float


@final
@dataclass(frozen=True)
class HeadClasses:
    name: str
    ignored: float
    classes: Sequence[ClassShare]


@final
@dataclass(frozen=True)
class CheckPage:
    """What sheet.html shows: findings, then what training will meet, as (term, words) and classes by head."""

    title: str
    kinds: Sequence[FindingKind]
    facts: Sequence[tuple[str, str]]
    heads: Sequence[HeadClasses]


def sheet(findings: Sequence[Finding], summary: Summary | None, title: str) -> str:
    """The page as text: the worst first, at most 8 images a kind, then what training will meet.
    Characters that turn the direction of writing are shown as their escapes."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for f in findings:
        kinds[f.kind].append(f)
    shown = [_kind(kind, some) for kind, some in kinds.items()]
    facts, heads = (_facts(summary), _heads(summary)) if summary else ([], [])
    return fill("fullyconv.doctor", "sheet.html", CheckPage(f"Check of {printable(title)}", shown, facts, heads))


def _kind(kind: str, some: Sequence[Finding]) -> FindingKind:
    shown = [
        ShownFinding([crop for file in f.files[:2] if (crop := _crop(file, f.place))], f.message)
        for f in some[:_IMAGES]
    ]
    return FindingKind(
        kind, some[0].level, len(some), some[0].remedy, shown, [f.message for f in some[_IMAGES:_LISTED]]
    )


def _crop(file: Path, place: tuple[int, int] | None) -> ShownCrop | None:
    """The file made small, or the surroundings of `place`; None if it is no image or cannot be read."""
    if file.suffix.lower() not in SUFFIXES:
        return None
    try:
        pixels = _pixels(file)
    except (FullyconvError, OSError):
        return None
    if place:
        top, left = (max(0, p - _SIDE // 2) for p in place)
        pixels = pixels[top : top + _SIDE, left : left + _SIDE]
    small = shrunk(pixels, _SIDE)
    return ShownCrop(small.shape[1], small.shape[0], data_address(images.encode_png(small), "image/png"))


def _pixels(file: Path) -> NDArray[Any]:
    """An image as RGB; small-valued grey and palette files, which are labels, in the VOC colours."""
    info = images.image_info(file)
    if info.mode in ("L", "P", "1") and info.format == "PNG":
        ids = images.read_label(file)
        if len(np.unique(ids)) <= 64 or info.mode == "P":
            return colours(ids & 255, voc_palette(256))
    return images.read_image(file)


def _facts(s: Summary) -> list[tuple[str, str]]:
    return [
        ("images", ", ".join(f"{n} in {split}" for split, n in s.images.items())),
        ("size (HxW)", f"{_size(s.smallest)} to {_size(s.largest)}, median {_size(s.median)}"),
        ("channel mean", ", ".join(f"{m:.1f}" for m in s.mean) if s.mean else "not measured"),
        ("channel std", ", ".join(f"{m:.1f}" for m in s.std) if s.std else "not measured"),
        ("what train takes", ", ".join(f"{k} = {v}" for k, v in s.recipe.items())),
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _heads(s: Summary) -> list[HeadClasses]:
    """The heads whose pixels were counted."""
    return [
        HeadClasses(
            head,
            found.ignored,
            [
                ClassShare(*row)
                for row in zip(
                    found.classes, found.pixels, found.frequency, found.median_frequency_weights, strict=True
                )
            ],
        )
        for head, found in s.heads.items()
        if found.pixels
    ]
