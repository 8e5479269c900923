"""Rewriting a classifier's head so that it slides: pooling becomes a sliding window, flatten + linear a convolution.

Every value of the head gets a dense counterpart with four axes, N C h w. No parameter is added, copied or renamed:
the linear layers' own weights are viewed as kernels (O x C*H*W -> O x C x H x W, paper section 3.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fullyconv.convolutionalisation.analysis import RESHAPES, Collapse, Reading, called
from fullyconv.errors import UsageError

__all__ = ["densify"]

POINTWISE = {
    "pointwise", "relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "elu",
    "selu", "leaky_relu", "mish", "softplus", "dropout", "feature_dropout", "stochastic_depth", "clamp", "clip",
    "clamp_min", "pow", "sqrt", "square", "reciprocal", "exp", "log", "neg", "abs", "add", "sub", "mul", "truediv",
    "div", "iadd", "isub", "imul", "rsub", "float", "to", "type", "detach",
}  # fmt: skip
LAST_AXIS = {"softmax", "log_softmax", "normalize"}


@final
@dataclass(frozen=True)
class _Dense:
    """The dense counterpart of a head value: `node` holds N C h w (or N h w C where `axes` says so).

    `flat`: the original is N F. `window`: the original still holds every cell of a window of that many rows and
    columns, flattened in the order `axes`; `grid`: pooled adaptively to that many cells before.
    """

    node: fx.Node
    flat: bool
    axes: str = "NCHW"
    window: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None


def densify(reading: Reading) -> None:
    """Rewrite `reading.graph` in place. Errors: UsageError names the head's first node that cannot slide."""
    head = _Head(reading)
    for node in list(reading.graph.graph.nodes):
        if node.op == "output":
            head.finish(node)
        elif node in reading.collapses:
            head.done[node] = head.slide(node, reading.collapses[node])
        elif node in head.region and node not in head.done:
            head.done[node] = head.follow(node)
    reading.graph.graph.lint()
    reading.graph.recompile()


