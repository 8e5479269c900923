"""The user's own data: pictures and label maps of the same names in folders, or lists of both. docs/data.md draws it.

    ROOT/SPLIT/images + ROOT/SPLIT/labels      every split in a folder of its own
    ROOT/images/SPLIT + ROOT/labels/SPLIT      splits below images/ and labels/
    ROOT/images + ROOT/labels [+ SPLIT.txt]    one set, or splits by list files
    LIST.csv, LIST.txt                         rows "image, label[, split, group, depth, ...]"
    ROOT                                       pictures alone, for prediction

Beside images/ and labels/: `labels-NAME/` is a second label map (head NAME), `depth/`, `hha/` and any other folder of
pictures a further input. `classes.txt` (`classes-NAME.txt` for head NAME) lies in ROOT or beside labels/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.base import Dataset, Record
from fullyconv.data.coding import Coding, infer_coding, read_classes, read_coded
from fullyconv.data.layout import (
    SUFFIXES,
    choose_split,
    list_files,
    looked_at,
    merge_splits,
    pictures,
    read_table,
    stems,
)
from fullyconv.errors import DataError, FullyconvError, MissingInput, printable

__all__ = ["open_folder", "read_modality", "recognise"]

IMAGES = ("images", "image", "imgs", "img", "rgb", "JPEGImages")
LABELS = ("labels", "label", "masks", "mask", "annotations", "annotation", "gt", "SegmentationClass")
CLASSES = ("classes{}.txt", "labelmap{}.txt", "class_dict{}.csv", "label_colors{}.txt")
_LABEL_SUFFIXES = ("_label", "_labels", "_mask", "_gt", "_seg", "_L", "_annotation", "-label", "-mask", "_segmentation")


@final
@dataclass
class _Part:
    """What one split holds: stem -> file by modality and by head; a group by stem where a list gives one."""

    inputs: dict[str, dict[str, Path]] = field(default_factory=dict)
    labels: dict[str, dict[str, Path]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    strays: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recognise(root: Path) -> bool:
    """Whether `root` is laid out as one of the folders above."""
    if root.is_file():
        return root.suffix.lower() in (".csv", ".tsv", ".txt")
    return bool(_images_of(root) or _split_folders(root)) or pictures(root)


def open_folder(root: Path, split: str | None = None, *, bands: bool | None = None) -> Dataset:
    """The data set below `root` (or listed in the file `root`).

    bands   read the pictures by all their bands as stored, not as RGB; None decides by the first picture.

    Raises DataError (no pictures, unreadable lists or classes), UnknownName (split).
    """
    root = Path(root)
    parts = _listed_parts(root) if root.is_file() else _folder_parts(root)
    chosen = choose_split(list(parts), split, root)
    name, record_name = merge_splits(chosen)
    base = root.parent if root.is_file() else root
    records = [r for s in chosen for r in _records(parts[s], s, record_name)]
    if not records:
        raise DataError(f"{printable(root)} holds no pictures ({looked_at(root)}); put them into images/.")
    codings, notes = _codings(base, parts, chosen)
    main, records = _main_input(records, bands)
    return Dataset(
        kind="folder",
        root=base,
        split=name,
        records=records,
        taxonomies={head: coding.taxonomy for head, coding in codings.items()},
        read_input=read_modality,
        read_labels=_Reader(codings),
        inputs=(main,),
        notes=(*notes, *(n for s in chosen for n in parts[s].notes)),
        strays=tuple(stray for s in chosen for stray in parts[s].strays),
    )


@final
@dataclass(frozen=True)
class _Reader:
    """(record, head) -> ids; a class, so that worker processes can be given it."""

    codings: Mapping[str, Coding]

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head not in record.labels:
            raise DataError(f"{printable(record.name)} has no {head} label; add the file or take the picture away.")
        return read_coded(record.labels[head], self.codings[head])


def read_modality(record: Record, modality: str) -> NDArray[Any]:
    """A record's input H W C: "rgb" and "hha" as 8-bit colour, anything else by its bands as stored."""
    if modality not in record.inputs:
        raise DataError(f"{printable(record.name)} has no {modality} input; add the file or take the picture away.")
    if modality in ("rgb", "hha"):
        return images.read_image(record.inputs[modality])
    from fullyconv.data.bands import read_bands

    return read_bands(record.inputs[modality])


def _records(part: _Part, split: str, record_name: Any) -> list[Record]:
    return [
        Record(
            record_name(split, stem),
            {modality: files[stem] for modality, files in part.inputs.items() if stem in files},
            {head: files[stem] for head, files in part.labels.items() if stem in files},
            part.groups.get(stem, ""),
        )
        for stem in sorted(part.inputs["rgb"])
    ]


