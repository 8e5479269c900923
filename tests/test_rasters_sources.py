"""Slides, OME-TIFFs, BigTIFFs and Zarrs: by windows they give the labels of the whole, whichever level is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rasters import Small, ground, label, read

from fullyconv.errors import DataError, MissingExtra, UsageError
from fullyconv.images import encode_png, read_label
from fullyconv.predict import Predictor
from fullyconv.predict.label_sources import LabelOptions, label_sources
from fullyconv.predict.sources import find_sources
from fullyconv.rasters.gdal import open_source
from fullyconv.rasters.levels import Level, Resolution, choose_level
from fullyconv.rasters.windows import Window

tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")
zarr = pytest.importorskip("zarr", reason="the extra zarr is not installed")
rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SIZE = 180, 230
TWICE = Resolution(downsample=2)


def slide(path: Path, image: np.ndarray) -> Path:
    """As Aperio writes them: the image, a thumbnail, a level of half its size."""
    h, w = image.shape[:2]
    about = f"Aperio Image Library v11.2.1\n{w}x{h} [0,0 {w}x{h}] (64x64) ZIP|AppMag = 20|MPP = 0.5"
    how: Any = {"photometric": "rgb", "description": about, "metadata": None}
    with tifffile.TiffWriter(path) as out:
        out.write(image, tile=(64, 64), compression="deflate", **how)
        out.write(image[::8, ::8], **how)
        out.write(image[::2, ::2], tile=(64, 64), compression="deflate", **how)
    return path


def ome(path: Path, image: np.ndarray, axes: str = "CYX", **how: Any) -> Path:
    stored = np.moveaxis(image, -1, 0) if axes == "CYX" else image
    about = {"axes": axes, "PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500.0}
    tifffile.imwrite(path, stored, photometric="minisblack" if axes == "CYX" else "rgb", metadata=about, **how)
    return path


def pyramid(path: Path, image: np.ndarray, **how: Any) -> Path:
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        out.write(image, subifds=1, photometric="rgb", metadata=None, tile=(64, 64), **how)
        out.write(image[::2, ::2], subfiletype=1, photometric="rgb", metadata=None, tile=(64, 64), **how)
    return path


def ome_zarr(path: Path, image: np.ndarray, version: int = 3) -> Path:
    """A multiscale C Y X image, as version 0.5 (Zarr 3) or 0.4 (Zarr 2) has it."""
    root = zarr.open_group(path, mode="w", zarr_format=version)
    levels = {"0": image, "1": image[::2, ::2]}
    for name, one in levels.items():
        root.create_array(name, data=np.ascontiguousarray(np.moveaxis(one, -1, 0)), chunks=(1, 64, 64))
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    data = [
        {"path": n, "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5 * (1 + i), 0.5 * (1 + i)]}]}
        for i, n in enumerate(levels)
    ]
    about = [{"version": "0.4", "axes": axes, "datasets": data}]
    root.attrs.update({"ome": {"multiscales": about}} if version == 3 else {"multiscales": about})
    return path


MADE = {
    "a.svs": slide,
    "b.ome.tif": ome,
    "c.ome.tif": lambda p, i: ome(p, i, "YXS", tile=(64, 64), compression="lzw"),
    "d.btf": pyramid,
    "e.zarr": ome_zarr,
    "f.zarr": lambda p, i: ome_zarr(p, i, 2),
    "g.zarr": lambda p, i: (zarr.create_array(p, data=i, chunks=(50, 60, 3)), p)[1],
}


@pytest.mark.parametrize("name", MADE)
def test_every_source_gives_the_labels_of_the_whole(name: str, tmp_path: Path) -> None:
    image = ground(*SIZE)
    source = MADE[name](tmp_path / name, image)
    opened = open_source(source, Resolution(downsample=1) if name == "d.btf" else Resolution())
    assert opened.profile.size == SIZE
    values, valid = opened.read(Window(13, 57, 77, 201))
    np.testing.assert_array_equal(values, image[13:77, 57:201])
    assert valid is None
    assert len(opened.identity()) == 64
    opened.close()
    assert find_sources([source], tmp_path / "out", Resolution(downsample=1)).rasters == {source}
    more = {"resolution": Resolution(downsample=1)} if name == "d.btf" else {}
    found = label(source, tmp_path / "out", tile=80, **more)
    np.testing.assert_array_equal(read(found["labels"]), Predictor(Small())(image))


def test_a_folder_of_zarrs_ome_tiffs_and_photos_is_labelled_whole(tmp_path: Path) -> None:
    image = ground(*SIZE)
    folder = tmp_path / "plates"
    (folder / "deep").mkdir(parents=True)
    for name in ("b.ome.tif", "e.zarr", "deep/g.ome.zarr"):
        MADE[name if name in MADE else "f.zarr"](folder / name, image)
    (folder / "photo.png").write_bytes(encode_png(image))
    found = find_sources([folder], tmp_path / "out")
    assert {str(p.relative_to(folder)): n for p, n in found.pairs} == {
        "b.ome.tif": "b.ome", "deep/g.ome.zarr": "deep/g.ome", "e.zarr": "e", "photo.png": "photo",
    }  # fmt: skip
    assert found.rasters == {folder / "b.ome.tif", folder / "e.zarr", folder / "deep/g.ome.zarr"}
    assert not found.notes or "zarr" not in " ".join(found.notes)
    done = label_sources(Predictor(Small(), tile=80), found, tmp_path / "out", LabelOptions(overlay=False, quiet=True))
    assert not done.failed
    expected = Predictor(Small())(image)
    for name in ("b.ome.tif", "e.tif", "deep/g.ome.tif"):
        np.testing.assert_array_equal(read(tmp_path / "out" / name), expected)
    np.testing.assert_array_equal(read_label(tmp_path / "out" / "photo.png"), expected)
    again = label_sources(
        Predictor(Small(), tile=80), found, tmp_path / "out", LabelOptions(overlay=False, quiet=True), resume=True
    )
    assert not again.written


@pytest.mark.parametrize("name", ["a.svs", "d.btf", "e.zarr", "f.zarr"])
def test_a_level_is_read_and_its_results_say_the_size_of_its_pixels(name: str, tmp_path: Path) -> None:
    image = ground(*SIZE)
    source = MADE[name](tmp_path / name, image)
    asked = TWICE if name == "d.btf" else Resolution.parse("1um")
    found = label(source, tmp_path / "out", tile=80, resolution=asked)
    np.testing.assert_array_equal(read(found["labels"]), Predictor(Small())(np.ascontiguousarray(image[::2, ::2])))
    with rasterio.open(found["labels"]) as data:
        assert data.tags().get("TIFFTAG_XRESOLUTION") == (None if name == "d.btf" else "10000")
    one, other = open_source(source, asked), open_source(source, Resolution(downsample=1))
    assert one.identity() != other.identity()
    assert "level 1 of 2" in one.note


def test_resolutions_are_micrometres_or_reductions_and_must_be_near_a_level() -> None:
    levels = [Level((100, 100), 0.25, 1), Level((25, 25), 1.0, 4)]
    assert choose_level(levels, Resolution(), Path("a")) == 0
    assert choose_level(levels, Resolution.parse("0.9"), Path("a")) == 1
    assert choose_level(levels, Resolution.parse("4X"), Path("a")) == 1
    with pytest.raises(DataError, match=r"it has 0\.25, 1: give one"):
        choose_level(levels, Resolution.parse("0.5"), Path("a"))
    with pytest.raises(DataError, match="as a reduction, of 1x, 4x"):
        choose_level([Level(lv.size, 0, lv.downsample) for lv in levels], Resolution.parse("0.5"), Path("a"))
    for text in ("x", "-1", "nan", "inf", "0", "1e999"):
        with pytest.raises(UsageError, match="neither micrometres"):
            Resolution.parse(text)


def test_more_than_one_plane_is_refused_by_its_axes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.ome.tif", np.zeros((3, 20, 20), np.uint8), metadata={"axes": "ZYX"})
    with pytest.raises(DataError, match=r"axes ZYX and shape \(3, 20, 20\)"):
        open_source(tmp_path / "z.ome.tif")
    zarr.create_array(tmp_path / "z.zarr", data=np.zeros((2, 3, 20, 20), np.uint8))
    with pytest.raises(DataError, match="without names of its axes"):
        open_source(tmp_path / "z.zarr")


@pytest.mark.parametrize("name", ["a.svs", "b.ome.tif", "d.btf"])
def test_a_file_that_is_cut_off_is_one_sentence_and_leaves_no_result(name: str, tmp_path: Path) -> None:
    source = MADE[name](tmp_path / name, np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8))
    data = source.read_bytes()
    for part in (8, len(data) // 3, len(data) - 2000):
        source.write_bytes(data[:part])
        with pytest.raises(DataError, match=r"cannot be read|damaged|cut off"):
            label(source, tmp_path / f"out{part}", tile=80, resolution=Resolution(downsample=1))
        assert not list(tmp_path.glob(f"out{part}/*.tif"))


def test_zarrs_that_would_run_fetch_or_fill_memory_are_refused(tmp_path: Path) -> None:
    ome_zarr(tmp_path / "a.zarr", ground(*SIZE), 2)
    described = tmp_path / "a.zarr/0/.zarray"
    facts = json.loads(described.read_text())
    for change, words in (
        ({"filters": [{"id": "pickle"}]}, "coded by pickle"),
        ({"chunks": [1, 90_000, 90_000]}, "smaller chunks"),
        ({"shape": None}, "does not describe an array"),
        ({"shape": [2, 3, 20, 20]}, "not one plane"),
    ):
        described.write_text(json.dumps(facts | change))
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / "a.zarr")
    about = tmp_path / "a.zarr/.zattrs"
    about.write_text(about.read_text().replace('"path": "0"', '"path": "../b"'))
    with pytest.raises(DataError, match="outside of itself"):
        open_source(tmp_path / "a.zarr")
    about.write_text("{}")
    with pytest.raises(DataError, match="without a multiscale image"):
        open_source(tmp_path / "a.zarr")


def test_a_torn_chunk_is_one_sentence(tmp_path: Path) -> None:
    source = ome_zarr(tmp_path / "a.zarr", ground(*SIZE))
    chunk = next(p for p in sorted((source / "0").rglob("*")) if p.is_file() and p.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:9])
    with pytest.raises(DataError, match="cannot be read"):
        label(source, tmp_path / "out", tile=80)


def test_without_their_extra_they_are_named_and_an_ome_tiff_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    hidden = {"tifffile", "tiffslide", "zarr"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else real(name, *a))
    source = slide(tmp_path / "a.svs", ground(*SIZE))
    with pytest.raises(MissingExtra, match=r"fullyconv\[slides\]"):
        find_sources([source], tmp_path / "out")
    with pytest.raises(MissingExtra, match=r"fullyconv\[zarr\]"):
        find_sources([ome_zarr(tmp_path / "e.zarr", ground(*SIZE))], tmp_path / "out")
    plain = ome(tmp_path / "c.ome.tif", ground(*SIZE), "YXS")
    assert find_sources([plain], tmp_path / "out").rasters == frozenset()
    with pytest.raises(MissingExtra, match=r"fullyconv\[slides\]"):
        find_sources([plain], tmp_path / "out", TWICE)


def test_a_resolution_of_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text("<VRTDataset/>")
    with pytest.raises(UsageError, match="gdalwarp -tr"):
        open_source(tmp_path / "a.vrt", TWICE)


def test_polygons_of_a_slide_are_drawn_in_its_pixels_without_a_warning(tmp_path: Path) -> None:
    import warnings

    shapely = pytest.importorskip("shapely")
    parquet = pytest.importorskip("pyarrow.parquet")
    source = slide(tmp_path / "a.svs", ground(*SIZE))
    with warnings.catch_warnings():
        warnings.simplefilter("error", rasterio.errors.NotGeoreferencedWarning)
        found = label(source, tmp_path / "out", tile=80, polygons="geoparquet")
    table = parquet.read_table(found["polygons"])
    assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["crs"] is None
    shapes = shapely.from_wkb(table["geometry"].to_pylist())
    assert sum(s.area for s in shapes) == sum(table["area"].to_pylist()) == SIZE[0] * SIZE[1]
