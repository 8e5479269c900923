"""How far a figure would move on other images of the same kind: bootstrap over images, percentile intervals (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

`draws` and `interval` are the two steps between which any figures may be computed; `bootstrap` and `paired_bootstrap`
do it for one figure of a table, table by table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from fullyconv.errors import UsageError

__all__ = ["RESAMPLES", "Interval", "bootstrap", "draws", "interval", "paired_bootstrap"]

Figure = Callable[[npt.NDArray[np.int64]], float]
Tables = npt.NDArray[np.int64]
RESAMPLES = 1000  # the usual number for 95 % intervals: 25 resamples lie beyond each end


@final
@dataclass(frozen=True)
class Interval:
    """The middle 95 % (or another level) of a bootstrap distribution; None where nothing could be measured."""

    low: float | None
    high: float | None


def draws(count: int, samples: int = RESAMPLES, seed: int = 0) -> npt.NDArray[np.int64]:
    """samples x count: how often each of `count` images is in a draw of `count` images with replacement.

    The same for the same arguments: two models measured on the same images are resampled alike.
    """
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples)


def interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """What holds the middle `level` of the values that are numbers: floats of any shape."""
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)]
    if not numbers.size:
        return Interval(None, None)
    low, high = np.percentile(numbers, (50 * (1 - level), 50 * (1 + level)))
    return Interval(float(low), float(high))


def bootstrap(
    tables: npt.ArrayLike, figure: Figure, samples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of figure(sum of tables) over resampled images. tables: M x K x K int64, one an image; figure: table
    -> float.
    """
    return interval([figure(table) for table in _resampled(_stack(tables), samples, seed)], level)


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    figure: Figure,
    samples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of figure(second) - figure(first), both resampled with the same images: M x K x K tables each, in one
    order.

    `second` is better at this level when `low` > 0, worse when `high` < 0, else the images do not tell.
    """
    one, two = _stack(first), _stack(second)
    if len(one) != len(two):
        raise UsageError(f"{len(one)} and {len(two)} tables cannot be paired; give one a piece for the same images.")
    pairs = zip(_resampled(one, samples, seed), _resampled(two, samples, seed), strict=True)
    return interval([figure(b) - figure(a) for a, b in pairs], level)


def _stack(tables: npt.ArrayLike) -> Tables:
    stack = np.asarray(tables, np.int64)
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or not len(stack):
        raise UsageError(f"Tables of shape {stack.shape} cannot be resampled; give M x K x K, one table an image.")
    return stack


def _resampled(stack: Tables, samples: int, seed: int) -> Iterator[Tables]:
    for times in draws(len(stack), samples, seed):
        yield np.tensordot(times, stack, 1)
