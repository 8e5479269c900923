"""The same data as other tools, versions and machines write them: the same labels, or words that say what to do."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest

from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.corpora.class_tables import class_table
from fullyconv.doctor import check
from fullyconv.errors import DataError, MissingInput, UnknownName

SIZE = (40, 48)
BOXES = {"disc": (4, 4, 20, 16), "square": (24, 20, 44, 36)}  # left, top, right, bottom
TRUTH = np.zeros(SIZE, np.uint8)
for _k, (_l, _t, _r, _b) in enumerate(BOXES.values(), 1):
    TRUTH[_t:_b, _l:_r] = _k
NAMES = ("background", "disc", "square")


def image(file: Path, seed: int = 0) -> Path:
    faults.save(np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8), file)
    return file


def outline(name: str) -> list[list[float]]:
    left, top, right, bottom = BOXES[name]
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def told(dataset: Dataset) -> str:
    return "\n".join(dataset.notes)


def same(dataset: Dataset, count: int = 1) -> None:
    """The drawn labels under the drawn names, in every record."""
    assert dataset.taxonomy.names == NAMES
    assert len(dataset) == count
    for sample in dataset:
        np.testing.assert_array_equal(sample.labels["semantic"], TRUTH)


def kinds(root: Path | str) -> dict[str, str]:
    return {f.kind: f"{f.message} {f.remedy}" for f in check(root)}


# ---- tables of classes -----------------------------------------------------------------------------------------

QGIS = "# QGIS Generated Color Map Export File\nINTERPOLATION:EXACT\n0,0,0,0,255,background\n1,255,0,0,255,disc\n"
ITK = '# ITK-SnAP Label Description File\n    0     0    0    0        0  0  0    "background"\n'


@pytest.mark.parametrize(
    ("name", "data", "coloured"),
    [
        ("classes.txt", "background\r\ndisc\r\nsquare\r\n".encode("utf-16"), False),
        ("classes.txt", b"\xef\xbb\xbfbackground\r\ndisc\r\nsquare\r\n", False),
        ("classes.txt", b"0|background\n1|disc\n2|square\n", False),
        ("classes.txt", b"0. background\n1. disc\n2. square\n", False),
        ("classes.txt", b"0) background\n1) disc\n2) square\n", False),
        ("classes.txt", b"background\ndisc # round\nsquare\n", False),
        ("classes.txt", b'"background", "disc", "square"\n', False),
        ("classes.txt", b"['background', 'disc', 'square']\n", False),
        ("labels.txt", b"Labels:\nbackground\ndisc\nsquare\n", False),
        ("labels.txt", b"class\nbackground\ndisc\nsquare\n", False),
        ("classes.csv", b"| id | name |\n|---|---|\n| 0 | background |\n| 1 | disc |\n| 2 | square |\n", False),
        ("colormap.clr", b"0 0 0 0 255 background\n1 255 0 0 255 disc\n2 0 0 255 255 square\n", True),
        ("colormap.txt", (QGIS + "2,0,0,255,255,square\n").encode(), True),
        ("labels.txt", (ITK + '1 255 0 0 1 1 1 "disc"\n2 0 0 255 0.5 1 1 "square"\n').encode(), True),
        ("classes.json", b'{"0,0,0": "background", "255,0,0": "disc", "0,0,255": "square"}', True),
        ("classes.json", b'{"background": [0,0,0,255], "disc": [255,0,0,255], "square": [0,0,255,255]}', True),
        ("data.yaml", b"nc: 3\nnames: [\n  'background',\n  'disc',\n  'square'\n]\n", False),
    ],
)
def test_tables_of_other_tools_and_machines_give_the_same_classes(
    name: str, data: bytes, coloured: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    coding, _ = class_table(tmp_path / name)
    assert coding.taxonomy.names == NAMES
    assert not coding.values
    assert (coding.taxonomy.palette == ((0, 0, 0), (255, 0, 0), (0, 0, 255))) == coloured


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 background\n1 2 disc\n", "2 numbers before the name"),
        ("0 0 0 0 1 1 background\n1 9 9 9 1 1 disc\n", "6 numbers before the name"),
        ("b\0a\0c\0k\0", "zero bytes, as UTF-16"),
    ],
)
def test_numbers_nobody_knows_and_texts_of_another_coding_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        class_table(tmp_path / "classes.txt")


@pytest.mark.parametrize("name", ["label_map.pbtxt", "classes.xlsx", "legend.qml"])
def test_tables_that_are_not_read_are_named(name: str, tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    faults.save(TRUTH, tmp_path / "labels/a.png")
    (tmp_path / name).write_text("item {}")
    assert f"files that are not read: 1 ({name})" in told(open_dataset(tmp_path))


# ---- splits, lists and folds -----------------------------------------------------------------------------------


def folder(root: Path, count: int = 4) -> Path:
    for i in range(count):
        image(root / f"images/{i}.png", i)
        faults.save(TRUTH, root / f"labels/{i}.png")
    return root


def folds(root: Path, form: str) -> Path:
    number = 0
    for fold in "01":
        for split in ("train", "val"):
            for _ in range(2):
                number += 1
                image(root / form.format(fold=fold, split=split, side="images") / f"{number}.png", number)
                faults.save(TRUTH, root / form.format(fold=fold, split=split, side="labels") / f"{number}.png")
    return root


@pytest.mark.parametrize(
    "form", ["fold_{fold}/{split}/{side}", "fold_{fold}/{side}/{split}", "cv{fold}/{split}/{side}"]
)
def test_folds_that_are_folders_of_splits_are_chosen_and_never_mixed(form: str, tmp_path: Path) -> None:
    root = folds(tmp_path, form)
    with pytest.raises(DataError, match=r"2 folds with splits of their own .* folder,fold="):
        open_dataset(root)
    name = form.partition("{")[0] + "1"
    train, val = (open_dataset(f"folder,fold={name}:{root}", s) for s in ("train", "val"))
    assert {Path(r.name).name for r in train.records} == {"5", "6"}
    assert {Path(r.name).name for r in val.records} == {"7", "8"}
    with pytest.raises(UnknownName, match="fold"):
        open_dataset(f"folder,fold=7:{root}")


def test_a_column_of_folds_chooses_what_is_measured(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "folds.csv").write_text("image,fold\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(4)))
    whole = open_dataset(root)
    assert len(whole) == 4
    assert "the column fold of folds.csv is not used (0, 1)" in told(whole)
    spec = f"folder,fold=1:{root}"
    assert [r.name for r in open_dataset(spec, "train").records] == ["0", "2"]
    assert [r.name for r in open_dataset(spec, "val").records] == ["1", "3"]
    with pytest.raises(UnknownName, match="fold"):
        open_dataset(f"folder,fold=5:{root}")


@pytest.mark.parametrize("name", ["{}_list.txt", "{}.lst", "{}_files.txt"])
def test_lists_of_other_names_are_the_splits(name: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / name.format("train")).write_text("0\n1\n2\n")
    (root / name.format("val")).write_bytes("3\r\n".encode("utf-16"))
    assert [r.name for r in open_dataset(root, "train").records] == ["0", "1", "2"]
    assert [r.name for r in open_dataset(root, "val").records] == ["3"]


@pytest.mark.parametrize("name", ["kfold/train_fold0.txt", "meta/train.lst"])
def test_lists_where_none_are_looked_for_are_named_and_what_is_advised_works(name: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / name).parent.mkdir()
    (root / name).write_text("0\n1\n")
    assert f"lists of splits that are not used: 1 ({name}); give one as the data, or copy" in told(open_dataset(root))
    (root / name).rename(root / Path(name).name)
    assert len(open_dataset(root, Path(name).stem)) == 2


# ---- label maps ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(0, 128, 255), (0, 85, 170, 255), (0, 127, 255)])
def test_ids_spread_over_the_grey_levels_are_an_error_and_what_is_advised_works(
    levels: tuple[int, ...], tmp_path: Path
) -> None:
    root = folder(tmp_path, 2)
    ids = np.indices(SIZE).sum(0) // 9 % len(levels)
    for i in range(2):
        faults.save(np.array(levels, np.uint8)[ids], root / f"labels/{i}.png")
    assert "255 would be ignored" in kinds(root)["grey-levels"]
    (root / "classes.txt").write_text("".join(f"grey {v} = {v}\n" for v in levels))
    assert "grey-levels" not in kinds(root)
    np.testing.assert_array_equal(open_dataset(root)[0].labels["semantic"], ids)


def test_labels_of_numbers_that_are_no_ids_are_sound_files_and_named_by_the_label(tmp_path: Path) -> None:
    root = folder(tmp_path, 2)
    for i in range(2):
        (root / f"labels/{i}.png").unlink()
        np.save(root / f"labels/{i}.npy", np.stack([k == TRUTH for k in range(3)]).astype(np.float32))
    found = [f for f in check(root) if f.kind == "label-numbers"]
    assert [f.files[0].name for f in found] == ["0.npy", "1.npy"]
    assert "the file itself is sound" in found[0].remedy


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "float32", "int8", "int32"])
def test_label_rasters_of_every_type_are_checked_as_they_are_read(dtype: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    root = folder(tmp_path, 2)
    for i in range(2):
        (root / f"labels/{i}.png").unlink()
        kind = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 1, "dtype": dtype}
        with rasterio.open(root / f"labels/{i}.tif", "w", **kind) as file:
            file.write(TRUTH.astype(dtype), 1)
    assert not [f for f in check(root) if f.level == "error"]
    np.testing.assert_array_equal(open_dataset(root)[1].labels["semantic"], TRUTH)


def test_a_set_whose_labels_are_all_ignored_is_an_error(tmp_path: Path) -> None:
    root = folder(tmp_path, 2)
    (root / "classes.txt").write_text("a\nb\n")
    for i in range(2):
        faults.save(np.full(SIZE, 255, np.uint8), root / f"labels/{i}.png")
    assert "are ignored" in kinds(root)["nothing-labelled"]
    faults.save(TRUTH // 2, root / "labels/1.png")
    assert "nothing-labelled" not in kinds(root)


def test_several_masks_an_image_are_told_to_be_drawn_into_one(tmp_path: Path) -> None:
    for i in range(2):
        image(tmp_path / f"images/{i}.png", i)
        for k, name in enumerate(NAMES[1:], 1):
            faults.save(np.where(k == TRUTH, 255, 0).astype(np.uint8), tmp_path / f"masks/{name}/{i}.png")
    assert "draw them into one" in kinds(tmp_path)["no-labels"]


# ---- COCO ------------------------------------------------------------------------------------------------------


def coco(root: Path, change: Callable[[dict[str, Any]], None] = lambda value: None, name: str = "my pic.png") -> Path:
    image(root / "images" / name)
    value: dict[str, Any] = {
        "images": [{"id": 0, "file_name": name, "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": k, "name": n} for k, n in enumerate(BOXES, 1)],
        "annotations": [
            {
                "id": k,
                "image_id": 0,
                "category_id": k,
                "segmentation": [[v for point in outline(n) for v in point]],
                "iscrowd": 0,
                "area": 9,
            }
            for k, n in enumerate(BOXES, 1)
        ],
    }
    change(value)
    (root / "annotations").mkdir()
    (root / "annotations/instances_default.json").write_text(json.dumps(value))
    return root


def _named(form: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["images"][0]["file_name"] = form.format(value["images"][0]["file_name"])

    return change


def _texts_for_ids(value: dict[str, Any]) -> None:
    for annotation in value["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])


def _all_texts(value: dict[str, Any]) -> None:
    _texts_for_ids(value)
    for one in (*value["images"], *value["categories"]):
        one["id"] = str(one["id"])


def _by_address_alone(value: dict[str, Any]) -> None:
    value["images"][0]["coco_url"] = "http://images.cocodataset.org/train2017/" + value["images"][0].pop("file_name")


def _blanks(value: dict[str, Any]) -> None:
    for category in value["categories"]:
        category["name"] = f" {category['name']} "


@pytest.mark.parametrize(
    "change",
    [
        _named("images\\{}"),
        _named("C:\\Users\\bob\\images\\{}"),
        _named("/home/bob/images/{}"),
        _named("https://host/bucket/{}?sig=1"),
        lambda v: _named(v["images"][0]["file_name"].replace(" ", "%20"))(v),
        lambda v: _named(v["images"][0]["file_name"].upper())(v),
        _texts_for_ids,
        _all_texts,
        _by_address_alone,
        _blanks,
    ],
)
def test_coco_of_other_tools_and_machines_is_read(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    data = open_dataset(coco(tmp_path, change))
    same(data)
    assert Path(data.records[0].name).name.lower().startswith("my")
    assert "left out" not in told(data)


def test_an_image_named_by_a_path_of_another_machine_is_never_taken_from_elsewhere(tmp_path: Path) -> None:
    image(tmp_path / "outside/secret.png")
    for name in (str(tmp_path / "outside/secret.png"), "../../outside/secret.png", "%2e%2e/%2e%2e/outside/secret.png"):
        root = coco(tmp_path / f"set{len(name)}", _named(name))
        with pytest.raises((DataError, MissingInput)):
            open_dataset(root)


# ---- other annotation tools ------------------------------------------------------------------------------------


def labelstudio(root: Path, ref: str, *more: dict[str, Any], turn: int = 0) -> Path:
    image(root / "a.png")
    results = [
        {
            "id": n,
            "type": "polygonlabels",
            "to_name": "image",
            "original_width": SIZE[1],
            "original_height": SIZE[0],
            "image_rotation": turn,
            "value": {
                "points": [[x / SIZE[1] * 100, y / SIZE[0] * 100] for x, y in outline(n)],
                "polygonlabels": [n],
            },
        }
        for n in BOXES
    ]
    task = {"id": 1, "data": {"image": ref}, "annotations": [{"id": 1, "result": results}]}
    (root / "project.json").write_text(json.dumps([task, *more]))
    return root


@pytest.mark.parametrize(
    "ref",
    [
        "/data/local-files/?d=sub%5Ca.png",
        "s3://bucket/dir/a.png",
        "/tasks/1/resolve/?fileuri=" + base64.urlsafe_b64encode(b"s3://bucket/dir/a.png").decode(),
        "/tasks/1/resolve/?fileuri=" + base64.urlsafe_b64encode(b"gs://b/a.png").decode().rstrip("="),
    ],
)
def test_label_studios_addresses_of_stores_find_the_image(ref: str, tmp_path: Path) -> None:
    same(open_dataset(labelstudio(tmp_path, ref)))


def test_an_image_none_of_whose_regions_can_be_painted_is_no_image_of_background(tmp_path: Path) -> None:
    other = {"id": 2, "data": {"image": "b.png"}, "annotations": [{"id": 2, "result": []}]}
    image(tmp_path / "b.png", 1)
    data = open_dataset(labelstudio(tmp_path, "a.png", other, turn=90))
    assert [r.name for r in data.records] == ["b"]
    assert "1 images none of whose regions can be painted (a)" in told(data)
    assert "2 regions drawn on a turned image" in told(data)


@pytest.mark.parametrize("form", ["{n}", "SUB\\{n}", "/srv/share/{n}"])
def test_cvats_names_of_other_machines_find_the_image(form: str, tmp_path: Path) -> None:
    image(tmp_path / "images/sub/A.png")
    shapes = "".join(
        f'<polygon label="{n}" z_order="0" points="{";".join(f"{x},{y}" for x, y in outline(n))}"/>' for n in BOXES
    )
    labels = "".join(f"<label><name>{n}</name><color>#ff0000</color></label>" for n in BOXES)
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
        f'<image id="0" name="{form.format(n="a.png")}" width="48" height="40">{shapes}</image></annotations>'
    )
    same(open_dataset(tmp_path))


def test_cvats_lists_may_name_the_images_with_their_ending(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.png")
    faults.save(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[TRUTH], tmp_path / "SegmentationClass/a.png")
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ndisc:255,0,0::\nsquare:0,0,255::\n")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("a.png\n")
    same(open_dataset(tmp_path))


def supervisely(root: Path, dataset: str, annotation: str, *more: dict[str, Any]) -> Path:
    image(root / dataset / "img/a.png")
    objects: list[dict[str, Any]] = [
        {"classTitle": n, "geometryType": "polygon", "points": {"exterior": outline(n), "interior": []}} for n in BOXES
    ]
    file = root / dataset / "ann" / annotation
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"size": {"height": 40, "width": 48}, "objects": [*objects, *more]}))
    classes = [{"title": n, "color": "#ff0000"} for n in BOXES]
    (root / "meta.json").write_text(json.dumps({"classes": classes}))
    return root


@pytest.mark.parametrize("dataset", ["ds", "ds/datasets/inner"])
@pytest.mark.parametrize("annotation", ["a.png.json", "a.json"])
def test_superviselys_nested_sets_and_old_names_are_read(dataset: str, annotation: str, tmp_path: Path) -> None:
    data = open_dataset(supervisely(tmp_path, dataset, annotation))
    same(data)
    assert data.split == dataset.replace("/datasets", "")


def test_superviselys_degenerate_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"classTitle": "disc", "geometryType": "polygon", "points": {"exterior": [[1, 1]], "interior": []}},
        {"classTitle": "disc", "geometryType": "rectangle", "points": {"exterior": [[1, 1]], "interior": []}},
        {"classTitle": "disc", "geometryType": "polygon", "points": None},
        {"classTitle": "disc", "geometryType": "polygon", "points": {"exterior": [["x", 1], [2, 2], [3, 1]]}},
    ]
    data = open_dataset(supervisely(tmp_path, "ds", "a.png.json", *odd))
    same(data)
    assert "1 rectangles of other than two corners (object 4 of a)" in told(data)
    assert "polygons of fewer than 3 points (object 3 of a" in told(data)
    assert "polygons with points that are no numbers" in told(data)


@pytest.mark.parametrize("outer", ["project", "nnUNet_raw/Dataset001_Shapes"])
def test_annotations_in_the_one_folder_of_an_archive_are_recognised(outer: str, tmp_path: Path) -> None:
    supervisely(tmp_path / "a" / outer, "ds", "a.png.json")
    assert open_dataset(tmp_path / "a").kind == "supervisely"
    root = tmp_path / "b" / outer
    image(root / "imagesTr/c_0000.png")
    faults.save(TRUTH, root / "labelsTr/c.png")
    (root / "dataset.json").write_text(json.dumps({"labels": {n: k for k, n in enumerate(NAMES)}}))
    data = open_dataset(tmp_path / "b")
    assert f"{root} is read as 'nnunet' data; write nnunet:PATH" in told(data)
    same(data)


def test_what_is_advised_for_a_value_that_nnunets_table_lacks_works(tmp_path: Path) -> None:
    image(tmp_path / "imagesTr/c_0000.png")
    faults.save(TRUTH, tmp_path / "labelsTr/c.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "disc": 1}}))
    assert "in dataset.json" in kinds(tmp_path)["id-out-of-range"]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "disc": 1, "square": 2}}))
    same(open_dataset(tmp_path))


def yolo(root: Path, scale: tuple[float, float], front: str = "") -> Path:
    image(root / "images/a.png")
    lines = [
        f"{k} " + " ".join(f"{x / scale[0]:.6f} {y / scale[1]:.6f}" for x, y in outline(n)) for k, n in enumerate(BOXES)
    ]
    (root / "labels").mkdir()
    (root / "labels/a.txt").write_text(front + "\r\n".join(lines))
    (root / "data.yaml").write_text("names: [disc, square]\n")
    return root


def test_yolos_outlines_in_pixels_are_refused_and_what_is_advised_works(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: its points reach 4\.\.20, .* divide them by its width and height"):
        open_dataset(yolo(tmp_path / "pixels", (1, 1)))
    same(open_dataset(yolo(tmp_path / "shares", (SIZE[1], SIZE[0]), "\ufeff")))


@pytest.mark.parametrize(
    "value",
    [
        [{"data": {"image": "a.png"}, "annotations": [{"result": []}]}],
        {"id": 1, "task": {"data": {"image": "a.png"}}, "result": [], "completed_by": 1},
    ],
)
def test_label_studios_single_tasks_are_named_with_what_to_do(value: Any, tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "1.json").write_text(json.dumps(value[0] if isinstance(value, list) else value))
    message = kinds(tmp_path)["no-labels"]
    assert "Label Studio" in message
    assert "labelstudio:PATH" in message
