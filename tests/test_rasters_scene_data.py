"""Scenes as data without a copy: their windows are those that `data cut` writes, and val is ground that is not seen."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rasters import UTM, ground, save

from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.data.base import Dataset
from fullyconv.data.splits import divide
from fullyconv.doctor import check
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.evaluation.choice import _unseen
from fullyconv.rasters.cutting import cut_scenes
from fullyconv.rasters.ground_windows import CutOptions
from fullyconv.rasters.scene_data import recognise
from fullyconv.rasters.scene_set import find_scenes

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
pyogrio = pytest.importorskip("pyogrio", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely", reason="the extra geo is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SMALL = {"size": 32, "margin": 8}


def scene(root: Path, name: str = "a", image: Any = None, at: tuple[int, int] = (0, 0), **options: Any) -> np.ndarray:
    image = ground(96, 130) if image is None else image
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    save(root / "images" / f"{name}.tif", image, at, **options)
    known = np.nan_to_num(image[..., :1].astype(float))
    save(root / "labels" / f"{name}.tif", (known // 64 % 4).astype(np.uint8), at)
    return image


def polygons(path: Path, west: float = 400000, north: float = 5e6) -> Path:
    boxes = ((west, north - 500, west + 700, north), (west + 300, north - 900, west + 900, north))
    shapes = [shapely.box(*b) for b in boxes]
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(shapes, object)), [np.array(["field", "wood"], object)], ["class"],
        geometry_type="Polygon", crs=UTM, driver="GPKG" if path.suffix == ".gpkg" else "GeoJSON",
    )  # fmt: skip
    return path


def same(one: Any, two: Any) -> bool:
    return (one is None and two is None) or (one.dtype == two.dtype and np.array_equal(one, two, equal_nan=True))


def samples(data: Dataset) -> dict[str, Any]:
    return {s.name: s for s in data}


def _holes(image: np.ndarray, value: float) -> np.ndarray:
    image = image.copy()
    image[20:50, 40:70] = value
    return image


IMAGES = {
    "colour": (ground(96, 130), {}),
    "grey": (ground(96, 130, 1), {}),
    "deep grey": (ground(96, 130, 1, np.uint16) * 250, {}),
    "deep bands": (ground(96, 130, 4, np.uint16), {"photometric": "MINISBLACK"}),
    "heights": (_holes(ground(96, 130, 1, np.float32), np.nan), {}),
    "signed": (_holes(ground(96, 130, 2, np.int16), -9999), {"nodata": -9999, "photometric": "MINISBLACK"}),
    "nodata": (_holes(ground(96, 130), 0), {"nodata": 0}),
}


@pytest.mark.parametrize("what", [*IMAGES, "mask", "palette", "polygons", "table", "two scenes"])
def test_windows_are_those_that_are_cut_to_the_disk_bit_for_bit(tmp_path: Path, what: str) -> None:
    root = tmp_path / "scenes"
    image, options = IMAGES.get(what, IMAGES["colour"])
    scene(root, image=image, **options)
    if what == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(root / "images/a.tif", "r+") as file:
            file.write_mask(~(_holes(image, 0) == 0).all(-1))
    if what == "palette":
        with rasterio.open(root / "images/a.tif") as file:
            place = {"crs": file.crs, "transform": file.transform}
        with rasterio.open(
            root / "images/a.tif", "w", driver="GTiff", height=96, width=130, count=1, dtype="uint8", **place
        ) as file:
            file.write(image[..., 0] // 64, 1)
            file.write_colormap(1, {k: (60 * k, 255 - 50 * k, 9 * k, 255) for k in range(4)})
    if what == "polygons":
        (root / "labels/a.tif").unlink()
        polygons(root / "labels/a.gpkg")
    if what == "table":
        (root / "classes.txt").write_text("water = 0\nwood = 2\ntown = 3\nfield = 1\n")
    if what == "two scenes":
        scene(root, "b", ground(96, 130, seed=1), at=(37, 51))
    cut_scenes(root, tmp_path / "cut", CutOptions(**SMALL))
    for split in ("train", "val"):
        direct = open_dataset(f"scenes:{root}", split, **SMALL)
        cut = open_dataset(f"folder:{tmp_path / 'cut'}", split)
        assert (direct.inputs, direct.taxonomy) == (cut.inputs, cut.taxonomy)
        ours, theirs = samples(direct), samples(cut)
        assert ours.keys() == theirs.keys()
        assert len(ours) > 1
        for name, one in ours.items():
            two = theirs[name]
            assert same(one.image, two.image), name
            assert same(one.labels["semantic"], two.labels["semantic"]), name
            assert same(one.invalid, two.invalid), name
    if what in ("heights", "signed", "nodata", "mask"):
        assert any(s.invalid is not None for s in open_dataset(f"scenes:{root}", "all", **SMALL))


def test_threads_forks_and_copies_read_the_same_windows(tmp_path: Path) -> None:
    """GDAL's handles serve one thread of one process; the functions of the data set open their own."""
    scene(tmp_path, image=IMAGES["nodata"][0], nodata=0)
    data = open_dataset(f"scenes:{tmp_path}", "all", **SMALL)
    expected = [s.image for s in data]
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(data)), 4))
    with ThreadPoolExecutor(4) as pool:
        assert all(same(a, expected[i]) for i, a in zip(order, pool.map(data.image, order), strict=True))
    copied = pickle.loads(pickle.dumps(replace(data, read_labels=data.read_labels)))
    assert all(same(copied.image(i), image) for i, image in enumerate(expected))
    from multiprocessing import get_context

    with get_context("fork").Pool(2) as forked:
        assert all(same(a, b) for a, b in zip(forked.map(data.image, range(len(data))), expected, strict=True))


