"""What one split of a folder holds: images, labels and further inputs, paired by name; what is left out is said."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fullyconv.data.corpora.class_tables import table_rank
from fullyconv.data.corpora.foreign import is_map
from fullyconv.data.corpora.layout import SUFFIXES, LeftOut, holds_images, is_split, list_files, stems
from fullyconv.data.corpora.pairing import beside, couples, pair
from fullyconv.errors import printable

__all__ = [
    "LABELS",
    "Part",
    "alone_parts",
    "coupled_part",
    "images_of",
    "label_maps",
    "named",
    "read_part",
    "unused",
]

IMAGES = ("images", "image", "imgs", "img", "rgb", "jpegimages", "pictures", "photos")
LABELS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annot", "gt", "segmentationclass"),
    *("segmentationclasspng", "segmentations", "segmentation", "groundtruth", "ground_truth", "segmaps", "seg"),
)
# What may be an image or a label to its owner and is not read: it is named, not passed over.
UNREAD = (
    *(".gif", ".npy", ".npz", ".mat", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".tga", ".ppm", ".pgm", ".dng"),
    *(".exr", ".dcm", ".nii", ".gz", ".svg"),
)
# Folders of images made of labels to be looked at, or of other labels: neither inputs nor labels.
_SHOWN = ("visuali", "overlay", "preview", "instance", "segmentationobject", "blend", "thumb")


@final
@dataclass
class Part:
    """What one split holds: stem -> file by modality and by head; a group by stem where a list gives one."""

    inputs: dict[str, dict[str, Path]] = field(default_factory=dict)
    labels: dict[str, dict[str, Path]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    strays: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def only(self, keep: set[str]) -> Part:
        """The part with these stems alone; labels without an image may belong to another."""
        return Part(
            {m: {s: f for s, f in files.items() if s in keep} for m, files in self.inputs.items()},
            {h: {s: f for s, f in files.items() if s in keep} for h, files in self.labels.items()},
            {s: g for s, g in self.groups.items() if s in keep},
            [(kind, f) for kind, f in self.strays if kind != "label-without-image"],
            list(self.notes),
        )

    def files(self) -> set[Path]:
        """Every file that the part takes, or names as a stray."""
        taken = [f for files in (*self.inputs.values(), *self.labels.values()) for f in files.values()]
        return {*taken, *(f for _, f in self.strays)}


def named(folder: Path, names: Sequence[str]) -> Path | None:
    """The folder in `folder` that has the first of `names`, in small or capital letters."""
    there = {d.name.lower(): d for d in sorted(folder.iterdir()) if d.is_dir()}
    return next((there[n] for n in names if n in there), None)


def images_of(folder: Path) -> Path | None:
    return named(folder, IMAGES)


def read_part(parent: Path, top: Path, split: str) -> Part:
    """One split: images in `top`, labels and further inputs in the folders of `parent` (below `split`)."""
    part = Part()
    part.inputs["rgb"] = _stems(part, top)
    heads: dict[str, list[Path]] = {}
    for folder in sorted(d for d in parent.iterdir() if d.is_dir() and d.name.lower() not in IMAGES):
        where = folder / split
        if not where.is_dir() or folder.name.startswith(".") or any(w in folder.name.lower() for w in _SHOWN):
            continue
        if head := _head_of(folder.name):
            heads.setdefault(head, []).append(where)
        elif holds_images(where):
            found = stems(list_files(where), where)[0]
            if found.keys() & part.inputs["rgb"].keys():
                part.inputs[folder.name] = found
    for head in sorted(heads, key=lambda h: (h != "semantic", h)):
        _add_labels(part, heads[head], head)
    return part


def coupled_part(top: Path, labels: Path) -> Part:
    """Images in one folder, labels in another."""
    part = Part()
    part.inputs["rgb"] = _stems(part, top)
    part.labels["semantic"] = _paired(part, labels, _stems(part, labels))
    return part


def _head_of(name: str) -> str:
    """The head whose labels a folder of this name holds; "" for none."""
    if name.lower() in LABELS:
        return "semantic"
    return next((name[len(n) + 1 :] for n in LABELS if name.lower().startswith(n + "-") and len(name) > len(n) + 1), "")


def _add_labels(part: Part, folders: Sequence[Path], head: str) -> None:
    """The labels of a head from the first of its folders that holds some for the images; the others are noted."""
    trials = [Part({"rgb": part.inputs["rgb"]}) for _ in folders]
    found = [_paired(trial, where, _stems(trial, where)) for trial, where in zip(trials, folders, strict=True)]
    best = next((k for k, pairs in enumerate(found) if pairs), 0)
    part.labels[head] = found[best]
    part.strays += trials[best].strays
    part.notes += trials[best].notes
    for where in (f for f in folders if f != folders[best]):
        files = list_files(where, None)
        if files:
            part.notes.append(
                f"{printable(folders[best].name)}/ holds the {head} labels: {printable(where.name)}/ is not read "
                f"({len(files)} files, such as {printable(files[0].name)})."
            )


def _stems(part: Part, folder: Path) -> dict[str, Path]:
    """The images in a folder by their stems; files that are named like others, or not read, are noted."""
    left = LeftOut()
    files = list_files(folder, None, left)
    found, twice = stems([f for f in files if f.suffix.lower() in SUFFIXES], folder)
    part.strays += [("duplicate-stem", f) for f in twice]
    for file in files:
        if file.suffix.lower() in UNREAD:
            part.strays.append(("unread-file", file))
        elif file.suffix.lower() not in SUFFIXES and table_rank(file) is None:
            left.add(printable(file.suffix.lower() or "without a suffix"), file)
    part.notes += [note] if (note := left.note(folder)) else []
    return found


def _paired(part: Part, folder: Path, found: dict[str, Path]) -> dict[str, Path]:
    """stem -> label file; labels of no image are noted."""
    pairs = pair(part.inputs["rgb"], found, printable(folder.name))
    part.notes += [pairs.note] if pairs.note else []
    used = set(pairs.values())
    part.strays += [("label-without-image", f) for f in found.values() if f not in used]
    return pairs


# ---- images, or images and labels, in one folder -----------------------------------------------------------


def alone_parts(root: Path) -> dict[str, Part]:
    """A folder of images, or of images and their labels, by the folders in it that are named as splits."""
    groups: dict[str, list[Path]] = {}
    left = LeftOut()
    for file in list_files(root, SUFFIXES, left):
        groups.setdefault(next(filter(is_split, file.relative_to(root).parts[:-1]), ""), []).append(file)
    if len(groups) > 1:
        groups.pop("", None)  # counted as unused
    parts = {split: _alone_part(root, split, files) for split, files in sorted(groups.items())} or {
        "": Part({"rgb": {}})
    }
    for part in parts.values():
        part.notes += [note] if (note := left.note(root)) else []
    return parts


def _alone_part(root: Path, split: str, files: Sequence[Path]) -> Part:
    part = Part()
    base = _common(root, split, files)
    if both := beside(files, base):
        part.inputs["rgb"], part.labels["semantic"] = both
        part.notes.append(both[1].note)
        used = {*both[0].values(), *both[1].values()}
        part.strays += [("label-without-image", f) for f in files if f not in used]
        return part
    maps = [f for f in files if is_map(f, base)]
    if 0 < len(maps) < len(files):
        part.notes.append(
            f"{len(maps)} files look like label maps of images that are not there ({printable(maps[0].name)}): they "
            "are left out."
        )
        files = [f for f in files if f not in set(maps)]
    part.inputs["rgb"], twice = stems(files, base)
    part.strays += [("duplicate-stem", f) for f in twice]
    return part


def _common(root: Path, split: str, files: Iterable[Path]) -> Path:
    """The split's own folder, if there is only one of its name: names of records begin there."""
    if not split:
        return root
    parts = [f.relative_to(root).parts for f in files]
    tops = {p[: p.index(split) + 1] for p in parts}
    return root.joinpath(*tops.pop()) if len(tops) == 1 else root


