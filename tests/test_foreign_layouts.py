"""Layouts and labels of other tools: read where they are plain, else named with what to do; remedies that work."""

from __future__ import annotations

import base64
import io
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest
from PIL import Image

from fullyconv.data import open_dataset
from fullyconv.data.corpora.annotations import supervisely as reader
from fullyconv.data.corpora.annotations.raster import coco_polygon
from fullyconv.data.corpora.taxonomies import ADE20K, CITYSCAPES, VOC
from fullyconv.doctor import check, open_every_split
from fullyconv.doctor.findings import Finding
from fullyconv.errors import DataError

TRUTH = [faults.scene(i, (40, 48)) for i in range(6)]
NAMES = ("ground", "disc", "box", "stripe")


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def errors(spec: Path | str) -> list[Finding]:
    return [f for f in check(spec) if f.level == "error"]


# ---- nnU-Net ---------------------------------------------------------------------------------------------------


def nnunet(root: Path, labels: Any = None, channels: int = 1) -> Path:
    for i in range(5):
        for c in range(channels):
            faults.save(TRUTH[i][0], root / ("imagesTr" if i < 4 else "imagesTs") / f"case_{i}_{c:04d}.png")
        if i < 4:
            faults.save(TRUTH[i][1], root / "labelsTr" / f"case_{i}.png")
    stated = labels if labels is not None else {n: k for k, n in enumerate(NAMES)}
    write(root / "dataset.json", {"channel_names": {"0": "R", "1": "T"}, "labels": stated, "file_ending": ".png"})
    return root


@pytest.mark.parametrize("old", [False, True])
def test_nnunets_raw_layout_is_read_by_its_labels(old: bool, tmp_path: Path) -> None:
    labels = {str(k): n for k, n in enumerate(NAMES)} if old else None
    dataset = open_dataset(nnunet(tmp_path, labels))
    assert (dataset.kind, dataset.split, len(dataset)) == ("nnunet", "train", 4)
    assert dataset.taxonomy.names == NAMES
    assert dataset.records[3].name == "case_3"
    np.testing.assert_array_equal(dataset[3].image, TRUTH[3][0])
    np.testing.assert_array_equal(dataset[3].labels["semantic"], TRUTH[3][1])
    assert [(d.split, len(d), bool(d.taxonomies)) for d in open_every_split(tmp_path)] == [
        ("train", 4, True),
        ("test", 1, False),
    ]
    assert not errors(tmp_path)


def test_nnunets_folds_channels_and_ignored_label(tmp_path: Path) -> None:
    root = nnunet(tmp_path, {"ground": 0, "disc": 1, "box": 2, "ignore": 3}, channels=2)
    write(root / "splits_final.json", [{"train": ["case_0", "case_1"], "val": ["case_2"]}, {"train": [], "val": []}])
    write(root / "imagesTr" / "readme.md", "x")
    dataset = open_dataset(root)
    assert (dataset.inputs, len(dataset), dataset[0].image.shape) == (("R", "T"), 2, (40, 48, 6))
    expected = np.where(TRUTH[0][1] == 3, 255, TRUTH[0][1])
    np.testing.assert_array_equal(dataset[0].labels["semantic"], expected)
    assert [r.name for r in open_dataset(root, "val").records] == ["case_2"]
    notes = "\n".join(dataset.notes)
    for words in ("first of 2 folds", "1 cases are in no list", "1 files of imagesTr/ are no channel"):
        assert words in notes


@pytest.mark.parametrize("labels", [{}, {"a": [1, 2]}, {"a": 1, "b": 1}, {"a": "9" * 5000}])
def test_labels_of_nnunet_that_are_not_plain_are_refused(labels: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="label"):
        open_dataset(nnunet(tmp_path, labels))


def test_volumes_are_named_with_what_to_do(tmp_path: Path) -> None:
    nnunet(tmp_path)
    for file in (tmp_path / "imagesTr").iterdir():
        file.rename(file.with_suffix(".nii.gz"))
    with pytest.raises(DataError, match=r"holds volumes .* write their slices as PNG"):
        open_dataset(tmp_path)


# ---- YOLO ------------------------------------------------------------------------------------------------------

OUTLINE = (0.1, 0.1, 0.5, 0.1, 0.5, 0.6)


