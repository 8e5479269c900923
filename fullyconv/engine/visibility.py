"""Which cells of a padded network see the image, and what the others hold: whole numbers, without tensors.

Along one axis every map has three facts: the span of cells that see the image (`seen`), and how many cells at the near
and the far end feel the map's border (`near`, `far`). Between the two borders an empty image gives one constant, so
the background of a small image whose size leaves the same remainder modulo the network's stride serves every larger
one: its middle is repeated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from fullyconv.geometry import Layer

__all__ = [
    "Node",
    "Region",
    "VisibleAxis",
    "WindowPlan",
    "area",
    "background_side",
    "beyond",
    "clipped",
    "plan_window",
    "reads",
    "region_within",
    "ring_of",
    "stretched",
    "visible_axis",
]

Span = tuple[int, int]
Region = tuple[Span, Span]  # half-open rows, columns
# What decides between computing a few more cells and copying a map: FLOPs and bytes a second (about one core's).
FLOPS, BYTES = 2e11, 5e9


@final
@dataclass(frozen=True)
class Node:
    """One step of the network: a windowed layer (`layers`: rows, columns) or a pointwise one (None)."""

    name: str
    inputs: tuple[str, ...]
    layers: tuple[Layer, Layer] | None = None
    module: Any = None  # what computes it; None: concatenation along C
    work: int = 0  # a convolution's FLOPs a cell
    bytes: int = 0  # and the bytes of a cell of its map

    @property
    def pooling(self) -> bool:
        return self.layers is not None and self.layers[0].kind == "pool"


@final
@dataclass(frozen=True)
class VisibleAxis:
    """A map along one axis: its cells, those that see the image, and how many at each end feel the border."""

    size: int
    seen: Span
    near: int
    far: int

    @property
    def constant(self) -> bool:
        """Whether a cell is left between the borders whose value is that of an endless empty image."""
        return self.near + self.far < self.size


def visible_axis(nodes: Sequence[Node], side: int, which: int) -> dict[str, VisibleAxis]:
    """Node -> its map along axis `which` (0 rows, 1 columns) of an image `side` pixels long. "image" is the input."""
    found = {"image": VisibleAxis(side, (0, side), 0, 0)}
    for node in nodes:
        sources = [found[name] for name in node.inputs]
        if node.layers is not None:
            found[node.name] = _through(node.layers[which], sources[0], node.inputs[0] == "image")
            continue
        found[node.name] = VisibleAxis(
            sources[0].size,
            (min(s.seen[0] for s in sources), max(s.seen[1] for s in sources)),
            max(s.near for s in sources),
            max(s.far for s in sources),
        )
    return found


def _through(layer: Layer, source: VisibleAxis, image: bool) -> VisibleAxis:
    """Cell i of `layer` reads the cells from i * stride - padding, `span` of them."""
    s, p, span, n = layer.stride, layer.padding, layer.span, source.size
    size = layer.size(n)
    seen = (
        min(size, max(0, (source.seen[0] + p - span) // s + 1)),
        max(0, min(size, -(-(source.seen[1] + p) // s))),
    )
    if image and layer.kind == "conv":  # an empty image is as black as its padding: no border to feel
        return VisibleAxis(size, seen, 0, 0)
    near = min(size, -(-(source.near + p) // s))
    far = size - min(size, max(0, (n - source.far + p - span) // s + 1))
    return VisibleAxis(size, seen, near, far)


def background_side(nodes: Sequence[Node], side: int, which: int, needed: Sequence[str], stride: int) -> int:
    """The side of the smallest image whose background serves one of `side` pixels (itself, when none is smaller)."""
    for small in range((side - 1) % stride + 1, side, stride):
        found = visible_axis(nodes, small, which)
        if all(found[name].constant for name in needed):
            return small
    return side


@final
@dataclass(frozen=True)
class WindowPlan:
    """For one image size: every node's map, the region computed, which nodes need a background and of what size."""

    rows: Mapping[str, VisibleAxis]
    columns: Mapping[str, VisibleAxis]
    computed: Mapping[str, Region]
    needed: tuple[str, ...]
    small: tuple[int, int]
    small_rows: Mapping[str, VisibleAxis]
    small_columns: Mapping[str, VisibleAxis]

    def whole(self, name: str) -> Region:
        """All of a node's map."""
        return (0, self.rows[name].size), (0, self.columns[name].size)

    def held(self, name: str) -> Region:
        """The part of a node's map that was computed."""
        return self.whole(name) if name == "image" else self.computed[name]


