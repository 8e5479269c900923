"""From a name to the file that is written under it: the one way of every command.

Names of records, splits, heads, classes, inputs and folders come from lists, exports and models that others made. What
is written from them lies below the folder that was named, links followed, is no file that the job reads, and is no file
that the job has written already, also on disks that tell neither A from a nor the two ways to write an umlaut. What is
there already is replaced only where an earlier job wrote it and nobody changed it since.

    plan = Outputs(folder, inputs)          inputs: every file that the job reads
    name = plan.claim("labels", "a.png")    before work starts; refused in words
    plan.write(name, data)                  what was claimed, once
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

from fullyconv.errors import DataError, InternalError, UsageError, printable
from fullyconv.files.disk import atomic_write, make_directory, sha256_file, storage_errors, sync_directory
from fullyconv.files.written import WrittenBefore

if TYPE_CHECKING:
    from fullyconv.files.staged import StagedFile

__all__ = ["Outputs", "flat_name", "folded_name", "name_fault", "one_part", "output_file", "safe_name", "unique_name"]

MAX_PART_BYTES, MAX_NAME_BYTES = (
    240,
    1024,
)  # bytes of a name's part (file systems have 255, a suffix among them) and of a name in all


def name_fault(name: str) -> str:
    """What keeps `name` from being a relative path (POSIX) of plain parts, in words; "" where nothing does."""
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "begins at the root of the disk"
    if not name.isprintable() and any(unicodedata.category(c) == "Cc" for c in name):
        return "holds control characters"
    parts = name.split("/")
    if ".." in parts:
        return "climbs out of its folder by '..'"
    if "" in parts or "." in parts:
        return "has an empty part"
    if len(name) * 4 > MAX_PART_BYTES:  # 4 bytes are the most of a character
        sizes = [len(os.fsencode(p)) if p.isascii() or _encodable(p) else MAX_PART_BYTES + 1 for p in parts]
        if max(sizes) > MAX_PART_BYTES or sum(sizes) > MAX_NAME_BYTES:
            return f"is longer than {MAX_PART_BYTES} bytes a part or {MAX_NAME_BYTES} in all"
    return ""


def _encodable(text: str) -> bool:
    """Whether the file system can hold it (a lone surrogate that stands for no byte cannot be written)."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def one_part(name: str, what: str) -> str:
    """`name` where it is one plain part of a path, else DataError; `what` says whose it is ("The head")."""
    fault = name_fault(name) or ("is a path" if "/" in name else "")
    if fault:
        raise DataError(f"{what} {printable(name)[:200]!r} {fault}, so no file is named after it; rename it.")
    return name


def safe_name(path: str) -> str:
    """A path of any kind as a name: its root, `.` and leading `..` are left out (../../images/x is images/x), inner
    ones folded (a/../b is b), control characters become _, and what is too long ends in eight digits of its sha256."""
    if not name_fault(path):
        return path
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(_safe_part(part))
    while sum(len(os.fsencode(p)) for p in kept) > MAX_NAME_BYTES:
        del kept[0]
    return "/".join(kept) or "unnamed"


def _safe_part(part: str) -> str:
    plain = "".join("_" if unicodedata.category(c) == "Cc" else c for c in part)
    plain = plain if _encodable(plain) else plain.encode(errors="replace").decode()
    if len(os.fsencode(plain)) <= MAX_PART_BYTES:
        return plain
    while len(os.fsencode(plain)) > MAX_PART_BYTES - 9:
        plain = plain[:-1]
    return f"{plain}-{hashlib.sha256(part.encode(errors='surrogatepass')).hexdigest()[:8]}"


def flat_name(name: str) -> str:
    """A name as one part that no other name has: `/` becomes `_`, told apart by eight digits of its sha256."""
    if "/" not in name:
        return _safe_part(name)
    digits = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return _safe_part(f"{name.replace('/', '_')}-{digits}")


