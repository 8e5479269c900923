"""The order of work of `fullyconv predict`: images are decoded ahead and written behind; what is done is remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

from fullyconv.errors import MissingInput
from fullyconv.files.disk import sha256_file, storage_errors
from fullyconv.files.outputs import one_part
from fullyconv.files.reading import open_append, read_file
from fullyconv.files.staged import ResultFiles
from fullyconv.rasters.zarr_files import folder_sum

__all__ = ["Finished", "ResultOptions", "claim_results", "head_folder", "read_ahead"]

RECORD = ".predicted.sha256"  # beside the results: a line a finished image
MOST = 1 << 28  # bytes of the list: some four million images
AHEAD = 2  # images decoded and not yet labelled: enough for one thread, and memory stays flat

Item = TypeVar("Item")


def read_ahead(
    items: Sequence[Item], wanted: Callable[[Item], bool], read: Callable[[Item], object]
) -> Iterator[tuple[Item, Callable[[], Any]]]:
    """Each item with a function that gives what `read` made of it, begun in another thread where it is `wanted`.

    Errors of `read` are raised when they are asked for. At most `AHEAD` results wait.
    """
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[Item, Future[Any] | None]] = deque()
        for item in items:
            waiting.append((item, reader.submit(read, item) if wanted(item) else None))
            if len(waiting) > AHEAD:
                yield _given(*waiting.popleft())
        while waiting:
            yield _given(*waiting.popleft())


def _given(item: Item, future: Future[object] | None) -> tuple[Item, Callable[[], Any]]:
    return item, (lambda: None) if future is None else future.result


class ResultOptions(Protocol):
    """Which results are asked for beside the labels."""

    @property
    def overlay(self) -> bool: ...
    @property
    def confidence(self) -> bool: ...
    @property
    def probabilities(self) -> bool: ...


def head_folder(index: int, head: str) -> list[str]:
    """The main head's results lie in the folder itself, another's in one of its name."""
    return [] if index == 0 else [one_part(head, "The head")]


def claim_results(
    plan: ResultFiles, heads: Sequence[str], name: str, options: ResultOptions, suffixes: tuple[str, str]
) -> dict[tuple[str, str], str]:
    """(what, head) -> the name claimed for it; suffixes: of label maps (and confidence) and of probabilities."""
    found = {}
    for i, head in enumerate(heads):
        folder = head_folder(i, head)
        found["labels", head] = plan.claim(*folder, name + suffixes[0])
        if options.overlay and i == 0:
            found["overlay", head] = plan.claim("overlay", f"{name}.jpg")
        if options.confidence:
            found["confidence", head] = plan.claim("confidence", *folder, name + suffixes[0])
        if options.probabilities:
            found["probabilities", head] = plan.claim("probabilities", *folder, name + suffixes[1])
    return found


@final
class Finished:
    """Which images an earlier job of the same network and options finished, by their bytes."""

    def __init__(self, folder: Path, job: str) -> None:
        self._path, self._job = folder / RECORD, job
        self._known: set[str] | None = None

    def line(self, sources: Sequence[Path], name: str) -> str:
        """What stands in the record for an image: sha256 of the job, of its files' bytes and of its name."""
        text = json.dumps([self._job, [folder_sum(s) if s.is_dir() else sha256_file(s) for s in sources], name])
        return hashlib.sha256(text.encode()).hexdigest()

    def holds(self, sources: Sequence[Path], name: str, results: Sequence[Path]) -> bool:
        """Whether it is done, and all its results are there."""
        if self._known is None:
            try:
                self._known = set(read_file(self._path, MOST).decode("ascii", "replace").split("\n"))
            except MissingInput:
                self._known = set()
        return bool(self._known) and all(p.is_file() for p in results) and self.line(sources, name) in self._known

    def add(self, sources: Sequence[Path], name: str) -> None:
        """After its results are whole."""
        self.add_lines([self.line(sources, name)])

    def add_lines(self, lines: Sequence[str]) -> None:
        """The same for images whose `line` is known."""
        with storage_errors("Writing", self._path):
            fd = open_append(self._path, follow=False)
            try:  # what a power cut tore stays alone
                os.write(fd, "".join(f"\n{line}\n" for line in lines).encode())
            finally:
                os.close(fd)
