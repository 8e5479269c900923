"""What label values mean: class names, palette and the value that is ignored; and the published taxonomies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fullyconv.errors import DataError

__all__ = ["Taxonomy", "voc_palette"]

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Taxonomy:
    """K classes: `names[k]`, `palette[k]` (R, G, B in 0..255) and the label value that counts as nothing.

    Ids are 0..K-1. `ignore` is 255 for K <= 255 and 65535 above, unless given.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...] = ()
    ignore: int = -1

    def __post_init__(self) -> None:
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
    r, g, b = (int(v) for v in c)
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
