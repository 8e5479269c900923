"""Labelling tools' formats, from files as the tools write them, against pycocotools and the formats' definitions."""

from __future__ import annotations

import base64
import json
import pickle
import re
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_oracle

from fullyconv.data import open_dataset
from fullyconv.data.corpora.annotations import cvat as cvat_reader
from fullyconv.data.corpora.annotations.raster import coco_counts, coco_polygon, from_counts, label_studio_brush
from fullyconv.errors import DataError, FullyconvError, MissingInput, UnknownName, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and NumPy 2

H, W = 30, 40
SQUARE = [5.0, 5.0, 20.0, 5.0, 20.0, 18.0, 5.0, 18.0]
INNER = [8.0, 8.0, 14.0, 8.0, 14.0, 12.0, 8.0, 12.0]


def photo(path: Path, size: tuple[int, int] = (H, W)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), (90, 120, 30)).save(path)
    return path


def oracle(points: list[float], size: tuple[int, int] = (H, W)) -> np.ndarray:
    return np.asarray(coco_oracle.decode(coco_oracle.frPyObjects([points], *size))[..., 0], bool)


def region(seed: int, size: tuple[int, int] = (H, W)) -> np.ndarray:
    """A random region with long and short runs."""
    draw = np.random.default_rng(seed)
    return draw.uniform(size=size) < draw.uniform() if seed % 2 else np.indices(size).sum(0) // (seed % 7 + 1) % 2 == 0


def runs(flat: np.ndarray) -> list[int]:
    """The definition: lengths of runs, the first of absent pixels."""
    counts, value = [0], False
    for v in flat:
        if bool(v) != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


# ---- rules -----------------------------------------------------------------------------------------------------

points = st.lists(st.tuples(st.floats(-8, 50), st.floats(-8, 50)), min_size=3, max_size=9)


@given(points, st.integers(1, 45), st.integers(1, 45))
@settings(max_examples=150, deadline=None)
def test_polygons_equal_pycocotools_pixel_for_pixel(
    corners: list[tuple[float, float]], height: int, width: int
) -> None:
    flat = [float(v) for corner in corners for v in corner]
    assert np.array_equal(coco_polygon(flat, (height, width)), oracle(flat, (height, width)))


@pytest.mark.parametrize("seed", range(8))
def test_both_run_length_codings_equal_pycocotools(seed: int) -> None:
    pixels = region(seed)
    coded = coco_oracle.encode(np.asfortranarray(pixels.astype(np.uint8)))
    assert np.array_equal(from_counts(coco_counts(coded["counts"]), (H, W), columns=True), pixels)
    assert np.array_equal(from_counts(runs(pixels.ravel(order="F")), (H, W), columns=True), pixels)
    assert np.array_equal(from_counts(runs(pixels.ravel()), (H, W), columns=False), pixels)


def pack_brush(pixels: np.ndarray, sizes: tuple[int, int, int, int] = (3, 4, 8, 16)) -> list[int]:
    """thi.ng/rle-pack by its definition: RGBA values of 8 bits, each run coded by the shortest size that holds it."""
    flat = np.repeat(pixels.ravel().astype(int) * 255, 4)
    bits = f"{len(flat):032b}{7:05b}" + "".join(f"{s - 1:04b}" for s in sizes)
    at = 0
    while at < len(flat):
        end = at
        while end < len(flat) and flat[end] == flat[at] and end - at < 2 ** sizes[-1]:
            end += 1
        literal = end - at < 3
        if literal:
            end = min(at + 5, len(flat))
        length = end - at - 1
        chosen = next(i for i, s in enumerate(sizes) if length < 2**s)
        bits += ("0" if literal else "1") + f"{chosen:02b}" + f"{length:0{sizes[chosen]}b}"
        bits += "".join(f"{v:08b}" for v in (flat[at:end] if literal else flat[at : at + 1]))
        at = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(6))
def test_brush_strokes_are_unpacked_by_their_definition(seed: int) -> None:
    pixels = region(seed, (9, 13))
    packed = pack_brush(pixels)
    assert np.array_equal(label_studio_brush(packed, (9, 13)), pixels)
    with pytest.raises(DataError, match="cut off"):
        label_studio_brush(packed[: len(packed) // 2], (9, 13))
    with pytest.raises(DataError, match="9x14"):
        label_studio_brush(packed, (9, 14))


@pytest.mark.parametrize("text", ["\x00", "abc", "o" * 40, "é"])
def test_damaged_compressed_runs_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        from_counts(coco_counts(text), (H, W), columns=True)


# ---- COCO ------------------------------------------------------------------------------------------------------


def write_coco(root: Path, annotations: list[dict[str, Any]], name: str = "annotations/instances_val2017.json") -> Path:
    photo(root / "val2017/000000000139.png")
    photo(root / "val2017/000000000285.png")
    images = [
        {"id": 139, "file_name": "000000000139.png", "height": H, "width": W},
        {"id": 285, "file_name": "000000000285.png", "height": H, "width": W},
    ]
    categories = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}]
    whole = [{"id": i, "image_id": 139, "iscrowd": 0, **a} for i, a in enumerate(annotations)]
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": whole, "categories": categories}))
    return file


