"""Images that are stored several times, each smaller than the last: which of them is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.errors import DataError, UsageError, printable

__all__ = ["Level", "Resolution", "choose_level", "resolution_tags"]

NEAR = 1.5  # times: what a level's pixels may be larger or smaller than asked for


@final
@dataclass(frozen=True)
class Level:
    """size (H, W); micrometres along a pixel (0: not said); how many times smaller than the finest."""

    size: tuple[int, int]
    pixel: float
    downsample: float


@final
@dataclass(frozen=True)
class Resolution:
    """What `--resolution` asks for: micrometres along a pixel, or times smaller than the finest; else the finest."""

    pixel: float = 0
    downsample: float = 0

    @classmethod
    def parse(cls, text: str) -> Resolution:
        number = text.strip().lower().removesuffix("um").removesuffix("x")
        try:
            value = float(number) if text else 0.0
        except ValueError:
            value = -1.0
        if not 0 <= value < math.inf or (text and not value):
            raise UsageError(
                f"--resolution {printable(text)} is neither micrometres a pixel (0.5) nor a reduction (4x); give one."
            )
        return cls(downsample=value) if text.strip().lower().endswith("x") else cls(pixel=value)

    def __bool__(self) -> bool:
        return bool(self.pixel or self.downsample)


def choose_level(levels: Sequence[Level], asked: Resolution, path: Path) -> int:
    """The level whose pixels are nearest to what was asked for; DataError where none is near, or none says its size."""
    if not asked:
        return 0
    if asked.pixel and not all(level.pixel for level in levels):
        raise DataError(
            f"{printable(path)} does not say how large its pixels are; give --resolution as a reduction, of "
            f"{_listed(levels, False)}."
        )
    far = [
        abs(math.log(level.pixel / asked.pixel if asked.pixel else level.downsample / asked.downsample))
        for level in levels
    ]
    best = min(range(len(levels)), key=far.__getitem__)
    if far[best] > math.log(NEAR):
        raise DataError(
            f"{printable(path)} has no level near that resolution; it has {_listed(levels, bool(asked.pixel))}: give "
            "one of them."
        )
    return best


def _listed(levels: Sequence[Level], pixels: bool) -> str:
    return ", ".join(f"{level.pixel:.3g}" if pixels else f"{level.downsample:.3g}x" for level in levels)


def resolution_tags(pixel: float) -> dict[str, str]:
    """How a TIFF says that a pixel is so many micrometres wide; {} where it is not known."""
    if not pixel:
        return {}
    return {"TIFFTAG_XRESOLUTION": f"{1e4 / pixel:.9g}", "TIFFTAG_YRESOLUTION": f"{1e4 / pixel:.9g}",
            "TIFFTAG_RESOLUTIONUNIT": "3"}  # fmt: skip
