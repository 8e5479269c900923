"""What may be labelled: files, arrays, PIL images and modalities by name, as one H W C array in its stored range."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.validity import read_valid
from fullyconv.errors import DataError
from fullyconv.images import read_image
from fullyconv.preprocessing import Preprocessing

__all__ = ["Image", "as_array", "fitted", "refuse_scaled", "refuse_unlike", "resize_image"]

Image = Any  # path, H W C or H W array, PIL image, or {modality: one of these}


def as_array(image: Image, inputs: Sequence[str] | None = None) -> NDArray[Any]:
    """Any accepted image -> H W C array in its stored range; `DataError` when it cannot be one.

    inputs: the order of modalities for a mapping (its own order when None).
    """
    if isinstance(image, Mapping):
        return _concatenated(image, tuple(inputs or image))
    if isinstance(image, str | os.PathLike):
        file = Path(image)
        mode: Literal["rgb", "bands"] = "rgb" if tuple(inputs or ("rgb",)) == ("rgb",) else "bands"
        return read_valid(read_image(file, mode=mode), file)[0]
    if image is None or isinstance(image, bytes | bytearray | memoryview):
        raise _strange(image)
    if hasattr(image, "detach"):  # a tensor, H W C like an array
        image = image.detach().cpu().numpy()
    if hasattr(image, "getbands"):  # PIL: alpha and palettes are not measurements
        image = np.asarray(image if image.mode in ("RGB", "F", "I", "I;16") else image.convert("RGB"))
    try:
        array = np.asarray(image)
    except (TypeError, ValueError) as error:
        raise _strange(image) from error
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
        raise DataError(
            f"An image of shape {array.shape} and type {array.dtype} cannot be labelled; "
            "give H x W x C numbers, H and W at least 1."
        )
    return read_valid(array)[0]  # NaN and infinity become the mean of the others: neighbours are not spoiled


def _strange(image: object) -> DataError:
    return DataError(
        f"An image of type {type(image).__name__} cannot be labelled; give a path, an H x W x C array or a PIL image."
    )


def fitted(array: NDArray[np.number], channels: int, colour: bool) -> NDArray[Any]:
    """An H W C array with the channels that the network takes; `DataError` naming both shapes when it has others.

    colour: whether they are red, green and blue. Grey is then repeated, and alpha left out with a warning.
    """
    have = array.shape[2]
    if have == channels:
        return array
    if colour and have == 1:
        return np.repeat(array, 3, axis=2)
    if colour and have == 4 and array.shape[0] != 3:
        warnings.warn("The image's fourth channel is taken for transparency and left out.", stacklevel=4)
        return array[..., :3]
    first = array.shape[0] == channels
    remedy = "its channels come first: give image.transpose(1, 2, 0)" if first else "give those it was trained with"
    raise DataError(
        f"The image has the shape {array.shape} and so {have} channels, the network takes H x W x {channels}; {remedy}."
    )


def refuse_scaled(array: NDArray[np.number], mean: float, top: float = 0) -> None:
    """`DataError` for an image whose range is not the network's: one within -1..1 where the network's mean pixel shows
    that it was trained on 0..255, or one outside 0..`top` where that is known (0: it is not). It would be taken for an
    almost black or glaring image, silently."""
    low, high = float(array.min()), float(array.max())
    small = array.dtype.kind == "f" and mean > 2 and low >= -1 and 0 < high <= 1
    if small and (low >= 0 or not top):
        raise DataError(
            f"The image lies within {low:.6g}..{high:.6g} but this network takes 0..{top or 255:g}; multiply it by 255."
        )
    if top and (low < 0 or high > top):
        raise DataError(
            f"The image holds {low:.6g}..{high:.6g} but this network takes 0..{top:g}, pixels as they are stored; give "
            "it the image without normalising it, 16-bit images divided by 257."
        )


FAR = 50  # spreads from the mean at which no band of an image is any more what the network was trained on


def refuse_unlike(array: NDArray[np.number], preprocessing: Preprocessing) -> None:
    """`DataError` for an image H W C whose bands are in other units than those that the network's mean and spread were
    measured in: every band's median `FAR` spreads away, or numbers round 0 of next to no spread (normalised ones)."""
    mean = preprocessing.mean_pixel().astype(np.float64)
    spread = np.empty_like(mean)
    spread[list(preprocessing.order)] = np.abs(np.array(preprocessing.std) / preprocessing.scale)
    few = array[:: max(1, array.shape[0] // 64), :: max(1, array.shape[1] // 64)].reshape(-1, array.shape[2])
    middle, reach = np.median(few, axis=0).astype(np.float64), float(np.ptp(few))
    off = np.abs(middle - mean) / spread
    small = array.dtype.kind == "f" and 0 < reach < 0.05 * spread.min() and np.abs(middle).max() <= reach
    if off.min() > FAR or (small and off.min() > 1):
        found = ", ".join(f"{v:.4g}" for v in middle[:4])
        learned = ", ".join(f"{m:.4g} +- {s:.2g}" for m, s in zip(mean[:4], spread[:4], strict=True))
        raise DataError(
            f"The image holds values about {found} (medians by band) where this network was trained on {learned}; give "
            "it the image in the units of the training images, as they are stored."
        )


def resize_image(image: NDArray[np.number], size: tuple[int, int]) -> NDArray[Any]:
    """image H W C -> `size` (H, W), bilinear and antialiased, in its own dtype (integers rounded)."""
    from PIL import Image as Pillow

    planes = [
        np.asarray(Pillow.fromarray(image[..., c].astype(np.float32)).resize(size[::-1], Pillow.Resampling.BILINEAR))
        for c in range(image.shape[2])
    ]
    out = np.stack(planes, axis=-1)
    return np.rint(out).astype(image.dtype) if image.dtype.kind in "ui" else out


def _concatenated(image: Mapping[str, object], inputs: tuple[str, ...]) -> NDArray[Any]:
    if set(inputs) != set(image):
        raise DataError(f"The network takes {', '.join(inputs)}; the image has {', '.join(image)}; give exactly those.")
    planes = [as_array(image[m]) for m in inputs]
    if len({p.shape[:2] for p in planes}) > 1:
        sizes = ", ".join(f"{m} {p.shape[0]}x{p.shape[1]}" for m, p in zip(inputs, planes, strict=True))
        raise DataError(f"The inputs of one image differ in size ({sizes}); align them.")
    return planes[0] if len(planes) == 1 else np.concatenate([p.astype(np.float32) for p in planes], axis=-1)
