"""The exact pad-100 window: with the paper's padding, most of the outer cells never see the image, so their values
are those of an empty one. They are taken from a background, and only what the image reaches is computed.

Along one axis every layer has three facts, all whole numbers read off the layers: the span of cells that see the
image (`seen`), and how many cells at the near and the far end feel the map's border (`near`, `far`). Between the two
borders an empty image gives one constant, so the background of a small image whose size leaves the same remainder
modulo the network's stride serves every larger one: its middle is repeated. The slow twin is the network itself.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fullyconv.errors import InternalError
from fullyconv.geometry import Layer
from fullyconv.models.fused import Convolution

__all__ = ["Axis", "Node", "Plan", "Windowed", "axis", "background_side"]

Span = tuple[int, int]
Region = tuple[Span, Span]  # half-open rows, columns
PLANS, BACKGROUNDS = 64, 8  # sizes remembered; backgrounds are some 20 MB each for VGG16
# What decides between computing a few more cells and copying a map: multiply-adds and bytes a second (one core's).
FLOPS, BYTES = 2e11, 5e9


@final
@dataclass(frozen=True)
class Node:
    """One step of the network: a windowed layer (`layers`: rows, columns) or a pointwise one (None)."""

    name: str
    inputs: tuple[str, ...]
    layers: tuple[Layer, Layer] | None = None
    module: nn.Module | None = None
    join: bool = False  # concatenation along C

    @property
    def pooling(self) -> bool:
        return self.layers is not None and self.layers[0].kind == "pool"


@final
@dataclass(frozen=True)
class Axis:
    """A map along one axis: its cells, those that see the image, and how many at each end feel the border."""

    size: int
    seen: Span
    near: int
    far: int

    @property
    def constant(self) -> bool:
        """Whether a cell is left between the borders whose value is that of an endless empty image."""
        return self.near + self.far < self.size


def axis(nodes: Sequence[Node], side: int, which: int) -> dict[str, Axis]:
    """Node -> its map along axis `which` (0 rows, 1 columns) of an image `side` pixels long. "image" is the input."""
    found = {"image": Axis(side, (0, side), 0, 0)}
    for node in nodes:
        sources = [found[name] for name in node.inputs]
        if node.layers is not None:
            found[node.name] = _through(node.layers[which], sources[0], node.inputs[0] == "image")
            continue
        found[node.name] = Axis(
            sources[0].size,
            (min(s.seen[0] for s in sources), max(s.seen[1] for s in sources)),
            max(s.near for s in sources),
            max(s.far for s in sources),
        )
    return found


def _through(layer: Layer, source: Axis, image: bool) -> Axis:
    """Cell i of `layer` reads the cells from i * stride - padding, `span` of them."""
    s, p, span, n = layer.stride, layer.padding, layer.span, source.size
    size = layer.size(n)
    seen = (
        min(size, max(0, (source.seen[0] + p - span) // s + 1)),
        max(0, min(size, -(-(source.seen[1] + p) // s))),
    )
    if image and layer.kind == "conv":  # an empty image is as black as its padding: no border to feel
        return Axis(size, seen, 0, 0)
    near = min(size, -(-(source.near + p) // s))
    far = size - min(size, max(0, (n - source.far + p - span) // s + 1))
    return Axis(size, seen, near, far)


def background_side(nodes: Sequence[Node], side: int, which: int, needed: Sequence[str], stride: int) -> int:
    """The side of the smallest image whose background serves one of `side` pixels (itself, when none is smaller)."""
    for small in range((side - 1) % stride + 1, side, stride):
        found = axis(nodes, small, which)
        if all(found[name].constant for name in needed):
            return small
    return side


@final
@dataclass(frozen=True)
class Plan:
    """For one image size: every node's map, the region computed, which nodes need a background and of what size."""

    rows: Mapping[str, Axis]
    columns: Mapping[str, Axis]
    computed: Mapping[str, Region]
    needed: tuple[str, ...]
    small: tuple[int, int]
    small_rows: Mapping[str, Axis]
    small_columns: Mapping[str, Axis]

    def whole(self, name: str) -> Region:
        return (0, self.rows[name].size), (0, self.columns[name].size)


