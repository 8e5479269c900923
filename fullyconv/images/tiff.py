"""TIFF from the inside: what a page says of itself, and its samples exactly as stored.

Pillow shows a TIFF (WhiteIsZero inverted, 16-bit colour cut, first page taken) and knows few sample types. Labels and
bands are numbers, so they are read here: whole numbers and floats of 1 to 64 bits, strips or tiles, by pixel or by
plane, either byte order, BigTIFF. Compressed bytes are unpacked by libtiff, to which they are shown as rows of bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.images.limits import MAX_SIDE, BadImage, lifted, too_large

__all__ = [
    "Page",
    "check_page",
    "check_pages",
    "first_page",
    "is_tiff",
    "pages",
    "same_value",
    "samples",
    "wide_enough",
]

At = Callable[[int, int], bytes]  # (offset, length) -> the bytes there, fewer at the end

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PACKING, _PHOTOMETRIC, _FILL = 254, 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _BANDS, _ROWS, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_T4, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 292, 317, 322, 323, 324, 325
_COLOURS, _EXTRA, _FORMAT, _NODATA = 320, 338, 339, 42113
_WANTED = {v for k, v in globals().items() if k.startswith("_") and k[1:].isupper() and isinstance(v, int)}
_PLACES = {33550, 33922, 34264, 34735}  # GeoTIFF's scale, tie points, matrix and keys: their presence is enough
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}  # bytes by type of tag
_NONE, _LZW, _PACKBITS, _FAX = 1, 5, 32773, (2, 3, 4)
# LZW, Deflate and PackBits by their formats (12 bits for 4096 bytes, 1032 to 1, 2 bytes for 128), the rest generously.
_RATIOS = {1: 1, 2: 20_000, 3: 20_000, 4: 20_000, 5: 4000, 8: 1100, 32946: 1100, 32773: 70, 34925: 40_000}
_RATIOS[50000] = 40_000  # zstandard
"""How many bytes one compressed byte can stand for at most, by compression; the keys are what is unpacked here."""
MAX_PAGES = 1000  # pyramids and masks have a dozen; each costs a read
MAX_TAGS = 1000  # of a page: the standard has some 100
BYTES_A_PIXEL = 16  # of the cap: so many bytes are decoded at most for each pixel that is read at most


def is_tiff(head: bytes) -> bool:
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@final
@dataclass(frozen=True)
class Page:
    """One image file directory: `tags` numbers (or text) by tag; `order` "<" or ">"."""

    order: Literal["<", ">"]
    tags: Mapping[int, Any]
    name: str

    def number(self, tag: int, default: int = 0) -> int:
        values = self.tags.get(tag, ())
        return int(values[0]) if len(values) and not isinstance(values, str) else default

    def numbers(self, tag: int, default: tuple[int, ...] = ()) -> list[int]:
        """A tag's values; none where it holds text."""
        values = self.tags.get(tag, default)
        return [] if isinstance(values, str) else [int(v) for v in values]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) as stored."""
        return self.number(_HEIGHT), self.number(_WIDTH)

    @property
    def bands(self) -> int:
        return self.number(_BANDS, 1)

    @property
    def bits(self) -> int:
        """Bits a sample; 0 where they differ from band to band."""
        values = set(self.numbers(_BITS, (1,)))
        return values.pop() if len(values) == 1 else 0

    @property
    def photometric(self) -> int:
        return self.number(_PHOTOMETRIC, 1)

    @property
    def compression(self) -> int:
        return self.number(_PACKING, 1)

    @property
    def orientation(self) -> int:
        value = self.number(_ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The samples' type, those of less than a byte as uint8; None for what numpy has no number for."""
        formats = set(self.numbers(_FORMAT, (1,)))
        kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(formats.pop() if len(formats) == 1 else 0)
        if kind == "u" and self.bits in (1, 2, 4):
            return np.dtype(np.uint8)
        known = kind and (self.bits in (16, 32, 64) or (self.bits == 8 and kind != "f"))
        return np.dtype(f"{kind}{self.bits // 8}") if known else None

    @property
    def alpha(self) -> bool:
        """Whether the last band is declared to be alpha."""
        extra = self.numbers(_EXTRA)
        return len(extra) > 0 and extra[-1] in (1, 2)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """The colours N 3 of a palette page; empty for others."""
        table = np.asarray(self.tags.get(_COLOURS, ())) if self.photometric == 3 else np.empty(0)
        return (table[: len(table) // 3 * 3].reshape(3, -1).T.astype(np.uint32) >> 8).astype(np.uint8)

    @property
    def georeferenced(self) -> bool:
        """Whether the page says where on a map it lies."""
        return bool(_PLACES & self.tags.keys())

    @property
    def reduced(self) -> bool:
        """Whether the page is a smaller copy of another (an overview)."""
        return bool(self.number(_SUBFILE) & 1)

    @property
    def mask(self) -> bool:
        """Whether the page says which pixels of another are valid."""
        return bool(self.number(_SUBFILE) & 4)

    @property
    def nodata(self) -> float | None:
        """The value declared to mean "nothing was measured here" (GDAL's tag); None without."""
        text = self.tags.get(_NODATA, "")
        try:
            return float(text) if isinstance(text, str) and text else None
        except ValueError:
            return None

    @property
    def readable(self) -> bool:
        """Whether `samples` reads this layout."""
        known = self.compression in _RATIOS and (self.compression not in _FAX or (self.bits, self.bands) == (1, 1))
        plain = self.number(_FILL, 1) == 1 or self.compression == _NONE or self.compression in _FAX
        return self.dtype is not None and known and plain and self.number(_PREDICTOR, 1) in (1, 2, 3)

    @cached_property
    def segments(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(offsets, byte counts) of the strips or tiles."""
        first, second = (_TILES, _TILE_BYTES) if _TILES in self.tags else (_STRIPS, _STRIP_BYTES)
        return np.asarray(self.tags.get(first, ()), np.int64), np.asarray(self.tags.get(second, ()), np.int64)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """(rows, columns) of a segment in pixels, and how many of them lie below and beside each other."""
        h, w = self.size
        if _TILES in self.tags:
            rows, columns = self.number(_TILE_HEIGHT), self.number(_TILE_WIDTH)
        else:
            rows, columns = min(self.number(_ROWS, h) or h, h), w
        return rows, columns, -(-h // max(rows, 1)), -(-w // max(columns, 1))

    @cached_property
    def absent(self) -> NDArray[np.bool_] | None:
        """Which segments of `grid` (down x across) were never written, in whichever plane; None where all were."""
        counts = self.segments[1]
        _, _, down, across = self.grid
        if not len(counts) or counts.all() or len(counts) % max(down * across, 1):
            return None
        found: NDArray[np.bool_] = (counts.reshape(-1, down, across) == 0).any(axis=0)
        return found

    def absent_pixels(self, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_] | None:
        """Which pixels of a window, as stored, lie in segments that were never written; None for none."""
        if self.absent is None:
            return None
        rows, columns, _, _ = self.grid
        found = self.absent[np.arange(top, bottom) // rows][:, np.arange(left, right) // columns]
        return found if found.any() else None


def pages(at: At, name: str) -> Iterator[Page]:
    """The pages of a TIFF one after the other, `MAX_PAGES` of them at most; a chain that runs in a circle ends."""
    head = at(0, 16)
    order: Literal["<", ">"] = ">" if head[:2] == b"MM" else "<"
    big = head[2:4] in (b"+\0", b"\0+")
    if not is_tiff(head) or len(head) < (16 if big else 8):
        raise BadImage(name, "is no TIFF; copy or export it again.")
    where = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])[0]
    seen: set[int] = set()
    while where and where not in seen and len(seen) < MAX_PAGES:
        seen.add(where)
        page, where = _page(at, name, order, big, where)
        yield page


def first_page(at: At, name: str) -> Page:
    """The first page; BadImage where there is none."""
    found = next(pages(at, name), None)
    if found is None:
        raise BadImage(name, "is a TIFF without an image; copy or export it again.")
    return found


def _page(at: At, name: str, order: Literal["<", ">"], big: bool, where: int) -> tuple[Page, int]:
    number, long, size, width = (order + "Q", order + "Q", 20, 8) if big else (order + "H", order + "I", 12, 4)
    head = at(where, struct.calcsize(number))
    if len(head) < struct.calcsize(number):
        raise BadImage(name, "is cut off or damaged (a page lies behind its end); copy or export it again.")
    count = struct.unpack(number, head)[0]
    table = at(where + len(head), count * size + width) if count <= MAX_TAGS else b""
    if len(table) < count * size:
        raise BadImage(name, f"is cut off or damaged (a page of {count} entries); copy or export it again.")
    tags: dict[int, Any] = {}
    for i in range(count):
        entry = table[i * size : (i + 1) * size]
        tag, kind = struct.unpack(order + "HH", entry[:4])
        if tag in _PLACES:
            tags[tag] = ()
        elif tag in _WANTED and kind in _SIZES:
            tags[tag] = _values(at, name, entry, order, long, width)
    rest = table[count * size : count * size + width]
    return Page(order, tags, name), struct.unpack(long, rest)[0] if len(rest) == width else 0


def _values(at: At, name: str, entry: bytes, order: str, long: str, width: int) -> Any:
    """The numbers (or the text) of one entry."""
    tag, kind = struct.unpack(order + "HH", entry[:4])
    count = struct.unpack(long, entry[4 : 4 + width])[0]
    raw, whole = entry[4 + width :], count * _SIZES[kind]
    if tag not in (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES) and count > 65_536:
        raise BadImage(name, f"is damaged (its tag {tag} claims {count} values); copy or export it again.")
    if whole > width:
        raw = at(struct.unpack(long, raw)[0], whole)
    if len(raw) < whole:
        raise BadImage(name, f"is cut off or damaged (tag {tag} lies behind its end); copy or export it again.")
    if kind in (2, 7):
        return raw[:whole].split(b"\0")[0].decode("ascii", "replace").strip()
    signed = {6: "i1", 8: "i2", 9: "i4", 17: "i8"}.get(kind)
    return np.frombuffer(raw[:whole], order + (signed or f"u{_SIZES[kind]}"))


def check_pages(at: At, length: int, name: str, cap: int) -> list[Page]:
    """The pages of a TIFF, the first one's sizes checked against its bytes and the pixel cap before anything is
    decoded: decoders take a header at its word."""
    found = list(pages(at, name))
    if not found:
        raise BadImage(name, "is a TIFF without an image; copy or export it again.")
    check_page(found[0], length, name, cap)
    return found


def check_page(page: Page, length: int, name: str, cap: int) -> None:
    """`check_pages` of one page of a file of `length` bytes."""
    h, w = page.size
    if h < 1 or w < 1 or max(h, w) > MAX_SIDE:
        raise BadImage(name, f"claims to be {h}x{w} (HxW) pixels; export it again.")
    if h * w > cap:
        raise too_large(name, h * w, cap)
    rows, columns, down, across = page.grid
    planes = page.bands if page.number(_PLANAR, 1) == 2 else 1
    offsets, counts = page.segments
    if rows < 1 or columns < 1 or (_TILES in page.tags and rows * columns > max(4 * h * w, 1 << 22)):
        raise BadImage(name, f"has tiles of {rows}x{columns} (HxW) for {h}x{w} pixels; export it again.")
    if len(offsets) < down * across * planes or len(counts) not in (0, len(offsets)):
        raise BadImage(name, f"holds {len(offsets)} of {down * across * planes} parts; copy or export it again.")
    if len(counts) and (counts.min() < 0 or int((offsets + counts).max()) > length):
        raise BadImage(name, "is cut off (a part lies behind its end); copy or export it again.")
    packed = int(np.minimum(counts, length).sum()) if len(counts) else length
    whole = page.bands * max(page.bits, 1) * rows * columns * down * across // 8
    if page.bands < 1 or whole > BYTES_A_PIXEL * cap:
        raise too_large(name, f"{h * w} of {page.bands} bands", cap)
    empty = len(counts) and not counts.all()  # parts left out stand for nodata
    ratio = _RATIOS.get(page.compression, 4000)
    if not empty and h * -(-w * page.bands * max(page.bits, 1) // 8) > ratio * (packed + 64):
        raise BadImage(name, f"claims {h}x{w} (HxW) pixels, more than its {packed} bytes can hold; export it again.")


# ---- samples -----------------------------------------------------------------------------------------------------


def samples(data: bytes, page: Page, name: str) -> NDArray[Any]:
    """The numbers of a page that `check_pages` passed: H W C in the type in which they are stored (`Page.dtype`).

    No photometric meaning is applied. Parts that the file leaves out hold the declared nodata value, or 0.
    """
    dtype = page.dtype
    if dtype is None or not page.readable:
        raise BadImage(name, f"is a TIFF of a layout that is not read ({layout_of(page)}); save it uncompressed.")
    rows, columns, down, across = page.grid
    h, w = page.size
    separate = page.number(_PLANAR, 1) == 2
    planes, channels = (page.bands, 1) if separate else (1, page.bands)
    out = np.empty((planes, down * rows, across * columns, channels), dtype)
    nodata = page.nodata
    fill: Any = 0 if nodata is None or not _fits(nodata, dtype) else nodata
    parts = _unpacked(data, page, name, -(-columns * channels * page.bits // 8))
    for index, part in enumerate(parts):
        plane, place = divmod(index, down * across)
        y, x = (place // across) * rows, (place % across) * columns
        if part is None:
            out[plane, y : y + rows, x : x + columns] = fill
        else:
            out[plane, y : y + len(part), x : x + columns] = _numbers(part, page, columns, channels)
    whole = out[:, :h, :w]
    return np.ascontiguousarray(np.moveaxis(whole[..., 0], 0, -1) if separate else whole[0])


def wide_enough(value: float) -> bool:
    """Whether a value can be a class id as it is: a whole number in 0..65534."""
    return value == value and 0 <= value <= 65534 and value == int(value)


def same_value(values: NDArray[np.number], nodata: float | None) -> NDArray[np.bool_]:
    """Where `values` are the declared nodata value, which a file writes in decimals."""
    if nodata is None:
        return np.zeros(values.shape, bool)
    if nodata != nodata:
        return np.asarray(np.isnan(values)) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind == "f":
        return np.asarray(np.isclose(values, nodata, rtol=1e-6, atol=0))
    return np.asarray(values == nodata) if nodata.is_integer() else np.zeros(values.shape, bool)


def layout_of(page: Page) -> str:
    """The layout in words, for errors."""
    bits = ", ".join(map(str, dict.fromkeys(page.numbers(_BITS, (1,)))))
    return f"{bits} bits a sample, compression {page.compression}"


def _fits(value: float, dtype: np.dtype[np.integer]) -> bool:
    if dtype.kind == "f":
        return True
    info = np.iinfo(dtype)
    return value == value and info.min <= value <= info.max


def _unpacked(data: bytes, page: Page, name: str, row: int) -> Iterator[NDArray[np.uint8] | None]:
    """Each strip or tile as rows of `row` bytes; None for one that the file leaves out."""
    rows, _, down, across = page.grid
    h = page.size[0]
    offsets, counts = page.segments
    planes = page.bands if page.number(_PLANAR, 1) == 2 else 1
    short = 0 if _TILES in page.tags else h - rows * (down - 1)  # rows of each plane's last strip
    heights = [rows if _TILES in page.tags or place < down - 1 else short for place in range(down)] * planes
    heights = heights if _TILES not in page.tags else [rows] * (down * across * planes)
    if not len(counts):  # old writers of uncompressed files gave none
        counts = np.array([hh * row for hh in heights], np.int64)
    there = [i for i in range(len(heights)) if counts[i] and offsets[i]]
    if page.compression == _NONE:
        for i, height in enumerate(heights):
            held = counts[i] and offsets[i]
            yield _plain(_part(data, offsets, counts, i), height, row, page, name) if held else None
        return
    full = [i for i in there if heights[i] == rows]
    stacked = iter(_by_libtiff([_part(data, offsets, counts, i) for i in full], rows, row, page, name))
    whole = set(full)
    for i, height in enumerate(heights):
        if i in whole:
            yield next(stacked)
        elif counts[i] and offsets[i]:
            yield _by_libtiff([_part(data, offsets, counts, i)], height, row, page, name)[0]
        else:
            yield None


def _part(data: bytes, offsets: NDArray[np.int64], counts: NDArray[np.int64], i: int) -> bytes:
    return data[offsets[i] : offsets[i] + counts[i]]


def _plain(part: bytes, height: int, row: int, page: Page, name: str) -> NDArray[np.uint8]:
    if len(part) < height * row:
        raise BadImage(name, f"is cut off (a part holds {len(part)} of {height * row} bytes); copy or export it again.")
    values = np.frombuffer(part[: height * row], np.uint8).reshape(height, row)
    if page.number(_FILL, 1) == 2 and page.bits < 8:
        values = np.packbits(np.unpackbits(values, axis=1, bitorder="little"), axis=1)
    return values


def _by_libtiff(parts: list[bytes], height: int, row: int, page: Page, name: str) -> NDArray[np.uint8]:
    """Compressed parts of `height` rows each -> n height row uint8: libtiff sees the strips of a grey image."""
    from io import BytesIO

    from PIL import Image

    if not parts:
        return np.empty((0, height, row), np.uint8)
    fax = page.compression in _FAX
    width = page.grid[1] if fax else row
    wrapped = _wrapped(parts, (height * len(parts), width, height), page, fax)
    try:
        with lifted(height * len(parts) * width):
            values = np.asarray(Image.open(BytesIO(wrapped), formats=["TIFF"]))
    except Exception as error:
        text = str(error).split("\n")[0][:100]
        raise BadImage(name, f"is damaged or cut off ({text}); copy or export it again.") from error
    if values.shape != (height * len(parts), width):
        raise BadImage(name, "is damaged (its parts do not unpack to its size); copy or export it again.")
    packed = np.packbits(values, axis=1) if fax else values
    return packed.reshape(len(parts), height, -1)


def _wrapped(parts: list[bytes], shape: tuple[int, int, int], page: Page, fax: bool) -> bytes:
    """A TIFF of one grey page (`shape`: rows, columns, rows a strip) around compressed strips."""
    rows, columns, strip = shape
    starts = np.cumsum([8, *(len(p) for p in parts)])
    end, n = int(starts[-1]), len(parts)
    more = end + end % 2
    lists = (starts[:-1].astype("<u4").tobytes(), np.array([len(p) for p in parts], "<u4").tobytes())
    places = (more, more + 4 * n) if n > 1 else (int(starts[0]), len(parts[0]))
    tags = [
        (_WIDTH, 4, 1, columns), (_HEIGHT, 4, 1, rows), (_BITS, 3, 1, 1 if fax else 8),
        (_PACKING, 3, 1, page.compression), (_PHOTOMETRIC, 3, 1, 1), (_FILL, 3, 1, page.number(_FILL, 1)),
        (_STRIPS, 4, n, places[0]), (_BANDS, 3, 1, 1), (_ROWS, 4, 1, strip), (_STRIP_BYTES, 4, n, places[1]),
        *([(_T4, 4, 1, page.number(_T4))] if page.compression == 3 else []),
    ]  # fmt: skip
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + b"\0\0\0\0"
    where = more + (8 * n if n > 1 else 0)
    body = b"".join(parts) + b"\0" * (end % 2) + (b"".join(lists) if n > 1 else b"")
    return struct.pack("<2sHI", b"II", 42, where) + body + table


def _numbers(part: NDArray[np.uint8], page: Page, columns: int, channels: int) -> NDArray[Any]:
    """Rows of bytes -> rows columns channels in the page's type, its predictor undone."""
    dtype, rows = page.dtype, len(part)
    assert dtype is not None
    if page.bits < 8:
        each = np.unpackbits(part, axis=1).reshape(rows, -1, page.bits)
        values = each @ (1 << np.arange(page.bits)[::-1]).astype(np.uint8)
        return values[:, : columns * channels].reshape(rows, columns, channels)
    predictor = page.number(_PREDICTOR, 1) if page.compression not in (_NONE, _PACKBITS, *_FAX) else 1
    if predictor == 3:
        return _unfloated(part, dtype, columns, channels)
    part = np.ascontiguousarray(part)
    values = part.view(dtype.newbyteorder(page.order)).reshape(rows, columns, channels).astype(dtype)
    if predictor == 2:
        unsigned = values.view(f"u{dtype.itemsize}")
        values = np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(dtype)
    return values


def _unfloated(part: NDArray[np.uint8], dtype: np.dtype[np.generic], columns: int, channels: int) -> NDArray[Any]:
    """Predictor 3 undone: rows hold the samples' highest bytes first, then the next, each as a difference."""
    rows = len(part)
    summed = np.cumsum(part.reshape(rows, -1, channels), axis=1, dtype=np.uint8).reshape(rows, dtype.itemsize, -1)
    swapped = np.ascontiguousarray(np.moveaxis(summed, 1, 2))
    return swapped.view(dtype.newbyteorder(">")).reshape(rows, columns, channels).astype(dtype)