def test_coco_polygons_runs_and_crowds_become_one_label_map(tmp_path: Path) -> None:
    crowd, pixels = region(2) & (np.arange(H)[:, None] > 24), region(1) & (np.arange(W) > 30)
    compressed = coco_oracle.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    write_coco(
        tmp_path,
        [
            {"category_id": 18, "segmentation": [SQUARE]},
            {"category_id": 1, "segmentation": {"size": [H, W], "counts": compressed}},
            {"category_id": 1, "segmentation": {"size": [H, W], "counts": runs(crowd.ravel(order="F"))}, "iscrowd": 1},
        ],
    )
    data = open_dataset(tmp_path)
    assert (data.kind, data.split, len(data)) == ("coco", "val2017", 2)
    assert data.taxonomy.names == ("background", "person", "dog")
    label = data[0].labels["semantic"]
    expected = np.zeros((H, W), int)
    for value, covered in sorted(((2, oracle(SQUARE)), (1, pixels), (255, crowd)), key=lambda p: -int(p[1].sum())):
        expected[covered] = value
    assert np.array_equal(label, expected)
    assert not data[1].labels["semantic"].any()
    kept = open_dataset(tmp_path, crowd="label")[0].labels["semantic"]
    assert (kept[crowd & ~oracle(SQUARE)] == 1).all()
    assert not (open_dataset(tmp_path, crowd="skip")[0].labels["semantic"] == 255).any()


def test_overlap_order_is_what_is_asked_for_and_is_said(tmp_path: Path) -> None:
    small, large = {"category_id": 1, "segmentation": [INNER]}, {"category_id": 18, "segmentation": [SQUARE]}
    write_coco(tmp_path, [small, large])
    by_area, by_file = open_dataset(tmp_path), open_dataset(tmp_path, order="file")
    assert by_area[0].labels["semantic"][10, 10] == 1
    assert by_file[0].labels["semantic"][10, 10] == 2
    assert "smaller annotation covers" in by_area.notes[1]
    assert "later ones cover" in by_file.notes[1]
    for option in ({"order": "id"}, {"crowd": "maybe"}):
        with pytest.raises(UsageError, match="choose"):
            open_dataset(f"coco:{tmp_path}", **option)


def test_official_file_names_answer_to_plain_splits(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [{"category_id": 1, "segmentation": [SQUARE]}])
    (tmp_path / "annotations/instances_train2017.json").write_bytes(file.read_bytes())
    (tmp_path / "val2017").rename(tmp_path / "images")
    for split, name in (("val", "val2017"), (None, "train2017"), ("train2017", "train2017")):
        assert open_dataset(f"coco:{tmp_path}", split).split == name
    with pytest.raises(UnknownName, match="val2017"):
        open_dataset(f"coco:{tmp_path}", "test")


def test_a_category_called_background_is_class_zero(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [{"category_id": 18, "segmentation": [SQUARE]}])
    file.write_text(file.read_text().replace('"dog"', '"Background"'))
    data = open_dataset(tmp_path)
    assert data.taxonomy.names == ("background", "person")
    assert not data[0].labels["semantic"].any()


def test_two_polygons_of_one_annotation_are_one_region(tmp_path: Path) -> None:
    write_coco(tmp_path, [{"category_id": 1, "segmentation": [SQUARE, INNER]}])
    assert np.array_equal(open_dataset(tmp_path)[0].labels["semantic"] == 1, oracle(SQUARE))


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"category_id": 9, "segmentation": [SQUARE]}, "categories that are not listed, such as 9 (1)"),
        ({"category_id": None, "segmentation": [SQUARE]}, "categories that are not listed"),
        ({"category_id": 1, "image_id": 7, "segmentation": [SQUARE]}, "images that are not listed (1)"),
        ({"category_id": 1, "image_id": float("nan"), "segmentation": [SQUARE]}, "images that are not listed (1)"),
        ({"category_id": 1, "segmentation": [[]]}, "fewer than 3 points"),
        ({"category_id": 1, "segmentation": [[float("nan")] * 6]}, "no finite numbers"),
        ({"category_id": 1, "segmentation": [[5, 5, 9, 5, 15, 5, 8, 5]]}, "without an area"),
        ({"category_id": 1, "segmentation": [[50, 5, 90, 5, 60, 9]]}, "outside the image"),
        ({"category_id": 1, "segmentation": [[10**400] * 6]}, "no numbers"),
        ({"category_id": 1, "segmentation": {"size": [H, W], "counts": [2**62] * 4 + [H * W]}}, "of runs"),
        ({"category_id": 1, "segmentation": [[1.0, 2.0, 3.0, 4.0]]}, "fewer than 3 points"),
        (
            {"category_id": 1, "segmentation": {"size": [H, W], "counts": [5, 7]}},
            "of runs that do not fill their 30x40",
        ),
        ({"category_id": 1, "segmentation": {"size": [W, H], "counts": [H * W]}}, "another size"),
        ({"category_id": 1, "segmentation": {"size": [H, W]}}, "of runs"),
        ({"category_id": 1, "segmentation": [["a"] * 6]}, "no numbers"),
        ("nothing", "images that are not listed (nothing)"),
    ],
)
def test_what_cannot_be_painted_is_left_out_counted_and_named(annotation: Any, message: str, tmp_path: Path) -> None:
    sound = {"category_id": 18, "segmentation": [SQUARE]}
    file = write_coco(tmp_path, [sound, annotation if isinstance(annotation, dict) else {}])
    if not isinstance(annotation, dict):
        value = json.loads(file.read_text())
        value["annotations"][1] = annotation
        file.write_text(json.dumps(value))
    data = open_dataset(f"coco:{tmp_path}", "val")
    assert np.array_equal(data[0].labels["semantic"] == 2, oracle(SQUARE))
    left = [note for note in data.notes if "left out: 1" in note and message in note]
    assert left, data.notes
    assert "(1)" in left[0] or "(annotation 1)" in left[0] or "(nothing)" in left[0]


