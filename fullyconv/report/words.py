"""The report's first paragraph: what an evaluation says, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fullyconv.evaluate.result import Result
from fullyconv.evaluate.statistics import Interval, costly_pairs

__all__ = ["listed", "percent", "summary"]

SOLVED, WEAK = 0.8, 0.5


def summary(result: Result, interval: Interval) -> list[str]:
    """Sentences, the most important first: the score, what is solved, what is lost to what, where errors lie."""
    said = [_score(result, interval), *_classes(result), *_borders(result.analysis), *_sizes(result.analysis)]
    return [s for s in (*said, *_confidence(result.analysis), *_absent(result)) if s]


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}\u202f%"


def listed(names: Sequence[str], most: int = 6) -> str:
    """ "a, b and c"; beyond `most` the rest are counted."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _score(result: Result, interval: Interval) -> str:
    of = f"{result.images} image{'s' if result.images != 1 else ''}"
    if interval.low is None or interval.high is None or result.images < 2:
        return f"Mean IU {percent(result.mean_iu, 1)} on {of}."
    return (
        f"Mean IU {percent(result.mean_iu, 1)} on {of}; drawing other images like these would give "
        f"{percent(interval.low, 1)} to {percent(interval.high, 1)} (95\u202f%)."
    )


def _classes(result: Result) -> list[str]:
    present = [c for c in result.per_class if c["pixels"]]
    solved = [c["name"] for c in sorted(present, key=lambda c: -c["iu"]) if c["iu"] >= SOLVED]
    weak = sorted((c for c in present if c["iu"] < WEAK), key=lambda c: float(c["iu"]))
    out = []
    if solved:
        out.append(f"{_capital(listed(solved))} {_are(solved)} solved (IU of {percent(SOLVED)} or more).")
    elif present:
        best = max(present, key=lambda c: float(c["iu"]))
        out.append(f"No class reaches {percent(SOLVED)}; {best['name']} is best with {percent(best['iu'])}.")
    out += [_lost(result, c) for c in weak[:4]]
    if len(weak) > 4:
        out.append(f"{_capital(listed([c['name'] for c in weak[4:]]))} also stay below {percent(WEAK)}.")
    pairs = costly_pairs(result.confusion, result.average)
    if pairs:
        p, names = pairs[0], result.taxonomy.names
        out.append(
            f"The costliest mistake is to call {names[p.truth]} “{names[p.said]}”: without it the mean IU would be "
            f"{100 * p.cost:.1f} points higher."
        )
    return out


def _lost(result: Result, c: Mapping[str, Any]) -> str:
    """Where a weak class goes: what its pixels are called, or what is wrongly called it."""
    k, table, names = int(c["id"]), result.confusion, result.taxonomy.names
    row, column = table[k].astype(float), table[:, k].astype(float)
    missed, invented = row.sum() - row[k], column.sum() - column[k]
    head = f"{_capital(c['name'])} ({percent(c['iu'])})"
    if missed >= invented and missed > 0:
        others = np.where(np.arange(len(row)) == k, -1, row)
        other = int(others.argmax())
        return f"{head} is lost mostly to {names[other]}: {percent(row[other] / row.sum())} of {c['name']} pixels."
    others = np.where(np.arange(len(row)) == k, -1, column)
    other = int(others.argmax())
    return (
        f"{head} is claimed too often: {percent(column[other] / column.sum())} of what is called so is {names[other]}."
    )


def _borders(analysis: Mapping[str, Any]) -> list[str]:
    if "border" not in analysis:
        return []
    table = np.asarray(analysis["border"]["pixels"]).sum(0)  # [near?, wrong?]
    wrong, near = table[:, 1].sum(), table[1].sum()
    if not wrong or not near:
        return []
    share = f"{percent(table[1, 1] / wrong)} of the wrong pixels lie along the borders between classes"
    return [f"{share}, which are {percent(near / table.sum())} of the picture."]


def _sizes(analysis: Mapping[str, Any]) -> list[str]:
    if "sizes" not in analysis:
        return []
    rows = np.asarray(analysis["sizes"]["regions"])
    small, large = rows[:2].sum(0), rows[-2:].sum(0)
    if not small[0] or not large[0]:
        return []
    limits = analysis["sizes"]["limits"]
    found = f"{percent(small[3] / small[0])} of the regions smaller than {percent(limits[2], 1)} of the image are found"
    return [f"{found}, {percent(large[3] / large[0])} of those larger than {percent(limits[-3])}."]


def _confidence(analysis: Mapping[str, Any]) -> list[str]:
    if "calibration" not in analysis:
        return []
    bins, sure = np.asarray(analysis["calibration"]["bins"]), sum(analysis["calibration"]["confidence"])
    pixels, right = bins.sum(0)
    if not pixels:
        return []
    gap = (sure - right) / pixels
    if abs(gap) < 0.01:
        return [
            f"Its confidence can be trusted: {percent(sure / pixels)} on average, and {percent(right / pixels)} right."
        ]
    word = "over" if gap > 0 else "under"
    return [f"It is {word}confident: {percent(sure / pixels)} sure on average, {percent(right / pixels)} right."]


def _absent(result: Result) -> list[str]:
    absent = [c["name"] for c in result.per_class if not c["pixels"]]
    if not absent:
        return []
    rule = "left out of the means" if result.average == "present" else "counted in the means where predicted"
    does = "do" if len(absent) > 1 else "does"
    return [f"{_capital(listed(absent))} {does} not occur in the truth and {_are(absent)} {rule}."]


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
