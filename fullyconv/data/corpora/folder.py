"""The user's own data: images and label maps of the same names in folders, or lists of both. docs/data.md draws it.

    ROOT/SPLIT/images + ROOT/SPLIT/labels      every split in a folder of its own
    ROOT/images/SPLIT + ROOT/labels/SPLIT      splits below images/ and labels/
    ROOT/SPLIT_images + ROOT/SPLIT_labels      (or SPLIT + SPLIT_labels)
    ROOT/images + ROOT/labels [+ SPLIT.txt]    one set, or splits by list files
    LIST.csv, LIST.txt                         rows "image, label[, split, group, depth, ...]"
    ROOT                                       X.jpg beside X.png or X_mask.png; or images alone, for prediction

Beside images/ and labels/ (or Images/, masks/, ...): `labels-NAME/` is a second label map (head NAME), `depth/`,
`hha/` and any other folder of images a further input. `classes.txt` (`classes-NAME.txt` for head NAME) lies in ROOT
or in labels/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding, read_coded
from fullyconv.data.corpora.folder_classes import head_coding, not_read
from fullyconv.data.corpora.folder_lists import listed_parts, parts_by_lists
from fullyconv.data.corpora.folder_parts import Part, alone_parts, coupled_part, joined, read_part, unused
from fullyconv.data.corpora.folder_roles import IMAGES, LABELS, by_content, images_of, named, sides_of
from fullyconv.data.corpora.layout import (
    SUFFIXES,
    choose_split,
    describe_folder,
    holds_images,
    is_fold,
    is_split,
    merge_splits,
    only_folder,
)
from fullyconv.data.corpora.pairing import couples
from fullyconv.errors import DataError, UnknownName, printable

__all__ = ["open_folder", "read_modality", "recognise"]


def recognise(root: Path) -> bool:
    """Whether `root` is laid out as one of the folders above."""
    if root.is_file():
        return root.suffix.lower() in (".csv", ".tsv", ".txt", ".lst")
    return bool(images_of(root) or couples(root, IMAGES, LABELS)) or holds_images(root, 4)


def open_folder(
    root: Path, split: str | None = None, *, bands: bool | None = None, fold: str | int | None = None
) -> Dataset:
    """The data set below `root` (or listed in the file `root`).

    bands   read the images by all their bands as stored, not as RGB; None decides by the first image.
    fold    which lists are the splits where each fold has its own: "fold0" (or 0) of splits/fold0/train.txt.

    Raises DataError (no images, unreadable lists or classes), UnknownName (split).
    """
    root = Path(root)
    base, parts = listed_parts(root) if root.is_file() else (root, _folder_parts(root, fold))
    chosen = choose_split(list(parts), split, root)
    name, record_name = merge_splits(chosen)
    records = [r for s in chosen for r in _records(parts[s], s, record_name)]
    if not records:
        where = f"The split {name!r} of {printable(root)}" if name else printable(root)
        raise DataError(
            f"{where} holds no images ({describe_folder(root)}); put them into images/, or correct the list."
        )
    codings, notes = _codings(base, parts, chosen)
    notes += [] if root.is_file() else not_read([base, *(base / s for s in chosen if s)])
    main, records = _main_input(records, bands)
    if main == "bands" and bands is None:
        notes.append("the images are more than colour: they are read by their bands, as stored.")
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
        unmatched=tuple(found for s in chosen for found in parts[s].unmatched),
    )


@final
@dataclass(frozen=True)
class _Reader:
    """(record, head) -> ids; a class, so that worker processes can be given it."""

    codings: Mapping[str, Coding]

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        if head not in record.labels:
            raise DataError(f"{printable(record.name)} has no {head} label; add the file or take the image away.")
        return read_coded(record.labels[head], self.codings[head])


def read_modality(record: Record, modality: str) -> NDArray[Any]:
    """A record's input H W C: "rgb" and "hha" as 8-bit colour, anything else by its bands as stored."""
    if modality not in record.inputs:
        raise DataError(f"{printable(record.name)} has no {modality} input; add the file or take the image away.")
    if modality in ("rgb", "hha"):
        return images.read_image(record.inputs[modality])
    from fullyconv.data.corpora.bands import read_bands

    return read_bands(record.inputs[modality])


