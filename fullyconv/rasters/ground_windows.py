"""Windows of scenes, and which of them are val: blocks of ground.

Windows lie on a grid of the ground (see `windows`). Whole blocks of ground go to val, drawn by a seed, and no window of
train comes nearer to them than a margin, measured on the map, so that scenes that overlap, or have other projections,
leak nothing: neighbouring pixels are nearly copies of each other, and figures from a split by windows would flatter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, UsageError, printable
from fullyconv.rasters.ground_truth import BACKGROUND, map_bounds, moved_box
from fullyconv.rasters.windows import RasterProfile, Window

__all__ = ["CutOptions", "Piece", "divided", "first_placed", "pieces_of", "pixel_metres"]

BLOCKS = (4, 2, 1)  # windows along the edge of a block of ground: the most of them that leave `ENOUGH` blocks
ENOUGH = 5  # blocks of ground: of fewer, no fifth could be held out
MOST_WINDOWS = 2_000_000  # that are listed: of 512 pixels, Germany at half a metre
Box = tuple[float, float, float, float]


@final
@dataclass(frozen=True)
class CutOptions:
    """size: pixels along a window's edge (a rest under half of it joins its neighbour). val: share of the windows.
    margin: pixels of ground between train and val. least: share of a window that must be measured and labelled."""

    size: int = 512
    val: float = 0.2
    margin: int = 64
    least: float = 0.05
    seed: int = 0
    field: str = ""
    outside: str = BACKGROUND

    def __post_init__(self) -> None:
        if self.size < 16 or not 0 <= self.val < 1 or self.margin < 0 or not 0 <= self.least <= 1:
            raise UsageError(
                f"size = {self.size}, val = {self.val}, margin = {self.margin}, least = {self.least}: a window has 16 "
                "pixels or more along its edge, val is in [0, 1), the margin 0 or more, least in [0, 1]."
            )


@final
@dataclass
class Piece:
    """A window of a scene. ground: its box on the first scene's map, or in pixels of its own scene (`island`)."""

    scene: int
    window: Window
    name: str
    ground: Box
    island: str
    split: str = "train"
    block: tuple[str, int, int] = ("", 0, 0)  # (island, row, column) of its block of ground


def _edges(length: int, size: int, origin: int) -> list[int]:
    """Windows' edges on the ground's grid; a rest under half a window joins its neighbour."""
    inner = [e for e in range((-origin) % size, length, size) if size / 2 <= e <= length - size / 2]
    return [0, *inner, length]


