"""The exact pad-100 window: with the paper's padding, most of the outer cells never see the image, so their values
are those of an empty one. They are taken from a background, and only what the image reaches is computed.

`cone` says which cells these are and how small an image gives the background of a large one. The slow twin is the
network itself.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fullyconv.engine import visibility
from fullyconv.engine.folding import Convolution
from fullyconv.engine.locking import preparing
from fullyconv.engine.visibility import (
    Node,
    Region,
    WindowPlan,
    area,
    beyond,
    clipped,
    reads,
    region_within,
    ring_of,
    stretched,
)
from fullyconv.errors import InternalError
from fullyconv.geometry import Layer

__all__ = ["Windowed"]

K = TypeVar("K")
V = TypeVar("V")

PLANS, BACKGROUNDS = 64, 8  # sizes remembered; backgrounds are some 20 MB each for VGG16
STRIP = 8 << 20  # bytes of the widest map, where maps are handed on in strips


@final
class Background:
    """The maps of a small empty image, and the parts that were read off them for the last image size."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        self.maps = maps
        # Of one plan at a time, replaced as one: another thread may be at an image of another size.
        self._held: tuple[WindowPlan | None, dict[tuple[str, Region], Tensor]] = (None, {})

    @property
    def parts(self) -> dict[tuple[str, Region], Tensor]:
        """What was read off last."""
        return self._held[1]

    def part(self, name: str, part: Region, plan: WindowPlan) -> Tensor:
        """`part` of the map `name` of an empty image of the plan's size."""
        of, parts = self._held
        if plan is not of:
            parts = {}
            self._held = (plan, parts)
        found = parts.get((name, part))
        if found is None:
            found = parts[name, part] = self._read(name, part, plan)
        return found

    def _read(self, name: str, part: Region, plan: WindowPlan) -> Tensor:
        background = self.maps[name]
        rows = stretched(part[0], plan.rows[name], plan.small_rows[name])
        columns = stretched(part[1], plan.columns[name], plan.small_columns[name])
        at = [torch.tensor(i, device=background.device) for i in (rows, columns)]
        return background.index_select(2, at[0]).index_select(3, at[1])


