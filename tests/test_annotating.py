"""Label maps written as annotation tools' files and read back: by our readers, by pycocotools, by the formats' own
libraries where they are installed."""

from __future__ import annotations

import base64
import json
import os
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_oracle

import fullyconv
from fullyconv.annotating import FORMATS, open_writer
from fullyconv.annotating.data_sets import convert_annotations
from fullyconv.annotating.runs import Region, brush_bytes, coco_text, column_runs, keyhole, regions, row_runs
from fullyconv.annotating.writer import Classes
from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.corpora.annotations.raster import coco_counts, from_counts, label_studio_brush
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.files.outputs import Outputs
from fullyconv.predict import Predictor
from fullyconv.taxonomy import Taxonomy

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools and NumPy 2

STREET = Taxonomy(("background", "Straße", "自行车 & <co>", "car"))
NO_BACKGROUND = Taxonomy(("sky", "road", "tree"))
KIND = {"coco-polygons": "coco", "voc": "cvat"}


def photo(size: tuple[int, int], orientation: int = 1, kind: str = "JPEG") -> bytes:
    """An image file of H W as it is shown."""
    height, width = size if orientation < 5 else size[::-1]
    opened, exif, out = Image.new("RGB", (width, height), (90, 120, 30)), Image.Exif(), BytesIO()
    exif[0x0112] = orientation
    opened.save(out, kind, exif=exif)
    return out.getvalue()


def hard_map(size: tuple[int, int] = (48, 64), ignore: int | None = None) -> np.ndarray:
    """Rings in rings, single pixels, corners that touch, over 200 regions, and the image's own corners."""
    labels = np.zeros(size, np.uint8)
    labels[2:30, 2:30] = 1
    labels[5:27, 5:27] = 0  # a hole
    labels[8:24, 8:24] = 2  # an island in it
    labels[12:20, 12:20] = 1
    labels[13, 13] = labels[14, 14] = 0  # holes that touch at a corner
    labels[0, 0] = labels[-1, -1] = 3
    labels[32:, 0:60:2][::2] = 1
    labels[0, 40:] = labels[:20, -1] = 2
    if ignore is not None:
        labels[9:11, 50:60] = ignore
    return labels


def export(kind: str, folder: Path, taxonomy: Taxonomy, maps: dict[str, np.ndarray], **options: Any) -> list[str]:
    """Write `maps` (name -> labels) as `kind`; the notes."""
    images = options.pop("images", {})
    with open_writer(kind, Outputs(folder), taxonomy, **options) as writer:
        places = {n: writer.claim(n, ".jpg") for n in maps}
        for name, labels in maps.items():
            writer.add(places[name], images.get(name) or photo(labels.shape), labels)  # type: ignore[arg-type]
        writer.finish()
        return writer.notes


def read_back(kind: str, folder: Path, taxonomy: Taxonomy, options: str = "") -> dict[str, np.ndarray]:
    """{record name: labels} by our reader, in the ids of `taxonomy` (its class 0 where nothing is drawn)."""
    data = open_dataset(f"{KIND.get(kind, kind)}{options}:{folder}", "all")
    own = {name: k for k, name in enumerate(taxonomy.names)}
    nothing = own.get("background", 254)
    table = np.full(256, 255, np.uint8)
    for k, name in enumerate(data.taxonomy.names):
        table[k] = own.get(name, nothing) if k else nothing
    table[data.taxonomy.ignore] = taxonomy.ignore
    return {s.name: table[s.labels["semantic"]] for s in data}


