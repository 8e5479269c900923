"""What a review found, kept in a folder, and the corrections that somebody accepted, as copies with their origin.

    suspects.json            each finding: record, box, classes, area, margin; the network's and the labels' sha256
    proposals/NUMBER.png     the classes proposed in its box; elsewhere the ignore value
    corrected/NAME.png       a label map with the accepted proposals in it, and corrections.json that says where from
The data set itself is never written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.curation.doubted_labels import Doubt
from fullyconv.data.base import Dataset
from fullyconv.data.corpora.class_tables import classes_text
from fullyconv.errors import DataError, UsageError, printable
from fullyconv.files import read_json
from fullyconv.files.outputs import Outputs
from fullyconv.images import encode_label, read_label

__all__ = ["keep", "parse_numbers", "write_corrections"]

_FINDINGS = "suspects.json"


def keep(found: Sequence[Doubt], dataset: Dataset, out: Path, model: str) -> Path:
    """Write the findings, numbered from 1, to the folder `out`; returns suspects.json. model: the network's sha256."""
    plan = Outputs(out, dataset.files)
    file = plan.claim(_FINDINGS)
    names = [plan.claim("proposals", f"{n:04d}.png") for n in range(1, len(found) + 1)]
    taxonomy = dataset.taxonomy
    rows = []
    for n, (doubt, name) in enumerate(zip(found, names, strict=True), 1):
        s, record = doubt.suspect, dataset.records[doubt.record]
        proposed = np.where(s.inside, s.proposed, taxonomy.ignore)
        plan.write(name, encode_label(proposed, taxonomy.palette))
        height, width = s.inside.shape
        rows.append(
            {
                "number": n, "record": record.name, "labels": _digest(_labels(dataset, doubt.record)),
                "box": [s.top, s.left, height, width], "labelled": taxonomy.names[s.labelled],
                "predicted": taxonomy.names[s.predicted], "area": s.area, "margin": round(s.margin, 4),
                "score": round(s.score, 2), "proposal": name,
            }
        )  # fmt: skip
    value = {"format": 1, "model": model, "classes": list(taxonomy.names), "suspects": rows}
    return plan.write(file, json.dumps(value, ensure_ascii=False, indent=1).encode())


def write_corrections(numbers: Collection[int], dataset: Dataset, out: Path) -> list[Path]:
    """Write the label maps of the findings `numbers` in `out`, with these corrections in them; returns the files.

    Raises UsageError for a number that there is not, DataError for labels that changed since they were reviewed.
    """
    file = out / _FINDINGS
    value = read_json(file)
    try:
        if value["classes"] != list(dataset.taxonomy.names):
            raise DataError(f"{printable(file)} is of data with other classes; review these data first.")
        rows = {int(row["number"]): row for row in value["suspects"]}
        if unknown := sorted(set(numbers) - set(rows)):
            raise UsageError(f"{printable(file)} has no finding {unknown[0]}; its findings are 1 to {len(rows)}.")
        chosen = [rows[n] for n in sorted(set(numbers))]
        by_record: dict[str, list[Any]] = {}
        for row in chosen:
            by_record.setdefault(str(row["record"]), []).append(row)
        corrected = {name: _corrected(dataset, name, some, out) for name, some in by_record.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{printable(file)} is not what review wrote ({printable(error)}); review again.") from error
    plan = Outputs(out, [*dataset.files, file])
    about, classes = plan.claim("corrected", "corrections.json"), plan.claim("corrected", "classes.txt")
    names = {name: plan.claim("corrected", f"{name}.png") for name in corrected}
    written = [plan.write(names[n], encode_label(v, dataset.taxonomy.palette)) for n, v in corrected.items()]
    origin = {"format": 1, "model": value["model"], "accepted": chosen}
    plan.write(classes, classes_text(dataset.taxonomy).encode())
    return [*written, plan.write(about, json.dumps(origin, ensure_ascii=False, indent=1).encode())]


def _corrected(dataset: Dataset, name: str, rows: Sequence[Any], out: Path) -> NDArray[Any]:
    place = next((i for i, r in enumerate(dataset.records) if r.name == name), None)
    if place is None:
        raise DataError(f"The data have no image {printable(name)}; give those that were reviewed.")
    labels = _labels(dataset, place).copy()
    if any(row["labels"] != _digest(labels) for row in rows):
        raise DataError(f"The labels of {printable(name)} have changed since they were reviewed; review again.")
    for row in rows:
        top, left, height, width = (int(v) for v in row["box"])
        proposed = read_label(out / f"proposals/{int(row['number']):04d}.png")
        part = labels[top : top + height, left : left + width]
        if part.shape != proposed.shape or top < 0 or left < 0:
            raise DataError(f"The proposal {int(row['number'])} does not lie on {printable(name)}; review again.")
        inside = proposed != dataset.taxonomy.ignore
        part[inside] = proposed[inside]
    return labels


def _labels(dataset: Dataset, place: int) -> NDArray[Any]:
    return dataset.read_labels(dataset.records[place], next(iter(dataset.taxonomies)))


def _digest(labels: NDArray[np.integer]) -> str:
    """sha256 (hex) of the ids and the size."""
    return hashlib.sha256(repr(labels.shape).encode() + labels.astype("<u2").tobytes()).hexdigest()


def parse_numbers(text: str) -> set[int]:
    """ "1,4,7-9" as {1, 4, 7, 8, 9}; UsageError for anything else."""
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = (p.strip() for p in part.partition("-"))
        if not (low.isdecimal() and (high.isdecimal() or not dash) and len(low) < 7 and len(high) < 7):
            raise UsageError(f"{printable(text)!r} are no numbers of findings; write 1,4,7-9.")
        found |= set(range(int(low), int(high or low) + 1))
    return found
