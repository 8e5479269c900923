"""The classes of a folder's labels: from the user's own table, wherever it lies, else from the labels themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fullyconv import images
from fullyconv.data.corpora.class_tables import class_table, find_tables, table_rank
from fullyconv.data.corpora.coding import Coding, infer_coding
from fullyconv.data.corpora.folder_lists import lists_files
from fullyconv.data.corpora.layout import is_split
from fullyconv.errors import DataError, FullyconvError, printable
from fullyconv.taxonomy import Taxonomy

__all__ = ["are_theirs", "head_coding", "not_read"]


def head_coding(
    head: str, places: Sequence[Path], chosen: Sequence[Path], every: Sequence[Path]
) -> tuple[Coding, tuple[str, ...]]:
    """How a head's labels (`chosen` of this split, `every` of all) are coded, and what is said of it.

    places: the folders in which tables of classes are looked for. For colour labels a table with colours counts, for
    others the plainest name; what else lies there is named.
    """
    tables = [f for f in find_tables(places, head) if not lists_files(f)]
    painted = _painted(chosen)
    found, notes = _choose(tables, painted)
    if found is None:
        coding, remarks = infer_coding(every, head)
        return coding, (*notes, *remarks)
    file, coding = found
    names = coding.taxonomy.names
    shown = ", ".join(map(printable, names[:12])) + (" ..." if len(names) > 12 else "")
    notes += [f"the {head} classes are those of {printable(file.name)}: {shown}."]
    notes += _others(tables, file, coding)
    if not coding.colours:
        return coding, tuple(notes)
    coding = replace(coding, by_palette=coding.colours)
    if painted:
        return coding, (*notes, f"the labels are colour-coded by {printable(file.name)}.")
    return replace(coding, colours={}), tuple(notes)  # beside index labels colours tell what a palette's index is


_TEXTS = (".json", ".yaml", ".yml", ".csv", ".tsv", ".names", ".toml", ".xml", ".ini", ".xls", ".xlsx", ".ods",
          ".pbtxt", ".qml", ".lut", ".clr", ".md")  # fmt: skip


def not_read(folders: Sequence[Path]) -> list[str]:
    """A note of the texts in `folders` that are read neither as classes nor as lists; which of them would do as a table
    of classes is said."""
    files = [f for d in dict.fromkeys(folders) if d.is_dir() for f in sorted(d.iterdir()) if f.suffix.lower() in _TEXTS]
    files = [f for f in files if _nobody_reads(f)]
    if not files:
        return []
    shown = ", ".join(printable(f.name) for f in files[:5]) + (" ..." if len(files) > 5 else "")
    table = next((f for f in files if _is_table(f)), None)
    as_table = f"classes{table.suffix.lower()}" if table else ""
    more = f" {printable(table.name)} could be a table of classes: call it {as_table} then." if table else ""
    return [f"files that are not read: {len(files)} ({shown}).{more}"]


def _nobody_reads(file: Path) -> bool:
    heads = table_rank(file) is not None or any(file.stem.lower().startswith(f"{stem}-") for stem in ("classes",))
    return not (file.name.startswith(".") or file.is_dir() or heads or lists_files(file) or is_split(file.stem))


def _is_table(file: Path) -> bool:
    if file.suffix.lower() not in (".json", ".csv", ".tsv", ".names", ".yaml", ".yml"):
        return False
    try:
        return len(class_table(file)[0].taxonomy) > 1
    except DataError:
        return False


def are_theirs(published: Sequence[Taxonomy], largest: int, places: Sequence[Path], labels: Sequence[Path]) -> bool:
    """Whether a published set's classes fit what lies there: no table of other classes (or of these in another order,
    unless by the same colours), and no label value between `largest` and 255 in a sample of the label files. A guessed
    layout yields to the user's own classes."""
    for file in find_tables(places):
        if lists_files(file):
            continue
        try:
            theirs = class_table(file)[0]
        except DataError:
            continue
        if not any(_same_classes(theirs, taxonomy) for taxonomy in published):
            return False
    for label in labels[:: max(1, len(labels) // 40)]:
        try:
            values = images.read_label(label, colours=True)
        except FullyconvError:
            continue
        if values.ndim == 2 and ((values > largest) & (values < 255)).any():
            return False
    return True


def _same_classes(theirs: Coding, published: Taxonomy) -> bool:
    mine, given = (
        {_plain(n): c for n, c in zip(t.names, t.palette, strict=True) if _plain(n) not in _NOTHING}
        for t in (published, theirs.taxonomy)
    )
    return list(mine) == list(given) or (bool(theirs.colours) and mine == given)


_NOTHING = ("void", "background", "unlabelled", "unlabeled", "ignore")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _painted(labels: Sequence[Path]) -> bool:
    """Whether labels are colours: three channels that are not one and the same."""
    for label in labels[:8]:
        try:
            values = images.read_label(label, colours=True)
        except FullyconvError:
            continue
        if values.ndim == 2:
            return False
        if images.equal_channels(values) is None:
            return True
    return False


def _choose(tables: Sequence[Path], painted: bool) -> tuple[tuple[Path, Coding] | None, list[str]]:
    """The first table that serves; one that is no plain table is passed over, and that is said."""
    first: tuple[Path, Coding, list[str]] | None = None
    notes: list[str] = []
    for file in tables:
        try:
            coding, remarks = class_table(file)
        except DataError as error:
            if first is None and file.suffix.lower() not in (".json", ".yaml", ".yml"):
                raise
            notes.append(f"{printable(file.name)} is not read: {error}")
            continue
        first = first or (file, coding, list(remarks))
        if not painted or coding.colours:
            return (file, coding), notes + list(remarks)
    return (first[:2], notes + first[2]) if first else (None, notes)


def _others(tables: Sequence[Path], chosen: Path, coding: Coding) -> list[str]:
    """A note of every further table; DataError where another split's table of the same name has other classes."""
    notes: list[str] = []
    for file in tables:
        if file == chosen:
            continue
        if file.name == chosen.name:
            other = class_table(file)[0]
            if (other.taxonomy.names, other.values, other.colours) != (
                coding.taxonomy.names,
                coding.values,
                coding.colours,
            ):
                raise DataError(
                    f"{printable(chosen)} and {printable(file)} list other classes; make them equal, or put one "
                    "classes.txt beside the splits and take both away."
                )
        else:
            notes.append(f"{printable(file.name)} is not read: {printable(chosen.name)} gives the classes.")
    return list(dict.fromkeys(notes))