def folded_name(name: str) -> str:
    """What two names share that are one file on some disk: case and the form of composed characters do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def unique_name(name: str, taken: set[str]) -> str:
    """`name`, or `name-2`, `name-3`, ...: the first whose fold is not in `taken`, to which it is added."""
    found, n = name, 2
    while folded_name(found) in taken:
        found, n = f"{name}-{n}", n + 1
    taken.add(folded_name(found))
    return found


@final
class Outputs:
    """The files that a job writes below `folder`; `inputs` are those it reads (files that are not there are passed
    over). A `new` folder is the job's own and holds nothing. Claiming n files takes time in proportion to n and to the
    bytes that are there already."""

    def __init__(self, folder: str | os.PathLike[str], inputs: Iterable[Path] = (), *, new: bool = False) -> None:
        self.folder = Path(folder)
        self._real = os.path.realpath(folder)
        self._inputs = {i for p in set(inputs) if (i := _identity(p))}
        self._files: dict[str, str] = {}  # fold -> name
        self._folders: set[str] = set()
        self._known: dict[str, bool] = {}  # folder below `folder` -> whether it really lies there
        self._open: set[str] = set()
        self._before: WrittenBefore | None = None if new else WrittenBefore(self.folder)

    def claim(self, *parts: str) -> str:
        """The file folder/part/part/..., which from now on is taken: its name below the folder.

        Raises DataError for a name that leads elsewhere, UsageError for a file that is taken, that the job reads, or
        that is there already and not as an earlier job left it.
        """
        name = "/".join(parts)
        if fault := name_fault(name):
            raise DataError(
                f"A file cannot be named {printable(name)[:200]!r}, which {fault}; rename what it is named after."
            )
        self._take(name)
        self.look(name)
        self._open.add(name)
        return name

    def _take(self, name: str) -> None:
        key = folded_name(name)
        above = _above(key)
        former = self._files.get(key) or next((self._files[a] for a in above if a in self._files), None)
        if former is not None or key in self._folders:
            also = f" ({printable(former)})" if former and former != name else ""
            raise UsageError(
                f"Two results would be {printable(self.folder / name)}{also}, one file on many disks; "
                "rename one, or write them into two folders."
            )
        self._files[key] = name
        self._folders.update(above)

    def look(self, name: str) -> None:
        """Refuse a file that the disk leads out of the folder, or that is an input; it is not claimed."""
        path = self.folder / name
        parent = name.rpartition("/")[0]
        if parent not in self._known:
            self._known[parent] = self._below(os.path.realpath(path.parent))
        if not self._known[parent] or (path.is_symlink() and not self._below(os.path.realpath(path))):
            raise UsageError(
                f"{printable(path)} is led out of {printable(self.folder)} by a link; remove the link, or choose "
                "another folder."
            )
        if self._inputs and _identity(path) in self._inputs:
            raise UsageError(
                f"{printable(path)} would be overwritten, and this very job reads it; choose another folder for the "
                "results."
            )
        if self._before is not None:
            self._before.refuse_others(name)

    def _below(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip("/") + "/")

    def moved(self, folder: Path) -> Outputs:
        """The same claims below `folder`, a new one that becomes this one when it is whole."""
        self.folder, self._real, self._before = folder, os.path.realpath(folder), None
        self._known.clear()
        return self

    def place(self, name: str) -> Path:
        """Where a claimed file is to be written, once; its folder is made."""
        if name not in self._open:
            raise InternalError(f"{printable(name)} is written twice or was never claimed; please report it.")
        self._open.remove(name)
        path = self.folder / name
        make_directory(path.parent)
        return path

    def write(self, name: str, data: bytes) -> Path:
        """Write a claimed file whole; returns it."""
        path = self.place(name)
        if self._before is not None:
            self._before.add(name, data)
        atomic_write(path, data)
        return path

    def publish(self, name: str, made: Path) -> Path:
        """Give a file that was written whole and synced beside it the claimed name, in one rename; returns it."""
        path = self.place(name)
        if self._before is not None:
            self._before.add_sum(name, sha256_file(made))
        with storage_errors("Writing", path):
            os.rename(made, path)
        sync_directory(path.parent)
        return path

    def adopt(self, made: Sequence[StagedFile]) -> list[Path]:
        """Give what a worker wrote its names, of which those not claimed yet are: the files. All are recorded at once
        and each folder is synced once, so that one process keeps up with many workers."""
        for name in (m.name for m in made if m.name not in self._open):
            self.claim(name)
        paths = [self.place(m.name) for m in made]
        if self._before is not None:
            self._before.add_sums([(m.name, m.sha256) for m in made])
        for one, path in zip(made, paths, strict=True):
            with storage_errors("Writing", path):
                os.rename(one.path, path)
        for folder in sorted({p.parent for p in paths}):
            sync_directory(folder)
        return paths


def _above(name: str) -> list[str]:
    """The folders around a name: a/b/c -> a, a/b."""
    return [name[:i] for i, c in enumerate(name) if c == "/"]


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What a file is the same by under all its names; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def output_file(path: Path, what: str, begins: bytes, inputs: Iterable[Path] = ()) -> Path:
    """`path` as the file for one result; its folder is made.

    What stands there already is replaced only where it is an earlier result (it `begins` so) and none of the `inputs`;
    UsageError otherwise, `what` naming the result ("a report").
    """
    found = _identity(path)
    if found is not None:
        if found in {_identity(p) for p in inputs}:
            raise UsageError(
                f"{printable(path)} would be overwritten, and this very job reads it; name another file for {what}."
            )
        if not path.is_file() or not _begins(path, begins):
            raise UsageError(f"{printable(path)} is there already and is not {what}; name another file.")
    make_directory(path.parent)
    return path


def _begins(path: Path, begins: bytes) -> bool:
    with path.open("rb") as file:
        start = file.read(len(begins))
    return not start or start.lower() == begins.lower()
