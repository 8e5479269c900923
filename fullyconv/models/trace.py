"""The geometry of any torch network, read off its traced graph: every layer's size, grid and receptive field."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import fx, nn

from fullyconv.errors import FullyconvError
from fullyconv.geometry import IMAGE, Layer, Map
from fullyconv.models.score_layers import UpsampledSum
from fullyconv.models.tracer import QuietTracer

__all__ = ["CannotTrace", "Leaves", "Trace", "TracedLayer", "probe", "trace"]

Pair = tuple[Layer | None, Layer | None]  # rows, columns; None: sizes and grid stay as they are


@final
class CannotTrace(FullyconvError):
    """The network's graph or one of its layers is not understood; its geometry must be probed instead."""


@final
@dataclass(frozen=True)
class TracedLayer:
    """One node of the graph: what it does along rows and columns, and whose outputs it reads."""

    name: str
    kind: str
    layers: Pair
    inputs: tuple[str, ...]
    unbounded: bool = False
    channels: int | None = None
    upsampled: bool = False  # the last of its inputs is interpolated onto the first one's grid


@final
@dataclass(frozen=True)
class Trace:
    """A network as steps in order; `outputs` names the step of each output."""

    steps: tuple[TracedLayer, ...]
    outputs: Mapping[Any, str]

    def maps(self, axis: int = 0) -> dict[str, Map]:
        """Step name -> grid and field in image pixels along `axis` (0 rows, 1 columns)."""
        found: dict[str, Map] = {}
        for step in self.steps:
            here = IMAGE
            for i, source in enumerate(step.inputs):
                other = found[source]
                if i and step.upsampled:
                    # The two cells that are read lie up to a stride off, on either side.
                    other = Map(here.stride, here.offset, other.field + 2 * float(other.stride))
                here = other if i == 0 else here.join(other)
            layer = step.layers[axis]
            here = here if layer is None else here.then(layer)
            found[step.name] = here.unbounded() if step.unbounded else here
        return found

    def sizes(self, height: int, width: int) -> dict[str, tuple[int, int]]:
        """Step name -> (rows, columns) for an image of that size."""
        found: dict[str, tuple[int, int]] = {}
        for step in self.steps:
            here = found[step.inputs[0]] if step.inputs else (height, width)
            rows, columns = step.layers
            found[step.name] = (
                here[0] if rows is None else rows.size(here[0]),
                here[1] if columns is None else columns.size(here[1]),
            )
        return found


def _pair(value: object) -> tuple[int, int]:
    a, b = value if isinstance(value, tuple | list) else (value, value)
    return int(a), int(b)


def _conv(m: nn.Module) -> Pair:
    k, s, d = _pair(m.kernel_size), _pair(m.stride), _pair(m.dilation)
    p = tuple(d[a] * (k[a] - 1) // 2 for a in (0, 1)) if m.padding == "same" else _pair(m.padding)
    return tuple(Layer("conv", k[a], s[a], p[a], d[a]) for a in (0, 1))  # type: ignore[return-value]


def _deconv(m: nn.Module) -> Pair:
    k, s, p = _pair(m.kernel_size), _pair(m.stride), _pair(m.padding)
    extra = _pair(m.output_padding)
    return tuple(Layer("deconv", k[a], s[a], p[a], after=p[a] - extra[a]) for a in (0, 1))  # type: ignore[return-value]


def _pool(m: nn.Module) -> Pair:
    k, p = _pair(m.kernel_size), _pair(m.padding)
    s, d = _pair(m.stride or m.kernel_size), _pair(getattr(m, "dilation", 1))
    return tuple(Layer("pool", k[a], s[a], p[a], d[a], bool(m.ceil_mode)) for a in (0, 1))  # type: ignore[return-value]


def _zero_pad(m: nn.Module) -> Pair:
    left, right, top, bottom = m.padding  # type: ignore[misc]
    return Layer("conv", 1, 1, top, after=bottom), Layer("conv", 1, 1, left, after=right)


WINDOWED: dict[type[nn.Module], Callable[[nn.Module], Pair]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _deconv,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.ZeroPad2d: _zero_pad,
}
POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LeakyReLU, nn.ELU, nn.Tanh,
    nn.PReLU, nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.LocalResponseNorm, nn.Mish, nn.Hardtanh,
)  # fmt: skip
# Layers of other libraries that act on one cell at a time (over its channels).
POINTWISE_KINDS = {"Linear", "LayerNorm", "LayerNorm2d", "LayerScale", "LayerScale2d", "BatchNormAct2d", "DropPath"}
GLOBAL = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.InstanceNorm2d)
JOINS = {torch.cat, torch.add, operator.add, operator.iadd, torch.mul, operator.mul, operator.sub, torch.sub}
POINTWISE_FUNCTIONS = {
    F.relu, F.silu, F.gelu, F.hardswish, F.dropout, torch.relu, torch.sigmoid, operator.truediv, F.relu6, F.layer_norm,
    F.local_response_norm, torch.addcmul,
}  # fmt: skip
POINTWISE_METHODS = {
    "relu", "sigmoid", "contiguous", "clone", "to", "float", "add_", "mul_", "add", "mul", "div", "type_as",
    "permute", "view", "reshape", "unsqueeze", "expand_as",  # channels last and back; a gate made of global means
}  # fmt: skip
GLOBAL_OPERATIONS = {"mean", "norm", "sum", "vector_norm", "std", "var"}  # over space, as far as is known: unbounded


