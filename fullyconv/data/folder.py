"""The user's own data: pictures and label maps of the same names in folders, or lists of both. docs/data.md draws it.

    ROOT/SPLIT/images + ROOT/SPLIT/labels      every split in a folder of its own
    ROOT/images/SPLIT + ROOT/labels/SPLIT      splits below images/ and labels/
    ROOT/SPLIT_images + ROOT/SPLIT_labels      (or SPLIT + SPLIT_labels)
    ROOT/images + ROOT/labels [+ SPLIT.txt]    one set, or splits by list files
    LIST.csv, LIST.txt                         rows "image, label[, split, group, depth, ...]"
    ROOT                                       X.jpg beside X.png or X_mask.png; or pictures alone, for prediction

Beside images/ and labels/ (or Images/, masks/, ...): `labels-NAME/` is a second label map (head NAME), `depth/`,
`hha/` and any other folder of pictures a further input. `classes.txt` (`classes-NAME.txt` for head NAME) lies in ROOT
or in labels/.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
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
    paths_meant,
    pictures,
    read_table,
    role,
    stems,
)
from fullyconv.data.pairing import beside, couples, pair
from fullyconv.errors import DataError, FullyconvError, MissingInput, printable
from fullyconv.files.outputs import name_fault, safe_name

__all__ = ["open_folder", "read_modality", "recognise"]

IMAGES = ("images", "image", "imgs", "img", "rgb", "jpegimages")
LABELS = ("labels", "label", "masks", "mask", "annotations", "annotation", "gt", "segmentationclass")
CLASSES = ("classes{}.txt", "classes{}.csv", "labelmap{}.txt", "class_dict{}.csv", "label_colors{}.txt")
# What may be a picture or a label to its owner and is not read: it is named, not passed over.
UNREAD = (
    *(".gif", ".npy", ".npz", ".mat", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".ppm", ".pgm", ".dng"),
    *(".exr", ".dcm", ".nii", ".gz", ".svg"),
)


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
    return bool(_images_of(root) or _split_folders(root) or couples(root, IMAGES, LABELS)) or pictures(root)


def open_folder(root: Path, split: str | None = None, *, bands: bool | None = None) -> Dataset:
    """The data set below `root` (or listed in the file `root`).

    bands   read the pictures by all their bands as stored, not as RGB; None decides by the first picture.

    Raises DataError (no pictures, unreadable lists or classes), UnknownName (split).
    """
    root = Path(root)
    base, parts = _listed_parts(root) if root.is_file() else (root, _folder_parts(root))
    chosen = choose_split(list(parts), split, root)
    name, record_name = merge_splits(chosen)
    records = [r for s in chosen for r in _records(parts[s], s, record_name)]
    if not records:
        where = f"The split {name!r} of {printable(root)}" if name else printable(root)
        raise DataError(f"{where} holds no pictures ({looked_at(root)}); put them into images/, or correct the list.")
    codings, notes = _codings(base, parts, chosen)
    main, records = _main_input(records, bands)
    if main == "bands" and bands is None:
        notes.append("the pictures are more than colour: they are read by their bands, as stored.")
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
    return _first(folder, IMAGES)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` that has the first of `names`, in small or capital letters."""
    there = {d.name.lower(): d for d in sorted(folder.iterdir()) if d.is_dir()}
    return next((there[n] for n in names if n in there), None)


def _split_folders(root: Path) -> list[str]:
    return sorted(d.name for d in root.iterdir() if d.is_dir() and d.name.lower() not in LABELS and _images_of(d))


def _folder_parts(root: Path) -> dict[str, _Part]:
    top = _images_of(root)
    if top is None:
        splits = _split_folders(root)
        if splits:
            return {s: _read_part(root / s, _images_of(root / s) or root, "") for s in splits}
        if pairs := couples(root, IMAGES, LABELS):
            return {s: _coupled_part(*folders) for s, folders in pairs.items()}
        return {"": _alone_part(root)}
    lists, notes = _lists(root, top)
    if lists:
        parts = {s: _listed_part(root, top, p, rows) for p in lists for s, rows in _split_rows(p).items()}
    else:
        parts = {s: _read_part(root, top / s, s) for s in _splits_below(root, top)}
    for part in parts.values():
        part.notes += notes
    return parts


def _splits_below(root: Path, top: Path) -> list[str]:
    """The folders of `top` that are splits; "" where it is one whole."""
    below = [d.name for d in sorted(top.iterdir()) if d.is_dir() and not d.name.startswith(".")]
    label = _first(root, LABELS)
    splits = [s for s in below if role(s) in _ROLES or (label and (label / s).is_dir())]
    loose = any(p.suffix.lower() in SUFFIXES for p in top.iterdir())
    return splits if splits and not loose else [""]