def test_a_set_of_crowds_alone_is_told_how_to_use_them(tmp_path: Path) -> None:
    whole = {"size": [H, W], "counts": runs(oracle(SQUARE).ravel(order="F"))}
    write_coco(tmp_path, [{"category_id": 1, "segmentation": whole, "iscrowd": 1}] * 2)
    with pytest.raises(DataError, match="2 crowd annotations") as caught:
        open_dataset(tmp_path)
    spec = re.search(r"give (coco,crowd=label:\S+) to", str(caught.value))
    assert spec
    assert np.array_equal(open_dataset(spec[1])[0].labels["semantic"] == 1, oracle(SQUARE))
    data = open_dataset(tmp_path, crowd="ignore")
    assert (data[0].labels["semantic"][oracle(SQUARE)] == 255).all()
    assert "2 of 2 annotations" in data.notes[1]


@pytest.mark.parametrize("names", [("1.png", "1.jpg"), ("a/1.png", "b/1.png"), ("A.png", "a.png"), ("x.png", "x.PNG")])
def test_images_of_one_stem_have_labels_of_their_own(names: tuple[str, str], tmp_path: Path) -> None:
    images = [{"id": i, "file_name": n, "height": H, "width": W} for i, n in enumerate(names)]
    outlines = [{"id": i, "image_id": i, "category_id": 1, "segmentation": [p]} for i, p in enumerate((SQUARE, INNER))]
    for name in names:
        photo(tmp_path / "images" / name)
    value = {"images": images, "annotations": outlines, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "instances.json").write_text(json.dumps(value))
    data = open_dataset(tmp_path)
    assert len({r.name for r in data.records}) == 2
    for record, sample, points in zip(data.records, data, (SQUARE, INNER), strict=True):
        assert record.inputs["rgb"].name == Path(names[0 if points is SQUARE else 1]).name
        assert np.array_equal(sample.labels["semantic"] == 1, oracle(points))


