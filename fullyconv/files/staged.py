"""Results that one process makes and another gives their names.

Workers on other machines write whole files under chance names into a folder of their own (`StagedOutputs`); the one
process that claimed the results' names adopts them (`Outputs.adopt`). So a result appears once, however often it was
made, and what a killed worker left stays without a name.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

from fullyconv.errors import DataError, printable
from fullyconv.files.disk import make_directory, sha256_file, write_file
from fullyconv.files.outputs import name_fault

__all__ = ["ResultFiles", "StagedFile", "StagedOutputs", "refuse_outside"]


class ResultFiles(Protocol):
    """Where results go: `Outputs`, or `StagedOutputs` in a worker."""

    @property
    def folder(self) -> Path: ...
    def claim(self, *parts: str) -> str: ...
    def write(self, name: str, data: bytes) -> Path: ...
    def publish(self, name: str, made: Path) -> Path: ...


@final
@dataclass(frozen=True)
class StagedFile:
    """A result that was written whole and synced at `path`, and the name that it is to get."""

    name: str
    path: Path
    sha256: str


def refuse_outside(made: Iterable[StagedFile], staging: Path) -> None:
    """DataError for a file that no `StagedOutputs` of the folder `staging` wrote: a worker could name any."""
    real = os.path.realpath(staging) + os.sep
    for one in made:
        there = os.path.join(os.path.realpath(one.path.parent), one.path.name)
        if not there.startswith(real) or not _is_regular(there):
            raise DataError(
                f"A worker gave {printable(one.path)[:300]} as a result, which it did not write for this job; look at "
                "what runs on the machines of the cluster."
            )


def _is_regular(path: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


@final
class StagedOutputs:
    """`ResultFiles` without names: what is written lies in `folder`, and `take` tells of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[StagedFile] = []
        make_directory(folder)

    def claim(self, *parts: str) -> str:
        """The name, which the adopting process claims."""
        name = "/".join(parts)
        if fault := name_fault(name):
            raise DataError(f"A file cannot be named {printable(name)[:200]!r}, which {fault}; rename its source.")
        return name

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / secrets.token_hex(8)
        written = write_file(path, [data])
        self._made.append(StagedFile(name, path, written.sha256))
        return path

    def publish(self, name: str, made: Path) -> Path:
        self._made.append(StagedFile(name, made, sha256_file(made)))
        return made

    def take(self) -> tuple[StagedFile, ...]:
        """What was made since the last call."""
        made, self._made = tuple(self._made), []
        return made