def test_a_bare_path_is_scenes_where_plain_images_would_not_do(tmp_path: Path) -> None:
    scene(tmp_path / "chips")
    assert not recognise(tmp_path / "chips")  # label rasters of the images' own grid: a folder, as ever
    assert open_dataset(tmp_path / "chips").kind == "folder"
    other = tmp_path / "coarse"
    scene(other)
    save(other / "labels/a.tif", np.zeros((48, 65, 1), np.uint8), (0, 0))
    assert recognise(other)
    for kind in ("gpkg", "geojson"):
        (tmp_path / kind).mkdir()
        save(tmp_path / kind / "a.tif", ground(96, 130), (0, 0))
        assert not recognise(tmp_path / kind)
        polygons(tmp_path / kind / f"truth.{kind}") if kind == "gpkg" else polygons(tmp_path / kind / f"a.{kind}")
        data = open_dataset(tmp_path / kind, size=32, margin=0) if kind == "gpkg" else open_dataset(
            f"scenes:{tmp_path / kind}", size=32, margin=0
        )  # fmt: skip
        assert (data.kind, data.taxonomy.names) == ("scenes", ("background", "field", "wood"))
        one = open_dataset(f"scenes,size=32,margin=0:{tmp_path / kind / 'a.tif'}")
        assert len(one) == len(data)
    assert not recognise(tmp_path / "gpkg" / "truth.gpkg")
    elsewhere = f"scenes,size=32,margin=0,labels={tmp_path / 'gpkg' / 'truth.gpkg'}:{tmp_path / 'chips' / 'images'}"
    assert open_dataset(elsewhere).taxonomy.names == ("background", "field", "wood")


def test_the_ground_that_is_held_out_shares_no_pixel_with_what_is_learned(tmp_path: Path) -> None:
    image = scene(tmp_path, image=ground(192, 224))
    for seed in range(3):
        seen = np.zeros((2, *image.shape[:2]), bool)
        for i, split in enumerate(("train", "val")):
            for record in open_dataset(f"scenes:{tmp_path}", split, seed=seed, **SMALL).records:
                top, left, bottom, right = record.window or (0, 0, 0, 0)
                seen[i, top:bottom, left:right] = True
        assert seen.any((1, 2)).all()
        assert not (seen[0] & seen[1]).any()
    groups = [{r.group for r in open_dataset(f"scenes:{tmp_path}", s, **SMALL).records} for s in ("train", "val")]
    assert not groups[0] & groups[1]
    whole = open_dataset(f"scenes:{tmp_path}", val=0, **SMALL)
    assert len({r.group for r in whole.records}) > 4  # for folds
    with pytest.raises(UnknownName, match="test"):
        open_dataset(f"scenes:{tmp_path}", "test", **SMALL)


@pytest.mark.slow
def test_scenes_are_learned_from_and_measured_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    """Two steps; what is measured is the val that the same options give, in hectares."""
    root, run = tmp_path / "scenes", tmp_path / "run"
    scene(root, image=np.where(ground(192, 224, 4, np.float32) == 7, np.nan, ground(192, 224, 4, np.float32)))
    spec = f"scenes,size=64,margin=0:{root}"
    settings = ["model=fcn16s-squeezenet1_0", "weights=", "steps=2", "batch_size=2"]
    with pytest.raises(SystemExit) as done:
        main(["train", spec, "-o", str(run), "--quiet", *(x for s in settings for x in ("--set", s))])
    assert done.value.code == 0, capsys.readouterr()
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(run), spec, "--quiet", "--json"])
    assert done.value.code == 0, capsys.readouterr()
    told = json.loads(capsys.readouterr().out)
    val = open_dataset(spec, "val")
    assert told["images"] == len(val)
    labelled = sum(int((s.labels["semantic"] != 255).sum()) for s in val)
    assert sum(told["ground"]["hectares"]["semantic"]["truth"]) == pytest.approx(labelled / 100)
    with pytest.raises(SystemExit) as done:
        main(["evaluate", str(run), f"scenes,size=48,seed=1,margin=0:{root}"])
    told = capsys.readouterr().err
    assert "hold ground that the run learned from" in told or "learned from ground in each" in told


