"""The one decoder and encoder of images and label maps; everything that reads an image reads it here.

What a file is, its first bytes decide, never its suffix: PNG, JPEG, WebP, TIFF and BMP are read, the rest is refused.
A file is opened without ever blocking (FIFOs and devices are refused), checked against a pixel cap before it is
decoded, and decoded whole or not at all: every failure is a `BadImage` (or `MissingInput`) that names the file.

image          `read_image(mode="rgb")`: H W 3 uint8             `read_image(mode="bands")`: H W C as stored
1, L, P          grey repeated / palette applied                   1, L: one band; P: its colours
LA, PA, RGBA     alpha dropped                                     alpha is the last band
16-bit           scaled: the high byte (never clipped to 255)      uint16
CMYK, YCbCr      converted to RGB                                  CMYK: four bands
32-bit, float    refused: no range is known                        float32; TIFFs also of 64 bits and signed
EXIF             turned as viewers show it                         the same
animated, pages  the first frame                                   the first frame
"""

from __future__ import annotations

from fullyconv.images.decoding import (
    ImageInfo,
    declared_invalid,
    image_info,
    image_size,
    read_image,
    read_palette,
    turn,
)
from fullyconv.images.labels import (
    StoredLabel,
    encode_label,
    encode_png,
    equal_channels,
    read_label,
    stored_label,
    write_label,
)
from fullyconv.images.limits import FORMATS, MAX_PIXELS, BadImage, pixel_cap, pixels_allowed
from fullyconv.images.opening import read_bytes

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "BadImage",
    "ImageInfo",
    "StoredLabel",
    "declared_invalid",
    "encode_label",
    "encode_png",
    "equal_channels",
    "image_info",
    "image_size",
    "pixel_cap",
    "pixels_allowed",
    "read_bytes",
    "read_image",
    "read_label",
    "read_palette",
    "stored_label",
    "turn",
    "write_label",
]
