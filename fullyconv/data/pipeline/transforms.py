"""Paired, seeded changes to an image and its label maps: mirror, scale, rotate, crop, colour.

What happens to a sample is drawn from (seed, epoch, sample index) alone (`generator`), so the same bytes come out of
any number of workers. Labels are only ever taken from the nearest pixel, centre to centre, so no new value appears.
`augment` computes only the pixels that remain after the crop, bytes in compiled code (`scaling`); `augment_plainly` is
its twin that scales the whole image with Pillow, pads it and cuts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fullyconv.data.base import Sample
from fullyconv.data.pipeline.scaling import as_values, can_scale, nearest_index, scaled_axis, scaled_image, scaled_label
from fullyconv.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = [
    "Augmentation",
    "Draw",
    "augment",
    "augment_plainly",
    "draw_augmentation",
    "from_plane",
    "generator",
]


@final
@dataclass(frozen=True)
class Augmentation:
    """What may happen to a sample; the default is nothing.

    crop         (H, W) of the result, padded where the image is smaller; None keeps the scaled image whole
    scale        range of the factor on both sides, drawn uniformly
    flip         share of samples mirrored left to right; `flip_vertical` top to bottom
    rotation     largest turn in degrees either way (0..180), about the centre; uncovered corners are padding
    brightness, contrast, saturation   strength b: a factor from 1 - b to 1 + b on the colour channels (0..1)
    colour       how many leading channels are RGB; only they change colour, and only if there are three
    nearest      channels (depth) that, like labels, are taken from the nearest pixel
    """

    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.0
    flip_vertical: float = 0.0
    rotation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    colour: int = 3
    nearest: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise UsageError(f"The crop {self.crop} is no size; give (H, W), each at least 1.")
        low, high = self.scale
        if not (0 < low <= high < 100):
            raise UsageError(
                f"The scale {self.scale} is no range; give two factors, the smaller first, such as (0.5, 2)."
            )
        if not 0 <= self.rotation <= 180:
            raise UsageError(f"The rotation is {self.rotation}; give degrees from 0 to 180.")
        for name in ("flip", "flip_vertical", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")


@final
@dataclass(frozen=True)
class Draw:
    """What happens to one sample: factors, an angle in degrees, and the crop's place as shares 0..1 of its room."""

    scale: float
    angle: float
    flip: bool
    flip_vertical: bool
    top: float
    left: float
    brightness: float
    contrast: float
    saturation: float