def test_two_listed_images_are_never_one_file(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{n}/1.png", "height": H, "width": W} for i, n in enumerate("ab")]
    photo(tmp_path / "images/1.png")
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(MissingInput, match=r"only .*1\.png"):
        open_dataset(f"coco:{tmp_path}")


@pytest.mark.parametrize("what", ["categories", "annotations"])
def test_opening_coco_takes_time_in_proportion(what: str, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")

    def opened(count: int) -> float:
        listed = [{"id": i, "name": f"c{i}"} for i in range(count if what == "categories" else 3)]
        drawn = {"image_id": 1, "category_id": 0, "segmentation": [SQUARE]}
        annotations = [{"id": i, **drawn} for i in range(count if what == "annotations" else 3)]
        images = [{"id": 1, "file_name": "a.png", "height": H, "width": W}]
        value = {"images": images, "annotations": annotations, "categories": listed}
        (tmp_path / "x.json").write_text(json.dumps(value))
        start = time.process_time()
        open_dataset(f"coco:{tmp_path}")
        return time.process_time() - start

    few = max(opened(4000), 0.02)
    assert opened(16_000) < 10 * few  # four times as many; quadratic would be sixteen


def test_boxes_alone_are_refused_and_unlisted_images_counted(tmp_path: Path) -> None:
    write_coco(tmp_path, [{"category_id": 1, "bbox": [1, 1, 5, 5]}] * 3)
    with pytest.raises(DataError, match="3 annotations, all of them boxes"):
        open_dataset(tmp_path)
    write_coco(tmp_path, [{"category_id": 1, "segmentation": [SQUARE]}])
    photo(tmp_path / "val2017/other.png")
    assert any("1 images that the file does not list (other.png)" in n for n in open_dataset(tmp_path).notes)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x.png", ""])
def test_images_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    file = write_coco(tmp_path, [])
    file.write_text(file.read_text().replace("000000000139.png", name.replace("\\", "\\\\")))
    with pytest.raises(FullyconvError, match="lies outside"):
        open_dataset(f"coco:{tmp_path}")


def test_a_coco_file_alone_finds_its_images_where_it_is_told(tmp_path: Path) -> None:
    file = write_coco(tmp_path / "labels", [{"category_id": 1, "segmentation": [SQUARE]}], "export.json")
    (tmp_path / "labels/val2017").rename(tmp_path / "pictures")
    with pytest.raises(MissingInput, match="images=PATH"):
        open_dataset(f"coco:{file}")
    assert len(open_dataset(f"coco:{file}", images=tmp_path / "pictures")) == 2


def test_images_may_lie_in_a_folder_named_without_the_year(tmp_path: Path) -> None:
    for year in ("train2017", "val2017"):
        write_coco(tmp_path, [{"category_id": 1, "segmentation": [SQUARE]}], f"annotations/instances_{year}.json")
    photo(tmp_path / "images/train/000000000139.png")
    (tmp_path / "val2017").rename(tmp_path / "images/val")
    photo(tmp_path / "images/train/000000000285.png")
    assert open_dataset(tmp_path).records[0].inputs["rgb"] == tmp_path / "images/train/000000000139.png"
    assert open_dataset(tmp_path, "val").records[0].inputs["rgb"] == tmp_path / "images/val/000000000139.png"


def test_the_panoptic_form_is_named(tmp_path: Path) -> None:
    write_coco(tmp_path, [{"segments_info": [{"id": 1, "category_id": 1}], "file_name": "000000000139.png"}])
    with pytest.raises(DataError, match="panoptic form"):
        open_dataset(f"coco:{tmp_path}", "val")


def test_boxes_without_an_outline_are_counted_and_sizes_may_be_written_with_a_point(tmp_path: Path) -> None:
    file = write_coco(
        tmp_path, [{"category_id": 1, "segmentation": [SQUARE]}, {"category_id": 1, "bbox": [1, 1, 5, 5]}]
    )
    value = json.loads(file.read_text())
    value["images"] = [{**i, "height": float(i["height"]), "width": float(i["width"])} for i in value["images"]]
    file.write_text(json.dumps(value))
    data = open_dataset(f"coco:{tmp_path}", "val")
    assert np.array_equal(data[0].labels["semantic"] > 0, oracle(SQUARE))
    assert any("left out: 1 annotations with a box and no outline" in note for note in data.notes)


# ---- labelme ---------------------------------------------------------------------------------------------------


def shape(label: str, kind: str, corners: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"label": label, "points": corners, "group_id": None, "shape_type": kind, "flags": {}, **more}


def write_labelme(folder: Path, stem: str, shapes: list[dict[str, Any]], **more: Any) -> Path:
    photo(folder / f"{stem}.png")
    value: dict[str, Any] = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{stem}.png",
        "imageData": None,
    }
    file = folder / f"{stem}.json"
    file.write_text(json.dumps({**value, "imageHeight": H, "imageWidth": W, **more}))
    return file


def stencil(pixels: np.ndarray) -> str:
    out = BytesIO()
    Image.fromarray(pixels.astype(np.uint8) * 255).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_labelme_shapes_are_painted_in_order_by_pillows_rules(tmp_path: Path) -> None:
    polygon = [[3.2, 4.1], [30.0, 6.0], [22.5, 25.9]]
    write_labelme(
        tmp_path,
        "one",
        [
            shape("wood", "polygon", polygon),
            shape("door", "rectangle", [[20, 12], [10, 8]]),
            shape("knob", "circle", [[15, 10], [17, 10]]),
            shape("wire", "linestrip", [[0, 28], [20, 28], [39, 20]]),
            shape("nail", "point", [[35, 5]]),
            shape("__ignore__", "mask", [[1, 2], [6, 5]], mask=stencil(np.ones((4, 6)))),
        ],
    )
    data = open_dataset(tmp_path, line_width=3)
    assert (data.kind, data.taxonomy.names) == ("labelme", ("background", "door", "knob", "nail", "wire", "wood"))
    canvas = Image.new("L", (W, H), 0)
    pen = ImageDraw.Draw(canvas)
    pen.polygon([(x, y) for x, y in polygon], fill=5, outline=5)
    pen.rectangle((10, 8, 20, 12), fill=1, outline=1)
    pen.ellipse((13, 8, 17, 12), fill=2, outline=2)
    pen.line([(0, 28), (20, 28), (39, 20)], fill=4, width=3)
    pen.ellipse((33.5, 3.5, 36.5, 6.5), fill=3, outline=3)
    expected = np.array(canvas)
    expected[2:6, 1:7] = 255
    assert np.array_equal(data[0].labels["semantic"], expected)


@pytest.mark.parametrize("named", ["../images/x.png", "..\\\\images\\\\x.png", "x.png"])
def test_labelme_files_may_lie_in_a_folder_of_their_own(named: str, tmp_path: Path) -> None:
    file = write_labelme(tmp_path / "annotations", "x", [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations/x.png").rename(tmp_path / "images/x.png")
    file.write_text(file.read_text().replace('"imagePath": "x.png"', f'"imagePath": "{named}"'))
    data = open_dataset(f"labelme:{tmp_path}")
    assert data.records[0].inputs["rgb"] == tmp_path / "images/x.png"
    assert data[0].labels["semantic"].max() == 1


def test_labelme_images_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    file = write_labelme(tmp_path / "data", "x", [])
    (tmp_path / "data/x.png").rename(tmp_path / "secret.png")
    file.write_text(file.read_text().replace('"imagePath": "x.png"', '"imagePath": "../secret.png"'))
    with pytest.raises(DataError, match="not below"):
        open_dataset(f"labelme:{tmp_path / 'data'}")


def test_labelme_rectangles_of_four_corners_and_files_without_a_size(tmp_path: Path) -> None:
    corners = [[2, 2], [20, 2], [20, 12], [2, 12]]
    none = {"imageHeight": None, "imageWidth": None}
    write_labelme(tmp_path, "x", [shape("cat", "rectangle", corners), shape("dog", "rotation", corners[::-1])], **none)
    label = open_dataset(tmp_path)[0].labels["semantic"]
    assert label.shape == (H, W)
    assert (label[2:13, 2:21] == 2).all()


def test_labelme_images_may_be_inside_the_file_and_splits_are_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = write_labelme(tmp_path / split, "x", [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])])
        inside = base64.b64encode((tmp_path / split / "x.png").read_bytes()).decode()
        file.write_text(file.read_text().replace('"imageData": null', f'"imageData": "{inside}"'))
        (tmp_path / split / "x.png").unlink()
    data = open_dataset(tmp_path, "val")
    assert (data.split, data[0].image.shape, data[0].labels["semantic"].max()) == ("val", (H, W, 3), 1)
    assert pickle.loads(pickle.dumps(data))[0].labels["semantic"].max() == 1


def test_labels_txt_fixes_the_classes_and_refuses_others(tmp_path: Path) -> None:
    write_labelme(tmp_path, "x", [shape("cat", "polygon", [[1, 1], [9, 1], [9, 9]])])
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    data = open_dataset(f"labelme:{tmp_path}")
    assert data.taxonomy.names == ("background", "dog", "cat")
    assert data[0].labels["semantic"].max() == 2
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncats\n")
    with pytest.raises(UnknownName, match="cats"):
        open_dataset(f"labelme:{tmp_path}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (shape("cat", "polygon", [[1, 1], [2, 2]]), "2 points"),
        (shape("cat", "spline", [[1, 1]]), "spline"),
        (shape("cat", "mask", [[1, 1], [3, 3]], mask="%%%"), "mask that cannot be read"),
        (shape("cat", "mask", [[99, 1], [3, 3]], mask=stencil(np.ones((2, 2)))), "outside"),
        (shape("cat", "polygon", [[1, 1], [float("nan"), 2], [5, 5]]), "finite"),
        (shape("cat", "polygon", [[1, 1], [float("inf"), 2], [5, 5]]), "finite"),
        (shape("cat", "circle", [[float("nan"), 1], [5, 5]]), "finite"),
        (shape("cat", "polygon", [[1, 1], [10**400, 2], [5, 5]]), "no numbers"),
        (shape("cat", "polygon", [[1e9, 1], [1e9, 2], [2e9, 5]]), "far outside"),
        (shape("cat", "polygon", [[100, 1], [120, 2], [110, 5]]), "outside the image"),
        (shape("cat", "polygon", [[1], [2], [5]]), "no pairs"),
        (shape("cat", "polygon", []), "no pairs"),
        ({"shape_type": "polygon", "points": [[1, 1], [5, 1], [4, 4]]}, "without a label"),
        ("odd", "without a label"),
    ],
)
def test_a_labelme_shape_that_cannot_be_painted_is_counted(value: Any, message: str, tmp_path: Path) -> None:
    write_labelme(tmp_path, "bad", [shape("cat", "rectangle", [[1, 1], [9, 9]]), value])
    data = open_dataset(f"labelme:{tmp_path}")
    expected = np.zeros((H, W), int)
    expected[1:10, 1:10] = 1
    assert np.array_equal(data[0].labels["semantic"], expected)
    left = [n for n in data.notes if n.startswith("left out: 1 ")]
    assert len(left) == 1
    assert message in left[0]
    assert "shape 2 of bad.json" in left[0]


