"""Which files below a folder are taken: links followed, each real folder once, and what is left out said in words."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from fullyconv.errors import DataError, printable

__all__ = ["Listing", "lies_above", "list_below"]

MOST = 5_000_000  # files below one folder; more means a wrong folder
KINDS = 6  # reasons that a note names


@final
class Listing:
    """Files below a folder, sorted, and what was left out: how many for which reason, with an example."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.left: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def leave(self, reason: str, name: str) -> None:
        self.left[reason] += 1
        self.examples.setdefault(reason, name)

    def note(self, folder: Path) -> str:
        """What was left out, in a sentence; "" for nothing."""
        shown = self.left.most_common(KINDS)
        parts = [f"{n} {reason} ({printable(self.examples[reason])})" for reason, n in shown]
        rest = sum(self.left.values()) - sum(n for _, n in shown)
        return (
            f"left out of {printable(folder)}: {', '.join(parts + ([f'{rest} others'] if rest else []))}."
            if parts
            else ""
        )


def lies_above(link: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether `link` leads to a folder that `folder` lies in: what is there is not meant by `folder`."""
    real, inner = os.path.realpath(link), os.path.realpath(folder)
    return inner == real or inner.startswith(real.rstrip(os.sep) + os.sep)


def list_below(
    folder: Path, suffixes: Sequence[str], without: Path | None = None, stores: Callable[[Path], bool] | None = None
) -> Listing:
    """The files below `folder` with these suffixes (lower case), and the folders that `stores` says count as one file;
    hidden names and the folder `without` are left out.

    Linked folders are entered after all that lies there really, and no real folder twice, so a loop ends. Takes time
    in proportion to the files. Raises DataError for more than five million of them.
    """
    found = Listing()
    entered = {_key(os.fspath(without))} if without is not None and without.is_dir() else set()
    real, linked = [(os.fspath(folder), "")], deque[tuple[str, str]]()
    while real or linked:
        at, below = real.pop() if real else linked.popleft()
        if below and os.path.islink(at.rstrip("/")) and lies_above(at, folder):
            found.leave("links to a folder around it", below)
            continue
        if (key := _key(at)) in entered:
            found.leave("folders of results or met before", below)
            continue
        entered.add(key)
        for entry in _entries(found, at, below):
            name = f"{below}{entry.name}"
            if entry.name.startswith("."):
                found.leave("hidden names", name)
            elif _is(entry.is_dir) and stores is not None and stores(Path(entry.path)):
                found.files.append(Path(entry.path))
            elif _is(entry.is_dir):
                (linked if entry.is_symlink() else real).append((entry.path, f"{name}/"))
            else:
                _take(found, entry, name, suffixes)
        if len(found.files) > MOST:
            raise DataError(f"{printable(folder)} holds more than {MOST} files; give the images' own folder.")
    found.files.sort()
    return found


def _key(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(found: Listing, at: str, below: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(at) as entries:
            return sorted(entries, key=lambda e: e.name)
    except PermissionError:
        found.leave("folders that may not be opened", below)
        return []


def _is(kind: Callable[[], bool]) -> bool:
    """A link that leads to itself is neither file nor folder."""
    try:
        return kind()
    except OSError:
        return False


def _take(found: Listing, entry: os.DirEntry[str], name: str, suffixes: Sequence[str]) -> None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if not _is(entry.is_file):
        found.leave("broken links, pipes and devices", name)
    elif suffix in suffixes:
        found.files.append(Path(entry.path))
    else:
        found.leave(f"{printable(suffix)} files" if suffix else "files without a suffix", name)
