"""A repaired copy of a data set: index PNG labels and plain images in folders. The data itself is only read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.base import Dataset
from fullyconv.data.corpora.class_tables import classes_text
from fullyconv.data.corpora.conversion import storable
from fullyconv.data.corpora.layout import SUFFIXES, role
from fullyconv.doctor.findings import Finding
from fullyconv.doctor.pair_checks import same_images
from fullyconv.doctor.scan import InputFacts, LabelFacts, RecordFacts, coding_of
from fullyconv.errors import DataError, FullyconvError, UsageError, printable
from fullyconv.files import new_directory
from fullyconv.files.outputs import Outputs, one_part, safe_name, unique_name
from fullyconv.taxonomy import Taxonomy, voc_palette

__all__ = ["repair"]


@final
@dataclass
class _Copy:
    """The copy in the making: what was done to how many, and the names taken in each split."""

    files: Outputs
    done: Counter[str] = field(default_factory=Counter)
    names: dict[str, set[str]] = field(default_factory=dict)

    def write(self, data: bytes, *parts: str) -> None:
        self.files.write(self.files.claim(*parts), data)


def repair(
    datasets: Sequence[Dataset], facts: Sequence[RecordFacts], findings: Sequence[Finding], out: Path
) -> dict[str, int]:
    """Writes OUT/[SPLIT/]images and labels with what can be repaired, and returns {what was done: how often}.

    Images are turned upright, made 8-bit RGB and otherwise copied byte for byte; labels become ids as PNG. Pairs that
    cannot be repaired are left out and counted. OUT must not exist nor lie in the data; it appears whole or not at all.
    """
    for dataset in datasets:
        dataset.refuse_windows("--fix")
        if out.resolve().is_relative_to(dataset.root.resolve()):
            raise UsageError(f"{printable(out)} lies inside the data; name a folder outside {printable(dataset.root)}.")
    if out.exists():
        raise UsageError(f"{printable(out)} exists already; name a new folder.")
    for dataset in datasets:  # each names a folder or a file of the copy
        for what, names in (
            ("The split", [dataset.split or "all"]),
            ("The input", dataset.inputs),
            ("The head", dataset.taxonomies),
        ):
            for name in names:
                one_part(name, what)
    kinds: dict[Path, set[str]] = {}
    for f in findings:
        for file in f.files:
            kinds.setdefault(file, set()).add(f.kind)
    left_out = _duplicates(facts)
    with new_directory(out) as folder:
        copy = _Copy(Outputs(folder, new=True))
        for record in facts:
            dataset = next(d for d in datasets if d.split == record.split)
            if id(record) in left_out:
                copy.done["left out: the same image is in another split"] += 1
            else:
                _record(copy, dataset, record, kinds, len(datasets) > 1)
        if not copy.names:
            raise DataError("Nothing can be repaired: every image or its label is unreadable or missing.")
        _classes(copy, datasets, kinds)
        lines = [f"{n} x {what}" for what, n in copy.done.most_common()]
        text = "\n".join(("Repaired copy made by fullyconv check --fix", *lines, ""))
        copy.write(text.encode(errors="backslashreplace"), "README.txt")
    return dict(copy.done)


def _duplicates(facts: Sequence[RecordFacts]) -> set[int]:
    """Records to leave out so that no image is in two splits: the training ones go, the measured ones stay."""
    gone: set[int] = set()
    for same in same_images(facts):
        splits = sorted(dict.fromkeys(r.split for r in same), key=lambda s: role(s) == "train")
        gone |= {id(r) for r in same if r.split != splits[0]}
    return gone


def _record(copy: _Copy, dataset: Dataset, record: RecordFacts, kinds: Mapping[Path, set[str]], split: bool) -> None:
    reason = _hopeless(dataset, record)
    labels: dict[str, NDArray[Any]] = {}
    for la in [] if reason else record.labels:
        label, what = _label(dataset, record, la, kinds.get(la.shown, set()))
        if label is None or label.shape != record.inputs[0].size:
            reason = what if label is None else "image and label differ in size"
            break
        labels[la.head] = label
        if what:
            copy.done[f"label repaired: {what}"] += 1
    if reason:
        copy.done[f"left out: {reason}"] += 1
        return
    where = (record.split,) if split else ()
    stem = _name(record.record.name, copy.names.setdefault(record.split, set()))
    for facts in record.inputs:
        folder = "images" if facts.modality in ("rgb", "bands") else one_part(facts.modality, "The input")
        _image(copy, dataset, record, facts, (*where, folder, stem))
    for head, label in labels.items():
        data = images.encode_label(label, dataset.taxonomies[head].palette)
        copy.write(data, *where, "labels" if head == "semantic" else f"labels-{head}", f"{stem}.png")
    copy.done["pairs written"] += 1


def _hopeless(dataset: Dataset, record: RecordFacts) -> str:
    """Why a pair cannot be in the copy; "" if it can."""
    for facts in record.inputs:
        if facts.problem:
            return facts.problem[0].replace("-", " ")
    if any(m not in record.record.inputs for m in dataset.inputs):
        return "an input is missing"
    if not dataset.taxonomies or any(h not in record.record.labels for h in dataset.taxonomies):
        return "no label"
    return ""


def _name(name: str, taken: set[str]) -> str:
    """A plain stem: no folders, no control or undecodable characters, unique without regard to case."""
    plain = "".join(c if c.isalnum() or c in "-_. " else "_" for c in printable(name)).strip(". ") or "image"
    return unique_name(safe_name(plain), taken)


def _image(copy: _Copy, dataset: Dataset, record: RecordFacts, facts: InputFacts, stem: tuple[str, ...]) -> None:
    info, (*where, name) = facts.info, stem
    if facts.file.suffix.lower() not in SUFFIXES:  # kept inside a JSON or MATLAB file
        pixels = storable(dataset.read_input(record.record, facts.modality))
        copy.write(images.encode_png(pixels), *where, f"{name}.png")
        return
    plain = info is None or (
        info.orientation == 1 and info.frames == 1 and info.bits <= 8 and info.mode in ("RGB", "L", "P", "1")
    )
    if plain or facts.modality not in ("rgb", "hha"):
        copy.write(images.read_bytes(facts.file), *where, f"{name}{facts.file.suffix.lower()}")
        return
    copy.write(images.encode_png(images.read_image(facts.file)), *where, f"{name}.png")
    copy.done["image rewritten as upright 8-bit RGB"] += 1


# ---- labels ----------------------------------------------------------------------------------------------------


def _label(
    dataset: Dataset, record: RecordFacts, facts: LabelFacts, kinds: set[str]
) -> tuple[NDArray[Any] | None, str]:
    """(ids, what was done to them), or (None, why not)."""
    taxonomy, image = dataset.taxonomies[facts.head], record.inputs[0]
    ignore = taxonomy.ignore
    if (facts.info is None and not facts.stored) or not (kinds - {"exif-rotation"}) & _REPAIRS:
        try:
            ids = dataset.read_labels(record.record, facts.head)
        except FullyconvError:
            return None, facts.problem[0].replace("-", " ") if facts.problem else "unreadable label"
        return _upright(ids, image, kinds)
    if "jpeg-label" in kinds or "colour-label" in kinds or "alpha-label" in kinds:
        return None, "a label whose values cannot be told"
    raw = images.read_label(facts.file, colours=True)
    if raw.ndim == 3:
        return _known_colours(raw, dataset, facts.head), "unknown colours are ignored"
    raw = raw.astype(np.int32)
    if "binary-0-255" in kinds:
        known = np.where(raw == 0, 0, 255)  # stray values
        return np.where(raw == 255, 1, known).astype(np.uint8), "255 became 1"
    if "off-by-one-ids" in kinds:
        raw, what = np.where((raw == 0) | (raw == ignore), ignore, raw - 1), "1 was subtracted"
    elif "interpolated-label" in kinds:
        raw, what = _unblended(raw), "blended pixels took their neighbour's value"
    else:
        what = "values of no class are ignored"
    ids = np.where(raw < len(taxonomy), raw, ignore).astype(np.uint8 if ignore <= 255 else np.uint16)
    turned, more = _upright(ids, image, kinds)
    return turned, ", ".join(w for w in (what, more) if w)


_REPAIRS = {
    "jpeg-label",
    "colour-label",
    "alpha-label",
    "unknown-colour",
    "binary-0-255",
    "off-by-one-ids",
    "interpolated-label",
    "id-out-of-range",
}


def _upright(ids: NDArray[np.integer], image: InputFacts, kinds: set[str]) -> tuple[NDArray[Any], str]:
    if "exif-rotation" in kinds and image.info:
        return images.turn(ids, image.info.orientation), "turned as its image"
    return ids, ""


def _known_colours(raw: NDArray[np.number], dataset: Dataset, head: str) -> NDArray[Any] | None:
    coding = coding_of(dataset, head)
    if coding is None or not coding.colours:
        return None
    ids = np.full(raw.shape[:2], coding.taxonomy.ignore, coding.dtype)
    for colour, k in coding.colours.items():
        ids[(raw == np.array(colour)).all(axis=-1)] = k
    return ids


def _unblended(raw: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rare values take, step by step, the value of a neighbour that is not rare."""
    counts = np.bincount(raw.ravel())
    rare = (counts < 0.02 * raw.size)[raw]
    out = raw.copy()
    for _ in range(max(raw.shape)):
        if not rare.any() or rare.all():
            break
        for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
            known = np.roll(~rare, step, axis)
            edge = [slice(None), slice(None)]
            edge[axis] = slice(0, 1) if step == 1 else slice(-1, None)
            known[tuple(edge)] = False
            take = rare & known
            out[take] = np.roll(out, step, axis)[take]
            rare &= ~take
    return out


def _classes(copy: _Copy, datasets: Sequence[Dataset], kinds: Mapping[Path, set[str]]) -> None:
    """classes.txt of every head, with colours; a binary set whose classes were unknown gets two."""
    binary = any("binary-0-255" in k for k in kinds.values())
    for head, taxonomy in datasets[0].taxonomies.items():
        if binary and taxonomy.names[0] == "class 0":
            taxonomy = Taxonomy(("background", "foreground"), voc_palette(2))
        name = "classes.txt" if head == "semantic" else f"classes-{head}.txt"
        copy.write(classes_text(taxonomy).encode(), name)