def generator(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch, and of nothing else."""
    return np.random.default_rng((seed, epoch, sample))


def draw_augmentation(augmentation: Augmentation, rng: np.random.Generator) -> Draw:
    """Always takes nine numbers, so that switching one change off leaves the others as they were."""
    a, u = augmentation, rng.random(9)

    def factor(strength: float, v: float) -> float:
        return 1 + strength * (2 * v - 1)

    return Draw(
        scale=a.scale[0] + (a.scale[1] - a.scale[0]) * float(u[0]),
        angle=a.rotation * (2 * float(u[1]) - 1),
        flip=bool(u[2] < a.flip),
        flip_vertical=bool(u[3] < a.flip_vertical),
        top=float(u[4]),
        left=float(u[5]),
        brightness=factor(a.brightness, float(u[6])),
        contrast=factor(a.contrast, float(u[7])),
        saturation=factor(a.saturation, float(u[8])),
    )


def augment(
    sample: Sample,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    fill: Sequence[float] | NDArray[np.number],
    ignore: Mapping[str, int],
) -> Sample:
    """`sample` changed as drawn from `rng`; image H W C keeps its dtype, labels theirs.

    fill: the value of each channel where there is no image (`Preprocessing.mean_pixel()`); ignore: {head: value}.
    """
    drawn, nearest = draw_augmentation(augmentation, rng), augmentation.nearest
    window = _window(sample.image.shape[:2], augmentation.crop, drawn)
    if drawn.angle:
        image, labels = _mirrored(*_turned(sample, window, drawn, fill, ignore, nearest), drawn)
    elif window.scaled != sample.image.shape[:2] and sample.image.dtype == np.uint8 and not nearest and can_scale():
        image, labels = _in_one_step(sample, window, drawn, fill, ignore)
    else:
        image = _cut(sample.image, window, fill, nearest)
        labels = {head: _cut_label(label, window, ignore[head]) for head, label in sample.labels.items()}
        image, labels = _mirrored(image, labels, drawn)
    return Sample(sample.name, _coloured(image, drawn, augmentation.colour), labels)


def augment_plainly(
    sample: Sample,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    fill: Sequence[float] | NDArray[np.number],
    ignore: Mapping[str, int],
) -> Sample:
    """`augment` step by step, without rotation: scale all, pad all, cut, mirror, colour."""
    drawn = draw_augmentation(augmentation, rng)
    w = _window(sample.image.shape[:2], augmentation.crop, drawn)
    image = _resize(sample.image, (0, 0, *sample.image.shape[:2]), w.scaled, augmentation.nearest)
    rows = nearest_index(np.arange(w.scaled[0]), w.scaled[0], sample.image.shape[0])
    columns = nearest_index(np.arange(w.scaled[1]), w.scaled[1], sample.image.shape[1])
    labels = {head: label[rows][:, columns] for head, label in sample.labels.items()}
    image = _paste(image, w, fill)
    labels = {head: _paste(label, w, ignore[head]) for head, label in labels.items()}
    image, labels = _mirrored(image, labels, drawn)
    return Sample(sample.name, _coloured(image, drawn, augmentation.colour), labels)


# ---- where -----------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Window:
    """The crop in the scaled image: the image's size there, the crop's corner (negative: padding) and size."""

    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]


def _window(size: tuple[int, ...], crop: tuple[int, int] | None, drawn: Draw) -> _Window:
    scaled = (max(1, round(size[0] * drawn.scale)), max(1, round(size[1] * drawn.scale)))
    crop = crop or scaled
    return _Window(scaled, (_place(scaled[0], crop[0], drawn.top), _place(scaled[1], crop[1], drawn.left)), crop)


def _place(whole: int, part: int, share: float) -> int:
    """Where `part` starts in `whole`; negative when it is longer (the whole lies somewhere inside it)."""
    room = whole - part
    step = min(int(share * (abs(room) + 1)), abs(room))
    return step if room >= 0 else -step


def _paste(image: NDArray[np.number], w: _Window, fill: ArrayLike) -> NDArray[Any]:
    """The window of `image` (already scaled), padded with `fill`."""
    (t, left), (h, width) = w.corner, w.size
    part = image[max(t, 0) : t + h, max(left, 0) : left + width]
    if part.shape[:2] == w.size:
        return part
    out = np.empty((*w.size, *image.shape[2:]), image.dtype)
    out[...] = as_values(fill, image.dtype)
    out[max(-t, 0) : max(-t, 0) + part.shape[0], max(-left, 0) : max(-left, 0) + part.shape[1]] = part
    return out


# ---- scale and cut ---------------------------------------------------------------------------------------------


def _in_one_step(
    sample: Sample, w: _Window, drawn: Draw, fill: Sequence[float] | NDArray[np.number], ignore: Mapping[str, int]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Bytes scaled, cut, padded and mirrored by one compiled pass each for the image and its labels."""
    h, width = sample.image.shape[:2]
    rows = scaled_axis(h, w.scaled[0], w.corner[0], w.size[0], drawn.flip_vertical)
    columns = scaled_axis(width, w.scaled[1], w.corner[1], w.size[1], drawn.flip)
    labels = {head: scaled_label(label, rows, columns, ignore[head]) for head, label in sample.labels.items()}
    return scaled_image(sample.image, rows, columns, fill), labels


def _cut(
    image: NDArray[np.number], w: _Window, fill: Sequence[float] | NDArray[np.number], nearest: Sequence[int]
) -> NDArray[Any]:
    """The window of `image` scaled. Wide values compute no other pixels; bytes do, so that Pillow, whose windows have
    32-bit corners, gives the very bytes of the compiled way.
    """
    if w.scaled == image.shape[:2]:
        return _paste(image, w, fill)
    if image.dtype == np.uint8:
        return _paste(_resize(image, (0, 0, *image.shape[:2]), w.scaled, nearest), w, fill)
    (t, left), (h, width) = w.corner, w.size
    t0, t1 = max(t, 0), min(t + h, w.scaled[0])
    l0, l1 = max(left, 0), min(left + width, w.scaled[1])
    sy, sx = image.shape[0] / w.scaled[0], image.shape[1] / w.scaled[1]
    box = (t0 * sy, l0 * sx, min(t1 * sy, image.shape[0]), min(l1 * sx, image.shape[1]))
    part = _resize(image, box, (t1 - t0, l1 - l0), nearest)
    return _paste(part, _Window(part.shape[:2], (min(t, 0), min(left, 0)), w.size), fill)


def _cut_label(label: NDArray[np.integer], w: _Window, ignore: int) -> NDArray[Any]:
    if w.scaled == label.shape:
        return _paste(label, w, ignore)
    (t, left), (h, width) = w.corner, w.size
    rows = nearest_index(np.arange(max(t, 0), min(t + h, w.scaled[0])), w.scaled[0], label.shape[0])
    columns = nearest_index(np.arange(max(left, 0), min(left + width, w.scaled[1])), w.scaled[1], label.shape[1])
    part = label[rows].take(columns, axis=1)
    return _paste(part, _Window(part.shape, (min(t, 0), min(left, 0)), w.size), ignore)


def _resize(
    image: NDArray[np.number], box: tuple[float, float, float, float], size: tuple[int, int], nearest: Sequence[int]
) -> NDArray[Any]:
    """The part `box` (top, left, bottom, right) of `image` at `size`: bilinear with antialiasing, any channel count."""
    from PIL import Image

    channels, corners = image.shape[2], (box[1], box[0], box[3], box[2])
    if image.dtype == np.uint8 and channels == 3 and not nearest:
        resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR, corners)
        return np.asarray(resized)
    out = np.empty((*size, channels), image.dtype)
    for c in range(channels):
        how = Image.Resampling.NEAREST if c in nearest else Image.Resampling.BILINEAR
        plane = _plane(image[..., c]).resize((size[1], size[0]), how, corners)
        out[..., c] = from_plane(plane, image.dtype)
    return out


