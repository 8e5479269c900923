"""The user's folder as he means it: his classes and splits count, links are followed, what is not used is counted."""

from __future__ import annotations

import os
from pathlib import Path

import faults
import numpy as np
import pytest

from fullyconv.data import open_dataset
from fullyconv.data.corpora.layout import LeftOut, is_split, list_files, role
from fullyconv.doctor import check, open_every_split
from fullyconv.errors import DataError

TRUTH = [faults.scene(i, (40, 48)) for i in range(8)]
NAMES = ("ground", "disc", "box", "stripe")


def put(image: Path, label: Path | None, i: int) -> None:
    faults.save(TRUTH[i][0], image)
    if label:
        faults.save(TRUTH[i][1], label)


def notes(root: Path, split: str | None = None) -> str:
    return "\n".join(open_dataset(root, split).notes)


# ---- classes of the user's own ---------------------------------------------------------------------------------


def segnet(root: Path, name: str = "{i}", value: int = 0) -> Path:
    for i, split in enumerate(("train", "train", "val")):
        put(root / split / f"{name.format(i=i)}.png", root / f"{split}annot" / f"{name.format(i=i)}.png", i)
        if value:
            faults.save(np.full((40, 48), value, np.uint8), root / f"{split}annot" / f"{name.format(i=i)}.png")
    return root


def test_folders_laid_out_as_camvids_with_other_classes_are_the_users(tmp_path: Path) -> None:
    root = segnet(tmp_path / "listed", "0001TP_{i}")
    assert open_dataset(root).kind == "camvid"
    (root / "classes.txt").write_text("\n".join(NAMES))
    dataset = open_dataset(root)
    assert (dataset.kind, dataset.split, len(dataset), dataset.taxonomy.names) == ("folder", "train", 2, NAMES)
    assert len(open_dataset(root, "val")) == 1
    assert open_dataset(segnet(tmp_path / "names")).kind == "folder"
    other = segnet(tmp_path / "values", "0001TP_{i}", 12)
    assert open_dataset(other).kind == "folder"
    eleven = open_dataset(segnet(tmp_path / "eleven", value=11))
    assert (eleven[0].labels["semantic"] == 11).all()


@pytest.mark.parametrize("own", [False, True])
def test_a_devkit_with_other_classes_is_the_users(own: bool, tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "JPEGImages" / f"p{i}.png", tmp_path / "SegmentationClass" / f"p{i}.png", i)
        image = tmp_path / "JPEGImages" / f"p{i}.png"
        image.rename(image.with_suffix(".jpg"))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\np1\n")
    (lists / "val.txt").write_text("p2\n")
    if own:
        (tmp_path / "class_names.txt").write_text("\n".join(NAMES))
    dataset = open_dataset(tmp_path)
    assert (dataset.kind, dataset.split, len(dataset)) == ("folder" if own else "voc", "train", 2)
    if own:
        assert dataset.taxonomy.names == NAMES
        np.testing.assert_array_equal(open_dataset(tmp_path, "val")[0].labels["semantic"], TRUTH[2][1])


