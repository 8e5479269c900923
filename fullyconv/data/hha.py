"""HHA: depth as three channels, horizontal disparity, height above ground and angle with gravity.

Gupta, Girshick, Arbelaez, Malik, "Learning rich features from RGB-D images for object detection and segmentation",
ECCV 2014; the encoding their depth networks, and the FCN paper's NYUDv2 networks, were trained on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingInput
from fullyconv.files import read_json
from fullyconv.images import read_image

__all__ = ["NYUD", "NYUD_CROP", "encode", "gravity", "normals", "read_camera", "read_depth"]

Array = NDArray[np.float64]

# The colour camera of NYUDv2 (480x640) and of Gupta's 425x560 crop of it: 45 rows and 40 columns less.
NYUD = {"fx": 518.857901, "fy": 519.469611, "cx": 325.582449, "cy": 253.736166}
NYUD_CROP = {**NYUD, "cx": NYUD["cx"] - 40, "cy": NYUD["cy"] - 45}


def encode(
    depth: NDArray[np.number], camera: Mapping[str, float], raw_depth: NDArray[np.number] | None = None
) -> NDArray[np.uint8]:
    """depth H W in metres (0 = missing; best filled in) -> H W 3 uint8: disparity, height, angle.

    disparity = 31000 / centimetres, at least 1 m; height in cm above the lowest point; angle in degrees between surface
    normal and gravity, + 38; each rounded half up and saturating at 255. `camera` gives fx fy cx cy in pixels, the
    first row and column counting as 1; other keys are ignored. Pixels where `raw_depth` (default: depth) is 0 take no
    part in normals and gravity. Raises DataError for an image that is not H W, sizes that differ or bad intrinsics.
    """
    z = _metres(depth, "depth") * 100
    missing = z == 0
    if raw_depth is not None:
        raw = _metres(raw_depth, "raw depth")
        if raw.shape != z.shape:
            raise DataError(f"The depth is {_size(z)} (HxW) but the raw depth {_size(raw)}; give both of one frame.")
        missing |= raw == 0
    rays = _rays(z.shape, camera)
    down = gravity(normals(z, rays, missing, 10))
    angle = _angle(normals(z, rays, missing, 3), down)
    channels = (31000 / np.maximum(z, 100), _height(z, rays, down), angle + 38)
    return np.stack([np.floor(np.clip(c, 0, 255) + 0.5).astype(np.uint8) for c in channels], -1)


def read_camera(name: str | Path, size: tuple[int, int]) -> dict[str, float]:
    """The intrinsics `name` stands for: "nyud" (by the frame's size (H, W): full or Gupta's crop) or a JSON file."""
    if str(name) == "nyud":
        if size == (425, 560):
            return dict(NYUD_CROP)
        if size == (480, 640):
            return dict(NYUD)
        raise DataError(
            f"The camera 'nyud' is for frames of 480x640 or 425x560 (HxW) and this one is {size[0]}x{size[1]}; "
            "give a JSON file with fx fy cx cy."
        )
    path = Path(name)
    if not os.path.lexists(path):
        raise MissingInput(f"There is no camera file {path}; give 'nyud' or a JSON file with fx fy cx cy.")
    value = read_json(path)
    return _intrinsics(value, str(path))


def read_depth(path: str | Path, unit: float = 1000.0) -> Array:
    """A one-band depth image, `unit` stored units a metre, as H W float64 metres; 0 = missing."""
    bands = read_image(path, mode="bands")
    if bands.shape[2] != 1:
        raise DataError(f"{path} has {bands.shape[2]} bands; depth is one band, such as a 16-bit PNG.")
    return np.asarray(bands[..., 0] / unit)


def normals(z: Array, rays: tuple[Array, Array], missing: NDArray[np.bool_], radius: int) -> Array:
    """Least-squares plane normals of every (2 radius + 1)-wide window's valid points: 3 H W, unit, NaN without any.

    Each plane n.P = 1 is fitted to P / Z, so that the sums are of rays and inverse depths alone; n is left unscaled by
    the determinant, which its normalisation removes. Normals point away from the camera.
    """
    x, y = rays
    valid = (~missing).astype(np.float64)
    inverse = np.divide(1.0, z, out=np.zeros_like(z), where=~missing)
    x, y = x * valid, y * valid
    terms = (x * x, x * y, x, y * y, y, valid, x * inverse, y * inverse, inverse)
    xx, xy, sx, yy, sy, n, bx, by, bz = (_window_sum(t, radius) for t in terms)
    a, b, c = yy * n - sy * sy, sx * sy - xy * n, xy * sy - sx * yy
    d, e, f = xx * n - sx * sx, xy * sx - xx * sy, xx * yy - xy * xy
    normal = np.stack((a * bx + b * by + c * bz, b * bx + d * by + e * bz, c * bx + e * by + f * bz))
    with np.errstate(invalid="ignore", divide="ignore"):
        normal /= np.sqrt((normal * normal).sum(0))
    normal *= np.where(normal[2] < 0, -1.0, 1.0)
    outward = normal[0] * rays[0] + normal[1] * rays[1] + normal[2]
    normal *= np.where((outward < 0) & (z > 0), -1.0, 1.0)
    return normal


def gravity(normal: Array) -> Array:
    """The direction "down" (3: x right, y down, z ahead) that floors' normals share and walls' are square to.

    Starts from the image's vertical; five rounds with a threshold of 45 degrees, five with 15.
    """
    points = normal.reshape(3, -1)
    points = np.ascontiguousarray(points[:, ~np.isnan(points[0])])
    down = np.array([0.0, 1.0, 0.0])
    for degrees in (45, 15):
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for _ in range(5 if points.size else 0):
            along = np.abs(down @ points)
            weight = (along < sine).astype(np.float64) - (along > cosine)
            down = _least_axis((points * weight) @ points.T, down)  # walls' scatter minus floors'
    return down


def _least_axis(scatter: Array, before: Array) -> Array:
    """The unit eigenvector of the smallest eigenvalue on the side of `before`; among equals the one nearest to it.

    A single flat wall leaves every direction within it equal: then the direction stays as upright as it was.
    """
    values, axes = np.linalg.eigh(scatter)  # ascending
    least = axes[:, values - values[0] <= 1e-9 * np.abs(values).max()]
    near: Array = least @ (least.T @ before)
    length = np.linalg.norm(near)
    return near / length if length > 1e-6 else least[:, 0]


def _window_sum(values: Array, radius: int) -> Array:
    """Sums over square windows cut off at the border; an empty window gives exactly 0 (a summed-area table would not).

    Runs of 1, 2, 4, ... are added by doubling and put together to 2 radius + 1: few passes, all in float64.
    """
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius, radius)
        values = _run_sum(np.pad(values, pad), 2 * radius + 1, axis)
    return values


def _run_sum(values: Array, length: int, axis: int) -> Array:
    """Sums of `length` neighbours along `axis`; the result is `length - 1` shorter."""
    size = values.shape[axis] - length + 1

    def part(array: Array, start: int, count: int) -> Array:
        return array[start : start + count] if axis == 0 else array[:, start : start + count]

    run, width, taken = values, 1, 0
    total: Array | None = None
    while True:
        if length & width:
            piece = part(run, taken, size)
            total = piece.copy() if total is None else np.add(total, piece, out=total)
            taken += width
        if taken == length:
            assert total is not None
            return total
        count = run.shape[axis] - width
        run, width = part(run, 0, count) + part(run, width, count), 2 * width


def _angle(normal: Array, down: Array) -> Array:
    """Degrees between normals and gravity, 180 where there is no normal."""
    cosine = np.clip(np.tensordot(down, normal, 1), -1, 1)
    return np.asarray(np.where(np.isnan(cosine), 180.0, np.degrees(np.arccos(cosine))))


def _height(z: Array, rays: tuple[Array, Array], down: Array) -> Array:
    """Centimetres above the lowest point, or above 130 below the camera where none lies 90 below it."""
    if np.degrees(np.arccos(np.clip(down[1], -1, 1))) <= 0.1:  # the authors leave so small a tilt alone
        down = np.array([0.0, 1.0, 0.0])
    height = -(down[0] * rays[0] + down[1] * rays[1] + down[2]) * z
    lowest = height.min()
    return np.asarray(height - (-130.0 if lowest > -90 else lowest))


def _rays(shape: tuple[int, ...], camera: Mapping[str, float]) -> tuple[Array, Array]:
    """X / Z and Y / Z of every pixel, each H W."""
    k = _intrinsics(camera, "the camera")
    x = (np.arange(shape[1]) + 1 - k["cx"]) / k["fx"]
    y = (np.arange(shape[0]) + 1 - k["cy"]) / k["fy"]
    return np.broadcast_to(x[None], shape), np.broadcast_to(y[:, None], shape)


def _intrinsics(camera: Any, source: str) -> dict[str, float]:
    lacks = [key for key in ("fx", "fy", "cx", "cy") if isinstance(camera, Mapping) and key not in camera]
    if lacks:
        raise DataError(
            f"In {source} there is no {', '.join(lacks)} (it holds {', '.join(map(str, camera))[:80] or 'nothing'}); "
            "give the numbers fx fy cx cy."
        )
    try:
        value = {key: float(camera[key]) for key in ("fx", "fy", "cx", "cy")}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"In {source} the intrinsics cannot be read ({error}); give numbers fx fy cx cy.") from error
    if not all(np.isfinite(v) for v in value.values()) or value["fx"] <= 0 or value["fy"] <= 0:
        raise DataError(f"In {source} the intrinsics are {value}; fx and fy must be positive, all finite.")
    return value


def _metres(depth: NDArray[np.number], what: str) -> Array:
    z = np.asarray(depth, np.float64)
    if z.ndim != 2 or not z.size:
        raise DataError(f"The {what} has the shape {z.shape}; give one H W image of metres.")
    z = np.where(np.isfinite(z), z, 0.0)
    if z.min() < 0:
        raise DataError(f"The {what} is negative in {int((z < 0).sum())} pixels; mark missing depth with 0.")
    return z


def _size(array: NDArray[np.number]) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