def _main_input(records: list[Record], bands: bool | None) -> tuple[str, list[Record]]:
    """ "rgb", or "bands" where the pictures hold more than colour (or `bands` says so)."""
    from fullyconv.data.bands import is_multiband

    if bands is None:
        bands = is_multiband(records[0].inputs["rgb"])
    if not bands:
        return "rgb", records
    return "bands", [Record(r.name, {"bands": r.inputs["rgb"], **r.inputs}, r.labels, r.group) for r in records]


# ---- folders ---------------------------------------------------------------------------------------------------


def _images_of(folder: Path) -> Path | None:
    return next((folder / n for n in IMAGES if (folder / n).is_dir()), None)


def _split_folders(root: Path) -> list[str]:
    return sorted(d.name for d in root.iterdir() if d.is_dir() and d.name not in LABELS and _images_of(d))


def _folder_parts(root: Path) -> dict[str, _Part]:
    top = _images_of(root)
    if top is None:
        splits = _split_folders(root)
        if splits:
            return {s: _read_part(root / s, _images_of(root / s) or root, "") for s in splits}
        return {"": _read_part(root, root, "", alone=True)}
    lists = sorted(p for p in (*root.glob("*.txt"), *root.glob("*.csv")) if _is_split_list(p))
    if lists:
        return {p.stem: _listed_part(root, top, p) for p in lists}
    below = [d.name for d in sorted(top.iterdir()) if d.is_dir() and not d.name.startswith(".")]
    label = next((root / n for n in LABELS if (root / n).is_dir()), None)
    known = ("train", "val", "test", "valid", "validation", "training", "trainval")
    splits = [s for s in below if s in known or (label and (label / s).is_dir())]
    loose = any(p.suffix.lower() in SUFFIXES for p in top.iterdir())
    if splits and not loose:
        return {s: _read_part(root, top / s, s) for s in splits}
    return {"": _read_part(root, top, "")}


def _is_split_list(file: Path) -> bool:
    return not any(file.match(c.format("*")) for c in CLASSES) and not file.stem.lower().startswith(
        ("readme", "license", "licence", "source", "notes")
    )


def _read_part(parent: Path, top: Path, split: str, alone: bool = False) -> _Part:
    """One split: pictures in `top`, labels and further inputs in the folders of `parent` (below `split`)."""
    part = _Part()
    part.inputs["rgb"], twice = stems(list_files(top), top)
    part.strays += [("duplicate-stem", f) for f in twice]
    if alone:
        return part
    for folder in sorted(d for d in parent.iterdir() if d.is_dir() and d.name not in IMAGES):
        where = folder / split
        head = _head_of(folder.name, part)
        if not where.is_dir() or not (head or pictures(where)):
            continue
        if head:
            part.labels[head] = _paired(part, where, head)
        else:
            part.inputs[folder.name] = stems(list_files(where), where)[0]
    if "semantic" in part.labels:
        part.labels = {"semantic": part.labels.pop("semantic"), **part.labels}
    return part


def _head_of(name: str, part: _Part) -> str:
    """The head whose labels a folder of this name holds; "" for none."""
    if name in LABELS and "semantic" not in part.labels:
        return "semantic"
    return next((name[len(n) + 1 :] for n in LABELS if name.startswith(n + "-") and len(name) > len(n) + 1), "")


def _paired(part: _Part, folder: Path, head: str) -> dict[str, Path]:
    """stem -> label file, by the same stem, or with one ending such as _mask; strays are noted."""
    rgb, files = part.inputs["rgb"], list_files(folder)
    found, twice = stems(files, folder)
    if found and not rgb.keys() & found.keys():
        best = max(_LABEL_SUFFIXES, key=lambda s: len(rgb.keys() & stems(files, folder, s)[0].keys()))
        ended, twice_ended = stems(files, folder, best)
        if rgb.keys() & ended.keys():
            found, twice = ended, twice_ended
            part.notes.append(f"{printable(folder.name)}/ pairs by the names without {best!r}.")
    part.strays += [("duplicate-stem", f) for f in twice]
    part.strays += [("label-without-image", f) for stem, f in found.items() if stem not in rgb]
    return {stem: f for stem, f in found.items() if stem in rgb}


# ---- lists -----------------------------------------------------------------------------------------------------