_ROLES = ("train", "val", "test", "trainval")


def _lists(root: Path, top: Path) -> tuple[list[Path], list[str]]:
    """The list files beside images/, and a note of each other text that may have been meant as one."""
    lists, notes = [], []
    for file in sorted(p for p in (*root.glob("*.txt"), *root.glob("*.csv")) if _is_split_list(p)):
        if role(file.stem) in _ROLES or _names_pictures(root, top, file):
            lists.append(file)
        else:
            notes.append(f"{printable(file.name)} does not begin with the name of a picture: it is no list of a split.")
    return lists, notes


def _names_pictures(root: Path, top: Path, file: Path) -> bool:
    """Whether the first entry of a text file is a picture of the set."""
    try:
        entry = read_table(file)[0].get("image", "")
        if any((root / p).is_file() for p in paths_meant(entry)):
            return True
        return _stem_in(stems(list_files(top), top)[0], entry) is not None
    except (FullyconvError, IndexError, OSError):
        return False


def _is_split_list(file: Path) -> bool:
    return not any(file.match(c.format("*")) for c in CLASSES) and not file.stem.lower().startswith(
        ("readme", "license", "licence", "source", "notes")
    )


def _coupled_part(top: Path, labels: Path) -> _Part:
    part = _Part()
    _read_pictures(part, top)
    part.labels["semantic"] = _paired(part, labels, "semantic")
    return part


def _alone_part(root: Path) -> _Part:
    """A folder of pictures, or of pictures and their labels."""
    part = _Part()
    if both := beside(root):
        part.inputs["rgb"], part.labels["semantic"] = both
        part.notes.append(both[1].note)
    else:
        _read_pictures(part, root)
    return part


def _read_pictures(part: _Part, top: Path) -> None:
    part.inputs["rgb"] = _stems(part, top)


