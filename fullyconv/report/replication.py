"""The paper's comparisons repeated on other data: what was measured, what is published, whether the order is the same.

Where the paper's own images are not at hand, its claims can still be tried: skips (32s, 16s, 8s; in stages or at once;
trunk learned or fixed), inputs (colour, depth, HHA; fused early or late) and a second head. Figures of other images are
not comparable with the printed ones; the order within one set of images is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

import numpy as np

from fullyconv.evaluation.statistics import Interval, counts, interval, resample
from fullyconv.report.published import CONVERTED, CVPR, FOUR, Table

if TYPE_CHECKING:
    from fullyconv.report.paper import Measured

__all__ = ["GEOMETRIC", "IDEAS", "Claim", "Idea", "StandIn", "stand_ins", "verdict"]

GEOMETRIC = "geometric accuracy"


@final
@dataclass(frozen=True)
class Claim:
    """The paper has `better` above `worse` in mean IU, as two `rows` of its table say; without rows: both are equal."""

    worse: str
    better: str
    rows: tuple[str, str] = ("", "")
    source: str = ""


@final
@dataclass(frozen=True)
class Idea:
    """A comparison of the paper's. `key` says what a measured result stands for ("" for nothing); `names` are these
    keys in order, with how they are called. Only results with one value of `alike` are set side by side."""

    table: str
    key: Callable[[Measured], str]
    names: Mapping[str, str]
    claims: tuple[Claim, ...]
    columns: tuple[str, ...] = FOUR
    rows: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # key -> published row that no claim names
    alike: Callable[[Measured], str] = lambda _m: ""


@final
@dataclass(frozen=True)
class StandIn:
    """An idea measured on one set of other images: rows (name, values, published mean IU, how), and what they say."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], str], ...]
    verdicts: tuple[str, ...]


def _skip(m: Measured) -> str:
    return m.role if m.training and m.inputs == ("rgb",) and len(m.result.tables) == 1 else ""


def _inputs(m: Measured) -> str:
    return "-".join(m.inputs) if m.training and len(m.result.tables) == 1 else ""


def _heads(m: Measured) -> str:
    if not m.training or m.started:
        return ""
    return {("geometric", "semantic"): "two", ("semantic",): "one"}.get(tuple(sorted(m.result.tables)), "")


IDEAS = (
    Idea(
        "Skips on PASCAL VOC 2011 (seg11valid)",
        _skip,
        {
            "32s fixed": "FCN-32s, trunk fixed",
            "32s": "FCN-32s",
            "16s": "FCN-16s, from 32s",
            "8s": "FCN-8s, from 16s",
            "8s atonce": "FCN-8s, at once",
        },
        (
            Claim("32s fixed", "32s", ("FCN-32s-fixed", "FCN-32s"), CVPR),
            Claim("32s", "16s", ("FCN-32s", "FCN-16s"), CVPR),
            Claim("16s", "8s", ("FCN-16s", "FCN-8s"), CVPR),
            Claim("8s atonce", "8s", ("FCN-8s at-once", "FCN-8s staged"), CONVERTED),
        ),
    ),
    Idea(
        "Inputs on NYUDv2 (40 classes)",
        _inputs,
        {
            "rgb": "colour",
            "depth": "depth",
            "hha": "HHA",
            "rgb-depth": "colour and depth (early)",
            "rgb-hha": "colour and HHA (late)",
        },
        (
            Claim("hha", "rgb", ("FCN-32s HHA", "FCN-32s RGB"), CVPR),
            Claim("rgb", "rgb-depth", ("FCN-32s RGB", "FCN-32s RGBD (early)"), CVPR),
            Claim("rgb-depth", "rgb-hha", ("FCN-32s RGBD (early)", "FCN-32s RGB-HHA (late)"), CVPR),
        ),
    ),
    Idea(
        "SIFT Flow, semantic and geometric",
        _heads,
        {"one": "semantic head alone", "two": "semantic and geometric heads"},
        (Claim("one", "two"),),
        (*FOUR, GEOMETRIC),
        {"two": ("FCN-16s", CVPR)},
        lambda m: f"{m.network} {m.training.length if m.training else None}",
    ),
)


