"""WebP from the inside: what it carries besides pixels (RFC 9649), which Pillow copies several times."""

from __future__ import annotations

import struct

from fullyconv.images.limits import BadImage

__all__ = ["check_parts"]

MAX_METADATA = 1 << 24  # bytes of EXIF, XMP, colour profile and unknown parts together
MAX_PARTS = 5000  # of all kinds: a part holds a frame, of which the first is read
_PIXELS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")


def check_parts(data: bytes, name: str) -> None:
    """BadImage for a WebP of more parts, or of more bytes that are no pixels, than any camera or program writes."""
    at, parts, more = 12, 0, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts += 1
        more += 0 if kind in _PIXELS else length
        if parts > MAX_PARTS:
            raise BadImage(name, f"is a WebP of over {MAX_PARTS} parts; save it anew.")
        if more > MAX_METADATA:
            raise BadImage(
                name, f"is a WebP with over {MAX_METADATA >> 20} MiB besides its pixels; save it without metadata."
            )
        at += 8 + length + length % 2
