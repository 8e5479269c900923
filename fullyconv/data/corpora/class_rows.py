"""One class as a table gives it, and rows of them as a coding of labels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.data.corpora.coding import Coding
from fullyconv.errors import DataError, printable
from fullyconv.files import read_text
from fullyconv.taxonomy import Colour, Taxonomy

__all__ = ["HEX", "MEANS", "ClassRow", "bare_name", "colour_of", "rows_coding", "table_text", "value_of"]

_LARGEST = 2**22  # bytes of a table of classes
HEX = re.compile(r"#?[0-9a-fA-F]{6}")
_WORDS = {
    "name": ("name", "names", "classname", "classnames", "labelname", "title", "categoryname"),
    "named": ("class", "classes", "label", "labels", "category", "categories", "object", "description"),
    "value": ("id", "classid", "labelid", "value", "pixelvalue", "index", "idx", "classindex", "number", "pixel",
              "code", "classvalue", "labelvalue", "grayvalue", "greyvalue", "gray", "grey"),
    "r": ("r", "red"), "g": ("g", "green"), "b": ("b", "blue"),
    "colour": ("color", "colour", "rgb", "hex", "colorrgb", "hexcolor", "labelcolor", "rgbcolor", "rgbvalue", "colors"),
    "": ("a", "alpha"),
}  # fmt: skip
MEANS = {word: what for what, words in _WORDS.items() for word in words}


@final
@dataclass(frozen=True)
class ClassRow:
    """One class as its line (or entry) gives it."""

    name: str
    colour: Colour | None = None
    value: int | None = None
    where: str = ""  # "line 3"
    numbered: bool = False  # the value is a number of the table, whose order counts, not a "name = value"


_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "ignorelabel", "dontcare")


def rows_coding(rows: Sequence[ClassRow], file: Path) -> Coding:
    """The rows as a taxonomy with the values and colours that stand for it."""
    rows = [r for r in rows if r.name != "__ignore__"]  # labelme's first line: its number is -1
    if rows and all(r.numbered for r in rows):
        rows = sorted(rows, key=lambda r: r.value or 0)
    classes = [r for r in rows if not _ignored(r)]
    if not classes:
        raise DataError(f"{printable(file)} names no class; write one class name a line.")
    for what in ("colour", "value"):
        given = [v for r in rows if (v := getattr(r, what)) is not None]
        if given and (lacking := next((r for r in rows if getattr(r, what) is None and not _ignored(r)), None)):
            raise DataError(
                f"{printable(file)} gives {'values (name = value)' if what == 'value' else 'colours'} to some classes "
                f"only, {lacking.where} ({printable(lacking.name)!r}) has none; give one to each."
            )
        if twice := [v for v, n in Counter(given).items() if n > 1]:
            places = " and ".join(r.where for r in rows if getattr(r, what) == twice[0])
            raise DataError(
                f"{printable(file)} gives the {what} {twice[0]} twice ({places}); every class needs its own."
            )
    palette = tuple(r.colour for r in classes if r.colour is not None)
    try:
        taxonomy = Taxonomy(tuple(r.name for r in classes), palette)
    except DataError as error:
        raise DataError(f"{printable(file)}: {error}") from error
    ids = {id(r): k for k, r in enumerate(classes)}
    ignore = taxonomy.ignore
    values = {r.value: ids.get(id(r), ignore) for r in rows if r.value is not None}
    colours = {r.colour: ids.get(id(r), ignore) for r in rows if r.colour} if palette else {}
    plain = values == {k: k for k in range(len(classes))}
    return Coding(taxonomy, {} if plain else values, colours, numbered=bool(values))


def _ignored(row: ClassRow) -> bool:
    """Whether a row is marked with "!", or gives the ignored value 255 (65535) a name that says so."""
    plain = re.sub(r"[^a-z]", "", row.name.lower())
    return row.name.startswith("!") or (row.value in (255, 65535) and plain in _VOID)


def table_text(file: Path) -> str:
    return read_text(file, _LARGEST)


def value_of(text: str, file: Path) -> int:
    if len(text) > 5 or int(text) > 65535:
        raise DataError(f"{printable(file)}: the value {text[:20]} is above 65535; labels hold 16 bits.")
    return int(text)


def colour_of(cell: str) -> Colour | None:
    """#804080, "128 64 128", (128, 64, 128) or [128, 64, 128], alpha behind it or not; None for anything else."""
    if HEX.fullmatch(cell) and (cell.startswith("#") or not cell.isdecimal()):
        plain = cell.lstrip("#")
        return int(plain[:2], 16), int(plain[2:4], 16), int(plain[4:], 16)
    found = re.fullmatch(r"[(\[]?\s*(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?:[\s,;]+\d{1,3})?\s*[)\]]?", cell)
    if not found or max(map(int, found.groups())) > 255:
        return None
    r, g, b = map(int, found.groups())
    return r, g, b


def bare_name(name: str) -> str:
    """A name without quotes around it."""
    name = name.strip()
    return name[1:-1] if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'" else name
