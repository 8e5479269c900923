"""The one decoder: what each kind of file becomes, and that nothing else comes out of hostile ones."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import random
import resource
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_files import chunk, encoded, mutate, png
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from fullyconv import images
from fullyconv.errors import DataError, FullyconvError, MissingInput, UsageError
from fullyconv.images import BadImage
from fullyconv.images.tiff import Page

RNG = np.random.default_rng(7)
RGB = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RGB[..., 0].copy()


def wide(values: NDArray[np.uint16]) -> bytes:
    """16-bit PNG of H W C big-endian samples, unfiltered."""
    h, w, c = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], rows)


# ---- what each kind of image becomes -------------------------------------------------------------------------

PALETTE = [v for k in range(256) for v in (k, 255 - k, (k * 7) % 256)]


def palette_image(**options: Any) -> bytes:
    image = Image.fromarray(GREY)
    image.putpalette(PALETTE)
    return encoded(image, **options)


COLOURS = np.array(PALETTE, np.uint8).reshape(256, 3)
ALPHA = np.concatenate([RGB, GREY[..., None]], axis=-1)
AS_RGB = {
    "RGB": (encoded(RGB), RGB),
    "L": (encoded(GREY), np.repeat(GREY[..., None], 3, -1)),
    "1": (encoded(Image.fromarray(GREY > 99)), np.repeat(np.where(GREY > 99, 255, 0)[..., None], 3, -1)),
    "P": (palette_image(), COLOURS[GREY]),
    "P with transparency": (palette_image(transparency=3), COLOURS[GREY]),
    "RGBA": (encoded(ALPHA), RGB),
    "LA": (encoded(ALPHA[..., [0, 3]]), np.repeat(GREY[..., None], 3, -1)),
    "16-bit grey": (wide((GREY.astype(np.uint16) * 257)[..., None]), np.repeat(GREY[..., None], 3, -1)),
    "16-bit RGB": (wide(RGB.astype(np.uint16) * 256 + 255), RGB),
    "BMP": (encoded(RGB, "BMP"), RGB),
    "TIFF": (encoded(RGB, "TIFF"), RGB),
    "TIFF, packed": (encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "WebP": (encoded(RGB, "WEBP", lossless=True), RGB),
    "CMYK": (encoded(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB),
}


@pytest.mark.parametrize(("data", "expected"), AS_RGB.values(), ids=AS_RGB.keys())
def test_every_kind_of_image_becomes_8_bit_rgb(data: bytes, expected: NDArray[Any]) -> None:
    image = images.read_image(data)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


WIDE = RNG.integers(0, 65536, (5, 7, 4)).astype(np.uint16)
AS_BANDS = {
    "RGBA keeps alpha": (encoded(ALPHA), ALPHA),
    "grey is one band": (encoded(GREY), GREY[..., None]),
    "16-bit grey": (wide(WIDE[..., :1]), WIDE[..., :1]),
    "16-bit RGB": (wide(WIDE[..., :3]), WIDE[..., :3]),
    "16-bit RGBA": (wide(WIDE), WIDE),
    "CMYK is four bands": (
        encoded(
            Image.fromarray(ALPHA, "CMYK")
            if hasattr(Image, "x")
            else Image.frombytes("CMYK", (13, 9), ALPHA.tobytes()),
            "TIFF",
        ),
        ALPHA,
    ),
    "32-bit integers": (
        encoded(Image.fromarray(GREY.astype(np.int32) * 200), "TIFF"),
        GREY[..., None] * np.float32(200),
    ),
    "floats": (encoded(Image.fromarray(GREY.astype(np.float32) / 3), "TIFF"), GREY[..., None].astype(np.float32) / 3),
}


@pytest.mark.parametrize(("data", "expected"), AS_BANDS.values(), ids=AS_BANDS.keys())
def test_bands_are_as_stored(data: bytes, expected: NDArray[Any]) -> None:
    image = images.read_image(data, mode="bands")
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)


@given(arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 4]))))
@settings(max_examples=60, deadline=None)
def test_16_bits_come_back_whole_in_any_layout(values: NDArray[np.uint16]) -> None:
    np.testing.assert_array_equal(images.read_image(wide(values), mode="bands"), values)
    assert (images.read_image(wide(values))[..., 0] == values[..., 0] >> 8).all(), "scaled, not clipped"


def test_images_without_a_known_range_are_refused() -> None:
    for image in (Image.fromarray(GREY.astype(np.float32)), Image.fromarray(RGB).convert("LAB")):
        with pytest.raises(BadImage, match="range"):
            images.read_image(encoded(image, "TIFF"))


def test_jpeg_cmyk_and_ycck_are_read_as_colours() -> None:
    flat = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    image = images.read_image(encoded(Image.fromarray(flat).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(image.astype(int) - flat).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_turns_the_image_as_viewers_do(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(RGB, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(images.read_image(data), expected)
    info = images.image_info(data)
    assert info.orientation == orientation
    assert info.size == expected.shape[:2] == images.image_size(data)
    assert info.stored == (9, 13)


def test_only_the_first_frame_of_several_is_read_and_the_info_says_so() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(images.read_image(data), RGB)
        assert images.image_info(data).frames == 2
    assert images.image_info(encoded(RGB)).frames == 1


def test_one_pixel_and_one_row_are_images() -> None:
    for shape in ((1, 1), (1, 40), (40, 1), (33, 31)):
        array = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
        np.testing.assert_array_equal(images.read_image(encoded(array)), array)


def test_the_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(RGB))
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.jpg"), RGB)
    assert images.image_info(tmp_path / "a.jpg").format == "PNG"


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(40), "GIF"),
        (b"%PDF-1.7" + bytes(40), "PDF"),
        (b"PK\3\4" + bytes(40), "zip"),
        (b"<html>not found</html>", "web page"),
        (b'{"error": "expired"}', "error message"),
        (bytes(100), "none of these|HEIC"),
        (random.Random(0).randbytes(100).replace(b"B", b"C"), "none of these"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        images.read_image(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    data = encoded(RGB, kind)
    whole = images.read_image(data)
    for n in range(len(data)):
        try:
            image = images.read_image(data[:n])
        except BadImage:
            continue
        np.testing.assert_array_equal(image, whole, err_msg=f"a part of the image from {n} bytes")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_any_flipped_bit_of_a_png_image_is_refused_or_harmless() -> None:
    data, refused = encoded(RGB), 0
    for at in range(8 * len(data)):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        try:
            image = images.read_image(bytes(changed))
        except BadImage:
            refused += 1
            continue
        np.testing.assert_array_equal(image, RGB)
    assert refused > 0.99 * 8 * len(data)


@pytest.mark.parametrize("rows", [0, 1, 5, 8])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_with_fewer_rows_than_it_claims_is_refused(rows: int, interlaced: bool) -> None:
    data = encoded(RGB)
    assert (images.read_image(data) == RGB).all()
    body = b"".join(b"\0" + row.tobytes() for row in RGB[:rows])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 9, 8, 2, 0, 0, interlaced))
    short = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match=r"holds|damaged"):
        images.read_image(short)


def test_black_pngs_are_whole() -> None:
    for shape in ((1, 1), (9, 13), (64, 64)):
        black = np.zeros(shape, np.uint8)
        np.testing.assert_array_equal(images.read_label(encoded(black)), black)
        np.testing.assert_array_equal(images.read_label(encoded(black.astype(np.uint16))), black)
        np.testing.assert_array_equal(images.read_label(encoded(Image.fromarray(black > 0))), black)


@pytest.mark.parametrize("size", [(30000, 30000), (13000, 13000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_bombs_are_refused_before_they_are_decoded(size: tuple[int, int]) -> None:
    data = png(*size, 8, 0, bytes(4000))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(BadImage, match="pixels"):
        images.read_image(data)
    assert time.process_time() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024  # KiB


def test_a_text_bomb_and_a_million_chunks_do_no_harm() -> None:
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(200_000_000), 9))
    many = [chunk(b"tEXt", b"k%d\0v" % i) for i in range(20_000)]
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    for data in (png(13, 9, 8, 2, rows, text), png(13, 9, 8, 2, rows, *many)):
        start = time.process_time()
        with contextlib.suppress(BadImage):
            np.testing.assert_array_equal(images.read_image(data), RGB)
        assert time.process_time() - start < 3


def test_the_pixel_cap_can_be_lowered_and_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(np.zeros((100, 100), np.uint8))
    with pytest.raises(BadImage, match="10000 pixels, more than the 9999"):
        images.read_image(data, max_pixels=9999)
    monkeypatch.setenv("FULLYCONV_MAX_PIXELS", "100")
    with pytest.raises(BadImage, match="FULLYCONV_MAX_PIXELS"):
        images.read_label(data)
    monkeypatch.setenv("FULLYCONV_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="whole number"):
        images.read_image(data)
    with images.pixels_allowed(9999), pytest.raises(BadImage, match="more than the 9999"):
        images.read_image(data)
    with images.pixels_allowed(5), images.pixels_allowed(10_000):
        assert images.read_image(data).shape == (100, 100, 3)
    with pytest.raises(UsageError, match="whole number"), images.pixels_allowed(0):
        pass
    monkeypatch.delenv("FULLYCONV_MAX_PIXELS")
    before = Image.MAX_IMAGE_PIXELS
    large = png(20_000, 10_000, 1, 0, bytes(2501 * 10_000))
    assert images.image_info(large, max_pixels=300_000_000).size == (10_000, 20_000)
    with pytest.raises(BadImage, match="pixels"):
        images.image_info(large)
    assert before == Image.MAX_IMAGE_PIXELS


def test_what_is_no_regular_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name in ("pipe.png", "folder.png", "loop.png"):
        with pytest.raises(DataError, match=name):
            images.read_image(tmp_path / name)
    with pytest.raises(BadImage, match="not a regular file"):
        images.read_image("/dev/zero")
    with pytest.raises(MissingInput, match="does not exist"):
        images.read_image(tmp_path / "absent.png")
    with pytest.raises(MissingInput):
        images.read_image(tmp_path / "a\0b.png")


def test_a_sparse_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        try:
            file.truncate(1 << 40)
        except OSError:
            pytest.skip("no sparse files of this size here")
    with pytest.raises(BadImage, match="no single image"):
        images.read_image(tmp_path / "huge.png")


def test_names_are_printed_without_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m.png").write_bytes(b"")
    with pytest.raises(BadImage) as refusal:
        images.read_image(tmp_path / "a\x1b[31m.png")
    assert "\x1b" not in str(refusal.value)


# ---- labels ----------------------------------------------------------------------------------------------------


def test_palette_labels_give_indices_and_never_brightness() -> None:
    image = Image.fromarray(GREY)
    image.putpalette(PALETTE)
    np.testing.assert_array_equal(images.read_label(encoded(image)), GREY)
    assert (np.asarray(image.convert("L")) != GREY).any(), "the wrong way would differ"
    assert images.read_palette(encoded(image))[5] == (5, 250, 35)
    assert images.read_palette(encoded(RGB)) == ()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour", [0, 3])
def test_ids_of_few_bits_come_back_as_stored(bits: int, colour: int) -> None:
    ids = np.arange(8, dtype=np.uint8).reshape(1, 8) & (2**bits - 1)
    packed = int("".join(f"{v:0{bits}b}" for v in ids[0]), 2).to_bytes(bits, "big")
    palette = [chunk(b"PLTE", bytes(PALETTE[: 3 * 2**bits]))] if colour == 3 else []
    np.testing.assert_array_equal(images.read_label(png(8, 1, bits, colour, b"\0" + packed, *palette)), ids)


def test_16_bit_labels_and_tiff_integers_keep_their_values() -> None:
    ids = np.array([[0, 255, 256, 65535]], np.uint16)
    np.testing.assert_array_equal(images.read_label(encoded(ids)), ids)
    np.testing.assert_array_equal(images.read_label(encoded(Image.fromarray(ids.astype(np.int32)), "TIFF")), ids)
    with pytest.raises(BadImage, match="65535"):
        images.read_label(encoded(Image.fromarray(np.array([[-1, 5]], np.int32)), "TIFF"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(GREY, "JPEG"), "JPEG label"),
        (encoded(RGB), r"colour label \(RGB"),
        (encoded(ALPHA), r"colour label \(RGBA"),
        (encoded(ALPHA[..., [0, 3]]), "116 of its pixels are transparent"),
        (encoded(Image.fromarray(GREY.astype(np.float32) + 0.5), "TIFF"), "between whole numbers"),
    ],
)
def test_what_cannot_be_ids_is_refused_as_label(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        images.read_label(data)


def test_a_label_with_an_exif_turn_is_refused() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(BadImage, match="EXIF"):
        images.read_label(encoded(GREY, exif=exif))


def test_colours_are_returned_to_those_who_ask() -> None:
    np.testing.assert_array_equal(images.read_label(encoded(ALPHA), colours=True), RGB)
    np.testing.assert_array_equal(images.read_label(encoded(GREY), colours=True), GREY)


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
@settings(max_examples=60, deadline=None)
def test_labels_survive_writing_and_reading(ids: NDArray[np.uint16], coloured: bool) -> None:
    palette = [(k, 0, 255 - k) for k in range(200)] if coloured else []
    for labels in (ids, ids & 255):
        np.testing.assert_array_equal(images.read_label(images.encode_label(labels, palette)), labels)
    if coloured:
        assert images.read_palette(images.encode_label(ids & 255, palette))[:200] == tuple(palette)


def test_labels_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    images.write_label(tmp_path / "a.png", GREY)
    np.testing.assert_array_equal(images.read_label(tmp_path / "a.png"), GREY)
    with pytest.raises(MissingInput):
        images.write_label(tmp_path / "absent" / "a.png", GREY)
    for bad in (np.full((2, 2), -1), np.full((2, 2), 70000), np.zeros((2, 2, 3), int), np.zeros((0, 2), int)):
        with pytest.raises(DataError):
            images.write_label(tmp_path / "a.png", bad)
    with mock.patch("os.rename", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        images.write_label(tmp_path / "b.png", GREY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_images_are_written_without_metadata() -> None:
    for array in (RGB, GREY, GREY[..., None], ALPHA):
        data = images.encode_png(array)
        bands = images.read_image(data, mode="bands")
        np.testing.assert_array_equal(bands, array if array.ndim == 3 else array[..., None])
        assert b"tEXt" not in data
        assert b"eXIf" not in data


def jpeg_claiming(size: int, **options: Any) -> bytes:
    """A grey JPEG of 64x64 whose header says `size` squared."""
    data = bytearray(encoded(np.full((64, 64), 128, np.uint8), "JPEG", **options))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = struct.pack(">HH", size, size)
    return bytes(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_more_pixels_than_its_bytes_can_hold_is_refused_undecoded(progressive: bool) -> None:
    start = time.process_time()
    with pytest.raises(BadImage, match=r"9000x9000 \(HxW\) pixels, more than its \d+ bytes can hold"):
        images.read_image(jpeg_claiming(9000, progressive=progressive))
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("quality", [1, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_flattest_jpeg_there_is_is_still_read(progressive: bool, quality: int) -> None:
    flat = np.full((4000, 4000), 255, np.uint8)
    data = encoded(flat, "JPEG", quality=quality, progressive=progressive, optimize=True)
    assert images.read_image(data).shape[:2] == (4000, 4000)


# ---- fuzz ------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """One small file of every kind that is read, and some that are not."""
    rgb, ids = RGB, GREY
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    packed = Image.fromarray(ids)
    packed.putpalette(PALETTE)
    several = {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}
    return [
        encoded(rgb),
        encoded(ids),
        encoded(packed, transparency=1),
        wide(WIDE[..., :3]),
        encoded(rgb, "JPEG", exif=exif),
        encoded(rgb, "JPEG", progressive=True),
        encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG"),
        encoded(rgb, "WEBP"),
        encoded(rgb, "WEBP", lossless=True, exif=exif),
        encoded(rgb, "TIFF"),
        encoded(rgb, "TIFF", compression="tiff_deflate"),
        encoded(rgb, "TIFF", **several),
        encoded(rgb, "BMP"),
        encoded(Image.fromarray(rgb), **several),
        encoded(rgb, "GIF"),
    ]


def fuzz(count: int, seed: int) -> tuple[int, float]:
    """Decodes `count` mutated files in every way; returns how many reads were refused and the longest one's seconds."""
    rng, corpus, refused, longest = np.random.default_rng(seed), seeds(), 0, 0.0
    for i in range(count):
        data = mutate(corpus[i % len(corpus)], rng)
        for read in (images.read_image, images.read_label, images.image_info):
            start = time.process_time()
            try:
                read(data)
            except FullyconvError:
                refused += 1
            longest = max(longest, time.process_time() - start)
    return refused, longest


