"""SIFT Flow (Liu, Yuen, Torralba 2009): 33 semantic classes and, by Tighe and Lazebnik 2010, 3 geometric ones.

    Images/spatial_envelope_256x256_static_8outdoorcategories/ID.jpg
    SemanticLabels/.../ID.mat   S: 0 void, 1..33        GeoLabels/.../ID.mat   S: -1 void, 1..3
    trainval.txt, test.txt (ids) or TestSet1.txt (paths; train is then all the rest)

highway_bost181 and street_urb506 were never annotated and are left out of every split. Cow, desert and moon do not
occur in the test set: figures are means over the classes present in the truth.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import Labels, choose_kind, dataset, in_folder, no_layout, records
from fullyconv.data.corpora.layout import merge_splits, read_lines
from fullyconv.data.corpora.taxonomies import SIFTFLOW, SIFTFLOW_GEOMETRIC

__all__ = ["UNANNOTATED", "open_siftflow", "recognise"]

_SOURCE = (
    "get SiftFlowDataset.zip from www.cs.unc.edu/~jtighe/Papers/ECCV10 or sift-flow.tar.gz from "
    "dl.caffe.berkeleyvision.org and unpack it whole"
)
_SET = "spatial_envelope_256x256_static_8outdoorcategories"
UNANNOTATED = ("highway_bost181", "street_urb506")


def recognise(root: Path) -> bool:
    """Whether SIFT Flow's three folders lie at `root`."""
    return _base(root) is not None


def open_siftflow(root: Path, split: str | None = None) -> Dataset:
    """SIFT Flow below `root`, with the heads semantic (33 classes) and geometric (3); void is ignored.

    Raises DataError (no such layout), UnknownName (split), MissingInput (half unpacked), MissingExtra (.mat).
    """
    root = Path(root)
    base = _base(root)
    if base is None:
        wanted = f"Images/{_SET}/, SemanticLabels/{_SET}/ and GeoLabels/{_SET}/"
        raise no_layout(root, "SIFT Flow", wanted, _SOURCE)
    splits = _splits(base)
    wished = "trainval" if split in (None, "train") and "train" not in splits and "trainval" in splits else split
    chosen = choose_kind(splits, wished, root)
    name, record_name = merge_splits(chosen)
    found: list[Record] = []
    left_out: set[str] = set()
    for s in chosen:
        left_out |= set(splits[s]) & set(UNANNOTATED)
        part = records(
            [i for i in splits[s] if i not in UNANNOTATED],
            {"rgb": in_folder(base / "Images" / _SET, ".jpg")},
            {
                "semantic": in_folder(base / "SemanticLabels" / _SET, ".mat"),
                "geometric": in_folder(base / "GeoLabels" / _SET, ".mat"),
            },
            f"SIFT Flow {s}",
            _SOURCE,
        )
        found += [Record(record_name(s, r.name), r.inputs, r.labels) for r in part]
    notes = [f"{', '.join(sorted(left_out))}: never annotated, left out."] if left_out else []
    return dataset("siftflow", base, name or "all", found, _reader(), notes)


def _reader() -> Labels:
    """Stored 1.. become 0..; 0 and the geometric -1 are void."""
    return Labels(
        {
            "semantic": Coding(SIFTFLOW, {0: 255, **{k + 1: k for k in range(33)}}, kind="siftflow"),
            "geometric": Coding(SIFTFLOW_GEOMETRIC, {0: 255, 1: 255, **{k + 2: k for k in range(3)}}, kind="siftflow"),
        },
        {"semantic": "S", "geometric": "S"},
        {"geometric": 1},
    )


def _base(root: Path) -> Path | None:
    if not root.is_dir():
        return None
    folders = (root, root / "SiftFlowDataset", root / "sift-flow")
    return next((f for f in folders if all((f / n / _SET).is_dir() for n in ("Images", "SemanticLabels"))), None)


def _splits(base: Path) -> dict[str, list[str]]:
    lists = {f.stem: read_lines(f) for n in ("train", "trainval", "val", "test") if (f := base / f"{n}.txt").is_file()}
    if lists:
        return {s: [_id(line) for line in lines] for s, lines in lists.items()}
    every = sorted(f.stem for f in (base / "Images" / _SET).glob("*.jpg"))
    tests = base / "TestSet1.txt"
    if not tests.is_file():
        return {"": every}
    test = [_id(line) for line in read_lines(tests)]
    return {"train": sorted(set(every) - set(test)), "test": test}


def _id(line: str) -> str:
    """The id in a list's line, which may be a path of Windows or not."""
    name = PureWindowsPath(line).name
    return name[:-4] if name.lower().endswith((".jpg", ".mat")) else name
