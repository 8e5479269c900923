"""Scenes as data sets: labels lie where the map has them, val is ground that train never comes near."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rasters import UTM, ground, save

from fullyconv.cli import main
from fullyconv.data import open_dataset
from fullyconv.errors import DataError, UnknownName, UsageError
from fullyconv.rasters.cutting import cut_scenes
from fullyconv.rasters.gdal import open_source
from fullyconv.rasters.ground_truth import open_truth
from fullyconv.rasters.ground_windows import CutOptions, pixel_metres
from fullyconv.rasters.scene_set import find_scenes
from fullyconv.rasters.thinning import thinned
from fullyconv.rasters.windows import Window

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
pyogrio = pytest.importorskip("pyogrio", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely", reason="the extra geo is not installed")
from affine import Affine  # noqa: E402
from rasterio import features  # noqa: E402
from rasterio.transform import from_origin  # noqa: E402
from rasterio.warp import transform  # noqa: E402

SMALL = CutOptions(size=32, margin=8)


def classes_of(image: np.ndarray) -> np.ndarray:
    """A label for every pixel that its colour alone decides: whatever lands elsewhere is seen."""
    return (image[..., 0].astype(int) // 64).astype(np.uint8)


def scene_and_labels(
    root: Path, name: str = "a", at: tuple[int, int] = (0, 0), seed: int = 0, **options: Any
) -> np.ndarray:
    image = ground(160, 192, seed=seed)
    save(root / "images" / f"{name}.tif", image, at, **options)
    save(root / "labels" / f"{name}.tif", classes_of(image)[..., None], at)
    return image


def written(out: Path) -> dict[str, list[tuple[np.ndarray, np.ndarray, Any]]]:
    """{split: (image, label, transform) of each window}, as the reader of folders reads them."""
    found = {}
    for split in ("train", "val"):
        data = open_dataset(f"folder:{out}", split)
        found[split] = []
        for record, sample in zip(data.records, data, strict=True):
            with rasterio.open(next(iter(record.inputs.values()))) as file:
                found[split].append((sample.image, sample.labels["semantic"], file.transform))
    return found


def boxes(pieces: list[tuple[np.ndarray, np.ndarray, Any]]) -> np.ndarray:
    return np.array([rasterio.transform.array_bounds(*i.shape[:2], t) for i, _, t in pieces])


@pytest.fixture
def made(tmp_path: Path) -> Path:
    for folder in ("images", "labels"):
        (tmp_path / "scenes" / folder).mkdir(parents=True)
    return tmp_path / "scenes"


def test_every_window_has_the_labels_of_its_ground_and_lies_where_the_scene_has_it(made: Path, tmp_path: Path) -> None:
    image = scene_and_labels(made)
    cut = cut_scenes(made, tmp_path / "out", SMALL)
    found = written(tmp_path / "out")
    assert {s: len(p) for s, p in found.items()} == cut.windows
    with rasterio.open(made / "images" / "a.tif") as file:
        whole = file.transform
    for pixels, labels, place in found["train"] + found["val"]:
        assert np.array_equal(labels, classes_of(pixels))
        column, row = (round(v) for v in ~whole @ (place.c, place.f))
        assert np.array_equal(image[row : row + pixels.shape[0], column : column + pixels.shape[1]], pixels)


def test_no_window_of_train_comes_nearer_to_val_than_the_margin_even_where_scenes_overlap(
    made: Path, tmp_path: Path
) -> None:
    scene_and_labels(made, "a")
    scene_and_labels(made, "b", at=(37, 51), seed=1)
    for seed in range(2):
        out = tmp_path / f"out{seed}"
        cut_scenes(made, out, CutOptions(size=32, margin=8, seed=seed))
        found = written(out)
        train, val = boxes(found["train"]), boxes(found["val"])
        with rasterio.open(made / "images" / "a.tif") as file:
            pixel = file.transform.a
        gaps = [
            max(v[0] - t[2], t[0] - v[2], v[1] - t[3], t[1] - v[3]) for t in train for v in val
        ]  # map units between two boxes, along the axis that parts them most
        assert min(gaps) >= 8 * pixel - 1e-6


def test_without_a_margin_the_windows_cover_all_of_the_scene_once(made: Path, tmp_path: Path) -> None:
    image = scene_and_labels(made)
    cut = cut_scenes(made, tmp_path / "out", CutOptions(size=48, margin=0))
    assert sum(i.shape[0] * i.shape[1] for part in written(tmp_path / "out").values() for i, _, _ in part) == (
        image.shape[0] * image.shape[1]
    )
    assert 0 < cut.windows["val"] < cut.windows["train"]


def test_the_same_seed_gives_the_same_files_and_another_holds_out_other_ground(made: Path, tmp_path: Path) -> None:
    scene_and_labels(made)
    names = []
    for i, seed in enumerate((0, 0, 1)):
        cut_scenes(made, tmp_path / str(i), CutOptions(size=32, margin=0, seed=seed))
        names.append(sorted(f.name for f in (tmp_path / str(i) / "val" / "images").iterdir()))
    assert names[0] == names[1]
    assert names[2] != names[0]


def test_labels_of_another_resolution_and_projection_are_warped_by_nearest_neighbour(
    made: Path, tmp_path: Path
) -> None:
    """The scene's centre pixels get what a point query at their place in the label raster gives."""
    image = ground(96, 96)
    scene = save(made / "images" / "a.tif", image, (0, 0))
    with rasterio.open(scene) as file:
        place, crs = file.transform, file.crs
    west, north = transform(crs, "EPSG:4326", [place.c - 100], [place.f + 100])
    degrees = 0.00005
    labels = np.random.default_rng(0).integers(0, 3, (400, 400)).astype(np.uint8)
    labels = np.kron(labels[:80, :80], np.ones((5, 5), np.uint8))
    own = from_origin(west[0], north[0], degrees, degrees)
    target = made / "labels" / "a.tif"
    with rasterio.open(
        target, "w", driver="GTiff", height=400, width=400, count=1, dtype="uint8", crs="EPSG:4326", transform=own
    ) as file:
        file.write(labels, 1)
    profile = open_source(scene).profile
    truth = open_truth(target)
    assert truth.warped(profile)
    read = truth.read(profile, Window(10, 20, 60, 70))
    rows, columns = np.mgrid[10:60, 20:70]
    x, y = place @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
    lon, lat = (np.array(v) for v in transform(crs, "EPSG:4326", x, y))
    column, row = ~own @ (lon, lat)
    asked = labels[np.floor(row).astype(int), np.floor(column).astype(int)].reshape(50, 50)
    assert (read == asked).mean() > 0.99  # GDAL's warp is off by up to an eighth of a pixel
    cut = cut_scenes(made, tmp_path / "out", SMALL)
    assert any("warped" in n for n in cut.notes)