def stand_ins(table: Table, measured: Sequence[Measured]) -> list[StandIn]:
    """The idea of `table` measured on other data: one a data set on which at least two of its sides were measured."""
    idea = next((i for i in IDEAS if i.table == table.title), None)
    if idea is None:
        return []
    groups: dict[tuple[str, ...], dict[str, Measured]] = {}
    for m in measured:
        data, key = m.data, idea.key(m)
        if key in idea.names and data.kind != table.kind:
            place = (data.kind, data.name, data.split, str(m.result.images), idea.alike(m))
            groups.setdefault(place, {}).setdefault(key, m)
    return [_stand_in(idea, table, found) for found in groups.values() if len(found) > 1]


def _stand_in(idea: Idea, table: Table, found: Mapping[str, Measured]) -> StandIn:
    printed = {key: _printed(table, *row) for key, row in idea.rows.items()}
    for claim in idea.claims:
        for key, row in zip((claim.worse, claim.better), claim.rows, strict=True):  # the first claim about each
            printed.setdefault(key, _printed(table, row, claim.source))
    rows = []
    for key, name in idea.names.items():
        if key in found:
            m = found[key]
            values = tuple("–" if (v := m.column(c)) is None else f"{v:.1f}" for c in idea.columns)
            known = printed.get(key)
            rows.append((name, (*values, "–" if known is None else f"{known:.1f}"), m.label))
    first = next(iter(found.values()))
    title = f"Tried on {first.data.name} {first.data.split}, {first.result.images} images: not the paper's data"
    verdicts = [
        verdict(claim, idea, table, found[claim.worse], found[claim.better])
        for claim in idea.claims
        if claim.worse in found and claim.better in found
    ]
    return StandIn(title, (*idea.columns, "published mean IU"), tuple(rows), tuple(verdicts))


def verdict(claim: Claim, idea: Idea, table: Table, worse: Measured, better: Measured) -> str:
    """One sentence: whether these images bear the claim out, with the figures of both sides."""
    low, high = _interval(worse, better)
    a, b = (100 * m.result.mean_iu for m in (worse, better))
    first, second = idea.names[claim.better], idea.names[claim.worse]
    figures = f"{b:.1f} against {a:.1f} ({b - a:+.1f}, 95 % interval {low:+.1f} to {high:+.1f})"
    if not claim.source:
        if high < 0:
            return f"Not as published: {first} below {second}, mean IU {figures}; published as good."
        order = "above" if low > 0 else "as good as, for all that these images can tell,"
        return f"As published, or better: {first} {order} {second}, mean IU {figures}; published as good."
    p, q = (_printed(table, row, claim.source) for row in claim.rows)
    known = f"published {q:.1f} against {p:.1f}"
    if low <= 0 <= high:
        return f"Undecided: {first} and {second} cannot be told apart by these images, mean IU {figures}; {known}."
    agrees, order = ("As published", "above") if b > a else ("Not as published", "below")
    return f"{agrees}: {first} {order} {second}, mean IU {figures}; {known}."


def _interval(worse: Measured, better: Measured) -> tuple[float, float]:
    """The 95 % interval of the difference in mean IU, in points, over resamplings of the images both measured."""
    pair = (worse.result, better.result)
    same = [i.name for i in pair[0].per_image] == [i.name for i in pair[1].per_image]
    if not same or not np.array_equal(*(r.confusion.sum(1) for r in pair)):
        return float("-inf"), float("inf")
    one, two = resample([counts(r) for r in pair], pair[0].average)
    found: Interval = interval(two.mean_iu - one.mean_iu)
    return 100 * (found.low if found.low is not None else -np.inf), 100 * (
        found.high if found.high is not None else np.inf
    )


def _printed(table: Table, system: str, source: str) -> float | None:
    """The printed mean IU of a system in a source; None where the table has none."""
    for row in table.rows:
        if row.system == system and row.source == source:
            value = row.values[table.columns.index("mean IU")]
            return float(value) if isinstance(value, float) else None
    return None
