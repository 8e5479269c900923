"""Contact sheets: images in numbered cards with what is said of each, one HTML file without anything from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import encode_jpeg
from fullyconv.errors import printable
from fullyconv.pages import data_address, fill

__all__ = ["Card", "page"]


@final
@dataclass(frozen=True)
class Card:
    """Images (caption, H W 3 uint8), a title and lines below them."""

    title: str
    images: Sequence[tuple[str, NDArray[np.uint8]]]
    lines: Sequence[str] = field(default=())


@final
@dataclass(frozen=True)
class ShownCard:
    """A card as the page shows it: images are (caption, data: address)."""

    title: str
    images: Sequence[tuple[str, str]]
    lines: Sequence[str]


@final
@dataclass(frozen=True)
class ContactSheet:
    """What contacts.html shows; legend: (class, "#rrggbb")."""

    title: str
    lines: Sequence[str]
    cards: Sequence[ShownCard]
    legend: Sequence[tuple[str, str]]
    width: str


def page(
    title: str,
    lines: Sequence[str],
    cards: Sequence[Card],
    legend: Sequence[tuple[str, tuple[int, int, int]]] = (),
    width: str = "16rem",
) -> bytes:
    """The page. width: the least of a card, in CSS."""
    shown = [
        ShownCard(
            printable(card.title),
            [
                (printable(caption), data_address(encode_jpeg(image, 85), "image/jpeg"))
                for caption, image in card.images
            ],
            [printable(line) for line in card.lines],
        )
        for card in cards
    ]
    colours = [(printable(name), "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in legend]
    notes = [printable(line) for line in lines]
    return fill(
        "fullyconv.curation", "contacts.html", ContactSheet(printable(title), notes, shown, colours, width)
    ).encode()