class Leaves(QuietTracer):
    """Follows modules down to those whose geometry is known."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*WINDOWED, *POINTWISE, *GLOBAL, UpsampledSum)) or type(m).__name__ in POINTWISE_KINDS:
            return True
        return super().is_leaf_module(m, module_qualified_name) and not any(True for _ in m.children())


def _module_step(node: fx.Node, module: nn.Module, inputs: tuple[str, ...]) -> TracedLayer:
    kind = type(module).__name__
    channels = getattr(module, "out_channels", None)
    for cls, describe in WINDOWED.items():
        if type(module) is cls:  # a subclass may pad by the size of its input (TensorFlow's "same")
            return TracedLayer(str(node.target), kind, describe(module), inputs, channels=channels)
    if isinstance(module, UpsampledSum):
        return TracedLayer(str(node.target), kind, (None, None), inputs, upsampled=True)
    if isinstance(module, GLOBAL):
        return TracedLayer(str(node.target), kind, (None, None), inputs, unbounded=True)
    if isinstance(module, POINTWISE) or kind in POINTWISE_KINDS or not any(True for _ in module.parameters()):
        return TracedLayer(str(node.target), kind, (None, None), inputs)
    raise CannotTrace(f"The layer {node.target} ({kind}) has no known geometry; its coordinates are probed instead.")


def _function_step(node: fx.Node, inputs: tuple[str, ...]) -> TracedLayer:
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if called in GLOBAL_OPERATIONS:
        return TracedLayer(node.name, called, (None, None), inputs, unbounded=True)
    if node.op == "call_function":
        if node.target in JOINS or node.target in POINTWISE_FUNCTIONS:
            return TracedLayer(node.name, node.target.__name__, (None, None), inputs)
        if node.target is F.pad:
            sides: Any = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            left, right, *rest = sides
            top, bottom = rest or (0, 0)
            pad = (Layer("conv", 1, 1, top, after=bottom), Layer("conv", 1, 1, left, after=right))
            return TracedLayer(node.name, "pad", pad, inputs)
    elif node.target in POINTWISE_METHODS:
        return TracedLayer(node.name, str(node.target), (None, None), inputs)
    raise CannotTrace(
        f"The operation {node.target} has no known geometry; the network's coordinates are probed instead."
    )


def trace(network: nn.Module) -> Trace:
    """The geometry of `network`, whose one input is the image (N C H W).

    Its outputs may be a tensor, a list or a dict. Raises CannotTrace for graphs that torch.fx cannot follow or layers
    whose reach is unknown.
    """
    try:
        graph = Leaves().trace(network)
    except Exception as error:  # torch.fx raises anything
        raise CannotTrace(
            f"The network's graph cannot be traced ({error}); its coordinates are probed instead."
        ) from error
    modules = dict(network.named_modules())
    steps: list[TracedLayer] = []
    names: dict[fx.Node, str] = {}
    outputs: dict[Any, str] = {}
    for node in graph.nodes:
        sources = tuple(names[n] for n in node.all_input_nodes if n in names)
        if node.op == "placeholder":
            step = TracedLayer("image", "image", (None, None), ())
        elif node.op == "output":
            value = node.args[0]
            pairs = (
                value.items()
                if isinstance(value, dict)
                else enumerate(value if isinstance(value, tuple | list) else [value])
            )
            outputs = {key: names[n] for key, n in pairs}
            break
        elif not sources:
            continue  # a constant: a parameter used in the forward pass, and what is made of it
        elif node.op == "call_module":
            step = _module_step(node, modules[str(node.target)], sources)
        else:
            step = _function_step(node, sources)
        taken = {s.name for s in steps}
        if step.name in taken:  # one module called twice (a shared ReLU): keep the node's own name
            step = replace(step, name=node.name)
        steps.append(step)
        names[node] = step.name
    return Trace(tuple(steps), outputs)


def probe(network: nn.Module, size: int = 256, seed: int = 0) -> list[Map]:
    """Grids of a network's outputs by measurement, for graphs that cannot be traced: stride from the sizes, offset
    0 or (stride - 1) / 2, whichever lies nearer the centre of gravity of one cell's gradient, field unbounded."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 3, size, size, generator=generator).requires_grad_()
    found = []
    outputs = network(x)
    for y in outputs.values() if isinstance(outputs, dict) else outputs:
        stride = round(size / y.shape[-1])
        middle = y.shape[-1] // 2
        lead = [_lead(y, cell, stride, x) for cell in range(max(0, middle - 4), min(y.shape[-1], middle + 5))]
        centre = sum(lead) / len(lead)
        # Real networks start their grid at pixel 0 or centre it in the cell; the measurement says which.
        offset = min(Fraction(0), Fraction(stride - 1, 2), key=lambda o: abs(centre - float(o)))
        found.append(Map(Fraction(stride), offset, float("inf")))
    return found


def _lead(y: torch.Tensor, cell: int, stride: int, x: torch.Tensor) -> float:
    """Pixels from stride * cell to the centre of gravity of what cell (cell, cell) reads, along the columns."""
    (gradient,) = torch.autograd.grad(y[:, :, cell, cell].square().sum(), x, retain_graph=True)
    weight = gradient.square().sum((0, 1, 2))
    position = torch.arange(x.shape[-1], dtype=weight.dtype)
    return float((weight * position).sum() / weight.sum()) - stride * cell
