"""A run directory: one trainer at a time, checkpoints that are whole, links that never dangle, a log that agrees."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fullyconv.checkpoint.log import parse_log, whole
from fullyconv.checkpoint.model import Stored, read_model, verify_model, write_model
from fullyconv.errors import DataError, FullyconvError, MissingInput, StorageError, printable
from fullyconv.files import (
    Lock,
    atomic_write,
    make_directory,
    open_append,
    read_file,
    remove_stale,
    remove_tree,
    replace_link,
    storage_errors,
    sync_directory,
)
from fullyconv.files.disk import PREFIX
from fullyconv.files.reading import MOST_TEXT

if TYPE_CHECKING:
    from fullyconv.tensorfile import TensorLike

__all__ = ["RunDirectory", "model_of"]

CHECKPOINTS, LOG, LOCK = "checkpoints", "metrics.jsonl", ".lock"
_STEP = re.compile(r"step-(\d{1,18})")


def model_of(path: str | os.PathLike[str]) -> Path:
    """The model directory that `path` stands for: itself, or of a run directory its best model.

    A run that has not been measured yet has only its last.
    """
    path = Path(path)
    if (path / "MANIFEST.json").exists():
        return path
    return next((path / link for link in ("best", "last") if (path / link).is_dir()), path)


@final
class RunDirectory:
    """recipe.toml, metrics.jsonl, checkpoints/step-N/, and the links best and last into it; holds the flock.

    Opening makes the directory and sweeps what a killed process left unfinished. Raises TryAgain when another process
    trains in it. `keep` complete checkpoints stay (at least 2, and the best one besides).
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: int = 2) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._keep = max(2, keep)
        self._verified: set[int] = set()  # steps written or read through by this process
        self._log: int | None = None
        self._crc = 0  # CRC-32 of the log's bytes, while it is open
        make_directory(self.path / CHECKPOINTS)
        self._lock = Lock(self.path / LOCK)
        self._lock.acquire()
        for directory in (self.path, self.path / CHECKPOINTS):
            remove_stale(directory, older_than=0.0)  # we hold the lock: whoever wrote them is gone

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the log and the lock; twice is harmless."""
        log, self._log = self._log, None
        if log is not None:
            with contextlib.suppress(OSError):
                os.close(log)
        self._lock.release()

    # Checkpoints

    def steps(self) -> list[int]:
        """Steps of the checkpoints that stand, ascending."""
        with storage_errors("Listing", self.path / CHECKPOINTS):
            names = os.listdir(self.path / CHECKPOINTS)
        return sorted(int(found[1]) for name in names if (found := _STEP.fullmatch(name)))

    def latest(self) -> Stored | None:
        """The checkpoint `last` points to, or None."""
        return self._linked("last")

    def best(self) -> Stored | None:
        """The checkpoint `best` points to, or None."""
        return self._linked("best")

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, TensorLike],
        config: Mapping[str, object],
        preprocessor: Mapping[str, object],
        card: str,
        canary: Mapping[str, TensorLike] | None = None,
        state: object = None,
        best: bool = False,
    ) -> Path:
        """Write checkpoints/step-N, then the links, then prune. When this returns, the step survives anything.

        The log is made durable first, and its length is stored with the state, so that `resume` can cut it back.
        Raises StorageError; the former checkpoints and links then still stand.
        """
        with storage_errors("Saving", self._directory(step)):
            return self._save(step, best, state=state, tensors=tensors, config=config, preprocessor=preprocessor,
                              card=card, canary=canary)  # fmt: skip

    def _save(self, step: int, best: bool, *, state: object, **content: Any) -> Path:
        extra = {"step": step, "metrics_bytes": self._sync_log(), "metrics_crc": self._crc}
        directory = self._directory(step)
        if directory.exists() and step not in self._linked_steps():
            self._remove(step)  # finished, but never acknowledged, by a process that was killed
        write_model(directory, **content, state={} if state is None else state, extra=extra)
        self._verified.add(step)
        for link in ("best", "last") if best else ("last",):
            replace_link(self.path / link, f"{CHECKPOINTS}/{directory.name}")
        with contextlib.suppress(FullyconvError, OSError):  # what could not be removed costs space, not the step
            self._prune(step)
        return directory

    def resume(self) -> Stored | None:
        """The newest checkpoint that is whole to the last byte, with metrics.jsonl cut back to it.

        None, and an empty log, when no checkpoint was ever finished. A damaged one is passed over for the one before
        and `notes` says so; DataError when checkpoints exist and none is whole: it never silently starts over.
        """
        with storage_errors("Reading", self.path):
            return self._resume()

    def _resume(self) -> Stored | None:
        candidates = self._candidates()
        faults: list[str] = []
        for step in candidates:
            try:
                stored = verify_model(self._directory(step))
            except (DataError, MissingInput) as error:  # a disk that cannot be read now is no damaged checkpoint
                faults.append(str(error))
                continue
            if faults:
                self.notes.append(f"Going on from step {step}, because a newer checkpoint is damaged: {faults[0]}")
            self._verified.add(step)
            self._cut_log(step, stored.extra.get("metrics_bytes", 0), stored.extra.get("metrics_crc"))
            return stored
        if candidates:
            raise DataError(f"{printable(self.path)} has no checkpoint that is whole: {faults[0]}")
        self._cut_log(-1, 0, None)
        return None

    def _directory(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step}"

    def _link_step(self, link: str) -> int | None:
        path = self.path / link
        with storage_errors("Reading", path):
            found = _STEP.fullmatch(Path(os.readlink(path)).name) if path.is_symlink() else None
        return int(found[1]) if found else None

    def _linked_steps(self) -> set[int]:
        return {step for step in (self._link_step("best"), self._link_step("last")) if step is not None}

    def _linked(self, link: str) -> Stored | None:
        step = self._link_step(link)
        return None if step is None else read_model(self._directory(step))

    def _candidates(self) -> list[int]:
        """Steps to resume from, in order: the one `last` names, those before it, then those it never reached."""
        steps, last = self.steps()[::-1], self._link_step("last")
        if last is None:
            return steps
        return [last, *(s for s in steps if s < last), *(s for s in steps if s > last)]

    def _prune(self, step: int) -> None:
        """Remove all but the newest `keep` verified checkpoints up to `step`, and the best. Failure costs only space.

        Checkpoints beyond `step` stem from before a resume from an older one; they go too.
        """
        keep, whole = self._linked_steps(), 0
        for candidate in sorted((s for s in self.steps() if s <= step), reverse=True):
            if whole == self._keep:
                break
            if self._is_whole(candidate):
                keep.add(candidate)
                whole += 1
        if whole < self._keep:
            return
        for candidate in set(self.steps()) - keep:
            self._remove(candidate)

    def _remove(self, step: int) -> None:
        """Remove a checkpoint: out of sight in one rename first, so that there never is a half-removed step-N."""
        grave = self.path / CHECKPOINTS / f"{PREFIX}step-{step}"
        remove_tree(grave)
        with contextlib.suppress(OSError):
            os.rename(self._directory(step), grave)
            remove_tree(grave)

    def _is_whole(self, step: int) -> bool:
        """Whether every byte of a checkpoint is as recorded; read at most once a process."""
        if step not in self._verified:
            try:
                verify_model(self._directory(step))
            except FullyconvError:
                return False
            self._verified.add(step)
        return True

    # The log

    def log(self, row: Mapping[str, object]) -> None:
        """Append one row to metrics.jsonl (NaN and infinities as null). It must have "step".

        Raises StorageError when the disk refuses; no part of the row is left then.
        """
        line = json.dumps({k: _plain(v) for k, v in row.items()}, allow_nan=False).encode() + b"\n"
        fd = self._open_log()
        with storage_errors("Writing", self.path / LOG):
            size = os.fstat(fd).st_size
            try:
                if os.write(fd, line) != len(line):
                    raise StorageError(f"Writing {printable(self.path / LOG)} failed: the disk is full; make room.")
                self._crc = zlib.crc32(line, self._crc)
            except BaseException:
                os.ftruncate(fd, size)
                raise

    def rows(self) -> list[dict[str, Any]]:
        """The complete rows of metrics.jsonl; DataError names the first line that is none."""
        path = self.path / LOG
        if not os.path.lexists(path):
            return []
        complete, end, _ = read_file(path, MOST_TEXT).rpartition(b"\n")  # a last line without its end is being written
        rows, damaged = parse_log(complete + end)
        if damaged:
            lines = [line for line, _ in rows]
            first = next(i for i, line in enumerate(complete.split(b"\n")) if i >= len(lines) or line != lines[i])
            raise DataError(
                f"{printable(path)} is damaged at line {first + 1}, as by a power cut; going on with --resume leaves "
                "such lines out, or remove it."
            )
        return [row for _, row in rows]

    def _open_log(self) -> int:
        if self._log is None:
            with storage_errors("Opening", self.path / LOG):
                self._log = open_append(self.path / LOG)
                self._crc = zlib.crc32(read_file(self.path / LOG, MOST_TEXT))
            sync_directory(self.path)
        return self._log

    def _sync_log(self) -> int:
        """Make the log durable; returns its length in bytes."""
        fd = self._open_log()
        with storage_errors("Writing", self.path / LOG):
            os.fsync(fd)
            return os.fstat(fd).st_size

    def _cut_log(self, step: int, size: int, crc: int | None) -> None:
        """Cut metrics.jsonl to what it was when `step` was saved, its first `size` bytes; where these are not what was
        written, `notes` says so and the rows that are whole stay."""
        path = self.path / LOG
        content = read_file(path, MOST_TEXT) if os.path.lexists(path) else b""
        kept, fault = whole(content, step, size, crc)
        if fault:
            self.notes.append(f"{printable(path)} is damaged: {fault}.")
        if kept == content:
            return
        if self._log is not None:
            os.close(self._log)
            self._log = None
        atomic_write(path, kept)


def _plain(value: object) -> Any:
    """Finite numbers, strings and nests of them; what JSON has no word for becomes null."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