@pytest.mark.parametrize(
    "name",
    ["classes.txt", "class_names.txt", "label_colors.txt", "labelmap.txt", "labels/_classes.csv", "classes.json"],
)
def test_a_table_of_classes_is_read_where_it_lies_and_that_is_said(name: str, tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", 0)
    text = "[" + ",".join(f'"{n}"' for n in NAMES) + "]" if name.endswith("json") else "\n".join(NAMES)
    (tmp_path / name).write_text(text)
    assert open_dataset(tmp_path).taxonomy.names == NAMES
    assert f"the semantic classes are those of {Path(name).name}: ground, disc, box, stripe." in notes(tmp_path)


def test_a_table_that_does_not_count_is_named_and_for_painted_labels_the_colours_count(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", 0)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    colours = "\n".join(f"{r} {g} {b} c{k}" for k, (r, g, b) in enumerate(faults.COLOURS))
    (tmp_path / "label_colors.txt").write_text(colours)
    (tmp_path / "data.yaml").write_text("train: images\n")
    assert open_dataset(tmp_path).taxonomy.names == NAMES
    assert "label_colors.txt is not read: classes.txt gives the classes" in notes(tmp_path)
    faults.save(faults.COLOURS[TRUTH[0][1]].astype(np.uint8), tmp_path / "labels" / "a.png")
    assert open_dataset(tmp_path).taxonomy.names == ("c0", "c1", "c2", "c3")
    np.testing.assert_array_equal(open_dataset(tmp_path)[0].labels["semantic"], TRUTH[0][1])
    (tmp_path / "label_colors.txt").unlink()
    (tmp_path / "classes.txt").unlink()
    assert "data.yaml is not read" in notes(tmp_path)


def test_tables_of_two_splits_must_be_equal(tmp_path: Path) -> None:
    for i, split in enumerate(("train", "valid")):
        put(tmp_path / split / f"{i}.jpg", None, i)
        faults.save(TRUTH[i][1], tmp_path / split / f"{i}_mask.png")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, a\n1, b\n2, c\n3, d\n")
    assert open_dataset(tmp_path, "val").taxonomy.names == ("a", "b", "c", "d")
    (tmp_path / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, a\n1, c\n2, b\n3, d\n")
    with pytest.raises(DataError, match="list other classes; make them equal"):
        open_dataset(tmp_path)


# ---- splits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "validation", "Testing"), ("x/train", "x/dev", "x/test")]
)
def test_images_beside_their_labels_in_folders_named_as_splits_are_of_these_splits(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    for k, name in enumerate(names):
        for i in (2 * k, 2 * k + 1):
            put(tmp_path / name / f"p{i}.jpg", None, i)
            faults.save(TRUTH[i][1], tmp_path / name / f"p{i}_mask.png")
    learned = open_dataset(tmp_path)
    assert [r.name for r in learned.records] == ["p0", "p1"]
    assert [len(d) for d in open_every_split(tmp_path)] == [2, 2, 2]
    assert {r.name for d in open_every_split(tmp_path) for r in d.records} == {f"p{i}" for i in range(6)}


@pytest.mark.parametrize(
    "layout", ["images/{s}|labels/{s}", "{s}/images|{s}/labels", "{s}|{s}_masks", "images_{s}|masks_{s}"]
)
def test_what_lies_beside_the_splits_is_never_learned_and_is_counted(layout: str, tmp_path: Path) -> None:
    images, labels = layout.split("|")
    for i, s in enumerate(("train", "val", "test")):
        put(tmp_path / images.format(s=s) / f"p{i}.png", tmp_path / labels.format(s=s) / f"p{i}.png", i)
    put(tmp_path / "extra" / "q.png", None, 4)
    put(tmp_path / images.format(s="train").split("/")[0] / "cover.png", None, 5) if layout.startswith(
        "images/"
    ) else None
    assert [r.name for r in open_dataset(tmp_path).records] == ["p0"]
    assert [d.split for d in open_every_split(tmp_path)] == ["train", "val", "test"]
    assert "images that are not used: " in notes(tmp_path)
    assert "1 in extra/ (q.png)" in notes(tmp_path)


@pytest.mark.parametrize("place", ["splits", "lists", "ImageSets/Segmentation", "."])
@pytest.mark.parametrize("flat", [False, True])
def test_lists_in_a_folder_of_their_own_are_the_splits(place: str, flat: bool, tmp_path: Path) -> None:
    for i in range(4):
        if flat:
            put(tmp_path / f"p{i}.jpg", None, i)
            faults.save(TRUTH[i][1], tmp_path / f"p{i}_mask.png")
        else:
            put(tmp_path / "images" / f"p{i}.png", tmp_path / "labels" / f"p{i}.png", i)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "train.txt").write_text("p0\np1\n")
    (tmp_path / place / "val.txt").write_text("p2\np1\n")
    assert [r.name for r in open_dataset(tmp_path).records] == ["p0", "p1"]
    assert {r.name for r in open_dataset(tmp_path, "val").records} == {"p1", "p2"}
    assert "duplicate-across-splits" in {f.kind for f in check(tmp_path)}


def test_lists_that_are_not_used_are_named(tmp_path: Path) -> None:
    for i, s in enumerate(("train", "val")):
        put(tmp_path / "images" / s / f"p{i}.png", tmp_path / "labels" / s / f"p{i}.png", i)
    (tmp_path / "train.txt").write_text("elsewhere9\n")
    assert len(open_dataset(tmp_path)) == 1
    assert "the lists beside them are not used" in notes(tmp_path)
    (tmp_path / "train.txt").unlink()
    (tmp_path / "splits" / "fold1").mkdir(parents=True)
    (tmp_path / "splits" / "fold1" / "val.txt").write_text("p0\n")
    assert "those of 1 folds (fold1); choose one with folder,fold=fold1:" in notes(tmp_path)
    (tmp_path / "splits" / "fold1" / "val.txt").write_text("../../images/val/p1.png ../../labels/val/p1.png\n")
    assert len(open_dataset(tmp_path / "splits" / "fold1" / "val.txt")) == 1


def test_usual_names_of_splits_are_known() -> None:
    known = "train Training val valid Validation dev eval test testing holdout train2017 test_set fold3 cv_1 trainval"
    assert all(map(is_split, known.split()))
    assert not any(map(is_split, ("images", "city", "valley", "tests_of_x", "trainer")))
    assert [role(n) for n in ("holdout", "eval", "val2017")] == ["test", "val", "val"]


# ---- links and what is left out --------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_every_real_folder_is_read_once(tmp_path: Path) -> None:
    root, disk = tmp_path / "set", tmp_path / "disk"
    for kind in ("images", "labels"):
        for i in range(2):
            faults.save(TRUTH[i][kind == "labels"], root / kind / "train" / f"r{i}.png")
            faults.save(TRUTH[2 + i][kind == "labels"], disk / kind / f"s{i}.png")
        os.symlink(f"../../../disk/{kind}", root / kind / "train" / "seq1")
        os.symlink(f"../../../disk/{kind}", root / kind / "train" / "seq2")
        os.symlink(".", root / kind / "train" / "loop")
        os.symlink("nowhere", root / kind / "train" / "broken")
        os.symlink("self", root / kind / "train" / "self")
    dataset = open_dataset(root)
    assert [r.name for r in dataset.records] == ["r0", "r1", "seq1/s0", "seq1/s1"]
    np.testing.assert_array_equal(dataset[3].labels["semantic"], TRUTH[3][1])
    assert "1 link to a folder around it (loop), 1 link to a folder that is read already (seq2)" in notes(root)


def test_a_real_folder_is_read_by_its_own_path_even_if_a_link_comes_first(tmp_path: Path) -> None:
    faults.save(TRUTH[0][0], tmp_path / "b" / "p.png")
    os.symlink("b", tmp_path / "a")
    assert list_files(tmp_path) == [tmp_path / "b" / "p.png"]


def test_what_is_left_out_is_counted_with_an_example(tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", 0)
    for name in ("._a.png", ".hidden.png", "Thumbs.db", "notes.docx"):
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "images" / "__MACOSX").mkdir()
    (tmp_path / "images" / "__MACOSX" / "z.png").write_bytes(b"x")
    text = notes(tmp_path)
    assert "left out in images/: " in text
    for words in ("2 hidden (", "2 of the system (", "1 .docx (notes.docx)"):
        assert words in text
    left = LeftOut()
    assert len(list_files(tmp_path / "images", left=left)) == 1
    assert sum(left.values()) == 4


@pytest.mark.parametrize("name", ["train.txt", "classes.txt", "splits/train.csv"])
def test_a_pipe_named_like_a_text_of_the_set_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    put(tmp_path / "images" / "a.png", tmp_path / "labels" / "a.png", 0)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        open_dataset(tmp_path)


# ---- layouts of other tools that are folders -------------------------------------------------------------------


def test_a_pipe_that_may_be_a_list_is_said(tmp_path: Path) -> None:
    put(tmp_path / "images/1.png", tmp_path / "labels/1.png", 1)
    os.mkfifo(tmp_path / "x.csv")
    assert "x.csv is a broken link, a pipe or a device: it is not read." in notes(tmp_path)


def test_what_labelme2voc_writes_is_read_by_its_pngs_and_its_names(tmp_path: Path) -> None:
    for i in range(2):
        put(tmp_path / "JPEGImages" / f"p{i}.jpg", tmp_path / "SegmentationClassPNG" / f"p{i}.png", i)
        put(tmp_path / "SegmentationClassVisualization" / f"p{i}.jpg", None, i)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        np.save(tmp_path / "SegmentationClass" / f"p{i}.npy", TRUTH[i][1])
    (tmp_path / "class_names.txt").write_text("_background_\ndisc\nbox\nstripe\n")
    dataset = open_dataset(tmp_path)
    assert dataset.inputs == ("rgb",)
    assert set(dataset.records[0].inputs) == {"rgb"}
    assert dataset.taxonomy.names == ("_background_", "disc", "box", "stripe")
    np.testing.assert_array_equal(dataset[1].labels["semantic"], TRUTH[1][1])
    assert "SegmentationClass/ is not read (2 files" in notes(tmp_path)
    assert "2 in SegmentationClassVisualization/" in notes(tmp_path)
    assert not [f for f in check(tmp_path) if f.level == "error"]


def test_deepglobes_names_are_paired_and_a_split_without_labels_is_no_error(tmp_path: Path) -> None:
    for i in range(6):
        split = "train" if i < 4 else "valid"
        put(tmp_path / split / f"{i}_sat.jpg", None, i)
        if i < 4:
            faults.save(faults.COLOURS[TRUTH[i][1]].astype(np.uint8), tmp_path / split / f"{i}_mask.png")
    rows = "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in zip(NAMES, faults.COLOURS, strict=True))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n" + rows)
    dataset = open_dataset(tmp_path)
    assert dataset.taxonomy.names == NAMES
    np.testing.assert_array_equal(dataset[3].labels["semantic"], TRUTH[3][1])
    assert open_dataset(tmp_path, "valid").taxonomies == {}
    assert not [f for f in check(tmp_path) if f.level == "error"]
