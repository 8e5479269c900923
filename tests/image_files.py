"""Image files as bytes: encoded by Pillow, written by hand, and damaged."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(array: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG written by hand: colour type 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA; rows with filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(
    values: NDArray[Any], *, order: str = "<", big: bool = False, nodata: str = "", more: dict[int, int] | None = None,
    deflate: bool = False, pages: int = 1,
) -> bytes:  # fmt: skip
    """A TIFF written by hand: `values` H W or H W C of any type in one strip; `more`: further tags (or others)."""
    h, w, *c = values.shape
    bands = c[0] if c else 1
    raw = np.ascontiguousarray(values, values.dtype.newbyteorder(order)).tobytes()
    raw = zlib.compress(raw) if deflate else raw
    out = struct.pack(order + "2sHHHQ" if big else order + "2sHI", b"II" if order == "<" else b"MM",
                      *((43, 8, 0, 16 + len(raw)) if big else (42, 8 + len(raw)))) + raw  # fmt: skip
    kind = {"u": 1, "i": 2, "f": 3, "b": 1}[values.dtype.kind]
    numbers = {
        256: [w], 257: [h], 258: [8 * values.dtype.itemsize] * bands, 259: [8 if deflate else 1],
        262: [1 if bands < 3 else 2], 273: [16 if big else 8], 277: [bands], 278: [h], 279: [len(raw)],
        339: [kind] * bands,
    } | {tag: [v] for tag, v in (more or {}).items()}  # fmt: skip
    long, size = ("Q", 8) if big else ("I", 4)
    for n in range(pages):
        entries, texts = [], b""
        count = len(numbers) + bool(nodata)
        end = len(out) + (8 if big else 2) + count * (20 if big else 12) + size
        for tag, many in sorted((numbers | ({42113: [0]} if nodata else {})).items()):
            packed = nodata.encode() + b"\0" if tag == 42113 else struct.pack(f"{order}{len(many)}{long}", *many)
            kinds = (2, len(packed)) if tag == 42113 else (16 if big else 4, len(many))
            place = packed.ljust(size, b"\0")
            if len(packed) > size:
                place = struct.pack(order + long, end + len(texts))
                texts += packed
            entries.append(struct.pack(f"{order}HH{long}", tag, *kinds) + place)
        following = end + len(texts) if n + 1 < pages else 0
        out += struct.pack(order + ("Q" if big else "H"), count) + b"".join(entries)
        out += struct.pack(order + long, following) + texts
    return out


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips, overwrites, cuts, repeats or joins; half of the time PNG checksums are set right, to get deeper."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(out)))
        match int(rng.integers(5)):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at : at + 4] = rng.bytes(4)
            case 2:
                del out[at : at + int(rng.integers(1, 30))]
            case 3:
                out[at:at] = out[at : at + int(rng.integers(1, 30))]
            case _:
                out[at : at + 4] = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"][int(rng.integers(3))]
        if not out:
            return b""
    return mended(bytes(out)) if rng.random() < 0.5 else bytes(out)


def mended(data: bytes) -> bytes:
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 12 + int.from_bytes(out[at : at + 4], "big")
        if end > len(out):
            break
        out[end - 4 : end] = struct.pack(">I", zlib.crc32(out[at + 4 : end - 4]))
        at = end
    return bytes(out)
