"""Procedural street scenes: images with depth and two label maps, from a seed, for demos, tests and benchmarks.

A small ray caster (numpy alone): a street with kerbs, buildings, trees, hedges, cars, people, poles and signs under a
random sun. Colour helps but does not decide: road and pavement, wall and overcast sky, lawn and hedge, painted posters
and what they show share their colours, and only shape and depth tell them apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import UsageError, printable
from fullyconv.images import encode_label, encode_png
from fullyconv.scenes.street import LAWN, PAVEMENT, ROAD, SKY, Array, Solid, Street, draw_solids, draw_street, noise
from fullyconv.taxonomy import Taxonomy

__all__ = ["GEOMETRIC", "SEMANTIC", "Scene", "camera", "render_scene", "write_scenes"]

SEMANTIC = Taxonomy(
    ("sky", "road", "pavement", "lawn", "building", "vegetation", "car", "person", "pole", "sign"),
    (
        (135, 196, 250),
        (96, 64, 128),
        (230, 90, 220),
        (150, 220, 130),
        (120, 120, 120),
        (40, 130, 50),
        (20, 40, 190),
        (220, 30, 60),
        (245, 190, 120),
        (240, 230, 20),
    ),
)
GEOMETRIC = Taxonomy(("sky", "horizontal", "vertical"), ((135, 196, 250), (150, 110, 60), (110, 110, 190)))
HORIZONTAL, VERTICAL = 1, 2
FAR = 60.0  # metres; a depth camera returns nothing beyond


@final
@dataclass(frozen=True)
class Scene:
    """image: H W 3 uint8; depth: H W uint16, millimetres along the optical axis, 0 = missing; semantic, geometric:
    H W uint8 ids of `SEMANTIC` and `GEOMETRIC`; camera: fx fy cx cy in pixels, 1-based principal point."""

    image: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    semantic: NDArray[np.uint8]
    geometric: NDArray[np.uint8]
    camera: dict[str, float]


def camera(size: tuple[int, int]) -> dict[str, float]:
    """The intrinsics of every scene of this size (H, W): 58 degrees wide, principal point 1-based."""
    height, width = size
    return {"fx": 0.9 * width, "fy": 0.9 * width, "cx": (width + 1) / 2, "cy": (height + 1) / 2}


# --- casting rays -----------------------------------------------------------------------------------------------------


def _hit(solid: Solid, origin: Array, rays: Array) -> tuple[Array, Array, Array]:
    """First hit of rays (N 3) from `origin` (3 or N 3): distance N (inf: none), local point N 3, local normal N 3."""
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    turn = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    half = np.asarray(solid.half)
    start, step = (origin - np.asarray(solid.centre)) @ turn.T, rays @ turn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        if solid.shape == "box":
            t, normal = _hit_box(start, step, half)
        else:
            t, normal = _hit_round(start, step, half, solid.shape == "cylinder")
    point = start + np.where(np.isfinite(t), t, 0)[:, None] * step
    return t, point, normal


def _hit_box(start: Array, step: Array, half: Array) -> tuple[Array, Array]:
    near, far = (-half - start) / step, (half - start) / step
    low = np.minimum(near, far)
    t = low.max(-1)
    t = np.where((t <= np.maximum(near, far).min(-1)) & (t > 1e-3), t, np.inf)
    normal = np.zeros((len(t), 3))
    rows, axis = np.arange(len(t)), low.argmax(-1)
    normal[rows, axis] = -np.sign(step[rows, axis])
    return t, normal


def _hit_round(start: Array, step: Array, half: Array, cylinder: bool) -> tuple[Array, Array]:
    weight = np.array([1.0, 0.0, 1.0]) if cylinder else np.ones(3)
    o, d = start / half, step / half
    a, b, c = (d * d) @ weight, (o * d) @ weight, np.broadcast_to((o * o) @ weight - 1, (len(d),))
    root = b * b - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    point = o + t[:, None] * d
    good = (root > 0) & (t > 1e-3) & (np.abs(point[:, 1]) <= 1)
    normal = point * weight / half
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return np.where(good, t, np.inf), normal / np.where(length > 0, length, 1)


@final
@dataclass
class _Canvas:
    """What every ray (N = H * W, rows first) has met so far."""

    distance: Array
    colour: Array
    normal: Array
    semantic: Array
    geometric: Array
    lit: Array


def _ground(canvas: _Canvas, street: Street, eye: Array, rays: Array, solids: list[Solid]) -> None:
    """Road, kerbs, pavement and lawn, with the shadows that fall on them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        road_t, walk_t = eye[1] / -rays[:, 1], (eye[1] - street.kerb) / -rays[:, 1]
        road_x, walk_x = eye[0] + road_t * rays[:, 0], eye[0] + walk_t * rays[:, 0]
        kerb_t = (np.sign(rays[:, 0]) * street.road - eye[0]) / rays[:, 0]
    down = rays[:, 1] < -1e-4
    on_road, on_walk = down & (np.abs(road_x) <= street.road), down & (np.abs(walk_x) > street.road)
    kerb = down & ~on_road & ~on_walk
    t = np.where(on_road, road_t, np.where(on_walk, walk_t, kerb_t))
    near = down & (t > 0) & (t < 400)
    i = np.flatnonzero(near)
    point = eye + t[i, None] * rays[i]
    lawn = np.abs(point[:, 0]) > street.road + street.pavement
    kind = np.where(on_road[i], 0, np.where(lawn, 2, 1))
    canvas.distance[i] = t[i]
    canvas.semantic[i] = np.array([ROAD, PAVEMENT, LAWN])[kind]
    canvas.geometric[i] = np.where(kerb[i], VERTICAL, HORIZONTAL)
    canvas.normal[i] = (
        np.where(kerb[i, None], [1.0, 0, 0], [0, 1.0, 0]) * np.where(point[:, :1] > 0, -1, 1) ** kerb[i, None]
    )
    canvas.colour[i] = _ground_colour(street, kind, point)
    canvas.lit[i] = ~_shadow(street, solids, point)


