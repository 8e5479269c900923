"""Finished blocks on the disk, so that a job that was killed goes on where it was.

Every block is a file of its own, whole or absent, that carries the sha256 of what it holds: one that a power cut or a
disk tore is found and computed again. The folder's name holds the key of the job (model, input, geometry, layers), so
blocks of another job are never taken.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.files.disk import Lock, atomic_write, make_directory, remove_stale, remove_tree
from fullyconv.files.outputs import one_part
from fullyconv.files.reading import read_file

__all__ = ["BlockJournal", "job_key"]

MAGIC = b"fullyconv block 1\n"
MOST = 1 << 32  # bytes of a block's file


def job_key(facts: Mapping[str, object]) -> str:
    """sha256 (hex) of JSON facts: jobs with one key compute the same blocks."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@final
class BlockJournal:
    """The blocks of one job, in folder/NAME-KEY/: `with` holds its lock (TryAgain where another process has it)."""

    def __init__(self, folder: Path, name: str, key: str) -> None:
        self.folder = folder / one_part(f"{name}-{key[:16]}", "The job")  # a worker tells the key
        self._key = key
        self.most = MOST  # bytes of a block unpacked
        self._lock: Lock | None = None

    def __enter__(self) -> BlockJournal:
        make_directory(self.folder)
        self._lock = Lock(self.folder / "lock")
        self._lock.acquire()
        remove_stale(self.folder, older_than=0)  # ours alone, by the lock
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.release()

    def _file(self, row: int, column: int) -> Path:
        return self.folder / f"{row}-{column}.block"

    def write(self, row: int, column: int, layers: Mapping[str, NDArray[np.number]]) -> None:
        from safetensors.numpy import save

        content = zlib.compress(save({k: np.ascontiguousarray(v) for k, v in layers.items()}), 1)
        atomic_write(self._file(row, column), MAGIC + self._digest(row, column, content) + content)

    def read(self, row: int, column: int) -> dict[str, NDArray[Any]] | None:
        """The layers of a finished block; None where there is none or its bytes are not those that were written.

        The sum tells damage, not who wrote: DataError for what holds no layers, or unpacks to more than `most` bytes.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            data = read_file(self._file(row, column), MOST)
        except (MissingInput, DataError):
            return None
        start = len(MAGIC) + 32
        content = data[start:]
        if data[:start] != MAGIC + self._digest(row, column, content):
            return None
        try:
            return dict(load(zlib.decompressobj().decompress(content, self.most)))
        except (zlib.error, SafetensorError, ValueError, KeyError) as error:
            raise self.forged(row, column) from error

    def forged(self, row: int, column: int) -> DataError:
        """The error for a block whose sum is right and whose layers are not this job's."""
        return DataError(
            f"{printable(self._file(row, column))} holds what fullyconv did not write for this job; remove the folder "
            f"{printable(self.folder)} and run the command again."
        )

    def is_whole(self, row: int, column: int) -> bool:
        """Whether `read` would give layers; nothing is unpacked."""
        try:
            data = read_file(self._file(row, column), MOST)
        except (MissingInput, DataError):
            return False
        start = len(MAGIC) + 32
        return data[:start] == MAGIC + self._digest(row, column, data[start:])

    def _digest(self, row: int, column: int, content: bytes) -> bytes:
        """Also of the place and the key: a block that was copied under another name is none."""
        return hashlib.sha256(f"{self._key} {row} {column}\n".encode() + content).digest()

    def remove(self) -> None:
        """After the results are whole."""
        remove_tree(self.folder)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            remove_tree(self.folder.parent)
