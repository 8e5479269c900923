"""Label files give the numbers they store, whatever they are packed in, or are refused with a name and a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, png, tiff
from numpy.typing import NDArray
from PIL import Image

from fullyconv import images
from fullyconv.data import open_dataset
from fullyconv.data.corpora.coding import Coding, read_coded
from fullyconv.doctor import check
from fullyconv.images import BadImage
from fullyconv.taxonomy import Taxonomy

IDS = np.arange(12 * 17).reshape(12, 17) % 7
TYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_label_is_its_stored_numbers_in_any_type(dtype: str, photometric: int) -> None:
    """WhiteIsZero (0) says how to show the numbers, not what they are: ImageJ writes masks so."""
    for options in ({}, {"order": ">"}, {"big": True}, {"big": True, "order": ">"}, {"deflate": True}):
        data = tiff(IDS.astype(dtype), more={262: photometric}, **options)  # type: ignore[arg-type]
        label = images.read_label(data)
        assert label.dtype in (np.uint8, np.uint16)
        np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("bits", [1, 4])
def test_ids_of_few_bits_in_a_white_is_zero_tiff_are_not_inverted(bits: int) -> None:
    ids = (IDS % 2 if bits == 1 else IDS).astype(np.uint8)
    packed = np.packbits(((ids[..., None] >> np.arange(bits)[::-1]) & 1).reshape(12, -1), axis=1)
    data = tiff(packed, more={256: 17, 258: bits, 262: 0})
    np.testing.assert_array_equal(images.read_label(data), ids)


@given(st.integers(0, 65535), st.sampled_from(["u2", "u4", "i4", "i8", "f4", "f8"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_id_of_16_bits_changes_on_its_way(value: int, dtype: str, deflate: bool) -> None:
    ids = np.array([[0, value], [value, 1]])
    np.testing.assert_array_equal(images.read_label(tiff(ids.astype(dtype), deflate=deflate)), ids)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.where(IDS == 3, -2, IDS).astype("i2"), r"-2 at row 0, column 3, 29 pixels"),
        (np.where(IDS == 3, 1.5, IDS).astype("f4"), r"1\.5 at row 0, column 3"),
        (np.where(IDS == 3, np.nan, IDS).astype("f8"), r"nan at row 0, column 3"),
        (np.where(IDS == 3, 70000, IDS).astype("u4"), r"70000 at row 0"),
        (np.where(IDS == 3, np.inf, IDS).astype("f4"), r"inf at row 0"),
    ],
)
def test_numbers_that_are_no_ids_are_named_with_their_place(values: NDArray[Any], words: str) -> None:
    with pytest.raises(BadImage, match=words):
        images.read_label(tiff(values))


@pytest.mark.parametrize(("nodata", "dtype"), [("-9999", "i2"), ("nan", "f4"), ("-3.4e+38", "f4"), ("70000", "i4")])
def test_declared_nodata_of_a_label_is_ignored(tmp_path: Path, nodata: str, dtype: str) -> None:
    values = np.where(IDS == 3, float(nodata), IDS).astype(dtype)
    (tmp_path / "a.tif").write_bytes(tiff(values, nodata=nodata))
    label = read_coded(tmp_path / "a.tif", Coding(Taxonomy.numbered(7)))
    np.testing.assert_array_equal(label, np.where(IDS == 3, 255, IDS))
    assert label.dtype == np.uint8


def test_declared_nodata_that_is_a_listed_value_stays_a_class_and_else_is_said(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        (tmp_path / "images" / f"{i}.png").write_bytes(encoded(np.full((12, 17, 3), 9 * i, np.uint8)))
        (tmp_path / "labels" / f"{i}.tif").write_bytes(tiff(IDS.astype("u1"), nodata="0"))
    (found,) = [f for f in check(tmp_path) if f.kind == "nodata-in-label"][:1]
    assert "30 pixels hold 0" in found.message
    assert (open_dataset(tmp_path)[0].labels["semantic"] == 255).sum() == 30
    (tmp_path / "classes.txt").write_text("".join(f"c{k} = {k}\n" for k in range(7)))  # what the remedy says
    np.testing.assert_array_equal(open_dataset(tmp_path)[0].labels["semantic"], IDS)
    assert not [f for f in check(tmp_path) if f.kind == "nodata-in-label"]


def test_several_pages_are_refused_and_overviews_and_masks_are_none() -> None:
    ids = IDS.astype(np.uint8)
    with pytest.raises(BadImage, match="3 pages"):
        images.read_label(tiff(ids, pages=3))
    with pytest.raises(BadImage, match="1000 or more pages"):
        images.read_label(tiff(ids, pages=1200))
    two = tiff(ids, pages=2, more={254: 0})
    for kind in (1, 4):  # reduced resolution, transparency mask
        at = two.rindex(b"\xfe\0\4\0")
        np.testing.assert_array_equal(images.read_label(two[: at + 8] + bytes([kind]) + two[at + 9 :]), ids)


def test_frames_of_an_animation_are_refused_as_label() -> None:
    frames = [Image.fromarray((IDS + i).astype(np.uint8)) for i in range(2)]
    for data in (
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encoded(frames[0].convert("RGB"), "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
    ):
        with pytest.raises(BadImage, match="several frames"):
            images.read_label(data, colours=True)


def deep(values: NDArray[Any]) -> bytes:
    h, w, c = values.shape
    return png(w, h, 16, {3: 2, 4: 6}[c], b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


@pytest.mark.parametrize("colours", [False, True])
def test_ids_in_16_bit_colour_are_read_at_full_depth_or_refused(colours: bool) -> None:
    ids = (IDS * 100).astype(np.uint16)
    three = np.repeat(ids[..., None], 3, 2)
    opaque = np.dstack([three, np.full_like(ids, 65535)])
    for data in (deep(three), deep(opaque), tiff(three)):
        np.testing.assert_array_equal(images.read_label(data, colours=colours), ids)
    three[0, 0, 1] += 1
    opaque[..., 3] = 9
    for data, words in ((deep(three), "different channels"), (deep(opaque), "transparent"), (tiff(three), "different")):
        with pytest.raises(BadImage, match=words):
            images.read_label(data, colours=colours)


def test_lossy_labels_are_refused_in_every_format() -> None:
    grey = np.repeat((IDS * 9).astype(np.uint8)[..., None], 3, 2)
    for data in (encoded(grey, "JPEG"), encoded(grey, "WEBP"), encoded(grey, "TIFF", compression="jpeg")):
        with pytest.raises(BadImage, match="only approximate"):
            images.read_label(data, colours=True)


def test_labels_of_8_and_16_bits_of_one_set_have_one_type(tmp_path: Path) -> None:
    """Else the first one's type would cut the others in a batch: 300 would become 44."""
    coding = Coding(Taxonomy.numbered(301))
    for name, ids in (("a", IDS.astype(np.uint8)), ("b", (IDS * 50).astype(np.uint16))):
        images.write_label(tmp_path / f"{name}.png", ids)
        assert read_coded(tmp_path / f"{name}.png", coding).dtype == np.uint16
    images.write_label(tmp_path / "c.png", np.where(IDS == 1, 65535, IDS).astype(np.uint16))
    assert read_coded(tmp_path / "c.png", Coding(Taxonomy.numbered(7))).dtype == np.uint8


