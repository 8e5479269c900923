"""Further changes to a sample: quarter turns before it is scaled and cut; elastic, blur, noise and JPEG after.

Drawn from random numbers of their own (`effects_generator`), so that switching one on leaves everything else of a run
as it was. Labels are only ever taken from the nearest pixel. `bent_plainly` is the twin of `bent`, pixel by pixel.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fullyconv.data.base import Sample
from fullyconv.data.pipeline.scaling import as_values
from fullyconv.data.pipeline.transforms import from_plane
from fullyconv.errors import UsageError

__all__ = ["Effects", "after_crop", "before_crop", "bent", "bent_plainly", "blurred", "effects_generator", "shifts"]

CELL = 64  # pixels between the points that elastic moves
QUALITIES = (30, 95)  # of JPEG, both ends included
_Fill = Sequence[float] | NDArray[Any]


@final
@dataclass(frozen=True)
class Effects:
    """What may happen to a sample besides `Augmentation`; the default is nothing.

    turns     share of samples turned by 90, 180 or 270 degrees, before they are scaled and cut
    elastic   largest shift in pixels of points 64 pixels apart, what lies between follows; at most 16
    blur      largest standard deviation of a Gaussian, in pixels; half the samples stay sharp
    noise     largest standard deviation of Gaussian noise, by the image's own; half the samples stay clean
    jpeg      share of samples stored as JPEG of quality 30 to 95 and read again
    colour    how many leading channels are RGB (3 or none); `nearest`: channels of depth, neither blurred nor noisy
    """

    turns: float = 0.0
    elastic: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: float = 0.0
    colour: int = 3
    nearest: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, most in (("turns", 1), ("jpeg", 1), ("elastic", CELL / 4), ("blur", 20), ("noise", 10)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number from 0 to {most:g}.")

    def refuse(self, image: NDArray[np.number]) -> None:
        """UsageError where images like this one cannot be JPEG."""
        if self.jpeg and (image.dtype != np.uint8 or (self.colour != 3 and image.shape[2] != 1)):
            raise UsageError(
                f"jpeg = {self.jpeg:g} cannot be done to {image.shape[2]} bands of {image.dtype}: JPEG holds 8-bit "
                "colour or grey; set it to 0."
            )


def effects_generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample's effects in one epoch; others than `transforms.generator`'s."""
    return np.random.default_rng((seed, epoch, sample, 1))


def before_crop(sample: Sample, effects: Effects, rng: np.random.Generator) -> Sample:
    """The sample turned by whole quarters, or as it is. Takes two numbers."""
    chance, quarters = rng.random(), int(rng.integers(1, 4))
    if chance >= effects.turns:
        return sample
    labels = {head: np.ascontiguousarray(np.rot90(label, quarters)) for head, label in sample.labels.items()}
    return Sample(sample.name, np.ascontiguousarray(np.rot90(sample.image, quarters)), labels)


def after_crop(
    sample: Sample, effects: Effects, rng: np.random.Generator, *, fill: _Fill, ignore: Mapping[str, int]
) -> Sample:
    """The sample bent, blurred, made noisy and compressed, in this order, each as drawn."""
    u = rng.random(5)  # always, so that switching one off leaves the others as they were
    quality = QUALITIES[0] + int(u[0] * (QUALITIES[1] - QUALITIES[0] + 1))
    seeds = rng.integers(0, 1 << 62, 2)
    image, labels = sample.image, sample.labels
    if effects.elastic:
        moved = shifts(image.shape[:2], effects.elastic, np.random.default_rng(seeds[0]))
        labels = {head: bent(label[..., None], moved, [ignore[head]], (0,))[..., 0] for head, label in labels.items()}
        image = bent(image, moved, fill, effects.nearest)
    if effects.blur and u[1] < 0.5:
        image = _but(effects.nearest, image, blurred(image, effects.blur * float(u[2])))
    if effects.noise and u[3] < 0.5:
        spread = effects.noise * 2 * float(u[3])
        image = _but(effects.nearest, image, _noisy(image, spread, np.random.default_rng(seeds[1])))
    if u[4] < effects.jpeg:
        image = _compressed(image, quality)
    return Sample(sample.name, image, labels)


def _but(kept: Sequence[int], before: NDArray[np.number], after: NDArray[np.number]) -> NDArray[Any]:
    """`after`, with the channels `kept` of `before`."""
    after[..., list(kept)] = before[..., list(kept)]
    return after


# ---- elastic ---------------------------------------------------------------------------------------------------


