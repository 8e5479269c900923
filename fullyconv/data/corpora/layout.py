"""What readers share: listing images, pairing by stem, choosing a split, and words for what was found."""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import final

from fullyconv.errors import DataError, UnknownName, nearest, printable
from fullyconv.files import read_text
from fullyconv.files.listing import lies_above
from fullyconv.files.outputs import safe_name

__all__ = [
    "SUFFIXES",
    "LeftOut",
    "choose_split",
    "describe_folder",
    "holds_images",
    "is_fold",
    "is_split",
    "list_files",
    "merge_splits",
    "only_folder",
    "paths_meant",
    "read_lines",
    "read_table",
    "role",
    "stems",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_ALIASES = (
    ("val", "valid", "validation", "dev", "eval", "evaluation"),
    ("train", "training"),
    ("test", "testing", "holdout"),
)
_FOLD = re.compile(r"(fold|split|cv)[-_ ]?\d+", re.IGNORECASE)
_LARGEST = 2**30  # bytes of a list
_MOST = 5_000_000  # files under one root; more means a wrong root or a loop


@final
class LeftOut(Counter[str]):
    """What a listing passed over, counted by why, with the first example of each."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, Path] = {}

    def add(self, why: str, path: Path) -> None:
        self[why] += 1
        self.first.setdefault(why, path)

    def note(self, folder: Path) -> str:
        """One sentence; "" where nothing was left out."""
        parts = [f"{n} {why} ({_below(self.first[why], folder)})" for why, n in self.items()]
        return f"left out in {printable(folder.name)}/: {', '.join(parts)}." if parts else ""


def _below(path: Path, folder: Path) -> str:
    return printable(path.relative_to(folder) if path.is_relative_to(folder) else path)


_SYSTEM = ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir", "lost+found")


def list_files(folder: Path, suffixes: tuple[str, ...] | None = SUFFIXES, left: LeftOut | None = None) -> list[Path]:
    """Files below `folder` with these suffixes (None: all), sorted. Links to folders are followed, every real folder
    being read once, by its own path rather than by a link's; a link to a folder that `folder` lies in, hidden names and
    what systems leave behind are left out.

    left   is told what was passed over, but for suffixes.
    """
    left = LeftOut() if left is None else left
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    links: deque[Path] = deque([Path(folder)])
    while links:  # real folders first
        at = links.popleft()
        if at != folder and lies_above(at, folder):
            left.add("link to a folder around it", at)
        elif _is_new(at, seen):
            links.extend(_list_tree(at, suffixes, found, seen, left))
        elif at.is_dir():
            left.add("link to a folder that is read already", at)
    return sorted(found)


def _list_tree(
    top: Path, suffixes: tuple[str, ...] | None, found: list[Path], seen: set[tuple[int, int]], left: LeftOut
) -> list[Path]:
    """Puts the files of a folder and its real folders into `found`; returns the links to folders."""
    links: list[Path] = []
    stack = [os.fspath(top)]
    while stack:
        folders, there = _entries(stack.pop(), links, left)
        found += [Path(f) for f in there if suffixes is None or f.lower().endswith(suffixes)]
        stack += [f for f in folders if _is_new(f, seen)]
        if len(found) > _MOST:
            raise DataError(f"{printable(top)} holds more than {_MOST} files; give the data set's own folder.")
    return sorted(links)


def _entries(at: str, links: list[Path], left: LeftOut) -> tuple[list[str], list[str]]:
    """The real folders and the files in a folder; links to folders are put into `links`."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    left.add("hidden", Path(entry.path))
                elif entry.name.lower() in _SYSTEM:
                    left.add("of the system", Path(entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and os.path.isdir(entry.path):
                    links.append(Path(entry.path))
                else:
                    files.append(entry.path)
    except OSError:
        left.add("folder that cannot be opened", Path(at))
    return folders, files


def _is_new(folder: str | Path, seen: set[tuple[int, int]]) -> bool:
    """Whether the real folder was not seen before; it counts as seen from now on."""
    try:
        info = os.stat(folder)
    except OSError:
        return False
    key = (info.st_dev, info.st_ino)
    new = key not in seen
    seen.add(key)
    return new


def holds_images(folder: Path, levels: int = 1) -> bool:
    """Whether `folder` holds an image, at the top or up to `levels` folders down."""
    if not folder.is_dir():
        return False
    links: list[Path] = []
    folders, files = _entries(os.fspath(folder), links, LeftOut())
    if any(f.lower().endswith(SUFFIXES) for f in files):
        return True
    return levels > 0 and any(holds_images(f, levels - 1) for f in (*map(Path, folders), *links))


def stems(files: Iterable[Path], folder: Path, suffix: str = "") -> tuple[dict[str, Path], list[Path]]:
    """{path below `folder` without its suffix: file}, and the files whose stem was taken already.

    Stems are NFC (macOS writes an umlaut as two characters, others as one), and `safe_name`s: records are named after
    them.
    """
    found: dict[str, Path] = {}
    twice: list[Path] = []
    for file in files:
        stem = safe_name(unicodedata.normalize("NFC", file.relative_to(folder).with_suffix("").as_posix()))
        if suffix and stem.endswith(suffix):
            stem = stem[: -len(suffix)]
        if stem in found:
            twice.append(file)
        else:
            found[stem] = file
    return found, twice


@final
class NoSplits(UnknownName):
    """A split was asked of a data set that is one whole."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__("split", split, [])
        self.args = (f"{printable(root)} has no splits, so no {split!r}; leave the split out, or use 'all'.",)


def role(split: str) -> str:
    """ "train", "val" or "test" for every usual name of it (Training, valid, val2017, test_set, ...); any other name
    itself."""
    plain = re.sub(r"[-_ ]?(set|data|split|list|files|ids|20\d\d)$", "", split.lower())
    return next((names[0] for names in _ALIASES if plain in names), split)


def is_split(name: str) -> bool:
    """Whether a folder or list of this name is a split: one of the usual names, or a fold's."""
    return role(name) in ("train", "val", "test", "trainval") or is_fold(name)


def is_fold(name: str) -> bool:
    """Whether a folder or list of this name is a fold: fold_0, split1, cv-2."""
    return bool(_FOLD.fullmatch(name))


def choose_split(found: Sequence[str], split: str | None, root: Path) -> tuple[str, ...]:
    """The splits meant by `split`: None is "train" if found, else all; "all" is all; "val" also finds "Valid".

    Raises UnknownName that says which splits there are.
    """
    if split is None:
        train = [s for s in found if role(s) == "train"]
        plain = [s for s in train if s.lower() in ("train", "training")]
        return tuple(plain[:1] or train or found)
    if split in found:
        return (split,)
    if split == "all":
        return tuple(found)
    for name in found:
        if name and role(name) == role(split):
            return (name,)
    if not any(found):
        raise NoSplits(root, split)
    near = nearest(split, list(found))
    error = UnknownName("split", split, found)
    error.args = (
        f"{printable(root)} has no split {printable(split)!r}, it has {', '.join(map(printable, found))}; "
        + (f"did you mean {near!r}?" if near else "choose one of them."),
    )
    raise error


def merge_splits(chosen: Sequence[str]) -> tuple[str, Callable[[str, str], str]]:
    """The name of the union of `chosen`, and (split, stem) -> record name, unique in it."""
    if len(chosen) == 1:
        return chosen[0], lambda split, stem: stem
    return "all", lambda split, stem: f"{split}/{stem}" if split else stem


def read_lines(file: Path) -> list[str]:
    """The non-empty lines of a UTF-8 text file, stripped; DataError names the file if it is none."""
    return [line.strip() for line in read_text(file, _LARGEST).splitlines() if line.strip()]


def read_table(file: Path) -> list[dict[str, str]]:
    """A CSV with a header, or a list of "image [label]" lines, as rows {"image": ..., "label": ..., ...}.

    CSV may be separated by semicolons or tabs; its image column may be called as in `_IMAGE_COLUMNS`.
    """
    lines = read_lines(file)
    kind = file.suffix.lower()
    if kind in (".csv", ".tsv") or (lines and "," in lines[0]):
        semicolons = bool(lines) and lines[0].count(";") > lines[0].count(",")
        rows = list(csv.reader(lines, delimiter="\t" if kind == ".tsv" else ";" if semicolons else ","))
    else:
        rows = [_two_paths(line) for line in lines]
    header = _header(rows[0]) if rows else []
    if "image" in header:
        return [dict(zip(header, (c.strip() for c in row), strict=False)) for row in rows[1:]]
    return [dict(zip(("image", "label"), (c.strip() for c in row), strict=False)) for row in rows]


_IMAGE_COLUMNS = ("image", "img", "picture", "photo", "file", "filename", "path")


def _header(row: Sequence[str]) -> list[str]:
    """A header's columns: lower case, without _path, _file or _name behind; the image's is "image"."""
    names = [c.strip().lower().replace(" ", "_") for c in row]
    names = [
        n.removesuffix("_path").removesuffix("_filename").removesuffix("_file").removesuffix("_name") for n in names
    ]
    first = next((n for n in _IMAGE_COLUMNS if n in names), None)
    return ["image" if n == first else n for n in names]


def paths_meant(entry: str) -> list[Path]:
    """A listed path as it stands and, where it is written with backslashes, as Windows means it."""
    return [Path(e) for e in dict.fromkeys((entry, entry.replace("\\", "/")))]


def _two_paths(line: str) -> list[str]:
    """A line's image and label; a name with blanks is one path unless the line splits into two images."""
    if "\t" in line:
        return line.split("\t")
    two = _TWO_IMAGES.match(line)
    return [two[1], two[2]] if two else [line]


_ENDING = "|".join(re.escape(s) for s in SUFFIXES)
_TWO_IMAGES = re.compile(rf"^(.*?(?:{_ENDING}))\s+(\S.*(?:{_ENDING}))$", re.IGNORECASE)


def only_folder(root: Path) -> Path | None:
    """The one folder in `root` that all images lie in, as an archive unpacks; None where images lie beside it, or it is
    named as a split or linked."""
    if any(p.suffix.lower() in SUFFIXES and not p.name.startswith(".") for p in root.iterdir()):
        return None
    inner = [d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".") and holds_images(d, 4)]
    return inner[0] if len(inner) == 1 and not is_split(inner[0].name) and not inner[0].is_symlink() else None


def describe_folder(root: Path, most: int = 8) -> str:
    """What lies in `root`, in words, for a message."""
    if root.is_file():
        return f"it is a file of {root.stat().st_size} bytes"
    names = sorted(e.name + ("/" if e.is_dir() else "") for e in os.scandir(root))
    if not names:
        return "the folder is empty"
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"found {', '.join(map(printable, names[:most]))}{rest}"
