"""A reader that runs in the child: .caffemodel files without Caffe or protobuf, a bounded walk over a memory map.

A .caffemodel is one protobuf message (spec: protobuf.dev "Encoding"; field numbers: BVLC caffe.proto). Only four
levels are ever opened - NetParameter > layer > blob > shape - by a loop, not by recursion; every other field is
stepped over by its length, whatever is nested inside. Values stay in the file's memory map until a tensor is made.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingInput, printable
from fullyconv.sandbox.descriptors import handed_over

__all__ = ["CaffeLayer", "answer", "parse_caffemodel"]

Field = tuple[int, int, int, int]  # number, wire type, first byte of the value, byte after it
Runs = list[NDArray[Any]]

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}

# Far above any published network (ResNet-152: about 700 layers and 30,000 fields), far below what would hurt.
MAX_FIELDS = 200_000
MAX_LAYERS = 10_000  # likewise
MAX_BLOBS = 256  # of one layer: most have two, batch norm three
MAX_AXES = 32  # Caffe's own limit (kMaxBlobAxes)
MAX_RUNS = 1_000  # pieces that one blob's values may come in
MAX_NAME = 1_024  # bytes


@final
@dataclass(frozen=True)
class CaffeLayer:
    """One layer that carries blobs. `type` is Caffe's name ("Convolution"), or "V1:4" style for the old enumeration.

    `blobs` are float32 or float64 views of the file's memory map, in Caffe's axis order (out, in, row, column); they
    may be unaligned and read-only: copy before handing them on. Legacy four-number shapes are kept as (n, c, h, w).
    """

    name: str
    type: str
    blobs: tuple[NDArray[Any], ...]


def parse_caffemodel(path: str | Path) -> dict[str, CaffeLayer]:
    """The layers of a .caffemodel that carry blobs, by name, in file order; nothing is copied.

    Reads NetParameter.layer (100) and the old V1 `layers` (2), packed, unpacked and double values, `shape` and legacy
    num/channels/height/width. Errors: MissingInput when there is no such file, DataError (with the byte position) for
    anything that is not a whole and consistent caffemodel. Do not shorten the file while its blobs are in use.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"{printable(path)} is not a file; give the path of a .caffemodel.")
    return _parse(str(path))


def _parse(path: str) -> dict[str, CaffeLayer]:
    with handed_over(path) as file:
        if not file.seek(0, os.SEEK_END):
            raise DataError(f"{printable(path)} is empty (0 bytes); download it again.")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _Reader(data, printable(path)).net()


def answer(path: str) -> tuple[dict[str, NDArray[Any]], list[tuple[str, str, int]]]:
    """The child's answer: blobs numbered in file order, and (name, type, how many blobs) of each layer."""
    layers = _parse(path).values()
    blobs = [blob for layer in layers for blob in layer.blobs]
    return {str(i): blob for i, blob in enumerate(blobs)}, [(x.name, x.type, len(x.blobs)) for x in layers]


# Where name, type and blobs stand in the two generations of layer messages.
_NEW = {1: "name", 2: "type", 7: "blob"}
_V1 = {4: "name", 5: "type", 6: "blob", 1: "v0"}


