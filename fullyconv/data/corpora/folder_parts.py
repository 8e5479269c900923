"""What one split of a folder holds: images, labels and further inputs, paired by name; what is left out is said."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fullyconv.data.corpora.class_tables import table_rank
from fullyconv.data.corpora.folder_roles import (
    LABELS,
    SURE_IMAGES,
    SURE_LABELS,
    Sides,
    is_input_name,
    label_like,
    plain_name,
)
from fullyconv.data.corpora.foreign import is_map
from fullyconv.data.corpora.layout import SUFFIXES, LeftOut, holds_images, is_split, list_files, stems
from fullyconv.data.corpora.pairing import beside, couples, pair
from fullyconv.errors import printable

__all__ = [
    "Part",
    "alone_parts",
    "coupled_part",
    "joined",
    "label_maps",
    "read_part",
    "unused",
]

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
    unmatched: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def only(self, keep: set[str]) -> Part:
        """The part with these stems alone; labels without an image may belong to another."""
        return Part(
            {m: {s: f for s, f in files.items() if s in keep} for m, files in self.inputs.items()},
            {h: {s: f for s, f in files.items() if s in keep} for h, files in self.labels.items()},
            {s: g for s, g in self.groups.items() if s in keep},
            [(kind, f) for kind, f in self.unmatched if kind != "label-without-image"],
            list(self.notes),
        )

    def files(self) -> set[Path]:
        """Every file that the part takes, or names as a stray."""
        taken = [f for files in (*self.inputs.values(), *self.labels.values()) for f in files.values()]
        return {*taken, *(f for _, f in self.unmatched)}


def read_part(parent: Path, top: Path, split: str, labels: Path | None = None) -> Part:
    """One split: images in `top`, labels (in the folder `labels`, else in those named so) and further inputs in the
    folders of `parent` (below `split`)."""
    part = Part()
    part.inputs["rgb"] = _stems(part, top)
    heads: dict[str, list[Path]] = {} if labels is None else {"semantic": [labels / split]}
    others: dict[str, Path] = {}
    for folder in sorted(d for d in parent.iterdir() if d.is_dir() and d.name.lower() not in SURE_IMAGES):
        where = folder / split
        if folder == labels or top == where or folder.name.startswith(".") or not where.is_dir():
            continue
        if any(w in folder.name.lower() for w in _SHOWN):
            continue
        if head := _head_of(folder.name):
            heads.setdefault(head, []).append(where)
        elif holds_images(where):
            found = stems(list_files(where), where)[0]
            if found.keys() & part.inputs["rgb"].keys():
                part.inputs[folder.name], others[folder.name] = found, where
    if "semantic" not in heads:
        _told_by_content(part, top, others, heads)
    _labels_among_images(part, top, heads)
    _told_apart(part, top, heads)
    for head in sorted(heads, key=lambda h: (h != "semantic", h)):
        _add_labels(part, sorted(heads[head], key=_rank), head)
    return part


def _told_apart(part: Part, top: Path, heads: Mapping[str, Sequence[Path]]) -> None:
    """1.jpg and 1.png are two images where labels have the names of both: 1.jpg.png and 1.png.png."""
    twice = [f for kind, f in part.unmatched if kind == "duplicate-stem"]
    if not twice:
        return
    labels = {s for folders in heads.values() for d in folders for s in stems(list_files(d), d)[0]}
    rgb = part.inputs["rgb"]
    for file in twice:
        (name,) = stems([file], top)[0]
        mine = f"{name}{file.suffix}"
        first = f"{name}{rgb[name].suffix}" if name in rgb else ""
        if mine in labels and (not first or first in labels):
            rgb[mine] = file
            if first:
                rgb[first] = rgb.pop(name)
            part.unmatched.remove(("duplicate-stem", file))


def _labels_among_images(part: Part, top: Path, heads: dict[str, list[Path]]) -> None:
    """Folders of labels that lie in the images' folder, or are linked from there, hold no images."""
    inner = [d for d in top.iterdir() if d.is_dir() and d.name.lower() in SURE_LABELS]
    known = {os.path.realpath(f) for folders in heads.values() for f in folders}
    if not inner and not any(d.is_symlink() for d in top.iterdir()):
        return
    if inner and not heads:
        heads["semantic"] = inner
    roots = tuple(f"{r}{os.sep}" for r in {*known, *map(os.path.realpath, inner)})
    labels = [s for s, f in part.inputs["rgb"].items() if os.path.realpath(f).startswith(roots)]
    if labels and len(labels) < len(part.inputs["rgb"]):
        first = part.inputs["rgb"][labels[0]]
        part.notes.append(f"left out in {printable(top.name)}/: {len(labels)} label maps ({printable(first.name)}).")
        part.inputs["rgb"] = {s: f for s, f in part.inputs["rgb"].items() if s not in set(labels)}


def _told_by_content(part: Part, top: Path, others: Mapping[str, Path], heads: dict[str, list[Path]]) -> None:
    """The one folder among the further inputs that holds label maps becomes the labels, if there is one."""
    like = [name for name, where in others.items() if not is_input_name(name) and label_like(where, top)]
    if len(like) == 1:
        del part.inputs[like[0]]
        heads["semantic"] = [others[like[0]]]
        part.notes.append(Sides((top, others[like[0]])).note)


