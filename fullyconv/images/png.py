"""PNG from the inside: checksums and sizes that Pillow lets pass, and a quicker way for the plain kinds."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fullyconv.images.limits import MAX_SIDE, BadImage

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["check_chunks", "check_rows", "plain_palette", "plain_samples", "row_bytes", "wide_grey_as_rgba"]

_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
MAX_CHUNKS = 2000  # parts that hold no pixels: Pillow looks at each
MAX_STORED = 200_000  # parts that do: 8 KiB each for the largest image that is read
_HARMLESS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}  # bytes; they change no pixel


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the contents of each whole part of the file."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            return
        yield kind, at + 8, at + 8 + length
        at += 12 + length


def _sound(data: bytes, start: int, end: int) -> bool:
    """Whether a part, with its kind, has the checksum that follows it."""
    return zlib.crc32(memoryview(data)[start - 4 : end]) == int.from_bytes(data[end : end + 4], "big")


def check_chunks(data: bytes, name: str) -> None:
    """Walks the parts and checks those that make pixels: Pillow would show an image whose bytes have changed."""
    others = stored = 0
    for kind, start, end in _chunks(data):
        full = kind == b"IDAT" and end > start
        stored, others = stored + full, others + (not full)
        if others > MAX_CHUNKS or stored > MAX_STORED:
            raise BadImage(name, f"is a PNG of over {stored + others - 1} parts, more than are read; save it anew.")
        if kind in _CRITICAL and not _sound(data, start, end):
            raise BadImage(name, f"is damaged (the checksum of its {kind.decode()} part is wrong); copy it again.")
        if kind == b"IEND":
            return
    raise BadImage(name, f"is cut off after {len(data)} bytes; copy it again.")


def row_bytes(data: bytes) -> int:
    """Bytes of a PNG's rows before compression, each with its filter byte, from the header; Adam7 passes summed."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    depth = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    total = 0
    for top, down, left, right in passes if interlaced else [(0, 1, 0, 1)]:
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        total += max(rows, 0) * (1 + (columns * depth + 7) // 8) if columns > 0 else 0
    return total


def check_rows(opened: PILImage.Image, data: bytes, name: str) -> None:
    """Pillow leaves rows black that a PNG claims but does not hold; counts them where the last row is black."""
    if opened.crop((0, opened.height - 1, opened.width, opened.height)).getbbox() is not None:
        return
    unpack, held, wanted = zlib.decompressobj(), 0, row_bytes(data)
    for kind, start, end in _chunks(data):
        part = data[start:end] if kind == b"IDAT" else b""
        while part and held < wanted and not unpack.eof:
            held += len(unpack.decompress(part, 1 << 20))
            part = unpack.unconsumed_tail
    if held < wanted:
        raise BadImage(name, f"holds {held} of the {wanted} bytes its size takes; copy or export it again.")


def wide_grey_as_rgba(data: bytes) -> bytes | None:
    """A PNG of 16-bit grey with alpha, which Pillow does not read, as one of 8-bit RGBA: the same four bytes a pixel
    (grey high, grey low, alpha high, alpha low), filtered alike. None for every other file, or a damaged header."""
    if data[:16] != _START or data[24:26] != b"\x10\x04" or not _sound(data, 16, 29):
        return None
    header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


# ---- the quicker way -------------------------------------------------------------------------------------------


def plain_samples(data: bytes, cap: int, colours: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """The samples H W C uint8 of a plain PNG of one of the colour types `colours` (0 grey, 2 RGB, 3 palette), the same
    as Pillow's; None for every other file, which is Pillow's to read or to refuse.

    Plain: 8 bits, not interlaced, without transparency, text or EXIF, whole and undamaged. Inflating all rows at once
    and undoing their filters in compiled code takes two thirds of Pillow's time. It is done where numba is loaded
    anyway: loading it would cost more than one image gains.
    """
    if sys.modules.get("numba") is None or data[:16] != _START or len(data) < 33:
        return None
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", data[16:29])
    if bits != 8 or colour not in colours or any(methods):
        return None
    if not 0 < max(width, height) <= MAX_SIDE or not 0 < width * height <= cap:
        return None
    channels, packed = 3 if colour == 2 else 1, _packed_rows(data, colour)
    rows = _inflated(packed, height * (1 + width * channels)) if packed else None
    return None if rows is None else _unfiltered(rows, (height, width, channels))


def plain_palette(data: bytes) -> NDArray[np.uint8]:
    """The colours N 3 of a PNG that `plain_samples` reads; empty without a palette."""
    found = next(((start, end) for kind, start, end in _chunks(data) if kind == b"PLTE"), None)
    if data[25] != 3 or found is None:
        return np.empty((0, 3), np.uint8)
    start, end = found
    return np.frombuffer(data[start : end - (end - start) % 3], np.uint8).reshape(-1, 3)


def _packed_rows(data: bytes, colour: int) -> bytes:
    """What a plain PNG's IDAT parts hold together; nothing where a checksum is wrong or any part unusual."""
    parts = []
    for part in _chunks(data):
        parts.append(part)
        if not _sound(data, *part[1:]) or _HARMLESS.get(part[0], part[2] - part[1]) != part[2] - part[1]:
            return b""
        if part[0] == b"IEND" or len(parts) > 10_000:
            break
    kinds = [kind for kind, _, _ in parts]
    stored = kinds.count(b"IDAT")
    usual = [b"IHDR", *[b"PLTE"] * (colour == 3), *[b"IDAT"] * stored, b"IEND"]
    if not stored or [k for k in kinds if k not in _HARMLESS] != usual:
        return b""
    at = kinds.index(b"IDAT")
    if kinds[at : at + stored] != [b"IDAT"] * stored:
        return b""
    return b"".join(memoryview(data)[start:end] for _, start, end in parts[at : at + stored])


def _inflated(packed: bytes, wanted: int) -> NDArray[np.uint8] | None:
    """Exactly `wanted` bytes, or None: never more memory than the size in the header stands for."""
    if wanted > 1100 * len(packed):  # deflate packs 1032 to 1 at best
        return None
    unpack = zlib.decompressobj()
    try:
        rows = unpack.decompress(packed, wanted + 1)
    except zlib.error:
        return None
    return np.frombuffer(rows, np.uint8) if unpack.eof and len(rows) == wanted else None


def _unfiltered(rows: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8] | None:
    import fullyconv.images.png_kernels as png_kernels

    samples = np.empty((shape[0], shape[1] * shape[2]), np.uint8)
    return samples.reshape(shape) if png_kernels.unfilter(rows, shape[2], samples) else None
