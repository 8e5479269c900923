"""A run goes on with the data it began with, byte for byte, or says which files are others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from PIL import Image
from training_tools import small

from fullyconv import train as training
from fullyconv.doctor import content, open_dataset
from fullyconv.doctor.content import Contents
from fullyconv.errors import UsageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of BMP labels, whose size says nothing of what they hold."""
    root = faults.clean(tmp_path / "data", train=4, val=2)
    for file in list(root.rglob("*.png")):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    return root


def run(data: Path, out: Path, steps: int, **more: Any) -> Path:
    return training.fit(small(steps=steps), data, out, resume=steps > 1, quiet=True, **more)


def files(data: Path, folder: str, split: str = "train") -> list[Path]:
    found = sorted(p for p in data.rglob("*.bmp") if folder in p.parts and split in p.parts)
    assert found
    return found


def invert(file: Path) -> None:
    """Other pixels in place: the same name, the same size, the same inode."""
    before = file.read_bytes()
    changed = before[:-64] + bytes(b ^ 1 for b in before[-64:])
    assert changed != before
    with open(file, "r+b") as out:
        out.write(changed)


@pytest.mark.parametrize("check", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("folder", "message"),
    [("labels", "of 8 files 4 labels changed, such as the label of"), ("images", "of 8 files 4 images changed")],
)
def test_files_changed_in_place_at_the_same_size_are_refused(
    folder: str, message: str, check: bool, data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "run", 1, check=check)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    times = [(f, f.stat()) for f in files(data, folder)]
    for file, info in times:
        invert(file)
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))  # as a tool that keeps times
    fingerprint = open_dataset(data, "train").fingerprint
    with pytest.raises(UsageError, match=f"{message}.*--allow-changed data"):
        run(data, tmp_path / "run", 2, check=check)
    assert {p: p.read_bytes() for p in before} == before
    assert open_dataset(data, "train").fingerprint == fingerprint  # names and sizes notice nothing
    run(data, tmp_path / "run", 2, check=check, allow=("data",))
    run(data, tmp_path / "run", 3, check=check)  # what was allowed is the run's data now


def test_one_file_changed_gone_or_new_is_named(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", 1)
    label = files(data, "labels")[2]
    invert(label)
    with pytest.raises(UsageError, match=f"of 8 files 1 label changed, such as the label of {label.stem}"):
        run(data, tmp_path / "run", 2)
    invert(label)
    run(data, tmp_path / "run", 2)  # put back: the bytes count, not the times
    image = files(data, "images")[2]
    os.replace(label, tmp_path / "label.bmp")
    os.replace(image, tmp_path / "image.bmp")
    with pytest.raises(UsageError, match="of 8 files 2 files are gone"):
        run(data, tmp_path / "run", 3)


def test_data_that_moved_are_the_same(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run", 1)
    os.rename(data, tmp_path / "elsewhere")
    run(tmp_path / "elsewhere", tmp_path / "run", 2)


def test_measured_files_that_changed_are_said(data: Path, tmp_path: Path, capsys: Any) -> None:
    run(data, tmp_path / "run", 1)
    invert(files(data, "labels", "val")[0])
    run(data, tmp_path / "run", 2)
    assert "measured are not what they were (of 4 files 1 label changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.unlink(),
        pytest.param(lambda f: f.write_bytes(b"{}"), marks=pytest.mark.slow),
        pytest.param(lambda f: f.write_bytes(b""), marks=pytest.mark.slow),
    ],
)
def test_without_its_table_of_files_a_run_still_notices(
    damage: Callable[[Path], None], data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "run", 1)
    damage(tmp_path / "run" / "data.json")
    invert(files(data, "labels")[0])
    with pytest.raises(UsageError, match="some files hold something else"):
        run(data, tmp_path / "run", 2)


def test_a_checkpoint_of_an_earlier_version_goes_on_and_says_what_was_not_compared() -> None:
    from fullyconv.train.training_state import refuse_changes

    now = {"network": {}, "classes": {}, "data": "a", "content": "b", "transform": ""}
    refuse_changes({"network": {}, "classes": {}, "data": "a"}, now, ())
    with pytest.raises(UsageError, match="hold something else"):
        refuse_changes({**now, "content": "c"}, now, ())


def test_a_file_is_read_once_and_again_when_its_time_number_or_size_changed(
    data: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    read: list[str] = []
    real = content.sha256_file
    monkeypatch.setattr(content, "sha256_file", lambda f: (read.append(Path(f).name), real(f))[1])
    dataset, old = open_dataset(data, "train"), time.time() - 60

    def contents(known: Contents) -> Contents:
        read.clear()
        found = Contents()
        found.add("train", dataset, known, {}, time.time_ns() + 10**12)  # long after: every file is settled
        return found

    first = contents(Contents())
    assert len(read) == 8
    again = contents(Contents.load(_kept(tmp_path, first)))
    assert read == []
    assert again.digest("train") == first.digest("train")
    file = files(data, "labels")[0]
    os.utime(file, (old, old))
    assert contents(first).digest("train") == first.digest("train")
    assert read == [file.name]
    invert(file)
    assert contents(first).digest("train") != first.digest("train")
    assert read == [file.name]


def _kept(folder: Path, contents: Contents) -> Path:
    (folder / "kept.json").write_text(json.dumps(contents.to_json()))
    return folder / "kept.json"


def test_what_was_touched_just_before_it_was_read_is_read_again(data: Path) -> None:
    """Within one tick of the file system's clock a file can change twice and keep its times."""
    found = Contents()
    found.add("train", open_dataset(data, "train"), Contents(), {}, time.time_ns())
    assert found.seen == {}
    assert len(found.parts["train"]) == 8


def test_the_checks_digests_are_the_files(data: Path) -> None:
    from fullyconv.doctor import examine
    from fullyconv.doctor.content import digests_of
    from fullyconv.files import sha256_file

    dataset = open_dataset(data, "train")
    read = digests_of(examine([dataset], fast=True).facts)
    assert read == {f: sha256_file(f) for f in dataset.files}
    assert np.all([len(d) == 64 for d in read.values()])
