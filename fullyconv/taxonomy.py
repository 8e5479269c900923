"""What label values mean: class names, palette and the value that is ignored; and which classes of two sets of names
are the same (`match`)."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, final

from fullyconv.arguments import CLASSES, WHOLE, require
from fullyconv.errors import DataError, printable

__all__ = ["Match", "Taxonomy", "listed_names", "match", "voc_palette"]

Colour = tuple[int, int, int]


@final
@dataclass(frozen=True)
class Taxonomy:
    """K classes: `names[k]`, `palette[k]` (R, G, B in 0..255) and the label value that counts as nothing.

    Ids are 0..K-1. `ignore` is 255 for K <= 255 and 65535 above, unless given.

    >>> fc.Taxonomy(("ground", "disc"), ((0, 0, 0), (255, 0, 0)))
    Taxonomy(2 classes: ground, disc; 255 is ignored)
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()
    ignore: int = -1

    def __post_init__(self) -> None:
        require(self.names, CLASSES, "Taxonomy", "names")
        require(self.palette, CLASSES, "Taxonomy", "palette")
        require(self.ignore, WHOLE, "Taxonomy", "ignore")
        given: Sequence[Any] = self.names
        if odd := [n for n in given if not isinstance(n, str) and not WHOLE.fits(n)]:
            raise DataError(f"A class is named by a text, not by a {type(odd[0]).__name__}; give names=['a', 'b'].")
        names = tuple(str(n) for n in self.names)
        object.__setattr__(self, "names", names)
        if not names:
            raise DataError("A taxonomy needs at least one class name; give the class names in order of their ids.")
        if len(set(names)) != len(names):
            twice = sorted(n for n, count in Counter(names).items() if count > 1)
            raise DataError(f"The class name {twice[0]!r} occurs twice; every class needs a name of its own.")
        palette = tuple(_colour(c) for c in self.palette) or voc_palette(len(names))
        if len(palette) != len(names):
            raise DataError(f"{len(names)} class names but {len(palette)} palette colours; give one colour a class.")
        object.__setattr__(self, "palette", palette)
        ignore = self.ignore if self.ignore >= 0 else (255 if len(names) <= 255 else 65535)
        if ignore < len(names):
            raise DataError(f"The ignore value {ignore} is also a class id (0..{len(names) - 1}); choose a larger one.")
        object.__setattr__(self, "ignore", ignore)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        some = ", ".join(map(printable, self.names[:5])) + (", ..." if len(self) > 5 else "")
        return f"Taxonomy({len(self)} classes: {some}; {self.ignore} is ignored)"

    def _repr_html_(self) -> str:
        """A notebook's table: id, colour, name. Names are text, whatever they hold."""
        rows = (
            f'<tr><td>{k}</td><td style="background:rgb({r},{g},{b})"></td><td>{escape(printable(name))}</td></tr>'
            for k, (name, (r, g, b)) in enumerate(zip(self.names, self.palette, strict=True))
        )
        return f"<table><tr><th>id</th><th></th><th>class</th></tr>{''.join(rows)}</table>"

    @property
    def named_by(self) -> Literal["name", "number", "colour"]:
        """Whether the classes bear names, or only numbers ("class 3", "3") or colours ("rgb 0 0 255")."""
        return "number" if _numbers(self) else "colour" if _coloured(self) else "name"

    @classmethod
    def numbered(cls, classes: int) -> Taxonomy:
        """K classes named by their ids, with the VOC palette."""
        return cls(tuple(f"class {k}" for k in range(classes)))

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "palette": [list(c) for c in self.palette], "ignore": self.ignore}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Taxonomy:
        return cls(tuple(value["names"]), tuple(_colour(c) for c in value["palette"]), int(value["ignore"]))


def _colour(c: Sequence[int]) -> Colour:
    try:
        r, g, b = (int(v) for v in c)
    except (TypeError, ValueError):
        raise DataError(f"{printable(repr(c))[:60]} is no colour; give red, green and blue, each 0..255.") from None
    if not all(0 <= v <= 255 for v in (r, g, b)):
        raise DataError(f"The colour {(r, g, b)} is outside 0..255; give red, green and blue as bytes.")
    return r, g, b


def voc_palette(classes: int) -> tuple[Colour, ...]:
    """The PASCAL VOC colour map: bits of the id, three at a time (R, G, B), into descending bit positions."""

    def colour(k: int) -> Colour:
        r = g = b = 0
        for bit in range(7, -1, -1):
            r, g, b, k = r | (k & 1) << bit, g | (k >> 1 & 1) << bit, b | (k >> 2 & 1) << bit, k >> 3
        return r, g, b

    return tuple(colour(k) for k in range(classes))


