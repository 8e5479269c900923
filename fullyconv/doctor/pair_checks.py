"""Rules that compare files: duplicates, near duplicates, groups, palettes, and labels that lie beside their image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset
from fullyconv.doctor.findings import Finding, Level, finding
from fullyconv.doctor.scan import InputFacts, RecordFacts, coding_of
from fullyconv.errors import printable

__all__ = ["RULES", "same_images"]

# Measured: unrelated images reach 0.47 (VOC) and 0.41 (CamVid) at most, re-encodes at half the size 0.87 at least,
# CamVid frames 1/15 s apart 0.77 at least.
NEAR_SIGNS = 0.65  # agreement of 256 signs, -1..1
NEAR_TONES = 0.90  # correlation of the thumbnails
# (gain, z) from which a label counts as shifted; of CamVid's labels moved by 8 to 12 pixels the weaker finds 9 in 10.
FIT_WELL = (1.2, 4.0)
FIT_LOOSELY = (1.6, 6.0)  # of few images, or where many fit better elsewhere: then the labels are loose


def _duplicates(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    for same in same_images(facts):
        for a, b in combinations(same[:10], 2):
            files = [a.inputs[0].file, b.inputs[0].file]
            if files[0].resolve() == files[1].resolve() and a.split == b.split:
                continue
            kind = "duplicate-in-split" if a.split == b.split else "duplicate-across-splits"
            where = "" if a.split == b.split else f", which is in {b.split}, this one in {a.split}"
            twist = "" if [x.digest for x in a.labels] == [x.digest for x in b.labels] else ", with another label file"
            message = f"it is the same image as {printable(files[1])}{where}{twist}"
            if files[0] == files[1]:
                message = f"the image {printable(a.record.name)} is both in {a.split} and in {b.split}"
            yield finding(kind, files, message, len(same))


def same_images(facts: Sequence[RecordFacts]) -> list[list[RecordFacts]]:
    """Records whose images are equal, by bytes or by pixels, in groups of two and more."""
    groups: dict[bytes, list[RecordFacts]] = defaultdict(list)
    for record in facts:
        image = record.inputs[0] if record.inputs else None
        if image and not image.problem and not image.blank and (image.pixels or image.digest):
            groups[image.pixels or image.digest].append(record)
    return [same for same in groups.values() if len(same) > 1]


def _near_duplicates(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    """Images of two splits whose brightness rises and falls alike: re-encodings, resizings, video neighbours."""
    by_split: dict[str, list[InputFacts]] = defaultdict(list)
    for record in facts:
        image = record.inputs[0] if record.inputs else None
        if image and image.thumbnail is not None and not image.blank:
            by_split[record.split].append(image)
    for (name_a, some), (name_b, others) in combinations(by_split.items(), 2):
        signs_b, tones_b = _signature(others)
        for start in range(0, len(some), 1024):
            part = some[start : start + 1024]
            signs_a, tones_a = _signature(part)
            alike = (signs_a @ signs_b.T >= NEAR_SIGNS) & (tones_a @ tones_b.T >= NEAR_TONES)
            for i, j in np.argwhere(alike):
                a, b = part[i], others[j]
                if a.pixels != b.pixels:
                    message = f"it looks almost like {printable(b.file)}, which is in {name_b}, this one in {name_a}"
                    yield finding("near-duplicate-across-splits", [a.file, b.file], message, 1)


def _signature(images: Sequence[InputFacts]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """N x 256 signs of differences along rows, and N x 272 standardised brightnesses: their products are in -1..1."""
    small = np.stack([p.thumbnail for p in images if p.thumbnail is not None])
    signs = np.where(np.diff(small, axis=2) >= 0, 1, -1).reshape(len(small), -1).astype(np.float32)
    tones = small.reshape(len(small), -1) - small.mean(axis=(1, 2))[:, None]
    tones /= np.maximum(np.linalg.norm(tones, axis=1, keepdims=True), 1e-6)
    return signs / np.float32(np.sqrt(signs.shape[1])), tones


def _groups(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    splits: dict[str, dict[str, Path]] = defaultdict(dict)
    for record in facts:
        if record.record.group and record.inputs:
            splits[record.record.group].setdefault(record.split, record.inputs[0].file)
    for group, first in splits.items():
        if len(first) > 1:
            names = ", ".join(sorted(first))
            yield finding(
                "group-across-splits", first.values(), f"images of {group!r} are in {names}", len(first), group
            )


def _palettes(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    """Palette labels whose colours for the ids they use differ from those of the most usual palette: an error where the
    same colours stand for other ids and no colour table tells which class each is."""
    for head in dict.fromkeys(la.head for r in facts for la in r.labels):
        some = [la for r in facts for la in r.labels if la.head == head and la.palette]
        if len(some) < 2:
            continue
        usual, _ = Counter(la.palette for la in some).most_common(1)[0]
        first = next(la.file for la in some if la.palette == usual)
        used = {usual[v]: v for la in some if la.palette == usual for v in la.stored if v < len(usual)}
        coding = next((coding_of(d, head) for d in datasets if head in d.taxonomies), None)
        by_colour = bool(coding and coding.by_palette)
        for la in some:
            ids = [v for v in la.stored if v < len(la.palette) and v < len(usual) and la.palette[v] != usual[v]]
            moved = [v for v in ids if used.get(la.palette[v], v) != v]
            if moved and not by_colour:
                k, message = moved[0], f"its palette gives {la.palette[moved[0]]} the id {moved[0]}"
                message += f", that of {printable(first)} the id {used[la.palette[k]]}"
                yield finding("palette-permuted", [la.file, first], message, len(moved), k)
            elif ids:
                k = ids[0]
                message = f"its colour of id {k} is {la.palette[k]}, in {printable(first)} it is {usual[k]}"
                message += "; each is read by its own palette's colours" if by_colour else ""
                level: Level | None = "info" if by_colour else None
                yield finding("palette-inconsistent", [la.file, first], message, len(ids), k, level=level)


def _shifts(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    """Labels whose boundaries meet the image's edges only after a move.

    Where nearly all labels of a set fit as they lie (labels drawn to the pixel), a weaker sign is believed.
    """
    measured = [la for r in facts for la in r.labels[:1] if la.shift]
    moved = [la for la in measured if la.shift and max(abs(la.shift.rows), abs(la.shift.columns)) >= 4]
    gain, z = FIT_WELL if len(measured) >= 10 and len(moved) <= 0.1 * len(measured) else FIT_LOOSELY
    for la in moved:
        s = la.shift
        if s and s.gain >= gain and s.z >= z:
            message = (
                f"its boundaries fit the image {s.gain:.1f} times as well when moved {s.rows} rows and {s.columns} "
                "columns"
            )
            yield finding("shifted-label", [la.shown], message, 1, f"{s.rows}, {s.columns}")


RULES = (_duplicates, _near_duplicates, _groups, _palettes, _shifts)
