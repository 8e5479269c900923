"""What to do about a finding, where it depends on the kind of data; and sentences about labels that are not read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fullyconv.data.base import Dataset
from fullyconv.data.corpora.coding import ALSO_FOLDERS, OWN_TABLES
from fullyconv.data.corpora.foreign import MAPS, foreign_labels
from fullyconv.doctor.findings import KINDS, Finding, finding
from fullyconv.doctor.scan import RecordFacts
from fullyconv.errors import printable

__all__ = ["joined_extras", "no_labels", "suited"]


def suited(found: Iterable[Finding], datasets: Sequence[Dataset]) -> list[Finding]:
    """The findings with remedies that can work for the kind of data: a classes.txt is read for folders alone."""
    kinds = {d.kind for d in datasets}
    if kinds <= {"folder", "scenes"} or not datasets:
        return list(found)
    kind = next(iter(kinds - {"folder", "scenes"}))
    return [replace(f, remedy=_remedy(f, kind)) if "classes.txt" in f.remedy else f for f in found]


def _remedy(one: Finding, kind: str) -> str:
    if one.kind == "unused-class":
        return f"Add images of it; the classes are those that {kind} data list."
    if kind in OWN_TABLES:
        return f"Correct the labels, or list their classes in {OWN_TABLES[kind]}."
    if kind in ALSO_FOLDERS:
        return f"Correct the labels, or, if they are no {kind} labels, read them as folder:PATH with a classes.txt."
    return f"Correct the labels: {kind} data have classes of their own, and no classes.txt is read there."


def joined_extras(found: Sequence[Finding]) -> list[Finding]:
    """The findings with one for each missing package, however many files need it."""
    rest = [f for f in found if f.kind != "missing-extra"]
    by: dict[str, list[Finding]] = {}
    for one in found:
        if one.kind == "missing-extra":
            by.setdefault(one.value, []).append(one)
    for what, some in by.items():
        files = [f.files[0] for f in some]
        message = f"it and {len(files) - 1} other files need the package {what}" if files[1:] else f"it needs {what}"
        rest.append(finding("missing-extra", files[:1], message, len(files), what))
    return rest


def no_labels(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Finding:
    """The finding of data without any label: how many images, which files look like labels, and what to do."""
    message = f"{len(facts)} image{'s' * (len(facts) != 1)} and no label"
    lost = [file for d in datasets for kind, file in d.unmatched if kind == "label-without-image"]
    remedy = KINDS["no-labels"][1]
    if lost and facts and facts[0].inputs:
        image = printable(facts[0].inputs[0].file.name)
        message += f"; {len(lost)} labels have other names ({printable(lost[0].name)}, and an image {image})"
    if there := foreign_labels(_root(datasets)):
        message += "; " + "; ".join(f"{len(t.files)} {t.what} ({printable(t.files[0].name)})" for t in there)
        remedy = " ".join(dict.fromkeys(t.remedy for t in there))
    if lost and len(lost) >= 2 * len(facts):
        remedy = f"If each image has several masks (of an object, or a class), draw them into one: {MAPS}"
    return replace(finding("no-labels", [datasets[0].root], message, len(facts)), remedy=remedy)


def _root(datasets: Sequence[Dataset]) -> Path:
    return datasets[0].root