def yolo(root: Path, layout: str = "images/{s}|labels/{s}", lines: str = "") -> Path:
    images, labels = layout.split("|")
    for i, s in enumerate(("train", "train", "val")):
        faults.save(TRUTH[i][0], root / images.format(s=s) / f"p{i}.jpg")
        line = "1 " + " ".join(map(str, OUTLINE)) + "\n0 0.6 0.6 0.9 0.6 0.9 0.9\n"
        write(root / labels.format(s=s) / f"p{i}.txt", lines or line)
    write(root / "data.yaml", "train: images/train\nnames: {0: disc, 1: box}\n")
    return root


@pytest.mark.parametrize("layout", ["images/{s}|labels/{s}", "{s}/images|{s}/labels"])
def test_yolos_outlines_are_painted_over_background(layout: str, tmp_path: Path) -> None:
    dataset = open_dataset(yolo(tmp_path, layout))
    assert (dataset.kind, dataset.split, len(dataset)) == ("yolo", "train", 2)
    assert dataset.taxonomy.names == ("background", "disc", "box")
    points = np.reshape(OUTLINE, (-1, 2)) * (48, 40)
    ids = dataset[0].labels["semantic"]
    np.testing.assert_array_equal(ids == 2, coco_polygon(points.ravel(), (40, 48)))
    assert (ids == 1).any()
    assert len(open_dataset(tmp_path, "val")) == 1
    assert not errors(tmp_path)
    assert len(open_dataset(f"yolo:{tmp_path / 'data.yaml'}")) == 2


def test_what_yolo_has_and_is_no_outline_is_counted(tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "p0.txt", "0 .5 .5 .1 .1\n1 .1 .1 .2 .2 .3\n")
    (tmp_path / "labels" / "train" / "p1.txt").unlink()
    write(tmp_path / "labels" / "train" / "q.txt", "0 .1 .1 .2 .2 .3 .4\n")
    dataset = open_dataset(f"yolo:{tmp_path}")
    notes = "\n".join(dataset.notes)
    for words in ("1 boxes", "1 outlines of fewer than three points", "2 images have no outline", "1 texts have no"):
        assert words in notes
    assert not dataset[1].labels["semantic"].any()


@pytest.mark.parametrize("line", ["x 1 2 3 4 5 6", "0 nan 0 1 1 0 1", "0 1e999 0 1 1 0 1", "9" * 5000 + " 1 1 1 1 1 1"])
def test_a_line_that_is_no_outline_is_named(line: str, tmp_path: Path) -> None:
    yolo(tmp_path)
    write(tmp_path / "labels" / "train" / "p0.txt", "0 0 0 1 1 0 1\n" + line)
    with pytest.raises(DataError, match=r"p0.txt, line 2: .* no class and outline"):
        open_dataset(tmp_path)
    write(tmp_path / "labels" / "train" / "p0.txt", "7 0 0 1 1 0 1\n")
    with pytest.raises(DataError, match=r"name the class 7, and data.yaml lists 0 = disc, 1 = box; add it there"):
        open_dataset(tmp_path)


# ---- Supervisely -----------------------------------------------------------------------------------------------