def test_a_val_of_other_options_is_measured_without_the_ground_that_was_learned(tmp_path: Path) -> None:
    scene(tmp_path)
    train, val = (open_dataset(f"scenes:{tmp_path}", s, **SMALL) for s in ("train", "val"))
    kept = divide(train, val)
    assert {kept.place(r) for r in val.records} == {"held-out"}
    assert {kept.place(r) for r in train.records} == {"learned"}
    assert _unseen(val, kept) is val
    other = open_dataset(f"scenes:{tmp_path}", "all", seed=1, size=16, margin=0)
    left = _unseen(other, kept)
    assert 0 < len(left) < len(other)
    learned = [r.window for r in train.records if r.window]
    for record in left.records:
        top, left_, bottom, right = record.window or (0, 0, 0, 0)
        assert not any(t < bottom and b > top and le < right and r > left_ for t, le, b, r in learned)
    assert "windows of val hold ground" in left.notes[-1]
    with pytest.raises(DataError, match="learned from ground in each"):
        _unseen(train, kept)


def test_the_check_names_what_is_wrong_with_scenes_by_scene_and_window(tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b", "c", "odd")):
        scale = 200 if name == "odd" else 1
        scene(tmp_path, name, ground(96, 96, dtype=np.uint16, seed=i) * scale, at=(100 * i, 0))
    save(tmp_path / "labels/b.tif", np.ones((96, 96, 1), np.uint8), (100 - 40, 0))
    save(tmp_path / "labels/c.tif", np.where(np.arange(96)[:, None, None] < 20, 1, 9).astype(np.uint8)
         .repeat(96, 1), (200, 0), nodata=9)  # fmt: skip
    found = check(f"scenes:{tmp_path}", size=32, margin=0)
    answer = {(f.kind, f.files[0].name) for f in found}
    assert ("scene-partly-labelled", "b.tif") in answer
    assert ("scene-hardly-labelled", "c.tif") in answer
    assert ("unlike-scene", "odd.tif") in answer
    assert not [f for f in found if f.level == "error"]
    save(tmp_path / "labels/b.tif", np.ones((96, 96, 1), np.uint8), (9000, 0))
    (wrong,) = check(f"scenes:{tmp_path}", size=32)
    assert (wrong.kind, wrong.level) == ("no-data", "error")
    assert "wrong projection" in wrong.message


def test_labels_that_lie_beside_their_ground_are_found(tmp_path: Path) -> None:
    blobs = np.kron(np.random.default_rng(0).integers(0, 4, (8, 8)), np.ones((40, 40), int))
    scene(tmp_path, image=np.repeat((blobs * 64)[..., None], 3, -1).astype(np.uint8))
    assert not [f for f in check(f"scenes:{tmp_path}", size=160, margin=0) if f.kind == "shifted-label"]
    save(tmp_path / "labels/a.tif", np.roll(blobs, 8, 1).astype(np.uint8)[..., None], (0, 0))
    found = [f for f in check(f"scenes:{tmp_path}", size=160, margin=0) if f.kind == "shifted-label"]
    assert found
    assert "a.tif, rows 0 to 160, columns" in found[0].message
    assert "0 rows and -8 columns" in found[0].message


def test_what_needs_files_of_their_own_refuses_windows_in_words(tmp_path: Path, capsys: Any) -> None:
    scene(tmp_path / "scenes")
    spec = f"scenes,size=32,margin=0:{tmp_path / 'scenes'}"
    convert = ["data", "convert", spec]
    for command in ([*convert, "-o"], [*convert, "--as", "coco", "-o"], ["check", spec, "--fix"]):
        with pytest.raises(SystemExit) as done:
            main([*command, str(tmp_path / "out")])
        assert done.value.code == 2
        assert "data cut" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="size = 8"):
        open_dataset(f"scenes,size=8:{tmp_path / 'scenes'}")
    with pytest.raises(DataError, match="no labels/"):
        find_scenes(tmp_path)
