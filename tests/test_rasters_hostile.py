"""Rasters, label polygons and Zarrs that somebody made to harm: used, or refused in words, in bounded work."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rasters import ground, save

from fullyconv.data.corpora.class_tables import classes_text
from fullyconv.errors import DataError
from fullyconv.rasters.cutting import cut_scenes
from fullyconv.rasters.gdal import open_source
from fullyconv.rasters.geotiff import GeoTiffSource
from fullyconv.rasters.ground_truth import VectorTruth, open_truth
from fullyconv.rasters.ground_windows import CutOptions
from fullyconv.rasters.vrt import mosaic
from fullyconv.rasters.windows import RasterProfile, Window
from fullyconv.taxonomy import Taxonomy

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
pyogrio = pytest.importorskip("pyogrio", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely", reason="the extra geo is not installed")
from affine import Affine  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def band(name: str, number: int = 1, relative: int = 1, source: str = "SimpleSource", more: str = "") -> str:
    return (
        f'<VRTRasterBand dataType="Byte" band="{number}"><{source}><SourceFilename relativeToVRT="{relative}">{name}'
        f"</SourceFilename><SourceBand>1</SourceBand>{more}</{source}></VRTRasterBand>"
    )


def vrt(folder: Path, body: str, size: str = 'rasterXSize="30" rasterYSize="20"') -> Path:
    (folder / "a.vrt").write_text(f"<VRTDataset {size}>{body}</VRTDataset>")
    return folder / "a.vrt"


def parts(folder: Path) -> str:
    """A sound band, in front of whatever else a VRT asks for."""
    save(folder / "part.tif", ground(20, 30)[..., :1], None)
    (folder / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return band("part.tif")


SECRET = "{0}/secret.png"
HIDDEN = {
    "in small letters": band(SECRET, 2, 0).replace("SourceFilename", "sourcefilename"),
    "a closing tag in small letters": band(SECRET, 2, 0).replace("</SourceFilename>", "</sourcefilename>"),
    "in CDATA": band(f"<![CDATA[{SECRET}]]>", 2, 0),
    "behind a comment": band(f"<!-- -->{SECRET}", 2, 0),
    "an address in entities": band("&#47;vsicurl&#47;http&#58;//127.0.0.1:9/a.tif", 2, 0),
    "a virtual place in capitals": band("/VSIZIP/a.zip/a.tif", 2, 0),
    "in a mask": f"<MaskBand>{band(SECRET, 1, 0)}</MaskBand>",
    "beside a quote": band(SECRET, 2, 0).replace("relativeToVRT", 'x="&gt;" relativeToVRT'),
    "a computed band": band("part.tif", 2).replace("<VRTRasterBand", '<VRTRasterBand subClass="VRTDerivedRasterBand"'),
    "an option of a driver": band("part.tif", 2, more="<OpenOptions><OOI key='a'>b</OOI></OpenOptions>"),
    "a filter": band("part.tif", 2, source="KernelFilteredSource"),
    "an endless place": band("part.tif", 2, more='<DstRect xOff="0" yOff="0" xSize="inf" ySize="1e300"/>'),
    "a document type": '<!DOCTYPE a [<!ENTITY b "c">]>',
    "itself": band("a.vrt", 2),
}


@pytest.mark.parametrize("more", HIDDEN.values(), ids=HIDDEN.keys())
def test_a_vrt_cannot_hide_what_else_it_asks_for(tmp_path: Path, more: str) -> None:
    with pytest.raises(DataError, match=r"no TIFF|elsewhere|computes|document type|no VRT|has [xy]Size|does not exist"):
        open_source(vrt(tmp_path, parts(tmp_path) + more.format(tmp_path)))


def test_a_mosaic_gives_the_pixels_of_its_files_and_says_which_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "vrt").mkdir()
    image = save(tmp_path / "b.tif", ground(20, 30)[..., :1], None)
    place = '<SrcRect xOff="0" yOff="0" xSize="30" ySize="20"/><DstRect xOff="0" yOff="0" xSize="30" ySize="20"/>'
    body = band(str(image), 1, 0, more=place) + band("../b.tif", 2, 1, "ComplexSource", "<ScaleRatio>1</ScaleRatio>")
    source = open_source(vrt(tmp_path / "vrt", body + "<OverviewList>2</OverviewList>"))
    assert "2 of its 2 files from outside of its folder" in source.note
    np.testing.assert_array_equal(source.read(Window(0, 0, 20, 30))[0], ground(20, 30)[..., [0, 0]])
    source.close()


def test_a_mosaic_that_shows_its_files_over_and_over_is_refused(tmp_path: Path) -> None:
    source = "<SimpleSource><SourceFilename relativeToVRT='1'>part.tif</SourceFilename></SimpleSource>"
    tiles = "".join(
        f"<SimpleSource><SourceFilename relativeToVRT='1'>part.tif</SourceFilename>"
        f"<DstRect xOff='{x}' yOff='{y}' xSize='1' ySize='1'/></SimpleSource>"
        for y in range(20) for x in range(30)
    )  # fmt: skip
    parts(tmp_path)
    mosaic(vrt(tmp_path, f"<VRTRasterBand band='1'>{tiles}</VRTRasterBand>"))
    with pytest.raises(DataError, match="over 100 times over its pixels"):
        mosaic(vrt(tmp_path, f"<VRTRasterBand band='1'>{source * 101}</VRTRasterBand>"))
    with pytest.raises(DataError, match="has 5000 bands"):
        open_source(vrt(tmp_path, "".join(band("part.tif", k) for k in range(1, 5001))))


# ---- Polygons ---------------------------------------------------------------------------------------------------

SQUARE = [[10, 10], [80, 10], [80, 80], [10, 80], [10, 10]]
MAP = "urn:ogc:def:crs:EPSG::32633"


def polygon(ring: Any = SQUARE, name: Any = "a") -> dict[str, Any]:
    moved = [[500_000 + x, 5_000_000 - y] for x, y in ring]
    return {"type": "Feature", "properties": {"class": name}, "geometry": {"type": "Polygon", "coordinates": [moved]}}


def truth(folder: Path, features: Any, crs: str = MAP) -> Any:
    named = {"crs": {"type": "name", "properties": {"name": crs}}} if crs else {}
    (folder / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", **named, "features": features}))
    return open_truth(folder / "a.geojson")


SCENE = RasterProfile((100, 100), 3, np.dtype(np.uint8), (1, 0, 500_000, 0, -1, 5_000_000), "EPSG:32633")
WHOLE = Window(0, 0, 100, 100)


@pytest.mark.parametrize("ring", [
    [[0, 0], [math.nan, 9], [9, 9], [0, 0]], [[0, 0], [1e308, 9], [9, -1e308], [0, 0]], [[0, 0], [9, 9]], [[0, 0]], [],
])  # fmt: skip
def test_a_polygon_that_lies_nowhere_is_counted_and_the_others_are_drawn(tmp_path: Path, ring: Any) -> None:
    found = truth(tmp_path, [polygon(), polygon(ring)])
    assert "1 features are no polygons, or of no class or place" in found.notes[0]
    assert (found.read(SCENE, WHOLE) == 1).sum() == 70 * 70


def test_a_ring_that_is_not_closed_is_and_one_that_crosses_itself_is_drawn_by_the_even_odd_rule(tmp_path: Path) -> None:
    assert (truth(tmp_path, [polygon(SQUARE[:-1])]).read(SCENE, WHOLE) == 1).sum() == 70 * 70
    bow = [[10, 10], [80, 80], [80, 10], [10, 80], [10, 10]]
    assert 2300 < (truth(tmp_path, [polygon(bow)]).read(SCENE, WHOLE) == 1).sum() < 2600


@pytest.mark.parametrize("crs", ["", "A" * 10_000, "/etc/passwd", "http://127.0.0.1:9/x", "+proj=utm +zone=99"])
def test_polygons_that_do_not_lie_on_the_map_that_they_say_are_refused_in_words(tmp_path: Path, crs: str) -> None:
    found = truth(tmp_path, [polygon()], crs)
    with pytest.raises(DataError, match="do not lie on the map that they say"):
        found.overlap(SCENE)


def test_more_classes_than_labels_hold_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="300 different values in 'class'"):
        truth(tmp_path, [polygon(name=f"c{k}") for k in range(300)])


def test_more_polygons_than_can_be_drawn_in_a_window_are_refused(tmp_path: Path) -> None:
    truth(tmp_path, [polygon()] * 30)
    found = VectorTruth(tmp_path / "a.geojson", "", "background", most=20)
    with pytest.raises(DataError, match=r"30 polygons of .* lie in one window"):
        found.read(SCENE, WHOLE)


@pytest.mark.parametrize("sql", [
    "CREATE VIEW v AS WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n AS fid FROM t",
    "ALTER TABLE a ADD COLUMN big TEXT GENERATED ALWAYS AS (hex(zeroblob(400000000)))",
])  # fmt: skip
def test_a_geopackage_that_computes_is_refused_before_it_is_read(tmp_path: Path, sql: str) -> None:
    file = tmp_path / "a.gpkg"
    square = shapely.to_wkb(np.array([shapely.Polygon([[500_000 + x, 5_000_000 - y] for x, y in SQUARE])]))
    names = [np.array(["a"], object)]
    pyogrio.raw.write(file, square, names, ["class"], geometry_type="Polygon", crs="EPSG:32633", driver="GPKG")
    assert (open_truth(file).read(SCENE, WHOLE) == 1).sum() == 70 * 70
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as base:
        base.execute(sql)
    with pytest.raises(DataError, match=r"computes '(v|a.big)' when it is read"):
        open_truth(file)


# ---- Places and sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [
    (0, 0, 5, 0, 0, 5), (math.nan, 0, 5, 0, -1, 5), (math.inf, 0, 5, 0, -1, 5), (1e308, 0, 5, 0, -1e308, 5),
    (1, 0, 1e300, 0, -1, 5), (1e-308, 0, 5, 0, -1e-308, 5), (1, 1, 5, 1, 1, 5),
])  # fmt: skip
def test_a_place_on_the_map_that_is_none_is_refused(tmp_path: Path, place: tuple[float, ...]) -> None:
    with rasterio.open(
        tmp_path / "a.tif", "w", "GTiff", height=9, width=9, count=1, dtype="uint8", transform=Affine(*place)
    ) as file:
        file.write(np.ones((1, 9, 9), np.uint8))
    with pytest.raises(DataError, match="says a place on the map that is none"):
        GeoTiffSource(tmp_path / "a.tif")


def test_a_scene_of_more_windows_than_can_be_listed_is_refused(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "part.tiff", ground(20, 30)[..., :1])
        place = "<SRS>EPSG:32633</SRS><GeoTransform>500000, 1, 0, 5000000, 0, -1</GeoTransform>"
        vrt(tmp_path / folder, place + band("part.tiff"), 'rasterXSize="1000000000" rasterYSize="1000000000"')
        (tmp_path / folder / "part.tiff").rename(tmp_path / folder / ".part.tiff")
        text = (tmp_path / folder / "a.vrt").read_text().replace("part.tiff", ".part.tiff")
        (tmp_path / folder / "a.vrt").write_text(text)
    with pytest.raises(DataError, match="over 2000000 windows"):
        cut_scenes(tmp_path, tmp_path / "out", CutOptions(size=64))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a\nb", "#x", "!x", "", "7"])
def test_a_class_that_a_table_of_classes_cannot_say_is_refused(name: str) -> None:
    assert classes_text(Taxonomy(("ground", "Ställe 2, alt", "b-c"))).count("\n") == 3
    with pytest.raises(DataError, match=r"would be read from a classes\.txt as something else"):
        classes_text(Taxonomy(("ground", name, "box")))


# ---- Zarr -----------------------------------------------------------------------------------------------------------


def zarr(folder: Path, **more: Any) -> Path:
    facts = {"zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "|u1", "compressor": None,
             "fill_value": 0, "order": "C", "filters": None}  # fmt: skip
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps(facts | more))
    return folder


@pytest.mark.parametrize("how", ["a file outside", "a device", "a pipe", "a folder outside", "itself"])
def test_a_zarr_holds_its_own_files_alone(tmp_path: Path, how: str) -> None:
    pytest.importorskip("zarr", reason="the extra zarr is not installed")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "0").write_bytes(b"S" * 4096)
    store = zarr(tmp_path / "a.zarr", dimension_separator="/")
    (store / "0").mkdir()
    (store / "0" / "0").write_bytes(bytes(4096))
    linked = tmp_path / "b.zarr"
    linked.symlink_to(store)
    assert open_source(linked).read(Window(0, 0, 9, 9))[0].shape == (9, 9, 1), "the store itself may be linked"
    (store / "0" / "0").unlink()
    if how == "a pipe":
        os.mkfifo(store / "0" / "0")
    elif how == "a folder outside":
        (store / "0").rmdir()
        (store / "0").symlink_to("../outside")
    else:
        (store / "0" / "0").symlink_to({"a device": "/dev/zero", "itself": "0"}.get(how, "../../outside/0"))
    with pytest.raises(DataError, match=r"leads out of its Zarr|no regular file"):
        open_source(store)


@pytest.mark.parametrize("more", [
    {"shape": [2**80, 2**80]}, {"shape": [0, 64]}, {"shape": [-5, 64]}, {"chunks": [0, 64]}, {"dtype": "|O"},
    {"dtype": "|V900000000"}, {"shape": [64, "x"]}, {"compressor": {"id": "pickle"}}, {"compressor": 5},
])  # fmt: skip
def test_a_zarr_that_describes_what_is_none_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    pytest.importorskip("zarr", reason="the extra zarr is not installed")
    with pytest.raises(DataError):
        open_source(zarr(tmp_path / "a.zarr", **more))


def test_a_piece_of_a_zarr_that_is_larger_than_its_values_is_not_unpacked(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="the extra zarr is not installed")
    store = zarr(tmp_path / "a.zarr", compressor={"id": "zlib", "level": 1})
    (store / "0.0").write_bytes(bytes(2_000_000))
    with pytest.raises(DataError, match="larger than a piece can be"):
        open_source(store)


def test_a_zarr_that_is_described_twice_or_by_anything_else_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("zarr", reason="the extra zarr is not installed")
    store = zarr(tmp_path / "a.zarr")
    new = {"zarr_format": 3, "node_type": "array", "codecs": [{"name": "pickle"}]}
    (store / "zarr.json").write_text(json.dumps(new))
    with pytest.raises(DataError, match="described twice"):
        open_source(store)
    group = '{"attributes": {"multiscales": [{"datasets": %s}]}}'
    texts = ["[1, 2]", '{"node_type": "group", "attributes": "x"}', '{"attributes": {"ome": 5}}']
    texts += [json.dumps(new | {"codecs": [{"name": "bytes", "configuration": "x"}]})]
    texts += [group % json.dumps([{"path": name} for name in names]) for names in (["a" * 9999], ["0", "0"])]
    for k, text in enumerate(texts):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "zarr.json").write_text(text)
        with pytest.raises(DataError):
            open_source(tmp_path / str(k))


# ---- Slides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.svs", "a.ome.tif", "a.ndpi"])
@pytest.mark.parametrize("pages", [1, 3, 20_000])
def test_pages_that_lead_back_to_each_other_or_on_and_on_are_refused(tmp_path: Path, name: str, pages: int) -> None:
    wide = name.endswith("ndpi")
    size = 2 + 12 + (8 if wide else 4)
    data = b"II*\0" + struct.pack("<Q" if wide else "<I", 12)
    data = data.ljust(12, b"\0")
    for k in range(pages):
        following = 12 if k == pages - 1 else 12 + size * (k + 1)
        data += struct.pack("<HHHII", 1, 256, 4, 1, 16) + struct.pack("<Q" if wide else "<I", following)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"chain of over {min(pages, 10_000)} pages"):
        open_source(tmp_path / name)