def test_a_labelme_file_never_takes_the_image_of_another(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_labelme(tmp_path / split, "x", [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    assert len(open_dataset(f"labelme:{tmp_path}", "all")) == 2
    (tmp_path / "val/x.png").unlink()
    with pytest.raises(MissingInput, match="only"):
        open_dataset(f"labelme:{tmp_path}", "all")


def test_images_without_a_labelme_file_are_counted(tmp_path: Path) -> None:
    write_labelme(tmp_path, "x", [shape("cat", "rectangle", [[1, 1], [9, 9]])])
    photo(tmp_path / "y.png")
    assert any("1 images without a JSON file of their own (y.png)" in n for n in open_dataset(tmp_path).notes)
    with pytest.raises(UsageError, match="line_width"):
        open_dataset(f"labelme:{tmp_path}", line_width=10**9)


# ---- CVAT ------------------------------------------------------------------------------------------------------

LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\nroad:51,221,255::\n"


def test_cvats_segmentation_masks_are_read_by_their_colours(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 3, (H, W))
    colours = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], np.uint8)
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    for name in ("frame_000000", "frame_000001"):
        photo(tmp_path / f"JPEGImages/{name}.png")
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(colours[stored]).save(tmp_path / f"SegmentationClass/{name}.png")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("frame_000001\n")
    data = open_dataset(tmp_path)
    assert (data.kind, data.split, [r.name for r in data.records]) == ("cvat", "default", ["frame_000001"])
    assert data.taxonomy.names == ("background", "car", "road")
    assert data.taxonomy.palette[1] == (250, 50, 83)
    assert np.array_equal(data[0].labels["semantic"], stored)
    (tmp_path / "JPEGImages").rename(tmp_path.parent / "elsewhere")
    with pytest.raises(MissingInput, match="save images"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, images=tmp_path.parent / "elsewhere")) == 1


def write_cvat(root: Path, shapes: str, name: str = "a.png") -> Path:
    photo(root / "images/a.png")
    file = root / "annotations.xml"
    labels = "".join(
        f"<label><name>{n}</name><color>{c}</color></label>" for n, c in (("road", "#33ddff"), ("car", "#fa3253"))
    )
    file.write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        f"<meta><task><labels>{labels}</labels></task></meta>"
        f'<image id="0" name="{escape(name)}" width="{W}" height="{H}">{shapes}</image></annotations>'
    )
    return file


def cvat_polygon(label: str, flat: list[float], z: int) -> str:
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(flat, (-1, 2)))
    return f'<polygon label="{label}" source="manual" occluded="0" points="{text}" z_order="{z}"></polygon>'


def test_cvat_xml_polygons_runs_and_boxes_cover_each_other_by_z_order(tmp_path: Path) -> None:
    box = region(3, (6, 9))
    shapes = cvat_polygon("car", INNER, 1) + cvat_polygon("road", SQUARE, 0)
    coded = ", ".join(map(str, runs(box.ravel())))
    shapes += f'<mask label="car" rle="{coded}" left="25" top="2" width="9" height="6" z_order="0"></mask>'
    shapes += '<box label="road" xtl="1.00" ytl="22.00" xbr="9.00" ybr="27.00" z_order="0"></box>'
    shapes += '<polyline label="car" points="1,1;2,2" z_order="0"></polyline>'
    write_cvat(tmp_path, shapes)
    data = open_dataset(tmp_path)
    assert (data.kind, data.taxonomy.names, data.taxonomy.palette[2]) == (
        "cvat",
        ("background", "road", "car"),
        (250, 50, 83),
    )
    expected = np.zeros((H, W), int)
    expected[oracle(SQUARE)] = 1
    expected[2:8, 25:34][box] = 2
    expected[oracle([1, 22, 9, 22, 9, 27, 1, 27])] = 1
    expected[oracle(INNER)] = 2
    assert np.array_equal(data[0].labels["semantic"], expected)
    assert any("polyline" in note for note in data.notes)


