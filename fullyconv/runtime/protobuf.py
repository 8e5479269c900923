"""The wire format of protobuf, read without building anything: fields of a message as numbers and spans.

For bytes that nobody vouches for: every length is checked against its message before it is used, and how many fields
are looked at is bounded. Source: protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

__all__ = ["ByteSpan", "Damaged", "Field", "bytes_field", "fields", "integer_field", "integers", "text"]

MOST_FIELDS = 1 << 20  # of one message; ours have thousands


@final
class Damaged(ValueError):
    """Bytes that are no message."""


@final
@dataclass(frozen=True)
class ByteSpan:
    """A message, text or list inside `data`: bytes [start, stop)."""

    data: memoryview
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def view(self) -> memoryview:
        return self.data[self.start : self.stop]


@final
@dataclass(frozen=True)
class Field:
    """One field: its number, its value (an integer, or the span of its bytes) and the span of all of it, tag too."""

    number: int
    value: int | ByteSpan
    whole: ByteSpan

    @property
    def span(self) -> ByteSpan:
        """The bytes of a field that holds some; Damaged for a number."""
        if isinstance(self.value, ByteSpan):
            return self.value
        raise Damaged(f"field {self.number} holds a number where a text or message belongs")

    @property
    def integer(self) -> int:
        if isinstance(self.value, int):
            return self.value
        raise Damaged(f"field {self.number} holds a text or message where a number belongs")


def fields(message: ByteSpan) -> Iterator[Field]:
    """The fields of a message in their order. Damaged where a length leads out of it, or a wire type is unknown."""
    at, count = message.start, 0
    while at < message.stop:
        begin = at
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        count += 1
        if number == 0 or count > MOST_FIELDS:
            raise Damaged("a field without a number, or too many fields")
        value: int | ByteSpan
        if kind == 0:
            value, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = ByteSpan(message.data, at, at + size), at + size
        elif kind == 2:
            size, at = _varint(message, at)
            value, at = ByteSpan(message.data, at, at + size), at + size
        else:
            raise Damaged(f"wire type {kind}")
        if at > message.stop:
            raise Damaged("a field is longer than what holds it")
        yield Field(number, value, ByteSpan(message.data, begin, at))


def _varint(message: ByteSpan, at: int) -> tuple[int, int]:
    """(an unsigned integer of up to 64 bits, the place behind it)."""
    value = shift = 0
    while at < message.stop and shift < 70:
        byte = message.data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, at
    raise Damaged("a number without an end")


def integers(field: Field) -> list[int]:
    """A repeated integer field, packed or one of its single values, as signed 64-bit integers."""
    if isinstance(field.value, int):
        return [_signed(field.value)]
    found, at = [], field.value.start
    while at < field.value.stop:
        value, at = _varint(field.value, at)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def text(field: Field) -> str:
    """A text field; Damaged where it is no UTF-8."""
    try:
        return str(field.span.view, "utf-8")
    except UnicodeDecodeError as error:
        raise Damaged("a text that is no UTF-8") from error


def bytes_field(number: int, data: bytes) -> bytes:
    """`data` (bytes, text or a message) as field `number`."""
    return _number(number << 3 | 2) + _number(len(data)) + data


def integer_field(number: int, value: int) -> bytes:
    """`value` (0 or more) as field `number`."""
    return _number(number << 3) + _number(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