def _rank(folder: Path) -> int:
    """Which of several folders of labels is asked first: the plainest name."""
    name = next((n for n in (folder.name, folder.parent.name) if plain_name(n) in LABELS), "")
    return LABELS.index(plain_name(name)) if name else len(LABELS)


def coupled_part(top: Path, labels: Path) -> Part:
    """Images in one folder, labels in another."""
    part = Part()
    part.inputs["rgb"] = _stems(part, top)
    part.labels["semantic"] = _paired(part, labels, _stems(part, labels, ARRAYS))
    return part


def joined(parts: Mapping[str, Part]) -> Part:
    """Several parts as one, their images named below the key of each."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    whole = Part()
    for key, part in parts.items():
        names = {s: f"{key}/{s}" if key else s for s in part.inputs["rgb"]}
        for into, those in ((whole.inputs, part.inputs), (whole.labels, part.labels)):
            for what, files in those.items():
                into.setdefault(what, {}).update({names[s]: f for s, f in files.items() if s in names})
        whole.unmatched += part.unmatched
        whole.notes += [n for n in part.notes if n not in whole.notes]
    return whole


def _head_of(name: str) -> str:
    """The head whose labels a folder of this name holds; "" for none."""
    if name.lower() in LABELS or plain_name(name) in LABELS:
        return "semantic"
    heads = (name[len(n) + 1 :] for n in SURE_LABELS if name.lower().startswith(n + "-"))
    return next(filter(None, heads), "")


def _add_labels(part: Part, folders: Sequence[Path], head: str) -> None:
    """The labels of a head from the first of its folders that holds some for the images; the others are noted."""
    trials = [Part({"rgb": part.inputs["rgb"]}) for _ in folders]
    found = [_paired(trial, where, _stems(trial, where, ARRAYS)) for trial, where in zip(trials, folders, strict=True)]
    best = next((k for k, pairs in enumerate(found) if pairs), 0)
    part.labels[head] = found[best]
    part.unmatched += trials[best].unmatched
    part.notes += trials[best].notes
    for where in (f for f in folders if f != folders[best]):
        files = list_files(where, None)
        if files:
            part.notes.append(
                f"{printable(folders[best].name)}/ holds the {head} labels: {printable(where.name)}/ is not read "
                f"({len(files)} files, such as {printable(files[0].name)})."
            )


ARRAYS = (".npy",)  # label maps as NumPy writes them


def _stems(part: Part, folder: Path, more: tuple[str, ...] = ()) -> dict[str, Path]:
    """The images (and files that end in `more`) in a folder by their stems; files that are named like others, or not
    read, are noted."""
    left = LeftOut()
    files = list_files(folder, None, left)
    taken = [f for f in files if f.suffix.lower() in SUFFIXES] or [f for f in files if f.suffix.lower() in more]
    found, twice = stems(taken, folder)
    part.unmatched += [("duplicate-stem", f) for f in twice]
    for file in (f for f in files if f not in set(taken)):
        if file.suffix.lower() in UNREAD:
            part.unmatched.append(("unread-file", file))
        elif file.suffix == ".msk" and file.with_suffix("") in taken:
            continue  # GDAL's mask of the TIFF: read with it
        elif file.suffix.lower() not in SUFFIXES and table_rank(file) is None:
            left.add(printable(file.suffix.lower() or "without a suffix"), file)
    part.notes += [note] if (note := left.note(folder)) else []
    return found


def _paired(part: Part, folder: Path, found: dict[str, Path]) -> dict[str, Path]:
    """stem -> label file; labels of no image are noted."""
    pairs = pair(part.inputs["rgb"], found, printable(folder.name))
    part.notes += [pairs.note] if pairs.note else []
    used = set(pairs.values())
    part.unmatched += [("label-without-image", f) for f in found.values() if f not in used]
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
        part.unmatched += [("label-without-image", f) for f in files if f not in used]
        return part
    maps = [f for f in files if is_map(f, base)]
    if 0 < len(maps) < len(files):
        part.notes.append(
            f"{len(maps)} files look like label maps of images that are not there ({printable(maps[0].name)}): they "
            "are left out."
        )
        files = [f for f in files if f not in set(maps)]
    part.inputs["rgb"], twice = stems(files, base)
    part.unmatched += [("duplicate-stem", f) for f in twice]
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
    counts = [f"{len(files)} in {folder}/ ({printable(files[0].name)})" for folder, files in by.items()]
    more = f" and in {len(counts) - 5} more folders" if len(counts) > 5 else ""
    return f"images that are not used: {', '.join(counts[:5])}{more}." if counts else ""


def label_maps(files: Sequence[Path], root: Path) -> set[Path]:
    """Those of the image files below `root` that the readers would take for label maps: in a folder of labels, or
    beside an image that they belong to by name. Empty where nothing else would be left (the labels' own folder)."""
    coupled = [labels for _, labels in couples(root, SURE_IMAGES, SURE_LABELS).values()]
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    found: set[Path] = set()
    for folder, some in folders.items():
        named_so = any(part.lower() in SURE_LABELS for part in folder.relative_to(root).parts)
        if named_so or any(folder.is_relative_to(c) for c in coupled):
            found.update(some)
        elif (pairs := beside(some, folder)) is not None:
            # a.jpg beside a.png may be two photos: that is left for the user to say
            found.update(f for stem, f in pairs[1].items() if f.stem != Path(stem).name)
    return found if len(found) < len(files) else set()
