"""Which label belongs to which image: by the same name, or by names that differ in what all of a side share."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

from fullyconv.data.corpora.layout import is_split, stems
from fullyconv.errors import printable

__all__ = ["Pairs", "beside", "couples", "pair"]

ENDINGS = ("_label", "_labels", "_mask", "_gt", "_seg", "_L", "_annotation", "-label", "-mask", "_segmentation")
_SEPARATORS = "_-. "


@final
class Pairs(dict[str, Path]):
    """image's stem -> label file; `note` says how the names were matched, "" where they are equal."""

    note = ""


def pair(images: Mapping[str, Path], labels: Mapping[str, Path], folder: str) -> Pairs:
    """`labels` by the stems of their images (stem -> file); those of no image are left out.

    Equal stems count, and names of whole images (1.jpg.png for 1.jpg); else labels with one of the usual endings; else
    the names without the beginning and ending that all images, or all labels, have in common (image_1 and mask_1;
    X_leftImg8bit and X_gtFine_labelIds), if that pairs at least half of the labels.
    """
    found = Pairs({stem: f for stem, f in labels.items() if stem in images})
    if not labels:
        return found
    full = {f"{stem}{f.suffix}": stem for stem, f in images.items()}  # 1.jpg.png for 1.jpg
    if whole := {full[name]: f for name, f in labels.items() if name in full and full[name] not in found}:
        found.update(whole)
        found.note = (
            f"{folder}/ pairs by the images' names with their suffix ({printable(next(iter(whole.values())).name)})."
        )
    if found:
        return found
    for ending in ENDINGS:
        shorter = {s[: -len(ending)]: f for s, f in labels.items() if s.endswith(ending)}
        some = Pairs({stem: f for stem, f in shorter.items() if stem in images})
        if len(some) > len(found):
            found = some
            found.note = f"{folder}/ pairs by the names without {ending!r}."
    if found:
        return found
    (ours, cut), (theirs, cut_there) = _cores(images), _cores(labels)
    some = Pairs({stem: labels[theirs[core]] for core, stem in ours.items() if core in theirs})
    if 2 * len(some) < len(labels):
        return found
    what = " and ".join(repr(c) for c in dict.fromkeys((*cut, *cut_there)) if c)
    some.note = f"{folder}/ pairs by the names without {what}."
    return some


def _cores(names: Iterable[str]) -> tuple[dict[str, str], tuple[str, str]]:
    """({name without what all share: name}, (beginning, ending)); both are cut at a separator, never inside a word."""
    names = list(names)
    front, back = _shared(names), _shared([n[::-1] for n in names])[::-1]
    front = "" if "/" in front else front[: 1 + max(front.rfind(c) for c in _SEPARATORS)]
    start = min((i for c in _SEPARATORS if (i := back.find(c)) >= 0), default=len(back))
    back = "" if "/" in back[start:] else back[start:]
    if len(names) < 2 or any(len(n) <= len(front) + len(back) for n in names):
        front = back = ""
    return {n[len(front) : len(n) - len(back)]: n for n in names}, (front, back)


def _shared(names: Sequence[str]) -> str:
    """What all names begin with."""
    low, high = min(names, default=""), max(names, default="")
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


# What images' names end in where the labels' names end otherwise (X_sat.jpg and X_mask.png).
_IMAGES = ("", "_sat", "_image", "_img", "_rgb", "_photo", "_leftImg8bit", "-image", "_im", "_input", "_RGB")


def beside(files: Sequence[Path], folder: Path) -> tuple[dict[str, Path], Pairs] | None:
    """(images, labels) among files that are both: X.jpg with X.png, X_mask.png or X_sat.jpg with X_mask.png; None for
    images alone."""
    found, twice = stems(files, folder)
    photos = {s: f for s, f in found.items() if f.suffix.lower() != ".png"}
    maps = {s: f for f in twice for s in stems([f], folder)[0] if f.suffix.lower() == ".png"}
    if maps and 2 * len(maps) >= len(photos) and photos.keys() == found.keys():
        pairs = Pairs(maps)
        pairs.note = "each PNG is the label of the image of its name."
        return photos, pairs
    for ending in ENDINGS:
        labels = {s[: -len(ending)]: f for s, f in found.items() if s.endswith(ending)}
        for front in _IMAGES if labels else ():
            ended = {core + front: f for core, f in labels.items() if core + front in found}
            if 2 * len(ended) >= len(found) - len(labels) > 0:
                pairs = Pairs(ended)
                pairs.note = f"files that end in {ending!r} are the labels of the others."
                return {s: f for s, f in found.items() if not s.endswith(ending)}, pairs
    return None


def couples(root: Path, images: Collection[str], labels: Collection[str]) -> dict[str, tuple[Path, Path]]:
    """{split: (images, labels)} of folders such as train_images/ and train_masks/, train/ and train_labels/, train/
    and trainannot/, images_train/ and labels_train/."""
    folders = {d.name.lower(): d for d in sorted(root.iterdir()) if d.is_dir()}
    found: dict[str, tuple[Path, Path]] = {}
    for name, folder in folders.items():
        for split, others in _partners(name, images, labels):
            theirs = next((folders[o] for o in others if o in folders), None)
            if theirs is not None:
                found.setdefault(folder.name[: len(split)] if name.startswith(split) else split, (theirs, folder))
                break
    return found


def _partners(name: str, images: Collection[str], labels: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """(split, what the folder of its images may be called) for a folder of labels called `name`."""
    for sign in ("_", "-", ""):
        for what in labels:
            if name.endswith(sign + what) and len(name) > len(sign + what):
                split = name[: -len(sign + what)]
                if sign or is_split(split):
                    yield split, [*(f"{split}{sign}{i}" for i in images), split]
            if sign and name.startswith(what + sign) and is_split(split := name[len(what + sign) :]):
                yield split, [f"{i}{sign}{split}" for i in images]