@final
class Windowed:
    """A network of convolutions, poolings and pointwise layers, computed only where it sees the image.

    network: graph whose one input is the image N C H W and whose output is {key: feature map}; it must be in
    evaluation mode. Called like it, it returns the same up to rounding.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        self.network = network
        self.nodes, self.outputs = _nodes(network)
        self._stride = _stride(self.nodes)
        self._last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        self._plans: OrderedDict[tuple[int, int], Plan] = OrderedDict()
        self._backgrounds: OrderedDict[Any, dict[str, Tensor]] = OrderedDict()

    def __call__(self, x: Tensor) -> dict[Any, Tensor]:
        plan = self.plan(x.shape[2], x.shape[3])
        background = self._background(plan, x)
        values = {"image": x}
        kept = set(self.outputs.values())
        for i, node in enumerate(self.nodes):
            values[node.name] = self._compute(node, plan, values, background)
            for name in node.inputs:
                if self._last[name] == i and name not in kept:
                    values.pop(name, None)
        return {
            key: _fetch(values[name], name, plan.whole(name), plan, background, 0.0)
            for key, name in self.outputs.items()
        }

    @property
    def held_bytes(self) -> int:
        """What the backgrounds take."""
        return sum(m.numel() * m.element_size() for maps in self._backgrounds.values() for m in maps.values())

    def plan(self, height: int, width: int) -> Plan:
        """The plan for images of H x W pixels; the last 64 sizes' are kept."""
        size = (height, width)
        plan = self._plans.get(size)
        if plan is None:
            plan = _remember(self._plans, size, self._planned(size), PLANS)
        return plan

    def _planned(self, size: tuple[int, int]) -> Plan:
        rows, columns = axis(self.nodes, size[0], 0), axis(self.nodes, size[1], 1)
        computed = self._computed(rows, columns)
        needed = self._pasted(rows, columns, computed)
        small = tuple(background_side(self.nodes, size[a], a, needed, self._stride) for a in (0, 1))
        tables = [axis(self.nodes, small[a], a) for a in (0, 1)]
        return Plan(rows, columns, computed, tuple(needed), (small[0], small[1]), tables[0], tables[1])

    def _computed(self, rows: Mapping[str, Axis], columns: Mapping[str, Axis]) -> dict[str, Region]:
        """Backwards: what sees the image, and round it what the next layers read, where that is cheaper to compute
        than to copy the map into its background."""
        wanted: dict[str, Region] = {}
        computed: dict[str, Region] = {}
        for node in reversed(self.nodes):
            seen = (rows[node.name].seen, columns[node.name].seen)
            region = _hull(seen, wanted[node.name]) if node.name in wanted else seen
            if region != seen and not self._cheaper_computed(node, seen, region):
                region = seen
            computed[node.name] = region
            for name in node.inputs:
                if name == "image":
                    continue
                reach = _clipped(_reads(node, region), ((0, rows[name].size), (0, columns[name].size)))
                wanted[name] = _hull(wanted[name], reach) if name in wanted else reach
        return computed

    def _cheaper_computed(self, node: Node, seen: Region, region: Region) -> bool:
        if node.layers is None:
            return True  # costs nothing itself; its inputs decide for themselves
        m = node.module
        if not isinstance(m, Convolution):
            return False
        work = 2 * m.kernel_size[0] * m.kernel_size[1] * m.in_channels // m.groups * m.out_channels
        return (_area(region) - _area(seen)) * work / FLOPS < _area(region) * m.out_channels * 8 / BYTES

    def _pasted(
        self, rows: Mapping[str, Axis], columns: Mapping[str, Axis], computed: Mapping[str, Region]
    ) -> list[str]:
        """The nodes whose map is read beyond what is computed of it."""
        found = {n for n in self.outputs.values() if computed[n] != ((0, rows[n].size), (0, columns[n].size))}
        for node in self.nodes:
            for name in node.inputs:
                if name != "image":
                    map_ = ((0, rows[name].size), (0, columns[name].size))
                    if not _within(_clipped(_reads(node, computed[node.name]), map_), computed[name]):
                        found.add(name)
        return sorted(found)

    def _background(self, plan: Plan, x: Tensor) -> dict[str, Tensor]:
        """Every map that is read beyond what is computed of it, for an empty image of the plan's small size."""
        if not plan.needed:
            return {}
        key = (plan.small, x.device, x.dtype, plan.needed)
        found = self._backgrounds.get(key)
        if found is None:
            empty = x.new_zeros((1, x.shape[1], *plan.small)).contiguous(memory_format=torch.channels_last)
            found = _remember(self._backgrounds, key, self._whole(empty, plan.needed), BACKGROUNDS)
        return found

    def _whole(self, x: Tensor, needed: Sequence[str]) -> dict[str, Tensor]:
        """The maps of `needed` for the image x, all cells computed."""
        values, kept = {"image": x}, {}
        for i, node in enumerate(self.nodes):
            value = _apply(node, [values[name] for name in node.inputs])
            values[node.name] = value
            if node.name in needed:
                kept[node.name] = value.clone() if _overwritten(self.nodes, node.name) else value
            for name in node.inputs:
                if self._last[name] == i:
                    values.pop(name, None)
        return kept

    def _compute(
        self, node: Node, plan: Plan, values: Mapping[str, Tensor], background: Mapping[str, Tensor]
    ) -> Tensor:
        region = plan.computed[node.name]
        if node.layers is None:
            return _apply(node, [_fetch(values[n], n, region, plan, background, 0.0) for n in node.inputs])
        name = node.inputs[0]
        if region == plan.whole(node.name) and _held(plan, name) == plan.whole(name):
            return _apply(node, [values[name]])
        reads = _reads(node, region)
        inside = _clipped(reads, plan.whole(name))
        near, far = _beyond(reads, inside)
        if near == far and not (node.pooling and any(near)):
            x = _fetch(values[name], name, inside, plan, background, 0.0)
            return _apply(node, [x], near)
        fill = -math.inf if isinstance(node.module, nn.MaxPool2d) else 0.0
        return _apply(node, [_fetch(values[name], name, reads, plan, background, fill)], (0, 0))


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> Any:
    """Keep `value`, and at most `most` of them: the newest."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)
    return value


def _nodes(network: fx.GraphModule) -> tuple[list[Node], dict[Any, str]]:
    """The graph as nodes in order, and the node of each output. Refuses what is not known to be local."""
    modules = dict(network.named_modules())
    nodes: list[Node] = []
    outputs: dict[Any, str] = {}
    for n in network.graph.nodes:
        inputs = tuple("image" if i.op == "placeholder" else i.name for i in n.all_input_nodes)
        if n.op == "output":
            outputs = {key: value.name for key, value in n.args[0].items()}
        elif n.op == "call_module":
            nodes.append(_node(n.name, inputs, modules[str(n.target)]))
        elif n.op == "call_function" and n.target is torch.cat:
            nodes.append(Node(n.name, inputs, join=True))
        elif n.op != "placeholder":
            raise InternalError(f"The window does not know the operation {n.target}; compute the whole map.")
    return nodes, outputs


def _node(name: str, inputs: tuple[str, ...], module: nn.Module) -> Node:
    if isinstance(module, nn.ReLU | nn.LocalResponseNorm):
        return Node(name, inputs, None, module)
    if not isinstance(module, Convolution | nn.MaxPool2d):
        raise InternalError(f"The window does not know the layer {type(module).__name__}; compute the whole map.")
    m: Any = module
    kind = "pool" if isinstance(module, nn.MaxPool2d) else "conv"
    ceil = bool(getattr(m, "ceil_mode", False))
    k, s, p, d = (_pair(v) for v in (m.kernel_size, m.stride, m.padding, m.dilation))
    layers = [Layer(kind, k[a], s[a], p[a], d[a], ceil) for a in (0, 1)]  # type: ignore[arg-type]
    return Node(name, inputs, (layers[0], layers[1]), module)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value), int(value))


def _stride(nodes: Sequence[Node]) -> int:
    """The coarsest stride of the network: backgrounds repeat with it."""
    strides = {"image": 1}
    for node in nodes:
        step = 1 if node.layers is None else math.lcm(node.layers[0].stride, node.layers[1].stride)
        strides[node.name] = strides[node.inputs[0]] * step
    return max(strides.values())


def _apply(node: Node, inputs: list[Tensor], padding: tuple[int, int] | None = None) -> Tensor:
    """The layer on whole maps, or with `padding` (rows, columns) in the place of its own and no rounding up."""
    if node.join:
        return torch.cat(inputs, 1)
    module: Any = node.module
    if isinstance(module, nn.MaxPool2d) and padding is not None:
        return F.max_pool2d(inputs[0], module.kernel_size, module.stride, 0, module.dilation)
    y: Tensor = module(inputs[0]) if padding is None else module(inputs[0], padding)
    return y


def _overwritten(nodes: Sequence[Node], name: str) -> bool:
    """Whether a ReLU works in place on this node's value."""
    return any(name in n.inputs and isinstance(n.module, nn.ReLU) and n.module.inplace for n in nodes)