def polygons(path: Path, shapes: list[Any], crs: str = UTM, **fields: list[Any]) -> Path:
    driver = "GPKG" if path.suffix == ".gpkg" else "GeoJSON"
    columns = [np.array(v, object) if isinstance(v[0], str | None) else np.array(v) for v in fields.values()]
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(shapes, object)),
        columns,
        list(fields),
        geometry_type="Polygon",
        crs=crs,
        driver=driver,
    )
    return path


def boxed(scene: Path, top: int, left: int, bottom: int, right: int) -> Any:
    """Those pixels of a scene as a polygon of its map."""
    with rasterio.open(scene) as file:
        corners = [file.transform @ (x, y) for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))]
    return shapely.Polygon(corners)


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_polygons_are_burnt_in_by_the_class_their_field_names_whatever_map_they_lie_on(
    made: Path, tmp_path: Path, kind: str
) -> None:
    scene = save(made / "images" / "a.tif", ground(96, 96), (0, 0))
    shapes = [boxed(scene, 10, 20, 50, 60), boxed(scene, 40, 40, 80, 90)]
    crs = UTM
    if kind == "geojson":  # always in degrees
        crs = "EPSG:4326"
        shapes = [
            shapely.transform(s, lambda xy: np.stack(transform(UTM, "EPSG:4326", xy[:, 0], xy[:, 1]), 1))
            for s in shapes
        ]
    path = polygons(made / "labels" / f"a.{kind}", shapes, crs, **{"class": ["roof", "äcker"], "height": [1.5, 2.0]})
    truth = open_truth(path)
    assert truth.names == ("background", "roof", "äcker")
    expected = np.zeros((96, 96), int)
    expected[10:50, 20:60] = 1
    expected[40:80, 40:90] = 2  # the later one wins
    assert np.array_equal(truth.read(open_source(scene).profile, Window(0, 0, 96, 96)), expected)
    assert np.array_equal(
        open_truth(path, outside="ignore").read(open_source(scene).profile, Window(0, 0, 96, 96)), expected - 1
    )
    cut = cut_scenes(made, tmp_path / "out", CutOptions(size=32, margin=0))
    data = open_dataset(f"folder:{tmp_path / 'out'}", "all")
    assert data.taxonomy.names == ("background", "roof", "äcker")
    assert sum((s.labels["semantic"] == 2).sum() for s in data) == (expected == 2).sum()
    assert any("last polygon" in n for n in cut.notes)


