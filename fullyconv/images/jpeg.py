"""JPEG from the inside: how often it makes the decoder go over the whole image, and over how many parts."""

from __future__ import annotations

from fullyconv.images.limits import BadImage

__all__ = ["check_scans"]

MAX_SCANS = 100  # encoders write about 10; each costs a pass over the whole image
MAX_EXIF = 16  # Pillow joins them in quadratic time
MAX_SEGMENTS = 5000  # an ICC profile takes 255 at most, pages of extended XMP dozens


def check_scans(data: bytes, name: str) -> None:
    """BadImage for a JPEG of more scans, or of more parts before the first, than any encoder writes.

    Within scans 0xFF is followed by 0 or a marker, so the marker of a scan is found by its two bytes.
    """
    scans, at, segments, exif = data.count(b"\xff\xda"), 2, 0, 0
    if scans > MAX_SCANS:
        raise BadImage(name, f"is a JPEG of {scans} scans, more than the {MAX_SCANS} that are read; save it anew.")
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        if data[at] != 0xFF:
            return
        segments += 1
        if segments > MAX_SEGMENTS:
            raise BadImage(name, f"is a JPEG of over {MAX_SEGMENTS} parts before its image; save it anew.")
        exif += data[at + 1] == 0xE1 and data[at + 4 : at + 8] == b"Exif"
        if exif > MAX_EXIF:
            raise BadImage(name, f"is a JPEG of over {MAX_EXIF} parts of EXIF, which takes one; save it anew.")
        marker = data[at + 1]
        alone = marker == 0xFF or marker == 1 or 0xD0 <= marker <= 0xD9
        at += (1 if marker == 0xFF else 2) if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
