"""Rules about single files: what is wrong with an image, a label map, a name, a pair."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from fullyconv.data.base import Dataset
from fullyconv.doctor.findings import Finding, finding
from fullyconv.doctor.scan import InputFacts, LabelFacts, RecordFacts, coding_of, stray_values
from fullyconv.errors import printable

__all__ = ["RULES", "unmatched"]

# ---- files and names -------------------------------------------------------------------------------------------


def unmatched(dataset: Dataset) -> Iterator[Finding]:
    """What the reader found on its way: files of no image, and what it doubts."""
    for kind, file, words in dataset.doubts:
        yield finding(kind, [file], words, 1)
    for kind, file in dataset.unmatched:
        if kind == "duplicate-stem":
            yield finding(kind, [file], f"another file is named {printable(file.stem)} too, with another ending")
        elif kind == "unread-file":
            yield finding(kind, [file], f"it is a {printable(file.suffix)} file, which is not read", 1, file.suffix)
        else:
            yield finding("label-without-image", [file], "no image has this label's name")


def _names(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    roots = {d.split: (d.root, os.path.realpath(d.root)) for d in datasets}
    away: defaultdict[Path, list[Path]] = defaultdict(list)  # links out of the set by their folder
    for record in facts:
        for file in dict.fromkeys([*(i.file for i in record.inputs), *(la.file for la in record.labels)]):
            try:
                os.fspath(file).encode("utf-8")
            except UnicodeEncodeError:
                yield finding("non-utf8-name", [file], "the name is not valid UTF-8", 1)
            if not file.name.replace("\N{SOFT HYPHEN}", "").isprintable() and _encodable(file.name):
                yield finding("odd-name", [file], "the name holds control characters", 1)
            real, root = os.path.realpath(file), roots[record.split]
            inside = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(root[0]))
            if inside and not Path(real).is_relative_to(root[1]):
                away[file.parent].append(file)
    for files in away.values():
        to = printable(os.path.realpath(files[0]))
        more = f", as are {len(files) - 1} others in its folder" if files[1:] else ""
        message = f"it is a link out of the data set, to {to}{more}"
        yield finding("symlink-outside", files[:1], message, len(files), len(files))
    for dataset in datasets:
        folded = defaultdict(list)
        for r in (r for r in dataset.records if r.inputs):
            folded[r.name.casefold()].append(next(iter(r.inputs.values())))
        for twins in folded.values():
            if len(twins) > 1:
                yield finding(
                    "case-twins", twins[:2], f"its name differs from {printable(twins[1].name)} by case alone"
                )


def _encodable(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name)


# ---- single files ----------------------------------------------------------------------------------------------


def _inputs(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    wanted = {d.split: d.inputs for d in datasets}
    for record in facts:
        for facts_ in record.inputs:
            if facts_.problem:
                yield _unread(*facts_.problem, facts_.file)
            else:
                yield from _layout(facts_)
            if facts_.invalid and facts_.size:
                share = f"{facts_.invalid} of {facts_.size[0] * facts_.size[1]}"
                message = f"{share} pixels are NaN, infinite or declared nodata: they are neither learned nor measured"
                yield finding("invalid-pixels", [facts_.file], message, facts_.invalid, facts_.invalid)
        for modality in wanted[record.split]:
            if modality not in record.record.inputs:
                files = list(record.record.inputs.values())[:1]
                yield finding("input-missing", files, f"its {modality} input is missing", 1, modality)


def _unread(kind: str, reason: str, file: Path) -> Finding:
    """A file that was refused; a missing package is the value, since it is said once for all files."""
    what = reason.partition(" needs the package ")[2].rstrip(".") if kind == "missing-extra" else ""
    return finding(kind, [file], reason.rstrip("."), 1, what)


def _depths(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    """Images of unlike bands or depth in one set, in the same words whichever comes first."""
    for modality in dict.fromkeys(i.modality for r in facts for i in r.inputs):
        some = [i for r in facts for i in r.inputs if i.modality == modality and i.layout]
        kinds = sorted({i.layout for i in some if i.layout})
        if len(kinds) < 2:
            continue
        of = {k: sorted(i.file for i in some if i.layout == k) for k in kinds}
        (a, one), (b, two) = ((k, of[k]) for k in kinds[:2])
        message = f"it has {a[0]} bands of {a[1]} ({len(one)} such), {printable(two[0])} {b[0]} of {b[1]} ({len(two)})"
        yield finding("mixed-bands", [one[0], two[0]], message, len(some), len(kinds))


def _layout(facts: InputFacts) -> Iterator[Finding]:
    """What the header says that will surprise."""
    info, file = facts.info, facts.file
    if facts.blank:
        yield finding("blank-image", [file], "every pixel has the same value", 1)
    if info is None or facts.modality not in ("rgb", "hha"):
        return
    if info.bits == 16:
        yield finding("16-bit-image", [file], "it holds 16 bits a channel", 1, info.bits)
    if info.mode == "CMYK":
        yield finding("cmyk-image", [file], "it is a CMYK image", 1, info.mode)
    if info.mode in ("RGBA", "LA", "PA"):
        yield finding("alpha-image", [file], f"it has an alpha channel ({info.mode})", 1, info.mode)
    if info.frames > 1:
        yield finding("animated-image", [file], f"it is a {info.format} of several frames or pages", 1, info.frames)


def _sizes(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    sized = [(i.file, i.size) for r in facts for i in r.inputs[:1] if i.size]
    if not sized:
        return
    usual = float(np.median([h * w for _, (h, w) in sized]))
    for file, (h, w) in sized:
        value = f"{h}x{w}"
        if min(h, w) < 16:
            yield finding("extreme-size", [file], f"it is only {value} (HxW) pixels", h * w, value)
        elif max(h, w) > 10_000 or max(h, w) > 8 * min(h, w):
            yield finding("extreme-size", [file], f"it is {value} (HxW) pixels", h * w, value)
        elif not usual / 16 <= h * w <= usual * 16:
            yield finding(
                "extreme-size", [file], f"it is {value} (HxW), far from the usual {usual:.0f} pixels", h * w, value
            )


# ---- labels ----------------------------------------------------------------------------------------------------


def _pairs(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    heads = {d.split: tuple(d.taxonomies) for d in datasets}
    for record in facts:
        image = record.inputs[0] if record.inputs else None
        for head in heads[record.split]:
            if head not in record.record.labels and image:
                yield finding("image-without-label", [image.file], f"it has no {head} label", 1, head)
        others: list[InputFacts | LabelFacts] = [*record.inputs[1:], *record.labels]
        for other in others:
            if image and image.size and other.size and image.size != other.size and not image.problem:
                yield _mismatch(image, other)
            elif image and image.info and image.info.orientation != 1 and isinstance(other, LabelFacts):
                value = image.info.orientation
                yield finding(
                    "exif-orientation", [image.file, other.file], f"EXIF turns it (orientation {value})", 1, value
                )


def _mismatch(image: InputFacts, other: InputFacts | LabelFacts) -> Finding:
    assert image.size
    assert other.size
    sizes = f"{image.size[0]}x{image.size[1]} (HxW) and {printable(other.file)} is {other.size[0]}x{other.size[1]}"
    turned = image.info is not None and image.info.stored == other.size and image.info.orientation != 1
    value = f"{other.size[0]}x{other.size[1]}"
    if turned and image.info:
        message = f"EXIF orientation {image.info.orientation} turns the image to {sizes}, as it was stored"
        return finding("exif-rotation", [image.file, other.file], message, 1, value)
    return finding("size-mismatch", [image.file, other.file], f"it is {sizes}", 1, value)


def _labels(datasets: Sequence[Dataset], facts: Sequence[RecordFacts]) -> Iterator[Finding]:
    """What is wrong with label maps. Whether ids start at 1, or 255 is the foreground, is judged over all of a head's
    labels in all splits: a single file may lack any class."""
    for dataset in datasets:
        for head, taxonomy in dataset.taxonomies.items():
            coding = coding_of(dataset, head)
            every = [la for r in facts for la in r.labels if la.head == head]
            here = [la for r in facts if r.split == dataset.split for la in r.labels if la.head == head]
            mapped = bool(coding and coding.values) or not all(la.as_stored for la in here)
            classes, ignore = len(taxonomy), taxonomy.ignore
            guessed = not mapped and taxonomy.names[0] == "class 0"
            stray = set() if mapped else stray_values(every)
            binary = not mapped and ignore == 255 and _all_binary(every, stray)
            moved = not mapped and _start_at_one(every, classes, ignore)
            for facts_ in here:
                if moved and facts_.stored:
                    yield _off_by_one(facts_, classes, ignore)
                else:
                    yield from _label(facts_, classes, ignore, mapped=mapped, binary=stray if binary else None)
                if guessed and not facts_.problem:
                    yield from _stray_values_of(facts_, stray, every, binary=binary)
                value = facts_.nodata
                if value is not None and facts_.stored.get(value) and not (coding and coding.lists(value)):
                    pixels = facts_.stored[value]
                    message = f"{pixels} pixels hold {value}, which it declares as nodata: they are ignored"
                    yield finding("nodata-in-label", [facts_.shown], message, pixels, value)
            if coding and coding.colours and any("no colour table" in n for n in dataset.notes):
                files = [la.file for la in here if la.colours][:1]
                message = f"the labels are colours without a table: one class for each of {len(taxonomy)} colours"
                yield finding("colours-inferred", files, message, len(here), len(taxonomy))


def _start_at_one(labels: Sequence[LabelFacts], classes: int, ignore: int) -> bool:
    """Whether the labels of a set hold 1..K where the classes are 0..K-1. A stray value in a few files is none of that:
    0 must occur nowhere, and K in more than a tenth of the files that hold ids."""
    held = [ids for la in labels if (ids := set(la.stored) - {ignore, 65535, la.nodata})]
    if not held or any(0 in ids for ids in held):
        return False
    return max(set().union(*held)) == classes and 10 * sum(classes in ids for ids in held) > len(held)


def _all_binary(labels: Sequence[LabelFacts], stray: Collection[int]) -> bool:
    """Whether all labels but the interpolated ones hold 0 and 255 alone, but for stray values, and both occur."""
    clean = [set(la.stored) for la in labels if la.stored and la.blended <= 0.5]
    return bool(clean) and set().union(*clean) - set(stray) == {0, 255}


def _stray_values_of(
    facts: LabelFacts, stray: Collection[int], labels: Sequence[LabelFacts], *, binary: bool
) -> Iterator[Finding]:
    """The stray values of a file: an error where the others are 0 and 255, of which no classes can be made then."""
    usual = sorted(set().union(*(la.stored for la in labels)) - set(stray))
    others = ", ".join(map(str, usual[:12])) + (" ..." if len(usual) > 12 else "")
    for value in sorted(set(facts.stored) & set(stray)):
        pixels = facts.stored[value]
        holders = sum(value in la.stored for la in labels)
        message = f"{pixels} pixels hold {value}, as {holders} of {len(labels)} labels do; the others hold {others}"
        yield finding("stray-value", [facts.shown], message, pixels, value, level="error" if binary else None)


def _label(
    facts: LabelFacts, classes: int, ignore: int, *, mapped: bool, binary: Collection[int] | None
) -> Iterator[Finding]:
    """binary: the stray values of a set that otherwise holds 0 and 255, None for any other set."""
    file, stored = [facts.shown], facts.stored
    if facts.tripled:
        yield finding("grey-rgb-label", file, "it holds the same ids three times, as RGB", 1)
    if facts.info and facts.info.format == "JPEG":
        yield finding("jpeg-label", file, "it is a JPEG, whose values are only approximate", 1)
        return
    if facts.blended > 0.5 and not mapped:
        message = f"{facts.blended:.0%} of its rare values lie between their neighbours: it was interpolated"
        yield finding("interpolated-label", file, message, len(stored), f"{len(stored)} values")
        return
    if binary is not None and 255 in stored and set(stored) <= {0, 255, *binary}:
        message = "its values are 0 and 255, and 255 would be ignored" if 0 in stored else "its only value is 255"
        yield finding("binary-0-255", file, message, stored[255], "0, 255")
        return
    if facts.problem:
        yield _refused(facts, classes, ignore)
    elif facts.counts is not None:
        yield from _content(facts)


def _refused(facts: LabelFacts, classes: int, ignore: int) -> Finding:
    assert facts.problem
    kind, reason = facts.problem
    if kind != "no-class":
        return _unread(kind, reason, facts.shown)
    reason = reason.removeprefix(f"{printable(facts.file)}: ").rstrip(".").partition("; give the colours")[0]
    if facts.colours:
        alpha = facts.info is not None and facts.info.mode in ("RGBA", "LA")
        kind = "unknown-colour" if "colour (" in reason else ("alpha-label" if alpha else "colour-label")
        return finding(kind, [facts.shown], reason, facts.colours, f"{facts.colours} colours")
    if facts.outside is None:
        return finding("id-out-of-range", [facts.shown], reason, 1)
    value, pixels, row, column = facts.outside
    message = (
        f"the value {value} is no class (0..{classes - 1}, {ignore} ignored): {pixels} pixels, the first at row {row}, "
        f"column {column}"
    )
    if 0 not in facts.stored and value == classes:
        message += "; it holds no 0 (if this file alone counts from 1, subtract 1 from it)"
    return finding("id-out-of-range", [facts.file], message, pixels, value, (row, column))


def _off_by_one(facts: LabelFacts, classes: int, ignore: int) -> Finding:
    ids = [v for v in facts.stored if v != ignore] or [ignore]
    message = f"its ids are {min(ids)}..{max(ids)}, they start at 1 where the classes are 0..{classes - 1}"
    place = facts.outside[2:] if facts.outside else None
    return finding("off-by-one-ids", [facts.file], message, sum(facts.stored.values()), max(ids), place)


def _content(facts: LabelFacts) -> Iterator[Finding]:
    assert facts.counts is not None
    counts, total = facts.counts[:-1], int(facts.counts.sum())
    if not counts.any():
        yield finding("all-ignored-label", [facts.shown], f"all {total} pixels are ignored", total)
    elif (counts > 0).sum() == 1:
        k = int(counts.argmax())
        yield finding("constant-label", [facts.shown], f"every labelled pixel is class {k}", int(counts[k]), k)


RULES = (_names, _inputs, _depths, _labels, _pairs, _sizes)