def _ground_colour(street: Street, kind: Array, point: Array) -> Array:
    x, z = point[:, 0], point[:, 2]
    shade = 1 + 0.1 * noise(x, z, 40, street.shift) + 0.1 * noise(x, z, 3, street.shift)
    joint = ((x / street.slab) % 1 < 0.07) | ((z / street.slab) % 1 < 0.07)
    shade = shade * np.where((kind == 1) & joint, 0.75, 1) + np.where(kind == 2, 0.35 * noise(x, z, 25, 5), 0)
    colour = np.stack(street.colours)[kind] * np.clip(shade, 0.3, 2)[:, None]
    dashes = (kind == 0) & (np.abs(x) < 0.08) & (z % 4 < 2)
    colour[dashes] = 0.75
    return np.asarray(colour)


def _shadow(street: Street, solids: list[Solid], point: Array) -> Array:
    """Which ground points (N 3) the sun does not reach; far ones are not looked at."""
    dark = np.zeros(len(point), bool)
    if street.power < 0.3:
        return dark
    reach = 1 / max(street.sun[1] / np.hypot(street.sun[0], street.sun[2]), 0.1)
    for solid in solids:
        spread = max(solid.half) + (solid.centre[1] + solid.half[1]) * reach
        offset = point[:, (0, 2)] - np.array([solid.centre[0], solid.centre[2]])
        i = np.flatnonzero((np.abs(offset).max(-1) < spread) & ~dark)
        if len(i):
            t, _, _ = _hit(solid, point[i], np.broadcast_to(street.sun, (len(i), 3)))
            dark[i] = np.isfinite(t)
    return dark


def _draw(canvas: _Canvas, solid: Solid, eye: Array, rays: Array, pixels: Array) -> None:
    """Put `solid` on the rays `pixels` where it is nearest."""
    t, point, normal = _hit(solid, eye, rays[pixels])
    n = np.flatnonzero(t < canvas.distance[pixels])
    if not len(n):
        return
    point, normal, face = point[n], normal[n], np.abs(normal[n]).argmax(-1)
    if solid.shape == "box":
        u, v = np.where(face == 0, point[:, 2], point[:, 0]), np.where(face == 1, point[:, 2], point[:, 1])
    else:
        u, v = np.arctan2(point[:, 0], point[:, 2]) * solid.half[0], point[:, 1]
    v = v + np.where(face == 1, 0, solid.half[1])
    colour, kept = solid.skin(u, v, face, normal)
    i = pixels[n[kept]]
    c, s = np.cos(solid.yaw), np.sin(solid.yaw)
    canvas.distance[i] = t[n[kept]]
    canvas.colour[i] = colour[kept]
    canvas.normal[i] = normal[kept] @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    canvas.semantic[i] = solid.label
    top = (face[kept] == 1) & (solid.shape == "box") & solid.flat_top
    canvas.geometric[i] = np.where(top, HORIZONTAL, VERTICAL)
    canvas.lit[i] = True


