"""How stored label values become class ids: identity, a table of values, or a table of colours; and guessing it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.errors import DataError, FullyconvError, printable
from fullyconv.taxonomy import Taxonomy

__all__ = ["Coding", "check_ids", "infer_coding", "read_coded"]

Colour = tuple[int, int, int]
_PACK = np.array([65536, 256, 1], np.float32)  # (r, g, b) -> one number; below 2^24 every integer is a float32


OWN_TABLES = {"nnunet": "dataset.json", "cvat": "labelmap.txt"}  # where a kind's users list their classes
ALSO_FOLDERS = ("voc", "camvid", "ade20k")  # kinds whose layouts are plain folders too


@final
@dataclass(frozen=True)
class Coding:
    """A taxonomy and how label files write it.

    `values` maps stored values to ids and `colours` colours to ids (the ignore value among them); without either the
    stored value is the id. Where files store palette indices beside a colour table, `by_palette` decodes each file by
    its palette's colours. Nodata that a file declares is ignored unless the table lists it. Values and colours that are
    not listed are errors; the ignore value always is itself, and 65535, the 16-bit one, is ignored too.
    `kind` names the published set whose classes these are, for remedies.
    """

    taxonomy: Taxonomy
    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[Colour, int] = field(default_factory=dict)
    kind: str = ""
    by_palette: Mapping[Colour, int] = field(default_factory=dict)  # colours -> ids where files store palette indices
    numbered: bool = False  # whether the user gave each class its stored value

    @property
    def remedy(self) -> str:
        """What to do about a value or colour that is no class."""
        if not self.kind or self.kind in OWN_TABLES:
            return f"correct it, or list it in {OWN_TABLES.get(self.kind, 'classes.txt')}"
        return f"correct it, or, if it is no {self.kind} label, read your own classes as folder:PATH with a classes.txt"

    def lists(self, value: int) -> bool:
        """Whether the user's table names this stored value."""
        return value in self.values or (self.numbered and not self.values and value < len(self.taxonomy))

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        return np.uint8 if self.taxonomy.ignore <= 255 else np.uint16

    @cached_property
    def value_table(self) -> NDArray[np.int32]:
        """65536 entries: stored value -> id, -1 where there is none."""
        table = np.full(65536, -1, np.int32)
        table[[self.taxonomy.ignore, 65535]] = self.taxonomy.ignore
        for value, k in self.values.items():
            table[value] = k
        return table

    @cached_property
    def byte_table(self) -> bytes:
        """256 entries as `bytes.translate` takes them: stored byte -> id, `len(taxonomy)` where there is none.

        Empty where that number is no free byte: then `value_table` serves.
        """
        free = len(self.taxonomy)
        if self.taxonomy.ignore > 255 or free > 255 or free == self.taxonomy.ignore:
            return b""
        table = self.value_table[:256]
        return np.where(table < 0, free, table).astype(np.uint8).tobytes()

    @cached_property
    def colour_table(self) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
        """(m, key by slot, id by slot): every packed colour has a slot of its own modulo m, so a lookup is one step."""
        keys = {r << 16 | g << 8 | b: k for (r, g, b), k in self.colours.items()}
        m = next(m for m in range(len(keys), 1 << 25) if len({key % m for key in keys}) == len(keys))
        key_of, id_of = np.full(m, -1, np.int32), np.full(m, -1, np.int32)
        for key, k in keys.items():
            key_of[key % m], id_of[key % m] = key, k
        return m, key_of, id_of


def read_coded(file: Path, coding: Coding) -> NDArray[Any]:
    """The ids in a label file: H W uint8 or uint16, each 0..K-1 or the ignore value.

    Raises BadImage for a file that is no label map and DataError for a value or colour without a class (which, how
    many pixels, where the first is).
    """
    stored = images.stored_label(file, colours=bool(coding.colours))
    label, nothing = stored.values, None
    if label.ndim == 3:
        one = images.equal_channels(label)
        if one is None or all((v, v, v) in coding.colours for v in np.flatnonzero(np.bincount(one.ravel())).tolist()):
            return _from_colours(label, coding, file)
        label = one  # ids, three times
    if stored.nodata is not None and not coding.lists(stored.nodata):
        nothing = label == stored.nodata
        label = np.where(nothing, label.dtype.type(next(iter(coding.values), 0)), label)
    if coding.by_palette and len(stored.palette) and (moved := _by_palette(label, stored.palette, coding, file)):
        table = np.arange(256, dtype=label.dtype)
        table[list(moved)] = list(moved.values())
        label = table.take(label)
    ids = _from_values(label, coding, file) if coding.values else check_ids(label, coding, file)
    return ids if nothing is None else np.where(nothing, coding.dtype(coding.taxonomy.ignore), ids)


