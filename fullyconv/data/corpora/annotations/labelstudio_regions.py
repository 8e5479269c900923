"""Label Studio's results as regions: what is drawn, on which image, under which label.

A region may be split over results of one id: its outline in one ("polygon"), its label in another ("labels").
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from fullyconv import images
from fullyconv.data.corpora.annotations.paint import checked_size
from fullyconv.data.corpora.annotations.raster import BadShape, Size, ellipse_points
from fullyconv.data.corpora.annotations.shapes import Stencil, Strokes, Unused, number, rings, short
from fullyconv.errors import DataError

__all__ = ["LabelledShape", "regions_of", "shape_of"]


@final
@dataclass(frozen=True)
class LabelledShape:
    """One region: its id, the <Image> it is drawn on, which of that one's images, its label, its values."""

    who: str
    to_name: str
    item: int
    label: str
    value: Mapping[str, Any]


def regions_of(results: Sequence[object], who: str, unused: Unused) -> list[LabelledShape]:
    """The regions of an annotation's results in their order; results that are none are counted."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for i, result in enumerate(results):
        if not isinstance(result, Mapping):
            unused.add("results that are not as Label Studio writes them", who)
            continue
        key = result.get("id")
        grouped.setdefault(key if isinstance(key, str) else f"number {i + 1}", []).append(result)
    regions = []
    for key, parts in grouped.items():
        drawn = next((r for r in parts if _is_drawn(_value(r))), None)
        if drawn is None:
            kind = short(parts[0].get("type", "of no type"))
            point = "x" in _value(parts[0])
            unused.add(f"{'regions' if point else 'answers'} without an area ({kind})", who)
            continue
        labels = [label for r in parts for label in _labels(_value(r))]
        if len(set(labels)) > 1:
            unused.add("further labels of regions that have one", f"{short(key)} of {who}", len(set(labels)) - 1)
        sizes = {k: drawn.get(k, _value(drawn).get(k)) for k in ("original_width", "original_height")}
        turned = {"image_rotation": drawn.get("image_rotation", 0)}
        value = {**_value(drawn), **sizes, **turned}
        item = drawn.get("item_index", 0)
        whole = item if isinstance(item, int) else -1
        regions.append(
            LabelledShape(key, str(drawn.get("to_name", ""))[:200], whole, labels[0] if labels else "", value)
        )
    return regions


def _value(result: Mapping[str, object]) -> Mapping[str, Any]:
    value = result.get("value", result)  # JSON-MIN has no "value"
    return value if isinstance(value, Mapping) else {}


def _is_drawn(value: Mapping[str, object]) -> bool:
    forms = ({"points"}, {"rle"}, {"imageDataURL"}, {"radiusX", "radiusY"}, {"x", "y", "width", "height"})
    return any(form <= set(value) for form in forms)


def _labels(value: Mapping[str, object]) -> list[str]:
    """The texts of every list called labels, ...labels or choices."""
    lists = [v for k, v in value.items() if (k.endswith("labels") or k == "choices") and isinstance(v, list)]
    return [v for found in lists for v in found if isinstance(v, str) and v]


def shape_of(region: LabelledShape, size: Size) -> Any:
    """The region as a shape of an image of `size`, or BadShape."""
    value = region.value
    if value.get("image_rotation"):
        raise BadShape("drawn on a turned image (image_rotation)")
    if "rle" in value:
        return _strokes(value, size)
    if "imageDataURL" in value:
        return _bitmap(value["imageDataURL"], size)
    scale = np.array([size[1], size[0]]) / 100
    if "points" in value:
        if value.get("closed") is False:
            raise BadShape("whose outline is not closed")
        return rings(_percents(value["points"]) * scale, size)
    x, y = number(value.get("x"), "x") * scale[0], number(value.get("y"), "y") * scale[1]
    degrees = number(value.get("rotation", 0), "rotation")
    if "radiusX" in value:
        rx, ry = number(value["radiusX"], "radius") * scale[0], number(value.get("radiusY"), "radius") * scale[1]
        return rings(ellipse_points(x, y, rx, ry, degrees), size)
    width, height = number(value["width"], "width") * scale[0], number(value["height"], "height") * scale[1]
    turn = np.radians(degrees)
    along, down = np.array([np.cos(turn), np.sin(turn)]) * width, np.array([-np.sin(turn), np.cos(turn)]) * height
    corner = np.array([x, y])  # turned about the top left corner
    return rings(np.stack([corner, corner + along, corner + along + down, corner + down]), size)


def _percents(points: object) -> Any:
    try:
        xy = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadShape("with points that are no numbers") from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise BadShape("with points that are no pairs")
    return xy


def _strokes(value: Mapping[str, object], size: Size) -> Strokes:
    if value.get("format", "rle") != "rle":
        raise BadShape(f"stored as {short(value.get('format'))}")
    try:
        stated = checked_size(value.get("original_height"), value.get("original_width"))
    except DataError as error:
        raise BadShape("of strokes without their image's size") from error
    try:
        if not isinstance(value["rle"], list):
            raise TypeError
        data = bytes(value["rle"])
    except (TypeError, ValueError, OverflowError) as error:
        raise BadShape("of strokes that are no list of bytes") from error
    if int.from_bytes(data[:4], "big") != 4 * stated[0] * stated[1]:
        raise BadShape("of strokes for an image of another size")
    return Strokes(data, stated)


def _bitmap(address: object, size: Size) -> Stencil:
    try:
        data = base64.b64decode(str(address).partition("base64,")[2] or str(address), validate=True)
        height, width = images.image_size(data)
    except (binascii.Error, ValueError, DataError) as error:
        raise BadShape("of a bitmap that cannot be read") from error
    if height * width > size[0] * size[1]:
        raise BadShape("of a bitmap larger than the image")
    return Stencil(data, 0, 0)
