"""Whether one result beats another, and where: a paired bootstrap over the images that both measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UsageError
from fullyconv.evaluation.result import ImageTables, Result, json_number
from fullyconv.evaluation.statistics import Interval, counts, interval, resample
from fullyconv.taxonomy import Taxonomy, match

__all__ = ["Change", "Comparison", "compare_results", "differences", "ways"]


@final
@dataclass(frozen=True)
class Change:
    """A figure (0..1) of A and of B, the 95 % interval of B - A, and whether 0 lies outside it."""

    name: str
    a: float | None
    b: float | None
    interval: Interval

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def certain(self) -> bool:
        low, high = self.interval.low, self.interval.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "interval": [self.interval.low, self.interval.high],
            "certain": self.certain,
        }


@final
@dataclass(frozen=True)
class Comparison:
    """B against A on the same images: the mean IU, pixel accuracy, every class, and the images that changed most.

    notes: how they were computed differently (tiles, augmentation, precision), which is part of what is compared.
    """

    mean_iu: Change
    pixel_accuracy: Change
    classes: tuple[Change, ...]
    images: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        change = self.mean_iu
        if not change.certain or change.difference is None:
            return "These images cannot tell A and B apart."
        return f"{'B beats A' if change.difference > 0 else 'A beats B'} by {abs(100 * change.difference):.2f} points."

    def to_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "mean_iu": self.mean_iu.to_json(),
            "pixel_accuracy": self.pixel_accuracy.to_json(),
            "classes": [c.to_json() for c in self.classes],
            "images": [c.to_json() for c in self.images],
            "notes": list(self.notes),
        }


def compare_results(a: Result, b: Result) -> Comparison:
    """B against A by a paired bootstrap over images (the same draws for both), class by class of the same name.

    Raises `UsageError` naming what differs when they are not results of the same data, classes and protocol.
    """
    if found := differences(a, b):
        raise UsageError(f"These results cannot be compared: {'; '.join(found)}. Measure both alike.")
    notes = ways(a, b)
    a, b = _in_common_classes(a, b)
    one, two = resample([counts(a), counts(b)], a.average)
    classes = [
        Change(x.name, x.iu, y.iu, interval(two.iu[:, k] - one.iu[:, k]))
        for k, (x, y) in enumerate(zip(a.classes, b.classes, strict=True))
        if x.pixels
    ]
    return Comparison(
        Change("mean IU", json_number(a.mean_iu), json_number(b.mean_iu), interval(two.mean_iu - one.mean_iu)),
        Change(
            "pixel accuracy",
            json_number(a.pixel_accuracy),
            json_number(b.pixel_accuracy),
            interval(two.pixel_accuracy - one.pixel_accuracy),
        ),
        tuple(classes),
        _images(a, b),
        tuple(notes),
    )


def differences(a: Result, b: Result) -> list[str]:
    """What keeps two results from being compared, in words; empty when nothing does."""
    found = []
    for key, words in {"kind": "kind of data", "split": "split", "fingerprint": "data (fingerprint)"}.items():
        one, two = a.about["data"].get(key), b.about["data"].get(key)
        if one != two:
            found.append(f"the {words} is {_short(one)} in A and {_short(two)} in B")
    for key in ("protocol", "average"):
        if a.about.get(key) != b.about.get(key):
            found.append(f"the {key} is {a.about.get(key)} in A and {b.about.get(key)} in B")
    classes, together = match(b.taxonomy, a.taxonomy), _in_common_classes(a, b)
    if [i.name for i in a.per_image] != [i.name for i in b.per_image]:
        found.append(f"A measured {a.images} images, B {b.images}, not the same ones in the same order")
    elif max(classes.ids) < 0 or (classes.unknown and _other_truth(*together)):
        found.append(f"A has the classes {_named(a)}, B {_named(b)}")
    elif truth := _other_truth(*together):
        found.append(truth)
    return found


def ways(a: Result, b: Result) -> list[str]:
    """How two results of the same data were computed differently, in words: allowed, but to be known."""
    found = []
    for key, words in {"tta": "augmentation", "tiling": "tile", "precision": "precision"}.items():
        one, two = (_way(r.about.get(key)) for r in (a, b))
        if one != two:
            found.append(f"The {words} was {one} for A and {two} for B.")
    classes = match(b.taxonomy, a.taxonomy)
    return found if classes.how == "same" else [*found, f"B's classes are A's: {classes}."]


def _in_common_classes(a: Result, b: Result) -> tuple[Result, Result]:
    """Both in A's ids; classes that B alone has come behind them."""
    found = match(b.taxonomy, a.taxonomy)
    if found.how == "same":
        return a, b
    behind = [k for k, to in enumerate(found.ids) if to < 0]
    places = {k: len(a.taxonomy) + i for i, k in enumerate(behind)}
    together = Taxonomy(
        (*a.taxonomy.names, *(b.taxonomy.names[k] for k in behind)),
        (*a.taxonomy.palette, *(b.taxonomy.palette[k] for k in behind)),
    )
    ids = [places.get(k, to) for k, to in enumerate(found.ids)]
    return _renumbered(a, together, range(len(a.taxonomy))), _renumbered(b, together, ids)


def _renumbered(result: Result, classes: Taxonomy, ids: Sequence[int]) -> Result:
    """`result` with class k of its main head as ids[k] of `classes`."""
    head, before, place = result.head, len(result.taxonomy), np.asarray(ids, np.int64)

    def moved(image: ImageTables) -> ImageTables:
        truth, predicted = np.divmod(image.cells[head], before)
        return replace(image, cells={**image.cells, head: place[truth] * len(classes) + place[predicted]})

    table = np.zeros((len(classes),) * 2, np.int64)
    table[np.ix_(place, place)] = result.confusion
    return replace(
        result,
        taxonomies={**result.taxonomies, head: classes},
        tables={**result.tables, head: table},
        per_image=[moved(image) for image in result.per_image],
    )


def _other_truth(a: Result, b: Result) -> str:
    """What differs when the same images were counted with other labels, or with classes left out; else nothing."""
    one, two = a.confusion.sum(1), b.confusion.sum(1)
    k = int((one != two).argmax())
    return f"A counts {one[k]:,} pixels of {a.taxonomy.names[k]}, B {two[k]:,}" if one[k] != two[k] else ""


def _way(value: object) -> str:
    if isinstance(value, dict):
        return "x".join(map(str, value.get("tile") or ["none"]))
    return " and ".join(value or ["none"]) if isinstance(value, list) else str(value)


def _images(a: Result, b: Result) -> tuple[Change, ...]:
    """The ten images whose own pixel accuracy changed most, the largest loss first."""

    def accuracy(result: Result) -> NDArray[np.float64]:
        tables = [i.table(result.head, len(result.taxonomy)) for i in result.per_image]
        return np.array([np.trace(t) / t.sum() if t.sum() else np.nan for t in tables])

    one, two = accuracy(a), accuracy(b)
    order = [i for i in np.argsort(two - one, kind="stable") if not np.isnan(two[i] - one[i])]
    chosen = order if len(order) <= 10 else [*order[:5], *order[-5:]]
    return tuple(Change(a.per_image[i].name, float(one[i]), float(two[i]), Interval(None, None)) for i in chosen)


def _short(value: object) -> str:
    return str(value)[:12]


def _named(result: Result) -> str:
    names = result.taxonomy.names
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"