@final
@dataclass(frozen=True)
class Match:
    """Which classes of two taxonomies are the same: `ids[k]` is the id that our class k has in `theirs`, -1 for none.

    how: "same" (the same names in the same order), by "names", "numbers" (both are only numbered), "ids" (one is only
    numbered: by its place) or "colours" (one is only named by its colours).
    """

    ours: Taxonomy
    theirs: Taxonomy
    ids: tuple[int, ...]
    how: Literal["same", "names", "numbers", "ids", "colours"]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Our classes that they lack."""
        return tuple(name for name, k in zip(self.ours.names, self.ids, strict=True) if k < 0)

    @property
    def spare(self) -> tuple[str, ...]:
        """Their classes that we lack."""
        return tuple(name for k, name in enumerate(self.theirs.names) if k not in self.ids)

    @property
    def identical(self) -> bool:
        """Whether id k means the same in both."""
        return self.ids == tuple(range(len(self.theirs)))

    def __str__(self) -> str:
        """How they were matched, in words: what moved, what is named otherwise, what has no partner."""
        by = {"same": "name", "names": "name", "numbers": "number", "ids": "id", "colours": "colour"}[self.how]
        pairs = [(k, to) for k, to in enumerate(self.ids) if to >= 0]
        moved = [f"{printable(self.ours.names[k])} {k} -> {to}" for k, to in pairs if k != to]
        called = [
            f"{printable(self.ours.names[k])} is {printable(self.theirs.names[to])}"
            for k, to in pairs
            if self.ours.names[k] != self.theirs.names[to]
        ]
        parts = [f"{len(pairs)} of {len(self.ids)} classes matched by {by}"]
        parts += [_few(moved)] if moved else []
        parts += [_few(called)] if called and not moved else []
        parts += [f"without a partner: {_few([printable(n) for n in self.unknown])}"] if self.unknown else []
        parts += [f"not among them: {_few([printable(n) for n in self.spare])}"] if self.spare else []
        return "; ".join(parts)


def match(ours: Taxonomy, theirs: Taxonomy) -> Match:
    """Which of our classes is which of theirs, by name.

    Equal names first; what is left by names that differ in case, blanks, "_" and "-" alone, where only one of each
    side does. Classes that are only numbered ("class 3", "3") match by number; against names, by their ids; classes
    that are only named by their colours ("rgb 0 0 255"), by the other side's palette. Whoever asks decides what
    becomes of those without a partner (-1).
    """
    if ours.names == theirs.names:
        return Match(ours, theirs, tuple(range(len(ours))), "same")
    one, two = _numbers(ours), _numbers(theirs)
    if one and two:
        return Match(ours, theirs, _paired(one, two), "numbers")
    if one or two:
        return Match(ours, theirs, tuple(k if k < len(theirs) else -1 for k in range(len(ours))), "ids")
    if _coloured(ours) != _coloured(theirs):
        return Match(ours, theirs, _paired(ours.palette, theirs.palette), "colours")
    ids = _paired(ours.names, theirs.names)
    left = [name if k < 0 else None for name, k in zip(ours.names, ids, strict=True)]
    free = [name if k not in ids else None for k, name in enumerate(theirs.names)]
    alike = _paired([_folded(n) for n in left], [_folded(n) for n in free])
    return Match(ours, theirs, tuple(a if k < 0 else k for k, a in zip(ids, alike, strict=True)), "names")


def listed_names(taxonomy: Taxonomy, most: int = 6) -> str:
    """The class names for a message: the first `most`, and how many there are."""
    return _few([printable(n) for n in taxonomy.names], most)


def _few(texts: Sequence[str], most: int = 6) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _paired(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> tuple[int, ...]:
    """For each of ours the place of its equal in theirs; -1 without one, for None, and where one occurs twice."""
    place = {key: k for k, key in enumerate(theirs)}
    once = {key for key, n in Counter(theirs).items() if n == 1} & {k for k, n in Counter(ours).items() if n == 1}
    return tuple(place[key] if key is not None and key in once else -1 for key in ours)


_NUMBERED = re.compile(r"(?:(?:class|label|category|id)[\s_-]*)?(\d{1,9})", re.IGNORECASE)


def _numbers(taxonomy: Taxonomy) -> tuple[int, ...]:
    """The classes' numbers where they are only numbered, each with one of its own; else nothing."""
    found = [_NUMBERED.fullmatch(name.strip()) for name in taxonomy.names]
    numbers = tuple(int(m[1]) for m in found if m)
    return numbers if len(set(numbers)) == len(found) else ()


def _coloured(taxonomy: Taxonomy) -> bool:
    """Whether the classes are only named by their colours."""
    return all(name == f"rgb {r} {g} {b}" for name, (r, g, b) in zip(taxonomy.names, taxonomy.palette, strict=True))


def _folded(name: str | None) -> str | None:
    """`name` without what people write in different ways: case, blanks, "_", "-", the form of accents."""
    return None if name is None else re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name).casefold())