def shifts(size: Sequence[int], most: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """By how much each point of a grid over H W, 64 pixels apart, is moved: rows x columns x (y, x)."""
    points = [math.ceil(side / CELL) + 1 for side in size]
    return rng.uniform(-most, most, (*points, 2))


def bent(values: NDArray[np.number], moved: NDArray[np.float64], fill: _Fill, nearest: Sequence[int]) -> NDArray[Any]:
    """H W C with the pixel at each point of the grid taken from where `shifts` says, and bilinear between the points;
    `fill` (by channel) outside, the channels `nearest` without interpolation."""
    from PIL import Image

    rows, columns = (n - 1 for n in moved.shape[:2])
    points = moved + CELL * np.stack(np.meshgrid(*(np.arange(n) for n in moved.shape[:2]), indexing="ij"), -1)
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # as Pillow counts a quadrilateral's: down first
    mesh = [
        (
            (CELL * c, CELL * r, CELL * (c + 1), CELL * (r + 1)),
            tuple(float(v) for y, x in corners for v in points[r + y, c + x, ::-1]),
        )
        for r in range(rows)
        for c in range(columns)
    ]
    out = np.empty_like(values)
    for k in range(values.shape[2]):
        how = Image.Resampling.NEAREST if k in nearest else Image.Resampling.BILINEAR
        value = float(as_values(fill[k], values.dtype))
        exact = values[..., k].astype(np.float32)  # Pillow cuts bytes off where they are to be rounded
        turned = Image.fromarray(exact).transform(exact.shape[::-1], Image.Transform.MESH, mesh, how, fillcolor=value)
        out[..., k] = from_plane(turned, values.dtype)
    return out


def bent_plainly(
    values: NDArray[np.number], moved: NDArray[np.float64], fill: _Fill, nearest: Sequence[int]
) -> NDArray[Any]:
    """`bent`, a pixel at a time."""
    height, width = values.shape[:2]
    out = np.empty_like(values)
    for y, x in np.ndindex(height, width):
        (r, c), (t, s) = (y // CELL, x // CELL), ((y % CELL + 0.5) / CELL, (x % CELL + 0.5) / CELL)
        shift = (
            (1 - t) * ((1 - s) * moved[r, c] + s * moved[r, c + 1])
            + t * ((1 - s) * moved[r + 1, c] + s * moved[r + 1, c + 1])
        )  # fmt: skip
        at_y, at_x = y + 0.5 + shift[0], x + 0.5 + shift[1]
        if not (0 <= at_y < height and 0 <= at_x < width):
            out[y, x] = [as_values(f, values.dtype) for f in fill]
            continue
        (top, v), (left, u) = ((math.floor(a - 0.5), (a - 0.5) % 1) for a in (at_y, at_x))
        ys, xs = (np.clip([a, a + 1], 0, side - 1) for a, side in ((top, height), (left, width)))
        part = values[ys][:, xs].astype(np.float64)
        mixed = (1 - v) * ((1 - u) * part[0, 0] + u * part[0, 1]) + v * ((1 - u) * part[1, 0] + u * part[1, 1])
        mixed = np.round(mixed) if np.issubdtype(values.dtype, np.integer) else mixed
        one = values[int(at_y), int(at_x)]
        out[y, x] = [one[k] if k in nearest else mixed[k] for k in range(values.shape[2])]
    return out


# ---- blur, noise, JPEG -----------------------------------------------------------------------------------------


def blurred(image: NDArray[np.number], sigma: float) -> NDArray[Any]:
    """H W C smoothed by a Gaussian of `sigma` pixels, cut off at four of them; the edge goes on outside."""
    reach = int(4 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2).astype(np.float32)
    taps /= taps.sum()
    wide = image.astype(np.float32)
    for axis in (0, 1):
        padded = np.pad(wide, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge")
        wide = np.zeros_like(wide)
        for k, tap in enumerate(taps):
            wide += tap * np.take(padded, range(k, k + image.shape[axis]), axis)
    return _as(wide, image.dtype)


def _noisy(image: NDArray[np.number], share: float, rng: np.random.Generator) -> NDArray[Any]:
    spread = np.float32(share * float(np.nanstd(image)))
    return _as(image + spread * rng.standard_normal(image.shape, np.float32), image.dtype)


def _as(values: NDArray[np.number], dtype: DTypeLike) -> NDArray[Any]:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype, copy=False)
    return np.clip(np.round(values), 0, np.iinfo(dtype).max).astype(dtype)


def _compressed(image: NDArray[np.number], quality: int) -> NDArray[Any]:
    """The colours, or the one grey band, as JPEG gives them back."""
    from PIL import Image

    colours = image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    stored = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(stored, "JPEG", quality=quality)
    with Image.open(stored, formats=["JPEG"]) as opened:
        read = np.asarray(opened).reshape(colours.shape if colours.ndim == 3 else (*colours.shape, 1))
    return read.copy() if image.shape[2] in (1, 3) else np.concatenate([read, image[..., 3:]], axis=-1)
