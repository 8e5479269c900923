"""nnU-Net's raw layout with 2-D images: what nnUNet_raw/DatasetNNN_NAME holds.

dataset.json (labels, channel_names), imagesTr/CASE_0000.png [CASE_0001.png ...], labelsTr/CASE.png;
imagesTs/ [labelsTs/] is the split test, splits_final.json's first fold gives train and val
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullyconv.data.base import Dataset, Record
from fullyconv.data.corpora.bands import is_multiband
from fullyconv.data.corpora.coding import Coding
from fullyconv.data.corpora.corpus import Labels, unlabelled
from fullyconv.data.corpora.folder import read_modality
from fullyconv.data.corpora.layout import SUFFIXES, choose_split, describe_folder, list_files, merge_splits
from fullyconv.errors import DataError, printable
from fullyconv.files import read_json
from fullyconv.taxonomy import Taxonomy

__all__ = ["open_nnunet", "recognise"]

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def recognise(root: Path) -> bool:
    """Whether imagesTr/ and labelsTr/ lie in `root`."""
    return (root / "imagesTr").is_dir() and (root / "labelsTr").is_dir()


def open_nnunet(root: Path, split: str | None = None) -> Dataset:
    """A raw nnU-Net data set below `root`. One channel is an image (rgb), several are inputs of their own.

    Raises DataError (no such layout, volumes, no plain labels), UnknownName (split).
    """
    root = Path(root)
    if not recognise(root):
        raise DataError(
            f"{printable(root)} is no raw nnU-Net data set: looked for imagesTr/, labelsTr/ and dataset.json; "
            f"{describe_folder(root)}; give the folder DatasetNNN_NAME."
        )
    stated = read_json(root / "dataset.json")
    coding = _coding(stated, root / "dataset.json")
    cases, notes = _cases(root, "Tr")
    channels = _channels(stated, cases)
    parts = {s: {c: cases[c] for c in names if c in cases} for s, names in _folds(root, list(cases), notes).items()}
    if (root / "imagesTs").is_dir():
        parts["test"], remarks = _cases(root, "Ts")
        notes += remarks
    chosen = choose_split(list(parts), split, root)
    name, record_name = merge_splits(chosen)
    rows = [
        _record(record_name(s, case), files, channels, root / ("labelsTs" if s == "test" else "labelsTr"), case)
        for s in chosen
        for case, files in parts[s].items()
    ]
    if not rows:
        raise DataError(
            f"{printable(root)} holds no cases of {printable(name)!r} ({describe_folder(root / 'imagesTr')})."
        )
    if len(channels) == 1 and is_multiband(next(iter(rows[0].inputs.values()))):
        channels = dict.fromkeys(channels, "bands")
        rows = [Record(r.name, {"bands": r.inputs["rgb"]}, r.labels) for r in rows]
    taxonomies = unlabelled(sorted(rows, key=lambda r: not r.labels), {"semantic": coding.taxonomy})
    reader = Labels({"semantic": coding})
    inputs = tuple(dict.fromkeys(channels.values()))
    return Dataset("nnunet", root, name, rows, taxonomies, read_modality, reader, inputs, tuple(notes))


def _coding(stated: object, file: Path) -> Coding:
    """`labels` as name -> value, or (of old) value -> name; "ignore" is ignored."""
    labels = stated.get("labels") if isinstance(stated, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise DataError(f"{printable(file)} lists no labels; write them as in nnU-Net: 'labels': {{'background': 0}}.")
    pairs = [(str(v), k) if str(k).isdecimal() and isinstance(v, str) else (str(k), v) for k, v in labels.items()]
    values: dict[int, str] = {}
    for name, value in pairs:
        number = int(value) if str(value).isdecimal() and len(str(value)) <= 5 else -1
        if not 0 <= number <= 65535 or number in values:
            raise DataError(
                f"{printable(file)} gives the label {printable(name)!r} the value {printable(value)}; give each label "
                "one number of its own (regions of several are not read)."
            )
        values[number] = name
    names = [values[v] for v in sorted(values) if values[v] != "ignore"]
    taxonomy = Taxonomy(tuple(names))
    ids = {n: k for k, n in enumerate(names)} | {"ignore": taxonomy.ignore}
    return Coding(taxonomy, {v: ids[n] for v, n in values.items()}, kind="nnunet")


def _cases(root: Path, part: str) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """{case: {channel: file}} of imagesTr/ or imagesTs/, and a note of the files that are no channel of a case."""
    folder = root / f"images{part}"
    cases: dict[str, dict[str, Path]] = {}
    others: list[Path] = []
    for file in list_files(folder, None):
        found = _CHANNEL.fullmatch(file.relative_to(folder).with_suffix("").as_posix())
        if found and file.suffix.lower() in SUFFIXES:
            cases.setdefault(found[1], {})[found[2]] = file
        else:
            others.append(file)
    volumes = [f for f in others if f.name.lower().endswith((".nii.gz", ".nii", ".nrrd", ".mha"))]
    if volumes and not cases:
        raise DataError(
            f"{printable(folder)} holds volumes ({printable(volumes[0].name)}), and images are read here: write "
            "their slices as PNG, images and labels alike."
        )
    if not others:
        return cases, []
    note = f"{len(others)} files of images{part}/ are no channel of a case ({printable(others[0].name)})"
    return cases, [note + ": they are left out."]


def _channels(stated: Any, cases: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """channel number -> modality: "rgb" for one alone, else the names of dataset.json."""
    numbers = sorted({c for files in cases.values() for c in files})
    if len(numbers) < 2:
        return dict.fromkeys(numbers or ["0000"], "rgb")
    names = stated.get("channel_names") or stated.get("modality") or {}
    named = {n: str(names.get(str(int(n)), f"channel{int(n)}")) for n in numbers}
    return named if len(set(named.values())) == len(named) else {n: f"channel{int(n)}" for n in numbers}


def _folds(root: Path, cases: list[str], notes: list[str]) -> dict[str, list[str]]:
    """{"train": cases, "val": cases} by the first fold of splits_final.json, else all cases as train."""
    file = root / "splits_final.json"
    if not file.is_file():
        return {"train": cases}
    folds = read_json(file)
    try:
        first = {s: [str(c) for c in folds[0][s]] for s in ("train", "val")}
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{printable(file)} is no list of folds with train and val; write it anew.") from error
    listed = {*first["train"], *first["val"]}
    missing, over = [c for c in listed if c not in cases], [c for c in cases if c not in listed]
    notes.append(f"train and val are the first of {len(folds)} folds in splits_final.json.")
    if missing:
        raise DataError(f"{printable(file)} lists {len(missing)} cases without images ({printable(missing[0])}).")
    notes += (
        [f"{len(over)} cases are in no list of the fold ({printable(over[0])}): they are left out."] if over else []
    )
    return first


def _record(name: str, files: Mapping[str, Path], channels: Mapping[str, str], labels: Path, case: str) -> Record:
    found = next((p for s in SUFFIXES if (p := labels / f"{case}{s}").is_file()), None)
    inputs = {channels[c]: f for c, f in sorted(files.items()) if c in channels}
    return Record(name, inputs, {"semantic": found} if found else {})