# ---- palettes ----------------------------------------------------------------------------------------------------

COLOURS = ((0, 0, 0), (200, 10, 10), (10, 10, 200))


def permuted(folder: Path, count: int = 6) -> None:
    """A set of palette labels, every second of which gives the colours in another order; the same map by colour."""
    ids = np.repeat([0, 1, 2], 40).reshape(12, 10)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        order = (0, 1, 2) if i % 2 == 0 else (0, 2, 1)
        image = Image.fromarray(np.argsort(order)[ids].astype(np.uint8))
        image.putpalette([v for k in order for v in COLOURS[k]])
        image.save(folder / "labels" / f"{i}.png")
        noise = np.random.default_rng(i).integers(0, 255, (12, 10, 3), dtype=np.uint8)
        (folder / "images" / f"{i}.png").write_bytes(encoded(noise))


def test_palettes_in_another_order_are_an_error_whose_remedy_reads_them_by_colour(tmp_path: Path) -> None:
    permuted(tmp_path)
    found = [f for f in check(tmp_path) if f.kind == "palette-permuted"]
    assert len(found) == 3
    assert {f.level for f in found} == {"error"}
    assert "name r g b" in found[0].remedy
    assert len(found[0].files) == 2
    (tmp_path / "classes.txt").write_text("sky 0 0 0\nroad 200 10 10\nsea 10 10 200\n")
    first, *others = (s.labels["semantic"] for s in open_dataset(tmp_path))
    np.testing.assert_array_equal(first, np.repeat([0, 1, 2], 40).reshape(12, 10))
    for other in others:
        np.testing.assert_array_equal(first, other)
    assert not [f for f in check(tmp_path) if f.kind.startswith("palette") and f.level != "info"]


def test_a_palette_that_agrees_in_part_alone_is_refused_by_name(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 10, 10, 200, 7, 7, 7])
    image.save(tmp_path / "a.png")
    coding = Coding(Taxonomy(("a", "b", "c"), COLOURS), by_palette={c: k for k, c in enumerate(COLOURS)})
    with pytest.raises(Exception, match=r"index 1 the colour .*'c', and index 2"):
        read_coded(tmp_path / "a.png", coding)


def test_a_palette_of_other_colours_and_the_ignored_index_leave_ids_as_stored(tmp_path: Path) -> None:
    coding = Coding(Taxonomy(("a", "b", "c"), COLOURS), by_palette={c: k for k, c in enumerate(COLOURS)})
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    for colours in ([0, 0, 0, 1, 1, 1, 2, 2, 2], [v for c in COLOURS for v in c]):
        image = Image.fromarray(ids)
        image.putpalette(colours + [10, 10, 200] * (256 - len(colours) // 3))
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_coded(tmp_path / "a.png", coding), ids)
