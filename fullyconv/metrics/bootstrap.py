"""How far a figure would move on other images of the same kind: bootstrap over images (Efron 1979, percentile
intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fullyconv.errors import UsageError

__all__ = ["Interval", "bootstrap", "paired_bootstrap"]

Figure = Callable[[npt.NDArray[np.int64]], float]
Tables = npt.NDArray[np.int64]


@final
@dataclass(frozen=True)
class Interval:
    """A figure on all images, the interval that holds `level` of its resamples, and the share of them above 0."""

    value: float
    low: float
    high: float
    level: float
    above_zero: float


def bootstrap(tables: Any, figure: Figure, samples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of figure(sum of tables) over resampled images. tables: M x K x K int64, one an image; figure: table
    -> float.
    """
    stack = _stack(tables)
    drawn = [figure(table) for table in _resampled(stack, samples, seed)]
    return _interval(figure(stack.sum(0)), drawn, level)


def paired_bootstrap(
    first: Any, second: Any, figure: Figure, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of figure(second) - figure(first), both resampled with the same images: M x K x K tables each, in one
    order.

    `second` is better at this level when `low` > 0, worse when `high` < 0, else the images do not tell.
    """
    one, two = _stack(first), _stack(second)
    if len(one) != len(two):
        raise UsageError(f"{len(one)} and {len(two)} tables cannot be paired; give one a piece for the same images.")
    pairs = zip(_resampled(one, samples, seed), _resampled(two, samples, seed), strict=True)
    drawn = [figure(b) - figure(a) for a, b in pairs]
    return _interval(figure(two.sum(0)) - figure(one.sum(0)), drawn, level)


def _stack(tables: Any) -> Tables:
    stack = np.asarray(tables, np.int64)
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or not len(stack):
        raise UsageError(f"Tables of shape {stack.shape} cannot be resampled; give M x K x K, one table an image.")
    return stack


def _resampled(stack: Tables, samples: int, seed: int) -> Iterator[Tables]:
    """Tables of `samples` sets of M images drawn with replacement; the same draws for the same seed and M."""
    random = np.random.default_rng(seed)
    count = len(stack)
    for _ in range(samples):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        yield np.tensordot(times, stack, 1)


def _interval(value: float, drawn: list[float], level: float) -> Interval:
    seen = np.asarray(drawn)[~np.isnan(drawn)]
    if not seen.size:
        return Interval(value, float("nan"), float("nan"), level, float("nan"))
    low, high = np.quantile(seen, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, float((seen > 0).mean()))
