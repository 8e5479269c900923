"""The report's first paragraph: what an evaluation or a run says, in sentences."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fullyconv.evaluation.result import ClassFigures, Result
from fullyconv.evaluation.statistics import Interval, costly_pairs
from fullyconv.report.collect import Run
from fullyconv.report.records import Analysis, BorderErrors, Calibration, SizeErrors

__all__ = ["duration", "evaluated", "listed", "percent", "summary", "under_way"]

SOLVED, WEAK = 0.8, 0.5  # IU, by judgement: little is left to mend; below half, more pixels are wrong than right
EXPLAINED = 4  # weak classes of which is said where they go


def summary(result: Result, analysis: Analysis, interval: Interval) -> list[str]:
    """Sentences, the most important first: the score, what is solved, what is lost to what, where errors lie."""
    if not result.confusion.any():
        return [f"None of the pixels of {_images(result)} is labelled, so there is nothing to score."]
    lines = [_score(result, interval), *_floor(result), *_classes(result), *_heads(result), *_borders(analysis.border)]
    lines += [*_sizes(analysis.sizes), *_confidence(analysis.calibration), *_absent(result)]
    return [s for s in lines if s]


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f}\u202f%"


def listed(names: Sequence[str], most: int = 6) -> str:
    """ "a, b and c"; beyond `most` the rest are counted."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def duration(seconds: float) -> str:
    """ "1 h 05 min", "12 min 30 s", "8 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _images(result: Result) -> str:
    return f"{result.images} image{'s' if result.images != 1 else ''}"


def _score(result: Result, interval: Interval) -> str:
    of = _images(result)
    if interval.low is None or interval.high is None:
        return f"Mean IU {percent(result.mean_iu, 1)} on {of}."
    return (
        f"Mean IU {percent(result.mean_iu, 1)} on {of}; drawing other images like these would give "
        f"{percent(interval.low, 1)} to {percent(interval.high, 1)} (95\u202f%)."
    )


def _floor(result: Result) -> list[str]:
    """What answering one class everywhere would score; and that the network is no better where it is not."""
    floor = result.floor()
    low = f"{percent(floor.mean_iu, 1)} (and a pixel accuracy of {percent(floor.pixel_accuracy, 1)})"
    if not floor.near(result.pixel_accuracy, result.mean_iu):
        return [f"Always answering {floor.name} would give {low}."]
    nothing = (
        f"That is no better than always answering {floor.name}, which gives {low}: the network has learned nothing "
        "that shows here. Try more steps, trained weights to start from, another learning rate, or class weights."
    )
    return [nothing]


def _iu(c: ClassFigures) -> float:
    """The IU of a class that occurs in the truth: it always has one."""
    return c.iu or 0.0


def _is_solved(c: ClassFigures, labelled: int) -> bool:
    """An IU of 0.8 or more that is at least half of the way from what calling everything so would give to 1."""
    share = c.pixels / labelled
    return _iu(c) >= SOLVED and _iu(c) - share >= (1 - share) / 2


def _classes(result: Result) -> list[str]:
    if result.floor().near(result.pixel_accuracy, result.mean_iu):
        return []
    labelled = int(result.confusion.sum())
    present = [c for c in result.classes if c.pixels]
    solved = [c.name for c in sorted(present, key=_iu, reverse=True) if _is_solved(c, labelled)]
    weak = sorted((c for c in present if _iu(c) < WEAK), key=_iu)
    out = []
    if solved:
        out.append(f"{_capital(listed(solved))} {_are(solved)} solved (IU of {percent(SOLVED)} or more).")
    else:
        best = max(present, key=_iu)
        none = f"No class reaches {percent(SOLVED)}" if _iu(best) < SOLVED else "No class is solved"
        out.append(f"{none}; {best.name} is best with {percent(_iu(best))}.")
    out += _lost(result, weak[:EXPLAINED])
    if rest := [c.name for c in weak[EXPLAINED:]]:
        out.append(f"{_capital(listed(rest))} also {'stay' if len(rest) > 1 else 'stays'} below {percent(WEAK)}.")
    pairs = costly_pairs(result.confusion, result.average)
    if pairs:
        p, names = pairs[0], result.taxonomy.names
        out.append(
            f"The costliest mistake is to call {names[p.truth]} “{names[p.said]}”: without it the mean IU would be "
            f"{100 * p.cost:.1f} points higher."
        )
    return out


def _lost(result: Result, weak: Sequence[ClassFigures]) -> list[str]:
    """Where weak classes go, those that go to one class in one sentence: what they are called, or what is called so."""
    groups: dict[tuple[bool, bool, int], list[tuple[ClassFigures, float]]] = {}
    for c in weak:
        k, table = c.id, result.confusion.astype(float)
        row, column = np.delete(table[k], k), np.delete(table[:, k], k)
        missed = bool(row.sum() >= column.sum())
        line = row if missed else column
        place, most = int(line.argmax()), float(line.max())
        mainly = most >= line.sum() / 2
        share = most / (line.sum() + table[k, k])
        groups.setdefault((missed, mainly, place + (place >= k)), []).append((c, share))
    return [_lost_to(key, members, result.taxonomy.names) for key, members in groups.items()]


def _lost_to(key: tuple[bool, bool, int], members: Sequence[tuple[ClassFigures, float]], names: Sequence[str]) -> str:
    missed, mainly, other = key
    heads = _capital(listed([f"{c.name} ({percent(_iu(c))})" for c, _ in members]))
    shares, are = listed([percent(share) for _, share in members]), _are([""] * len(members))
    pixels = f"{members[0][0].name} pixels" if len(members) == 1 else "their pixels"
    if missed:
        return f"{heads} {are} lost {'mostly' if mainly else 'most often'} to {names[other]}: {shares} of {pixels}."
    return f"{heads} {are} claimed too often: {shares} of what is called so is {names[other]}."


def _heads(result: Result) -> list[str]:
    """A sentence for each further head."""
    lines = []
    for head in list(result.tables)[1:]:
        accuracy, mean_iu = result.figure("pixel_accuracy", head), result.figure("mean_iu", head)
        if accuracy == accuracy:
            lines.append(
                f"Its {head} head is right on {percent(accuracy, 1)} of the pixels (mean IU {percent(mean_iu, 1)})."
            )
    return lines


def _borders(border: BorderErrors | None) -> list[str]:
    if border is None:
        return []
    table = np.asarray(border.pixels).sum(0)  # [near?, wrong?]
    wrong, near = table[:, 1].sum(), table[1].sum()
    if not wrong or not near:
        return []
    share = f"{percent(table[1, 1] / wrong)} of the wrong pixels lie along the borders between classes"
    return [f"{share}, which are {percent(near / table.sum())} of the image."]


def _sizes(sizes: SizeErrors | None) -> list[str]:
    if sizes is None:
        return []
    rows = np.asarray(sizes.regions)
    small, large = rows[:2].sum(0), rows[-2:].sum(0)
    if not small[0] or not large[0]:
        return []
    limits = sizes.limits
    found = f"{percent(small[3] / small[0])} of the regions smaller than {percent(limits[2], 1)} of the image are found"
    return [f"{found}, {percent(large[3] / large[0])} of those larger than {percent(limits[-3])}."]


def _confidence(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return []
    bins, confidence = np.asarray(calibration.bins), sum(calibration.confidence)
    pixels, right = bins.sum(0)
    if not pixels:
        return []
    gap = (confidence - right) / pixels
    if abs(gap) < 0.01:
        average, correct = percent(confidence / pixels), percent(right / pixels)
        return [f"Its confidence can be trusted: {average} on average, and {correct} right."]
    word = "over" if gap > 0 else "under"
    return [f"It is {word}confident: {percent(confidence / pixels)} sure on average, {percent(right / pixels)} right."]


def _absent(result: Result) -> list[str]:
    absent = [c.name for c in result.classes if not c.pixels]
    if not absent:
        return []
    rule = "left out of the means" if result.average == "present" else "counted in the means where predicted"
    does = "do" if len(absent) > 1 else "does"
    return [f"{_capital(listed(absent))} {does} not occur in the truth and {_are(absent)} {rule}."]


def evaluated(run: Run | None) -> list[str]:
    """What the state of the run adds to its kept evaluation."""
    if run is None:
        return []
    lines = damaged(run)
    if run.unfinished:
        lines.append("The run is not finished: this evaluation is of the checkpoint that was best when it was made.")
    return lines


def damaged(run: Run) -> list[str]:
    """What is missing of the run's log."""
    if not run.damaged:
        return []
    lines = "1 line" if run.damaged == 1 else f"{run.damaged} lines"
    text = f"The log of the run is damaged: {lines} of metrics.jsonl (zeros, or torn by a power cut) are left out,"
    return [f"{text} so the curves have gaps."]


def under_way(run: Run, source: Path) -> list[str]:
    """Words for a run without a kept evaluation."""
    lines = [*damaged(run), _measured_so_far(run)]
    if run.last:
        lasts = f"; it is to last {run.recipe.lasts}" if run.recipe.lasts else ""
        epoch = "" if run.last.epoch is None else f", epoch {run.last.epoch:.3g}"
        lines.append(f"It has come to step {run.last.step}{epoch}{lasts}.")
    place = shlex.quote(str(source))
    lines.append(
        "No evaluation is kept in this run, so confusions and images are not shown; "
        f"fullyconv evaluate {place} DATA --keep {shlex.quote(str(source / 'evaluation'))} adds them."
    )
    return lines


def _measured_so_far(run: Run) -> str:
    if run.best and run.best.mean_iu is not None:
        return f"The best mean IU so far is {percent(run.best.mean_iu, 1)}, at step {run.best.step}."
    if not run.last:
        return "The run has not taken its first step yet."
    if not run.recipe.measured:
        return "Nothing is measured in this run: its recipe names no validation split."
    return "Nothing has been measured yet: the run has no validation split, or has not come to its first measurement."


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