def _reads(node: Node, region: Region) -> Region:
    """The cells (beyond the map too) that the node's `region` reads of its input."""
    if node.layers is None:
        return region
    spans = [
        (low * at.stride - at.padding, (high - 1) * at.stride - at.padding + at.span)
        for at, (low, high) in zip(node.layers, region, strict=True)
    ]
    return spans[0], spans[1]


def _hull(a: Region, b: Region) -> Region:
    spans = [(min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(a, b, strict=True)]
    return spans[0], spans[1]


def _clipped(region: Region, whole: Region) -> Region:
    spans = [(max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(region, whole, strict=True)]
    return spans[0], spans[1]


def _within(inner: Region, outer: Region) -> bool:
    return _clipped(inner, outer) == inner


def _area(region: Region) -> int:
    (top, bottom), (left, right) = region
    return (bottom - top) * (right - left)


def _beyond(reads: Region, inside: Region) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding in front of and behind (rows, columns)."""
    near = (inside[0][0] - reads[0][0], inside[1][0] - reads[1][0])
    far = (reads[0][1] - inside[0][1], reads[1][1] - inside[1][1])
    return near, far


def _held(plan: Plan, name: str) -> Region:
    """The part of a node's map that was computed."""
    return plan.whole("image") if name == "image" else plan.computed[name]


def _fetch(
    value: Tensor, name: str, region: Region, plan: Plan, background: Mapping[str, Tensor], fill: float
) -> Tensor:
    """The cells of `region`: computed ones, background round them, `fill` beyond the map."""
    held = _held(plan, name)
    if region == held:
        return value
    if _within(region, held):
        (top, bottom), (left, right) = ((low - h[0], high - h[0]) for (low, high), h in zip(region, held, strict=True))
        return value[:, :, top:bottom, left:right]
    size = [high - low for low, high in region]
    out = torch.empty(
        (*value.shape[:2], *size), dtype=value.dtype, device=value.device, memory_format=torch.channels_last
    )
    inside = _clipped(region, plan.whole(name))
    core = _clipped(inside, held)
    for part in _ring(region, core):
        _slice(out, region, part).fill_(fill)
    for part in _ring(inside, core):
        _slice(out, region, part).copy_(_empty_part(background[name], name, part, plan))
    _slice(out, region, core).copy_(_slice(value, held, core))
    return out


def _ring(outer: Region, inner: Region) -> list[Region]:
    """`outer` without `inner`, as up to four rectangles."""
    (top, bottom), (left, right) = outer
    (a, b), (c, d) = inner
    parts = [((top, a), (left, right)), ((b, bottom), (left, right)), ((a, b), (left, c)), ((a, b), (d, right))]
    return [p for p in parts if p[0][0] < p[0][1] and p[1][0] < p[1][1]]


def _slice(tensor: Tensor, origin: Region, part: Region) -> Tensor:
    """`part` of a tensor whose first cell is `origin`'s."""
    (top, bottom), (left, right) = ((low - o[0], high - o[0]) for (low, high), o in zip(part, origin, strict=True))
    return tensor[:, :, top:bottom, left:right]


def _empty_part(background: Tensor, name: str, part: Region, plan: Plan) -> Tensor:
    """`part` of the map of an empty image, read off the small one."""
    rows = _stretched(part[0], plan.rows[name], plan.small_rows[name])
    columns = _stretched(part[1], plan.columns[name], plan.small_columns[name])
    at = [torch.tensor(i, device=background.device) for i in (rows, columns)]
    return background.index_select(2, at[0]).index_select(3, at[1])


def _stretched(span: Span, large: Axis, small: Axis) -> list[int]:
    """The small map's cells that hold the large one's values: its borders, and one cell for all between."""
    more, last = large.size - small.size, small.size - small.far
    if not more:
        return list(range(*span))
    return [i if i < small.near else i - more if i - more >= last else small.near for i in range(*span)]
