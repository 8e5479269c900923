"""Which images a figure is honest about: a named split, else val, else what the run did not learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fullyconv.data import open_dataset
from fullyconv.data.corpora.derive import add_again
from fullyconv.data.splits import Division, kept_in, not_learned, part
from fullyconv.errors import DataError, UnknownName, printable

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset
    from fullyconv.predict import Predictor

__all__ = ["images_to_measure"]


def images_to_measure(data: str | Path, split: str, predictor: Predictor, model: str | Path = "") -> Dataset:
    """The split of `data` that was named, with the inputs and heads that the network learned; else val; without one
    that has labels, what the run did not learn from (all where no run is known: a note says so).

    model   the directory of the run or model, which keeps what was held out; "" where it is not known.
    """
    origin = getattr(predictor.model, "origin", {})
    inputs = tuple(origin.get("inputs") or ()) or predictor.inputs
    kept = kept_in(model) if model else None
    return add_again(_found(data, split, inputs, kept), origin.get("heads") or {})


def _unseen(dataset: Dataset, kept: Division | None) -> Dataset:
    """Scenes' windows of val without those that share pixels with ground that the run learned from: val is other ground
    under other options (size, seed), or scenes were added since."""
    if kept is None or not dataset.by_windows:
        return dataset
    records = [r for r in dataset.records if kept.place(r) != "learned"]
    left = len(dataset) - len(records)
    if not left:
        return dataset
    options = "give the options that it was trained with (scenes,size=...,seed=...:PATH)"
    if not records:
        raise DataError(f"The run learned from ground in each of the {left} windows of val; {options}.")
    note = f"{left} of {len(dataset)} windows of val hold ground that the run learned from and are left out; {options}."
    return replace(dataset, records=records, notes=(*dataset.notes, note))


def _found(data: str | Path, split: str, inputs: tuple[str, ...] | None, kept: Division | None) -> Dataset:

    if split == "held-out":
        return part(open_dataset(data, "all", inputs=inputs), kept, split)
    try:
        named = open_dataset(data, split or "val", inputs=inputs)
        if split or named.taxonomies:
            return _unseen(named, kept) if split in ("", "val") else named
    except UnknownName:
        if split not in ("", "train") or (split and kept is None):
            raise
    found = open_dataset(data, None, inputs=inputs)  # train where there is one: the split that images are held out from
    if kept is not None:
        return part(found, kept, split) if split else not_learned(found, kept)
    note = (
        f"{printable(data)} has no val split with labels: all {len(found)} images of "
        f"{printable(found.split or 'the set')} are measured, those that were learned from too."
    )
    return replace(found, split=found.split or "all", notes=(*found.notes, note))
