"""The one decoder and encoder of pictures and label maps; everything that reads a picture reads it here.

What a file is, its first bytes decide, never its suffix: PNG, JPEG, WebP, TIFF and BMP are read, the rest is refused.
A file is opened without ever blocking (FIFOs and devices are refused), checked against a pixel cap before it is
decoded, and decoded whole or not at all: every failure is a `BadImage` (or `MissingInput`) that names the file.

picture          `read_image(mode="rgb")`: H W 3 uint8             `read_image(mode="bands")`: H W C as stored
1, L, P          grey repeated / palette applied                   1, L: one band; P: its colours
LA, PA, RGBA     alpha dropped                                     alpha is the last band
16-bit           scaled: the high byte (never clipped to 255)      uint16
CMYK, YCbCr      converted to RGB                                  CMYK: four bands
32-bit, float    refused: no range is known                        float32 (integers up to 65535: uint16)
EXIF             turned as viewers show it                         the same
animated, pages  the first frame                                   the first frame
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingInput, StorageError, printable

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "BadImage",
    "ImageInfo",
    "encode_label",
    "encode_png",
    "image_info",
    "image_size",
    "pixel_cap",
    "read_bytes",
    "read_image",
    "read_label",
    "read_palette",
    "turn",
    "write_label",
]

Source = str | os.PathLike[str] | bytes
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
MAX_PIXELS = 89_478_485  # 256 MiB of RGB: Pillow's own warning level
MAX_BYTES = 2**31
_SIDE = 1 << 20  # no picture is a million pixels long; such headers are lies


@final
class BadImage(DataError):
    """A file that is not a readable picture: `file`, and the `reason` without the file's name."""

    def __init__(self, file: str, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"{printable(file)}: {reason}")


@final
@dataclass(frozen=True)
class ImageInfo:
    """What a picture's header says. `size` (H, W) is as displayed, `stored` as written; they differ by EXIF turns."""

    format: str
    mode: str  # Pillow's name of the pixel layout
    bits: int  # per channel as stored
    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int  # EXIF 1..8
    frames: int  # 2 stands for "more than one"
    lossy: bool