def plan_window(nodes: Sequence[Node], outputs: Collection[str], size: tuple[int, int]) -> WindowPlan:
    """The plan for images of `size` (H, W) pixels; `outputs` are the nodes whose whole maps are wanted."""
    rows, columns = visible_axis(nodes, size[0], 0), visible_axis(nodes, size[1], 1)
    computed = _computed(nodes, rows, columns)
    needed = _pasted(nodes, outputs, rows, columns, computed)
    step = stride(nodes)
    small = background_side(nodes, size[0], 0, needed, step), background_side(nodes, size[1], 1, needed, step)
    return WindowPlan(
        rows, columns, computed, needed, small, visible_axis(nodes, small[0], 0), visible_axis(nodes, small[1], 1)
    )


def _computed(
    nodes: Sequence[Node], rows: Mapping[str, VisibleAxis], columns: Mapping[str, VisibleAxis]
) -> dict[str, Region]:
    """Backwards: what sees the image, and round it what the next layers read, where that is cheaper to compute than
    to copy the map into its background."""
    wanted: dict[str, Region] = {}
    computed: dict[str, Region] = {}
    for node in reversed(nodes):
        seen = (rows[node.name].seen, columns[node.name].seen)
        region = hull(seen, wanted[node.name]) if node.name in wanted else seen
        if region != seen and not _cheaper(node, seen, region):
            region = seen
        computed[node.name] = region
        for name in node.inputs:
            reach = clipped(reads(node, region), ((0, rows[name].size), (0, columns[name].size)))
            wanted[name] = hull(wanted[name], reach) if name in wanted else reach
    return computed


def _cheaper(node: Node, seen: Region, region: Region) -> bool:
    """Whether computing `region` costs less than pasting `seen` into it. Pointwise layers leave it to their inputs; at
    poolings the growth always ends."""
    if node.layers is None:
        return True
    return bool(node.work) and (area(region) - area(seen)) * node.work / FLOPS < area(region) * 2 * node.bytes / BYTES


def _pasted(
    nodes: Sequence[Node],
    outputs: Collection[str],
    rows: Mapping[str, VisibleAxis],
    columns: Mapping[str, VisibleAxis],
    computed: Mapping[str, Region],
) -> tuple[str, ...]:
    """The nodes whose map is read beyond what is computed of it."""
    whole = {name: ((0, rows[name].size), (0, columns[name].size)) for name in rows}
    found = {name for name in outputs if computed[name] != whole[name]}
    for node in nodes:
        for name in node.inputs:
            read = clipped(reads(node, computed[node.name]), whole[name])
            if name != "image" and not region_within(read, computed[name]):
                found.add(name)
    return tuple(sorted(found))


def stride(nodes: Sequence[Node]) -> int:
    """The coarsest stride of the network: backgrounds repeat with it."""
    strides = {"image": 1}
    for node in nodes:
        step = 1 if node.layers is None else math.lcm(node.layers[0].stride, node.layers[1].stride)
        strides[node.name] = strides[node.inputs[0]] * step
    return max(strides.values())


def reads(node: Node, region: Region) -> Region:
    """The cells (beyond the map too) that the node's `region` reads of its input."""
    if node.layers is None:
        return region
    spans = [
        (low * at.stride - at.padding, (high - 1) * at.stride - at.padding + at.span)
        for at, (low, high) in zip(node.layers, region, strict=True)
    ]
    return spans[0], spans[1]


def hull(a: Region, b: Region) -> Region:
    spans = [(min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True)]
    return spans[0], spans[1]


def clipped(region: Region, whole: Region) -> Region:
    spans = [(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(region, whole, strict=True)]
    return spans[0], spans[1]


def region_within(inner: Region, outer: Region) -> bool:
    return clipped(inner, outer) == inner


def area(region: Region) -> int:
    (top, bottom), (left, right) = region
    return (bottom - top) * (right - left)


def beyond(reads: Region, inside: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding in front of and behind (rows, columns)."""
    near = (inside[0][0] - reads[0][0], inside[1][0] - reads[1][0])
    far = (reads[0][1] - inside[0][1], reads[1][1] - inside[1][1])
    return near, far


def ring_of(outer: Region, inner: Region) -> list[Region]:
    """`outer` without `inner`, as up to four rectangles."""
    (top, bottom), (left, right) = outer
    (a, b), (c, d) = inner
    parts = [((top, a), (left, right)), ((b, bottom), (left, right)), ((a, b), (left, c)), ((a, b), (d, right))]
    return [p for p in parts if p[0][0] < p[0][1] and p[1][0] < p[1][1]]


def stretched(span: Span, large: VisibleAxis, small: VisibleAxis) -> list[int]:
    """The small map's cells that hold the large one's values: its borders, and one cell for all between."""
    more, last = large.size - small.size, small.size - small.far
    if not more:
        return list(range(*span))
    return [i if i < small.near else i - more if i - more >= last else small.near for i in range(*span)]
