"""SBD, the Semantic Boundaries Dataset (Hariharan et al. 2011): VOC2011's images, 20 classes and background, no void.

[benchmark_RELEASE/][dataset/]train.txt val.txt img/ID.jpg cls/ID.mat     as released
... cls/ID.png, cls_png/ID.png or SegmentationClassAug/ID.png             converted to index images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.corpus import Labels, dataset, in_folder, no_layout, painted, records
from fullyconv.data.corpora.layout import choose_split, merge_splits, read_lines
from fullyconv.data.corpora.taxonomies import VOC

__all__ = ["SBD_SOURCE", "Sbd", "find_sbd", "open_sbd", "recognise"]

SBD_SOURCE = (
    "get benchmark.tgz from www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours and unpack "
    "it whole"
)
_NAMES = ("SBD", "sbd", "SBDD", "sbdd", "benchmark_RELEASE")


@final
@dataclass(frozen=True)
class Sbd:
    """A copy of SBD: its folder, its label and image files by name."""

    base: Path
    labels: Mapping[str, Path]
    images: Mapping[str, Path]

    @property
    def splits(self) -> list[str]:
        """The names of its lists, train first."""
        found = [f.stem for f in self.base.glob("*.txt") if f.stem in ("train", "val", "trainval", "train_noval")]
        return sorted(found, key=lambda s: (s != "train", s))

    def names(self, split: str) -> list[str]:
        return [line.split()[0] for line in read_lines(self.base / f"{split}.txt")]


def find_sbd(*roots: Path) -> Sbd | None:
    """SBD at one of `roots` or in a folder of a usual name below it."""
    for root in roots:
        for folder in (root, *(root / n for n in _NAMES)):
            for base in (folder, folder / "dataset", folder / "benchmark_RELEASE" / "dataset"):
                if (base / "train.txt").is_file() and (base / "val.txt").is_file():
                    labels = _labels(base)
                    if labels:
                        return Sbd(base, labels, {f.stem: f for f in (base / "img").glob("*.jpg")})
    return None


def _labels(base: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for pattern in ("cls/*.mat", "SegmentationClassAug/*.png", "cls_png/*.png", "cls/*.png"):
        files.update({f.stem: f for f in base.glob(pattern)})
    return files


def recognise(root: Path) -> bool:
    """Whether SBD's lists lie beside a folder of its labels, at `root` or in benchmark_RELEASE/dataset below it."""
    return root.is_dir() and find_sbd(root) is not None


def open_sbd(root: Path, split: str | None = None) -> Dataset:
    """SBD below `root`. Splits train (8,498 images) and val (2,857), or whichever lists it carries.

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked), MissingExtra (.mat).
    """
    root = Path(root)
    found = find_sbd(root)
    if found is None:
        raise no_layout(root, "SBD", "train.txt and val.txt beside img/ and cls/", SBD_SOURCE)
    chosen = choose_split(found.splits, split, root)
    name, record_name = merge_splits(chosen)
    rows: list[Record] = []
    for s in chosen:
        part = records(
            found.names(s),
            {"rgb": in_folder(found.base / "img", ".jpg")},
            {"semantic": lambda i: found.labels.get(i, found.base / "cls" / f"{i}.mat")},
            f"SBD {s}.txt",
            SBD_SOURCE,
        )
        rows += [Record(record_name(s, r.name), r.inputs, r.labels) for r in part]
    reader = Labels({"semantic": painted("sbd", VOC, ignored=[(224, 224, 192)])}, {"semantic": "GTcls.Segmentation"})
    return dataset("sbd", found.base, name, rows, reader)