def test_a_turned_box_and_an_ellipse_cover_what_they_should(tmp_path: Path) -> None:
    write_cvat(
        tmp_path,
        '<box label="car" xtl="10" ytl="12" xbr="30" ybr="18" rotation="90" z_order="0"></box>'
        '<ellipse label="road" cx="8" cy="8" rx="6" ry="3" z_order="0"></ellipse>',
    )
    label = open_dataset(tmp_path)[0].labels["semantic"]
    rows, cols = np.nonzero(label == 2)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (5, 24, 17, 22)  # 20 high, 6 wide about (20, 15)
    row, col = np.indices((H, W)) + 0.5
    inside = ((col - 8) / 6) ** 2 + ((row - 8) / 3) ** 2
    assert (label[inside < 0.8] == 1).all()
    assert (label[(inside > 1.3) & (label != 2)] == 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotations><track id='0'/></annotations>", "video tracks"),
        ("<annotations>", "no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>', "document type"),
    ],
)
def test_xml_that_is_no_image_export_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(f"cvat:{tmp_path}")


HUGE = 2**62
BAD_CVAT = {
    "leaves its image": '<mask label="car" rle="0, 4" left="39" top="0" width="2" height="2" z_order="0"></mask>',
    "do not fill": f'<mask label="car" rle="{HUGE},{HUGE},{HUGE},{HUGE + 4}" left="3" top="0" width="2" height="2"/>',
    "left is no number": '<mask label="car" rle="0, 4" left="nan" top="0" width="2" height="2"/>',
    "runs that are no numbers": f'<mask label="car" rle="{"9" * 5000}" left="1" top="0" width="2" height="2"/>',
    "without an area (polyline)": '<polyline label="car" points="1,1;2,2" z_order="0"/>',
    "without an area (skeleton)": '<skeleton label="car"><points label="car" points="1,1"/></skeleton>',
    "without an area (cuboid)": '<cuboid label="car" xtl1="1"/>',
    "image tags": '<tag label="car"/>',
    "fewer than 3": '<polygon label="car" points="1,1;2,2"/>',
    "no numbers": '<polygon label="car" points="1,1;b,2;3,3"/>',
    "no finite": '<polygon label="car" points="1,1;nan,2;3,3"/>',
    "without a label": '<polygon points="1,1;5,2;3,9"/>',
    "z_order is no number": '<polygon label="car" z_order="x" points="1,1;5,2;3,9"/>',
    "outside = 1": '<polygon label="car" outside="1" points="1,1;5,2;3,9"/>',
    "without an area (": '<cuboid label="car"/>',
    "xbr is no number": '<box label="car" xtl="1" ytl="1" ybr="5"/>',
}


@pytest.mark.parametrize("message", BAD_CVAT)
def test_what_cvat_holds_and_is_not_painted_is_counted(message: str, tmp_path: Path) -> None:
    write_cvat(tmp_path, cvat_polygon("road", SQUARE, 0) + BAD_CVAT[message])
    data = open_dataset(tmp_path)
    assert np.array_equal(data[0].labels["semantic"] == 1, oracle(SQUARE))
    assert any(n.startswith("left out: 1 ") and message in n and "a.png" in n for n in data.notes), data.notes


def test_cvat_images_of_one_stem_have_labels_of_their_own(tmp_path: Path) -> None:
    file = write_cvat(tmp_path, cvat_polygon("road", SQUARE, 0))
    photo(tmp_path / "images/a.jpg")
    more = f'<image id="1" name="a.jpg" width="{W}" height="{H}">{cvat_polygon("car", INNER, 0)}</image></annotations>'
    file.write_text(file.read_text().replace("</annotations>", more))
    data = open_dataset(tmp_path)
    assert [r.name for r in data.records] == ["a_png", "a_jpg"]
    assert np.array_equal(data[0].labels["semantic"] == 1, oracle(SQUARE))
    assert np.array_equal(data[1].labels["semantic"] == 2, oracle(INNER))
    file.write_text(file.read_text().replace("a.jpg", "a.png").replace('id="1" name', 'id="1" task_id="2" name'))
    with pytest.raises(DataError, match=r"2 images named 'a\.png' of several tasks"):
        open_dataset(tmp_path)


def test_a_cvat_label_called_ignore_is_ignored_and_that_is_said(tmp_path: Path) -> None:
    write_cvat(tmp_path, cvat_polygon("ignore", SQUARE, 0))
    data = open_dataset(tmp_path)
    assert (data[0].labels["semantic"][oracle(SQUARE)] == 255).all()
    assert any("the label ignore is taken" in n for n in data.notes)


def test_a_colour_that_is_none_and_entities_in_any_encoding_stay_outside(tmp_path: Path) -> None:
    file = write_cvat(tmp_path, cvat_polygon("road", SQUARE, 0))
    file.write_text(file.read_text().replace("#33ddff", "#gggggg"))
    assert any("#gggggg of road" in n for n in open_dataset(tmp_path).notes)
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><annotations>&c;</annotations>'
    for encoding in ("utf-16", "utf-8", "cp037"):
        head = "" if encoding == "utf-16" else f'<?xml version="1.0" encoding="{encoding}"?>'
        file.write_bytes((head + bomb).encode(encoding))
        with pytest.raises(DataError):
            cvat_reader._parse(file)


# ---- Label Studio ----------------------------------------------------------------------------------------------


def result(kind: str, label: str, **value: Any) -> dict[str, Any]:
    name = "brushlabels" if kind == "brush" else f"{kind}labels"
    return {
        "type": name,
        "original_width": W,
        "original_height": H,
        "image_rotation": 0,
        "value": {**value, name: [label]},
    }


def write_labelstudio(root: Path, results: list[dict[str, Any]], image: str = "/data/upload/1/1a2b3c4d-a.png") -> None:
    photo(root / "images/a.png")
    cancelled = {"id": 1, "was_cancelled": True, "result": []}
    good = {"id": 2, "was_cancelled": False, "ground_truth": False, "result": results}
    task = {"id": 7, "annotations": [cancelled, good], "predictions": [], "data": {"image": image}}
    (root / "project-1.json").write_text(json.dumps([task]))