@final
class Windowed:
    """A network of convolutions, poolings and pointwise layers, computed only where it sees the image.

    network: graph whose one input is the image N C H W and whose output is {key: feature map}; it must be in
    evaluation mode. Called like it, it returns the same up to rounding. strip: bytes of the widest map that are made at
    a time where maps are handed on in strips.
    """

    def __init__(self, network: fx.GraphModule, strip: int = STRIP) -> None:
        self.network, self.strip = network, strip
        self.nodes, self.outputs = _nodes(network)
        self._last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        self._chains = _chains(self.nodes, set(self.outputs.values()))
        self._plans: OrderedDict[tuple[int, int], WindowPlan] = OrderedDict()
        self._backgrounds: OrderedDict[Any, Background] = OrderedDict()

    def __call__(self, x: Tensor) -> dict[Any, Tensor]:
        plan = self.plan(x.shape[2], x.shape[3])
        background = self._background(plan, x)
        values = {"image": x}
        kept, i = set(self.outputs.values()), 0
        while i < len(self.nodes):
            chain = self.nodes[i : self._chains.get(i, i) + 1]
            rows = _rows_together(chain, plan, len(x), self.strip)
            chain = chain if rows else chain[:1]
            value = self._in_strips(chain, rows, plan, values, background) if rows else None
            values[chain[-1].name] = self._compute(chain[0], plan, values, background) if value is None else value
            for name in {name for node in chain for name in node.inputs} - kept:
                if self._last[name] < i + len(chain):
                    values.pop(name, None)
            i += len(chain)
        return {
            key: _fetch(values[name], name, plan.whole(name), plan.held(name), plan, background, 0.0)
            for key, name in self.outputs.items()
        }

    @property
    def held_bytes(self) -> int:
        """What the backgrounds take."""
        held = (m for b in self._backgrounds.values() for m in (*b.maps.values(), *b.parts.values()))
        return sum(m.numel() * m.element_size() for m in held)

    def plan(self, height: int, width: int) -> WindowPlan:
        """The plan for images of H x W pixels; the last 64 sizes' are kept."""
        size = (height, width)
        plan = self._plans.get(size)
        if plan is None:
            plan = _remember(
                self._plans, size, visibility.plan_window(self.nodes, set(self.outputs.values()), size), PLANS
            )
        return plan

    def _background(self, plan: WindowPlan, x: Tensor) -> Background:
        """Every map that is read beyond what is computed of it, for an empty image of the plan's small size."""
        if not plan.needed:
            return Background({})
        key = (plan.small, x.device, x.dtype, plan.needed)
        found = self._backgrounds.get(key)
        if found is None:
            with preparing():
                found = self._backgrounds.get(key) or self._new_background(key, plan, x)
        return found

    def _new_background(self, key: tuple[object, ...], plan: WindowPlan, x: Tensor) -> Background:
        empty = x.new_zeros((1, x.shape[1], *plan.small)).contiguous(memory_format=torch.channels_last)
        found = Background(self._whole(empty, plan.needed))
        return _remember(self._backgrounds, key, found, BACKGROUNDS)

    def _whole(self, x: Tensor, needed: Sequence[str]) -> dict[str, Tensor]:
        """The maps of `needed` for the image x, all cells computed."""
        values, kept = {"image": x}, {}
        for i, node in enumerate(self.nodes):
            inputs = [values[name] for name in node.inputs]
            value = node.module.once(*inputs) if isinstance(node.module, Convolution) else _apply(node, inputs)
            values[node.name] = value
            if node.name in needed:
                kept[node.name] = value.clone() if _overwritten(self.nodes, node.name) else value
            for name in node.inputs:
                if self._last[name] == i:
                    values.pop(name, None)
        return kept

    def _compute(self, node: Node, plan: WindowPlan, values: Mapping[str, Tensor], background: Background) -> Tensor:
        region = plan.computed[node.name]
        if node.layers is None:
            return _apply(
                node, [_fetch(values[n], n, region, plan.held(n), plan, background, 0.0) for n in node.inputs]
            )
        return _part(node, region, values[node.inputs[0]], plan.held(node.inputs[0]), plan, background)

    def _in_strips(
        self,
        chain: Sequence[Node],
        together: int,
        plan: WindowPlan,
        values: Mapping[str, Tensor],
        background: Background,
    ) -> Tensor:
        """The last map of the chain, `together` of its rows at a time, so that the wide maps before it are never whole
        in memory: they stay where the processor reaches them soonest."""
        (top, bottom), columns = plan.computed[chain[-1].name]
        parts = []
        for row in range(top, bottom, together):
            wanted = [((row, min(row + together, bottom)), columns)]
            for node in reversed(chain[1:]):
                name = node.inputs[0]
                wanted.insert(0, clipped(reads(node, wanted[0]), plan.computed[name]))
            name = chain[0].inputs[0]
            value, held = values[name], plan.held(name)
            for node, region in zip(chain, wanted, strict=True):
                value, held = _part(node, region, value, held, plan, background), region
            parts.append(value)
        return torch.cat(parts, 2)


def _part(node: Node, region: Region, value: Tensor, held: Region, plan: WindowPlan, background: Background) -> Tensor:
    """The cells of `region` of a node with one input, of which `value` holds the cells of `held`."""
    name = node.inputs[0]
    if node.layers is None:
        return _apply(node, [_fetch(value, name, region, held, plan, background, 0.0)])
    if region == plan.whole(node.name) and held == plan.whole(name):
        return _apply(node, [value])
    read = reads(node, region)
    inside = clipped(read, plan.whole(name))
    near, far = beyond(read, inside)
    if near == far and not (node.pooling and any(near)):
        x = _fetch(value, name, inside, held, plan, background, 0.0)
        return _apply(node, [x], near)
    fill = -math.inf if isinstance(node.module, nn.MaxPool2d) else 0.0
    return _apply(node, [_fetch(value, name, read, held, plan, background, fill)], (0, 0))


