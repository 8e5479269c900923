"""A data set with the ids of other classes: its labels are renumbered while they are read, class by class of a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Dataset, ReadLabels, Record
from fullyconv.errors import DataError, printable
from fullyconv.taxonomy import Match, Taxonomy

__all__ = ["relabelled"]


@final
@dataclass(frozen=True)
class _Renumbered:
    """(record, head) -> labels, the heads of `tables` (65536 entries: stored id -> id, -1 for none) renumbered."""

    read: ReadLabels
    tables: Mapping[str, NDArray[np.int32]]
    classes: Mapping[str, int]  # head -> how many the data have
    targets: Mapping[str, Taxonomy]

    def __call__(self, record: Record, head: str) -> NDArray[Any]:
        labels = self.read(record, head)
        if head not in self.tables:
            return labels
        ids = self.tables[head].take(labels)
        if ids.size and ids.min() < 0:
            row, column = (int(v) for v in np.argwhere(ids < 0)[0])
            raise DataError(
                f"{printable(record.name)}: the {head} label holds {int(labels[row, column])} at row {row}, column "
                f"{column}, but there are {self.classes[head]} classes (0..{self.classes[head] - 1}); correct the "
                "labels."
            )
        return ids.astype(np.uint8 if self.targets[head].ignore <= 255 else np.uint16)


def relabelled(dataset: Dataset, matches: Mapping[str, Match]) -> Dataset:
    """`dataset` with the classes of `matches` (head -> its classes against those to become): names, ids and ignore
    value are theirs. Classes without a partner become the ignore value."""
    targets = {head: m.theirs for head, m in matches.items()}
    tables = {head: _table(m) for head, m in matches.items()}
    classes = {head: len(m.ours) for head, m in matches.items()}
    return replace(
        dataset,
        taxonomies={head: targets.get(head, t) for head, t in dataset.taxonomies.items()},
        read_labels=_Renumbered(dataset.read_labels, tables, classes, targets),
    )


def _table(m: Match) -> NDArray[np.int32]:
    table = np.full(65536, -1, np.int32)
    table[m.ours.ignore] = m.theirs.ignore
    for k, to in enumerate(m.ids):
        table[k] = to if to >= 0 else m.theirs.ignore
    return table
