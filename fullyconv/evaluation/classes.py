"""Where a network meets data: which head, and which class of the data is which of the network's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fullyconv.errors import DataError, UnknownName
from fullyconv.taxonomy import Match, Taxonomy, listed_names, match

if TYPE_CHECKING:
    from fullyconv.data.base import Dataset

__all__ = ["UNKNOWN", "in_the_networks_classes", "matching_heads"]

UNKNOWN = ("refuse", "missed", "ignored")  # what becomes of classes that the network lacks


def matching_heads(model: Mapping[str, object], data: Mapping[str, Taxonomy]) -> dict[str, str]:
    """Data head -> the network's head of that name; two lone heads match whatever their names. `DataError` else."""
    pairs = {h: h for h in data if h in model}
    if not pairs and len(model) == len(data) == 1:
        pairs = {next(iter(data)): next(iter(model))}
    if not pairs:
        raise DataError(
            f"The network labels {', '.join(model)} but the data have labels for {', '.join(data) or 'nothing'}; "
            "evaluate on data with the network's heads."
        )
    return pairs


def in_the_networks_classes(
    dataset: Dataset, model: Mapping[str, Taxonomy], heads: Mapping[str, str], unknown: str = "refuse"
) -> tuple[Dataset, dict[str, str]]:
    """`dataset` with the network's ids, and what was matched how, in words, for each head where that is not plain.

    heads: data head -> the network's. unknown: classes of the data that the network lacks are refused, count as
    "missed" (behind the network's classes, where they can only be wrong), or are "ignored" (their pixels are left out).
    `DataError` when no class has a partner, or some have none and `unknown` is "refuse".
    """
    if unknown not in UNKNOWN:
        raise UnknownName("way with unknown classes", unknown, UNKNOWN)
    changed: dict[str, Match] = {}
    notes: dict[str, str] = {}
    for head, its in heads.items():
        found = match(dataset.taxonomies[head], model[its])
        if found.how == "same" and found.theirs.ignore == found.ours.ignore:
            continue
        _refuse(found, head, unknown)
        if found.how != "same":
            notes[head] = f"{found}{_fate(found, unknown)}"
        changed[head] = replace(_widened(found, unknown), theirs=_target(found, unknown))
    from fullyconv.data.pipeline.matching import relabelled

    return (relabelled(dataset, changed) if changed else dataset), notes


def _refuse(found: Match, head: str, unknown: str) -> None:
    lists = f"the data have {listed_names(found.ours)}, the network knows {listed_names(found.theirs)}"
    if max(found.ids) < 0:
        raise DataError(
            f"No {head} class of the data has a name that the network knows: {lists}; give the data the network's "
            "names (classes.txt, one a line), or a network trained for these classes."
        )
    if found.unknown and unknown == "refuse":
        named = listed_names(Taxonomy(found.unknown))
        raise DataError(
            f"The network cannot tell {len(found.unknown)} of the {head} classes in these data ({named}): {lists}; "
            "correct the names, or measure all the same with --unknown-classes missed (they count as wrong) or "
            "ignored (their pixels are left out)."
        )


def _fate(found: Match, unknown: str) -> str:
    if not found.unknown:
        return ""
    return "; the former count as missed" if unknown == "missed" else "; the pixels of the former are left out"


def _widened(found: Match, unknown: str) -> Match:
    """The match with places behind the network's classes for those it lacks, where they count as missed."""
    if unknown != "missed":
        return found
    free = iter(range(len(found.theirs), len(found.theirs) + len(found.unknown)))
    return replace(found, ids=tuple(next(free) if k < 0 else k for k in found.ids))


def _target(found: Match, unknown: str) -> Taxonomy:
    """The classes of the result: the network's, under the data's names where it has only numbers or colours."""
    names, palette = list(found.theirs.names), list(found.theirs.palette)
    if found.how in ("ids", "colours") and _plainer(found.theirs, found.ours):
        for k, to in enumerate(found.ids):
            if to >= 0:
                names[to], palette[to] = found.ours.names[k], found.ours.palette[k]
    if unknown == "missed":
        behind = [k for k, to in enumerate(found.ids) if to < 0]
        names += [found.ours.names[k] for k in behind]
        palette += [found.ours.palette[k] for k in behind]
    ignore = found.theirs.ignore
    return Taxonomy(tuple(_unlike(names)), tuple(palette), ignore if ignore >= len(names) else -1)


def _plainer(one: Taxonomy, two: Taxonomy) -> bool:
    """Whether `one` bears no names where `two` does."""
    return one.named_by != "name" and two.named_by == "name"


def _unlike(names: list[str]) -> list[str]:
    """`names`, a later one of two equal ones with its place behind it."""
    return [f"{n} ({k})" if n in names[:k] else n for k, n in enumerate(names)]
