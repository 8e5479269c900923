"""Lists of images: which of a folder's are of which split, or tables of images and labels of their own."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

from fullyconv.data.corpora.class_tables import table_rank
from fullyconv.data.corpora.folder_parts import Part
from fullyconv.data.corpora.folder_roles import IMAGES, LABELS, plain_name
from fullyconv.data.corpora.layout import SUFFIXES, is_split, paths_meant, read_table
from fullyconv.errors import DataError, FullyconvError, MissingInput, UnknownName, printable
from fullyconv.files.outputs import name_fault, safe_name

__all__ = ["listed_parts", "parts_by_lists"]

_PLACES = ("", "splits", "split", "lists", "list", "ImageSets/Segmentation", "ImageSets/Main", "ImageSets", "sets")


def parts_by_lists(
    root: Path, top: Path, whole: Part, folders: bool, fold: str | None = None
) -> tuple[dict[str, Part], list[str]]:
    """{split: part} of `whole` by the lists beside it (those of `fold`, if one is given), {} where there are none, and
    notes of what is not used.

    folders   the splits are folders: lists that name images otherwise are left out, not refused.
    """
    found, notes = _lists(root, whole)
    table = next((p for p in found if _fold_column(read_table(p))), None)
    if fold is not None and table is None:
        found, notes = _fold_lists(root, fold), []
    try:
        if table is not None:
            listed, remarks = _by_fold_column(table, fold, root)
            return {s: _listed_part(root, top, table, rows, whole) for s, rows in listed.items()}, notes + remarks
        parts = {s: _listed_part(root, top, p, rows, whole) for p in found for s, rows in _split_rows(p).items()}
    except (MissingInput, DataError) as error:
        if not folders:
            raise
        return {}, [*notes, f"the splits are folders, and the lists beside them are not used: {error}"]
    return parts, notes


def _lists(root: Path, whole: Part) -> tuple[list[Path], list[str]]:
    """The lists of the first place that has some, and a note of every other text that may have been meant as one."""
    lists: list[Path] = []
    notes: list[str] = []
    for place in _PLACES:
        folder = root / place
        files = _texts(folder)
        good: list[Path] = []
        for file in (f for f in files if not f.is_dir() and _may_be_list(f)):
            if not file.is_file() and not is_split(file.stem):
                notes.append(f"{printable(file.name)} is a broken link, a pipe or a device: it is not read.")
            elif is_split(file.stem) or _names_images(root, file, whole):
                good.append(file)
            elif not place:
                notes.append(
                    f"{printable(file.name)} does not begin with the name of an image: it is no list of a split."
                )
        if good and lists:
            notes.append(_not_used(good, root))
        lists = lists or good
    notes += _elsewhere(root, whole)
    if folds := _folds(root):
        shown = ", ".join(map(printable, list(folds)[:4])) + (" ..." if len(folds) > 4 else "")
        notes.append(
            f"lists of splits that are not used: those of {len(folds)} folds ({shown}); choose one with "
            f"folder,fold={printable(next(iter(folds)))}:{printable(root)}"
        )
    return lists, notes


_ENDINGS = ("*.txt", "*.csv", "*.tsv", "*.lst")


def _texts(folder: Path) -> list[Path]:
    return sorted(f for e in _ENDINGS for f in folder.glob(e)) if folder.is_dir() else []


def _elsewhere(root: Path, whole: Part) -> list[str]:
    """Notes of the lists in folders where none are looked for (kfold/train_fold0.txt); a few texts of each are read."""
    known = {(root / p).resolve() for p in _PLACES}
    found: list[Path] = []
    for folder in sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")):
        if folder.resolve() not in known and not _has_role(folder) and not is_split(folder.name):
            texts = [f for f in _texts(folder)[:20] if f.is_file() and _may_be_list(f)]
            found += [f for f in texts if _names_images(root, f, whole)]
    return [_not_used(found, root)] if found else []


def _fold_column(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The folds of a table with a column of them and none of splits."""
    if not rows or "fold" not in rows[0] or "split" in rows[0]:
        return []
    return sorted({row.get("fold", "") for row in rows}, key=lambda f: (len(f), f))


def _by_fold_column(file: Path, fold: str | None, root: Path) -> tuple[dict[str, list[dict[str, str]]], list[str]]:
    """{"val": rows of the fold, "train": the others}; all as one where no fold is chosen, which a note says."""
    rows = read_table(file)
    folds = _fold_column(rows)
    if fold is None:
        shown = ", ".join(map(printable, folds[:4])) + (" ..." if len(folds) > 4 else "")
        note = f"the column fold of {printable(file.name)} is not used ({shown}); measure on one of them with "
        return {"": rows}, [note + f"folder,fold={printable(folds[0])}:{printable(root)}"]
    if fold not in folds:
        raise UnknownName("fold", fold, folds)
    return {
        "train": [r for r in rows if r.get("fold", "") != fold],
        "val": [r for r in rows if r.get("fold", "") == fold],
    }, []


