"""How pixels become network input: a property of the weights, saved with them, applied by `Predictor` and training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.arguments import NUMBER, WHOLE, Kind, require
from fullyconv.errors import DataError, printable

__all__ = ["HHA_MEAN", "IMAGENET", "LOG_DEPTH_MEAN", "Preprocessing"]

# The authors' means (their data layers). HHA in the file's channel order: these images are not swapped to BGR.
HHA_MEAN = (132.431, 94.076, 118.477)
LOG_DEPTH_MEAN = 7.844  # of the natural logarithm of millimetres

TINY = float(np.finfo(np.float32).tiny)  # what a smaller number divides is infinite in float32
_NUMBERS = Kind("a list of numbers", lambda v: isinstance(v, tuple | list) and all(map(NUMBER.fits, v)))


@final
@dataclass(frozen=True)
class Preprocessing:
    """x[c] = (image[..., order[c]] * scale - mean[c]) / std[c], image in its stored range (uint8: 0..255).

    `order` gives, for each network channel, the image channel it takes (BGR networks: (2, 1, 0)); images come as
    H W C with the modalities concatenated along C in the order of the network's name. `log` names network channels
    whose value is log(image) first (the paper's depth: log of millimetres, missing depth 0 -> mean).

    >>> caffe = fc.Preprocessing(order=(2, 1, 0), scale=1.0, mean=(104.0, 116.7, 122.7), std=(1.0, 1.0, 1.0))
    >>> caffe.channels
    3
    """

    order: tuple[int, ...] = (0, 1, 2)
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    log: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("order", "mean", "std", "log"):
            require(getattr(self, name), _NUMBERS, "Preprocessing", name)
        require(self.scale, NUMBER, "Preprocessing", "scale")
        c = len(self.order)
        if not (len(self.mean) == len(self.std) == c):
            raise DataError(
                f"Preprocessing has {c} channels in order, {len(self.mean)} means and {len(self.std)} stds; "
                "give one of each a channel."
            )
        if not all(WHOLE.fits(o) and 0 <= o < c for o in (*self.order, *self.log)):
            raise DataError(f"Preprocessing names a channel that is none of 0..{c - 1} in order or log; correct it.")
        if not all(math.isfinite(v) for v in (self.scale, *self.mean, *self.std)):
            raise DataError("Preprocessing holds a scale, mean or std that is not finite; give finite numbers.")
        if any(abs(s) < TINY for s in (self.scale, *self.std)):
            raise DataError("Preprocessing has a scale or std of 0; give the spread of each channel, or 1.")

    @property
    def channels(self) -> int:
        return len(self.order)

    def mean_pixel(self) -> NDArray[np.float32]:
        """The image value (C, stored range, image channel order) that becomes 0: what padding is filled with."""
        pixel = np.zeros(self.channels, np.float32)
        for c, source in enumerate(self.order):
            pixel[source] = np.exp(self.mean[c]) if c in self.log else self.mean[c] / self.scale
        return pixel

    def __call__(self, image: NDArray[np.number]) -> NDArray[np.float32]:
        """image H W C (or ... H W C), any real dtype -> float32 ... C H W."""
        if image.shape[-1] != self.channels:
            raise DataError(
                f"The network takes {self.channels} channels, the image has {image.shape[-1]}; "
                "give the modalities it was trained with."
            )
        x = np.moveaxis(image[..., list(self.order)].astype(np.float32), -1, -3)
        for c in range(self.channels):
            plane = x[..., c, :, :]
            if c in self.log:
                with np.errstate(divide="ignore"):
                    plane[...] = np.where(plane > 0, np.log(plane), self.mean[c])
            else:
                plane *= np.float32(self.scale)
            plane -= np.float32(self.mean[c])
            plane /= np.float32(self.std[c])
        return np.ascontiguousarray(x)

    def to_json(self) -> dict[str, Any]:
        return {
            "order": list(self.order),
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "log": list(self.log),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preprocessing:
        """From our own keys, or a weights sidecar's: {"channels": "RGB"|"BGR", "range": [0, 255|1], "mean", "std"}."""
        try:
            mean = tuple(float(m) for m in value["mean"])
            order = value.get("order", value.get("channels", tuple(range(len(mean)))))
            if isinstance(order, str):
                order = tuple("RGB".index(c) for c in order.upper())
            top = float(value.get("range", (0, 255))[1])
            return cls(
                tuple(int(o) for o in order),
                float(value.get("scale", top / 255)),
                mean,
                tuple(float(s) for s in value.get("std") or [1.0] * len(mean)),
                tuple(int(c) for c in value.get("log", ())),
            )
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise DataError(
                f"This preprocessing cannot be read ({printable(error)[:200]}); it needs channels, range, mean and std."
            ) from error


IMAGENET = Preprocessing()