def rss() -> int:
    """Resident memory in KiB, after the allocator has given back what is free."""
    with contextlib.suppress(AttributeError, OSError):  # glibc alone keeps, and has, this
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_raise_only_declared_errors() -> None:
    refused, longest = fuzz(400, 1)
    assert refused > 200
    assert longest < 0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_ten_thousand_mutated_files_raise_only_declared_errors_in_bounded_memory_and_time() -> None:
    fuzz(5000, 2)
    before = rss()
    refused, longest = fuzz(5000, 3)
    assert refused > 5000
    assert longest < 0.5
    assert rss() - before <= 8 * 1024


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_a_million_mutated_files_raise_only_declared_errors_in_bounded_memory_and_time() -> None:
    logging.disable(logging.CRITICAL)  # pytest would keep every line that Pillow logs in memory
    fuzz(5000, 4)
    before = rss()
    try:
        refused, longest = fuzz(1_000_000, 5)
    finally:
        logging.disable(logging.NOTSET)
    print(f"refused {refused} of 3000000 reads, longest {longest:.3f} s, memory grew {rss() - before} KiB")
    assert refused > 1_000_000
    assert longest < 0.5
    assert rss() - before <= 8 * 1024


@pytest.mark.parametrize("tag", [258, 338, 339])  # bits, extra samples, format
def test_text_where_a_tiff_says_numbers_is_refused_or_passed_over(tag: int) -> None:
    page = Page("<", {256: (2,), 257: (2,), tag: "\ufffd"}, "x.tif")
    assert page.numbers(tag) == []
    assert page.bits in (0, 1)
    assert not page.alpha
    assert tag != 339 or page.dtype is None