def test_the_area_of_each_class_is_that_of_the_map(made: Path, tmp_path: Path) -> None:
    scene = save(made / "images" / "a.tif", ground(96, 96), (0, 0))
    polygons(made / "labels" / "a.gpkg", [boxed(scene, 0, 0, 50, 96)], label=["wood"])
    with rasterio.open(scene) as file:
        metres = file.transform.a
    cut = cut_scenes(made, tmp_path / "out", CutOptions(size=32, margin=0))
    wood = sum(areas.get("wood", 0) for areas in cut.hectares.values())
    assert wood == pytest.approx(50 * 96 * metres * metres / 10_000)
    assert cut.resolution == pytest.approx((metres, metres))


def test_a_pixel_of_a_map_of_degrees_is_measured_at_its_latitude(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=10, width=10, count=1, dtype="uint8", crs="EPSG:4326",
        transform=from_origin(10, 60, 0.001, 0.001),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 10, 10), np.uint8))
    height, width = pixel_metres(open_source(path).profile, Window(0, 0, 10, 10)) or (0, 0)
    assert height == pytest.approx(111.3, rel=0.01)
    assert width == pytest.approx(55.7, rel=0.01)


def test_pixels_without_data_are_ignored_and_windows_of_little_else_left_out(made: Path, tmp_path: Path) -> None:
    image = ground(128, 128)
    image[:, :70] = 0
    save(made / "images" / "a.tif", image, (0, 0), nodata=0)
    save(made / "labels" / "a.tif", classes_of(image)[..., None], (0, 0))
    cut = cut_scenes(made, tmp_path / "out", CutOptions(size=32, margin=0))
    assert sum(cut.windows.values()) == 8  # of 16: the columns from 64 on
    assert any(n.startswith("8 windows") for n in cut.notes)
    for pixels, labels, place in (p for part in written(tmp_path / "out").values() for p in part):
        column = round((~rasterio.open(made / "images" / "a.tif").transform @ (place.c, place.f))[0])
        assert np.array_equal(labels == 255, np.broadcast_to(np.arange(column, column + 32) < 70, (32, 32)))
        assert pixels.shape == (32, 32, 3)