@pytest.mark.parametrize("kind", FORMATS)
def test_our_readers_give_back_every_pixel(kind: str, tmp_path: Path) -> None:
    ignore = None if kind == "labelstudio" else 255
    maps = {"a": hard_map(ignore=ignore), "é 1": hard_map((40, 70)), "leer": np.zeros((5, 7), np.uint8)}
    export(kind, tmp_path, STREET, maps)
    found = read_back(kind, tmp_path, STREET)
    assert found.keys() == maps.keys()
    for name, labels in maps.items():
        assert np.array_equal(found[name], labels), name


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 12))
def test_any_label_map_goes_there_and_back(
    kind: str, seed: int, height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("export")
    labels = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    export(kind, folder, NO_BACKGROUND, {"x": labels})
    assert np.array_equal(read_back(kind, folder, NO_BACKGROUND)["x"], labels)


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", FORMATS)
def test_labels_lie_on_the_image_as_it_is_shown(kind: str, orientation: int, tmp_path: Path) -> None:
    labels = hard_map((48, 64))
    turned = photo((48, 64), orientation)
    notes = export(kind, tmp_path, STREET, {"p": labels}, images={"p": turned})
    assert np.array_equal(read_back(kind, tmp_path, STREET)["p"], labels)
    assert any("1 images are turned by their EXIF tag" in n for n in notes)
    assert next(tmp_path.rglob("p.jpg")).read_bytes() == turned


@pytest.mark.parametrize("kind", FORMATS)
def test_names_in_folders_keep_their_labels(kind: str, tmp_path: Path) -> None:
    maps = {"a/x": hard_map((40, 40)), "b/x": np.ones((40, 40), np.uint8)}
    export(kind, tmp_path, STREET, maps)
    found = read_back(kind, tmp_path, STREET)
    assert len(found) == 2
    for name, labels in maps.items():
        key = {"labelme": name.replace("/", "_"), "labelstudio": f"images/{name}"}.get(kind, name)
        assert np.array_equal(found[key], labels)


def test_pycocotools_decodes_both_forms_pixel_for_pixel(tmp_path: Path) -> None:
    labels = hard_map()
    for kind in ("coco", "coco-polygons"):
        export(kind, tmp_path / kind, STREET, {"a": labels})
        found = json.loads((tmp_path / kind / "annotations/instances_default.json").read_text())
        painted, count = np.zeros_like(labels), np.zeros(labels.shape, int)
        for a in found["annotations"]:
            coded = a["segmentation"]
            one = coco_oracle.merge(coco_oracle.frPyObjects(coded, *labels.shape)) if isinstance(coded, list) else coded
            mask = coco_oracle.decode(one).astype(bool)
            assert a["area"] == mask.sum()
            assert a["bbox"] == [int(v) for v in coco_oracle.toBbox(one)]
            painted[mask] = a["category_id"]
            count += mask
        assert np.array_equal(painted, labels)
        assert count.max() == 1  # nothing covers anything
        assert len(found["annotations"]) > 200


@given(seed=st.integers(0, 10**6), height=st.integers(1, 14), width=st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_every_coding_of_a_mask_decodes_to_it(seed: int, height: int, width: int) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.uniform(size=(height, width)) < draw.uniform()
    assert np.array_equal(from_counts(row_runs(mask), mask.shape, columns=False), mask)
    assert np.array_equal(label_studio_brush(brush_bytes(mask), mask.shape), mask)
    painted = np.zeros_like(mask)
    for region in regions(mask.astype(np.uint8), {0}):
        runs = column_runs(region, mask.shape)
        whole = np.zeros_like(mask)
        whole[region.top :, region.left :][: region.covered.shape[0], : region.covered.shape[1]] = region.covered
        oracle = coco_oracle.encode(np.asfortranarray(whole.astype(np.uint8)))["counts"]
        assert coco_text(runs) == oracle.decode()
        assert np.array_equal(coco_counts(coco_text(runs)), runs)
        ring = keyhole(region.covered) + np.array([region.left, region.top])
        filled = coco_oracle.decode(coco_oracle.frPyObjects([ring.ravel().astype(float).tolist()], *mask.shape))[..., 0]
        assert np.array_equal(filled.astype(bool), whole)
        assert not (painted & whole).any()
        painted |= whole
    assert np.array_equal(painted, mask)


def test_long_runs_are_split_where_a_brush_has_no_length_for_them() -> None:
    mask = np.zeros((300, 400), bool)
    mask[100:200] = True
    assert np.array_equal(label_studio_brush(brush_bytes(mask), mask.shape), mask)


def test_runs_that_go_on_from_a_columns_foot_are_one() -> None:
    region = Region(1, 0, 1, np.ones((4, 2), bool))
    assert column_runs(region, (4, 4)).tolist() == [4, 8, 4]


def test_a_proposal_for_label_studio_is_a_prediction_with_model_and_score(tmp_path: Path) -> None:
    labels = hard_map((48, 64))
    confidence = np.full(labels.shape, 0.5, np.float32)
    confidence[labels == 3] = 1
    with open_writer("labelstudio", Outputs(tmp_path), STREET, model="net 123") as writer:
        writer.add(writer.claim("a", ".jpg"), photo(labels.shape), labels, confidence)
        writer.finish()
    [task] = json.loads((tmp_path / "tasks.json").read_text())
    assert "annotations" not in task
    [guess] = task["predictions"]
    assert guess["model_version"] == "net 123"
    assert 0.5 < guess["score"] < 0.51
    scores = {r["value"]["brushlabels"][0]: r["score"] for r in guess["result"]}
    assert scores == {STREET.names[1]: 0.5, STREET.names[2]: 0.5, "car": 1.0}
    with pytest.raises(DataError, match="predictions alone, which nobody has accepted"):
        open_dataset(f"labelstudio:{tmp_path}")
    found = read_back("labelstudio", tmp_path, STREET, ",predictions=true")
    assert np.array_equal(found["a"], labels)
    view = ElementTree.fromstring((tmp_path / "labeling-config.xml").read_text())
    assert [e.get("value") for e in view.iter("Label")] == list(STREET.names[1:])


def test_masks_of_labelme_and_cvat_hold_one_connected_region_each(tmp_path: Path) -> None:
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:3] = labels[4, 6] = 3
    export("labelme", tmp_path / "l", STREET, {"a": labels}, model="net")
    first, second = json.loads((tmp_path / "l/a.json").read_text())["shapes"]
    assert first["points"] == [[1, 1], [2, 2]]
    assert second["points"] == [[6, 4], [6, 4]]
    assert np.asarray(Image.open(BytesIO(base64.b64decode(first["mask"])))).tolist() == [[1, 1], [1, 1]]
    assert first["description"] == "proposed by net"
    assert (tmp_path / "l/labels.txt").read_text().split("\n")[:3] == ["__ignore__", "_background_", "Straße"]
    export("cvat", tmp_path / "c", STREET, {"a": labels}, model="net")
    masks = list(ElementTree.parse(tmp_path / "c/annotations.xml").iter("mask"))
    assert [(m.get("left"), m.get("top"), m.get("rle"), m.get("source")) for m in masks] == [
        ("1", "1", "0, 4", "auto"),
        ("6", "4", "0, 1", "auto"),
    ]


def test_classes_that_share_colours_get_others_and_that_is_said(tmp_path: Path) -> None:
    same = Taxonomy(("background", "a", "b"), ((0, 0, 0), (9, 9, 9), (9, 9, 9)))
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    assert any("share a colour" in n for n in export("voc", tmp_path, same, {"x": labels}))
    assert np.array_equal(read_back("voc", tmp_path, same)["x"], labels)


@pytest.mark.parametrize("name", [" a", "a\nb", "a\x07", "\u202ea", ""])
def test_class_names_that_no_file_can_hold_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="The class name"):
        Classes(Taxonomy(("background", name)))