def packed(mask: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG")
    return base64.b64encode(zlib.compress(out.getvalue())).decode()


def supervisely(root: Path, *more: dict[str, Any]) -> Path:
    for i in range(3):
        image, ids = TRUTH[i]
        faults.save(image, root / "ds" / "img" / f"{i}.jpg")
        objects = []
        for k in range(1, len(NAMES)):
            rows, columns = np.nonzero(ids == k)
            if len(rows):
                box = (ids == k)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                bitmap = {"data": packed(box), "origin": [int(columns.min()), int(rows.min())]}
                objects.append({"classTitle": NAMES[k], "geometryType": "bitmap", "bitmap": bitmap})
        value = {"size": {"height": 40, "width": 48}, "objects": [*objects, *(more if i == 0 else ())]}
        write(root / "ds" / "ann" / f"{i}.jpg.json", value)
    classes = [{"title": n, "color": f"#{40 * k:02x}0000"} for k, n in enumerate(NAMES[1:], 1)]
    write(root / "meta.json", {"classes": classes})
    return root


def test_superviselys_bitmaps_are_unpacked_where_they_lie(tmp_path: Path) -> None:
    dataset = open_dataset(supervisely(tmp_path))
    assert (dataset.kind, len(dataset)) == ("supervisely", 3)
    assert dataset.taxonomy.names == ("background", *NAMES[1:])
    assert dataset.taxonomy.palette[2] == (80, 0, 0)
    for i in range(3):
        np.testing.assert_array_equal(dataset[i].labels["semantic"], TRUTH[i][1])
    assert not errors(tmp_path)


def test_superviselys_polygons_have_holes_and_lines_are_counted(tmp_path: Path) -> None:
    outer, inner = [[2, 2], [20, 2], [20, 20], [2, 20]], [[6, 6], [12, 6], [12, 12], [6, 12]]
    shapes = [
        {"classTitle": "disc", "geometryType": "rectangle", "points": {"exterior": [[0, 0], [48, 40]]}},
        {"classTitle": "extra", "geometryType": "polygon", "points": {"exterior": outer, "interior": [inner]}},
        {"classTitle": "disc", "geometryType": "line", "points": {"exterior": outer}},
    ]
    dataset = open_dataset(supervisely(tmp_path, *shapes))
    assert dataset.taxonomy.names[-1] == "extra"
    size = (40, 48)
    hole = coco_polygon(np.ravel(inner).astype(float), size)
    expected = np.where(coco_polygon(np.ravel(outer).astype(float), size) & ~hole, 4, 1)
    np.testing.assert_array_equal(dataset[0].labels["semantic"], expected)
    assert any("left out: 1 line" in n for n in dataset.notes)


@pytest.mark.parametrize(
    "bitmap",
    [
        {"data": "!", "origin": [0, 0]},
        {"data": base64.b64encode(zlib.compress(b"x")).decode(), "origin": [0, 0]},
        {"data": base64.b64encode(zlib.compress(bytes(2**29))).decode(), "origin": [0, 0]},
        {"data": packed(np.ones((2, 2), bool))},
        {"data": packed(np.ones((2, 2), bool)), "origin": [float("inf"), 0]},
    ],
)
def test_a_bitmap_that_is_none_is_refused_by_its_file(bitmap: dict[str, Any], tmp_path: Path) -> None:
    supervisely(tmp_path, {"classTitle": "disc", "geometryType": "bitmap", "bitmap": bitmap})
    with pytest.raises(DataError, match=r"0.jpg.json"):
        open_dataset(tmp_path)[0]


def test_a_bitmap_larger_than_its_image_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = {"data": packed(np.ones((41, 48), bool)), "origin": [0, 0]}
    dataset = open_dataset(supervisely(tmp_path, {"classTitle": "disc", "geometryType": "bitmap", "bitmap": bitmap}))
    opened: list[Any] = []
    monkeypatch.setattr(reader, "read_image", lambda data, **_: opened.append(data) or np.ones((4, 4, 4)))
    with pytest.raises(DataError, match="larger than its image of 40x48"):
        dataset[0]
    assert len(opened) == len(np.unique(TRUTH[0][1])) - 1  # the sound ones before it


# ---- labels that are not read ----------------------------------------------------------------------------------

POLYGON = {"shape_attributes": {"name": "polygon"}}
FOREIGN = [
    ("via.json", {"_via_img_metadata": {"a": {"regions": []}}}, "VIA projects", "coco:PATH"),
    ("x/a.json", {"version": "2.0", "item": {"name": "a", "slots": []}, "annotations": []}, "Darwin", "coco:PATH"),
    ("a.json", {"image": {}, "annotations": [{"segmentation": {}, "predicted_iou": 1}]}, "Segment Anything", "class"),
    ("lab/a.txt", "0 0.1 0.1 0.2 0.1 0.2 0.3\n", "YOLO outlines", "yolo:PATH"),
    ("lab/a.txt", "0 0.1 0.1 0.2 0.1\n", "YOLO boxes", "no labels of pixels"),
    ("a.xml", "<annotation><object><bndbox></bndbox></object></annotation>", "Pascal VOC boxes", "no labels of pixels"),
    ("labels/a.npz", "x", "NumPy archives", "PNG of class ids"),
    ("predicted/a.npy", "x", "NumPy arrays", "into labels/"),
    ("labels/a.mat", "x", "MATLAB files", "PNG of class ids"),
    ("export.ndjson", "{}", "Labelbox", "coco:PATH"),
]


@pytest.mark.parametrize(("name", "content", "what", "remedy"), FOREIGN)
def test_labels_that_are_not_read_are_named_with_what_to_do(
    name: str, content: Any, what: str, remedy: str, tmp_path: Path
) -> None:
    for i in range(3):
        faults.save(TRUTH[i][0], tmp_path / "images" / f"{'abc'[i]}.png")
    write(tmp_path / name, content)
    (found,) = (f for f in check(tmp_path) if f.kind == "no-labels")
    assert "3 images and no label; 1 " in found.message
    assert what in found.message
    assert Path(name).name in found.message
    assert remedy in found.remedy


def test_the_remedies_for_foreign_labels_work(tmp_path: Path) -> None:
    faults.save(TRUTH[0][0], tmp_path / "a.png")
    polygon = [2.0, 2.0, 20.0, 2.0, 20.0, 20.0]
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [polygon], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "disc"}],
    }
    write(tmp_path / "export.json", coco)
    assert not errors(f"coco:{tmp_path}")
    other = tmp_path / "other"
    faults.save(TRUTH[0][0], other / "images" / "a.png")
    write(other / "labels" / "a.txt", "0 0.1 0.1 0.7 0.1 0.7 0.8\n")
    write(other / "data.yaml", "names: [disc]\n")
    assert not errors(f"yolo:{other}")