def percent(flat: list[float]) -> list[list[float]]:
    return [[x / W * 100, y / H * 100] for x, y in np.reshape(flat, (-1, 2))]


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/1/1a2b3c4d-a.png",
        "/data/local-files/?d=some%2Fimages%2Fa.png",
        "https://host/x/a.png?sig=1",
        "a.png",
    ],
)
def test_label_studio_brushes_and_polygons_are_painted_in_order(image: str, tmp_path: Path) -> None:
    brush = region(3) & (np.arange(H)[:, None] > 20)
    write_labelstudio(
        tmp_path,
        [
            result("polygon", "road", points=percent(SQUARE)),
            result("polygon", "car", points=percent(INNER), closed=True),
            result("brush", "tree", format="rle", rle=pack_brush(brush)),
            {"type": "choices", "value": {"choices": ["day"]}},
        ],
        image,
    )
    data = open_dataset(tmp_path)
    assert (data.kind, data.taxonomy.names) == ("labelstudio", ("background", "car", "road", "tree"))
    expected = np.zeros((H, W), int)
    expected[oracle(SQUARE)] = 2
    expected[oracle(INNER)] = 1
    expected[brush] = 3
    assert np.array_equal(data[0].labels["semantic"], expected)


def test_an_image_that_label_studio_renamed_when_it_was_uploaded_is_found(tmp_path: Path) -> None:
    write_labelstudio(tmp_path, [], "/data/upload/1/1a2b3c4d-B%C3%A4r_1.JPG")
    (tmp_path / "images/a.png").rename(tmp_path / "images/Bär (1).JPG")
    assert open_dataset(tmp_path).records[0].inputs["rgb"].name == "Bär (1).JPG"


def test_label_studio_json_min_rectangles_and_ellipses(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    size = {"original_width": W, "original_height": H}
    rectangle = {"x": 25, "y": 20, "width": 50, "height": 30, "rotation": 0, "rectanglelabels": ["car"], **size}
    ellipse = {"x": 20, "y": 80, "radiusX": 10, "radiusY": 10, "rotation": 0, "ellipselabels": ["tree"], **size}
    (tmp_path / "min.json").write_text(
        json.dumps([{"image": "a.png", "id": 1, "label": [rectangle], "dot": [ellipse]}])
    )
    label = open_dataset(tmp_path)[0].labels["semantic"]
    assert np.array_equal(label == 1, oracle([10, 6, 30, 6, 30, 15, 10, 15]))
    assert label[24, 8] == 2


def test_label_studio_faults_are_named(tmp_path: Path) -> None:
    write_labelstudio(tmp_path, [], "/data/upload/1/gone.png")
    with pytest.raises(MissingInput, match="images=PATH"):
        open_dataset(tmp_path)


def write_tasks(root: Path, tasks: list[dict[str, Any]]) -> Path:
    for name in {Path(v).name for t in tasks for v in t["data"].values() if isinstance(v, str)}:
        photo(root / "images" / name)
    (root / "tasks.json").write_text(json.dumps(tasks))
    return root


def task(number: int, *annotations: Any, **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": list(annotations),
        "predictions": [],
        "data": data or {"image": f"{number}.png"},
    }


def done(*results: Any, **more: Any) -> dict[str, Any]:
    return {"was_cancelled": False, "result": list(results), **more}


ROAD = result("polygon", "road", points=percent(SQUARE))
CAR = result("polygon", "car", points=percent(INNER))


def test_tasks_that_nobody_annotated_are_left_out_and_counted(tmp_path: Path) -> None:
    predicted = {**task(5), "predictions": [{"result": [ROAD]}]}
    tasks = [
        task(1, done(ROAD)),
        task(2, {"was_cancelled": True, "result": [ROAD]}),
        task(3),
        task(4, done()),
        predicted,
    ]
    data = open_dataset(write_tasks(tmp_path, tasks))
    assert [r.name for r in data.records] == ["1", "4"]
    assert not data[1].labels["semantic"].any()
    notes = " ".join(data.notes)
    assert "1 skipped tasks (task 2)" in notes
    assert "1 tasks that nobody has annotated (task 3)" in notes
    assert "1 tasks with predictions alone, which nobody has accepted (task 5)" in notes
    assert "without a region, all background: 1 of 2" in notes


def test_only_skipped_tasks_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 skipped tasks"):
        open_dataset(write_tasks(tmp_path, [task(1, {"was_cancelled": True, "result": []})]))


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (("img1", "img2"), ("image", "image2")),
        (("img2", "img1"), ("image2", "image")),
        (("left", "right"), ("left", "right")),
        (("view_before", "view_after"), ("before", "after")),
    ],
)
def test_regions_go_to_the_image_that_they_name(
    names: tuple[str, str], fields: tuple[str, str], tmp_path: Path
) -> None:
    results = [{**ROAD, "to_name": names[0]}, {**CAR, "to_name": names[1]}]
    data = open_dataset(write_tasks(tmp_path, [task(1, done(*results), **{fields[1]: "b.png", fields[0]: "a.png"})]))
    found = {r.name: s.labels["semantic"] for r, s in zip(data.records, data, strict=True)}
    assert np.array_equal(found["a"] == 2, oracle(SQUARE))
    assert np.array_equal(found["b"] == 1, oracle(INNER))
    assert (found["a"].max(), found["b"].max()) == (2, 1)


