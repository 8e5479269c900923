"""One pass over a data set's files: what each image and label map is, without judging it (`rules` does)."""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.bands import holds_tiff
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.folder_parts import ARRAYS
from fullyconv.data.corpora.layout import SUFFIXES
from fullyconv.data.validity import filled, read_valid
from fullyconv.errors import FullyconvError, MissingExtra, TryAgain
from fullyconv.files import sha256_file
from fullyconv.images import BadImage, ImageInfo
from fullyconv.processor import cores_granted

__all__ = ["InputFacts", "LabelFacts", "RecordFacts", "coding_of", "scan", "stray_values"]

Progress = Callable[[int, int], None]
THUMBNAIL = (16, 17)  # rows, columns: 16 x 16 signs of differences along rows
SHIFTS = range(-16, 17, 2)


@final
@dataclass
class InputFacts:
    """One input file. `problem` is (kind, reason) when it cannot be read; `moments` (pixels, sums, sums of squares)."""

    modality: str
    file: Path
    problem: tuple[str, str] | None = None
    info: ImageInfo | None = None
    size: tuple[int, int] | None = None
    digest: bytes = b""
    pixels: bytes = b""  # digest of the decoded image
    thumbnail: NDArray[np.float32] | None = None
    moments: tuple[int, NDArray[np.float64], NDArray[np.float64]] | None = None
    blank: bool = False
    layout: tuple[int, str] | None = None  # (bands, type) of an input that is read by its bands
    invalid: int = 0  # pixels that hold no data: NaN, infinite, or declared so


@final
@dataclass(frozen=True)
class Shift:
    """A move of a label in pixels: `gain` is the image's edge strength under the label's boundaries there over that
    where it lies, `z` how many standard deviations that peak stands above the other moves."""

    rows: int
    columns: int
    gain: float
    z: float


@final
@dataclass
class LabelFacts:
    """One label map. `stored` counts the values as stored, `counts` the ids 0..K-1 and, last, the ignored pixels.

    shown: the file to name and to look at; the image where the labels of many lie in one file (JSON, XML, MATLAB).
    """

    head: str
    file: Path
    shown: Path
    problem: tuple[str, str] | None = None
    info: ImageInfo | None = None
    size: tuple[int, int] | None = None
    digest: bytes = b""
    stored: dict[int, int] = field(default_factory=dict)
    colours: int = 0  # distinct colours of a colour-coded map
    tripled: bool = False  # ids in three equal channels
    counts: NDArray[np.int64] | None = None
    outside: tuple[int, int, int, int] | None = None  # value, pixels, row, column
    palette: tuple[tuple[int, int, int], ...] = ()
    nodata: int | None = None  # the value that the file declares to mean nothing
    blended: float = 0.0  # share of the rare pixels that lie between their neighbours in value
    shift: Shift | None = None

    @property
    def as_stored(self) -> bool:
        """Whether the reader took stored values for ids; one of a user's own may turn 255 into class 0."""
        if self.counts is None:
            return True
        ids = [v for v in self.stored if v < len(self.counts) - 1 and v != self.nodata]
        return all(self.stored[v] == self.counts[v] for v in ids)


@final
@dataclass
class RecordFacts:
    """A record with the facts of its files."""

    split: str
    record: Record
    inputs: list[InputFacts]
    labels: list[LabelFacts]


def coding_of(dataset: Dataset, head: str) -> Coding | None:
    """How the reader decodes this head's files, where it says so."""
    codings = getattr(dataset.read_labels, "codings", None)
    found = codings.get(head) if codings else getattr(dataset.read_labels, "coding", None)
    return found if isinstance(found, Coding) else None


