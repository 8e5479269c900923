# mypy: disable-error-code="untyped-decorator"
"""Numba kernels of `winograd`: numbers and gradients into their 36 places, results out of them, 16 channels at a time.

All arrays are flat and float32; what lies in places lies `pitch` numbers apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from fullyconv.engine.toom_cook import PLACES, POINTS, TILE
from fullyconv.interpolation.label_kernels import jit
from fullyconv.interpolation.vectors import WIDTH, load16, maximum, spread, store

__all__ = ["TileSpan", "gathered", "spread_gradient", "spread_out", "tile_scratch"]

F32 = np.float32
_A, _B = POINTS[1], POINTS[3]
A, AA, AAA = F32(_A), F32(_A**2), F32(_A**3)
B, BB, BBB = F32(_B), F32(_B**2), F32(_B**3)
SUM, PRODUCT = F32(_A**2 + _B**2), F32(_A**2 * _B**2)
ROW = 6 * WIDTH  # of a scratch
inline: Any = numba.njit(inline="always")


class TileSpan(NamedTuple):
    """Tiles begin..end, counted from `first`, and the maps on which they lie."""

    first: Any
    begin: Any
    end: Any
    size: Any  # of a map: rows, columns
    grid: Any  # of a map's tiles: rows, columns
    padding: Any  # rows, columns
    channels: Any


def tile_scratch() -> Any:
    """What a thread transforms in: a tile of 16 channels."""
    return np.empty(PLACES * WIDTH, F32)


@inline
def _before(d0: Any, d1: Any, d2: Any, d3: Any, d4: Any, d5: Any, c: Any) -> Any:
    """B' d"""
    even, odd = d4 - c[3] * d2, c[0] * (d3 - c[3] * d1)
    other_even, other_odd = d4 - c[2] * d2, c[1] * (d3 - c[2] * d1)
    first, last = d4 - c[4] * d2 + c[5] * d0, d5 - c[4] * d3 + c[5] * d1
    return first, even + odd, even - odd, other_even + other_odd, other_even - other_odd, last


@inline
def _after(m0: Any, m1: Any, m2: Any, m3: Any, m4: Any, m5: Any, c: Any) -> Any:
    """A' m"""
    sum_a, sum_b, apart_a, apart_b = m1 + m2, m3 + m4, m1 - m2, m3 - m4
    return (
        m0 + sum_a + sum_b,
        c[0] * apart_a + c[1] * apart_b,
        c[2] * sum_a + c[3] * sum_b,
        c[4] * apart_a + c[5] * apart_b + m5,
    )


@inline
def _back(y0: Any, y1: Any, y2: Any, y3: Any, c: Any) -> Any:
    """A y"""
    even, odd = y0 + c[2] * y2, c[0] * y1 + c[4] * y3
    other_even, other_odd = y0 + c[3] * y2, c[1] * y1 + c[5] * y3
    return y0, even + odd, even - odd, other_even + other_odd, other_even - other_odd, y3


@inline
def _row(x: Any, i: Any, step: Any) -> Any:
    """Six vectors from x[i] on, `step` apart."""
    return (
        load16(x, i),
        load16(x, i + step),
        load16(x, i + 2 * step),
        load16(x, i + 3 * step),
        load16(x, i + 4 * step),
        load16(x, i + 5 * step),
    )


@inline
def _seen(x: Any, i: Any, row: Any, rows: Any, zero: Any) -> Any:
    return load16(x, i) if row >= 0 and row < rows else zero