def _by_palette(label: NDArray[np.integer], palette: NDArray[np.uint8], coding: Coding, file: Path) -> dict[int, int]:
    """Stored index -> id where the file's palette gives the classes' colours to other indices; {} where ids and colours
    agree or the palette is another. DataError where some of its colours are moved and others in no table."""
    used = [v for v in np.flatnonzero(np.bincount(label.ravel())).tolist() if v != coding.taxonomy.ignore]
    colour = {v: (int(r), int(g), int(b)) for v in used if v < len(palette) for r, g, b in [palette[v]]}
    known = {v: coding.by_palette[c] for v, c in colour.items() if c in coding.by_palette}
    moved = {v: k for v, k in known.items() if v != k}
    if moved and len(known) < len(used):
        strange = next(v for v in used if v not in known)
        v, k = next(iter(moved.items()))
        what = repr(coding.taxonomy.names[k]) if k < len(coding.taxonomy) else "what is ignored"
        raise DataError(
            f"{printable(file)}: the label's palette gives index {v} the colour {colour[v]} of {what}, and index "
            f"{strange} the colour {colour.get(strange, 'of none')}, which is no class; list its colour in classes.txt."
        )
    return moved


def check_ids(label: NDArray[np.integer], coding: Coding, file: Path) -> NDArray[Any]:
    """`label` if its values are ids of the coding's classes (65535 becomes its ignore value), else DataError with the
    value, the count and the place."""
    k, ignore = len(coding.taxonomy), coding.taxonomy.ignore
    if label.max() >= k:
        if label.dtype == np.uint16:
            label = np.where(label == 65535, np.uint16(ignore), label)
        bad = (label >= k) & (label != ignore)
        if bad.any():
            raise _no_class(file, f"value {label[bad][0]}", bad, coding)
    # One type for all files of a head: 8-bit files beside 16-bit ones must meet in a batch without being cut.
    return label.astype(np.uint8 if ignore <= 255 else np.uint16, copy=False)


def _from_values(label: NDArray[np.integer], coding: Coding, file: Path) -> NDArray[Any]:
    ids: NDArray[Any]
    if label.dtype == np.uint8 and coding.byte_table:  # five times as fast as indexing
        ids = np.frombuffer(label.tobytes().translate(coding.byte_table), np.uint8).reshape(label.shape)
        bad = ids == len(coding.taxonomy)
    else:
        ids = coding.value_table.astype(coding.dtype).take(label)
        bad = (coding.value_table < 0).take(label)
    if bad.any():
        raise _no_class(file, f"value {label[bad][0]}", bad, coding)
    return ids


def _from_colours(label: NDArray[np.integer], coding: Coding, file: Path) -> NDArray[Any]:
    m, key_of, id_of = coding.colour_table
    packed = (label.astype(np.float32) @ _PACK).astype(np.int32)
    slot = packed % m
    unknown = key_of.take(slot) != packed
    if unknown.any():
        colour = tuple(int(v) for v in label[unknown][0])
        others = [(c >> 16, c >> 8 & 255, c & 255) for c in np.unique(packed[unknown]).tolist()]
        more = f" and {len(others) - 1} others, such as {next(c for c in others if c != colour)}," if others[1:] else ""
        raise _no_class(file, f"colour {colour}{more}", unknown, coding)
    ids: NDArray[Any] = id_of.astype(coding.dtype).take(slot)
    return ids


def _no_class(file: Path, what: str, bad: NDArray[np.bool_], coding: Coding) -> DataError:
    taxonomy = coding.taxonomy
    row, column = (int(v) for v in np.argwhere(bad)[0])
    return DataError(
        f"{printable(file)}: the label {what} is no class ({int(bad.sum())} pixels, the first at row {row}, column "
        f"{column}); the classes are 0..{len(taxonomy) - 1} and {taxonomy.ignore} is ignored: {coding.remedy}."
    )


# ---- guessing --------------------------------------------------------------------------------------------------


