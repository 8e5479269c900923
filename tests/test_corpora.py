"""Published corpora, from files written as their owners write them: what is read, what is refused and how."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fullyconv.data import hha, open_dataset
from fullyconv.data.corpora import taxonomies as published
from fullyconv.data.corpora.voc import seg11valid, train_aug
from fullyconv.errors import DataError, FullyconvError, MissingExtra, MissingInput, UnknownName, UsageError
from fullyconv.images import write_label
from fullyconv.taxonomy import voc_palette

SIZE = (12, 16)
SHARED = os.environ.get("FULLYCONV_SHARED")
real = pytest.mark.skipif(not SHARED, reason="FULLYCONV_SHARED is not set: the real samples are not at hand")


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(path: Path, seed: int = 0) -> np.ndarray:
    """A random colour image written at `path`; JPEGs do not keep it to the bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def palette_png(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label(path, labels, voc_palette(256))


def mat(path: Path, **variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def lines(path: Path, *text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text) + "\n")


def some(seed: int, high: int, low: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    return rng(seed).integers(low, high, SIZE).astype(dtype)


# ---- VOC and SBD -----------------------------------------------------------------------------------------------


def write_voc(root: Path, year: int, sets: dict[str, list[str]], labels: dict[str, np.ndarray] | None = None) -> Path:
    base = root / f"VOC{year}"
    for split, ids in sets.items():
        lines(base / f"ImageSets/Segmentation/{split}.txt", *ids)
        for i in ids:
            image(base / f"JPEGImages/{i}.jpg")
            value = (labels or {}).get(i, some(1, 21))
            palette_png(base / f"SegmentationClass/{i}.png", value)
    return base


def write_sbd(root: Path, sets: dict[str, list[str]], label: np.ndarray) -> Path:
    base = root / "benchmark_RELEASE/dataset"
    for split, ids in sets.items():
        lines(base / f"{split}.txt", *ids)
        for i in ids:
            image(base / f"img/{i}.jpg")
            struct = {"Segmentation": label, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": np.unique(label)}
            mat(base / f"cls/{i}.mat", GTcls=struct)
    return base


def test_voc_keeps_ids_and_void_and_is_found_from_any_folder_above(tmp_path: Path) -> None:
    label = some(3, 21)
    label[:2] = 255
    base = write_voc(
        tmp_path / "VOCdevkit", 2012, {"train": ["2007_000032"], "val": ["2007_000033"]}, {"2007_000033": label}
    )
    for root in (tmp_path, tmp_path / "VOCdevkit", base):
        data = open_dataset(f"voc:{root}", "val")
        assert (data.kind, data.split, [r.name for r in data.records]) == ("voc", "val", ["2007_000033"])
        assert np.array_equal(data[0].labels["semantic"], label)
        assert data[0].image.shape == (*SIZE, 3)
    assert open_dataset(tmp_path).split == "train"  # recognised, and train is the default
    assert data.taxonomy.names[20] == "tvmonitor"
    assert data.taxonomy.palette[15] == (192, 128, 128)
    assert len(open_dataset(tmp_path, "all")) == 2


def test_the_latest_year_is_taken_unless_another_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path, 2007, {"train": ["000032"]})
    write_voc(tmp_path, 2012, {"train": ["2007_000032"]})
    assert open_dataset(f"voc:{tmp_path}").records[0].name == "2007_000032"
    assert open_dataset(f"voc:{tmp_path}", year=2007).records[0].name == "000032"
    with pytest.raises(UnknownName, match="2009"):
        open_dataset(f"voc:{tmp_path}", year=2009)


def test_seg11valid_is_voc2011_val_without_sbd_train(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit", 2011, {"train": ["a"], "val": ["d", "b", "c"]})
    write_voc(tmp_path / "VOCdevkit", 2012, {"train": ["a"], "val": ["b", "c", "d", "e"]})
    write_sbd(tmp_path, {"train": ["a", "c", "x"], "val": ["b"]}, some(2, 21))
    data = open_dataset(f"voc:{tmp_path}", "seg11valid")
    assert [r.name for r in data.records] == ["d", "b"]
    assert "VOC2011" in str(data.records[0].labels["semantic"])
    only_lists = tmp_path / "VOCdevkit/VOC2011/JPEGImages"
    for file in only_lists.iterdir():
        file.unlink()
    only_lists.rmdir()
    again = open_dataset(f"voc:{tmp_path}", "seg11valid")  # the images are VOC2012's
    assert "VOC2012" in str(again.records[0].inputs["rgb"])


def test_train_aug_is_everything_labelled_but_voc_val_with_vocs_own_labels_first(tmp_path: Path) -> None:
    own, theirs = some(5, 21), some(6, 21)
    write_voc(tmp_path, 2012, {"train": ["a"], "val": ["v"]}, {"a": own})
    write_sbd(tmp_path / "elsewhere", {"train": ["a", "s", "v"], "val": ["t"]}, theirs)
    with pytest.raises(DataError, match="sbd=PATH"):
        open_dataset(f"voc:{tmp_path}", "train_aug")
    data = open_dataset(f"voc:{tmp_path}", "train_aug", sbd=tmp_path / "elsewhere")
    assert [r.name for r in data.records] == ["a", "s", "t"]
    assert np.array_equal(data[0].labels["semantic"], own)
    assert np.array_equal(data[1].labels["semantic"], theirs)


def test_converted_sbd_labels_in_the_devkit_serve_train_aug_without_sbd(tmp_path: Path) -> None:
    base = write_voc(tmp_path, 2012, {"train": ["a"], "val": ["v"]})
    converted = some(8, 21)
    for i in ("a", "s", "v"):
        image(base / f"JPEGImages/{i}.jpg")
        palette_png(base / f"SegmentationClassAug/{i}.png", converted)
    data = open_dataset(f"voc:{tmp_path}", "train_aug")
    assert [r.name for r in data.records] == ["a", "s"]
    assert np.array_equal(data[1].labels["semantic"], converted)
    lines(base / "ImageSets/Segmentation/trainaug.txt", "s")  # a list of one's own goes first
    assert [r.name for r in open_dataset(f"voc:{tmp_path}", "train_aug").records] == ["s"]


def test_set_algebra_keeps_no_validation_image_and_loses_no_other() -> None:
    ids = [f"{i}" for i in range(200)]
    draw = rng(9)
    train, val = ids[:60], ids[60:120]
    sbd_train, sbd_val = (list(draw.permutation(ids[:180])[:90]) for _ in range(2))
    aug = train_aug(train, val, sbd_train, sbd_val)
    assert not set(aug) & set(val)
    assert set(aug) | set(val) >= {*train, *sbd_train, *sbd_val}
    assert len(aug) == len(set(aug))
    valid = seg11valid(val, sbd_train)
    assert set(valid) | (set(val) & set(sbd_train)) == set(val)
    assert not set(valid) & set(sbd_train)


def test_sbd_mat_structs_and_converted_images_give_the_same_labels(tmp_path: Path) -> None:
    label = some(4, 21)
    base = write_sbd(tmp_path, {"train": ["a"], "val": ["b"]}, label)
    for root in (tmp_path, base):
        data = open_dataset(f"sbd:{root}", "val")
        assert np.array_equal(data[0].labels["semantic"], label)
    for file in (base / "cls").iterdir():
        file.unlink()
        palette_png(file.with_suffix(".png"), label)
    data = open_dataset(f"sbd:{tmp_path}", "val")
    assert data.records[0].labels["semantic"].suffix == ".png"
    assert np.array_equal(data[0].labels["semantic"], label)
    assert open_dataset(tmp_path).kind == "sbd"


# ---- NYUDv2 ----------------------------------------------------------------------------------------------------


def write_gupta(root: Path) -> dict[str, np.ndarray]:
    """Gupta's folders as the FCN release packs them: three frames of 425 x 560."""
    labels = {}
    for split, n in (("train", 5003), ("val", 5001), ("test", 5002)):
        lines(root / f"{split}.txt", str(n))
        (root / "data/images").mkdir(parents=True, exist_ok=True)
        (root / "data/depth").mkdir(exist_ok=True)
        Image.new("RGB", (560, 425), (n % 256, 0, 0)).save(root / f"data/images/img_{n}.png")
        depth = (2000 + 3 * np.arange(425)[:, None] + np.zeros(560)).astype(np.uint16)
        Image.fromarray(depth).save(root / f"data/depth/img_{n}.png")
        labels[str(n)] = np.repeat(rng(n).integers(0, 41, (425, 1)), 560, 1).astype(np.uint16)
        mat(root / f"segmentation/img_{n}.mat", segmentation=labels[str(n)])
    return labels


def test_guptas_folders_give_forty_classes_void_ignored_and_trainval_joined(tmp_path: Path) -> None:
    stored = write_gupta(tmp_path)
    data = open_dataset(f"nyud:{tmp_path}", "trainval")
    assert [r.name for r in data.records] == ["5003", "5001"]
    for i, n in enumerate(("5003", "5001")):
        expected = stored[n].astype(np.uint8) - np.uint8(1)  # the released loader's arithmetic: 0 wraps to 255
        assert np.array_equal(data[i].labels["semantic"], expected)
    assert data.taxonomy.names[0] == "wall"
    assert len(data.taxonomy) == 40
    assert open_dataset(tmp_path).kind == "nyud"
    assert len(open_dataset(f"nyud:{tmp_path}", "all")) == 3


def test_depth_and_hha_are_inputs_and_hha_is_computed_where_there_is_no_file(tmp_path: Path) -> None:
    write_gupta(tmp_path)
    data = open_dataset(f"nyud:{tmp_path}", "test", inputs=("rgb", "depth"))
    assert data.image(0).shape == (425, 560, 4)
    assert data.image(0)[7, 0, 3] == 2021  # millimetres, as stored
    computed = open_dataset(f"nyud:{tmp_path}", "test", inputs=["hha"]).image(0)
    depth = (2000 + 3 * np.arange(425)[:, None] + np.zeros(560)) / 1000
    assert np.array_equal(computed, hha.encode(depth, hha.NYUD_CROP))
    (tmp_path / "data/hha").mkdir()
    stored = rng(1).integers(0, 256, (425, 560, 3), np.uint8)
    Image.fromarray(stored).save(tmp_path / "data/hha/img_5002.png")
    assert np.array_equal(open_dataset(f"nyud:{tmp_path}", "test", inputs=["hha"]).image(0), stored)


def write_official(path: Path, frames: int = 3) -> dict[str, np.ndarray]:
    """nyu_depth_v2_labeled.mat as MATLAB's v7.3 stores it: every array with its axes reversed."""
    draw = rng(7)
    images = draw.integers(0, 256, (480, 640, 3, frames), np.uint8)
    depths = draw.uniform(1, 9, (480, 640, frames)).astype(np.float32)
    labels = draw.integers(0, 895, (480, 640, frames)).astype(np.uint16)
    with h5py.File(path, "w") as file:
        for name, array in (("images", images), ("depths", depths), ("rawDepths", depths), ("labels", labels)):
            file.create_dataset(name, data=array.T, chunks=(1, *array.T.shape[1:]))
    return {"images": images, "depths": depths, "labels": labels}


def test_the_official_file_is_turned_upright_and_mapped_to_forty_classes(tmp_path: Path) -> None:
    stored = write_official(tmp_path / "nyu_depth_v2_labeled.mat")
    mat(tmp_path / "splits.mat", trainNdxs=np.array([[1], [3]]), testNdxs=np.array([[2]]))
    data = open_dataset(f"nyud:{tmp_path}", "train", inputs=("rgb", "depth"))
    assert [r.name for r in data.records] == ["img_5001", "img_5003"]
    sample = data[1]
    assert np.array_equal(sample.image[..., :3], stored["images"][..., 2])
    assert np.allclose(sample.image[..., 3], stored["depths"][..., 2] * 1000)
    table = np.array([published.NYUD894[v] for v in range(895)])
    assert np.array_equal(sample.labels["semantic"], table[stored["labels"][..., 2]])
    whole = open_dataset(f"nyud:{tmp_path / 'nyu_depth_v2_labeled.mat'}", "all")
    assert len(whole) == 3
    assert np.array_equal(
        open_dataset(f"nyud:{tmp_path}", "test", inputs=["hha"]).image(0),
        hha.encode(stored["depths"][..., 1].astype(float), hha.NYUD),
    )


def test_a_mapping_of_ones_own_replaces_the_built_in_one(tmp_path: Path) -> None:
    stored = write_official(tmp_path / "nyu_depth_v2_labeled.mat", 1)
    mat(tmp_path / "classMapping40.mat", mapClass=(np.arange(894)[None] % 40 + 1).astype(np.uint8))
    data = open_dataset(f"nyud:{tmp_path}", mapping=tmp_path / "classMapping40.mat")
    values = stored["labels"][..., 0].astype(int)
    assert np.array_equal(data[0].labels["semantic"], np.where(values == 0, 255, (values - 1) % 40))
    mat(tmp_path / "short.mat", mapClass=np.ones((1, 13)))
    with pytest.raises(DataError, match="894"):
        open_dataset(f"nyud:{tmp_path}", mapping=tmp_path / "short.mat")


def test_the_official_file_without_its_splits_says_where_to_get_them(tmp_path: Path) -> None:
    file = tmp_path / "nyu_depth_v2_labeled.mat"
    write_official(file, 1)
    assert len(open_dataset(f"nyud:{tmp_path}")) == 1
    with pytest.raises(DataError, match=r"splits\.mat"):
        open_dataset(f"nyud:{tmp_path}", "test")
    mat(tmp_path / "splits.mat", trainNdxs=np.array([[1]]), testNdxs=np.array([[2]]))
    with pytest.raises(DataError, match="5002"):
        open_dataset(f"nyud:{tmp_path}", "test")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="HDF5"):
        open_dataset(f"nyud:{tmp_path}")
    with h5py.File(file, "w") as stored:
        stored["accelData"] = np.zeros(3)
    with pytest.raises(DataError, match="has no images, depths, labels"):
        open_dataset(f"nyud:{tmp_path}")


# ---- SIFT Flow, PASCAL-Context ---------------------------------------------------------------------------------

FLOW = "spatial_envelope_256x256_static_8outdoorcategories"


def write_siftflow(root: Path, ids: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    stored = {}
    for k, i in enumerate(ids):
        image(root / f"Images/{FLOW}/{i}.jpg")
        semantic, geometric = some(k, 34), some(k + 50, 4, 0, np.int16)
        geometric[geometric == 0] = -1
        mat(root / f"SemanticLabels/{FLOW}/{i}.mat", S=semantic, names=np.zeros((33, 1), object))
        mat(root / f"GeoLabels/{FLOW}/{i}.mat", S=geometric, names=np.zeros((3, 1), object))
        stored[i] = semantic, geometric
    return stored


def test_sift_flow_has_two_label_maps_and_leaves_the_unannotated_images_out(tmp_path: Path) -> None:
    ids = ["coast_natu975", "forest_natc52", "highway_bost181", "street_urb506"]
    stored = write_siftflow(tmp_path, ids)
    lines(tmp_path / "trainval.txt", ids[0], *ids[2:])
    lines(tmp_path / "test.txt", ids[1])
    data = open_dataset(f"siftflow:{tmp_path}")
    assert [r.name for r in data.records] == ids[:1]
    assert "highway_bost181, street_urb506" in data.notes[0]
    semantic, geometric = stored[ids[0]]
    sample = data[0]
    # the released loader's arithmetic: void -> 0, cast to uint8, minus 1
    assert np.array_equal(sample.labels["semantic"], semantic - np.uint8(1))
    assert np.array_equal(
        sample.labels["geometric"], np.where(geometric == -1, 0, geometric).astype(np.uint8) - np.uint8(1)
    )
    assert (len(data.taxonomies["semantic"]), data.taxonomies["geometric"].names) == (
        33,
        ("sky", "horizontal", "vertical"),
    )
    assert open_dataset(tmp_path, "test").records[0].name == ids[1]


def test_sift_flows_own_test_list_makes_the_rest_the_training_set(tmp_path: Path) -> None:
    ids = ["coast_natu975", "forest_natc52", "street_urb506", "tallbuilding_a1"]
    write_siftflow(tmp_path, ids)
    lines(tmp_path / "TestSet1.txt", f"{FLOW}\\forest_natc52.jpg")
    assert [r.name for r in open_dataset(f"siftflow:{tmp_path}", "train").records] == [ids[0], ids[3]]
    assert [r.name for r in open_dataset(f"siftflow:{tmp_path}", "test").records] == [ids[1]]


def write_context(root: Path, value: np.ndarray) -> None:
    for split, ids in (("train", ["2008_000001", "2008_000009"]), ("val", ["2008_000002"])):
        lines(root / f"VOC2010/ImageSets/Main/{split}.txt", *ids)
        for i in ids:
            image(root / f"VOC2010/JPEGImages/{i}.jpg")
            if i != "2008_000009":  # listed for detection, never annotated here
                mat(root / f"trainval/{i}.mat", LabelMap=value.astype(np.uint16))
    names = {value: old for old, value in published.CONTEXT_IDS.values()}
    lines(root / "labels.txt", *(f"{v}: {names.get(v, f'thing {v}')}" for v in range(1, 460)))


def test_context_maps_459_values_to_background_and_59_classes(tmp_path: Path) -> None:
    value = some(3, 460, 0, np.int64)
    write_context(tmp_path, value)
    data = open_dataset(f"context:{tmp_path}")
    assert [r.name for r in data.records] == ["2008_000001"]
    label = data[0].labels["semantic"]
    by_name = {name: published.CONTEXT_IDS[name][1] for name in data.taxonomy.names[1:]}
    for k, name in enumerate(data.taxonomy.names[1:], 1):
        assert np.array_equal(label == k, value == by_name[name])
    assert np.array_equal(label == 0, ~np.isin(value, list(by_name.values())))
    assert (by_name["diningtable"], by_name["clothes"], by_name["bedcloth"]) == (397, 80, 19)
    without = open_dataset(f"context:{tmp_path}", classes=59)[0].labels["semantic"]
    assert np.array_equal(without, np.where(label == 0, 255, label.astype(int) - 1))
    with pytest.raises(UsageError, match="33"):
        open_dataset(f"context:{tmp_path}", classes=33)


def test_context_refuses_another_numbering_and_finds_voc_elsewhere(tmp_path: Path) -> None:
    write_context(tmp_path / "a", some(3, 460, 0, np.int64))
    lines(tmp_path / "a/labels.txt", "1: aeroplane", "2: table")
    with pytest.raises(DataError, match="another numbering"):
        open_dataset(f"context:{tmp_path / 'a'}")
    (tmp_path / "a/labels.txt").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/VOC2010").rename(tmp_path / "b/VOC2010")
    with pytest.raises(DataError, match="voc="):
        open_dataset(f"context:{tmp_path / 'a'}")
    assert len(open_dataset(f"context:{tmp_path / 'a'}", voc=tmp_path / "b")) == 1


# ---- Cityscapes, ADE20K ----------------------------------------------------------------------------------------


def write_cityscapes(root: Path, kind: str = "labelIds") -> np.ndarray:
    stored = some(2, 34)
    for split, name in (
        ("train", "aachen/aachen_000000_000019"),
        ("val", "ulm/ulm_000001_000019"),
        ("test", "bonn/bonn_000000_000019"),
    ):
        image(root / f"leftImg8bit/{split}/{name}_leftImg8bit.png")
        if split != "test":
            path = root / f"gtFine/{split}/{name}_gtFine_{kind}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(stored if kind == "labelIds" else stored % 19).save(path)
    return stored


def test_cityscapes_label_ids_become_the_nineteen_classes(tmp_path: Path) -> None:
    stored = write_cityscapes(tmp_path)
    data = open_dataset(tmp_path, "val")
    assert (data.kind, data.records[0].name, data.records[0].group) == (
        "cityscapes",
        "ulm/ulm_000001_000019",
        "ulm_000001",
    )
    label = data[0].labels["semantic"]
    for k, value in enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)):
        assert np.array_equal(label == k, stored == value)
    assert data.taxonomy.palette[13] == (0, 0, 142)
    test = open_dataset(tmp_path, "test")
    assert (len(test), dict(test.taxonomies)) == (1, {})
    assert dict(test[0].labels) == {}
    with pytest.raises(UnknownName, match="gtFine"):
        open_dataset(f"cityscapes:{tmp_path}", annotations="fine")


def test_cityscapes_train_ids_are_taken_as_they_are_where_only_they_exist(tmp_path: Path) -> None:
    stored = write_cityscapes(tmp_path, "labelTrainIds")
    assert np.array_equal(open_dataset(tmp_path, "train")[0].labels["semantic"], stored % 19)


def test_ade20k_ignores_other_and_counts_from_zero(tmp_path: Path) -> None:
    base, stored = tmp_path / "ADEChallengeData2016", some(2, 151)
    for folder, i in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        image(base / f"images/{folder}/{i}.jpg")
        (base / f"annotations/{folder}").mkdir(parents=True)
        Image.fromarray(stored).save(base / f"annotations/{folder}/{i}.png")
    data = open_dataset(tmp_path, "val")
    assert (data.kind, data.split, data.records[0].name) == ("ade20k", "val", "ADE_val_00000001")
    assert np.array_equal(data[0].labels["semantic"], stored - np.uint8(1))
    assert (data.taxonomy.names[0], data.taxonomy.names[149]) == ("wall", "flag")


# ---- taxonomies, errors, workers -------------------------------------------------------------------------------


def test_published_taxonomies_have_their_published_sizes() -> None:
    sizes = {name: len(t) for name, t in published.TAXONOMIES.items()}
    assert sizes == {
        "voc": 21,
        "context": 60,
        "nyud": 40,
        "siftflow": 33,
        "siftflow-geometric": 3,
        "cityscapes": 19,
        "ade20k": 150,
    }
    assert all(t.ignore == 255 for t in published.TAXONOMIES.values())


def test_the_894_names_fall_to_forty_classes_as_published() -> None:
    table = published.NYUD894
    assert set(table) == set(range(895))
    counts = np.bincount([table[v] for v in range(1, 895)], minlength=40)
    assert counts.sum() == 894
    assert (counts[:37] == 1).all()  # 37 classes are one name each
    for value, name in (
        (21, "wall"),
        (11, "floor"),
        (157, "bed"),
        (5, "chair"),
        (124, "toilet"),
        (331, "person"),
        (1, "otherprop"),
    ):
        assert published.NYUD40.names[table[value]] == name


WRITERS: dict[str, Callable[[Path], Any]] = {
    "voc": lambda p: write_voc(p, 2012, {"train": ["a"], "val": ["b"]}),
    "sbd": lambda p: write_sbd(p, {"train": ["a"], "val": ["b"]}, some(1, 21)),
    "nyud": write_gupta,
    "siftflow": lambda p: [write_siftflow(p, ["a", "b"]), (p / "trainval.txt").write_text("a")],
    "context": lambda p: write_context(p, some(1, 460, 0, np.int64)),
    "cityscapes": write_cityscapes,
}


@pytest.mark.parametrize("kind", [*WRITERS, "ade20k"])
def test_a_wrong_root_says_what_was_looked_for_what_lies_there_and_where_to_get_it(kind: str, tmp_path: Path) -> None:
    lines(tmp_path / "holiday.txt", "x")
    with pytest.raises(DataError) as caught:
        open_dataset(f"{kind}:{tmp_path}")
    for word in ("looked for", "holiday.txt", "get "):
        assert word in str(caught.value)
    with pytest.raises(MissingInput):
        open_dataset(f"{kind}:{tmp_path / 'absent'}")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_wrong_split_names_those_there_are(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    with pytest.raises(UnknownName, match="train"):
        open_dataset(f"{kind}:{tmp_path}", "tain")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_half_unpacked_set_is_refused_with_the_count_and_the_first_missing_file(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    data = open_dataset(f"{kind}:{tmp_path}")
    file = data.records[0].inputs["rgb"]
    if kind == "cityscapes":  # its images are found by looking, so a label is what can be missing
        image(file.parent / "aachen_000000_000020_leftImg8bit.png")
        file = next((tmp_path / "gtFine/train").rglob("*.png")).parent / "aachen_000000_000020_gtFine_labelIds.png"
    else:
        file.unlink()
    with pytest.raises(MissingInput) as caught:
        open_dataset(f"{kind}:{tmp_path}")
    assert "1 of their" in str(caught.value)
    assert file.name in str(caught.value)
    assert "get " in str(caught.value)


def test_a_set_without_any_labels_is_half_unpacked_too(tmp_path: Path) -> None:
    write_cityscapes(tmp_path)
    shutil.rmtree(tmp_path / "gtFine/val")
    with pytest.raises(MissingInput, match="half unpacked"):
        open_dataset(tmp_path, "val")


@pytest.mark.parametrize("kind", WRITERS)
def test_readers_can_be_sent_to_worker_processes_and_fingerprinted(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    data = open_dataset(f"{kind}:{tmp_path}")
    twin = pickle.loads(pickle.dumps(data))
    assert np.array_equal(twin[0].labels["semantic"], data[0].labels["semantic"])
    assert twin.fingerprint == data.fingerprint


def test_damaged_mat_files_are_named(tmp_path: Path) -> None:
    base = write_sbd(tmp_path, {"train": ["a"], "val": ["b"]}, some(1, 21))
    file = base / "cls/a.mat"
    whole = file.read_bytes()
    for content in (b"", b"junk" * 99, whole[: len(whole) // 2], whole[:200] + b"\0" * 60 + whole[260:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.mat"):
            _ = open_dataset(f"sbd:{tmp_path}")[0]
    mat(file, GTinst={"Segmentation": some(1, 21)})
    with pytest.raises(DataError, match=r"GTcls\.Segmentation"):
        _ = open_dataset(f"sbd:{tmp_path}")[0]
    mat(file, GTcls={"Segmentation": np.full(SIZE, 77, np.uint8)})
    with pytest.raises(FullyconvError, match="77"):
        _ = open_dataset(f"sbd:{tmp_path}")[0]


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sbd(tmp_path, {"train": ["a"], "val": ["b"]}, some(1, 21))
    monkeypatch.setitem(__import__("sys").modules, "scipy", None)
    with pytest.raises(MissingExtra, match=r"fullyconv\[mat\]"):
        _ = open_dataset(f"sbd:{tmp_path}")[0]


# ---- real samples ----------------------------------------------------------------------------------------------


@real
def test_real_voc_images_are_read() -> None:
    data = open_dataset(f"{SHARED}/data/voc", "val")
    assert (data.kind, len(data)) == ("voc", 100)
    seen = np.unique(np.concatenate([np.unique(data[i].labels["semantic"]) for i in range(0, 100, 7)]))
    assert set(seen) <= {*range(21), 255}
    assert 0 in seen


@real
def test_real_context_copies_are_read_by_their_colours() -> None:
    data = open_dataset(f"context:{SHARED}/data/pascal_context_samples/context")
    assert len(data) == 4
    names = {data.taxonomy.names[k] for sample in data for k in np.unique(sample.labels["semantic"])}
    assert {"bird", "grass", "sky", "dog"} & names


@real
def test_real_nyud_frames_in_guptas_layout_are_read(tmp_path: Path) -> None:
    source = Path(SHARED or "") / "data/nyud_samples"
    for n, name in ((5434, "000433"), (5465, "000464")):
        label = np.asarray(Image.open(source / f"labels40/{name}.png"))
        mat(tmp_path / f"segmentation/img_{n}.mat", segmentation=np.where(label == 255, 0, label.astype(int) + 1))
        for folder in ("images", "depth"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"data/images/img_{n}.png").write_bytes((source / f"images/{name}.png").read_bytes())
        depth = np.asarray(Image.open(source / f"depth_u16/{name}.png")).astype(float) / 5
        Image.fromarray(depth.astype(np.uint16)).save(tmp_path / f"data/depth/img_{n}.png")
    lines(tmp_path / "train.txt", "5434", "5465")
    data = open_dataset(f"nyud:{tmp_path}", inputs=("rgb", "hha"))
    sample = data[0]
    assert sample.image.shape == (480, 640, 6)
    assert np.array_equal(sample.labels["semantic"], np.asarray(Image.open(source / "labels40/000433.png")))
    angle = sample.image[..., 5][sample.labels["semantic"] == 1].astype(int) - 38  # the floor's normals point down
    assert np.median(angle) < 15
