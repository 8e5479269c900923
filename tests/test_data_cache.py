"""The decoded cache returns the same samples, from any process, and belongs to the data it was made from."""

from __future__ import annotations

from multiprocessing import get_context
from pathlib import Path

import faults
import numpy as np
import pytest

from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.cache import cached
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
