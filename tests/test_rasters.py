"""Rasters by windows: labels are those of the whole, the map's facts stay, what is finished is not computed again."""

from __future__ import annotations

import hashlib
import json
import tempfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import Tiny

from fullyconv.errors import DataError, InternalError, TryAgain, UsageError
from fullyconv.files.outputs import Outputs
from fullyconv.images import declared_invalid
from fullyconv.predict import Predictor
from fullyconv.predict.raster_files import RasterOptions, claim_raster, label_raster
from fullyconv.rasters.assembling import RasterLayer, strips
from fullyconv.rasters.block_journal import MAGIC, BlockJournal
from fullyconv.rasters.gdal import open_source, read_by_windows
from fullyconv.rasters.windows import BlockGrid, RasterProfile, Window
from fullyconv.taxonomy import Taxonomy

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
from rasterio.transform import from_origin  # noqa: E402

UTM = "EPSG:32633"


class Small(Tiny):
    """`Tiny` with all that results need; `calls` counts windows that went through it or a copy of it."""

    calls = 0

    def __init__(self, classes: int = 3, seed: int = 0) -> None:
        super().__init__({"semantic": classes}, seed)
        self.taxonomies = {"semantic": Taxonomy.numbered(classes)}

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def coarse(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        Small.calls += 1
        return super().coarse(x)


class Blended(Small):
    """The same, said to have unbounded context."""

    def geometry(self, height: int, width: int) -> Any:
        from dataclasses import replace

        return replace(super().geometry(height, width), halo=float("inf"))


def ground(height: int = 120, width: int = 150, bands: int = 3, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Smooth patches, none of them 0."""
    coarse = np.random.default_rng(seed).integers(1, 256, (-(-height // 10), -(-width // 10), bands))
    return np.kron(coarse, np.ones((10, 10, 1), int))[:height, :width].astype(dtype)


def save(path: Path, image: np.ndarray, at: tuple[int, int] | None = (0, 0), **options: Any) -> Path:
    """A GeoTIFF whose first pixel is pixel `at` (row, column) of the map's own; None: without a place."""
    place = {} if at is None else {"crs": UTM, "transform": from_origin(400000 + 10 * at[1], 5e6 - 10 * at[0], 10, 10)}
    h, w, bands = image.shape
    tags = options.pop("tags", {})
    with rasterio.open(
        path, "w", driver="GTiff", height=h, width=w, count=bands, dtype=image.dtype.name, **place, **options
    ) as out:
        out.write(np.moveaxis(image, -1, 0))
        out.update_tags(**tags)
    return path


def label(
    source: Path, out: Path, model: Any = None, tile: int | None = 40, name: str = "scene", **options: Any
) -> dict[str, Path]:
    """{what: file} of one raster under `Small`."""
    ready = Predictor(model or Small(), tile=tile)
    chosen = RasterOptions(**{"overlay": False, "confidence": False, "probabilities": False, "quiet": True, **options})
    plan = Outputs(out, [source])
    return dict(label_raster(ready, source, plan, claim_raster(plan, list(ready.heads), name, chosen), chosen))


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as data:
        return np.moveaxis(data.read(), 0, -1) if data.count > 1 else data.read(1)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Labels


@pytest.mark.parametrize("tile", [8, 40, 400])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_blocks_give_the_labels_confidence_and_probabilities_of_the_whole(tmp_path: Path, tile: int) -> None:
    image = ground(61, 87)
    source = save(tmp_path / "a.tif", image, None)
    found = label(source, tmp_path / "out", tile=tile, confidence=True, probabilities=True)
    labels, confidence = Predictor(Small()).confident_labels(image)["semantic"]
    np.testing.assert_array_equal(read(found["labels"]), labels)
    np.testing.assert_allclose(read(found["confidence"]), confidence * 255, atol=0.51)
    shares = torch.from_numpy(Predictor(Small()).scores(image)).softmax(0).numpy()
    np.testing.assert_allclose(np.moveaxis(read(found["probabilities"]), -1, 0), shares * 255, atol=0.51)


def test_cuts_of_one_scene_get_the_same_labels_where_they_overlap(tmp_path: Path) -> None:
    whole = ground(160, 200)
    found = {}
    for n, (top, left) in enumerate([(0, 0), (7, 13), (32, 64), (1, 3), (50, 61)]):
        source = save(tmp_path / f"{n}.tif", whole[top : top + 100, left : left + 120], (top, left))
        found[top, left] = read(label(source, tmp_path / f"out{n}")["labels"])
    edge = 12  # halo and interpolation
    for (t1, l1), a in found.items():
        for (t2, l2), b in found.items():
            top, left, bottom, right = max(t1, t2) + edge, max(l1, l2) + edge, min(t1, t2) + 88, min(l1, l2) + 108
            one, two = (
                a[top - t1 : bottom - t1, left - l1 : right - l1],
                b[top - t2 : bottom - t2, left - l2 : right - l2],
            )
            assert one.size > 500
            np.testing.assert_array_equal(one, two)


def test_a_grid_begins_at_the_maps_origin_whatever_is_left_over_of_a_pixel() -> None:
    for rest in (0, 1 / 4, 1 / 3, 1 / 2, 2 / 3 - 0.1):
        for pixel in (10.0, 0.3, 1e-4):
            origins = set()
            for n in range(500, 540):
                transform = (pixel, 0.0, (n + rest) * pixel, 0.0, -pixel, -(n + rest) * pixel)
                origin = RasterProfile((9, 9), 3, np.dtype(np.uint8), transform).origin
                origins.add((origin[0] - n, origin[1] - n))
            assert len(origins) == 1, (rest, pixel, origins)


def test_spans_cover_an_axis_once_on_one_grid() -> None:
    for origin in range(-9, 9):
        grid = BlockGrid((50, 33), 16, 4, 8, (origin, -origin))
        spans = grid.spans(0)
        assert [s.keep_from for s in spans] == [0, *(s.keep_to for s in spans[:-1])]
        assert spans[-1].keep_to == 50
        assert all((s.start + origin) % 4 == 0 for s in spans)
        assert all((s.keep_from + origin) % 16 == 0 for s in spans[1:])
        assert len(list(grid.blocks())) == len(grid)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_unbounded_context_is_blended_as_the_predictor_blends_it(tmp_path: Path) -> None:
    image = ground(90, 110)
    found = label(save(tmp_path / "a.tif", image, None), tmp_path / "out", Blended(), tile=32)
    np.testing.assert_array_equal(read(found["labels"]), Predictor(Blended(), tile=32)(image))


# What was not measured


@pytest.mark.parametrize("how", ["nodata", "mask", "alpha", "nan"])
def test_what_was_not_measured_is_nodata_and_the_mean_colour_to_its_neighbours(tmp_path: Path, how: str) -> None:
    image = ground(60, 70)
    hole = np.zeros((60, 70), bool)
    hole[20:31, 10:52] = True
    source = tmp_path / "a.tif"
    model = Small()
    if how == "nodata":
        stored = np.where(hole[..., None], 0, image).astype(np.uint8)
        save(source, stored, nodata=0)
    elif how == "mask":
        save(source, image)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as data:
            data.write_mask(~hole)
    elif how == "alpha":
        save(source, np.dstack([image, np.where(hole, 0, 255).astype(np.uint8)]), photometric="RGB", alpha="YES")
    else:
        stored = image.astype(np.float32)
        stored[hole] = np.nan
        save(source, stored)
        model.name = "fcn8s-resnet18"
        with pytest.raises(DataError, match="float32 numbers, whose range is not known"):
            label(source, tmp_path / "out", model)
        return
    labels = read(label(source, tmp_path / "out", model, confidence=True)["labels"])
    np.testing.assert_array_equal(labels == 255, hole)
    mean = model.preprocessing.mean_pixel()
    filled = np.where(hole[..., None], mean, image.astype(np.float32))
    np.testing.assert_array_equal(labels[~hole], Predictor(model)(filled)[~hole])
    assert (read(tmp_path / "out/confidence/scene.tif")[hole] == 0).all()


def test_pixels_of_a_raster_that_hold_no_data_are_counted_and_said(tmp_path: Path, capsys: Any) -> None:
    stored = ground(60, 70).astype(np.uint8).clip(1)
    save(tmp_path / "whole.tif", stored, nodata=0)
    label(tmp_path / "whole.tif", tmp_path / "a", quiet=False)
    assert "holds no data" not in capsys.readouterr().err
    stored[20:31, 10:52] = 0
    save(tmp_path / "holes.tif", stored, nodata=0)
    label(tmp_path / "holes.tif", tmp_path / "b", quiet=False)
    assert "holes.tif holds no data in 462 of 4,200 pixels" in capsys.readouterr().err


def test_a_block_without_a_measured_pixel_is_not_computed(tmp_path: Path) -> None:
    image = np.zeros((80, 80, 3), np.uint8)
    image[:20, :20] = 9
    before = Small.calls
    label(save(tmp_path / "a.tif", image, nodata=0), tmp_path / "out", tile=40)
    assert Small.calls == before + 1


# What a map needs


def test_the_place_the_tags_and_the_colours_are_kept(tmp_path: Path) -> None:
    source = save(tmp_path / "a.tif", ground(), (3, 5), tags={"TIFFTAG_DATETIME": "2024:05:01 10:00:00", "SENSOR": "x"})
    found = label(source, tmp_path / "out")
    with rasterio.open(source) as a, rasterio.open(found["labels"]) as b:
        assert (a.crs, a.transform, a.shape, a.tags()) == (b.crs, b.transform, b.shape, b.tags())
        assert (b.nodata, b.dtypes, b.compression.value) == (255, ("uint8",), "DEFLATE")
        assert b.colormap(1)[1][:3] == Taxonomy.numbered(3).palette[1]
        assert b.tags(1) == {"CLASS_NAMES": '["class 0", "class 1", "class 2"]'} or "CLASS_NAMES" in b.tags(1)


def test_a_cog_gives_a_cog_and_a_vrt_is_read(tmp_path: Path) -> None:
    import rasterio.shutil

    image = ground(600, 700)
    plain = save(tmp_path / "plain.tif", image)
    rasterio.shutil.copy(plain, tmp_path / "cog.tif", driver="COG")
    rasterio.shutil.copy(plain, tmp_path / "a.vrt", driver="VRT")
    labels = read(label(plain, tmp_path / "1", tile=256)["labels"])
    cog = label(tmp_path / "cog.tif", tmp_path / "2", tile=256)["labels"]
    with rasterio.open(cog) as data:
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert data.overviews(1)
    np.testing.assert_array_equal(read(cog), labels)
    np.testing.assert_array_equal(read(label(tmp_path / "a.vrt", tmp_path / "3", tile=256)["labels"]), labels)


@pytest.mark.parametrize("part", ["/vsicurl/https://example.org/a.tif", "https://example.org/a.tif", "/etc/passwd"])
def test_a_vrt_that_leads_elsewhere_is_refused(tmp_path: Path, part: str) -> None:
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{part}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    with pytest.raises(DataError, match=r"elsewhere|no TIFF"):
        open_source(tmp_path / "a.vrt")


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_windows_are_taken_for_what_lies_on_a_map_or_is_large(tmp_path: Path) -> None:
    assert read_by_windows(save(tmp_path / "a.tif", ground(20, 20))) == (True, True)
    assert read_by_windows(save(tmp_path / "b.tif", ground(20, 20), None)) == (False, True)
    big = {"height": 20_000, "width": 20_000, "count": 3, "dtype": "uint8", "sparse_ok": True, "tiled": True}
    rasterio.open(tmp_path / "c.tif", "w", driver="GTiff", **big).close()
    assert read_by_windows(tmp_path / "c.tif") == (True, False)
    (tmp_path / "d.png").write_bytes(b"")
    assert read_by_windows(tmp_path / "d.png") == (False, True)


@pytest.mark.parametrize(("bands", "dtype", "words"), [(5, np.uint8, "5 bands, the network takes 3"),
                                                       (3, np.int16, "range is not known")])  # fmt: skip
def test_bands_that_are_not_the_networks_are_refused_before_work(
    tmp_path: Path, bands: int, dtype: Any, words: str
) -> None:
    source = save(tmp_path / "a.tif", ground(20, 20, bands, dtype))
    with pytest.raises(DataError, match=words):
        label(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tif"))


def test_parts_that_were_never_written_hold_no_data_and_a_file_of_such_alone_is_refused(tmp_path: Path) -> None:
    """GDAL reads them as 0, which is black."""
    how = {"driver": "GTiff", "height": 96, "width": 128, "count": 3, "dtype": "uint8", "crs": UTM, "tiled": True,
           "blockxsize": 32, "blockysize": 32, "SPARSE_OK": True,
           "transform": from_origin(400000, 5e6, 10, 10)}  # fmt: skip
    image = ground(96, 128)
    with rasterio.open(tmp_path / "a.tif", "w", **how) as out:
        for top, left in ((0, 0), (32, 96), (64, 32)):
            window = rasterio.windows.Window(left, top, 32, 32)
            out.write(np.moveaxis(image[top : top + 32, left : left + 32], -1, 0), window=window)
    source = open_source(tmp_path / "a.tif")
    values, good = source.read(Window(10, 20, 80, 120))
    whole = np.zeros((96, 128), bool)
    whole[:32, :32] = whole[32:64, 96:] = whole[64:, 32:64] = True
    np.testing.assert_array_equal(good, whole[10:80, 20:120])
    np.testing.assert_array_equal(values[good], image[10:80, 20:120][good])
    np.testing.assert_array_equal(declared_invalid(tmp_path / "a.tif"), ~whole)
    labels = read(label(tmp_path / "a.tif", tmp_path / "out")["labels"])
    np.testing.assert_array_equal(labels == 255, ~whole)
    with rasterio.open(tmp_path / "b.tif", "w", **how):
        pass
    with rasterio.open(tmp_path / "b.tif", "r+") as out:
        out.build_overviews([2])
    with pytest.raises(DataError, match="holds overviews alone"):
        open_source(tmp_path / "b.tif")


def test_a_file_that_is_cut_off_is_one_sentence_and_leaves_no_result(tmp_path: Path) -> None:
    source = save(tmp_path / "a.tif", ground(200, 200))
    source.write_bytes(source.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"cannot be read .*damaged, cut off"):
        label(source, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tif"))


# Going on


def test_finished_blocks_are_not_computed_again_torn_ones_are_and_the_bytes_are_the_same(
    tmp_path: Path,
) -> None:
    source = save(tmp_path / "a.tif", ground(120, 160))
    before = Small.calls
    expected = digest(label(source, tmp_path / "straight", confidence=True)["labels"])
    blocks_in_all = Small.calls - before
    assert blocks_in_all == 12
    before = Small.calls

    class Killed(Small):
        def coarse(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            if Small.calls == before + 7:
                raise KeyboardInterrupt
            return super().coarse(x)

    with pytest.raises(KeyboardInterrupt):
        label(source, tmp_path / "out", Killed(), confidence=True)
    blocks = sorted(tmp_path.glob("out/.blocks/*/*.block"))
    assert 5 <= len(blocks) <= 7
    assert not list(tmp_path.glob("out/*.tif"))
    blocks[0].write_bytes(blocks[0].read_bytes()[:-1])
    blocks[1].write_bytes(blocks[2].read_bytes())  # a sound block in another's place
    before = Small.calls
    found = label(source, tmp_path / "out", confidence=True)
    assert Small.calls - before == blocks_in_all - (len(blocks) - 2)
    assert digest(found["labels"]) == expected
    assert not (tmp_path / "out/.blocks").exists()


def test_blocks_of_another_network_or_image_are_not_taken(tmp_path: Path) -> None:
    source = save(tmp_path / "a.tif", ground())
    keys = set()
    from fullyconv.predict.scene import SceneJob

    for n in range(3):
        raster = open_source(source)
        keys.add(SceneJob.plan(Predictor(Small(seed=min(n, 1))), raster, 40, False, False).key())
        raster.close()
        if n == 1:
            save(source, ground(seed=1))
    assert len(keys) == 3


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    with BlockJournal(tmp_path, "a", "k" * 64), pytest.raises(TryAgain), BlockJournal(tmp_path, "a", "k" * 64):
        pass


def test_a_repeated_command_replaces_its_own_results_alone(tmp_path: Path) -> None:
    source = save(tmp_path / "a.tif", ground(40, 40))
    first = digest(label(source, tmp_path / "out")["labels"])
    assert digest(label(source, tmp_path / "out")["labels"]) == first
    (tmp_path / "out/scene.tif").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not as an earlier run"):
        label(source, tmp_path / "out")


# Polygons


def drawn(path: Path) -> tuple[list[Any], dict[str, np.ndarray]]:
    shapely = pytest.importorskip("shapely")
    pyogrio = pytest.importorskip("pyogrio")
    if path.suffix == ".parquet" and "Parquet" not in pyogrio.list_drivers():  # GDAL reads it where it is built so
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        about = json.loads(table.schema.metadata[b"geo"])
        assert about["primary_column"] == "geometry"
        assert about["columns"]["geometry"]["crs"]["id"] == {"authority": "EPSG", "code": 32633}
        columns = {name: np.array(table[name].to_pylist()) for name in table.column_names if name != "geometry"}
        return shapely.from_wkb(table["geometry"].to_pylist()), columns
    meta, _, shapes, fields = pyogrio.raw.read(path)
    return shapely.from_wkb(shapes), dict(zip(meta["fields"], fields, strict=True))


@pytest.mark.parametrize("kind", ["gpkg", "geojson", "geoparquet"])
def test_polygons_fill_the_labels_exactly_and_are_the_same_from_one_block_and_from_many(
    tmp_path: Path, kind: str
) -> None:
    from rasterio.features import rasterize

    image = ground(90, 110)
    image[30:50, 20:60] = 0
    source = save(tmp_path / "a.tif", image, nodata=0)
    one = label(source, tmp_path / "one", tile=400, polygons=kind, confidence=True)
    many = label(source, tmp_path / "many", tile=12, polygons=kind, confidence=True)
    shapes, fields = drawn(one["polygons"])
    others, _ = drawn(many["polygons"])
    assert [s.wkt for s in shapes] == [s.wkt for s in others]
    labels, confidence = read(one["labels"]), read(one["confidence"])
    with rasterio.open(one["labels"]) as data:
        back = rasterize(
            zip(shapes, fields["class_id"], strict=True),
            labels.shape,
            fill=255,
            transform=data.transform,
            dtype="uint8",
        )
        np.testing.assert_array_equal(back, labels)
        first = rasterize([shapes[0]], labels.shape, transform=data.transform) == 1
    assert fields["area"].sum() == (labels != 255).sum() * 100 == pytest.approx(sum(s.area for s in shapes))
    assert fields["confidence"][0] == pytest.approx(confidence[first].mean() / 255)
    assert fields["class"][0] == Taxonomy.numbered(3).names[fields["class_id"][0]]


def test_simplified_polygons_have_neither_gaps_nor_overlaps(tmp_path: Path) -> None:
    shapely = pytest.importorskip("shapely")
    image = np.random.default_rng(0).integers(1, 256, (90, 110, 3)).astype(np.uint8)
    found = label(save(tmp_path / "a.tif", image), tmp_path / "out", polygons="gpkg", tolerance=30)
    shapes, _ = drawn(found["polygons"])
    assert shapely.coverage_is_valid(shapes)
    assert sum(s.area for s in shapes) == pytest.approx(90 * 110 * 100)
    exact, _ = drawn(label(tmp_path / "a.tif", tmp_path / "2", polygons="gpkg")["polygons"])
    assert shapely.coverage_is_valid(exact)
    assert shapely.get_num_coordinates(shapes).sum() < 0.9 * shapely.get_num_coordinates(exact).sum()


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    coarse=st.integers(1, 4),
    tolerance=st.floats(0, 200),
    least=st.sampled_from([0, 0, 150, 2000]),
)
def test_polygons_are_a_coverage_of_what_was_measured_whatever_the_labels(
    seed: int, size: tuple[int, int], coarse: int, tolerance: float, least: float
) -> None:
    """Simplified or not: no gap, no overlap, the areas' sum that of the pixels (of 100 square metres)."""
    from fullyconv.rasters.polygons import draw_polygons

    shapely = pytest.importorskip("shapely")
    patches = np.random.default_rng(seed).choice([0, 1, 2, 255], (-(-size[0] // coarse), -(-size[1] // coarse)))
    labels = np.kron(patches, np.ones((coarse, coarse), int))[: size[0], : size[1], None].astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        found = draw_polygons(save(Path(folder, "a.tif"), labels, nodata=255), None, tolerance=tolerance, least=least)
    measured = int((labels != 255).sum())
    assert found.pixels.sum() == measured
    assert sum(s.area for s in found.shapes) == pytest.approx(100 * measured)
    if measured:
        assert shapely.coverage_is_valid(found.shapes)
        assert shapely.is_valid(found.shapes).all()
        assert shapely.union_all(found.shapes).area == pytest.approx(100 * measured)


def test_small_areas_join_their_neighbours_and_nothing_is_lost(tmp_path: Path) -> None:
    from fullyconv.rasters.polygons import draw_polygons

    labels = np.zeros((20, 20, 1), np.uint8)
    labels[5, 5], labels[10:13, 10:13], labels[:3] = 1, 2, 255
    save(tmp_path / "a.tif", labels, nodata=255)
    found = draw_polygons(tmp_path / "a.tif", None, least=500)
    assert found.merged == 1
    assert sorted(found.pixels) == [9, 17 * 20 - 9]
    whole = draw_polygons(tmp_path / "a.tif", None)
    assert sorted(whole.pixels) == [1, 9, 17 * 20 - 10]
    assert max(len(s.interiors) for s in whole.shapes) == 2


def test_polygons_that_do_not_fill_their_raster_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio import features

    from fullyconv.rasters.polygons import draw_polygons

    save(tmp_path / "a.tif", ground(20, 20, 1))
    real = features.shapes
    monkeypatch.setattr(features, "shapes", lambda *a, **k: list(real(*a, **k))[1:])
    with pytest.raises(InternalError, match="do not fill"):
        draw_polygons(tmp_path / "a.tif", None)


def test_the_small_image_shows_every_measured_pixel_under_its_label(tmp_path: Path) -> None:
    from PIL import Image

    found = label(save(tmp_path / "a.tif", ground(41, 67)), tmp_path / "out", overlay=True, tile=16)
    with Image.open(found["overlay"]) as shown:
        assert shown.size == (67, 41)


def test_a_source_gives_the_same_values_by_windows_as_whole(tmp_path: Path) -> None:
    image = ground(50, 60, 3, np.uint16)
    source = open_source(save(tmp_path / "a.tif", image))
    values, valid = source.read(Window(7, 11, 40, 59))
    np.testing.assert_array_equal(values, image[7:40, 11:59])
    assert valid is None
    source.close()


def test_a_finished_block_that_was_changed_or_is_anothers_is_none(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    layers = {"labels": np.arange(60, dtype=np.uint8).reshape(6, 10)}
    with BlockJournal(tmp_path, "a", "k" * 64) as journal:
        journal.write(0, 0, layers)
        file = next(journal.folder.glob("*.block"))
        data = file.read_bytes()
        assert np.array_equal((journal.read(0, 0) or {})["labels"], layers["labels"])
        for at in (0, 20, 40, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert journal.read(0, 0) is None
            assert not journal.is_whole(0, 0)
        file.write_bytes(data)
        (journal.folder / "0-1.block").write_bytes(data)  # under another's name
        assert journal.read(0, 1) is None
        assert journal.is_whole(0, 0)
    with BlockJournal(tmp_path, "a", "j" * 64) as other:  # another job's
        (other.folder / "0-0.block").write_bytes(data)
        assert other.read(0, 0) is None


@pytest.mark.parametrize("key", ["../../../../../x" + "0" * 48, "/" * 64, "a/b" + "0" * 61, "\0" * 64])
def test_no_folder_of_blocks_lies_elsewhere_whatever_key_a_worker_tells(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="rename it"):
        BlockJournal(tmp_path, "a", key)


def test_a_block_that_somebody_forged_under_a_right_sum_is_refused(tmp_path: Path) -> None:
    """Whoever knows the key can make the sum: what is in it is as foreign as any file."""
    pytest.importorskip("safetensors")
    from safetensors.numpy import save as packed

    grid, layer = BlockGrid((6, 10), 16, 1, 0), RasterLayer("labels/x", np.dtype(np.uint8), None)
    honest = np.arange(60, dtype=np.uint8).reshape(6, 10)
    with BlockJournal(tmp_path, "a", "k" * 64) as journal:
        journal.most = 1 << 20
        journal.write(0, 0, {"labels/x": honest})
        assert np.array_equal(np.concatenate(list(strips(journal, grid, layer)), 1)[0], honest)
        contents = {
            "no stream": b"PK\3\4",
            "cut": zlib.compress(packed({"labels/x": honest}))[:-9],
            "no layers": zlib.compress(b"x" * 99),
            "a bomb": zlib.compress(bytes(1 << 26), 9),
            "another layer": zlib.compress(packed({"labels/y": honest})),
            "another size": zlib.compress(packed({"labels/x": honest[:5]})),
            "other numbers": zlib.compress(packed({"labels/x": honest.astype(np.float32)})),
            "one number": zlib.compress(packed({"labels/x": np.array(1, np.uint8)})),
        }
        for kind, content in contents.items():
            file = journal.folder / "0-0.block"
            file.write_bytes(MAGIC + journal._digest(0, 0, content) + content)
            assert journal.is_whole(0, 0), kind
            tracemalloc.start()
            with pytest.raises(DataError, match="did not write for this job; remove the folder"):
                list(strips(journal, grid, layer))
            assert tracemalloc.get_traced_memory()[1] < 8 << 20, kind
            tracemalloc.stop()