def pieces_of(
    pairs: Sequence[tuple[Path, Path]], profiles: Sequence[RasterProfile], options: CutOptions
) -> list[Piece]:
    """Every window of (scene, labels) with these profiles, scene by scene, row by row."""
    found: list[Piece] = []
    first = first_placed(profiles)
    stems = [s.stem for s, _ in pairs]
    for i, (profile, stem) in enumerate(zip(profiles, stems, strict=True)):
        name = stem if stems.count(stem) == 1 else pairs[i][0].name.replace(".", "_")
        if len(found) + math.prod(max(1, n // options.size) for n in profile.size) > MOST_WINDOWS:
            raise DataError(
                f"{printable(pairs[i][0])} has {profile.size[0]} x {profile.size[1]} pixels (HxW), which are over "
                f"{MOST_WINDOWS} windows of {options.size} pixels; give a larger --size, or a part of the scene."
            )
        rows = _edges(profile.size[0], options.size, profile.origin[0])
        columns = _edges(profile.size[1], options.size, profile.origin[1])
        for top, bottom in pairwise(rows):
            for left, right in pairwise(columns):
                window = Window(top, left, bottom, right)
                ground: Box = (left, top, right, bottom)
                if profile.transform is not None:
                    part = RasterProfile(window.size, 1, profile.dtype, profile.place(window))
                    ground = moved_box(map_bounds(part), profile.crs, first.crs)
                island = "" if profile.transform is not None else name
                found.append(Piece(i, window, f"{name}_r{top:06d}_c{left:06d}", ground, island))
    return found


def first_placed(profiles: Sequence[RasterProfile]) -> RasterProfile:
    """The scene whose map all boxes of ground are on."""
    return next((p for p in profiles if p.transform is not None), profiles[0])


def divided(pieces: list[Piece], options: CutOptions, first: RasterProfile) -> tuple[list[Piece], str]:
    """(the pieces with their splits, without those of train that lie within the margin round val; what that was).
    first: as of `first_placed`. DataError where nothing can be held out, or nothing is left to learn from."""
    if not pieces:
        raise DataError(
            f"No window is measured and labelled on {100 * options.least:g} % of its pixels; look at the labels, or "
            "give a smaller --least."
        )
    pixel = 1.0 if first.transform is None else math.hypot(first.transform[0], first.transform[3])
    for along in BLOCKS:
        edge = {"": options.size * along * pixel}
        blocks = [_block(p, edge.get(p.island, float(options.size * along))) for p in pieces]
        if len(set(blocks)) >= ENOUGH:
            break
    for piece, block in zip(pieces, blocks, strict=True):
        piece.block = block
    if options.val == 0:
        return pieces, ""
    if len(set(blocks)) < 2:
        raise DataError(
            f"All of the ground is one window of {options.size} pixels, so nothing can be held out; give a smaller "
            "--size, or --val 0."
        )
    drawn = sorted(set(blocks), key=lambda b: hashlib.sha256(f"{options.seed}:{b}".encode()).digest())
    held: set[Any] = set()
    for block in drawn[:-1]:
        if held and sum(b in held for b in blocks) >= options.val * len(pieces):
            break
        held.add(block)
    for piece in pieces:
        piece.split = "val" if piece.block in held else "train"
    near = _near([p for p in pieces if p.split == "val"], options.margin, pixel)
    kept = [p for p in pieces if p.split == "val" or not near(p)]
    if not any(p.split == "train" for p in kept):
        raise DataError(f"Within {options.margin} pixels of val lies all the rest; give a smaller --margin or --size.")
    return kept, (
        f"val is {len(held)} of {len(drawn)} blocks of ground, {along} windows wide; {len(pieces) - len(kept)} windows "
        f"within {options.margin} pixels of them are in neither."
    )


def _block(piece: Piece, edge: float) -> tuple[str, int, int]:
    x, y = (piece.ground[0] + piece.ground[2]) / 2, (piece.ground[1] + piece.ground[3]) / 2
    return piece.island, math.floor(y / edge), math.floor(x / edge)


def _near(val: Sequence[Piece], margin: int, pixel: float) -> Callable[[Piece], bool]:
    """Whether a piece touches the margin round one of `val`, on the map."""
    by_island: dict[str, NDArray[np.float64]] = {}
    for island in {p.island for p in val}:
        grown = margin * (pixel if not island else 1.0)
        boxes = np.array([p.ground for p in val if p.island == island])
        by_island[island] = boxes + np.array([-grown, -grown, grown, grown])

    def near(piece: Piece) -> bool:
        if piece.island not in by_island:
            return False
        left, bottom, right, top = piece.ground
        boxes, rounding = by_island[piece.island], 1e-6 * (right - left)  # that neighbours share an edge is no overlap
        return bool(
            ((boxes[:, 0] < right - rounding) & (boxes[:, 2] > left + rounding)
             & (boxes[:, 1] < top - rounding) & (boxes[:, 3] > bottom + rounding)).any()
        )  # fmt: skip

    return near


def pixel_metres(profile: RasterProfile, window: Window) -> tuple[float, float] | None:
    """(height, width) of a pixel on the ground; on a map of degrees, at the window's own latitude; None off a map."""
    if profile.transform is None or not profile.crs:
        return None
    from rasterio.crs import CRS

    crs = CRS.from_user_input(profile.crs)
    a, b, _, d, e, f = profile.transform
    width, height = math.hypot(a, d), math.hypot(b, e)
    if crs.is_projected:
        metres = float(crs.linear_units_factor[1])
        return height * metres, width * metres
    if not crs.is_geographic:
        return None
    latitude = d * (window.left + window.right) / 2 + e * (window.top + window.bottom) / 2 + f
    degree = 111_320.0  # metres of a degree along a meridian, and along the equator
    return height * degree, width * degree * math.cos(math.radians(latitude))
