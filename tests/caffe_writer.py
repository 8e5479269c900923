"""A small .caffemodel writer for the tests, written from the format alone: it shares no code with the reader."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Blobs = Sequence[NDArray[np.floating]]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def message(field: int, body: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(body)) + body


def _values(blob: NDArray[np.floating], packed: bool, double: bool) -> bytes:
    kind, field, wire = ("<f8", 8, 1) if double else ("<f4", 5, 5)
    flat = np.ascontiguousarray(blob, kind).ravel()
    if packed:
        return message(field, flat.tobytes())
    record = np.empty(flat.size, [("tag", "u1"), ("value", kind)])
    record["tag"], record["value"] = field << 3 | wire, flat
    return record.tobytes()


def blob(values: NDArray[np.floating], *, packed: bool = True, double: bool = False, legacy: bool = False) -> bytes:
    if legacy:  # num, channels, height, width; ones are put in front
        shape = (1,) * (4 - values.ndim) + values.shape
        head = b"".join(number(i + 1, n) for i, n in enumerate(shape))
    else:
        head = message(7, message(1, b"".join(varint(n) for n in values.shape)))
    return head + _values(values, packed, double)


def layer(name: str, kind: str, blobs: Blobs, *, v1: bool = False, **how: bool) -> bytes:
    """The field of a NetParameter that holds one layer; `kind` is ignored for V1 (type 4 is Convolution there)."""
    body = number(5, 4) + message(4, name.encode()) if v1 else message(1, name.encode()) + message(2, kind.encode())
    body += message(3, b"data") + message(4 if not v1 else 3, b"top")  # a bottom and a top, to be stepped over
    body += b"".join(
        message(6 if v1 else 7, blob(b, legacy=v1 or how.get("legacy", False), **_how(how))) for b in blobs
    )
    return message(2 if v1 else 100, body)


def _how(how: Mapping[str, bool]) -> dict[str, bool]:
    return {k: v for k, v in how.items() if k != "legacy"}


def net(layers: Iterable[bytes], name: str = "net") -> bytes:
    return message(1, name.encode()) + b"".join(layers)


def write(path: Path, layers: Mapping[str, Blobs], **how: bool) -> Path:
    """Write {layer name: blobs} as a new-style caffemodel, layer by layer (no second copy of large blobs is held)."""
    with path.open("wb") as file:
        file.write(message(1, b"net"))
        for name, blobs in layers.items():
            file.write(layer(name, "Convolution", blobs, **how))
    return path


def float_bytes(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