def _records(part: Part, split: str, record_name: Callable[[str, str], str]) -> list[Record]:
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
    """ "rgb", or "bands" where the images hold more than colour (or `bands` says so)."""
    from fullyconv.data.corpora.bands import is_multiband

    if bands is None:
        files = [r.inputs["rgb"] for r in records]
        bands = any(is_multiband(f) for f in files if f == files[0] or f.suffix.lower() in (".tif", ".tiff"))
    if not bands:
        return "rgb", records
    return "bands", [Record(r.name, {"bands": r.inputs["rgb"], **r.inputs}, r.labels, r.group) for r in records]


# ---- folders ---------------------------------------------------------------------------------------------------


def _folder_parts(root: Path, fold: str | int | None) -> dict[str, Part]:
    parts, notes = _laid_out(root, None if fold is None else str(fold))
    notes += [note] if (note := unused(root, parts.values())) else []
    for part in parts.values():
        part.notes += notes
    return parts


def _laid_out(root: Path, fold: str | None) -> tuple[dict[str, Part], list[str]]:
    """The parts of a folder, and notes of the whole."""
    if found := sides_of(root):
        top, labels, note = found
        splits = _splits_below(root, top, labels)
        whole = read_part(root, top, "", labels)
        parts, notes = parts_by_lists(root, top, whole, splits != [""], fold)
        if not parts:
            parts = {s: read_part(root, top / s, s, labels) for s in splits} if splits != [""] else {"": whole}
        return parts, notes + ([note] if note else [])
    parts = _parts_below(root, fold)
    parts |= {s: coupled_part(*folders) for s, folders in couples(root, IMAGES, LABELS).items() if s not in parts}
    parts = parts or _coupled_by_content(root)
    if parts:
        for folder in sorted(d for d in root.iterdir() if d.is_dir() and is_split(d.name) and d.name not in parts):
            if holds_images(folder) and not any(folder in (f, *f.parents) for p in parts.values() for f in p.files()):
                parts |= {f"{folder.name}/{s}" if s else folder.name: p for s, p in alone_parts(folder).items()}
        return parts, []
    if inner := only_folder(root):
        parts, notes = _laid_out(inner, fold)
        if set(parts) != {""} or parts[""].labels:
            return parts, notes
    parts = alone_parts(root)
    if set(parts) != {""}:
        return parts, []
    listed, notes = parts_by_lists(root, root, parts[""], False, fold)
    return listed or parts, notes


def _parts_below(root: Path, fold: str | None, levels: int = 3) -> dict[str, Part]:
    """Parts of the folders below `root` in which images and labels lie, by the folders named as splits on the way to
    them (else by the first folder): Train/Urban/images and Train/Rural/images are one split."""
    found: dict[str, dict[str, Part]] = {}
    ways = [(at, s) for d in _plain_folders(root) for at in _sided(d, levels) for s in _named_splits(at)]
    for at, split in _of_one_fold(root, ways, fold):
        names = (*at.relative_to(root).parts, *([split] if split else []))
        k = next((k for of in (_is_usual, is_split) for k, n in enumerate(names) if of(n)), 0)
        top, labels, note = sides_of(at) or (at, None, "")
        part = read_part(at, top / split if split else top, split, labels)
        part.notes += [note] if note else []
        found.setdefault(names[k], {})["/".join((*names[:k], *names[k + 1 :]))] = part
    return {split: joined(parts) for split, parts in found.items()}


def _plain_folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith("."))


def _is_usual(name: str) -> bool:
    """Whether a name is that of a split and no fold's."""
    return is_split(name) and not is_fold(name)


def _named_splits(at: Path) -> list[str]:
    """The splits below the images of a folder (fold0/images/train); "" where it is one whole."""
    top, labels, _ = sides_of(at) or (at, None, "")
    return [s for s in _splits_below(at, top, labels) if is_split(s)] or [""]