@final
class _Reader:
    """The walk over one file; `budget` counts the fields that may still be read."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.where, self.budget = data, where, MAX_FIELDS

    def fail(self, at: int, fact: str) -> NoReturn:
        raise DataError(
            f"{self.where} is not a readable caffemodel: {fact} (at byte {at:,} of {len(self.data):,}); "
            "it is damaged, cut short or another kind of file: download it again and compare its size."
        )

    # -- wire format ---------------------------------------------------------------------------------------------

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at `at` and the position after it."""
        value = 0
        for i in range(min(10, end - at)):
            byte = self.data[at + i]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (1 << 64) - 1, at + i + 1
        return self.fail(at, "a number runs past its message" if end - at < 10 else "a number has more than 10 bytes")

    def fields(self, at: int, end: int) -> Iterator[Field]:
        """The fields of the message in bytes at..end. A run of equal unpacked floats counts, and comes, as one."""
        while at < end:
            self.budget -= 1
            if self.budget < 0:
                self.fail(at, f"it has more than {MAX_FIELDS:,} fields")
            start = at
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                value, stop = at, self.varint(at, end)[1]
            elif wire == LENGTH:
                length, value = self.varint(at, end)
                stop = value + length
            elif wire in WIDTHS:
                value, stop = at, at + WIDTHS[wire]
                if self.data[start] == tag and stop <= end:
                    value, stop = start, self.run_end(start, end, tag, 1 + WIDTHS[wire])
            else:
                self.fail(start, f"a field has the unknown wire type {wire}")
            if number == 0:
                self.fail(start, "a field has the number 0")
            if stop > end:
                self.fail(start, f"field {number} claims {stop - value:,} bytes where {end - value:,} are left")
            yield number, wire, value, stop
            at = stop

    def run_end(self, at: int, end: int, tag: int, step: int) -> int:
        """Where the run of `step`-byte records (tag, value) that begins at `at` ends; looks ahead by doubling."""
        count = 16
        while True:
            whole = min(count, (end - at) // step)
            tags = np.frombuffer(self.data, np.uint8, whole * step, at)[::step]
            other = np.flatnonzero(tags != tag)
            if len(other):
                return at + int(other[0]) * step
            at += whole * step
            if whole < count:
                return at
            count = min(2 * count, 1 << 20)

    def values(self, field: Field, dtype: str) -> NDArray[Any]:
        """A float or double field, packed or an unpacked run, as a view of the map."""
        number, wire, at, stop = field
        kind = np.dtype(dtype)
        if wire == LENGTH:
            if (stop - at) % kind.itemsize:
                self.fail(at, f"{stop - at:,} bytes of packed values are no multiple of {kind.itemsize}")
            return np.frombuffer(self.data, kind, (stop - at) // kind.itemsize, at)
        if wire == VARINT or WIDTHS[wire] != kind.itemsize:
            self.fail(at, f"field {number} holds values of another type")
        if (stop - at) % (1 + kind.itemsize):  # one value behind a tag of several bytes
            return np.frombuffer(self.data, kind, 1, at)
        record = np.dtype([("tag", "u1"), ("value", kind)])
        return np.frombuffer(self.data, record, (stop - at) // record.itemsize, at)["value"]

    def text(self, field: Field) -> str:
        number, wire, at, stop = field
        if wire != LENGTH or stop - at > MAX_NAME:
            self.fail(at, f"field {number} is not a name of at most {MAX_NAME:,} bytes")
        try:
            return bytes(self.data[at:stop]).decode()
        except UnicodeDecodeError:
            self.fail(at, "a name is not UTF-8")

    def number(self, field: Field) -> int:
        if field[1] != VARINT:
            self.fail(field[2], f"field {field[0]} is not a whole number")
        return self.varint(field[2], field[3])[0]

    # -- Caffe's messages ----------------------------------------------------------------------------------------

    def net(self) -> dict[str, CaffeLayer]:
        layers: dict[str, CaffeLayer] = {}
        seen: set[int] = set()
        count = 0
        for number, wire, at, stop in self.fields(0, len(self.data)):
            if number not in (2, 100):
                continue
            count += 1
            seen.add(number)
            if wire != LENGTH:
                self.fail(at, f"field {number} is not a message")
            if count > MAX_LAYERS or len(seen) > 1:
                self.fail(at, "it mixes old and new layers" if len(seen) > 1 else f"over {MAX_LAYERS:,} layers")
            layer = self.layer(at, stop, _NEW if number == 100 else _V1)
            if layer.blobs and layer.name in layers:
                self.fail(at, f"two layers with weights are named {printable(layer.name)!r}")
            if layer.blobs:
                layers[layer.name] = layer
        if not layers:
            self.fail(len(self.data), "it holds no layer with weights")
        return layers

    def layer(self, at: int, end: int, meaning: Mapping[int, str]) -> CaffeLayer:
        name, kind = "", ""
        blobs: list[NDArray[Any]] = []
        for field in self.fields(at, end):
            what = meaning.get(field[0])
            if what == "name":
                name = self.text(field)
            elif what == "type":
                kind = self.text(field) if meaning is _NEW else f"V1:{self.number(field)}"
            elif what == "blob":
                if field[1] != LENGTH or len(blobs) == MAX_BLOBS:
                    self.fail(field[2], f"layer {printable(name)!r} has a blob that is no message, or over {MAX_BLOBS}")
                blobs.append(self.blob(field[2], field[3]))
            elif what == "v0":
                self.fail(
                    field[2], "its layers are of Caffe's first format (V0), which upgrade_net_proto_binary upgrades"
                )
        return CaffeLayer(name, kind, tuple(blobs))

    def blob(self, at: int, end: int) -> NDArray[Any]:
        shape: list[int] | None = None
        legacy: dict[int, int] = {}
        floats: Runs = []
        doubles: Runs = []
        for field in self.fields(at, end):
            number = field[0]
            if number in (1, 2, 3, 4):
                legacy[number] = self.number(field)
            elif number == 5:
                floats.append(self.values(field, "<f4"))
            elif number == 8:
                doubles.append(self.values(field, "<f8"))
            elif number == 7:
                shape = self.shape(field)
            if len(floats) + len(doubles) > MAX_RUNS:
                self.fail(field[2], f"a blob's values come in more than {MAX_RUNS:,} pieces")
        # Caffe's own precedence (Blob::FromProto): the legacy numbers before `shape`, doubles before floats.
        axes = [legacy.get(i, 0) for i in (1, 2, 3, 4)] if legacy else shape or []
        return self.shaped(axes, [r for r in doubles or floats if len(r)], at)

    def shape(self, field: Field) -> list[int]:
        if field[1] != LENGTH:
            self.fail(field[2], "a shape is not a message")
        axes: list[int] = []
        for number, wire, at, stop in self.fields(field[2], field[3]):
            if number == 1 and wire == LENGTH:
                while at < stop and len(axes) <= MAX_AXES:
                    value, at = self.varint(at, stop)
                    axes.append(value)
            elif number == 1:
                axes.append(self.number((number, wire, at, stop)))
            if len(axes) > MAX_AXES:
                self.fail(at, f"a shape has more than {MAX_AXES} axes")
        return axes

    def shaped(self, axes: list[int], runs: Runs, at: int) -> NDArray[Any]:
        """The runs of values as one array of shape `axes`; a view when there is one run, else a copy of them."""
        expected = 1
        for axis in axes:
            if axis >= 1 << 31:  # a negative int32 or int64 arrives as a number this large
                self.fail(at, f"a blob's shape {axes} has a side that is negative or absurd")
            expected *= axis
        count = sum(len(r) for r in runs)
        if count != expected:
            self.fail(at, f"a blob of shape {axes} needs {expected:,} values and has {count:,}")
        if not runs:
            return np.empty(axes, np.float32)
        return (runs[0] if len(runs) == 1 else np.concatenate(runs)).reshape(axes)
