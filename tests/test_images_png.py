"""The quicker way to read plain PNGs: what it returns is Pillow's, and everything unusual is left to Pillow."""

from __future__ import annotations

import struct
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from image_files import chunk, encoded, mended, mutate, png
from numpy.typing import NDArray
from PIL import Image

from fullyconv import images
from fullyconv.images.png import plain_samples

pytest.importorskip("numba")

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
CAP = 1 << 20
ALL = (0, 2, 3)


def filtered(image: NDArray[np.uint8], kinds: list[int]) -> bytes:
    """The rows of `image` H W C as a PNG stores them, row r with the filter kinds[r], by the letter of the format."""
    h, w, c = image.shape
    x = image.reshape(h, w * c).astype(int)
    out = b""
    for r, kind in enumerate(kinds):
        row = []
        for i in range(w * c):
            a = x[r, i - c] if i >= c else 0
            b = x[r - 1, i] if r else 0
            corner = x[r - 1, i - c] if r and i >= c else 0
            p = a + b - corner
            nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - corner), 2, corner))[2]
            row.append((x[r, i] - (0, a, b, (a + b) // 2, nearest)[kind]) % 256)
        out += bytes([kind, *row])
    return out


@st.composite
def rows(draw: st.DrawFn) -> tuple[NDArray[np.uint8], list[int]]:
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9), st.sampled_from([1, 3])))
    image = draw(arrays(np.uint8, shape))
    return image, draw(st.lists(st.integers(0, 4), min_size=shape[0], max_size=shape[0]))


@given(rows())
@settings(max_examples=150, deadline=None)
def test_every_filter_of_every_row_is_undone_as_the_format_defines(given: tuple[NDArray[np.uint8], list[int]]) -> None:
    image, kinds = given
    h, w, c = image.shape
    samples = plain_samples(png(w, h, 8, 2 if c == 3 else 0, filtered(image, kinds)), CAP, ALL)
    assert samples is not None
    np.testing.assert_array_equal(samples, image)


@pytest.mark.parametrize("size", [(1, 1), (64, 200), (301, 77)])
def test_what_pillow_writes_is_read_as_pillow_reads_it(size: tuple[int, int]) -> None:
    smooth = np.cumsum(RNG.integers(-2, 3, (*size, 3)), axis=1).astype(np.uint8)
    palette = Image.fromarray(smooth[..., 0])
    palette.putpalette(RNG.integers(0, 256, 768).tolist())
    for image in (Image.fromarray(smooth), Image.fromarray(smooth[..., 0]), palette):
        data = encoded(image)
        samples = plain_samples(data, CAP, ALL)
        assert samples is not None
        np.testing.assert_array_equal(np.squeeze(samples, -1) if image.mode != "RGB" else samples, np.asarray(image))
        assert plain_samples(data, CAP, ()) is None, "a colour type that was not asked for"


BODY = b"".join(b"\0" + row.tobytes() for row in RGB)
DATA = png(13, 9, 8, 2, BODY)
HEAD = DATA[:33]


def assembled(*parts: bytes) -> bytes:
    return DATA[:8] + b"".join(parts)


def header(width: int = 13, height: int = 9, bits: int = 8, colour: int = 2, *methods: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, *(methods or (0, 0, 0))))


ROWS, END = chunk(b"IDAT", zlib.compress(BODY)), chunk(b"IEND", b"")
HALF = len(zlib.compress(BODY)) // 2
FIRST, SECOND = chunk(b"IDAT", zlib.compress(BODY)[:HALF]), chunk(b"IDAT", zlib.compress(BODY)[HALF:])
exif = Image.Exif()
exif[0x0112] = 6
UNUSUAL = {
    "EXIF": encoded(RGB, exif=exif),
    "EXIF after the rows": assembled(header(), ROWS, chunk(b"eXIf", exif.tobytes()[6:]), END),
    "text": png(13, 9, 8, 2, BODY, chunk(b"tEXt", b"Comment\0x")),
    "transparency": png(13, 9, 8, 2, BODY, chunk(b"tRNS", bytes(6))),
    "alpha": encoded(np.concatenate([RGB, RGB[..., :1]], axis=-1)),
    "16 bits": encoded(RGB[..., 0].astype(np.uint16) * 300),
    "4 bits": png(13, 9, 4, 0, bytes(9 * 8)),
    "interlaced": assembled(header(13, 9, 8, 2, 0, 0, 1), ROWS, END),
    "unknown compression": assembled(header(13, 9, 8, 2, 1, 0, 0), ROWS, END),
    "animated": encoded(Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(255 - RGB)]),
    "no end": assembled(header(), ROWS),
    "no rows": assembled(header(), END),
    "no palette": png(13, 9, 8, 3, b"".join(b"\0" + r[..., 0].tobytes() for r in RGB)),
    "rows apart": assembled(header(), FIRST, chunk(b"tIME", bytes(7)), SECOND, END),
    "two headers": assembled(header(), header(), ROWS, END),
    "a part of the wrong length": assembled(header(), chunk(b"pHYs", b"1"), ROWS, END),
    "a wrong checksum": DATA.replace(ROWS, ROWS[:-1] + bytes([ROWS[-1] ^ 1])),
    "a missing row": png(13, 9, 8, 2, BODY[:-40]),
    "a row too many": png(13, 9, 8, 2, BODY + BODY[:40]),
    "an unknown filter": png(13, 9, 8, 2, b"\7" + BODY[1:]),
    "no width": png(0, 9, 8, 2, BODY),
    "a bomb": png(1000, 1000, 8, 2, b""),
    "cut": DATA[:40],
    "no signature": b"x" + DATA[1:],
    "a long header": assembled(chunk(b"IHDR", DATA[16:29] + b"\0"), ROWS, END),
}


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_whatever_is_unusual_is_left_to_pillow(data: bytes) -> None:
    assert plain_samples(data, CAP, ALL) is None


def test_ordinary_parts_and_rows_in_several_parts_are_plain() -> None:
    dull = [chunk(b"gAMA", bytes(4)), chunk(b"sRGB", b"\0"), chunk(b"pHYs", bytes(9)), chunk(b"tIME", bytes(7))]
    samples = plain_samples(assembled(header(), *dull, FIRST, SECOND, END), CAP, ALL)
    assert samples is not None
    np.testing.assert_array_equal(samples, RGB)
    assert plain_samples(DATA, 13 * 9 - 1, ALL) is None, "one pixel above the cap"


def slow(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(data), formats=["PNG"]))


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_as_pillow_reads_them_or_left_to_it() -> None:
    """Rows are changed before they are packed, and parts after; checksums are set right, so that damage gets deep."""
    rng, read = np.random.default_rng(0), 0
    for i in range(1500):
        body = bytearray(BODY)
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
        data = png(13, 9, 8, 2, bytes(body))
        if i % 2:
            data = mended(mutate(data, rng))
        samples = plain_samples(data, CAP, ALL)
        if samples is not None:
            read += 1
            np.testing.assert_array_equal(samples.squeeze(), slow(data).squeeze())
    assert read > 500


def test_readers_return_the_same_with_and_without_the_quicker_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = encoded(RGB[..., 0])
    quick = images.read_image(DATA), images.read_label(ids), images.read_label(DATA, colours=True)
    monkeypatch.delitem(sys.modules, "numba")
    assert plain_samples(DATA, CAP, ALL) is None
    plain = images.read_image(DATA), images.read_label(ids), images.read_label(DATA, colours=True)
    for a, b in zip(quick, plain, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
