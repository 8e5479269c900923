"""The user's own data: every layout, list and label coding opens without code, and every fault says what to do."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import faults
import numpy as np
import pytest
from PIL import Image

from fullyconv.data import KINDS, open_dataset, parse_spec
from fullyconv.data.corpora import coding
from fullyconv.data.corpora.class_tables import classes_text, read_classes
from fullyconv.data.corpora.layout import choose_split, list_files, read_table
from fullyconv.doctor import check
from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError
from fullyconv.taxonomy import Taxonomy

SHARED = os.environ.get("FULLYCONV_SHARED")
needs_shared = pytest.mark.skipif(not SHARED, reason="FULLYCONV_SHARED is not set")
TRUTH = [faults.scene(i, (40, 48)) for i in range(6)]


def put(root: Path, images: str, labels: str, numbers: range = range(6), ending: str = "") -> Path:
    for i in numbers:
        faults.save(TRUTH[i][0], root / images / f"p{i}.png")
        if labels:
            faults.save(TRUTH[i][1], root / labels / f"p{i}{ending}.png")
    return root


def same(dataset: object, numbers: range | list[int]) -> None:
    assert [r.name.split("/")[-1] for r in dataset.records] == [f"p{i}" for i in numbers]  # type: ignore[attr-defined]
    for i, sample in zip(numbers, dataset, strict=True):  # type: ignore[call-overload]
        np.testing.assert_array_equal(sample.image, TRUTH[i][0])
        np.testing.assert_array_equal(sample.labels["semantic"], TRUTH[i][1])


# ---- layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layout", ["{split}/images|{split}/labels", "images/{split}|labels/{split}", "{split}/img|{split}/masks"]
)
def test_splits_are_folders(layout: str, tmp_path: Path) -> None:
    images, labels = layout.split("|")
    put(tmp_path, images.format(split="train"), labels.format(split="train"), range(4))
    put(tmp_path, images.format(split="val"), labels.format(split="val"), range(4, 6))
    same(open_dataset(tmp_path), range(4))
    same(open_dataset(tmp_path, "val"), range(4, 6))
    same(open_dataset(tmp_path, "all"), range(6))
    assert len({r.name for r in open_dataset(tmp_path, "all").records}) == 6
    with pytest.raises(UnknownName, match="train, val"):
        open_dataset(tmp_path, "vla")


def test_splits_are_list_files(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "train.txt").write_text("p0\nimages/p1.png\n/home/me/data/images/p2\n")
    (tmp_path / "val.txt").write_text("images/p3.png labels/p3.png\n")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    same(open_dataset(tmp_path), range(3))
    same(open_dataset(tmp_path, "val"), [3])
    (tmp_path / "val.txt").write_text("p9\n")
    with pytest.raises(MissingInput, match="lists 'p9', which is not in"):
        open_dataset(tmp_path, "val")
    (tmp_path / "val.txt").write_text("p3\n" + "".join(f"q{i}\n" for i in range(8)))
    with pytest.raises(MissingInput, match="lists 'q0', 'q1', 'q2', 'q3', 'q4' and 3 more, which are not in"):
        open_dataset(tmp_path, "val")


def test_one_folder_without_splits_and_subfolders_in_it(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels", range(3))
    put(tmp_path, "images/more", "labels/more", range(3, 6))
    dataset = open_dataset(tmp_path)
    assert [r.name for r in dataset.records] == ["more/p3", "more/p4", "more/p5", "p0", "p1", "p2"]
    assert dataset.split == ""
    with pytest.raises(UnknownName, match="no splits"):
        open_dataset(tmp_path, "val")


def test_a_csv_is_a_data_set(tmp_path: Path) -> None:
    put(tmp_path, "a", "b")
    rows = [f"a/p{i}.png,b/p{i}.png,{'val' if i > 3 else 'train'},film{i % 2}" for i in range(6)]
    (tmp_path / "set.csv").write_text("image,label,split,group\n" + "\n".join(rows))
    same(open_dataset(tmp_path / "set.csv"), range(4))
    same(open_dataset(f"folder:{tmp_path / 'set.csv'}", "val"), [4, 5])
    assert {r.group for r in open_dataset(tmp_path / "set.csv").records} == {"film0", "film1"}
    (tmp_path / "plain.txt").write_text("\n".join(f"a/p{i}.png b/p{i}.png" for i in range(6)))
    same(open_dataset(tmp_path / "plain.txt"), range(6))


def test_names_with_blanks_commas_and_other_scripts_are_read_from_lists(tmp_path: Path) -> None:
    faults.save(TRUTH[0][0], tmp_path / "a" / "größe 1, nah.png")
    faults.save(TRUTH[0][1], tmp_path / "b" / "größe 1, nah.png")
    (tmp_path / "set.csv").write_text('image,label\n"a/größe 1, nah.png","b/größe 1, nah.png"\n')
    assert open_dataset(tmp_path / "set.csv")[0].labels["semantic"].shape == (40, 48)
    assert read_table(tmp_path / "set.csv")[0]["image"] == "a/größe 1, nah.png"


def test_labels_with_an_ending_of_their_own_are_paired_and_it_is_said(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels", ending="_mask")
    dataset = open_dataset(tmp_path)
    same(dataset, range(6))
    assert any("_mask" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p{}", "p{}_gtFine_labelIds"),
        ("p{}", "mask_p{}"),
        ("image_{}", "mask_{}"),
        ("town/p{}_leftImg8bit", "town/p{}_gtFine_labelIds"),
    ],
)
def test_names_that_differ_in_what_all_share_are_paired_and_it_is_said(image: str, label: str, tmp_path: Path) -> None:
    for i in range(6):
        faults.save(TRUTH[i][0], tmp_path / "images" / f"{image.format(i)}.png")
        faults.save(TRUTH[i][1], tmp_path / "labels" / f"{label.format(i)}.png")
    dataset = open_dataset(tmp_path)
    for i, sample in enumerate(dataset):
        np.testing.assert_array_equal(sample.labels["semantic"], TRUTH[i][1])
    assert any("pairs by the names without" in note for note in dataset.notes)


def test_names_that_only_look_alike_are_not_paired(tmp_path: Path) -> None:
    for i in range(6):
        faults.save(TRUTH[i][0], tmp_path / "images" / f"img_1{i}.png")
        faults.save(TRUTH[i][1], tmp_path / "labels" / f"mask_2{i}.png")
    dataset = open_dataset(tmp_path)
    assert not dataset.taxonomies
    assert len(dataset.unmatched) == 6
    (messages,) = (f.message for f in check(tmp_path) if f.kind == "no-labels")
    assert "6 labels have other names (mask_20.png, and an image img_10.png)" in messages


@pytest.mark.parametrize("layout", ["{}_images|{}_masks", "{}|{}_labels", "Images/{}|Masks/{}"])
def test_folders_named_with_their_split_or_in_capitals_are_found(layout: str, tmp_path: Path) -> None:
    images, labels = layout.split("|")
    put(tmp_path, images.format("train"), labels.format("train"), range(4))
    put(tmp_path, images.format("val"), labels.format("val"), range(4, 6))
    same(open_dataset(tmp_path), range(4))
    same(open_dataset(tmp_path, "val"), range(4, 6))


@pytest.mark.parametrize(("suffix", "ending"), [(".jpg", ""), (".png", "_mask")])
def test_a_label_may_lie_beside_its_image(suffix: str, ending: str, tmp_path: Path) -> None:
    for i in range(6):
        Image.fromarray(TRUTH[i][0]).save(tmp_path / f"p{i}{suffix}")
        faults.save(TRUTH[i][1], tmp_path / f"p{i}{ending}.png")
    dataset = open_dataset(tmp_path)
    assert [r.name for r in dataset.records] == [f"p{i}" for i in range(6)]
    assert all((s.labels["semantic"] == TRUTH[i][1]).all() for i, s in enumerate(dataset))


def test_an_umlaut_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    faults.save(TRUTH[0][0], tmp_path / "images" / f"{unicodedata.normalize('NFD', 'Bär')}.png")
    faults.save(TRUTH[0][1], tmp_path / "labels" / f"{unicodedata.normalize('NFC', 'Bär')}.PNG")
    (tmp_path / "train.txt").write_text(unicodedata.normalize("NFD", "Bär") + "\n")
    assert (open_dataset(tmp_path)[0].labels["semantic"] == TRUTH[0][1]).all()


def test_lists_written_on_windows_are_read(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "train.txt").write_bytes("\ufeffimages\\p0.png\r\nC:\\data\\images\\p1.png\r\n".encode())
    same(open_dataset(tmp_path), range(2))
    rows = "Image_Path;Mask;Split;Remark\r\nimages\\p2.png;labels\\p2.png;Training;3\r\n"
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    dataset = open_dataset(tmp_path / "list.csv", "train")
    same(dataset, [2])
    assert any("'remark' names no images" in note for note in dataset.notes)


def test_a_table_beside_the_images_names_their_splits(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    rows = [f"p{i},{'train' if i < 4 else 'val'},group{i % 2}" for i in range(6)]
    (tmp_path / "splits.csv").write_text("image,split,group\n" + "\n".join(rows) + "\n")
    same(open_dataset(tmp_path), range(4))
    same(open_dataset(tmp_path, "val"), range(4, 6))
    assert [r.group for r in open_dataset(tmp_path, "val").records] == ["group0", "group1"]


def test_a_list_may_lie_in_a_folder_of_lists(tmp_path: Path) -> None:
    put(tmp_path, "my images", "my labels")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("my images/p0.png my labels/p0.png\n")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    dataset = open_dataset(tmp_path / "lists" / "train.txt")
    same(dataset, [0])
    assert dataset.taxonomy.names[0] == "a"


def test_other_texts_beside_the_images_are_no_lists(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "metadata.csv").write_text("id,place\n0,Bonn\n")
    dataset = open_dataset(tmp_path)
    same(dataset, range(6))
    assert any("metadata.csv does not begin with the name of an image" in note for note in dataset.notes)
    (tmp_path / "val.txt").write_text("p99\n")
    with pytest.raises(MissingInput, match="p99"):
        open_dataset(tmp_path, "val")


def test_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "labels" / "p0.png").rename(tmp_path / "labels" / "p0.npy")
    assert ("unread-file", tmp_path / "labels" / "p0.npy") in open_dataset(tmp_path).unmatched


def test_images_alone_are_a_set_without_labels(tmp_path: Path) -> None:
    put(tmp_path, ".", "")
    dataset = open_dataset(tmp_path)
    assert len(dataset) == 6
    assert dataset.taxonomies == {}
    np.testing.assert_array_equal(dataset[2].image, TRUTH[2][0])


def test_pairs_are_found_by_name_and_never_by_order(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels", range(4))
    (tmp_path / "labels" / "p0.png").unlink()
    faults.save(TRUTH[5][1], tmp_path / "labels" / "q9.png")
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset[1].labels["semantic"], TRUTH[1][1])
    assert [(k, f.name) for k, f in dataset.unmatched] == [("label-without-image", "q9.png")]
    with pytest.raises(DataError, match="p0 has no semantic label"):
        dataset[0]


# ---- inputs and heads ------------------------------------------------------------------------------------------


def rich(root: Path) -> Path:
    """images, depth, labels, labels-side with classes files."""
    put(root, "images", "labels")
    for i in range(6):
        Image.fromarray(np.full((40, 48), 1000 + i, np.uint16)).save(_made(root / "depth") / f"p{i}.png")
        faults.save((TRUTH[i][1] > 1).astype(np.uint8), root / "labels-side" / f"p{i}.png")
    (root / "classes.txt").write_text("ground\ndisc\nbox\nstripe")
    (root / "classes-side.txt").write_text("left\nright")
    return root


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_sibling_folders_are_inputs_and_heads(tmp_path: Path) -> None:
    dataset = open_dataset(rich(tmp_path), inputs=["rgb", "depth"])
    sample = dataset[3]
    assert sample.image.shape == (40, 48, 4)
    assert (sample.image[..., 3] == 1003).all()
    assert (sample.image[..., :3] == TRUTH[3][0]).all()
    assert list(dataset.taxonomies) == ["semantic", "side"]
    assert dataset.taxonomies["side"].names == ("left", "right")
    np.testing.assert_array_equal(sample.labels["side"], TRUTH[3][1] > 1)
    assert list(open_dataset(tmp_path, heads=["side"])[0].labels) == ["side"]
    with pytest.raises(UnknownName, match="depth"):
        open_dataset(tmp_path, inputs=["rgb", "dept"])
    with pytest.raises(UnknownName, match="side"):
        open_dataset(tmp_path, heads=["sied"])


def test_a_head_is_derived_by_a_map_of_names(tmp_path: Path) -> None:
    groups = {"round": ["disc"], "long": ["stripe"], "rest": "*"}
    dataset = open_dataset(rich(tmp_path), heads={"shape": {"from": "semantic", "map": groups}})
    assert dataset.taxonomies["shape"].names == ("round", "long", "rest")
    expected = np.array([2, 0, 2, 1], np.uint8)[TRUTH[0][1]]
    np.testing.assert_array_equal(dataset[0].labels["shape"], expected)
    assert list(dataset.taxonomies) == ["semantic", "side", "shape"]


def test_ignored_and_unmapped_pixels_stay_ignored_in_a_derived_head(tmp_path: Path) -> None:
    rich(tmp_path)
    values = TRUTH[0][1].copy()
    values[0] = 255
    faults.save(values, tmp_path / "labels" / "p0.png")
    heads = {"shape": {"from": "semantic", "map": {"round": ["disc"]}}}
    shape = open_dataset(tmp_path, heads=heads)[0].labels["shape"]
    np.testing.assert_array_equal(shape, np.where(values == 1, 0, 255))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"from": "semantic", "map": {"a": ["dics"]}}, "disc"),
        ({"from": "semantics", "map": {"a": ["disc"]}}, "semantic"),
        ({"from": "semantic", "map": {"a": ["disc"], "b": ["disc"]}}, "twice"),
        ({"from": "semantic", "map": {}}, "empty"),
        ({"folder": "absent"}, "absent"),
        ({"form": "semantic"}, "form"),
    ],
)
def test_a_wrong_head_is_refused_in_words(how: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, MissingInput), match=words):
        open_dataset(rich(tmp_path), heads={"new": how})


def test_a_head_comes_from_any_folder(tmp_path: Path) -> None:
    rich(tmp_path)
    (tmp_path / "labels-side").rename(tmp_path / "elsewhere")
    dataset = open_dataset(tmp_path, heads={"side": {"folder": "elsewhere"}})
    np.testing.assert_array_equal(dataset[4].labels["side"], TRUTH[4][1] > 1)
    assert dataset.taxonomies["side"].names == ("left", "right")


# ---- label codings ---------------------------------------------------------------------------------------------


def relabel(root: Path, change: object) -> None:
    for file in (root / "labels").iterdir():
        faults.save(change(np.array(Image.open(file))), file)  # type: ignore[operator]


def test_classes_are_inferred_and_said(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: np.where(v == 3, 255, v).astype(np.uint8))
    dataset = open_dataset(tmp_path)
    assert len(dataset.taxonomy) == 3
    assert any("0..2, 255 ignored" in note for note in dataset.notes)


def test_labels_are_looked_through_once_for_all_splits_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "train/images", "train/labels", range(4))
    put(tmp_path, "val/images", "val/labels", range(4, 6))
    read: list[Path] = []
    stored = coding._stored
    monkeypatch.setattr(coding, "_stored", lambda file: (read.append(file), stored(file))[1])
    before = len(open_dataset(tmp_path, "train").taxonomy)
    open_dataset(tmp_path, "val")
    assert len(read) == 6
    label = TRUTH[0][1].copy()
    label[0, 0] = 40
    faults.save(label, tmp_path / "train/labels/p0.png")
    os.utime(tmp_path / "train/labels/p0.png", (1, 1))
    assert before < len(open_dataset(tmp_path, "val").taxonomy) == 41


def test_more_than_255_classes_are_16_bit_and_ignore_65535(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: np.where(v == 3, 65535, v.astype(np.uint16) * 200).astype(np.uint16))
    dataset = open_dataset(tmp_path)
    assert (len(dataset.taxonomy), dataset.taxonomy.ignore) == (401, 65535)
    assert dataset[0].labels["semantic"].dtype == np.uint16
    assert set(np.unique(dataset[0].labels["semantic"])) <= {0, 200, 400, 65535}


@pytest.mark.parametrize("form", ["{n} {r} {g} {b}", "{n},{r},{g},{b}", "{n}:{r},{g},{b}::", "{r} {g} {b}\t{n}"])
def test_colour_labels_are_read_by_a_table_in_any_usual_form(form: str, tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: faults.COLOURS[v].astype(np.uint8))
    rows = [form.format(n=n, r=c[0], g=c[1], b=c[2]) for n, c in zip(faults.NAMES, faults.COLOURS, strict=True)]
    (tmp_path / "classes.txt").write_text("\n".join(rows))
    dataset = open_dataset(tmp_path)
    same(dataset, range(6))
    assert dataset.taxonomy.names == faults.NAMES
    assert dataset.taxonomy.palette == tuple(map(tuple, faults.COLOURS.tolist()))


def test_ignored_colours_and_unknown_ones(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: faults.COLOURS[v].astype(np.uint8))
    rows = [f"{n} {r} {g} {b}" for n, (r, g, b) in zip(faults.NAMES, faults.COLOURS, strict=True)]
    (tmp_path / "classes.txt").write_text("\n".join(["!" + rows[0], *rows[1:]]))
    ids = open_dataset(tmp_path)[0].labels["semantic"]
    np.testing.assert_array_equal(ids, np.array([255, 0, 1, 2], np.uint8)[TRUTH[0][1]])
    (tmp_path / "classes.txt").write_text("\n".join(rows[1:]))
    with pytest.raises(DataError, match=r"colour \(60, 110, 70\) is no class .* at row 0, column 0"):
        open_dataset(tmp_path)[0]


def test_colours_without_a_table_are_inferred_and_shown(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: faults.COLOURS[v].astype(np.uint8))
    dataset = open_dataset(tmp_path)
    assert dataset.taxonomy.palette == tuple(sorted(map(tuple, faults.COLOURS.tolist())))
    assert any("(60, 80, 200)" in note for note in dataset.notes)


def test_colours_in_classes_txt_only_colour_index_labels(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "classes.txt").write_text("a 1 2 3\nb 4 5 6\nc 7 8 9\nd 10 11 12")
    dataset = open_dataset(tmp_path)
    same(dataset, range(6))
    assert dataset.taxonomy.palette[1] == (4, 5, 6)


def test_stored_values_are_mapped_by_classes_txt(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    relabel(tmp_path, lambda v: np.array([0, 128, 255, 9], np.uint8)[v])
    (tmp_path / "classes.txt").write_text("ground = 0\ndisc = 128\nbox = 255\n!nothing = 9\n")
    ids = open_dataset(tmp_path)[0].labels["semantic"]
    np.testing.assert_array_equal(ids, np.array([0, 1, 2, 255], np.uint8)[TRUTH[0][1]])


@pytest.mark.parametrize("form", ["{v} {n}", "{v}: {n}", "{v},{n}", "{n}: {v}", "{n},{v}"])
def test_classes_may_be_numbered(form: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(form.format(n=n, v=v) for n, v in (("sky", 7), ("big car", 11))))
    found = read_classes(tmp_path / "classes.txt")
    assert found.taxonomy.names == ("sky", "big car")
    assert found.values == {7: 0, 11: 1}
    (tmp_path / "classes.txt").write_text("class 0\nclass 1\n")
    assert read_classes(tmp_path / "classes.txt").taxonomy.names == ("class 0", "class 1")
    (tmp_path / "classes.txt").write_text("0 road 128 64 128\n1 sky 70 130 180\n")
    assert read_classes(tmp_path / "classes.txt").taxonomy.palette == ((128, 64, 128), (70, 130, 180))


@pytest.mark.parametrize("colours", [((1, 2, 3), (4, 5, 6)), ((1, 2, 3), (1, 2, 3))])
def test_classes_are_written_as_they_are_read_even_where_two_share_a_colour(
    colours: tuple[tuple[int, int, int], ...], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text(classes_text(Taxonomy(("road 1", "sky"), colours)))
    assert read_classes(tmp_path / "classes.txt").taxonomy.names == ("road 1", "sky")


def test_ids_in_three_equal_channels_are_ids(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    for i in range(6):
        faults.save(np.repeat(TRUTH[i][1][..., None], 3, -1), tmp_path / "labels" / f"p{i}.png")
    same(open_dataset(tmp_path), range(6))
    assert {f.kind for f in check(tmp_path)} >= {"grey-rgb-label"}
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    same(open_dataset(tmp_path), range(6))


def test_65535_is_ignored_below_256_classes_too(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    for i in range(6):
        wide = TRUTH[i][1].astype(np.uint16)
        wide[0] = 65535
        Image.fromarray(wide).save(tmp_path / "labels" / f"p{i}.png")
    for names in ("", "a\nb\nc\nd\ne\nf\n"):
        if names:
            (tmp_path / "classes.txt").write_text(names)
        label = open_dataset(tmp_path)[0].labels["semantic"]
        assert (label[0] == 255).all()
        np.testing.assert_array_equal(label[1:], TRUTH[0][1][1:])


def test_values_far_apart_are_one_finding(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    for i in range(6):
        faults.save((TRUTH[i][1] * 50).astype(np.uint8), tmp_path / "labels" / f"p{i}.png")
    (found,) = (f for f in check(tmp_path) if f.kind == "sparse-ids")
    assert "0, 50, 100" in found.message
    assert not [f for f in check(tmp_path) if f.kind == "unused-class"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no class"),
        ("a\na", "twice"),
        ("a 1 2 3\nb 1 2 3", "twice"),
        ("a = 1\nb", "some classes only"),
        ("a 1 2 300", "above 255"),
        ("a = 70000", "65535"),
    ],
)
def test_a_wrong_classes_file_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=words):
        read_classes(tmp_path / "classes.txt")


def test_a_classes_file_may_have_a_byte_order_mark_but_must_be_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffstraße\nhaus nr 7\n".encode())
    assert read_classes(tmp_path / "a.txt").taxonomy.names == ("straße", "haus nr 7")
    (tmp_path / "a.txt").write_bytes("straße".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_classes(tmp_path / "a.txt")


def test_a_value_out_of_range_names_file_value_count_and_place(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd")
    values = TRUTH[2][1].copy()
    values[7, 9:12] = 77
    faults.save(values, tmp_path / "labels" / "p2.png")
    with pytest.raises(DataError, match=r"p2.png: .* 77 is no class \(3 pixels, the first at row 7, column 9"):
        open_dataset(tmp_path)[2]


# ---- more than colour ------------------------------------------------------------------------------------------


def test_many_bands_are_read_as_stored(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    put(tmp_path, "images", "labels")
    planes = np.random.default_rng(0).integers(0, 65536, (6, 40, 48)).astype(np.uint16)
    for i in range(6):
        (tmp_path / "images" / f"p{i}.png").unlink()
        options = {"driver": "GTiff", "height": 40, "width": 48, "count": 6, "dtype": "uint16"}
        with rasterio.open(tmp_path / "images" / f"p{i}.tif", "w", **options) as file:
            file.write(planes)
    dataset = open_dataset(tmp_path)
    assert dataset.inputs == ("bands",)
    np.testing.assert_array_equal(dataset[0].image, np.moveaxis(planes, 0, -1))


def test_16_bit_images_are_8_bit_colour_unless_asked_for(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    for file in (tmp_path / "images").iterdir():
        Image.fromarray(np.full((40, 48), 0x1234, np.uint16)).save(file)
    assert (open_dataset(tmp_path)[0].image == 0x12).all()
    sample = open_dataset(tmp_path, bands=True)[0]
    assert sample.image.shape == (40, 48, 1)
    assert (sample.image == 0x1234).all()


@pytest.mark.parametrize("options", [{"count": 4}, {"count": 3, "BIGTIFF": "YES"}, {"count": 1, "dtype": "float32"}])
def test_a_tiff_that_is_no_colour_image_is_read_and_checked_by_its_bands(
    options: dict[str, object], tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio")
    put(tmp_path, "images", "labels")
    for file in (tmp_path / "images").iterdir():
        planes = np.random.default_rng(0).integers(0, 4000, (options["count"], 40, 48)).astype("uint16")
        settings = {"driver": "GTiff", "height": 40, "width": 48, "dtype": "uint16", "compress": "deflate", **options}
        with rasterio.open(file.with_suffix(".tif"), "w", **settings) as out:
            out.write(planes.astype(settings["dtype"]))
        file.unlink()
    dataset = open_dataset(tmp_path)
    assert dataset.inputs == ("bands",)
    assert any("by their bands" in note for note in dataset.notes)
    np.testing.assert_array_equal(dataset[0].image, np.moveaxis(planes, 0, -1))
    for fast in (True, False):
        assert not [f.message for f in check(tmp_path, fast=fast) if f.kind == "unreadable-file"]
    (tmp_path / "images" / "p1.tif").write_bytes((tmp_path / "images" / "p1.tif").read_bytes()[:300])
    assert [f.files[0].name for f in check(tmp_path) if f.kind == "unreadable-file"] == ["p1.tif"]


# ---- specs and refusals ----------------------------------------------------------------------------------------


def test_specs_are_kind_and_path_or_path(tmp_path: Path) -> None:
    assert parse_spec("camvid:a/b") == ("camvid", Path("a/b"), {})
    assert parse_spec("a/b") == (None, Path("a/b"), {})
    assert parse_spec(tmp_path) == (None, tmp_path, {})
    wanted = {"order": "file", "images": "/my/photos", "bands": True}
    assert parse_spec("coco,order=file,images=/my/photos,bands=true:a/b") == ("coco", Path("a/b"), wanted)
    with pytest.raises(UsageError, match="not key=value"):
        parse_spec("coco,order:a/b")
    with pytest.raises(UnknownName, match="camvid"):
        parse_spec("camvd:a")
    with pytest.raises(MissingInput, match="does not exist"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(UnknownName, match="bands"):
        open_dataset(put(tmp_path, "images", "labels"), band=True)


def test_every_kind_has_its_two_functions() -> None:
    import importlib

    for kind, target in KINDS.items():
        module, _, name = target.partition(":")
        found = importlib.import_module(module)
        assert callable(getattr(found, name)), kind
        assert callable(found.recognise), kind


def test_a_folder_that_is_none_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(DataError, match=r"found readme.md"):
        open_dataset(tmp_path)


def test_hidden_files_and_thumbnails_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    (tmp_path / "images" / ".p9.png").write_bytes(b"x")
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    assert len(list_files(tmp_path / "images")) == 6


def test_val_also_finds_valid() -> None:
    assert choose_split(["train", "valid"], "val", Path()) == ("valid",)
    assert choose_split(["a", "b"], None, Path()) == ("a", "b")
    assert choose_split(["val", "train"], None, Path()) == ("train",)
    assert choose_split(["Train", "Validation"], None, Path()) == ("Train",)  # CVAT's subsets
    assert choose_split(["Train", "Validation"], "val", Path()) == ("Validation",)


def test_opening_writes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "images", "labels")
    before = sorted(p for p in tmp_path.rglob("*"))
    list(open_dataset(tmp_path))
    assert sorted(p for p in tmp_path.rglob("*")) == before
