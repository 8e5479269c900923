"""From a path or bytes to an open image: what the file is, whether it may be decoded, and decoding it whole."""

from __future__ import annotations

import errno
import os
import stat
from io import BytesIO
from typing import TYPE_CHECKING

from fullyconv.errors import MissingInput, StorageError, printable
from fullyconv.images.jpeg import check_scans
from fullyconv.images.limits import MAX_BYTES, MAX_PIXELS, MAX_SIDE, BadImage, Source, lifted, too_large
from fullyconv.images.png import check_chunks, check_rows, row_bytes
from fullyconv.images.tiff import check_pages
from fullyconv.images.webp import check_parts

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL.ImageFile import ImageFile

__all__ = ["decode", "name_of", "open_image", "orientation_of", "read_bytes", "words"]


def name_of(source: Source) -> str:
    return "the image" if isinstance(source, bytes) else os.fspath(source)


def read_bytes(source: Source) -> bytes:
    """The bytes of a regular file that starts like an image; never blocks, never reads what it will refuse."""
    if isinstance(source, bytes):
        return source
    name = os.fspath(source)
    try:
        handle = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(f"{printable(name)} does not exist; check the path.") from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise BadImage(name, "is a link to itself; replace it by the file.") from error
        raise MissingInput(f"{printable(name)} cannot be opened ({error}); check its name and rights.") from error
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise BadImage(name, "is not a regular file (a folder, pipe or device); give an image file.")
    with os.fdopen(handle, "rb") as file:
        if info.st_size > MAX_BYTES:
            raise BadImage(name, f"is {info.st_size} bytes large, more than {MAX_BYTES}; that is no single image.")
        try:
            head = file.peek(64)[:64]
            _sniff(head, name)
            _plausible(head, info.st_size, name)
            return file.read()
        except OSError as error:
            raise StorageError(f"{printable(name)} cannot be read ({error.strerror}); check the disk.") from error


SPARE = 2**26  # bytes beyond its pixels that a file may hold: metadata


def _plausible(head: bytes, size: int, name: str) -> None:
    """Refuses, unread, a PNG, BMP or WebP that is much larger than its pixels: such files are mostly holes."""
    if head[:4] == b"\x89PNG" and len(head) >= 33:
        most = row_bytes(head) * 2 + SPARE
    elif head[:2] == b"BM" and len(head) >= 30:
        w, h = (abs(int.from_bytes(head[i : i + 4], "little", signed=True)) for i in (18, 22))
        most = 4 * w * h + SPARE
    elif head[8:15] == b"WEBPVP8" and len(head) >= 30 and not (head[15:16] == b"X" and head[20] & 2):  # 2: animated
        most = 4 * _webp_pixels(head) + SPARE
    else:
        return
    if size > most:
        raise BadImage(name, f"is {size} bytes large, far more than its pixels take; save it anew.")


def _webp_pixels(head: bytes) -> int:
    """Of the canvas, by the first part's header (RFC 9649; 14 bits a side in the plain kinds, 24 in VP8X)."""
    bits = int.from_bytes(head[24:30], "little")
    if head[12:16] == b"VP8X":
        return ((bits & 0xFFFFFF) + 1) * ((bits >> 24) + 1)
    if head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    return (bits >> 16 & 0x3FFF) * (bits >> 32 & 0x3FFF)


def _sniff(data: bytes, name: str) -> str:
    """The format by the first bytes; refuses all that is not in `FORMATS`."""
    if not data:
        raise BadImage(name, "is empty (0 bytes); copy it again from its source.")
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:2] == b"BM":
        return "BMP"
    known = {b"GIF8": "a GIF", b"%PDF": "a PDF", b"PK\3\4": "a zip archive", b"\0\0\0": "HEIC, AVIF or JPEG 2000"}
    what = next((v for k, v in known.items() if data.startswith(k)), "none of these by its content")
    if data.lstrip()[:1] in (b"<", b"{"):
        what = "text (a web page or an error message saved under an image's name?)"
    raise BadImage(name, f"is {what}; PNG, JPEG, WebP, TIFF and BMP are read: convert it.")


def open_image(data: bytes, name: str, cap: int) -> ImageFile:
    """The image with its header read and checked, its pixels not yet decoded."""
    from PIL import Image

    kind = _sniff(data, name)
    if kind == "PNG":
        check_chunks(data, name)
    elif kind == "JPEG":
        check_scans(data, name)
    elif kind == "WEBP":
        check_parts(data, name)
    elif kind == "TIFF":
        check_pages(lambda start, length: data[start : start + length], len(data), name, cap)
    try:
        with lifted(cap):
            opened = Image.open(BytesIO(data), formats=[kind])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise too_large(name, f"over {MAX_PIXELS}", cap) from error
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged files
        raise BadImage(name, f"cannot be read as {kind} ({words(error)}); copy or export it again.") from error
    w, h = opened.size
    if w < 1 or h < 1 or max(w, h) > MAX_SIDE:
        raise BadImage(name, f"claims to be {h}x{w} (HxW) pixels; export it again.")
    if w * h > cap:
        raise too_large(name, w * h, cap)
    lying = row_bytes(data) > 1100 * len(data) if kind == "PNG" else False  # deflate packs 1032 to 1 at best
    if kind == "JPEG":  # a bit at least for each 8x8 block, and libjpeg makes up for missing ones without a word
        lying = w * h > 512 * len(data)
    if lying:
        raise BadImage(name, f"claims {h}x{w} (HxW) pixels, more than its {len(data)} bytes can hold; export it again.")
    return opened


def words(error: Exception) -> str:
    text = printable(error).strip() or type(error).__name__
    return "unknown or damaged header" if "BytesIO" in text else text[:120]


def decode(opened: PILImage.Image, data: bytes, name: str, cap: int) -> None:
    try:
        with lifted(cap):
            opened.load()
        if opened.format == "PNG":
            check_rows(opened, data, name)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, f"is damaged or cut off ({words(error)}); copy or export it again.") from error


def orientation_of(opened: PILImage.Image) -> int:
    """EXIF orientation 1..8; a damaged or absent tag counts as 1."""
    try:
        value = opened.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