def _chains(nodes: Sequence[Node], outputs: Collection[str]) -> dict[int, int]:
    """First -> last index of the nodes that hand one map on to one another, from a windowed layer to a pooling."""
    users: Counter[str] = Counter(name for node in nodes for name in node.inputs)
    chains: dict[int, int] = {}
    first = 0
    for i, node in enumerate(nodes):
        alone = i > 0 and node.inputs == (nodes[i - 1].name,) and users[nodes[i - 1].name] == 1
        if not alone or nodes[i - 1].name in outputs or nodes[i - 1].pooling:
            first = i
        if node.pooling and first < i and nodes[first].layers is not None:
            chains[first] = i
    return chains


def _rows_together(chain: Sequence[Node], plan: WindowPlan, images: int, strip: int) -> int:
    """Rows of the chain's last map whose making holds about `strip` bytes of the widest map; 0: all at once."""
    largest = max(area(plan.computed[node.name]) * node.bytes for node in chain) * images
    (top, bottom), _ = plan.computed[chain[-1].name]
    if len(chain) == 1 or largest <= 4 * strip:
        return 0
    return max(1, (bottom - top) * strip // largest)


def _remember(cache: OrderedDict[K, V], key: K, value: V, most: int) -> V:
    """Keep `value`, and at most `most` of them: the newest."""
    with preparing():
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
            nodes.append(Node(n.name, inputs))
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
    if kind == "pool":
        return Node(name, inputs, (layers[0], layers[1]), module)
    work = 2 * k[0] * k[1] * m.in_channels // m.groups * m.out_channels
    return Node(name, inputs, (layers[0], layers[1]), module, work, m.out_channels * m.dtype.itemsize)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _apply(node: Node, inputs: list[Tensor], padding: tuple[int, int] | None = None) -> Tensor:
    """The layer on whole maps, or with `padding` (rows, columns) in the place of its own and no rounding up."""
    if node.module is None:
        return torch.cat(inputs, 1)
    module = node.module
    if isinstance(module, nn.MaxPool2d) and padding is not None:
        return F.max_pool2d(inputs[0], module.kernel_size, module.stride, 0, module.dilation)
    y: Tensor = module(inputs[0]) if padding is None else module(inputs[0], padding)
    return y


def _overwritten(nodes: Sequence[Node], name: str) -> bool:
    """Whether a ReLU works in place on this node's value."""
    return any(name in n.inputs and isinstance(n.module, nn.ReLU) and n.module.inplace for n in nodes)


def _fetch(
    value: Tensor, name: str, region: Region, held: Region, plan: WindowPlan, background: Background, fill: float
) -> Tensor:
    """The cells of `region`: those that `value` holds, background round them, `fill` beyond the map."""
    if region == held:
        return value
    if region_within(region, held):
        (top, bottom), (left, right) = ((low - h[0], high - h[0]) for (low, high), h in zip(region, held, strict=True))
        return value[:, :, top:bottom, left:right]
    size = [high - low for low, high in region]
    out = torch.empty(
        (*value.shape[:2], *size), dtype=value.dtype, device=value.device, memory_format=torch.channels_last
    )
    inside = clipped(region, plan.whole(name))
    core = clipped(inside, held)
    for part in ring_of(region, core):
        _slice(out, region, part).fill_(fill)
    for part in ring_of(inside, core):
        _slice(out, region, part).copy_(background.part(name, part, plan))
    _slice(out, region, core).copy_(_slice(value, held, core))
    return out


def _slice(tensor: Tensor, origin: Region, part: Region) -> Tensor:
    """`part` of a tensor whose first cell is `origin`'s."""
    (top, bottom), (left, right) = ((low - o[0], high - o[0]) for (low, high), o in zip(part, origin, strict=True))
    return tensor[:, :, top:bottom, left:right]