@jit
def spread_out(x: Any, pitches: Any, place: Any, out: Any, pitch: Any, scratch: Any) -> None:
    """B' d B of the tiles of x, into `out`; pitches: numbers from an image, and from a row, to the next."""
    c = (spread(A), spread(B), spread(AA), spread(BB), spread(SUM), spread(PRODUCT))
    zero, channels, step = spread(F32(0)), place.channels, pitches[1]
    height, width = place.size
    for tile in range(place.begin, place.end):
        above, column = divmod(place.first + tile, place.grid[1])
        image, row = divmod(above, place.grid[0])
        top, left = row * TILE - place.padding[0], column * TILE - place.padding[1]
        inside = top >= 0 and left >= 0 and top + 6 <= height and left + 6 <= width
        start = image * pitches[0] + top * step + left * channels
        for channel in range(0, channels, WIDTH):
            for j in range(6):
                at = start + j * channels + channel
                if inside:
                    d0, d1, d2, d3, d4, d5 = _row(x, at, step)
                else:
                    rows = height if left + j >= 0 and left + j < width else 0  # beyond the sides nothing is seen
                    d0 = _seen(x, at, top, rows, zero)
                    d1 = _seen(x, at + step, top + 1, rows, zero)
                    d2 = _seen(x, at + 2 * step, top + 2, rows, zero)
                    d3 = _seen(x, at + 3 * step, top + 3, rows, zero)
                    d4 = _seen(x, at + 4 * step, top + 4, rows, zero)
                    d5 = _seen(x, at + 5 * step, top + 5, rows, zero)
                d0, d1, d2, d3, d4, d5 = _before(d0, d1, d2, d3, d4, d5, c)
                for i, d in enumerate((d0, d1, d2, d3, d4, d5)):
                    store(d, scratch, i * ROW + j * WIDTH)
            to = tile * channels + channel
            for i in range(6):
                d0, d1, d2, d3, d4, d5 = _row(scratch, i * ROW, WIDTH)
                d0, d1, d2, d3, d4, d5 = _before(d0, d1, d2, d3, d4, d5, c)
                for j, d in enumerate((d0, d1, d2, d3, d4, d5)):
                    store(d, out, to + (6 * i + j) * pitch)


@jit
def gathered(x: Any, pitch: Any, place: Any, shift: Any, relu: Any, out: Any, scratch: Any) -> None:
    """A' m A of the tiles of x, `shift` added to each channel, none below 0 where `relu`, into the maps `out`."""
    c = (spread(A), spread(B), spread(AA), spread(BB), spread(AAA), spread(BBB))
    zero, channels = spread(F32(0)), place.channels
    height, width = place.size
    for tile in range(place.begin, place.end):
        above, column = divmod(place.first + tile, place.grid[1])
        image, row = divmod(above, place.grid[0])
        top, left = row * TILE, column * TILE
        start = ((image * height + top) * width + left) * channels
        for channel in range(0, channels, WIDTH):
            for j in range(6):
                m0, m1, m2, m3, m4, m5 = _row(x, tile * channels + channel + j * pitch, 6 * pitch)
                for i, m in enumerate(_after(m0, m1, m2, m3, m4, m5, c)):
                    store(m, scratch, i * ROW + j * WIDTH)
            more = load16(shift, channel)
            for i in range(min(TILE, height - top)):
                m0, m1, m2, m3, m4, m5 = _row(scratch, i * ROW, WIDTH)
                for j, m in enumerate(_after(m0, m1, m2, m3, m4, m5, c)):
                    if left + j < width:
                        y = maximum(m + more, zero) if relu else m + more
                        store(y, out, start + (i * width + j) * channels + channel)


@jit
def spread_gradient(x: Any, pitches: Any, place: Any, out: Any, pitch: Any, scratch: Any) -> None:
    """A y A' of the tiles of x, the gradient of results, into `out`."""
    c = (spread(A), spread(B), spread(AA), spread(BB), spread(AAA), spread(BBB))
    zero, channels, step = spread(F32(0)), place.channels, pitches[1]
    height, width = place.size
    for tile in range(place.begin, place.end):
        above, column = divmod(place.first + tile, place.grid[1])
        image, row = divmod(above, place.grid[0])
        top, left = row * TILE, column * TILE
        start = image * pitches[0] + top * step + left * channels
        for channel in range(0, channels, WIDTH):
            for j in range(TILE):
                at = start + j * channels + channel
                rows = height if left + j < width else 0
                y0 = _seen(x, at, top, rows, zero)
                y1 = _seen(x, at + step, top + 1, rows, zero)
                y2 = _seen(x, at + 2 * step, top + 2, rows, zero)
                y3 = _seen(x, at + 3 * step, top + 3, rows, zero)
                for i, y in enumerate(_back(y0, y1, y2, y3, c)):
                    store(y, scratch, i * ROW + j * WIDTH)
            to = tile * channels + channel
            for i in range(6):
                y0 = load16(scratch, i * ROW)
                y1 = load16(scratch, i * ROW + WIDTH)
                y2 = load16(scratch, i * ROW + 2 * WIDTH)
                y3 = load16(scratch, i * ROW + 3 * WIDTH)
                for j, y in enumerate(_back(y0, y1, y2, y3, c)):
                    store(y, out, to + (6 * i + j) * pitch)
