"""Rules about classes: which occur, how often, and in which split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset
from fullyconv.data.corpora.layout import role
from fullyconv.doctor.findings import Finding, finding
from fullyconv.doctor.scan import LabelFacts, RecordFacts, coding_of, stray_values

__all__ = ["class_findings"]


def class_findings(datasets: Sequence[Dataset], facts: Sequence[RecordFacts], head: str) -> Iterator[Finding]:
    taxonomy = next(d.taxonomies[head] for d in datasets if head in d.taxonomies)
    labels = {d.split: _counted(facts, d.split, head, len(taxonomy)) for d in datasets if head in d.taxonomies}
    totals = {
        split: np.sum([la.counts[:-1] for la in some if la.counts is not None], axis=0)
        for split, some in labels.items()
        if some
    }
    if not totals:
        return
    total: NDArray[np.int64] = np.sum(list(totals.values()), axis=0)
    where = [datasets[0].root]
    if total.sum() == 0:
        ignored = sum(int(la.counts.sum()) for la in _all(labels) if la.counts is not None)
        if ignored and not _foreground_ignored(datasets, labels, head):
            message = f"all {ignored} pixels of the {head} labels are ignored"
            yield finding("nothing-labelled", where, message, ignored)
        return
    if (total > 0).sum() == 1 and not _foreground_ignored(datasets, labels, head):
        yield finding(
            "one-class",
            where,
            f"all {head} labels together hold one class, {taxonomy.names[int(total.argmax())]!r}",
            int(total.sum()),
        )
    if total[0] == 0 and len(total) > 2 and taxonomy.names[0] == "class 0":
        yield finding("ids-start-at-one", where, f"the {head} ids are 1..{len(total) - 1}; 0 never occurs", 0, 0)
    if any(la.blended > 0.5 for some in labels.values() for la in some) and taxonomy.names[0] == "class 0":
        return  # the classes were taken from interpolated labels: that is to be mended first
    stray = stray_values([la for some in labels.values() for la in some])
    if stray and taxonomy.names[0] == "class 0":  # said file by file: no classes are made of them
        total = total[: max(v for la in _all(labels) for v in la.stored if v < len(total) and v not in stray) + 1]
        totals = {split: part[: len(total)] for split, part in totals.items()}
        if len(total) < 2:
            return
    used = np.flatnonzero(total).tolist()
    if levels := _grey_levels(datasets, labels, head):
        shown = ", ".join(map(str, levels[:12])) + (" ..." if len(levels) > 12 else "")
        message = f"the {head} labels hold {shown}, spread evenly up to 255, and 255 would be ignored"
        yield finding("grey-levels", where, message, len(levels), shown)
        return
    if taxonomy.names[0] == "class 0" and 2 * len(used) < len(total) > 8:
        values = ", ".join(map(str, used[:12])) + (" ..." if len(used) > 12 else "")
        message = f"the {head} labels hold {len(used)} values, {values}; the ids between them mean nothing"
        yield finding("sparse-ids", where, message, len(used), values)
        return
    for k in np.flatnonzero(total == 0).tolist():
        yield finding("unused-class", where, f"the {head} class {k} ({taxonomy.names[k]}) occurs nowhere", 0, k)
    yield from _rare(labels, total, taxonomy.names, head, where)
    yield from _foreground(labels, total, taxonomy.names)
    yield from _between_splits(totals, taxonomy.names, head, where)


def _all(labels: Mapping[str, Sequence[LabelFacts]]) -> Iterator[LabelFacts]:
    return (la for some in labels.values() for la in some)


def _foreground_ignored(datasets: Sequence[Dataset], labels: Mapping[str, Sequence[LabelFacts]], head: str) -> bool:
    """Whether the labels hold 0 and 255 alone and 255 counts as ignored: "binary-0-255" says what to do then."""
    coding = next(coding_of(d, head) for d in datasets if head in d.taxonomies)
    stored = {value for some in labels.values() for la in some for value in la.stored}
    as_stored = all(la.as_stored for some in labels.values() for la in some)
    return stored == {0, 255} and as_stored and not (coding and coding.values)


def _grey_levels(datasets: Sequence[Dataset], labels: Mapping[str, Sequence[LabelFacts]], head: str) -> list[int]:
    """The values of labels whose ids were spread over the grey levels for eyes (0, 128, 255), else []."""
    coding = next(coding_of(d, head) for d in datasets if head in d.taxonomies)
    stored = sorted({value for some in labels.values() for la in some for value in la.stored})
    if len(stored) < 3 or stored[-1] != 255 or stored[1] < 5 or (coding and coding.values):
        return []
    even = all(abs(v - k * 255 / (len(stored) - 1)) <= 1 for k, v in enumerate(stored))
    return stored if even and all(la.as_stored for some in labels.values() for la in some) else []


def _counted(facts: Sequence[RecordFacts], split: str, head: str, classes: int) -> list[LabelFacts]:
    return [
        la
        for r in facts
        if r.split == split
        for la in r.labels
        if la.head == head and la.counts is not None and len(la.counts) == classes + 1
    ]


def _rare(
    labels: Mapping[str, Sequence[LabelFacts]],
    total: NDArray[np.int64],
    names: Sequence[str],
    head: str,
    where: list[Path],
) -> Iterator[Finding]:
    files = [la for some in labels.values() for la in some if la.counts is not None]
    for k in np.flatnonzero(total).tolist():
        holders = [la for la in files if la.counts is not None and la.counts[k]]
        share = total[k] / total.sum()
        if share < 0.001 or (len(files) >= 20 and len(holders) <= 2):
            message = (
                f"the {head} class {k} ({names[k]}) covers {share:.4%} of the labelled pixels, in {len(holders)} of "
                f"{len(files)} labels"
            )
            yield finding("rare-class", where, message, int(total[k]), k)


def _foreground(
    labels: Mapping[str, Sequence[LabelFacts]], total: NDArray[np.int64], names: Sequence[str]
) -> Iterator[Finding]:
    """Labels that are all but background, where class 0 is one."""
    background = len(total) == 2 or names[0].lower().strip("_ ") in ("background", "bg", "none", "other")
    if not background:
        return
    for la in (la for some in labels.values() for la in some):
        assert la.counts is not None
        front, whole = int(la.counts[1:-1].sum()), int(la.counts[:-1].sum())
        if 0 < front < 0.001 * whole:
            yield finding(
                "near-empty-foreground",
                [la.shown],
                f"only {front} of {whole} pixels are not background",
                front,
                f"{front / whole:.4%}",
            )


def _between_splits(
    totals: Mapping[str, NDArray[np.int64]], names: Sequence[str], head: str, where: list[Path]
) -> Iterator[Finding]:
    by_role = {role(split): total for split, total in totals.items()}
    train, val = by_role.get("train"), by_role.get("val")
    if train is None or val is None:
        return
    for kind, has, lacks in (("val", train, val), ("train", val, train)):
        for k in np.flatnonzero((has > 0) & (lacks == 0)).tolist():
            yield finding(
                f"class-missing-from-{kind}",
                where,
                f"the {head} class {k} ({names[k]}) occurs nowhere in {kind}",
                int(has[k]),
                int(k),
            )