@pytest.mark.parametrize(("kind", "name"), [("cvat", "Ignored"), ("labelme", "__ignore__"), ("voc", "a:b")])
def test_class_names_that_mean_something_else_there_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name"):
        open_writer(kind, Outputs(tmp_path), Taxonomy(("background", name)))
    assert not list(tmp_path.iterdir())


CLASS_NAMES = (
    "<b>&amp;\"'</b>",
    "../../etc/passwd",
    "/abs",
    "]]><x/>",
    "a\\\\u0000b",
    "{{7*7}}",
    "$(id)",
    "a,b;c",
    "=1+1",
)
IMAGE_NAMES = ("<i>&lt;\"'.x", "]]>&d", "a b", "-->", "%2e%2e", "?d=..", "#x", "{{7*7}}", "\u202ea")


def texts(kind: str, root: Path) -> tuple[set[str], set[str]]:
    """(class names, image files) that a plain parser finds in what was written."""
    if kind == "cvat":
        tree = ElementTree.parse(root / "annotations.xml")
        task = {"meta", "task", "name", "mode", "labels", "label", "color", "type", "attributes"}
        assert {e.tag for e in tree.iter()} == {"annotations", "version", "image", "mask", *task}
        return {str(e.text) for e in tree.iterfind(".//label/name")}, {e.attrib["name"] for e in tree.iter("image")}
    if kind == "labelstudio":
        config = ElementTree.parse(root / "labeling-config.xml")
        assert {e.tag for e in config.iter()} == {"View", "Image", "BrushLabels", "Label"}
        tasks = json.loads((root / "tasks.json").read_text())
        queries = [parse_qs(urlsplit(t["data"]["image"]).query, strict_parsing=True)["d"][0] for t in tasks]
        return {e.attrib["value"] for e in config.iter("Label")}, {q.removeprefix("images/") for q in queries}
    if kind == "labelme":
        held = [json.loads(p.read_text()) for p in root.glob("*.json")]
        lines = (root / "labels.txt").read_text().split("\n")[2:-1]
        assert {s["label"] for h in held for s in h["shapes"]} <= set(lines)
        return set(lines), {h["imagePath"] for h in held}
    if kind == "voc":
        rows = [line.split(":") for line in (root / "labelmap.txt").read_text().split("\n")[2:-1]]
        assert {len(r) for r in rows} == {4}
        listed = (root / "ImageSets/Segmentation/default.txt").read_text().split("\n")[:-1]
        return {r[0] for r in rows}, {f"{n}.jpg" for n in listed}
    value = json.loads((root / "annotations/instances_default.json").read_text())
    return {c["name"] for c in value["categories"]}, {i["file_name"] for i in value["images"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_names_are_text_to_a_plain_parser_and_no_path_is_made_of_a_class(kind: str, tmp_path: Path) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % (len(CLASS_NAMES) + 1)
    root = tmp_path / "in/out"
    export(kind, root, Taxonomy(("background", *CLASS_NAMES)), dict.fromkeys(IMAGE_NAMES, labels), model='<m>&"\x1b')
    names, files = texts(kind, root)
    assert names == set(CLASS_NAMES)
    assert files == {f"{n}.jpg" for n in IMAGE_NAMES}
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["out"]
    made = {p.stem for p in root.rglob("*") if p.is_file()}
    fixed = {
        "annotations",
        "labeling-config",
        "tasks",
        "labels",
        "labelmap",
        "default",
        "instances_default",
        ".written",
    }
    assert made <= {*IMAGE_NAMES, *fixed}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", [os.fsdecode(b"\xe9"), "a\ufffe", "a\uffff"])
def test_images_whose_names_no_text_file_can_hold_are_refused_before_anything_is_written(
    kind: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="rename"):
        export(kind, tmp_path, STREET, {name: np.zeros((3, 4), np.uint8)})
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_unknown_tool_and_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="labelme"):
        open_writer("labelbox", Outputs(tmp_path), STREET)
    with pytest.raises(DataError, match=r"48x64.*and a label map of 5x7"):
        export("coco", tmp_path, STREET, {"x": np.zeros((5, 7), np.uint8)}, images={"x": photo((48, 64))})
    assert not [f for f in tmp_path.rglob("*") if "instances" in f.name], "an unfinished file is left"


def test_any_data_set_is_converted_split_by_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "d" / split / part).mkdir(parents=True)
        for i in range(2):
            (tmp_path / f"d/{split}/images/{i}.jpg").write_bytes(photo((20, 30)))
            Image.fromarray(hard_map()[:20, :30]).save(tmp_path / f"d/{split}/labels/{i}.png")
    (tmp_path / "d/classes.txt").write_text("background\na\nb\nc\n")
    counts, _ = convert_annotations(str(tmp_path / "d"), tmp_path / "out", "cvat")
    assert counts == {"train": 2, "val": 2}
    found = open_dataset(f"cvat:{tmp_path / 'out/val'}", "all")
    assert np.array_equal(found[0].labels["semantic"], hard_map()[:20, :30])
    with pytest.raises(UsageError, match="exists already"):
        convert_annotations(str(tmp_path / "d"), tmp_path / "out", "cvat")