def _stems(part: _Part, folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their stems; files that are named like others, or not read, are noted."""
    files = list_files(folder, (*SUFFIXES, *UNREAD))
    found, twice = stems([f for f in files if f.suffix.lower() in SUFFIXES], folder)
    part.strays += [("duplicate-stem", f) for f in twice]
    part.strays += [("unread-file", f) for f in files if f.suffix.lower() not in SUFFIXES]
    return found


def _read_part(parent: Path, top: Path, split: str) -> _Part:
    """One split: pictures in `top`, labels and further inputs in the folders of `parent` (below `split`)."""
    part = _Part()
    _read_pictures(part, top)
    for folder in sorted(d for d in parent.iterdir() if d.is_dir() and d.name.lower() not in IMAGES):
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
    if name.lower() in LABELS and "semantic" not in part.labels:
        return "semantic"
    return next((name[len(n) + 1 :] for n in LABELS if name.lower().startswith(n + "-") and len(name) > len(n) + 1), "")


def _paired(part: _Part, folder: Path, head: str) -> dict[str, Path]:
    """stem -> label file; labels of no picture are noted."""
    found = _stems(part, folder)
    pairs = pair(part.inputs["rgb"], found, printable(folder.name))
    part.notes += [pairs.note] if pairs.note else []
    used = set(pairs.values())
    part.strays += [("label-without-image", f) for f in found.values() if f not in used]
    return pairs


# ---- lists -----------------------------------------------------------------------------------------------------


def _split_rows(file: Path) -> dict[str, list[dict[str, str]]]:
    """A list's rows by its column split, else all by the list's name."""
    rows = read_table(file)
    if not any("split" in row for row in rows):
        return {file.stem: rows}
    return {s: [r for r in rows if r.get("split", "") == s] for s in dict.fromkeys(r.get("split", "") for r in rows)}


def _listed_part(root: Path, top: Path, file: Path, rows: Sequence[dict[str, str]]) -> _Part:
    """A list beside images/: names (with or without suffix and folder) of the pictures of one split, or pairs."""
    if any(row.get("label") for row in rows):
        rows, notes = _file_columns(rows)
        part = _rows_part(root, rows, file)
        part.notes += notes
        return part
    whole = _read_part(root, top, "")
    rgb = whole.inputs["rgb"]
    chosen = _stems_of(rgb, [row.get("image", "") for row in rows], top, file)
    keep = set(chosen)
    part = _Part(
        {m: {s: f for s, f in files.items() if s in keep} for m, files in whole.inputs.items()},
        {h: {s: f for s, f in files.items() if s in keep} for h, files in whole.labels.items()},
        {stem: row.get("group", "") for stem, row in zip(chosen, rows, strict=True)},
        [(kind, f) for kind, f in whole.strays if kind != "label-without-image"],  # it may be another split's
        whole.notes,
    )
    if len(keep) < len(chosen):
        part.notes.append(
            f"{printable(file.name)} lists {len(chosen) - len(keep)} pictures more than once; each counts once."
        )
    return part


def _stems_of(rgb: Mapping[str, Path], entries: Sequence[str], top: Path, file: Path) -> list[str]:
    """The stem in `rgb` of every entry; MissingInput for all at once that have none."""
    found = [(entry, _stem_in(rgb, entry)) for entry in entries]
    missing = [repr(printable(entry)) for entry, stem in found if stem is None]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        are = "is" if len(missing) == 1 else "are"
        raise MissingInput(
            f"{printable(file)} lists {', '.join(missing[:5])}{rest}, which {are} not in {printable(top)}; "
            "correct the list."
        )
    return [stem for _, stem in found if stem is not None]


def _stem_in(rgb: Mapping[str, Path], entry: str) -> str | None:
    for path in paths_meant(unicodedata.normalize("NFC", entry)):
        plain = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
        for stem in (plain.as_posix(), *(Path(*plain.parts[i:]).as_posix() for i in range(1, len(plain.parts)))):
            if stem in rgb:
                return stem
    return None


def _listed_parts(file: Path) -> tuple[Path, dict[str, _Part]]:
    """A list file as the data set: rows "image, label" and, with a header, split, group and further columns.

    Also the folder that its paths start from: the list's own, or the one around it (lists/train.txt).
    """
    rows = read_table(file)
    if not rows:
        raise DataError(f"{printable(file)} lists nothing; write one row a picture: image,label.")
    splits = _split_rows(file)
    around = (file.parent, file.parent.parent)
    root = next((r for r in around for p in paths_meant(rows[0].get("image", "")) if (r / p).is_file()), file.parent)
    _, notes = _file_columns(rows)
    whole = len(splits) == 1 and file.stem in splits
    parts = {"" if whole else s: _rows_part(root, _file_columns(part)[0], file) for s, part in splits.items()}
    for part in parts.values():
        part.notes += notes
    return root, parts


def _file_columns(rows: Sequence[dict[str, str]]) -> tuple[list[dict[str, str]], list[str]]:
    """`rows` without the columns that name no files (numbers, remarks), and a note of each."""
    known = ("image", "split", "group", *LABELS)
    others = [c for c in rows[0] if c not in known and not any(r.get(c, "").lower().endswith(SUFFIXES) for r in rows)]
    notes = [f"the column {printable(c)!r} names no pictures: it is left out." for c in others]
    return [{c: v for c, v in row.items() if c not in others} for row in rows], notes


def _rows_part(root: Path, rows: Sequence[Mapping[str, str]], file: Path) -> _Part:
    part, names = _Part({"rgb": {}}), _ListedNames(root)
    for row in rows:
        path = _listed_file(root, row.get("image", ""), file)
        stem = names.of(path)
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


@final
class _ListedNames:
    """Names of listed pictures: the path without suffix from the list's folder on. What leads out of it (`..`, the
    root) is left out, and then a name that another picture has gets a number: ../a/x and ../../a/x are a/x and a/x-2.
    Outputs are named so, below their own folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()
        self._outside: dict[str, str] = {}  # real path -> name

    def of(self, path: Path) -> str:
        below = path.is_relative_to(self._root)
        stem = (path.relative_to(self._root) if below else Path(path.name)).with_suffix("").as_posix()
        if below and not name_fault(stem):
            self._taken.add(stem)
            return stem
        real = os.path.realpath(path)
        if real not in self._outside:
            self._outside[real] = self._free(safe_name(stem))
        return self._outside[real]

    def _free(self, plain: str) -> str:
        name = plain
        while name in self._taken:
            self._numbers[plain] += 1
            name = f"{plain}-{self._numbers[plain] + 1}"
        self._taken.add(name)
        return name


def _listed_file(root: Path, entry: str, file: Path) -> Path:
    """A listed path, relative to the list's folder; leading folders of another machine are left out if that helps."""
    if not entry:
        raise DataError(f"{printable(file)} has a row without an image; write image,label.")
    for path in paths_meant(entry):
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
        places = [root, *(root / s for s in chosen), *([found] if (found := _first(root, LABELS)) else [])]
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