@pytest.mark.parametrize("entry", FOREIGN, ids=[f"{what}-{name}" for name, _, what, _ in FOREIGN])
def test_what_is_advised_for_each_kind_of_foreign_labels_makes_the_set_pass(entry: Any, tmp_path: Path) -> None:
    """The advice names one of: an export as COCO, YOLO outlines in labels/, label maps in labels/."""
    name, content, _, words = entry
    for i in range(3):
        faults.save(TRUTH[i][0], tmp_path / "images" / f"{'abc'[i]}.png")
    write(tmp_path / name, content)
    (found,) = (f for f in check(tmp_path) if f.kind == "no-labels")
    assert words in found.remedy
    spec: str | Path = tmp_path
    if "coco:PATH" in found.remedy or "export COCO" in found.remedy or "outline the objects" in found.remedy:
        outline = [2.0, 2.0, 20.0, 2.0, 20.0, 20.0]
        files = [{"id": i, "file_name": f"images/{'abc'[i]}.png", "height": 40, "width": 48} for i in range(3)]
        shapes = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [outline], "iscrowd": 0} for i in range(3)]
        (tmp_path / name).unlink()
        write(
            tmp_path / "export.json", {"images": files, "annotations": shapes, "categories": [{"id": 1, "name": "d"}]}
        )
        spec = f"coco:{tmp_path}"
    elif "yolo:PATH" in found.remedy:
        (tmp_path / name).unlink()
        for stem in "abc":
            write(tmp_path / "labels" / f"{stem}.txt", content)
        write(tmp_path / "data.yaml", "names: [disc, box, stripe]\n")
        spec = f"yolo:{tmp_path}"
    else:
        assert "labels/" in found.remedy or "PNG" in found.remedy
        for i in range(3):
            faults.save(TRUTH[i][1], tmp_path / "labels" / f"{'abc'[i]}.png")
    assert not errors(spec)


def test_label_maps_are_never_counted_as_images(tmp_path: Path) -> None:
    for i in range(4):
        faults.save(TRUTH[i][0], tmp_path / "photos_a" / f"q{i}.png")
        faults.save(TRUTH[i][1], tmp_path / "my_masks" / f"z{i}.png")
    (found,) = (f for f in check(tmp_path) if f.kind == "no-labels")
    assert "4 images and no label" in found.message
    assert "4 images that look like label maps (z0.png)" in found.message
    (tmp_path / "photos_a").rename(tmp_path / "images")
    (tmp_path / "my_masks").rename(tmp_path / "labels")
    for i in range(4):
        (tmp_path / "labels" / f"z{i}.png").rename(tmp_path / "labels" / f"q{i}.png")
    assert not errors(tmp_path)  # as the remedy says: labels/ and images/, under the same names


# ---- published labels saved as colours, and remedies by kind ---------------------------------------------------


def devkit(root: Path, labels: list[np.ndarray]) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    for i, label in enumerate(labels):
        faults.save(TRUTH[i][0], base / "JPEGImages" / f"p{i}.jpg")
        faults.save(label, base / "SegmentationClass" / f"p{i}.png")
    write(base / "ImageSets" / "Segmentation" / "train.txt", "".join(f"p{i}\n" for i in range(len(labels))))
    return root


