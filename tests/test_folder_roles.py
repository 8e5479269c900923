"""Folders whose names nobody knows: which hold images and which labels; names with suffixes, arrays, folds, links."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import faults
import numpy as np
import pytest

from fullyconv import images
from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.corpora.folder_roles import by_content, plain_name
from fullyconv.data.corpora.layout import list_files
from fullyconv.doctor import check, open_every_split
from fullyconv.errors import DataError, UnknownName
from fullyconv.files.listing import list_below

TRUTH = [faults.scene(i, (40, 48)) for i in range(6)]


def notes(root: Path, split: str | None = None) -> str:
    return "\n".join(open_dataset(root, split).notes)


def put(images_: Path, labels: Path, which: range = range(6), ending: str = ".png") -> None:
    for i in which:
        faults.save(TRUTH[i][0], images_ / f"{i}.png")
        faults.save(TRUTH[i][1], labels / f"{i}{ending}")


def equal_labels(root: Path, split: str | None = None, first: int = 0) -> None:
    dataset = open_dataset(root, split)
    for i in range(len(dataset)):
        np.testing.assert_array_equal(dataset[i].image, TRUTH[first + i][0])
        np.testing.assert_array_equal(dataset[i].labels["semantic"], TRUTH[first + i][1])


# ---- which folder is which -------------------------------------------------------------------------------------

SPLITS = (("train", range(4)), ("val", range(4, 6)))


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("{}/sat", "{}/map"),
        ("{}/images_png", "{}/masks_png"),
        ("{}/input", "{}/target"),
        ("img_dir/{}", "ann_dir/{}"),
        ("x_{}", "y_{}"),
        ("{}/photos2", "{}/Ground Truth"),
        ("{}/aa", "{}/bb"),
        ("aa/{}", "bb/{}"),
        ("{}A", "{}B"),
        ("set/{}/City/images_png", "set/{}/City/masks_png"),
    ],
)
def test_folders_of_one_names_files_are_images_and_labels_whatever_they_are_called(
    image: str, label: str, tmp_path: Path
) -> None:
    for split, which in SPLITS:
        put(tmp_path / image.format(split), tmp_path / label.format(split), which)
    assert [(d.split, len(d)) for d in open_every_split(tmp_path)] == [("train", 4), ("val", 2)]
    equal_labels(tmp_path, "train")
    equal_labels(tmp_path, "val", 4)


def test_what_was_told_by_the_content_is_said(tmp_path: Path) -> None:
    put(tmp_path / "aa", tmp_path / "bb")
    assert "bb/ is read as the labels of aa/" in notes(tmp_path)
    assert [tuple(f.name for f in s) for s in by_content(tmp_path)] == [("aa", "bb")]


def test_a_further_input_is_not_taken_for_labels(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "depth")
    assert not open_dataset(tmp_path).taxonomies
    put(tmp_path / "images", tmp_path / "labels")
    assert set(open_dataset(tmp_path)[0].labels) == {"semantic"}


def test_two_folders_of_photographs_are_no_pair(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    for name in ("day", "night"):
        for i in range(3):
            faults.save(noise, tmp_path / name / f"{i}.png")
    assert by_content(tmp_path) == []
    assert not open_dataset(tmp_path).taxonomies


def test_domains_of_a_split_are_joined_under_their_names(tmp_path: Path) -> None:
    for domain in ("Urban", "Rural"):
        put(tmp_path / "Train" / domain / "images_png", tmp_path / "Train" / domain / "masks_png", range(2))
        put(tmp_path / "Val" / domain / "images_png", tmp_path / "Val" / domain / "masks_png", range(2, 3))
    train, val = open_every_split(tmp_path)
    assert [r.name for r in train.records] == ["Rural/0", "Rural/1", "Urban/0", "Urban/1"]
    assert (len(val), val.split) == (2, "Val")


def test_what_only_tells_the_format_is_no_part_of_a_folders_name() -> None:
    assert [plain_name(n) for n in ("Masks_PNG", "img_dir", "labels", "Ground Truth", "map")] == [
        *("masks", "img", "labels", "ground_truth", "map")
    ]


# ---- names, links ----------------------------------------------------------------------------------------------


def test_labels_named_after_whole_image_files_are_paired_and_tell_images_of_one_stem_apart(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "labels", range(2), ".png.png")
    equal_labels(tmp_path)
    jpg = tmp_path / "images" / "0.jpg"
    faults.save(TRUTH[2][0], tmp_path / "images" / "0.bmp")
    faults.save(TRUTH[2][1], tmp_path / "labels" / "0.bmp.png")
    dataset = open_dataset(tmp_path)
    assert not jpg.exists()
    assert [r.name for r in dataset.records] == ["0.bmp", "0.png", "1"]
    np.testing.assert_array_equal(dataset[0].labels["semantic"], TRUTH[2][1])
    np.testing.assert_array_equal(dataset[1].labels["semantic"], TRUTH[0][1])
    assert not [f for f in check(tmp_path) if f.level == "error"]


@pytest.mark.parametrize("to", ["..", "../..", "."])
def test_a_link_to_a_folder_around_it_is_left_out_and_said(to: str, tmp_path: Path) -> None:
    root = tmp_path / "around" / "set"
    put(root / "images", root / "labels")
    (root / "images" / "up").symlink_to(to)
    dataset = open_dataset(root)
    assert len(dataset) == 6
    assert "1 link to a folder around it (up)" in "\n".join(dataset.notes)
    assert len(list_files(root / "images")) == 6
    below = list_below(root / "images", (".png",))
    assert (len(below.files), below.left["links to a folder around it"]) == (6, 1)


@pytest.mark.parametrize("linked", [False, True])
def test_label_maps_that_lie_or_are_linked_among_the_images_are_no_images(linked: bool, tmp_path: Path) -> None:
    inner = tmp_path / "images" / "labels"
    put(tmp_path / "images", tmp_path / "labels" if linked else inner)
    if linked:
        (tmp_path / "images" / "gt").symlink_to(tmp_path / "labels")
    equal_labels(tmp_path)
    assert "left out in images/: 6 label maps" in notes(tmp_path)


# ---- folds and tables ------------------------------------------------------------------------------------------


def folds(root: Path) -> Path:
    put(root / "images", root / "labels")
    for k in range(3):
        lists = root / "splits" / f"fold{k}"
        lists.mkdir(parents=True)
        (lists / "val.txt").write_text(f"{2 * k}\n{2 * k + 1}\n")
        (lists / "train.txt").write_text("".join(f"{i}\n" for i in range(6) if i // 2 != k))
    return root


@pytest.mark.parametrize("name", ["fold1", "1"])
def test_a_fold_is_chosen_by_its_name_or_number(name: str, tmp_path: Path) -> None:
    splits = open_every_split(f"folder,fold={name}:{folds(tmp_path)}")
    assert {d.split: [r.name for r in d.records] for d in splits} == {"train": [*"0145"], "val": [*"23"]}


def test_folds_that_nobody_chose_are_said_and_what_is_advised_works(tmp_path: Path) -> None:
    text = notes(folds(tmp_path))
    assert "those of 3 folds (fold0, fold1, fold2)" in text
    advised = next(word for word in text.split() if word.startswith("folder,fold="))
    assert len(open_dataset(advised, "val")) == 2
    with pytest.raises(UnknownName, match="fold0"):
        open_dataset(f"folder,fold=9:{tmp_path}")


@pytest.mark.parametrize("name", ["id2label.json", "label2id.json", "idx_to_class.json"])
def test_numbered_names_of_classes_are_read(name: str, tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "labels")
    classes = dict(enumerate(("ground", "disc", "box", "stripe")))
    turned = {v: k for k, v in classes.items()}
    (tmp_path / name).write_text(json.dumps(turned if name.startswith("label") else classes))
    assert open_dataset(tmp_path).taxonomy.names == ("ground", "disc", "box", "stripe")


def test_texts_that_are_not_read_are_named_and_one_that_could_be_the_table_is_told(tmp_path: Path) -> None:
    put(tmp_path / "images", tmp_path / "labels")
    (tmp_path / "meta.json").write_text('{"0": "ground", "1": "disc", "2": "box", "3": "stripe"}')
    (tmp_path / "camera.yaml").write_text("focal: 3\n")
    text = notes(tmp_path)
    assert "files that are not read: 2 (camera.yaml, meta.json)" in text
    assert "meta.json could be a table of classes: call it classes.json" in text
    (tmp_path / "meta.json").rename(tmp_path / "classes.json")
    assert open_dataset(tmp_path).taxonomy.names[1] == "disc"


# ---- label files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.bool_])
def test_labels_saved_by_numpy_are_read_checked_and_learned_like_others(dtype: type, tmp_path: Path) -> None:
    for i in range(3):
        faults.save(TRUTH[i][0], tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels").mkdir(exist_ok=True)
        np.save(tmp_path / "labels" / f"{i}.npy", TRUTH[i][1].astype(dtype))
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset[1].labels["semantic"], TRUTH[1][1].astype(dtype).astype(np.uint8))
    assert not [f for f in check(tmp_path) if f.level == "error"]
    (tmp_path / "classes.txt").write_text("ground\n")
    found = [f.kind for f in check(tmp_path)]
    assert "id-out-of-range" in found


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[{}]], object), "no class ids"),
        (np.zeros((2, 3, 4), np.uint8), "no class ids"),
        (np.full((2, 3), -1), "outside 0..65535"),
        (np.zeros((0, 3), np.uint8), "no class ids"),
    ],
)
def test_arrays_that_are_no_labels_are_refused_and_never_unpickled(
    array: np.ndarray, words: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=words):
        images.read_label(tmp_path / "a.npy")


@pytest.mark.parametrize("cut", [0, 5, 40, 130, 200])
def test_a_cut_array_is_refused(cut: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.uint8))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.npy"):
        images.read_label(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match="600"):
        images.read_label(tmp_path / "a.npy", max_pixels=599)


def grey_alpha(values: np.ndarray, alpha: int = 65535) -> bytes:
    pairs = np.stack([values, np.full_like(values, alpha)], -1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pairs)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_16_bit_grey_with_alpha_is_read_exactly_as_label_and_as_image() -> None:
    values = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) * 34
    data = grey_alpha(values)
    np.testing.assert_array_equal(images.read_label(data), values)
    np.testing.assert_array_equal(images.read_image(data, mode="bands")[..., 0], values)
    np.testing.assert_array_equal(images.read_image(data)[..., 2], values >> 8)
    with pytest.raises(DataError, match="transparent"):
        images.read_label(grey_alpha(values, 65534))
    broken = bytearray(data)
    broken[60] ^= 1
    with pytest.raises(DataError):
        images.read_label(bytes(broken))


@pytest.mark.parametrize("bands", [1, 3])
def test_an_opaque_alpha_channel_hides_no_ids_and_a_transparent_one_is_refused(bands: int, tmp_path: Path) -> None:
    ids = np.repeat(TRUTH[0][1][..., None], bands, -1)
    alpha = np.full((40, 48, 1), 255, np.uint8)
    faults.save(np.dstack([ids, alpha]), tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_label(tmp_path / "a.png"), TRUTH[0][1])
    alpha[3, 3] = 0
    faults.save(np.dstack([ids, alpha]), tmp_path / "a.png")
    with pytest.raises(DataError, match=r"1 of its pixels are transparent|colour label"):
        images.read_label(tmp_path / "a.png")


def test_the_command_line_reads_folders_told_by_their_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "sat2", tmp_path / "classes2")
    with pytest.raises(SystemExit) as end:
        main(["check", str(tmp_path)])
    assert end.value.code == 0
    assert "classes2/ is read as the labels of sat2/" in capsys.readouterr().out