def test_scenes_without_a_map_are_cut_where_their_labels_have_their_size(made: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        image = ground(96, 96, seed=ord(name))
        save(made / "images" / f"{name}.tif", image, None)
        save(made / "labels" / f"{name}.tif", classes_of(image)[..., None], None)
    cut = cut_scenes(made, tmp_path / "out", SMALL)
    assert not cut.hectares
    assert all(np.array_equal(labels, classes_of(i)) for p in written(tmp_path / "out").values() for i, labels, _ in p)
    save(made / "labels" / "b.tif", np.zeros((90, 96, 1), np.uint8), None)
    with pytest.raises(DataError, match="90 x 96 and its scene 96 x 96"):
        cut_scenes(made, tmp_path / "other", SMALL)


def test_labels_that_lie_elsewhere_or_cover_little_are_said_before_anything_is_written(
    made: Path, tmp_path: Path
) -> None:
    image = scene_and_labels(made)
    save(made / "labels" / "a.tif", classes_of(image)[..., None], (5000, 5000))
    with pytest.raises(DataError, match=r"cover 0\.0 % of .*wrong projection"):
        cut_scenes(made, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()
    save(made / "labels" / "a.tif", classes_of(image)[..., None], (40, 0))
    cut = cut_scenes(made, tmp_path / "out", SMALL)
    assert any("cover 75 % of it" in n for n in cut.notes)
    for pixels, labels, _ in (p for part in written(tmp_path / "out").values() for p in part):
        assert (labels == 255).any() or pixels.shape == (32, 32, 3)


def test_a_scene_whose_bands_are_unlike_the_others_is_named(made: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("a", "b", "c", "odd")):
        image = ground(96, 96, dtype=np.uint16, seed=i)
        save(made / "images" / f"{name}.tif", image * (200 if name == "odd" else 1), (100 * i, 0))
        save(made / "labels" / f"{name}.tif", np.zeros((96, 96, 1), np.uint8), (100 * i, 0))
    notes = cut_scenes(made, tmp_path / "out", SMALL).notes
    assert [n for n in notes if "far from the other" in n] == [
        n for n in notes if n.startswith("odd.tif: band 1, 2, 3")
    ]
    assert any(n.startswith("odd.tif") for n in notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size = 8"),
        ({"val": 1.0}, r"val = 1\.0"),
        ({"margin": -1}, "margin = -1"),
        ({"least": 2}, "least = 2"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CutOptions(**options)


def test_what_the_folders_lack_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scene"):
        find_scenes(made)
    image = scene_and_labels(made)
    save(made / "images" / "b.tif", image, (0, 0))
    with pytest.raises(DataError, match=r"1 of 2 scenes have no labels.*b\.tif"):
        find_scenes(made)
    (made / "images" / "b.tif").unlink()
    polygons(made / "labels" / "a.gpkg", [shapely.box(0, 0, 1, 1)], label=["x"])
    with pytest.raises(DataError, match="labels of one scene"):
        find_scenes(made)
    with pytest.raises(DataError, match=r"no labels/ beside"):
        find_scenes(tmp_path)
    assert find_scenes(made / "images", made / "labels" / "a.tif") == [
        (made / "images" / "a.tif", made / "labels" / "a.tif")
    ]


def test_polygons_that_do_not_say_their_class_are_refused(made: Path) -> None:
    shapes = [shapely.box(0, 0, 1, 1), shapely.box(1, 1, 2, 2)]
    path = polygons(made / "labels" / "a.gpkg", shapes, kind=["x", "y"], height=[1.0, 2.0])
    with pytest.raises(DataError, match=r"which field is the class \(kind, height\)"):
        open_truth(path)
    with pytest.raises(UnknownName, match="kind"):
        open_truth(path, "kinds")
    assert open_truth(path, "kind").names == ("background", "x", "y")
    assert open_truth(path, "height").names == ("background", "1.0", "2.0")
    (made / "labels" / "b.gpkg").write_bytes(b"no database")
    with pytest.raises(DataError, match="is no gpkg file"):
        open_truth(made / "labels" / "b.gpkg")
    (made / "labels" / "c.geojson").write_text("{]")
    with pytest.raises(DataError, match="cannot be read"):
        open_truth(made / "labels" / "c.geojson")


def test_features_without_a_class_are_counted(made: Path) -> None:
    path = polygons(made / "labels" / "a.gpkg", [shapely.box(0, 0, 1, 1)] * 3, label=["x", None, "x"])
    assert any(n.startswith("a.gpkg: 1 features") for n in open_truth(path).notes)


def test_ground_that_is_one_window_cannot_be_divided(made: Path, tmp_path: Path) -> None:
    scene_and_labels(made)
    save(made / "labels" / "a.tif", np.zeros((160, 192, 1), np.uint8), (0, 0), nodata=0)
    with pytest.raises(DataError, match=r"No window is measured and labelled on 100 %"):
        cut_scenes(made, tmp_path / "out", CutOptions(least=1.0))
    scene_and_labels(made)
    with pytest.raises(DataError, match="nothing can be held out"):
        cut_scenes(made, tmp_path / "out", CutOptions(size=512))
    assert cut_scenes(made, tmp_path / "out", CutOptions(size=512, val=0)).windows == {"train": 1}


def test_the_command_cuts_and_what_it_wrote_is_sound(made: Path, tmp_path: Path, capsys: Any) -> None:
    scene_and_labels(made)
    (made / "classes.txt").write_text("water\nfield\nwood\ntown\n")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as done:
        main(["data", "cut", str(made), "-o", str(out), "--size", "32", "--margin", "4", "--json", "--quiet"])
    assert done.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["hectares"]["train"]) <= {"water", "field", "wood", "town"}
    assert open_dataset(f"folder:{out}", "val").taxonomy.names == ("water", "field", "wood", "town")
    with pytest.raises(SystemExit) as done:
        main(["check", str(out)])
    assert done.value.code == 0, capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["data", "cut", str(made), "-o", str(out)])
    assert done.value.code == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(6))
def test_a_polygon_thinned_to_a_window_burns_the_same_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    walk = rng.normal(0, 12, (3000, 2)).cumsum(0) % 400 - 100 if seed % 2 else rng.uniform(-100, 300, (3000, 2))
    rings = [shapely.linearrings(part) for part in np.split(walk, 6)]  # they cross themselves and each other
    shape = shapely.multipolygons([shapely.polygons(rings[0], rings[1:3]), shapely.polygons(rings[3], rings[4:])])
    for left, top in ((0, 0), (60, 100), (150, 20)):
        place = Affine(1, 0, left, 0, 1, top)
        whole = features.rasterize([(shape, 1)], (50, 70), transform=place)
        part = thinned(shape, (left - 2, top - 2, left + 72, top + 52))
        np.testing.assert_array_equal(features.rasterize([(part, 1)], (50, 70), transform=place), whole)
        assert 0 < whole.sum() < whole.size


def test_what_lies_on_one_side_of_a_window_is_nothing_to_it_and_long_outlines_become_short() -> None:
    turn = np.linspace(0, 2 * np.pi, 100_001)
    circle = shapely.polygons(np.stack([100 + 90 * np.cos(turn), 100 + 90 * np.sin(turn)], 1))
    assert thinned(circle, (0, 0, 20, 20)) is not None
    assert thinned(circle, (0, 300, 20, 320)) is None
    assert shapely.get_num_coordinates(thinned(circle, (95, 185, 105, 195))) < 4000