def _folds(root: Path) -> dict[str, list[Path]]:
    """The lists of splits that lie in a folder of their own (splits/fold0/train.txt), by its name."""
    found: dict[str, list[Path]] = {}
    for place in _PLACES[:5]:
        for ending in _ENDINGS:
            for file in sorted((root / place).glob(f"*/{ending}")):
                if is_split(file.stem) and (place or is_split(file.parent.name)) and not _has_role(file.parent):
                    found.setdefault(file.parent.name, []).append(file)
    return dict(sorted(found.items()))


def _fold_lists(root: Path, fold: str) -> list[Path]:
    folds = _folds(root)
    if fold not in folds and (
        near := [name for name in folds if name.lower().strip("fold_- ") == fold.strip("fold_- ")]
    ):
        fold = near[0]  # fold=0 for fold0
    if fold not in folds:
        raise UnknownName("fold", fold, list(folds))
    return folds[fold]


def _has_role(folder: Path) -> bool:
    """Whether a folder is named as one of images, labels or lists."""
    return plain_name(folder.name) in (*IMAGES, *LABELS) or folder.name in _PLACES


def _not_used(files: Sequence[Path], root: Path) -> str:
    first = printable(files[0].relative_to(root))
    return (
        f"lists of splits that are not used: {len(files)} ({first}); give one as the data, or copy them beside images/."
    )


def _may_be_list(file: Path) -> bool:
    """Not a table of classes (unless it lists images), and not what its name says is prose."""
    prose = ("readme", "license", "licence", "source", "notes")
    return not file.stem.lower().startswith(prose) and (table_rank(file) is None or lists_files(file))


def lists_files(file: Path) -> bool:
    """Whether the first entry of a text ends like the name of an image."""
    try:
        rows = read_table(file)
    except FullyconvError:
        return False
    return bool(rows) and rows[0].get("image", "").lower().endswith(SUFFIXES)


def _names_images(root: Path, file: Path, whole: Part) -> bool:
    """Whether the first entry of a text file is an image of the set."""
    try:
        entry = read_table(file)[0].get("image", "")
        if any((root / p).is_file() for p in paths_meant(entry)):
            return True
        return _stem_in(whole.inputs["rgb"], entry) is not None
    except (FullyconvError, IndexError, OSError, ValueError):
        return False


def _split_rows(file: Path) -> dict[str, list[dict[str, str]]]:
    """A list's rows by its column split, else all by the list's name."""
    rows = read_table(file)
    if not any("split" in row for row in rows):
        return {file.stem: rows}
    return {s: [r for r in rows if r.get("split", "") == s] for s in dict.fromkeys(r.get("split", "") for r in rows)}


def _listed_part(root: Path, top: Path, file: Path, rows: Sequence[dict[str, str]], whole: Part) -> Part:
    """A list beside images/: names (with or without suffix and folder) of the images of one split, or pairs."""
    if any(row.get("label") for row in rows):
        rows, notes = _file_columns(rows)
        part = _rows_part(root, rows, file)
        part.notes += notes
        return part
    rgb = whole.inputs["rgb"]
    chosen = _stems_of(rgb, [row.get("image", "") for row in rows], top, file)
    keep = set(chosen)
    part = whole.only(keep)
    part.groups = {stem: row.get("group", "") for stem, row in zip(chosen, rows, strict=True)}
    if len(keep) < len(chosen):
        part.notes.append(
            f"{printable(file.name)} lists {len(chosen) - len(keep)} images more than once; each counts once."
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


def listed_parts(file: Path) -> tuple[Path, dict[str, Part]]:
    """A list file as the data set: rows "image, label" and, with a header, split, group and further columns.

    Also the folder that its paths start from: the list's own, or the one around it (lists/train.txt).
    """
    rows = read_table(file)
    if not rows:
        raise DataError(f"{printable(file)} lists nothing; write one row an image: image,label.")
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
    notes = [f"the column {printable(c)!r} names no images: it is left out." for c in others]
    return [{c: v for c, v in row.items() if c not in others} for row in rows], notes


def _rows_part(root: Path, rows: Sequence[Mapping[str, str]], file: Path) -> Part:
    part, names = Part({"rgb": {}}), _ListedNames(root)
    for row in rows:
        path = _listed_file(root, row.get("image", ""), file)
        stem = names.of(path)
        if stem in part.inputs["rgb"]:
            part.unmatched.append(("duplicate-stem", path))
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
    """Names of listed images: the path without suffix from the list's folder on. What leads out of it (`..`, the
    root) is left out, and then a name that another image has gets a number: ../a/x and ../../a/x are a/x and a/x-2.
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
