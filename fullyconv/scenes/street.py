"""What stands in a procedural street scene and what it is made of: drawn at random, in metres, numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Solid", "Street", "draw_solids", "draw_street", "noise"]

SKY, ROAD, PAVEMENT, LAWN, BUILDING, VEGETATION, CAR, PERSON, POLE, SIGN = range(10)

Array = NDArray[Any]
# A surface point's face coordinates, face number and outward normal -> (albedo N 3, kept N): what it looks like there.
Skin = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


@final
@dataclass(frozen=True)
class Solid:
    """A box ("box"), upright cylinder ("cylinder") or ellipsoid ("ellipsoid") with half sizes, turned by `yaw`."""

    shape: str
    label: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    skin: Skin
    yaw: float = 0.0
    flat_top: bool = True  # its top is "horizontal"


# --- textures ---------------------------------------------------------------------------------------------------------


@cache
def _tile() -> Array:
    """256 x 256 tileable fractal noise with mean 0 and standard deviation 1."""
    rng = np.random.default_rng(20150607)
    frequency = np.fft.fftfreq(256)
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = 1
    tile: Array = np.fft.ifft2(np.fft.fft2(rng.standard_normal((256, 256))) / radius**0.9).real
    return np.asarray((tile - tile.mean()) / tile.std(), np.float32)


def noise(u: Array, v: Array, scale: float, shift: int = 0) -> Array:
    """Noise at (u, v) metres, `scale` texels a metre."""
    rows, cols = (v * scale).astype(np.int64) + shift & 255, (u * scale).astype(np.int64) + 7 * shift & 255
    return np.asarray(_tile()[rows, cols])


def _colour(rng: np.random.Generator, saturation: float = 0.5, low: float = 0.15, high: float = 0.75) -> Array:
    """A random albedo; walls, cars, clothes and signs draw from the same distribution."""
    hue, value = rng.uniform(0, 1), rng.uniform(low, high)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return np.asarray(value * (1 - rng.uniform(0, saturation) * (1 - wheel)))


def _green(rng: np.random.Generator) -> Array:
    """Lawns and leaves alike: green, dry or autumnal."""
    return np.asarray([rng.uniform(0.14, 0.45), rng.uniform(0.24, 0.42), rng.uniform(0.06, 0.16)])


def _plain(colour: Array, rng: np.random.Generator, rough: float = 0.1, scale: float = 20.0) -> Skin:
    shift = int(rng.integers(256))

    def skin(u: Array, v: Array, face: Array, normal: Array) -> tuple[Array, Array]:
        shade = 1 + rough * noise(u, v, scale, shift)
        return colour * shade[:, None], np.ones(len(u), bool)

    return skin


def _leafy(colour: Array, rng: np.random.Generator, holes: float) -> Skin:
    shift = int(rng.integers(256))

    def skin(u: Array, v: Array, face: Array, normal: Array) -> tuple[Array, Array]:
        leaf = noise(u, v, 30, shift)
        shade = np.clip(1 + 0.4 * leaf + 0.3 * noise(u, v, 6, shift + 9), 0.2, 2.2)
        return colour * shade[:, None], leaf > holes

    return skin


def _facade(rng: np.random.Generator) -> Skin:
    """A wall with rows of windows, a plinth, and posters that show what stands in the street."""
    wall, glass, trim = _colour(rng, 0.45, 0.25, 0.85), _colour(rng, 0.5, 0.05, 0.5), _colour(rng, 0.3)
    pitch, storey = rng.uniform(1.6, 3.4), rng.uniform(2.6, 3.6)
    wide, tall = rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.65)
    brick, shift = rng.uniform(0, 0.2), int(rng.integers(256))
    posters = [(rng.uniform(-9, 9), rng.uniform(1.0, 2.2), _colour(rng, 0.9), _colour(rng, 0.9), int(rng.integers(3)))]
    posters += [(rng.uniform(-9, 9), rng.uniform(1.0, 2.2), _colour(rng, 0.9), _green(rng), 2)]

    def skin(u: Array, v: Array, face: Array, normal: Array) -> tuple[Array, Array]:
        shade = 1 + 0.08 * noise(u, v, 12, shift) + 0.05 * noise(u, v, 1.5, shift)
        shade = shade * (1 - brick * (((v * 6) % 1 < 0.15) | ((u * 3 + (np.floor(v * 6) % 2) / 2) % 1 < 0.08)))
        colour = wall * shade[:, None]
        window = ((u / pitch) % 1 < wide) & ((v / storey) % 1 > 1 - tall) & (v > 1)
        colour[window] = glass * (1 + 0.5 * np.clip(noise(u, v, 2, shift + 3), -1, 2))[window, None]
        colour[v < 0.5] = trim
        for at, size, paper, ink, kind in posters:
            p, q = (u - at) / size, v / size
            sheet = (np.abs(p) < 0.6) & (q > 0.15) & (q < 1.35)
            colour[sheet] = paper
            colour[sheet & _painted(p, q - 0.25, kind)] = ink
        return colour, np.ones(len(u), bool)

    return skin


def _painted(p: Array, q: Array, kind: int) -> Array:
    """The silhouette on a poster: a person (0), a car (1), a tree (2)."""
    if kind == 0:
        return (np.hypot(p, q - 0.85) < 0.11) | ((np.abs(p) < 0.17) & (q > 0) & (q < 0.75))
    if kind == 1:
        return ((np.abs(p) < 0.5) & (q > 0.1) & (q < 0.4)) | ((np.abs(p) < 0.28) & (q > 0.1) & (q < 0.65))
    return (np.hypot(p, (q - 0.65) * 0.9) < 0.32) | ((np.abs(p) < 0.05) & (q > 0) & (q < 0.5))


def _coachwork(colour: Array, rng: np.random.Generator, half: tuple[float, float, float], cabin: bool) -> Skin:
    glass = np.array([0.08, 0.09, 0.11]) + rng.uniform(0, 0.12)

    def skin(u: Array, v: Array, face: Array, normal: Array) -> tuple[Array, Array]:
        out = np.repeat(colour[None], len(u), 0)
        side = face != 1
        if cabin:
            out[side & (v > 0.08) & (v < 2 * half[1] - 0.08) & (np.abs(u) % 0.9 > 0.05)] = glass
            return out, np.ones(len(u), bool)
        lamp = (face == 2) & (np.abs(np.abs(u) - half[0] + 0.2) < 0.16) & (v > 0.25) & (v < 0.45)
        out[lamp] = (0.9, 0.25, 0.15)
        wheel = (face == 0) & (np.hypot(np.abs(u) - 0.6 * half[2], v + 0.02) < 0.34)
        out[wheel] = 0.04
        under = side & (v < 0.03) & ~wheel
        return out, ~under

    return skin


def _signboard(rng: np.random.Generator) -> Skin:
    ground, ink, edge = _colour(rng, 0.95, 0.3, 0.9), _colour(rng, 0.9), rng.uniform(0.05, 0.14)
    stripes = rng.uniform(3, 9)

    def skin(u: Array, v: Array, face: Array, normal: Array) -> tuple[Array, Array]:
        out = np.where(((v * stripes) % 1 < 0.4)[:, None], ink, ground)
        out[v < edge] = 0.9
        return out, np.ones(len(u), bool)

    return skin


# --- the world --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Street:
    """Road half width, pavement width and kerb height in metres; albedos and textures of the grounds; sky and light."""

    road: float
    pavement: float
    kerb: float
    colours: tuple[Array, Array, Array]  # road, pavement, lawn
    slab: float
    shift: int
    sun: Array
    power: float
    ambient: Array
    zenith: Array
    horizon: Array
    cloud: float
    haze: float


def draw_street(rng: np.random.Generator) -> Street:
    grey, other = rng.uniform(0.12, 0.45, 2)
    tint = 1 + rng.uniform(-0.08, 0.08, (2, 3)) * rng.choice([1, 1, 3])
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1.2)
    sun = np.array([np.cos(azimuth) * np.cos(height), np.sin(height), np.sin(azimuth) * np.cos(height)])
    overcast = rng.uniform() < 0.4
    pale = rng.uniform(0.6, 0.95)
    zenith = np.full(3, pale) if overcast else np.array([0.25, 0.45, 0.85]) * rng.uniform(0.6, 1.1)
    horizon = np.full(3, pale * 0.95) if overcast else np.array([0.75, 0.82, 0.9]) * rng.uniform(0.8, 1.05)
    return Street(
        road=rng.uniform(2.5, 4.5),
        pavement=rng.uniform(1.2, 3.5),
        kerb=rng.uniform(0.12, 0.3),
        colours=(grey * tint[0], other * tint[1], _green(rng)),
        slab=rng.uniform(0.4, 1.2),
        shift=int(rng.integers(256)),
        sun=sun,
        power=rng.uniform(0.05, 0.25) if overcast else rng.uniform(0.6, 1.1),
        ambient=(0.35 + 0.3 * zenith) * (1.4 if overcast else 0.8),
        zenith=zenith,
        horizon=horizon,
        cloud=rng.uniform(0.02, 0.06) if overcast else rng.uniform(0, 0.15),
        haze=rng.uniform(0, 0.012),
    )


def draw_solids(rng: np.random.Generator, street: Street) -> list[Solid]:
    """Everything that stands in the street, in metres: x right, y up, z ahead."""
    solids: list[Solid] = []
    for side in (-1, 1):
        _houses(solids, rng, street, side)
        _greenery(solids, rng, street, side)
    for _ in range(int(rng.integers(1, 5))):
        _car(solids, rng, street)
    for _ in range(int(rng.integers(1, 6))):
        _person(solids, rng, street)
    for _ in range(int(rng.integers(2, 6))):
        _post(solids, rng, street)
    return solids


def _houses(solids: list[Solid], rng: np.random.Generator, street: Street, side: int) -> None:
    front = street.road + street.pavement + rng.choice([0.0, rng.uniform(0.5, 5)])
    z = rng.uniform(-4, 4)
    while z < 55:
        depth, tall, long = rng.uniform(4, 8), rng.uniform(3, 14), rng.uniform(5, 13)
        if rng.uniform() < 0.8:
            centre = (side * (front + depth / 2 + rng.uniform(0, 0.8)), tall / 2, z + long / 2)
            solids.append(Solid("box", BUILDING, centre, (depth / 2, tall / 2, long / 2), _facade(rng)))
        z += long + rng.choice([0.0, rng.uniform(0.5, 6)])
    if side > 0 and rng.uniform() < 0.5:  # a house that closes the street
        tall = rng.uniform(4, 11)
        solids.append(Solid("box", BUILDING, (0, tall / 2, rng.uniform(30, 58)), (14, tall / 2, 2), _facade(rng)))


def _greenery(solids: list[Solid], rng: np.random.Generator, street: Street, side: int) -> None:
    base = street.kerb
    for _ in range(int(rng.integers(0, 4))):
        x, z = side * (street.road + rng.uniform(0.6, street.pavement + 1.5)), rng.uniform(5, 35)
        trunk, crown = rng.uniform(1.4, 3), rng.uniform(0.9, 2.2)
        bark = _plain(np.array([0.2, 0.15, 0.1]) * rng.uniform(0.6, 1.8), rng, 0.3, 30)
        solids.append(Solid("cylinder", VEGETATION, (x, base + trunk / 2, z), (0.16, trunk / 2, 0.16), bark))
        half = (crown * rng.uniform(0.8, 1.2), crown * rng.uniform(0.8, 1.4), crown)
        leaves = _leafy(_green(rng), rng, rng.uniform(-1.6, -0.7))
        solids.append(Solid("ellipsoid", VEGETATION, (x, base + trunk + 0.7 * half[1], z), half, leaves))
    if rng.uniform() < 0.6:  # a hedge, the colour of the lawn it stands on
        tall, long, z = rng.uniform(0.6, 1.5), rng.uniform(2, 8), rng.uniform(6, 25)
        x = side * (street.road + street.pavement + rng.uniform(0.2, 1.5))
        skin = _leafy(street.colours[2], rng, -9)
        solids.append(Solid("box", VEGETATION, (x, base + tall / 2, z), (0.4, tall / 2, long / 2), skin))


def _car(solids: list[Solid], rng: np.random.Generator, street: Street) -> None:
    x, z = rng.choice([-1, 1]) * (street.road - rng.uniform(0.9, 2.0)), rng.uniform(5.5, 32)
    yaw = rng.choice([0.0, np.pi / 2], p=[0.85, 0.15]) + rng.normal(0, 0.08)
    colour = _colour(rng, 0.9, 0.05, 0.85)
    body, cabin = (0.88, 0.36, rng.uniform(1.7, 2.3)), (0.76, rng.uniform(0.24, 0.5), rng.uniform(0.9, 1.5))
    solids.append(Solid("box", CAR, (x, 0.2 + body[1], z), body, _coachwork(colour, rng, body, False), yaw))
    at = (x, 0.2 + 2 * body[1] + cabin[1], z)
    solids.append(Solid("box", CAR, at, cabin, _coachwork(colour, rng, cabin, True), yaw))


def _person(solids: list[Solid], rng: np.random.Generator, street: Street) -> None:
    on_road = rng.uniform() < 0.3
    x = rng.uniform(-street.road, street.road) if on_road else street.road + rng.uniform(0.3, street.pavement)
    x, base, z = x * rng.choice([-1, 1]), 0.0 if on_road else street.kerb, rng.uniform(4, 22)
    tall, wide = rng.uniform(1.45, 1.9), rng.uniform(0.19, 0.28)
    legs, coat = _plain(_colour(rng, 0.6, 0.05, 0.5), rng), _plain(_colour(rng, 0.95), rng)
    face = _plain(np.array([0.75, 0.52, 0.4]) * rng.uniform(0.3, 1.1), rng, 0.05)
    stand = (wide * 0.7, 0.24 * tall, wide * 0.55)
    solids.append(Solid("cylinder", PERSON, (x, base + 0.24 * tall, z), stand, legs, flat_top=False))
    solids.append(Solid("ellipsoid", PERSON, (x, base + 0.64 * tall, z), (wide, 0.23 * tall, wide * 0.7), coat))
    solids.append(Solid("ellipsoid", PERSON, (x, base + 0.92 * tall, z), (0.1, 0.13, 0.11), face))


def _post(solids: list[Solid], rng: np.random.Generator, street: Street) -> None:
    """A lamp post, or a sign on a shorter one."""
    x, z = rng.choice([-1, 1]) * (street.road + rng.uniform(0.2, 0.9)), rng.uniform(4, 26)
    metal, radius = _plain(_colour(rng, 0.4), rng, 0.05), rng.uniform(0.05, 0.1)
    signed = rng.uniform() < 0.65
    tall = rng.uniform(1.9, 2.8) if signed else rng.uniform(3.5, 6)
    solids.append(
        Solid("cylinder", POLE, (x, street.kerb + tall / 2, z), (radius, tall / 2, radius), metal, flat_top=False)
    )
    if signed:
        half = (rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.5), 0.04)
        centre = (x, street.kerb + tall + half[1] * 0.4, z - 0.12)
        solids.append(Solid("box", SIGN, centre, half, _signboard(rng), rng.normal(0, 0.35), False))
