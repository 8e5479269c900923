"""Label maps: ids as stored, never brightness, and writing them and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError
from fullyconv.files import atomic_write, read_file
from fullyconv.images.decoding import is_lossy, read_wide, read_wide_grey, stored_bits
from fullyconv.images.limits import MAX_BYTES, BadImage, Source, pixel_cap, too_large
from fullyconv.images.opening import decode, name_of, open_image, orientation_of, read_bytes, words
from fullyconv.images.png import plain_palette, plain_samples
from fullyconv.images.tiff import MAX_PAGES, check_pages, is_tiff, same_value, samples, wide_enough

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["StoredLabel", "encode_label", "encode_png", "equal_channels", "read_label", "stored_label", "write_label"]


@final
@dataclass(frozen=True)
class StoredLabel:
    """A label file as stored: values H W uint8 or uint16 (or colours H W 3 uint8), the value that the file itself
    declares as nodata (None without), and the colours N 3 uint8 of its palette (empty without)."""

    values: NDArray[Any]
    nodata: int | None = None
    palette: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 3), np.uint8))


def read_label(source: Source, *, colours: bool = False, max_pixels: int | None = None) -> NDArray[Any]:
    """A label map's raw ids: H W uint8 or uint16, palette indices as stored, never their brightness.

    With `colours` a colour-coded map is returned as H W 3 uint8 for the caller's table; without it one is refused
    (unless its three channels are equal: each is then the ids), as are JPEG (its values are approximate), transparency,
    several pages and EXIF-turned labels (they would turn away from their image). TIFFs give the stored value whatever
    their photometric tag says, also from signed, 32- and 64-bit and floating samples, so long as each is a whole
    number in 0..65535; a declared nodata value outside that range becomes 65535. So do .npy files, never unpickled.
    """
    return stored_label(source, colours=colours, max_pixels=max_pixels).values


def stored_label(source: Source, *, colours: bool = False, max_pixels: int | None = None) -> StoredLabel:
    """`read_label`, with the nodata value and the palette that the file holds."""
    cap, name = max_pixels or pixel_cap(), name_of(source)
    if not isinstance(source, bytes) and os.fspath(source).lower().endswith(".npy"):
        return StoredLabel(_array_ids(read_file(source, MAX_BYTES), name, cap))
    data = read_bytes(source)
    if (quick := plain_samples(data, cap, colours=(0, 2, 3) if colours else (0, 3))) is not None:
        if quick.shape[2] == 3:
            return StoredLabel(quick)
        return StoredLabel(quick[..., 0], None, plain_palette(data))
    if is_tiff(data):
        return _tiff_label(data, name, cap, colours)
    if (grey := read_wide_grey(data, name, cap)) is not None:
        if grey[1] != 1:
            raise BadImage(name, _TURNED)
        return StoredLabel(_opaque(grey[0], 65535, name))
    opened = open_image(data, name, cap)
    if getattr(opened, "is_animated", False):
        raise BadImage(name, "is a label of several frames, of which only one can be meant; save that one as PNG.")
    if is_lossy(data):
        raise BadImage(name, f"is a {_LOSSY[opened.format]} label, whose values are only approximate; {_AS_PNG}.")
    wide = stored_bits(opened, data) == 16 and opened.mode in ("RGB", "RGBA", "LA")
    deep = read_wide(opened, data, name, cap) if wide else None  # before anything decodes: 8 of 16 bits would be left
    if orientation_of(opened) != 1:
        raise BadImage(name, _TURNED)
    if deep is not None:
        return StoredLabel(_wide_ids(deep, name))
    decode(opened, data, name, cap)
    if opened.mode in ("RGB", "RGBA") and colours:
        return StoredLabel(np.asarray(opened)[..., :3])
    flat = (opened.getpalette("RGB") or []) if opened.mode == "P" else []
    return StoredLabel(_ids(opened, data, name), None, np.array(flat, np.uint8).reshape(-1, 3))


_LOSSY: dict[str | None, str] = {"JPEG": "JPEG", "WEBP": "lossy WebP"}
_AS_PNG = "export labels as PNG"
_TURNED = "is a label with an EXIF orientation; save it again without, turned as its image is."


def _opaque(image: NDArray[np.number], full: int, name: str) -> NDArray[Any]:
    """The ids in grey with alpha H W 2 that is opaque everywhere; BadImage for any other."""
    if (clear := int((image[..., 1] != full).sum())) > 0:
        raise BadImage(
            name,
            f"is a label with an alpha channel, and {clear} of its pixels are transparent: whether they count cannot "
            "be told; store grey alone, with the ignore value where nothing is labelled.",
        )
    return np.ascontiguousarray(image[..., 0])


def _array_ids(data: bytes, name: str, cap: int) -> NDArray[Any]:
    """The ids in a NumPy file of whole numbers H W (or H W 1), never unpickled."""
    try:
        stream = BytesIO(data)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, EOFError, SyntaxError) as error:
        raise BadImage(name, f"is no NumPy array file ({words(error)}); save it again with numpy.save.") from error
    flat = shape[:2] if len(shape) == 3 and shape[2] == 1 else shape
    if len(flat) != 2 or 0 in flat or dtype.kind not in "buif":
        raise BadImage(
            name, f"holds {dtype} of the shape {shape}, which are no class ids; save one number a pixel, H x W."
        )
    if flat[0] * flat[1] > cap:
        raise too_large(name, flat[0] * flat[1], cap)
    try:
        values = np.load(BytesIO(data), allow_pickle=False).reshape(flat)
    except (ValueError, EOFError) as error:
        raise BadImage(name, f"is cut off or damaged ({words(error)}); copy or save it again.") from error
    return whole_ids(values.astype(np.uint8) if dtype.kind == "b" else values, None, name)[0]


def _wide_ids(wide: NDArray[np.uint16], name: str) -> NDArray[np.uint16]:
    """The ids in 16-bit colour whose three channels are equal and that is opaque; BadImage for any other."""
    opaque = wide.shape[2] == 3 or bool((wide[..., 3] == 65535).all())
    one = equal_channels(wide[..., :3]) if opaque else None
    if one is None:
        what = "different channels" if opaque else "transparent pixels"
        raise BadImage(name, f"is a 16-bit colour label with {what}, which are no class ids; store 16-bit grey.")
    return one


def _tiff_label(data: bytes, name: str, cap: int, colours: bool) -> StoredLabel:
    found = check_pages(lambda start, length: data[start : start + length], len(data), name, cap)
    page, whole = found[0], sum(not (p.reduced or p.mask) for p in found)
    if page.compression in (6, 7):
        raise BadImage(name, f"is a JPEG label (in a TIFF), whose values are only approximate; {_AS_PNG}.")
    if whole > 1:
        many = f"{whole}{' or more' if len(found) >= MAX_PAGES else ''}"
        raise BadImage(
            name, f"is a label of {many} pages, of which only one can be meant; save that page alone, as TIFF or PNG."
        )
    if page.orientation != 1:
        raise BadImage(name, _TURNED)
    values = samples(data, page, name)
    if page.bands == 1:
        ids, nodata = whole_ids(values[..., 0], page.nodata, name)
        return StoredLabel(ids, nodata, page.palette)
    if page.bands in (3, 4) and page.photometric == 2 and values.dtype == np.uint16:
        return StoredLabel(_wide_ids(values, name))
    if page.bands in (3, 4) and page.photometric == 2 and values.dtype == np.uint8:
        if colours:
            return StoredLabel(values[..., :3])
        if page.bands == 3 and (one := equal_channels(values)) is not None:
            return StoredLabel(one)
        raise _in_colour(values, "RGBA"[: page.bands], name)
    what = f"{page.bands} bands ({values.dtype})"
    raise BadImage(name, f"is a label of {what}, which are no class ids; store one band of whole numbers.")


def whole_ids(values: NDArray[np.number], nodata: float | None, name: str) -> tuple[NDArray[Any], int | None]:
    """Numbers of any type H W as uint8 or uint16, each exactly, and the nodata value as it stands there.

    A nodata value that is no id (negative, NaN, fractional, above 65535) becomes 65535. Any other number that is no
    whole one in 0..65535 is refused, with how many there are and where the first is.
    """
    values = values.astype(np.float32) if values.dtype == np.float16 else values
    absent = same_value(values, nodata)
    kept = nodata is None or wide_enough(nodata)
    where = 65535 if not kept else None if nodata is None else int(nodata)
    if values.dtype in (np.uint8, np.uint16):
        return values, where if kept or absent.any() else None
    with np.errstate(invalid="ignore"):
        bad = ~absent & ~((values >= 0) & (values <= 65535) & (values == np.floor(values)))
    if bad.any():
        row, column = (int(v) for v in np.argwhere(bad)[0])
        raise BadImage(
            name,
            f"has label values outside 0..65535 or between whole numbers: {values[row, column]} at row {row}, column "
            f"{column}, {int(bad.sum())} pixels in all; store ids from 0 up, or declare the value as nodata.",
        )
    ids = np.where(absent & ~np.bool_(kept), 65535, np.where(absent, where or 0, values)).astype(np.uint16)
    return (ids.astype(np.uint8) if ids.max() <= 255 else ids), where


def _ids(opened: PILImage.Image, data: bytes, name: str) -> NDArray[Any]:
    if opened.mode in ("L", "P", "1"):
        ids = np.asarray(opened.convert("L")) // 255 if opened.mode == "1" else np.asarray(opened)
        if opened.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
            ids = ids // (255 // (2 ** data[24] - 1))  # Pillow stretches 2- and 4-bit grey to 0..255
        return ids
    if opened.mode.startswith("I"):
        return whole_ids(np.asarray(opened), None, name)[0]
    if opened.mode == "LA":
        return _opaque(np.asarray(opened), 255, name)
    if opened.mode in ("RGB", "RGBA") and (one := equal_channels(np.asarray(opened))) is not None:
        return one if opened.mode == "RGB" else _opaque(np.dstack([one, np.asarray(opened)[..., 3]]), 255, name)
    if opened.mode in ("RGB", "RGBA"):
        raise _in_colour(np.asarray(opened), opened.mode, name)
    raise BadImage(name, f"has {opened.mode} pixels, which are no class ids; store ids as 8- or 16-bit grey PNG.")


def _in_colour(label: NDArray[np.integer], mode: str, name: str) -> BadImage:
    some = label[:: max(1, label.shape[0] // 512), :: max(1, label.shape[1] // 512), :3]
    colours = np.unique(some.reshape(-1, 3), axis=0)
    return BadImage(
        name,
        f"is a colour label ({mode}, {len(colours)} colours, such as {tuple(map(int, colours[-1]))}); "
        "give the colours in classes.txt (one line a class: name r g b), or store class ids.",
    )


def equal_channels(label: NDArray[np.integer]) -> NDArray[Any] | None:
    """The one channel H W of a map H W 3 whose three are equal; None for any other."""
    one = label[..., 0]
    same = np.array_equal(one, label[..., 1]) and np.array_equal(one, label[..., 2])
    return np.ascontiguousarray(one) if same else None


def encode_label(labels: NDArray[np.integer], palette: Sequence[Sequence[int]] = ()) -> bytes:
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
        opened = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16))
    else:
        opened = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
        if palette:
            flat = [int(v) for colour in palette[:256] for v in colour]
            opened.putpalette(flat + [255] * (768 - len(flat)))
    out = BytesIO()
    opened.save(out, "PNG")
    return out.getvalue()


def encode_png(image: NDArray[np.number]) -> bytes:
    """`image` H W, H W 1, H W 3 or H W 4 uint8 (or H W uint16) as PNG, without any metadata."""
    from PIL import Image

    out = BytesIO()
    flat = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
    Image.fromarray(np.ascontiguousarray(flat)).save(out, "PNG")
    return out.getvalue()


def write_label(
    path: str | os.PathLike[str], labels: NDArray[np.integer], palette: Sequence[Sequence[int]] = ()
) -> None:
    """Writes `encode_label(labels, palette)` to `path`, whole or not at all; the folder must exist."""
    atomic_write(path, encode_label(labels, palette))