def stray_values(labels: Sequence[LabelFacts]) -> set[int]:
    """Stored values that look like slips: no value stands just below them, a tenth of the files at most (or two) and
    less than a thousandth of the pixels hold them."""
    files: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    for la in labels:
        if la.blended <= 0.5:
            files.update(la.stored.keys())
            pixels.update(la.stored)
    most, whole = max(2, len(labels) // 10), sum(pixels.values())
    few = {v for v in files if v not in (0, 255, 65535) and files[v] <= most and 1000 * pixels[v] < whole}
    return {v for v in few if v - 1 not in files} if len(labels) > 2 else set()


def scan(datasets: Sequence[Dataset], *, fast: bool, progress: Progress | None = None) -> list[RecordFacts]:
    """The facts of every record; fast: images are checked but not decoded, labels are always read."""
    work = [(dataset, record) for dataset in datasets for record in dataset.records]
    done: list[RecordFacts] = []
    for facts in _by_processes(work, fast) if len(work) >= _POOL_FROM and hasattr(os, "fork") else _plainly(work, fast):
        done.append(facts)
        if progress:
            progress(len(done), len(work))
    return done


_Work = Sequence[tuple[Dataset, Record]]
_POOL_FROM = 32  # below this a pool costs more than it saves
_shared: dict[int, tuple[_Work, bool]] = {}  # what forked processes find: readers are not always picklable


def _plainly(work: _Work, fast: bool) -> Iterator[RecordFacts]:
    for dataset, record in work:
        yield _facts(dataset, record, fast=fast)


def _by_processes(work: _Work, fast: bool) -> Iterator[RecordFacts]:
    """`_plainly` by forked processes; threads would hand the interpreter's lock to and fro."""
    token = id(work)
    _shared[token] = (work, fast)
    try:
        with ProcessPoolExecutor(min(8, math.ceil(cores_granted())), get_context("fork")) as pool:
            yield from pool.map(_nth, repeat(token), range(len(work)), chunksize=8)
    except BrokenExecutor as error:
        raise TryAgain("A process that checked the data was ended from outside (out of memory?); try again.") from error
    finally:
        del _shared[token]


def _nth(token: int, index: int) -> RecordFacts:
    work, fast = _shared[token]
    return _facts(*work[index], fast=fast)


def _facts(dataset: Dataset, record: Record, *, fast: bool) -> RecordFacts:
    inputs: list[InputFacts] = []
    first: NDArray[Any] | None = None
    # A folder's further inputs are files of the user's and checked even when unused; elsewhere they may be computed.
    every = [m for m in record.inputs if m in dataset.inputs or (dataset.kind == "folder" and m != "rgb")]
    for modality in every:
        facts, image = _input_facts(dataset, record, modality, record.inputs[modality], fast=fast)
        inputs.append(facts)
        first = image if modality == dataset.inputs[0] else first
    labels = [_label_facts(dataset, record, head, first) for head in dataset.taxonomies if head in record.labels]
    return RecordFacts(dataset.split, record, inputs, labels)


# ---- images --------------------------------------------------------------------------------------------------


def _shown(record: Record, file: Path) -> Path:
    """What findings call a record's file; a window of it by its place."""
    if record.window is None:
        return file
    top, left, bottom, right = record.window
    return file.with_name(f"{file.name}, rows {top} to {bottom}, columns {left} to {right}")


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES


def _is_array(file: Path) -> bool:
    return file.suffix.lower() in ARRAYS


def _problem(error: Exception, data: bytes | None) -> tuple[str, str]:
    """(kind, reason) of a file that was refused."""
    if isinstance(error, MissingExtra):
        return "missing-extra", str(error)
    reason = error.reason if isinstance(error, BadImage) else str(error)
    if data == b"" or "(0 bytes)" in reason:
        return "empty-file", reason
    if "does not exist" in reason:
        return "missing-file", reason
    if "no class ids" in reason or "label values outside" in reason:
        return "label-numbers", reason
    return "unreadable-file", reason


def _input_facts(
    dataset: Dataset, record: Record, modality: str, file: Path, *, fast: bool
) -> tuple[InputFacts, NDArray[Any] | None]:
    facts, data = InputFacts(modality, _shown(record, file)), None
    try:
        if record.window is not None or not _is_image(file):
            image = dataset.read_input(record, modality)
            facts.size = (image.shape[0], image.shape[1])
        else:
            data = images.read_bytes(file)
            facts.digest = hashlib.sha256(data).digest()
            colour = modality in ("rgb", "hha")
            facts.info = _info(data, file, colour=colour)
            if facts.info:
                facts.size = facts.info.size
                _complete_jpeg(data, facts.info)
            if fast and facts.info and colour and not (holds_tiff(file) and images.declared_invalid(file) is not None):
                return facts, None
            image = images.read_image(data) if colour else dataset.read_input(record, modality)
            facts.size = (image.shape[0], image.shape[1])
            facts.layout = None if colour else (image.shape[2], str(image.dtype))
        if dataset.read_invalid is None:
            image, invalid = read_valid(image, file)
        else:
            image, invalid = filled(image, dataset.read_invalid(record, modality))
        facts.invalid = 0 if invalid is None else int(invalid.sum())
    except (FullyconvError, OSError) as error:
        facts.problem = _problem(error, data)
        return facts, None
    if not fast:
        _look(facts, image, invalid)
    return facts, image


def _info(data: bytes, file: Path, *, colour: bool) -> ImageInfo | None:
    """What the header says; None for a TIFF of bands in a layout that only rasterio reads."""
    try:
        return images.image_info(data)
    except BadImage:
        if colour or not holds_tiff(file):
            raise
        return None


def _complete_jpeg(data: bytes, info: ImageInfo) -> None:
    """A JPEG that was cut off lacks its end marker; found without decoding it."""
    if info.format == "JPEG" and b"\xff\xd9" not in data[-4096:]:
        raise BadImage("", f"is cut off after {len(data)} bytes (no end marker); copy it again.")


def _look(facts: InputFacts, image: NDArray[np.number], invalid: NDArray[np.bool_] | None) -> None:
    """Statistics of the decoded image, from every fourth row and column."""
    few = image[::4, ::4].reshape(-1, image.shape[2]).astype(np.float64)
    few = few if invalid is None else few[~invalid[::4, ::4].ravel()]
    facts.moments = (len(few), few.sum(axis=0), np.square(few).sum(axis=0))
    facts.blank = bool(len(few) and (few == few[0]).all() and (image == image[0, 0]).all())
    facts.pixels = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    facts.thumbnail = _thumbnail(image)


def _thumbnail(image: NDArray[np.number]) -> NDArray[np.float32]:
    """16 x 17 mean brightnesses."""
    from PIL import Image

    grey = image[..., 1] if image.shape[2] >= 3 else image[..., 0]
    plane = Image.fromarray(np.ascontiguousarray(grey if grey.dtype == np.uint8 else grey.astype(np.float32)))
    small = plane.resize(THUMBNAIL[::-1], Image.Resampling.BOX)
    return np.asarray(small).astype(np.float32)


# ---- labels ----------------------------------------------------------------------------------------------------


def _label_facts(dataset: Dataset, record: Record, head: str, image: NDArray[np.number] | None) -> LabelFacts:
    file = record.labels[head]
    own = record.window is None and (_is_image(file) or _is_array(file))
    shown = file if own else _shown(record, next(iter(record.inputs.values()), file))
    facts = LabelFacts(head, file, shown)
    coding = coding_of(dataset, head)
    if own and not _raw_facts(facts, by_colour=bool(coding and coding.colours)):
        return facts
    try:
        ids = dataset.read_labels(record, head)
    except (FullyconvError, OSError) as error:
        if not facts.stored and not facts.colours:
            facts.problem = _problem(error, None)
        else:
            facts.problem = ("no-class", error.reason if isinstance(error, BadImage) else str(error))
            _outside(facts, dataset, head)
        return facts
    taxonomy = dataset.taxonomies[head]
    counts = np.bincount(ids.ravel(), minlength=max(len(taxonomy), taxonomy.ignore) + 1)
    facts.counts = np.append(counts[: len(taxonomy)], counts[taxonomy.ignore])
    facts.size = (ids.shape[0], ids.shape[1])
    if image is not None and image.shape[:2] == ids.shape:
        facts.shift = best_shift(image, ids)
    return facts


def _raw_facts(facts: LabelFacts, *, by_colour: bool) -> bool:
    """The file as stored; False when it is no label map at all."""
    data = None
    try:
        if _is_array(facts.file):
            facts.digest = bytes.fromhex(sha256_file(facts.file))
            stored = images.stored_label(facts.file, colours=True)
            facts.size = stored.values.shape[:2]
        else:
            data = images.read_bytes(facts.file)
            facts.digest = hashlib.sha256(data).digest()
            facts.info = _info(data, facts.file, colour=False)  # None for numbers of 64 bits
            stored = images.stored_label(data, colours=True)
            facts.size = facts.info.stored if facts.info else stored.values.shape[:2]
    except (FullyconvError, OSError) as error:
        facts.problem = _problem(error, data)
        return False
    raw, facts.nodata = stored.values, stored.nodata
    if raw.ndim == 3 and not by_colour and (one := images.equal_channels(raw)) is not None:
        raw, facts.tripled = one, True
    if raw.ndim == 3:
        packed = raw.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        facts.colours = len(np.unique(packed))
        return True
    counts = np.bincount(raw.ravel())
    facts.stored = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    facts.palette = tuple((r, g, b) for r, g, b in stored.palette.tolist())
    facts.blended = _blended(raw, counts)
    return True


def _outside(facts: LabelFacts, dataset: Dataset, head: str) -> None:
    """The first value that is no class, where the file stores ids."""
    taxonomy, coding = dataset.taxonomies[head], coding_of(dataset, head)
    if facts.colours or (coding and coding.values):
        return
    bad = [v for v in facts.stored if v >= len(taxonomy) and v != taxonomy.ignore]
    if bad:
        raw = images.read_label(facts.file)
        row, column = np.argwhere(np.isin(raw, bad))[0]
        facts.outside = (int(raw[row, column]), sum(facts.stored[v] for v in bad), int(row), int(column))


def _blended(raw: NDArray[np.number], counts: NDArray[np.int64]) -> float:
    """The share of pixels of rare values that lie strictly between two neighbours: near 1 after interpolation."""
    rare = (counts > 0) & (counts < 0.02 * raw.size)
    if np.count_nonzero(rare) < 5 or min(raw.shape) < 5:
        return 0.0
    at = rare[raw]
    a = raw.astype(np.int32)
    between = np.zeros(raw.shape, bool)
    for d in (1, 2):
        up, down, left, right = a[: -2 * d], a[2 * d :], a[:, : -2 * d], a[:, 2 * d :]
        mid_r, mid_c = a[d:-d], a[:, d:-d]
        between[d:-d] |= (np.minimum(up, down) < mid_r) & (mid_r < np.maximum(up, down))
        between[:, d:-d] |= (np.minimum(left, right) < mid_c) & (mid_c < np.maximum(left, right))
    return float((between & at).sum() / at.sum())


def best_shift(image: NDArray[np.number], ids: NDArray[np.integer]) -> Shift | None:
    """The move of the label that puts its boundaries onto the strongest edges; None for too few boundaries."""
    grey = image[..., 1 if image.shape[2] >= 3 else 0].astype(np.float32)
    edges = np.zeros_like(grey)
    edges[1:-1, 1:-1] = np.abs(grey[2:, 1:-1] - grey[:-2, 1:-1]) + np.abs(grey[1:-1, 2:] - grey[1:-1, :-2])
    edges = np.minimum(edges, 4 * edges.mean() + 1)  # a few glaring lights are not to decide
    boundary = np.zeros(ids.shape, bool)
    boundary[:-1] |= ids[:-1] != ids[1:]
    boundary[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    reach = SHIFTS[-1] + 1
    boundary[:reach] = boundary[-reach:] = False
    boundary[:, :reach] = boundary[:, -reach:] = False
    rows, columns = np.nonzero(boundary)
    if len(rows) < 100:
        return None
    step = max(1, len(rows) // 800)
    at = rows[::step] * ids.shape[1] + columns[::step]
    moves = np.array([dy * ids.shape[1] + dx for dy in SHIFTS for dx in SHIFTS])
    strength = edges.ravel()[at[None, :] + moves[:, None]].mean(axis=1).reshape(len(SHIFTS), len(SHIFTS))
    best, middle = np.unravel_index(int(strength.argmax()), strength.shape), len(SHIFTS) // 2
    y, x = np.ogrid[: len(SHIFTS), : len(SHIFTS)]
    far = strength[np.hypot(y - best[0], x - best[1]) >= 4]
    peak = float(strength[best])
    return Shift(
        SHIFTS[int(best[0])],
        SHIFTS[int(best[1])],
        peak / max(float(strength[middle, middle]), 1e-6),
        (peak - float(far.mean())) / max(float(far.std()), 1e-6),
    )