# ---- what nobody takes -----------------------------------------------------------------------------------------


def unused(root: Path, parts: Iterable[Part]) -> str:
    """A sentence that counts the images below `root` that no part takes, by their folders; "" for none."""
    taken = {f for part in parts for f in part.files()}
    rest = [f for f in list_files(root) if f not in taken]
    if rest:
        real = {os.path.realpath(f) for f in taken}
        rest = [f for f in rest if os.path.realpath(f) not in real]
    by: dict[str, list[Path]] = {}
    for file in rest:
        by.setdefault(printable(file.relative_to(root).parent.as_posix()), []).append(file)
    said = [f"{len(files)} in {folder}/ ({printable(files[0].name)})" for folder, files in by.items()]
    more = f" and in {len(said) - 5} more folders" if len(said) > 5 else ""
    return f"images that are not used: {', '.join(said[:5])}{more}." if said else ""


def label_maps(files: Sequence[Path], root: Path) -> set[Path]:
    """Those of the image files below `root` that the readers would take for label maps: in a folder of labels, or
    beside an image that they belong to by name. Empty where nothing else would be left (the labels' own folder)."""
    coupled = [labels for _, labels in couples(root, IMAGES, LABELS).values()]
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    found: set[Path] = set()
    for folder, some in folders.items():
        named_so = any(part.lower() in LABELS for part in folder.relative_to(root).parts)
        if named_so or any(folder.is_relative_to(c) for c in coupled):
            found.update(some)
        elif (pairs := beside(some, folder)) is not None:
            # a.jpg beside a.png may be two photos: that is left for the user to say
            found.update(f for stem, f in pairs[1].items() if f.stem != Path(stem).name)
    return found if len(found) < len(files) else set()