def _of_one_fold(root: Path, ways: Sequence[tuple[Path, str]], fold: str | None) -> list[tuple[Path, str]]:
    """`ways` to parts, those of one fold where each fold has splits of its own (fold0/train, fold0/val)."""
    folds: dict[str, list[tuple[Path, str]]] = {}
    for at, split in ways:
        names = (*at.relative_to(root).parts, split)
        if any(map(_is_usual, names)) and (name := next(filter(is_fold, names), "")):
            folds.setdefault(name, []).append((at, split))
    if not folds:
        return list(ways)
    if fold is None:
        shown = ", ".join(map(printable, list(folds)[:4])) + (" ..." if len(folds) > 4 else "")
        raise DataError(
            f"{printable(root)} holds {len(folds)} folds with splits of their own ({shown}); choose one, as in "
            f"folder,fold={printable(next(iter(folds)))}:{printable(root)}."
        )
    chosen = next((n for n in folds if n == fold or n.lower().strip("fold_- ") == fold.strip("fold_- ")), None)
    if chosen is None:
        raise UnknownName("fold", fold, list(folds))
    return folds[chosen]


def _sided(folder: Path, levels: int) -> list[Path]:
    """The folders at or below `folder` that hold images and labels in folders of their own."""
    if folder.name.lower() in LABELS or folder.is_symlink():
        return []
    if sides_of(folder):
        return [folder]
    below = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    return [found for d in below for found in _sided(d, levels - 1)] if levels > 1 else []


def _coupled_by_content(root: Path) -> dict[str, Part]:
    """Splits of pairs such as trainA/ and trainB/, told by what they hold."""
    sides = {_split_in(s[0].name): s for s in by_content(root)}
    return {} if "" in sides else {split: _noted(coupled_part(*s), s.note) for split, s in sides.items()}


def _noted(part: Part, note: str) -> Part:
    part.notes.append(note)
    return part


def _split_in(name: str) -> str:
    """The split that a name begins or ends with; "" for none."""
    cuts = [name[:k] for k in range(len(name), 2, -1)] + [name[k:] for k in range(1, len(name) - 2)]
    return next((c for c in cuts if is_split(c)), "")


def _splits_below(root: Path, top: Path, labels: Path | None) -> list[str]:
    """The folders of `top` that are splits; "" where it is one whole."""
    below = [d.name for d in sorted(top.iterdir()) if d.is_dir() and not d.name.startswith(".")]
    splits = [s for s in below if is_split(s)]
    if splits:
        return splits
    label = labels or named(root, LABELS)
    loose = any(p.suffix.lower() in SUFFIXES for p in top.iterdir())
    return [s for s in below if label and (label / s).is_dir() and not loose] or [""]


# ---- classes ---------------------------------------------------------------------------------------------------


def _codings(root: Path, parts: Mapping[str, Part], chosen: Sequence[str]) -> tuple[dict[str, Coding], list[str]]:
    """The coding of every head: from a table of its classes, else from all labels of all splits."""
    codings: dict[str, Coding] = {}
    notes: list[str] = []
    for head in dict.fromkeys(h for s in chosen for h, files in parts[s].labels.items() if files):
        here = [f for s in chosen for f in parts[s].labels.get(head, {}).values()]
        every = [f for part in parts.values() for f in part.labels.get(head, {}).values()]
        codings[head], remarks = head_coding(head, _places(root, parts, every), here, every)
        notes += remarks
    return codings, notes


def _places(root: Path, parts: Mapping[str, Part], labels: Sequence[Path]) -> list[Path]:
    """Where tables of classes may lie: the root, the splits' folders, and the folders of labels up to the root."""
    places = [root, *(root / s for s in parts if s)]
    for folder in dict.fromkeys(f.parent for f in labels):
        places += [p for p in (folder, *folder.parents) if p != root and p.is_relative_to(root)]
    return list(dict.fromkeys(places))