def _plane(values: NDArray[np.number]) -> PILImage.Image:
    """One channel as Pillow can interpolate it: bytes, or 32-bit floats (exact for 16-bit integers)."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(values if values.dtype == np.uint8 else values.astype(np.float32)))


def from_plane(plane: PILImage.Image, dtype: DTypeLike) -> NDArray[Any]:
    values = np.asarray(plane)
    return np.round(values) if np.issubdtype(dtype, np.integer) and values.dtype == np.float32 else values


# ---- rotate ----------------------------------------------------------------------------------------------------


def _turned(
    sample: Sample,
    w: _Window,
    drawn: Draw,
    fill: Sequence[float] | NDArray[np.number],
    ignore: Mapping[str, int],
    nearest: Sequence[int],
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Scale, turn about the image's centre and cut in one affine step, without antialiasing."""
    h, width = sample.image.shape[:2]
    sy, sx = h / w.scaled[0], width / w.scaled[1]
    cos, sin = math.cos(math.radians(drawn.angle)), math.sin(math.radians(drawn.angle))
    # Pixel centre (r, c) of the crop -> (y, x) from the scaled image's centre -> turned -> stored image.
    y0, x0 = w.corner[0] - w.scaled[0] / 2, w.corner[1] - w.scaled[1] / 2
    matrix = (
        (cos * sx, -sin * sx, (cos * x0 - sin * y0) * sx + width / 2),
        (sin * sy, cos * sy, (sin * x0 + cos * y0) * sy + h / 2),
    )
    channels = range(sample.image.shape[2])
    image = np.stack(
        [_affine(sample.image[..., c], matrix, w.size, float(fill[c]), c in nearest) for c in channels], axis=-1
    )
    labels = {head: _affine(label, matrix, w.size, ignore[head], True) for head, label in sample.labels.items()}
    return image, labels


_Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def _affine(
    values: NDArray[np.number], matrix: _Matrix, size: tuple[int, int], fill: float, nearest: bool
) -> NDArray[Any]:
    """One plane seen through `matrix` ((x of c, r, 1), (y of c, r, 1)); Pillow maps pixel centres to pixel centres."""
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    flat = (*matrix[0], *matrix[1])
    value = float(as_values(fill, values.dtype))
    colour = int(value) if values.dtype == np.uint8 else value
    plane = _plane(values).transform((size[1], size[0]), Image.Transform.AFFINE, flat, how, fillcolor=colour)
    return from_plane(plane, values.dtype).astype(values.dtype, copy=False)


# ---- mirror and colour -----------------------------------------------------------------------------------------


def _mirrored(
    image: NDArray[np.number], labels: Mapping[str, NDArray[np.integer]], drawn: Draw
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    return _mirror(image, drawn), {head: _mirror(label, drawn) for head, label in labels.items()}


def _mirror(values: NDArray[np.number], drawn: Draw) -> NDArray[Any]:
    values = np.ascontiguousarray(values[::-1] if drawn.flip_vertical else values)
    if not drawn.flip:
        return values
    # Whole pixels are copied as one item: five times as fast as a channel at a time.
    whole = values.view(f"V{values.itemsize * values.shape[2]}") if values.ndim == 3 else values
    return np.ascontiguousarray(whole[:, ::-1]).view(values.dtype).reshape(values.shape)


def _coloured(image: NDArray[np.number], drawn: Draw, colour: int) -> NDArray[Any]:
    if colour != 3 or image.shape[2] < 3 or (drawn.brightness, drawn.contrast, drawn.saturation) == (1, 1, 1):
        return image
    return _recolour(image, drawn)


_GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma


def colour_matrix(drawn: Draw, mean: float) -> NDArray[np.float64]:
    """3 x 4: (R, G, B, 1) -> saturation about grey, then contrast about `mean`, then brightness, in one step."""
    saturate = drawn.saturation * np.eye(3) + (1 - drawn.saturation) * _GREY[None, :]
    linear = drawn.brightness * drawn.contrast * saturate
    shift = np.full((3, 1), drawn.brightness * (1 - drawn.contrast) * mean)
    return np.concatenate([linear, shift], axis=1)


def _recolour(image: NDArray[np.number], drawn: Draw) -> NDArray[Any]:
    """The first three channels through the colour matrix, clipped to their range; the others untouched."""
    from PIL import Image

    colours = image[..., :3]
    mean = float(colours[::4, ::4].mean(axis=(0, 1)) @ _GREY)
    matrix = colour_matrix(drawn, mean)
    if image.dtype == np.uint8:
        recoloured = Image.fromarray(np.ascontiguousarray(colours)).convert("RGB", tuple(matrix.ravel().tolist()))
        changed: NDArray[Any] = np.asarray(recoloured)
    else:
        top = 65535 if image.dtype == np.uint16 else max(255.0, float(colours.max()))
        changed = np.clip(colours @ matrix[:, :3].T + matrix[:, 3], 0, top)
        changed = (np.round(changed) if image.dtype == np.uint16 else changed).astype(image.dtype)
    return changed if image.shape[2] == 3 else np.concatenate([changed, image[..., 3:]], axis=-1)