def oracle(name: str) -> Any:
    """A format's own library, which is not among what is installed for the tests: it holds Pillow and NumPy back."""
    return pytest.importorskip(name, reason=f"{name} is not installed (by hand: docs/label.md)")


@pytest.mark.soak
def test_label_studios_own_decoder_gives_back_every_pixel() -> None:
    brush = oracle("label_studio_sdk.converter.brush")
    mask = hard_map() == 1
    decoded = brush.decode_rle(brush_bytes(mask)).reshape(*mask.shape, 4)[..., 3] > 0
    assert np.array_equal(decoded, mask)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "form"),
    [("cvat", "cvat"), ("coco", "coco"), ("coco-polygons", "coco"), ("voc", "voc_segmentation")],
)
def test_datumaro_gives_back_every_pixel(kind: str, form: str, tmp_path: Path) -> None:
    datumaro = oracle("datumaro")
    labels = hard_map()
    export(kind, tmp_path, STREET, {"a": labels})
    found = datumaro.Dataset.import_from(os.fspath(tmp_path), form)
    names = [c.name for c in found.categories()[datumaro.AnnotationType.label]]
    painted = np.zeros_like(labels)
    for item in found:
        for a in item.annotations:
            if a.type == datumaro.AnnotationType.polygon:
                coded = coco_oracle.frPyObjects([a.points], *labels.shape)
                mask = coco_oracle.decode(coded)[..., 0].astype(bool)
            elif a.type == datumaro.AnnotationType.mask:
                mask = np.asarray(a.image, bool)
            else:  # the same region's box
                continue
            painted[mask] = STREET.names.index(names[a.label])
    assert np.array_equal(painted, labels)