def _window(solid: Solid, eye: Array, view: Array, intrinsics: dict[str, float], size: tuple[int, int]) -> Array:
    """Flat indices of the pixels that `solid` can cover: the window of its projected corners."""
    height, width = size
    reach = np.hypot(solid.half[0], solid.half[2]) if solid.yaw else 0.0
    half = np.array([max(reach, solid.half[0]), solid.half[1], max(reach, solid.half[2])])
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(-1, 3)
    corners = (np.asarray(solid.centre) + signs * half - eye) @ view
    if (corners[:, 2] < 0.1).all():
        return np.empty(0, np.int64)
    top, left, bottom, right = 0, 0, height, width
    if (corners[:, 2] > 0.1).all():
        x = corners[:, 0] / corners[:, 2] * intrinsics["fx"] + intrinsics["cx"] - 1
        y = -corners[:, 1] / corners[:, 2] * intrinsics["fy"] + intrinsics["cy"] - 1
        top, bottom = max(0, int(np.floor(y.min()))), min(height, int(np.ceil(y.max())) + 1)
        left, right = max(0, int(np.floor(x.min()))), min(width, int(np.ceil(x.max())) + 1)
    rows, cols = np.arange(top, max(top, bottom)), np.arange(left, max(left, right))
    return np.asarray((rows[:, None] * width + cols).ravel())


def render_scene(seed: int | tuple[int, ...], size: tuple[int, int] = (120, 160)) -> Scene:
    """The scene of this seed at this size (H, W); the same seed gives the same bytes."""
    height, width = size
    if height < 8 or width < 8:
        raise UsageError(f"A scene of {height}x{width} (HxW) shows nothing; make it at least 8x8.")
    rng = np.random.default_rng(seed)
    street, intrinsics = draw_street(rng), camera(size)
    solids = draw_solids(rng, street)
    eye = np.array([rng.uniform(-0.8, 0.8) * street.road, rng.uniform(1.3, 2.6), 0.0])
    view = _look(rng.normal(0, 0.22), rng.uniform(-0.06, 0.16))
    x = (np.arange(width) + 1 - intrinsics["cx"]) / intrinsics["fx"]
    y = (np.arange(height) + 1 - intrinsics["cy"]) / intrinsics["fy"]
    axes = np.broadcast_arrays(x[None], -y[:, None], 1.0)
    rays = np.stack(axes, -1).reshape(-1, 3) @ view.T  # depth along the axis is the ray parameter
    canvas = _Canvas(
        np.full(len(rays), np.inf),
        np.zeros((len(rays), 3)),
        np.zeros((len(rays), 3)),
        np.full(len(rays), SKY),
        np.zeros(len(rays), np.int64),
        np.ones(len(rays), bool),
    )
    _ground(canvas, street, eye, rays, solids)
    for solid in solids:
        pixels = _window(solid, eye, view, intrinsics, size)
        if len(pixels):
            _draw(canvas, solid, eye, rays, pixels)
    return Scene(
        _expose(rng, street, canvas, rays, size),
        _sense(rng, canvas, rays, size),
        canvas.semantic.reshape(size).astype(np.uint8),
        canvas.geometric.reshape(size).astype(np.uint8),
        intrinsics,
    )


def _look(yaw: float, pitch: float) -> Array:
    """The rotation whose columns are the camera's right, up and forward axes in the world."""
    a, b, c, d = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    return np.array([[a, b * d, b * c], [0, c, -d], [-b, a * d, a * c]])


