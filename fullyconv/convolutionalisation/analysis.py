"""Reading a classifier's traced graph: what bears positions, where they collapse, and which collapses are its head.

A node is *positional* when its value still has a place for every part of the image. A *collapse* takes positions
away: global pooling, a mean over rows and columns, a flatten. If what follows it never meets a positional value again,
it is the classifier's head and can slide; if it does (squeeze-excitation, global response norm), it is a gate.
Modules and functions count alike: both are read by their canonical name from the graph (torch.fx).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fullyconv.errors import UsageError
from fullyconv.models.tracer import QuietTracer, shared_copy

__all__ = ["RESHAPES", "Collapse", "Reading", "analyse", "called", "trace_shared"]

ADAPTIVE = {"adaptive_avg_pool2d": "mean", "adaptive_max_pool2d": "max"}
WINDOWS = {"avg_pool2d": "mean", "max_pool2d": "max"}
REDUCES = {"mean": "mean", "amax": "max"} | dict.fromkeys(
    ("sum", "norm", "vector_norm", "std", "var", "var_mean", "std_mean", "amin", "logsumexp", "prod", "max", "min"),
    "other",
)
RESHAPES = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "getitem", "contiguous", "clone"}
PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim"}
STATISTICS = {"group_norm", "instance_norm"}
MODULES: dict[type[nn.Module], str] = {
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.MaxPool2d: "max_pool2d",
    nn.Flatten: "flatten",
    nn.Unflatten: "view",
    nn.Linear: "linear",
    nn.Conv2d: "conv2d",
    nn.modules.batchnorm._BatchNorm: "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.modules.instancenorm._InstanceNorm: "instance_norm",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
}


@final
@dataclass(frozen=True)
class Collapse:
    """Where positions are lost: `source` is the four-axis node that last had them, `axes` its layout (NCHW or NHWC)."""

    kind: str  # mean, max, grid (adaptive pooling to several cells), flatten, other
    source: fx.Node
    axes: str


@final
@dataclass
class Reading:
    """What one run at the native size (two random images) showed of every node."""

    graph: fx.GraphModule
    shapes: dict[fx.Node, tuple[int, ...]]
    collapses: dict[fx.Node, Collapse] = field(default_factory=dict)
    positional: set[fx.Node] = field(default_factory=set)
    layouts: dict[fx.Node, tuple[str, fx.Node]] = field(default_factory=dict)
    idle: set[fx.Node] = field(default_factory=set)  # adaptive poolings to the cells that there are at the native size
    partial: set[fx.Node] = field(default_factory=set)  # means over rows or columns alone
    gates: list[str] = field(default_factory=list)  # what looks at the whole image and stays so

    def below(self, node: fx.Node) -> set[fx.Node]:
        """The tensor-valued nodes that depend on `node`, itself left out."""
        found: set[fx.Node] = set()
        todo = [node]
        while todo:
            fresh = [u for u in todo.pop().users if u not in found and u in self.shapes]
            found.update(fresh)
            todo.extend(fresh)
        return found

    def cells(self, node: fx.Node, axes: str) -> tuple[int, int]:
        """Rows and columns of a four-axis node."""
        return self.shapes[node][axes.index("H")], self.shapes[node][axes.index("W")]


# -- tracing -----------------------------------------------------------------------------------------------------------


@final
class _Tracer(QuietTracer):
    """torch.fx, but a module that it cannot follow (its forward branches on the image's size) stays one node."""

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        last = next(iter(reversed(self.graph.nodes)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # fx raises TraceError, TypeError, whatever the forward does with a proxy
            if m is self.root or isinstance(error, UsageError):
                raise
            for node in reversed(list(self.graph.nodes)):
                if node is last:
                    break
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def trace_shared(classifier: nn.Module) -> fx.GraphModule:
    """The graph of a copy of `classifier` in eval mode that shares its parameters and buffers.

    Errors: UsageError when the graph cannot be traced.
    """
    twin = shared_copy(classifier).eval()
    try:
        return fx.GraphModule(twin, _Tracer().trace(twin)).eval()
    except Exception as error:
        raise UsageError(
            f"The forward of {type(classifier).__name__} cannot be traced ({str(error).splitlines()[0][:200]}); "
            "it branches on its input: rewrite that branch or wrap the part that does not."
        ) from error


def called(graph: fx.GraphModule, node: fx.Node) -> str:
    """The canonical name of what a node does: "linear" for nn.Linear, F.linear and torch's own alike."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        for kind, name in MODULES.items():
            if isinstance(module, kind):
                return name
        home = type(module).__module__
        if isinstance(module, nn.Identity) or home in ("torch.nn.modules.activation", "torch.nn.modules.dropout"):
            return "pointwise" if not isinstance(module, nn.MultiheadAttention | nn.GLU | nn.Softmax2d) else "unknown"
        return type(module).__name__
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target)).strip("_")
        return {"boolean_dispatch": "max_pool2d", "fn": "max_pool2d"}.get(name, name)
    return str(node.target).rstrip("_") if node.op == "call_method" else node.op


# -- one run at the native size ----------------------------------------------------------------------------------------


@final
class _NoAttention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses products of two activations (attention), whichever way they are written."""

    def __init__(self, constants: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.constants = constants
        self.derived: list[Tensor] = []  # kept alive, so that their addresses stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, Tensor)]
        varies = [t.untyped_storage().data_ptr() not in self.constants for t in tensors]
        product = name in ("bmm", "mm", "baddbmm") and all(varies[-2:])
        if product or "attention" in name or "transformer" in name:
            raise _Attention(name)
        value = func(*args, **(kwargs or {}))
        if tensors and not any(varies) and isinstance(value, Tensor):  # weights made of weights
            self.constants.add(value.untyped_storage().data_ptr())
            self.derived.append(value)
        return value


@final
class _Attention(Exception):
    pass


@final
class _Run(fx.Interpreter):
    """Runs the graph and writes down every tensor's shape."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except _Attention as attention:
            raise UsageError(
                f"{n.target} multiplies positions with one another ({attention}: self-attention), which has no local "
                "window to slide; convolutionalise a classifier without attention."
            ) from attention
        first = value[0] if isinstance(value, tuple | list) and value else value
        if isinstance(first, Tensor):  # of a split into several tensors, the first stands for all
            self.shapes[n] = tuple(first.shape)
        return value


def _native_run(graph: fx.GraphModule, channels: int, size: tuple[int, int]) -> dict[fx.Node, tuple[int, ...]]:
    example = next(chain(graph.parameters(), graph.buffers()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *size, generator=generator).to(example.device, example.dtype)
    constants = {t.untyped_storage().data_ptr() for t in chain(graph.parameters(), graph.buffers())}
    run = _Run(graph)
    try:
        with torch.no_grad(), _NoAttention(constants):
            run.run(x)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"The classifier cannot take {channels}x{size[0]}x{size[1]} (CxHxW) images "
            f"({str(error).splitlines()[0][:200]}); give the input_size that it was made for."
        ) from error
    return run.shapes


# -- positions ---------------------------------------------------------------------------------------------------------


def analyse(graph: fx.GraphModule, channels: int, size: tuple[int, int]) -> Reading:
    """Follow positions through the graph; see Reading. Errors: UsageError for attention and for a wrong size."""
    reading = Reading(graph, _native_run(graph, channels, size))
    for node in graph.graph.nodes:
        if node not in reading.shapes or node.op == "get_attr":
            continue
        sources = [n for n in node.all_input_nodes if n in reading.positional]
        if node.op == "placeholder":
            reading.positional.add(node)
            reading.layouts[node] = ("NCHW", node)
        elif sources:
            _follow(reading, node, sources[0])
    for node in list(reading.collapses):
        if reading.below(node) & reading.positional:
            reading.gates.append(_label(graph, node))
            del reading.collapses[node]
    reading.gates += _lookers(reading)
    return reading


def _label(graph: fx.GraphModule, node: fx.Node) -> str:
    what = called(graph, node)
    return f"{node.target} ({what})" if node.op == "call_module" else f"{node.name} ({what})"


def _lookers(reading: Reading) -> Iterator[str]:
    """Nodes that keep positions and yet look along the whole image."""
    for node in reading.graph.graph.nodes:
        if node not in reading.positional or node.op == "placeholder":
            continue
        name = called(reading.graph, node)
        letters = reading.layouts.get(node, ("", node))[0]
        if name in STATISTICS:
            yield f"{_label(reading.graph, node)}: statistics of the whole image"
        elif node in reading.partial and not set(node.users) & set(reading.collapses):
            yield f"{_label(reading.graph, node)}: along the whole image"
        elif name == "softmax" and letters and {letters[d] for d in _dims(node, len(letters))} & set("HWP"):
            yield f"{_label(reading.graph, node)}: over all positions"


def _follow(reading: Reading, node: fx.Node, source: fx.Node) -> None:
    """Decide what `node` does with the positions of its input `source`."""
    letters, origin = reading.layouts.get(source, ("", source))
    collapse, after = _collapse(reading, node, source, letters, origin)
    if collapse is not None:
        reading.collapses[node] = collapse
        return
    reading.positional.add(node)
    shape = reading.shapes[node]
    if after is not None:
        reading.layouts[node] = (after, origin if len(after) < 4 else node)
    elif len(shape) == 4:
        reading.layouts[node] = (letters if len(letters) == 4 else "NCHW", node)
    elif len(shape) == len(letters) and shape == reading.shapes[source]:
        reading.layouts[node] = (letters, node)  # a pointwise step on merged positions: no four-axis origin any more


def _collapse(
    reading: Reading, node: fx.Node, source: fx.Node, letters: str, origin: fx.Node
) -> tuple[Collapse | None, str | None]:
    """The collapse that `node` is, or else the layout it leaves behind where that changes."""
    graph, name = reading.graph, called(reading.graph, node)
    shape, before = reading.shapes[node], reading.shapes[source]
    axes, four = reading.layouts.get(origin, ("", origin))[0], len(before) == 4 and len(letters) == 4
    if name in ADAPTIVE and four:
        cells = shape[2:]
        if cells == before[2:] and cells != (1, 1):
            reading.idle.add(node)
            return None, letters
        return Collapse(ADAPTIVE[name] if cells == (1, 1) else "grid", source, letters), None
    if name in WINDOWS and four and _whole(graph, node, name, before[2:]):
        return Collapse(WINDOWS[name], source, letters), None
    if name in PERMUTES and letters:
        return None, "".join(letters[d] for d in _permutation(node, name, len(letters)))
    if name in REDUCES and letters and not any(isinstance(a, fx.Node) for a in node.args[1:]):
        gone = {letters[d] for d in _dims(node, len(letters))}
        left = "".join(c for c in letters if c not in gone)
        if not set(left) & set("HWP"):
            mixed = gone & set("CN") or (source in reading.partial and name != "mean")
            return Collapse("other" if mixed else REDUCES[name], origin, axes), None
        if gone & set("HW"):
            reading.partial.add(node)
            return None, left if name == "mean" and len(shape) == len(left) else None
        return None, None
    if (name in RESHAPES or name == "flatten") and letters and len(axes) == 4:
        return _reshape(graph, origin, axes, letters, shape, before)
    return None, None


def _reshape(
    graph: fx.GraphModule, origin: fx.Node, axes: str, letters: str, shape: tuple[int, ...], before: tuple[int, ...]
) -> tuple[Collapse | None, str | None]:
    n, *rest = before
    features = 1
    for side in rest:
        features *= side
    if len(shape) == 2 and shape == (n, features):
        return Collapse("flatten", origin, axes), None
    if letters == "NCHW" and shape == (n, rest[0], features // rest[0]):
        return None, "NCP"
    if letters == "NHWC" and shape == (n, features // rest[2], rest[2]):
        return None, "NPC"
    return None, None


def _whole(graph: fx.GraphModule, node: fx.Node, name: str, cells: tuple[int, ...]) -> bool:
    """Whether a pooling's window is the map it gets: by its size, or because it is computed from the map's.

    A maximum of fixed size is the trunk's own subsampling, even where it ends at one cell.
    """
    if node.op == "call_module":
        kernel: Any = graph.get_submodule(str(node.target)).kernel_size
    else:
        kernel = node.args[1] if len(node.args) > 1 else node.kwargs["kernel_size"]
    sides = kernel if isinstance(kernel, tuple | list) else (kernel, kernel)
    if isinstance(kernel, fx.Node) or any(isinstance(k, fx.Node) for k in sides):
        return True
    return name == "avg_pool2d" and tuple(sides) == cells != (1, 1)


def _permutation(node: fx.Node, name: str, ndim: int) -> list[int]:
    given: Any = [a for a in node.args[1:] if not isinstance(a, fx.Node)] or [node.kwargs.get("dims", ())]
    flat = [int(d) % ndim for d in (given[0] if isinstance(given[0], tuple | list) else given)]
    order = list(range(ndim))
    if name == "permute":
        return flat or order
    if len(flat) == 2 and name != "movedim":
        order[flat[0]], order[flat[1]] = order[flat[1]], order[flat[0]]
    elif len(flat) == 2:
        order.insert(flat[1], order.pop(flat[0]))
    return order


def _dims(node: fx.Node, ndim: int) -> list[int]:
    """The axes that a reduction runs over, counted from the front; all of them when none is named."""
    dims: Any = node.kwargs.get("dim", node.kwargs.get("axis"))
    if dims is None:
        candidates = [a for a in node.args[1:] if isinstance(a, int | tuple | list) and not isinstance(a, bool)]
        dims = candidates[-1] if candidates else None
    if dims is None:
        return list(range(ndim))
    return sorted(int(d) % ndim for d in (dims if isinstance(dims, tuple | list) else [dims]))