@pytest.mark.soak
def test_labelmes_own_reader_gives_back_every_pixel(tmp_path: Path) -> None:
    label_file = oracle("labelme.label_file")
    labels = hard_map()
    export("labelme", tmp_path, STREET, {"a": labels})
    painted = np.zeros_like(labels)
    for shape in label_file.LabelFile(os.fspath(tmp_path / "a.json")).shapes:
        (x0, y0), (x1, y1) = np.asarray(shape["points"]).astype(int)
        part = painted[y0 : y1 + 1, x0 : x1 + 1]  # as labelme's canvas draws it
        part[shape["mask"].astype(bool)] = STREET.names.index(shape["label"])
    assert np.array_equal(painted, labels)


def test_predict_as_a_tools_files_gives_the_label_maps_pixels(tmp_path: Path, capsys: Any) -> None:
    network = fullyconv.create("fcn16s-squeezenet1_0", 3, seed=0)
    torch.nn.init.normal_(next(p for p in network.head_parameters() if p.ndim == 4))
    network.save_pretrained(tmp_path / "m")
    (tmp_path / "p").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "p/ü.png")
    (tmp_path / "p/bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot one")
    with pytest.raises(SystemExit) as left:
        main(["predict", f"{tmp_path}/m", f"{tmp_path}/p", "-o", f"{tmp_path}/o", "--as", "cvat", "--quiet"])
    assert left.value.code == 65
    assert "1 of 2 images could not be labelled" in capsys.readouterr().err
    network = fullyconv.load(tmp_path / "m")
    wanted = Predictor(network).labels(noise)["semantic"]
    assert np.array_equal(read_back("cvat", tmp_path / "o", network.taxonomies["semantic"])["ü"], wanted)


@pytest.mark.parametrize("option", ["--confidence", "--resume", "--frames"])
def test_options_about_label_maps_are_refused_with_a_tool(option: str, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", "m", "p", "-o", f"{tmp_path}/o", "--as", "coco", option])
    assert left.value.code == 2
    assert f"leave out {option}" in capsys.readouterr().err
