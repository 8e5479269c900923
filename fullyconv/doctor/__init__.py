"""The doctor: everything that is wrong with a data set, found in one pass, before any training.

`check(data)` returns findings; `fast=True` is what training runs by itself: labels are read, images only checked
for being whole, and nothing that compares images is looked at.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fullyconv.data import open_dataset, parse_spec
from fullyconv.data.base import Dataset
from fullyconv.data.corpora.layout import role
from fullyconv.doctor import pair_checks as pairs
from fullyconv.doctor import rules
from fullyconv.doctor.class_checks import class_findings
from fullyconv.doctor.findings import KINDS, Finding
from fullyconv.doctor.remedies import joined_extras, no_labels, suited
from fullyconv.doctor.scan import Progress, RecordFacts, scan
from fullyconv.doctor.summary import Summary, summarise
from fullyconv.errors import DataError, FullyconvError, MissingInput, UnknownName

__all__ = ["KINDS", "Checked", "Finding", "check", "examine", "open_every_split", "refuse_errors", "warnings"]

SHOWN = 3  # findings of a kind that a run says one by one
Data = str | os.PathLike[str] | Dataset | Sequence[Dataset]


@final
@dataclass(frozen=True)
class Checked:
    """What one pass gave: the findings, what training will meet (None when nothing could be read), and its material."""

    findings: list[Finding]
    summary: Summary | None
    datasets: tuple[Dataset, ...]
    facts: tuple[RecordFacts, ...]


def check(data: Data, fast: bool = False, progress: Progress | None = None, **options: object) -> list[Finding]:
    """Every finding about `data`: a spec as of `open_dataset` (all its splits), a `Dataset`, or several of them.

    The worst come first. Raises MissingInput or UnknownName for a spec that names nothing; whatever is wrong with the
    data itself is a finding. options: as of `open_dataset`.
    """
    return examine(data, fast=fast, progress=progress, **options).findings


def examine(data: Data, fast: bool = False, progress: Progress | None = None, **options: object) -> Checked:
    """`check`, with what else the pass found out."""
    try:
        datasets = _datasets(data, options)
    except (UnknownName, MissingInput):
        raise
    except DataError as error:
        path = parse_spec(data)[1] if isinstance(data, str | os.PathLike) else Path()
        found = Finding("no-data", "error", (path,), str(error), KINDS["no-data"][1])
        return Checked([found], None, (), ())
    facts = scan(datasets, fast=fast, progress=progress)
    return Checked(_findings(datasets, facts), summarise(datasets, facts), tuple(datasets), tuple(facts))


def _findings(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> list[Finding]:
    """Every finding once, the worst first."""
    found = [f for d in datasets for f in rules.unmatched(d)]
    for rule in (*rules.RULES, *pairs.RULES):
        found += rule(datasets, facts)
    for head in dict.fromkeys(h for d in datasets for h in d.taxonomies):
        found += class_findings(datasets, facts, head)
    if facts and not any(d.taxonomies for d in datasets):
        found.append(no_labels(datasets, facts))
    found = suited(joined_extras(found), datasets)
    order = {"error": 0, "warning": 1, "info": 2}
    return sorted(dict.fromkeys(found), key=lambda f: order[f.level])


def _datasets(data: Data, options: Mapping[str, object]) -> list[Dataset]:
    if isinstance(data, Dataset):
        return [data]
    if isinstance(data, str | os.PathLike):
        return open_every_split(data, **options)
    return list(data)


def open_every_split(spec: str | os.PathLike[str], **options: Any) -> list[Dataset]:
    """Every split of `spec` as a data set of its own; the whole where there are none."""
    known: list[str] = []
    try:
        open_dataset(spec, _NO_SPLIT, **options)  # a set of one part may take any name
    except UnknownName as error:
        if error.kind != "split":
            raise
        known = error.known
    except FullyconvError:
        pass
    usual: list[str | None] = [s for r in ("train", "val", "test") for s in known if role(s) == r]
    return [open_dataset(spec, s, **options) for s in usual or known or [None]]


_NO_SPLIT = "no such split"


def warnings(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, the first three of a kind and then how many more: a set of thousands of classes or files
    is no reason for as many lines."""
    lines: list[str] = []
    seen: Counter[tuple[str, str]] = Counter()
    for one in findings:
        seen[one.kind, one.remedy] += 1
        if seen[one.kind, one.remedy] <= SHOWN:
            lines.append(f"warning: {one.message} {one.remedy}")
    lines += [
        f"warning: {n - SHOWN} more like this [{kind}]; fullyconv check --json lists all."
        for (kind, _), n in seen.items()
        if n > SHOWN
    ]
    return lines


def refuse_errors(findings: Sequence[Finding]) -> None:
    """Raises one DataError with a sentence for each finding of level error (the first three of a kind)."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for one in findings:
        if one.level == "error":
            by_kind[one.kind].append(one)
    if not by_kind:
        return
    lines = []
    for kind, some in by_kind.items():
        lines += [f"  {f.message}" for f in some[:SHOWN]]
        more = f" ({len(some) - SHOWN} more like this.)" if len(some) > SHOWN else ""
        lines.append(f"    {some[0].remedy}{more} [{kind}]")
    count = sum(map(len, by_kind.values()))
    what = "1 thing is" if count == 1 else f"{count} things are"
    raise DataError(f"{what} wrong with the data; nothing was written:\n" + "\n".join(lines))
