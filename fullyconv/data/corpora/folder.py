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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding, read_coded
from fullyconv.data.corpora.folder_classes import head_coding
from fullyconv.data.corpora.folder_lists import listed_parts, parts_by_lists
from fullyconv.data.corpora.folder_parts import (
    IMAGES,
    LABELS,
    Part,
    alone_parts,
    coupled_part,
    images_of,
    named,
    read_part,
    unused,
)
from fullyconv.data.corpora.layout import SUFFIXES, choose_split, holds_images, is_split, looked_at, merge_splits
from fullyconv.data.corpora.pairing import couples
from fullyconv.errors import DataError, printable

__all__ = ["open_folder", "read_modality", "recognise"]


def recognise(root: Path) -> bool:
    """Whether `root` is laid out as one of the folders above."""
    if root.is_file():
        return root.suffix.lower() in (".csv", ".tsv", ".txt")
    return bool(images_of(root) or _split_folders(root) or couples(root, IMAGES, LABELS)) or holds_images(root, 4)


def open_folder(root: Path, split: str | None = None, *, bands: bool | None = None) -> Dataset:
    """The data set below `root` (or listed in the file `root`).

    bands   read the images by all their bands as stored, not as RGB; None decides by the first image.

    Raises DataError (no images, unreadable lists or classes), UnknownName (split).
    """
    root = Path(root)
    base, parts = listed_parts(root) if root.is_file() else (root, _folder_parts(root))
    chosen = choose_split(list(parts), split, root)
    name, record_name = merge_splits(chosen)
    records = [r for s in chosen for r in _records(parts[s], s, record_name)]
    if not records:
        where = f"The split {name!r} of {printable(root)}" if name else printable(root)
        raise DataError(f"{where} holds no images ({looked_at(root)}); put them into images/, or correct the list.")
    codings, notes = _codings(base, parts, chosen)
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
        strays=tuple(stray for s in chosen for stray in parts[s].strays),
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


def _records(part: Part, split: str, record_name: Any) -> list[Record]:
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


def _split_folders(root: Path) -> list[str]:
    return sorted(d.name for d in root.iterdir() if d.is_dir() and d.name.lower() not in LABELS and images_of(d))


def _folder_parts(root: Path) -> dict[str, Part]:
    parts, notes = _laid_out(root)
    notes += [note] if (note := unused(root, parts.values())) else []
    for part in parts.values():
        part.notes += notes
    return parts


def _laid_out(root: Path) -> tuple[dict[str, Part], list[str]]:
    """The parts of a folder, and notes of the whole."""
    top = images_of(root)
    if top is not None:
        splits = _splits_below(root, top)
        whole = read_part(root, top, "")
        parts, notes = parts_by_lists(root, top, whole, splits != [""])
        if not parts:
            parts = {s: read_part(root, top / s, s) for s in splits} if splits != [""] else {"": whole}
        return parts, notes
    parts = {s: read_part(root / s, images_of(root / s) or root, "") for s in _split_folders(root)}
    parts |= {s: coupled_part(*folders) for s, folders in couples(root, IMAGES, LABELS).items() if s not in parts}
    if parts:
        for folder in sorted(d for d in root.iterdir() if d.is_dir() and is_split(d.name) and d.name not in parts):
            if holds_images(folder) and not any(folder in (f, *f.parents) for p in parts.values() for f in p.files()):
                parts |= {f"{folder.name}/{s}" if s else folder.name: p for s, p in alone_parts(folder).items()}
        return parts, []
    if inner := _only_folder(root):
        parts, notes = _laid_out(inner)
        if set(parts) != {""} or parts[""].labels:
            return parts, notes
    parts = alone_parts(root)
    if set(parts) != {""}:
        return parts, []
    listed, notes = parts_by_lists(root, root, parts[""], folders=False)
    return listed or parts, notes


def _only_folder(root: Path) -> Path | None:
    """The one folder in `root` that everything lies in, as an archive unpacks."""
    if any(p.suffix.lower() in SUFFIXES and not p.name.startswith(".") for p in root.iterdir()):
        return None
    inner = [d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".") and holds_images(d, 4)]
    return inner[0] if len(inner) == 1 and not is_split(inner[0].name) and not inner[0].is_symlink() else None


def _splits_below(root: Path, top: Path) -> list[str]:
    """The folders of `top` that are splits; "" where it is one whole."""
    below = [d.name for d in sorted(top.iterdir()) if d.is_dir() and not d.name.startswith(".")]
    splits = [s for s in below if is_split(s)]
    if splits:
        return splits
    label = named(root, LABELS)
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
        codings[head], said = head_coding(head, _places(root, parts, every), here, every)
        notes += said
    return codings, notes


def _places(root: Path, parts: Mapping[str, Part], labels: Sequence[Path]) -> list[Path]:
    """Where tables of classes may lie: the root, the splits' folders, and the folders of labels up to the root."""
    places = [root, *(root / s for s in parts if s)]
    for folder in dict.fromkeys(f.parent for f in labels):
        places += [p for p in (folder, *folder.parents) if p != root and p.is_relative_to(root)]
    return list(dict.fromkeys(places))
