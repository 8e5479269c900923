"""The decoded cache returns the same samples, from any process, and belongs to the data it was made from."""

from __future__ import annotations

import json
import os
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest

from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.pipeline.cache import cached
from fullyconv.errors import DataError, UsageError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return faults.clean(tmp_path / "data", train=5, val=2)


def equal(a: Dataset, b: Dataset) -> None:
    for x, y in zip(a, b, strict=True):
        assert x.name == y.name
        np.testing.assert_array_equal(x.image, y.image)
        np.testing.assert_array_equal(x.labels["semantic"], y.labels["semantic"])
        assert x.image.dtype == y.image.dtype


def test_a_cached_set_gives_the_same_samples_without_its_files(data: Path, tmp_path: Path) -> None:
    plain = open_dataset(data)
    samples = list(plain)
    quick = cached(plain, tmp_path / "cache")
    equal(plain, quick)
    again = cached(open_dataset(data), tmp_path / "cache")
    for file in data.rglob("images/*.png"):
        file.write_bytes(file.read_bytes()[::-1])
    for x, y in zip(samples, again, strict=True):
        np.testing.assert_array_equal(x.image, y.image)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1


def _sum(arguments: tuple[Dataset, int]) -> int:
    dataset, i = arguments
    return int(dataset[i].image.sum())


def test_processes_share_it(data: Path, tmp_path: Path) -> None:
    quick = cached(open_dataset(data), tmp_path / "cache")
    with get_context("fork").Pool(2) as pool:
        sums = pool.map(_sum, [(quick, i) for i in range(5)])
    assert sums == [int(s.image.sum()) for s in quick]


def test_views_cannot_be_written_to(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        cached(open_dataset(data), tmp_path / "cache")[0].image[0, 0] = 1


def test_splits_and_changed_files_have_caches_of_their_own(data: Path, tmp_path: Path) -> None:
    cached(open_dataset(data), tmp_path / "cache")
    cached(open_dataset(data, "val"), tmp_path / "cache")
    faults.save(faults.scene(99)[0], faults.image(data, 0))
    np.testing.assert_array_equal(cached(open_dataset(data), tmp_path / "cache")[0].image, faults.scene(99)[0])
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 3


def test_a_half_made_cache_leaves_nothing(data: Path, tmp_path: Path) -> None:
    faults.truncated_png(data)
    with pytest.raises(DataError, match="p000"):
        cached(open_dataset(data), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_never_lies_in_the_data(data: Path) -> None:
    with pytest.raises(UsageError, match="lies in the data"):
        cached(open_dataset(data), data / "cache")


def _damage(kind: str, content: bytes, blocks: list[tuple[int, int]]) -> bytes:
    """The cache's file with its second block (an input) damaged."""
    (start, size), (other, _) = blocks[2], blocks[4]
    block = content[start : start + size]
    if kind == "zeroed":
        return content[:start] + bytes(size) + content[start + size :]
    if kind == "flipped":
        return content[: start + 7] + bytes([content[start + 7] ^ 4]) + content[start + 8 :]
    if kind == "swapped":
        return (
            content[:start]
            + content[other : other + size]
            + content[start + size : other]
            + block
            + content[other + size :]
        )
    return content[: start + size // 2] if kind == "cut" else b""


def _blocks(folder: Path) -> list[tuple[int, int]]:
    stored = json.loads(next(folder.glob("*.json")).read_bytes())["blocks"].values()
    return [(offset, int(np.prod(shape)) * np.dtype(dtype).itemsize) for offset, shape, dtype, _ in stored]


@pytest.mark.parametrize("kind", ["zeroed", "flipped", "swapped", "cut", "empty"])
@pytest.mark.parametrize("before", [True, False])
def test_a_damaged_block_is_read_from_the_data_said_once_and_mended(
    kind: str, before: bool, data: Path, tmp_path: Path
) -> None:
    plain, folder = open_dataset(data), tmp_path / "cache"
    quick = cached(plain, folder)
    file = next(folder.glob("*.bin"))
    sound = file.read_bytes()
    if before:
        list(quick)  # the file is open while it is damaged
    with open(file, "r+b") as out:
        damaged = _damage(kind, sound, _blocks(folder))
        out.write(damaged)
        out.truncate(len(damaged))
    with pytest.warns(RuntimeWarning, match="is damaged") as answer:
        equal(plain, quick)
    assert len(answer) == 1
    assert file.read_bytes() == sound.rstrip(b"\0") + bytes(len(file.read_bytes()) - len(sound.rstrip(b"\0")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(plain, quick)


@pytest.mark.parametrize("content", [b"", b"{}", bytes(90), b'{"a": [0, [2], "|u1"]}', None])
def test_a_cache_without_a_sound_index_is_made_again(content: bytes | None, data: Path, tmp_path: Path) -> None:
    plain = open_dataset(data)
    cached(plain, tmp_path / "cache")
    index = next((tmp_path / "cache").glob("*.json"))
    if content is None:  # one number of it is another
        content = index.read_bytes().replace(b'"input/rgb/p000": [0,', b'"input/rgb/p000": [64,')
        assert content != index.read_bytes()
    index.write_bytes(content)
    again = cached(plain, tmp_path / "cache")
    equal(plain, again)
    assert json.loads(index.read_bytes())["format"] == 2
    assert sum("is made again" in note for note in again.notes) == 1  # said
    assert not any("is made again" in note for note in cached(plain, tmp_path / "cache").notes)


def test_files_changed_in_place_at_the_same_size_have_a_cache_of_their_own(data: Path, tmp_path: Path) -> None:
    cached(open_dataset(data), tmp_path / "cache")
    file = faults.image(data, 0)
    size = file.stat().st_size
    content = file.read_bytes()
    file.write_bytes(content)  # the same bytes: only its time differs
    assert file.stat().st_size == size
    cached(open_dataset(data), tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


def test_the_cache_is_on_the_disk_before_it_has_its_name(data: Path, tmp_path: Path, monkeypatch: Any) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(Path(b).suffix), replace(a, b))[1])
    cached(open_dataset(data), tmp_path / "cache")
    assert done[:2] == ["fsync", ".bin"]