def test_voc_labels_saved_as_colours_are_decoded_by_vocs_own(tmp_path: Path) -> None:
    ids = [TRUTH[i][1].copy() for i in range(3)]
    for label in ids:
        label[:2] = 255
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(VOC)], palette[255] = VOC.palette, (224, 224, 192)
    dataset = open_dataset(devkit(tmp_path / "a", [palette[v] for v in ids]))
    assert dataset.kind == "voc"
    for i in range(3):
        np.testing.assert_array_equal(dataset[i].labels["semantic"], ids[i])
    tripled = open_dataset(devkit(tmp_path / "b", [np.repeat(v[..., None], 3, -1) for v in ids]))
    np.testing.assert_array_equal(tripled[0].labels["semantic"], ids[0])
    odd = palette[ids[0]].copy()
    odd[5, 3:6], odd[6, 3:5] = (1, 2, 3), (4, 5, 6)
    root = devkit(tmp_path / "c", [odd, *(palette[v] for v in ids[1:])])
    (found,) = errors(root)
    assert found.kind == "unknown-colour"
    assert "colour (1, 2, 3) and 1 others, such as (4, 5, 6), is no class (5 pixels" in found.message
    assert "folder:PATH with a classes.txt" in found.remedy
    rows = [f"c{k} {r} {g} {b}" for k, (r, g, b) in enumerate(VOC.palette[:4])]
    write(root / "classes.txt", "\n".join([*rows, "!void 224 224 192", "!a 1 2 3", "!b 4 5 6"]))
    assert not errors(f"folder:{root}")  # the remedy


def test_cityscapes_and_ade_labels_saved_as_colours_are_decoded(tmp_path: Path) -> None:
    ids = np.arange(40 * 48).reshape(40, 48) % 19
    city = tmp_path / "city"
    faults.save(TRUTH[0][0], city / "leftImg8bit" / "train" / "bonn" / "bonn_000_000_leftImg8bit.png")
    colours = np.array([*CITYSCAPES.palette, (111, 74, 0)], np.uint8)
    label = colours[np.where(TRUTH[0][1] == 3, 19, ids)]
    faults.save(label, city / "gtFine" / "train" / "bonn" / "bonn_000_000_gtFine_color.png")
    found = open_dataset(city)[0].labels["semantic"]
    np.testing.assert_array_equal(found, np.where(TRUTH[0][1] == 3, 255, ids))
    ade = tmp_path / "ade"
    faults.save(TRUTH[0][0], ade / "images" / "training" / "ADE_train_1.jpg")
    faults.save(np.array(ADE20K.palette, np.uint8)[ids], ade / "annotations" / "training" / "ADE_train_1.png")
    first = {c: k for k, c in reversed([*enumerate(ADE20K.palette)])}
    expected = np.vectorize(lambda k: first[ADE20K.palette[k]])(ids)
    np.testing.assert_array_equal(open_dataset(ade)[0].labels["semantic"], expected)


def test_a_classes_txt_is_never_advised_where_it_has_no_effect(tmp_path: Path) -> None:
    root = devkit(tmp_path, [TRUTH[0][1]])
    found = check(root)
    assert any(f.kind == "unused-class" for f in found)
    assert not [f for f in found if "classes.txt" in f.remedy]
    yolo(tmp_path / "y")
    (unused,) = (f for f in check(yolo(tmp_path / "z", lines="0 0 0 1 1 0 1\n")) if f.kind == "unused-class")
    assert unused.remedy == "Add images of it; the classes are those that yolo data list."


def test_a_missing_package_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasterio = pytest.importorskip("rasterio")
    for i in range(3):
        bands = np.random.default_rng(i).integers(0, 255, (5, 40, 48)).astype(np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        place = tmp_path / "images" / f"p{i}.tif"
        form = {"driver": "GTiff", "height": 40, "width": 48, "count": 5, "dtype": "uint8", "compress": "lerc"}
        with rasterio.open(place, "w", **form) as out:  # one of the few forms that are not read without it
            out.write(bands)
        faults.save(TRUTH[i][1], tmp_path / "labels" / f"p{i}.png")
    assert not errors(tmp_path)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    (found,) = errors(tmp_path)
    assert found.kind == "missing-extra"
    assert "it and 2 other files need the package 'rasterio': install it with  pip install 'fullyconv[geo]'" in (
        found.message
    )


def test_images_of_yolo_that_share_a_text_are_left_out_and_named(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    image = next(f for f in sorted((root / "images" / "train").iterdir()))
    Image.open(image).convert("RGB").save(image.with_suffix(".bmp"))
    dataset = open_dataset(root)
    assert len(dataset) == 2
    assert any("1 images differ from another by their ending alone" in note for note in dataset.notes)