def test_images_that_cannot_be_told_apart_are_bound_by_hand(tmp_path: Path) -> None:
    results = [{**ROAD, "to_name": "left"}, {**CAR, "to_name": "right"}]
    write_tasks(tmp_path, [task(1, done(*results), before="a.png", after="b.png")])
    with pytest.raises(DataError, match="which is which") as caught:
        open_dataset(tmp_path)
    spec = re.search(r"as in (\S+)\.$", str(caught.value))
    assert spec
    data = open_dataset(spec[1])
    assert [(r.name, int(s.labels["semantic"].max())) for r, s in zip(data.records, data, strict=True)] == [
        ("a", 2),
        ("b", 1),
    ]
    with pytest.raises(UsageError, match="bind="):
        open_dataset(tmp_path, bind="left=nothing")


def test_one_image_tag_of_several_images_is_read_by_its_index(tmp_path: Path) -> None:
    for name in "ab":
        photo(tmp_path / f"images/{name}.png")
    results = [{**ROAD, "item_index": 1}, {**CAR, "item_index": 7}]
    write_tasks(tmp_path, [task(1, done(*results), image=["a.png", "b.png"])])
    data = open_dataset(tmp_path)
    assert [(r.name, int(s.labels["semantic"].max())) for r, s in zip(data.records, data, strict=True)] == [
        ("a", 0),
        ("b", 2),
    ]
    assert any("1 regions of an image that the task does not have" in n for n in data.notes)


@pytest.mark.parametrize("labelled", ["labels", "choices"])
def test_results_of_one_id_are_one_region(labelled: str, tmp_path: Path) -> None:
    points = {"points": percent(SQUARE), "closed": True}
    outline = {"id": "r", "type": "polygon", "value": points}
    named = {"id": "r", "type": labelled, "value": {**points, labelled: ["road"]}}
    for results in ([outline, named], [named, outline]):
        data = open_dataset(write_tasks(tmp_path, [task(1, done(*results))]))
        assert data.taxonomy.names == ("background", "road")
        assert np.array_equal(data[0].labels["semantic"] == 1, oracle(SQUARE))


def test_bitmaps_are_painted(tmp_path: Path) -> None:
    pixels = region(3)
    rgba = np.zeros((H, W, 4), np.uint8)
    rgba[..., 3] = pixels * 255
    out = BytesIO()
    Image.fromarray(rgba).save(out, "PNG")
    for data in (stencil(pixels), base64.b64encode(out.getvalue()).decode()):
        value = {"imageDataURL": f"data:image/png;base64,{data}", "bitmasklabels": ["road"]}
        write_tasks(tmp_path, [task(1, done({"id": "r", "type": "bitmask", "value": value}))])
        assert np.array_equal(open_dataset(tmp_path)[0].labels["semantic"] == 1, pixels)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"id": "k", "type": "keypointlabels", "value": {"x": 5, "y": 5, "keypointlabels": ["p"]}}, "keypointlabels"),
        ({"id": "k", "type": "relation"}, "answers without an area (relation)"),
        ({"id": "k", "type": "polygon", "value": {"points": percent(SQUARE)}}, "without a label"),
        (result("polygon", "road", points=[[1, 1], [2, 2]]), "fewer than 3 points"),
        (result("polygon", "road", points=[[1, 1], [float("nan"), 2], [5, 5]]), "finite"),
        (result("polygon", "road", points=[[1, 1], [10**4000, 2], [5, 5]]), "no numbers"),
        (result("polygon", "road", points=5), "no pairs"),
        (result("brush", "road", format="rle", rle=10**12), "no list of bytes"),
        (result("brush", "road", format="png", rle=[1]), "stored as png"),
        (result("brush", "road", format="rle", rle=pack_brush(region(1, (4, 4)))), "another size"),
        (result("rectangle", "road", x=1, y=1, width=None, height=4), "width is no number"),
        (result("ellipse", "road", x=1, y=1, radiusX=0, radiusY=4), "without an area"),
        ({**ROAD, "image_rotation": 90}, "turned image"),
        ({**ROAD, "value": {"imageDataURL": "%%", "labels": ["road"]}}, "bitmap that cannot be read"),
        ("odd", "not as Label Studio writes"),
    ],
)
def test_what_label_studio_holds_and_is_not_painted_is_counted(odd: Any, message: str, tmp_path: Path) -> None:
    data = open_dataset(write_tasks(tmp_path, [task(1, done(CAR, odd, ROAD))]))
    expected = np.where(oracle(SQUARE), data.taxonomy.names.index("road"), 0)
    assert np.array_equal(data[0].labels["semantic"], expected)
    assert any(n.startswith("left out: 1 ") and message in n and "task 1" in n for n in data.notes), data.notes


@pytest.mark.parametrize("image", ["http://[bad", "x" * 5000, "\0.png", "http://host/[x.png"])
def test_addresses_that_are_none_are_errors_of_ours(image: str, tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    (tmp_path / "tasks.json").write_text(json.dumps([task(1, done(ROAD), image=image)]))
    with pytest.raises(FullyconvError):
        open_dataset(f"labelstudio:{tmp_path}")


def test_label_studios_folders_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    for folder in "ab":
        photo(tmp_path / folder / "1.png")
    tasks = [task(i, done(r), image=f"/data/local-files/?d={f}/1.png") for i, f, r in ((1, "a", ROAD), (2, "b", CAR))]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    data = open_dataset(tmp_path)
    assert [r.name for r in data.records] == ["a/1", "b/1"]
    assert [int(s.labels["semantic"].max()) for s in data] == [2, 1]
    (tmp_path / "b/1.png").unlink()
    with pytest.raises(MissingInput, match="only"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat", "labelstudio"])
def test_a_folder_without_annotations_says_what_was_looked_for(kind: str, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"hello": 1}')
    with pytest.raises(DataError) as caught:
        open_dataset(f"{kind}:{tmp_path}")
    for word in ("looked for", "notes.json", "export" if kind != "labelme" else "labelme"):
        assert word in str(caught.value)