def _expose(rng: np.random.Generator, street: Street, canvas: _Canvas, rays: Array, size: tuple[int, int]) -> Any:
    """Light, haze, sky, lens and sensor: radiance -> H W 3 uint8."""
    direction = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    rise = np.clip(direction[:, 1:2] * 2.5, 0, 1) ** 0.7
    clouds = street.cloud * np.clip(noise(direction[:, 0], direction[:, 1] * 2, 60, street.shift), -0.3, 2)
    sky = street.horizon * (1 - rise) + street.zenith * rise + clouds[:, None]
    facing = np.clip(canvas.normal @ street.sun, 0, 1) * canvas.lit * street.power
    light = street.ambient * (0.75 + 0.25 * canvas.normal[:, 1:2]) + facing[:, None] * np.array([1.0, 0.95, 0.85])
    fog = np.exp(-street.haze * np.minimum(canvas.distance, 400))[:, None]
    out = np.where((canvas.semantic == SKY)[:, None], sky, canvas.colour * light * fog + street.horizon * (1 - fog))
    image = (out * rng.uniform(0.75, 1.25) * (1 + rng.normal(0, 0.04, 3))).reshape(*size, 3)
    blur = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    blur = blur[:-2] + 2 * blur[1:-1] + blur[2:]
    image = 0.5 * image + 0.5 * (blur[:, :-2] + 2 * blur[:, 1:-1] + blur[:, 2:]) / 16
    image = 255 * np.clip(image, 0, 1) ** (1 / 1.8) + rng.normal(0, rng.uniform(1.5, 5), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _sense(rng: np.random.Generator, canvas: _Canvas, rays: Array, size: tuple[int, int]) -> Any:
    """What a depth camera returns: noise that grows with distance; holes beyond reach, at glancing angles, specks."""
    z = canvas.distance.reshape(size)
    with np.errstate(invalid="ignore"):
        noisy = z * (1 + rng.normal(0, 0.0015, size)) + np.minimum(z, FAR) ** 2 * rng.normal(0, 0.0004, size)
    facing = np.abs((canvas.normal * rays).sum(-1)) / np.linalg.norm(rays, axis=-1)
    hole = (facing.reshape(size) < 0.03) | (rng.uniform(size=size) < 0.01) | ~(noisy < FAR)
    edge = np.zeros(size, bool)  # the strip beside a near object that the second eye of the camera does not see
    edge[:, 1:] = np.diff(np.minimum(z, 2 * FAR)) > 1.0
    hole |= edge
    return np.where(hole, 0, np.rint(np.where(hole, 0, noisy) * 1000)).astype(np.uint16)


# --- files ------------------------------------------------------------------------------------------------------------


def write_scenes(
    directory: Path | str, *, train: int, val: int, size: tuple[int, int] = (120, 160), seed: int = 0
) -> Path:
    """Write a `folder:` data set of `train` + `val` scenes of this size (H, W) and return its directory.

    SPLIT/images (RGB PNG), SPLIT/depth (16-bit PNG, millimetres, 0 = missing), SPLIT/labels and
    SPLIT/labels-geometric (palette PNG), classes.txt, classes-geometric.txt, camera.json. Scene i of a split depends
    on seed, split and i alone, so a larger set begins with a smaller one. Raises UsageError where something is already:
    scenes of an earlier call would stay among the new ones.
    """
    root = Path(directory)
    if root.is_dir() and any(root.iterdir()):
        raise UsageError(f"{printable(root)} holds something already; name a new folder.")
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        for i in range(count):
            _write_scene(root / split, f"{i:05d}", render_scene((seed, number, i), size))
    root.mkdir(parents=True, exist_ok=True)
    for name, taxonomy in (("classes.txt", SEMANTIC), ("classes-geometric.txt", GEOMETRIC)):
        lines = (f"{n} {r} {g} {b}\n" for n, (r, g, b) in zip(taxonomy.names, taxonomy.palette, strict=True))
        (root / name).write_text("".join(lines), encoding="utf-8")
    (root / "camera.json").write_text(json.dumps(camera(size), indent=2) + "\n", encoding="utf-8")
    return root


def _write_scene(folder: Path, name: str, scene: Scene) -> None:
    for part, data in (
        ("images", encode_png(scene.image)),
        ("depth", encode_png(scene.depth)),
        ("labels", encode_label(scene.semantic, SEMANTIC.palette)),
        ("labels-geometric", encode_label(scene.geometric, GEOMETRIC.palette)),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / f"{name}.png").write_bytes(data)