def infer_coding(files: Sequence[Path], head: str) -> tuple[Coding, tuple[str, ...]]:
    """Classes from the label files themselves, and the sentence that says so.

    Files that cannot be read are passed over here; reading them later, or the check, names them. 255 (65535 in 16-bit
    files) counts as ignored. Colour-coded files get one class a colour, black first, then by red, green, blue.
    """
    found = _stored_in(tuple((f, *_stamp(f)) for f in files))
    values = {v for kind, vs in found if kind == "values" for v in vs}
    colours = {v for kind, vs in found if kind == "colours" for v in vs}
    if _are_ids(colours):
        values, colours = values | {r for r, _, _ in colours}, set()
    if colours and not values:
        most = max(range(len(files)), key=lambda i: len(found[i][1]))
        return _from_seen_colours(sorted(colours), head, files[most], len(found[most][1]))
    ignore = {v for v in (255, 65535) if v in values and (v == 65535 or max(values) == 255)}
    ids = sorted(values - ignore)
    classes = max(ids, default=0) + 1
    taxonomy = Taxonomy.numbered(classes)
    palette = next((p for f in files[:8] if (p := _palette(f))), ())
    if len(palette) >= classes:
        taxonomy = Taxonomy(taxonomy.names, palette[:classes])
    text = _ranges(ids) + "".join(f", {v} ignored" for v in sorted(ignore))
    note = f"the {head} classes are inferred from the labels: {classes} class{'es' * (classes != 1)} (values {text}); "
    return Coding(taxonomy), (note + "name them in a classes.txt, one a line.",)


def _are_ids(colours: Collection[Colour]) -> bool:
    """Whether "colours" are small ids stored in three equal channels, which `read_label` takes for one."""
    middle = {r for r, g, b in colours if r == g == b and 0 < r < 255}
    return bool(middle) and all(r == g == b for r, g, b in colours) and max(middle) <= 4 * len(middle)


def _from_seen_colours(
    colours: Sequence[Colour], head: str, worst: Path, its_colours: int
) -> tuple[Coding, tuple[str, ...]]:
    if len(colours) > 256:
        raise DataError(
            f"The {head} labels are in colour and hold over 256 different colours, {printable(worst)} alone "
            f"{its_colours} (blended edges or JPEG?); export them without smoothing, or list the classes in "
            "classes.txt (name r g b)."
        )
    taxonomy = Taxonomy(tuple(f"rgb {r} {g} {b}" for r, g, b in colours), tuple(colours))
    shown = ", ".join(f"{k} = {c}" for k, c in enumerate(colours[:12])) + (" ..." if len(colours) > 12 else "")
    note = f"the {head} labels are colour-coded and no colour table is given: one class a colour, {shown}; "
    return Coding(taxonomy, {}, {c: k for k, c in enumerate(colours)}), (
        note + "name them in classes.txt (name r g b).",
    )


def _stamp(file: Path) -> tuple[int, int]:
    """What changes with a file: (size, time of the last change); zeros where it cannot be said."""
    try:
        info = file.stat()
    except OSError:
        return 0, 0
    return info.st_size, info.st_mtime_ns


@lru_cache(maxsize=4)
def _stored_in(stamped: tuple[tuple[Path, int, int], ...]) -> list[tuple[str, Sequence[Any]]]:
    """`_stored` of every file; remembered, since each split of a data set asks for the files of all."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(_stored, [file for file, *_ in stamped]))


def _stored(file: Path) -> tuple[str, Sequence[Any]]:
    try:
        stored = images.stored_label(file, colours=True)
    except FullyconvError:
        return "nothing", ()
    label = stored.values
    if label.ndim == 2:
        return "values", [v for v in np.flatnonzero(np.bincount(label.ravel())).tolist() if v != stored.nodata]
    packed = (label.astype(np.float32) @ _PACK).astype(np.int32)
    return "colours", [(c >> 16, c >> 8 & 255, c & 255) for c in np.unique(packed)[:5000].tolist()]


def _palette(file: Path) -> tuple[Colour, ...]:
    try:
        return images.read_palette(file)
    except FullyconvError:
        return ()


def _ranges(ids: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0..2, 5"."""
    runs: list[list[int]] = []
    for i in ids:
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    text = [f"{a}" if a == b else f"{a}..{b}" for a, b in runs]
    return ", ".join(text[:12]) + (" ..." if len(text) > 12 else "") or "none"