def _listed_part(root: Path, top: Path, file: Path) -> _Part:
    """A list beside images/: names (with or without suffix and folder) of the pictures of one split, or pairs."""
    rows = read_table(file)
    if any(row.get("label") for row in rows):
        return _rows_part(root, rows, file)
    whole = _read_part(root, top, "")
    rgb = whole.inputs["rgb"]
    chosen = [_stem_in(rgb, row["image"], top, file) for row in rows]
    keep = set(chosen)
    part = _Part(
        {m: {s: f for s, f in files.items() if s in keep} for m, files in whole.inputs.items()},
        {h: {s: f for s, f in files.items() if s in keep} for h, files in whole.labels.items()},
        {},
        [("duplicate-stem", f) for kind, f in whole.strays if kind == "duplicate-stem"],
        whole.notes,
    )
    if len(keep) < len(chosen):
        part.notes.append(
            f"{printable(file.name)} lists {len(chosen) - len(keep)} pictures more than once; each counts once."
        )
    return part


def _stem_in(rgb: Mapping[str, Path], entry: str, top: Path, file: Path) -> str:
    path = Path(entry)
    plain = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    for stem in (plain.as_posix(), *(Path(*plain.parts[i:]).as_posix() for i in range(1, len(plain.parts)))):
        if stem in rgb:
            return stem
    raise MissingInput(
        f"{printable(file)} lists {printable(entry)!r}, which is not in {printable(top)}; correct the list."
    )


def _listed_parts(file: Path) -> dict[str, _Part]:
    """A list file as the data set: rows "image, label" and, with a header, split, group and further columns."""
    rows = read_table(file)
    if not rows:
        raise DataError(f"{printable(file)} lists nothing; write one row a picture: image,label.")
    splits = dict.fromkeys(row.get("split", "") for row in rows)
    return {s: _rows_part(file.parent, [r for r in rows if r.get("split", "") == s], file) for s in splits}


def _rows_part(root: Path, rows: Sequence[Mapping[str, str]], file: Path) -> _Part:
    part = _Part({"rgb": {}})
    for row in rows:
        path = _listed_file(root, row.get("image", ""), file)
        inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        stem = inside.with_suffix("").as_posix()
        if stem in part.inputs["rgb"]:
            part.strays.append(("duplicate-stem", path))
            continue
        part.inputs["rgb"][stem] = path
        part.groups[stem] = row.get("group", "")
        for column, value in row.items():
            if not value or column in ("image", "split", "group"):
                continue
            head = (
                "semantic"
                if column in LABELS
                else next((column[len(n) + 1 :] for n in LABELS if column.startswith(n + "-")), "")
            )
            into = part.labels.setdefault(head, {}) if head else part.inputs.setdefault(column, {})
            into[stem] = _listed_file(root, value, file)
    return part


def _listed_file(root: Path, entry: str, file: Path) -> Path:
    """A listed path, relative to the list's folder; leading folders of another machine are left out if that helps."""
    if not entry:
        raise DataError(f"{printable(file)} has a row without an image; write image,label.")
    path = Path(entry)
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for candidate in (root / path, *(root.joinpath(*parts[i:]) for i in range(len(parts)))):
        if candidate.exists():
            return candidate
    raise MissingInput(
        f"{printable(file)} lists {printable(entry)!r}, which is not below {printable(root)}; correct the list."
    )


# ---- classes ---------------------------------------------------------------------------------------------------


def _codings(root: Path, parts: Mapping[str, _Part], chosen: Sequence[str]) -> tuple[dict[str, Coding], list[str]]:
    """The coding of every head: from its classes file, else from all labels of all splits."""
    codings: dict[str, Coding] = {}
    notes: list[str] = []
    heads = list(dict.fromkeys(h for s in chosen for h, files in parts[s].labels.items() if files))
    for head in heads:
        suffix = "" if head == "semantic" else f"-{head}"
        places = [root, *(root / s for s in chosen), *(root / n for n in LABELS)]
        file = next((p / c.format(suffix) for c in CLASSES for p in places if (p / c.format(suffix)).is_file()), None)
        if file is None:
            labels = [f for part in parts.values() for f in part.labels.get(head, {}).values()]
            codings[head], said = infer_coding(labels, head)
            notes += said
        else:
            codings[head], said = _with_class_file(
                read_classes(file), file, [f for s in chosen for f in parts[s].labels[head].values()]
            )
            notes += said
    return codings, notes


def _with_class_file(coding: Coding, file: Path, labels: Sequence[Path]) -> tuple[Coding, tuple[str, ...]]:
    """A colour table is for colour labels; beside index labels it is their palette alone."""
    if not coding.colours:
        return coding, ()
    for label in labels[:8]:
        try:
            if np.ndim(images.read_label(label, colours=True)) == 3:
                return coding, (f"the labels are colour-coded by {printable(file.name)}.",)
        except FullyconvError:
            continue
    return Coding(coding.taxonomy, coding.values), ()