def spread_kernel(grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of `window` cells to `grid` cells as a matrix: (grid cells) x (window cells)."""
    cells = torch.eye(window[0] * window[1]).reshape(-1, 1, *window)
    return F.adaptive_avg_pool2d(cells, grid).flatten(1).T


@final
class _Head:
    def __init__(self, reading: Reading) -> None:
        self.reading, self.graph = reading, reading.graph
        self.region: set[fx.Node] = set().union(*(reading.below(n) for n in reading.collapses))
        self.done: dict[fx.Node, _Dense] = {}
        # Results that nobody takes may be written in place (relu_) and stay; checks of sizes (asserts) go.
        self.idle = {n for n in self.graph.graph.nodes if not n.users and n in reading.shapes} - self.region

    def refuse(self, node: fx.Node, fact: str) -> NoReturn:
        where = node.target if node.op == "call_module" else f"{node.name} ({called(self.graph, node)})"
        raise UsageError(
            f"The classifier's head cannot slide: {where} {fact}; end it in pooling, flatten and linear layers."
        )

    def new(self, before: fx.Node, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.graph.inserting_before(before):
            return self.graph.graph.call_function(function, args, kwargs)

    def first(self, before: fx.Node, dense: _Dense) -> fx.Node:
        """The dense node with channels first."""
        if dense.axes == "NCHW":
            return dense.node
        return self.new(before, torch.permute, dense.node, (0, 3, 1, 2))

    # -- where the head begins -------------------------------------------------------------------------------------

    def slide(self, node: fx.Node, collapse: Collapse) -> _Dense:
        source = collapse.source
        if sorted(collapse.axes) != sorted("NCHW"):
            self.refuse(node, "collapses positions that an earlier layer mixed or laid out in its own way")
        window = self.reading.cells(source, collapse.axes)
        dense = _Dense(source, len(self.reading.shapes[node]) == 2, collapse.axes)
        if collapse.kind == "flatten":
            return replace(dense, window=window, flat=True)
        if collapse.kind == "grid":
            grid = self.reading.shapes[node][2:]
            return replace(dense, window=window, grid=(grid[0], grid[1]))
        pool = {"mean": F.avg_pool2d, "max": F.max_pool2d}.get(collapse.kind)
        if pool is None:
            self.refuse(node, "is no mean, maximum or flatten of the positions")
        pooled = self.new(node, pool, self.first(node, dense), window, stride=1)  # type: ignore[arg-type]
        return self.laid_out(node, _Dense(pooled, dense.flat), len(self.reading.shapes[node]), collapse.axes)

    def laid_out(self, node: fx.Node, dense: _Dense, ndim: int, axes: str) -> _Dense:
        """Four-axis values keep the layout that the original has, so that what follows may run as it is."""
        if ndim == 2 or axes == "NCHW":
            return dense
        if ndim != 4:
            self.refuse(node, f"leaves {ndim} axes")
        return replace(dense, node=self.new(node, torch.permute, dense.node, (0, 2, 3, 1)), axes="NHWC")

    # -- and how it goes on ----------------------------------------------------------------------------------------

    def follow(self, node: fx.Node) -> _Dense:
        name = called(self.graph, node)
        inputs = [n for n in node.all_input_nodes if n in self.reading.shapes and n.op != "get_attr"]
        strangers = [n for n in inputs if n not in self.done and not self.constant(n)]
        if strangers:
            self.refuse(node, f"mixes windows with {strangers[0].name}, a value of the whole image")
        source = self.done[next(n for n in inputs if n in self.done)]
        if name == "linear":
            return self.linear(node, source)
        if (
            name in RESHAPES
            or name == "flatten"
            or name in ("adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "avg_pool2d")
        ):
            return self.reshape(node, source)
        if source.window and not self.harmless(node, name, source):
            self.refuse(node, "stands between flatten and the linear layer")
        if name in POINTWISE:
            return self.pointwise(node, source)
        if name in ("permute", "conv2d", "layer_norm", "batch_norm", "cat") or name in LAST_AXIS:
            return getattr(self, f"do_{'axis' if name in LAST_AXIS else name}")(node, source)  # type: ignore[no-any-return]
        return self.refuse(node, "is no operation that is known to act on each position alone")

    def constant(self, node: fx.Node) -> bool:
        return not any(n.op == "placeholder" for n in _ancestors(node))

    def harmless(self, node: fx.Node, name: str, source: _Dense) -> bool:
        """Pointwise steps commute with flatten; with averaging to a grid only those that do nothing at test time."""
        if name not in POINTWISE or sum(n in self.done for n in node.all_input_nodes) > 1:
            return False
        idle = name == "dropout" or (node.op == "call_module" and _idle(self.graph.get_submodule(str(node.target))))
        return idle or (source.grid is None and all(n in self.done for n in node.all_input_nodes))

    def again(self, node: fx.Node, dense: _Dense, **changes: Any) -> _Dense:
        """The same operation on the dense counterparts of its inputs."""
        with self.graph.graph.inserting_before(node):
            copied = self.graph.graph.node_copy(node, lambda n: self.done[n].node if n in self.done else n)
        return replace(dense, node=copied, **changes)

    def pointwise(self, node: fx.Node, source: _Dense) -> _Dense:
        others = [self.done[n] for n in node.all_input_nodes if n in self.done]
        if any((d.flat, d.axes, d.window) != (source.flat, source.axes, source.window) for d in others):
            self.refuse(node, "joins values of different layouts")
        dense = self.again(node, source)
        for constant in [n for n in dense.node.all_input_nodes if n.op == "get_attr" or self.constant(n)]:
            sides = self.reading.shapes.get(constant, ())
            if source.flat and sides:  # (F,) runs along the last axis of N F, and along axis 1 of N F h w
                if len(sides) > 2 or (len(sides) == 2 and sides[0] != 1):
                    self.refuse(node, f"uses a constant of shape {sides}")
                kernel = self.new(dense.node, torch.reshape, constant, (-1, 1, 1))
                dense.node.replace_input_with(constant, kernel)
        return dense

    def reshape(self, node: fx.Node, source: _Dense) -> _Dense:
        """Views, flattens and poolings of what has one cell already: nothing moves."""
        shape, before = (
            self.reading.shapes[node],
            self.reading.shapes[next(n for n in node.all_input_nodes if n in self.done)],
        )
        if torch.Size(shape).numel() != torch.Size(before).numel() or shape[0] != before[0]:
            self.refuse(node, f"turns {before} into {shape}")
        if len(shape) == 2:
            if source.window:
                return replace(source, flat=True)
            return replace(source, node=self.first(node, source), flat=True, axes="NCHW")
        # N C 1 and N C 1 1 are one cell a window, whichever of them the original passes through.
        ones = not source.window and source.axes == "NCHW" and torch.Size(shape[2:]).numel() == 1
        same = shape == before or (ones and shape[1] == before[1])
        if not same or (source.window and shape != before):
            self.refuse(node, f"turns {before} into {shape}")
        return replace(source, flat=False)

    def linear(self, node: fx.Node, source: _Dense) -> _Dense:
        if not source.flat and source.axes == "NHWC" and source.window is None:
            return self.again(node, source)
        if not source.flat:
            self.refuse(node, "runs along an axis that holds no channels")
        weight, bias = self.parameters(node)
        rows, columns = source.grid or source.window or (1, 1)
        order = [source.axes[1:].index(c) + 1 for c in "CHW"]
        sides = [{"C": -1, "H": rows, "W": columns}[c] for c in source.axes[1:]]
        kernel = self.new(node, torch.reshape, weight, (self.reading.shapes[node][1], *sides))
        if order != [1, 2, 3]:
            kernel = self.new(node, torch.permute, kernel, (0, *order))
        if source.grid is not None and source.window is not None:
            kernel = self.new(node, _spread_kernel, kernel, source.window)
        dense = self.new(node, F.conv2d, self.first(node, source), kernel, bias)
        return _Dense(dense, flat=True)

    def parameters(self, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        """The nodes of a linear layer's weight and bias, whether it is a module or a function."""
        if node.op != "call_module":
            named = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
            return named["weight"], named.get("bias")  # type: ignore[return-value]
        module = self.graph.get_submodule(str(node.target))
        if type(module).forward is not nn.Linear.forward:
            self.refuse(node, "is a linear layer with a forward of its own")
        with self.graph.graph.inserting_before(node):
            weight = self.graph.graph.get_attr(f"{node.target}.weight")
            bias = self.graph.graph.get_attr(f"{node.target}.bias") if module.bias is not None else None
        return weight, bias

    # -- operations that act on each position alone, given the right axis ----------------------------------------------

    def do_permute(self, node: fx.Node, source: _Dense) -> _Dense:
        given: Any = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        order = [int(d) % 4 for d in given]
        if source.flat or sorted(order) != [0, 1, 2, 3]:
            self.refuse(node, "reorders axes")
        axes = "".join(source.axes[d] for d in order)
        if axes not in ("NCHW", "NHWC"):
            self.refuse(node, f"lays the axes out as {axes}")
        return self.again(node, source, axes=axes)

    def do_conv2d(self, node: fx.Node, source: _Dense) -> _Dense:
        module: Any = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        single = module.kernel_size == (1, 1) and not any(module.padding) if module else self.functional_single(node)
        if source.flat or source.axes != "NCHW" or not single:
            self.refuse(node, "is a convolution that reaches over pooled positions")
        return self.again(node, source)

    def functional_single(self, node: fx.Node) -> bool:
        weight = node.args[1] if node.op == "call_function" and len(node.args) > 1 else None
        return isinstance(weight, fx.Node) and self.reading.shapes[weight][2:] == (1, 1) and len(node.args) <= 3

    def do_layer_norm(self, node: fx.Node, source: _Dense) -> _Dense:
        if source.axes == "NHWC":
            return self.again(node, source)
        if not source.flat:
            self.refuse(node, "normalises along an axis that holds no channels")
        last = self.new(node, torch.permute, source.node, (0, 2, 3, 1))
        normed = self.again(node, source)
        normed.node.replace_input_with(source.node, last)
        return replace(source, node=self.new(node, torch.permute, normed.node, (0, 3, 1, 2)))

    def do_batch_norm(self, node: fx.Node, source: _Dense) -> _Dense:
        if source.axes != "NCHW":
            self.refuse(node, "normalises along an axis that holds no channels")
        if not source.flat or node.op != "call_module":
            return self.again(node, source)
        norm: Any = self.graph.get_submodule(str(node.target))
        with self.graph.graph.inserting_before(node):
            given = {
                n: self.graph.graph.get_attr(f"{node.target}.{n}") if getattr(norm, n) is not None else None
                for n in ("running_mean", "running_var", "weight", "bias")
            }
        return replace(source, node=self.new(node, F.batch_norm, source.node, *given.values(), False, 0.0, norm.eps))

    def do_cat(self, node: fx.Node, source: _Dense) -> _Dense:
        joined = [self.done[n] for n in node.all_input_nodes if n in self.done]
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if any((d.flat, d.axes, d.window) != (source.flat, "NCHW", None) for d in joined) or axis not in (
            1,
            -1 if source.flat else 1,
        ):
            self.refuse(node, "joins values other than along their channels")
        dense = self.again(node, source)
        dense.node.args, dense.node.kwargs = (dense.node.args[0], 1), {}
        return dense

    def do_axis(self, node: fx.Node, source: _Dense) -> _Dense:
        module: Any = self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        positional = node.args[-1] if len(node.args) > 1 else 1
        axis = module.dim if module else node.kwargs.get("dim", positional)
        if source.axes != "NCHW" or axis not in ((1, -1, None) if source.flat else (1, -3)):
            self.refuse(node, f"runs along axis {axis}")
        function: Any = {"softmax": F.softmax, "log_softmax": F.log_softmax, "normalize": F.normalize}[
            called(self.graph, node)
        ]
        return replace(source, node=self.new(node, function, source.node, dim=1))

    # -- the end ---------------------------------------------------------------------------------------------------

    def finish(self, output: fx.Node) -> None:
        value = output.args[0]
        if not isinstance(value, fx.Node):
            raise UsageError(
                "The classifier returns several tensors; wrap it so that it returns its class scores alone."
            )
        if value in self.done:
            dense = self.done[value]
            if dense.window:
                self.refuse(value, "is returned before any linear layer")
            output.args = (self.first(output, dense),)
        elif value not in self.reading.positional:
            self.refuse(value, "has lost the positions to a value of the whole image")
        for node in self.reading.idle:
            node.replace_all_uses_with(node.all_input_nodes[0])
        for node in reversed(list(self.graph.graph.nodes)):
            used = node.users or node in (output, *self.idle) or node.op == "placeholder"
            if not used:
                self.graph.graph.erase_node(node)


def _idle(module: nn.Module) -> bool:
    """Whether a module does nothing at test time."""
    return isinstance(module, nn.Identity) or type(module).__module__ == "torch.nn.modules.dropout"


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found = {node}
    todo = [node]
    while todo:
        fresh = [n for n in todo.pop().all_input_nodes if n not in found]
        found.update(fresh)
        todo.extend(fresh)
    return found


def _spread_kernel(kernel: Tensor, window: tuple[int, int]) -> Tensor:
    """A kernel over the cells of an adaptive average (O C a b) as one over the cells it averages (O C h w)."""
    grid = (kernel.shape[2], kernel.shape[3])
    folded = kernel.flatten(2) @ spread_kernel(grid, window).to(kernel)
    return folded.reshape(*kernel.shape[:2], *window)