def pixel_cap() -> int:
    """The largest number of pixels a picture may have: $FULLYCONV_MAX_PIXELS or `MAX_PIXELS`."""
    text = os.environ.get("FULLYCONV_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    if not text.isdigit() or int(text) < 1:
        raise DataError(f"FULLYCONV_MAX_PIXELS is {text!r}; give a whole number of pixels, such as {MAX_PIXELS}.")
    return int(text)


# ---- opening ---------------------------------------------------------------------------------------------------


def _name(source: Source) -> str:
    return "the picture" if isinstance(source, bytes) else os.fspath(source)


def read_bytes(source: Source) -> bytes:
    """The bytes of a regular file that starts like a picture; never blocks, never reads what it will refuse."""
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
        raise BadImage(name, "is not a regular file (a folder, pipe or device); give a picture file.")
    with os.fdopen(handle, "rb") as file:
        if info.st_size > MAX_BYTES:
            raise BadImage(name, f"is {info.st_size} bytes large, more than {MAX_BYTES}; that is no single picture.")
        try:
            head = file.read(16)
            _sniff(head, name)
            return head + file.read()
        except OSError as error:
            raise StorageError(f"{printable(name)} cannot be read ({error.strerror}); check the disk.") from error


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
        what = "text (a web page or an error message saved under a picture's name?)"
    raise BadImage(name, f"is {what}; PNG, JPEG, WebP, TIFF and BMP are read: convert it.")


def _check_png(data: bytes, name: str) -> None:
    """Walks the chunks and checks those that make pixels: Pillow would show a picture whose bytes have changed."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        critical = kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS")
        if critical and zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise BadImage(name, f"is damaged (the checksum of its {kind.decode()} part is wrong); copy it again.")
        if kind == b"IEND":
            return
        at = end
    raise BadImage(name, f"is cut off after {len(data)} bytes; copy it again.")


def _png_rows(data: bytes) -> int:
    """Bytes of a PNG's rows before compression, each with its filter byte, from the header; Adam7 passes summed."""
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    depth = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    passes = [(0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)]
    total = 0
    for top, down, left, right in passes if interlaced else [(0, 1, 0, 1)]:
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        total += max(rows, 0) * (1 + (columns * depth + 7) // 8) if columns > 0 else 0
    return total


def _whole_png(picture: PILImage.Image, data: bytes, name: str) -> None:
    """Pillow leaves rows black that a PNG claims but does not hold; counts them where the last row is black."""
    if picture.crop((0, picture.height - 1, picture.width, picture.height)).getbbox() is not None:
        return
    unpack, at, held, wanted = zlib.decompressobj(), 8, 0, _png_rows(data)
    while at + 8 <= len(data) and held < wanted and not unpack.eof:
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        part = data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while part and held < wanted and not unpack.eof:
            held += len(unpack.decompress(part, 1 << 20))
            part = unpack.unconsumed_tail
        at += 12 + length
    if held < wanted:
        raise BadImage(name, f"holds {held} of the {wanted} bytes its size takes; copy or export it again.")


_lock = threading.Lock()


@contextmanager
def _limits(cap: int) -> Iterator[None]:
    """Pillow's own bomb check at `cap`: below its default the warning is an error, above it the limit is lifted."""
    from PIL import Image

    if cap <= MAX_PIXELS:
        yield
        return
    with _lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, cap
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _pillow() -> None:
    from PIL import Image

    key = ("error", None, Image.DecompressionBombWarning, None, 0)
    if key not in warnings.filters:
        warnings.simplefilter("error", Image.DecompressionBombWarning)


def _too_large(name: str, pixels: object, cap: int) -> BadImage:
    return BadImage(
        name,
        f"has {pixels} pixels, more than the {cap} that are read; cut it into tiles, or raise FULLYCONV_MAX_PIXELS.",
    )


def _open(data: bytes, name: str, cap: int) -> PILImage.Image:
    """The picture with its header read and checked, its pixels not yet decoded."""
    from PIL import Image

    kind = _sniff(data, name)
    if kind == "PNG":
        _check_png(data, name)
    _pillow()
    try:
        with _limits(cap):
            picture = Image.open(BytesIO(data), formats=[kind])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large(name, f"over {MAX_PIXELS}", cap) from error
    except Exception as error:  # Pillow's readers raise a dozen kinds on damaged files
        raise BadImage(name, f"cannot be read as {kind} ({_words(error)}); copy or export it again.") from error
    w, h = picture.size
    if w < 1 or h < 1 or max(w, h) > _SIDE:
        raise BadImage(name, f"claims to be {h}x{w} (HxW) pixels; export it again.")
    if w * h > cap:
        raise _too_large(name, w * h, cap)
    if kind == "PNG" and _png_rows(data) > 1100 * len(data):  # deflate packs 1032 to 1 at best
        raise BadImage(name, f"claims {h}x{w} (HxW) pixels, more than its {len(data)} bytes can hold; export it again.")
    return picture


def _words(error: Exception) -> str:
    text = printable(error).strip() or type(error).__name__
    return "unknown or damaged header" if "BytesIO" in text else text[:120]


def _decode(picture: PILImage.Image, data: bytes, name: str, cap: int) -> None:
    try:
        with _limits(cap):
            picture.load()
        if picture.format == "PNG":
            _whole_png(picture, data, name)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(name, f"is damaged or cut off ({_words(error)}); copy or export it again.") from error


def _orientation(picture: PILImage.Image) -> int:
    """EXIF orientation 1..8; a damaged or absent tag counts as 1."""
    try:
        value = picture.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """`image` H W ... as a viewer shows it: EXIF orientation 1..8."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image if orientation == 1 else np.ascontiguousarray(image)


# ---- pictures --------------------------------------------------------------------------------------------------


def read_image(source: Source, *, mode: Literal["rgb", "bands"] = "rgb", max_pixels: int | None = None) -> NDArray[Any]:
    """The picture in a file or in bytes as displayed: H W 3 uint8 RGB, or with mode="bands" H W C as stored.

    Raises `BadImage` (not a picture of the formats read, damaged, cut off, over `max_pixels`, not a regular file) or
    `MissingInput`. The table at the top of this module says what becomes of every kind of pixel.
    """
    cap, name = max_pixels or pixel_cap(), _name(source)
    data = read_bytes(source)
    picture = _open(data, name, cap)
    image: NDArray[Any]
    if mode == "bands" and _stored_bits(picture, data) == 16 and picture.mode in ("RGB", "RGBA", "LA"):
        image = _read_wide(picture, data, name, cap)
    else:
        _decode(picture, data, name, cap)
        image = _rgb(picture, name) if mode == "rgb" else _bands(picture, name)
    return turn(image, _orientation(picture))


def _rgb(picture: PILImage.Image, name: str) -> NDArray[np.uint8]:
    if picture.mode == "RGB":
        return np.asarray(picture)
    if picture.mode.startswith("I;16"):
        grey = (_integers(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if picture.mode in ("I", "F", "LAB", "HSV"):
        raise BadImage(
            name, f"has {picture.mode} pixels, whose range is not known; export it with 8 or 16 bits a channel."
        )
    try:
        return np.asarray(picture.convert("RGB"))
    except Exception as error:
        raise BadImage(name, f"cannot be shown in colour ({_words(error)}); export it as RGB.") from error


def _bands(picture: PILImage.Image, name: str) -> NDArray[Any]:
    try:
        if picture.mode in ("P", "PA", "1", "YCbCr"):
            picture = picture.convert({"P": "RGB", "PA": "RGBA", "1": "L", "YCbCr": "RGB"}[picture.mode])
        image = _integers(picture) if picture.mode.startswith("I") else np.asarray(picture)
    except Exception as error:
        raise BadImage(name, f"cannot be read by bands ({_words(error)}); export it again.") from error
    return image if image.ndim == 3 else image[..., None]


def _integers(picture: PILImage.Image) -> NDArray[Any]:
    """A 16- or 32-bit picture H W as native uint16 where it fits, else float32."""
    values = np.asarray(picture)
    if values.dtype.kind == "u":
        return values.astype(np.uint16, copy=False)
    return values.astype(np.uint16 if values.min() >= 0 and values.max() <= 65535 else np.float32)


def _stored_bits(picture: PILImage.Image, data: bytes) -> int:
    """Bits per channel as stored; Pillow keeps only the high byte of 16-bit colour."""
    if picture.format == "PNG":
        return data[24]
    if picture.format == "TIFF":
        bits: Any = getattr(picture, "tag_v2", {}).get(258, (8,))
        return int(bits[0] if isinstance(bits, tuple) else bits)
    if picture.mode.startswith("I;16"):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(picture.mode, 8)


def _read_wide(picture: Any, data: bytes, name: str, cap: int) -> NDArray[np.uint16]:
    """A 16-bit colour picture as uint16: decoded once for the high and once for the low bytes.

    Pillow unpacks such files to 8 bits by taking one byte of two: the high one of the file's byte order. Told the
    other byte order it takes the low one.
    """
    raw = picture.tile[0].args if picture.tile else None
    raw = raw[0] if isinstance(raw, tuple) else raw
    swap = {"16B": "16L", "16L": "16B"}
    if (
        not isinstance(raw, str)
        or raw[-3:] not in swap
        or picture.mode == "LA"
        or picture.tile[0].codec_name == "libtiff"
    ):
        raise BadImage(
            name,
            f"holds 16-bit {picture.mode} in a layout that is read as 8 bits only; save it as uncompressed TIFF, "
            "or as PNG with 3 or 4 channels.",
        )
    low: Any = _open(data, name, cap)
    other = raw[:-3] + swap[raw[-3:]]
    low.tile = [t._replace(args=(other, *t.args[1:]) if isinstance(t.args, tuple) else other) for t in low.tile]
    _decode(picture, data, name, cap)
    _decode(low, data, name, cap)
    wide: NDArray[np.uint16] = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(low)
    return wide


def image_info(source: Source, *, max_pixels: int | None = None) -> ImageInfo:
    """Format, layout and sizes from the header; the pixels are not decoded."""
    data, name = read_bytes(source), _name(source)
    picture = _open(data, name, max_pixels or pixel_cap())
    orientation = _orientation(picture)
    stored = (picture.height, picture.width)
    size = stored
    if orientation >= 5:  # Pillow gives a TIFF's size as displayed, the others' as stored
        turned = (picture.width, picture.height)
        size, stored = (stored, turned) if picture.format == "TIFF" else (turned, stored)
    try:
        frames = 2 if getattr(picture, "is_animated", False) else 1
    except Exception:
        frames = 1
    kind = picture.format or ""
    lossy = kind == "JPEG" or (kind == "WEBP" and b"VP8L" not in data[:64])
    bits = _stored_bits(picture, data)
    return ImageInfo(kind, picture.mode, bits, size, stored, orientation, frames, lossy)


def image_size(source: Source) -> tuple[int, int]:
    """(H, W) of the picture as displayed, from its header."""
    return image_info(source).size


def read_palette(source: Source) -> tuple[tuple[int, int, int], ...]:
    """The colours (R, G, B) by index of a palette file; () for one without."""
    picture = _open(read_bytes(source), _name(source), pixel_cap())
    flat = (picture.getpalette("RGB") or []) if picture.mode == "P" else []
    return tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))


# ---- labels ----------------------------------------------------------------------------------------------------


def read_label(source: Source, *, colours: bool = False, max_pixels: int | None = None) -> NDArray[Any]:
    """A label map's raw ids: H W uint8 or uint16, palette indices as stored, never their brightness.

    With `colours` a colour-coded map is returned as H W 3 uint8 for the caller's table; without it one is refused, as
    are JPEG (its values are approximate), alpha, floats and EXIF-turned labels (they would turn away from their image).
    """
    cap, name = max_pixels or pixel_cap(), _name(source)
    data = read_bytes(source)
    picture = _open(data, name, cap)
    if picture.format == "JPEG":
        raise BadImage(name, "is a JPEG label, whose values are only approximate; export labels as PNG.")
    if _orientation(picture) != 1:
        raise BadImage(name, "is a label with an EXIF orientation; save it again without, turned as its image is.")
    _decode(picture, data, name, cap)
    if picture.mode in ("RGB", "RGBA") and colours:
        return np.asarray(picture)[..., :3]
    return _ids(picture, data, name)


def _ids(picture: PILImage.Image, data: bytes, name: str) -> NDArray[Any]:
    if picture.mode in ("L", "P", "1"):
        ids = np.asarray(picture.convert("L")) // 255 if picture.mode == "1" else np.asarray(picture)
        if picture.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
            ids = ids // (255 // (2 ** data[24] - 1))  # Pillow stretches 2- and 4-bit grey to 0..255
        return ids
    if picture.mode.startswith("I"):
        values = _integers(picture)
        if values.dtype == np.uint16:
            return values
        raise BadImage(name, "has label values outside 0..65535; store ids from 0 up.")
    if picture.mode in ("RGB", "RGBA"):
        some = np.asarray(picture)[:: max(1, picture.height // 512), :: max(1, picture.width // 512), :3]
        colours = np.unique(some.reshape(-1, 3), axis=0)
        raise BadImage(
            name,
            f"is a colour label ({picture.mode}, {len(colours)} colours, such as {tuple(map(int, colours[-1]))}); "
            "give the colours in classes.txt (one line a class: name r g b), or store class ids.",
        )
    raise BadImage(name, f"has {picture.mode} pixels, which are no class ids; store ids as 8- or 16-bit grey PNG.")


def encode_label(labels: NDArray[Any], palette: Sequence[Sequence[int]] = ()) -> bytes:
    """`labels` H W (ids) as PNG: with a palette when all ids are below 256, else 16-bit grey.

    palette[k] is (R, G, B) of id k; ids without a colour are white.
    """
    from PIL import Image

    if labels.ndim != 2 or labels.size == 0:
        raise DataError(f"A label map is H x W, this has the shape {labels.shape}; give one id a pixel.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise DataError(f"Label ids are 0..65535, these are {low}..{high}; map them first.")
    if high > 255:
        picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16))
    else:
        picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        if palette:
            flat = [int(v) for colour in palette[:256] for v in colour]
            picture.putpalette(flat + [255] * (768 - len(flat)))
    out = BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def encode_png(image: NDArray[Any]) -> bytes:
    """`image` H W, H W 1, H W 3 or H W 4 uint8 (or H W uint16) as PNG, without any metadata."""
    from PIL import Image

    out = BytesIO()
    flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(flat)).save(out, "PNG")
    return out.getvalue()


def write_label(path: str | os.PathLike[str], labels: NDArray[Any], palette: Sequence[Sequence[int]] = ()) -> None:
    """Writes `encode_label(labels, palette)` to `path`, whole or not at all; the folder must exist."""
    data, target = encode_label(labels, palette), Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)
    except OSError as error:
        raise StorageError(f"{printable(target)} cannot be written ({error.strerror}); check the folder.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        os.unlink(temporary)
        raise StorageError(f"{printable(target)} cannot be written ({error.strerror}); check the disk.") from error
