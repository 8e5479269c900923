"""Small files that would cost minutes or gigabytes are refused at once, before anything is decoded."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
from image_files import chunk, encoded, png, tiff

from fullyconv import images
from fullyconv.images import BadImage

GREY = np.zeros((64, 64), np.uint8)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(GREY, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def parts(count: int) -> bytes:
    data = encoded(GREY, "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def exif(count: int) -> bytes:
    part = b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)
    return b"\xff\xd8" + part * count + encoded(GREY, "JPEG")[2:]


def chunks(count: int, kind: bytes) -> bytes:
    data = encoded(GREY)
    return data[:33] + chunk(kind, b"") * count + data[33:]


def webp(*more: tuple[bytes, bytes], lossless: bool = True) -> bytes:
    """A WebP with parts of any kind behind its pixels."""
    data = encoded(GREY, "WEBP", lossless=lossless, exif=b"Exif\0\0II*\0")
    data += b"".join(kind + struct.pack("<I", len(held)) + held + b"\0" * (len(held) % 2) for kind, held in more)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def huge(more: dict[int, int]) -> bytes:
    return tiff(GREY, more=more, deflate=True)


BOMBS = {
    "16,000 scans": lambda: scans(16_000),
    "a million parts of a JPEG": lambda: parts(1_000_000),
    "hundreds of parts of EXIF": lambda: exif(400),
    "a million empty chunks": lambda: chunks(1_000_000, b"teXt"),
    "a million empty IDAT": lambda: chunks(1_000_000, b"IDAT"),
    "tiles larger than the image": lambda: huge({322: 65_536, 323: 65_536, 324: 8, 325: 9}),
    "a thousand bands": lambda: huge({277: 60_000, 256: 9000, 257: 9000}),
    "more rows than bytes": lambda: huge({256: 9000, 257: 9000, 278: 9000}),
    "a page chain without end": lambda: tiff(GREY)[:4] + struct.pack("<I", 2**31) + tiff(GREY)[8:],
    "20 MB of EXIF in a WebP": lambda: webp((b"EXIF", b"Exif\0\0" + bytes(20_000_000))),
    "many parts of XMP in a WebP": lambda: webp(*[(b"XMP ", bytes(1_000_000))] * 20),
    "thousands of parts of a WebP": lambda: webp(*[(b"abcd", b"")] * 10_000),
    "a PNG of more pixels than bytes": lambda: png(9000, 9000, 8, 2, b"\0" * 100),
}


def test_a_whole_tile_of_thousands_of_pixels_for_a_small_image_is_refused_unpacked(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    shape = {"height": 64, "width": 64, "count": 1, "dtype": "uint8", "tiled": True, "compress": "deflate"}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", blockxsize=4096, blockysize=2048, **shape) as file:
        file.write(np.ones((1, 64, 64), np.uint8))
    assert (tmp_path / "a.tif").stat().st_size < 100_000
    with pytest.raises(BadImage, match="tiles of 2048x4096"):
        images.read_image(tmp_path / "a.tif", mode="bands")


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("read", [images.read_image, images.read_label, images.image_info])
def test_a_bomb_is_refused_in_less_than_half_a_second_of_the_processor(make, read) -> None:  # type: ignore[no-untyped-def]
    data = make()
    start = time.thread_time()
    with pytest.raises(BadImage):
        read(data)
    assert time.thread_time() - start < 0.5


def test_files_that_are_mostly_holes_are_refused_unread(tmp_path: Path) -> None:
    kinds = (("a.png", encoded(GREY)), ("b.bmp", encoded(GREY, "BMP")), ("c.webp", encoded(GREY, "WEBP")),
             ("d.webp", encoded(GREY, "WEBP", lossless=True)), ("e.webp", webp()))  # fmt: skip
    for name, data in kinds:
        with (tmp_path / name).open("wb") as file:
            file.write(data)
            file.truncate(2**31 - 1)
        start = time.thread_time()
        with pytest.raises(BadImage, match="far more than its pixels take"):
            images.read_image(tmp_path / name)
        assert time.thread_time() - start < 0.5


def test_what_encoders_write_stays_far_below_the_bounds() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for options in ({"progressive": True}, {"icc_profile": b"x" * 500_000}, {"comment": b"c" * 60_000}):
        assert images.read_image(encoded(noise, "JPEG", **options)).shape == noise.shape
    assert (images.read_image(encoded(noise)) == noise).all()
    for lossless in (False, True):
        more = {"lossless": lossless, "exif": b"Exif\0\0II*\0" + bytes(60_000), "icc_profile": b"x" * 3_000_000}
        assert images.read_image(encoded(noise, "WEBP", **more)).shape == noise.shape
