"""A trunk's folded graph as ONNX nodes, layer by layer; what has no exact counterpart is refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fullyconv.engine.folding import Convolution, fold_layers
from fullyconv.errors import UsageError
from fullyconv.exporting.graph import Graph
from fullyconv.exporting.upsampling import UpsamplingReading
from fullyconv.models.score_layers import UpsampledSum
from fullyconv.models.trace import CannotTrace
from fullyconv.models.trunks import Trunk

__all__ = ["LOOKED_AT", "array", "translate"]

# Sizes of maps repeat with the stride once no kernel is larger than its map; 8 strides of 64 are far beyond that.
LOOKED_AT = 512
Write = Callable[[Graph, Any, str], str]


def array(tensor: Tensor) -> NDArray[np.float32]:
    """A parameter as it stands in the file."""
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def translate(graph: Graph, trunk: Trunk, strides: Sequence[int], x: str) -> dict[int, str]:
    """Add `trunk`'s layers, reading the value `x` (float N C H W): {stride: value}.

    Raises UsageError naming the layer that cannot be translated.
    """
    if trunk.least > 1:
        x = _at_least(graph, x, trunk.least)
    try:
        network = fold_layers(trunk.inner(), strides)
    except CannotTrace as error:
        raise UsageError(f"This network cannot be exported: {error}") from error
    modules, values = dict(network.named_modules()), {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "output":
            return {int(s): values[n] for s, n in node.args[0].items()}
        elif node.op == "call_module":
            module, name = modules[str(node.target)], str(node.target)
            if isinstance(module, UpsampledSum):
                finer, coarser = (values[n] for n in node.args)
                values[node] = _upsampled_sum(graph, module, finer, coarser, _cells(trunk, name))
            else:
                values[node] = _module(graph, module, name, values[node.args[0]])
        else:
            values[node] = _function(graph, node, values)
    raise AssertionError("a graph ends in its output")


def _cells(trunk: Trunk, name: str) -> list[tuple[int, int]]:
    """(cells of the coarser map, of the finer) at the sum `name`, for images of 1, 2, ... `LOOKED_AT` pixels."""
    traced = trunk.trace()
    finer, coarser = next(step.inputs for step in traced.steps if step.name == name)
    found = [traced.sizes(*[max(n, trunk.least)] * 2) for n in range(1, LOOKED_AT + 1)]
    if any(len({*sizes[at]}) > 1 for sizes in found for at in (finer, coarser)):
        raise UsageError("This network cannot be exported: its rows and columns have different strides.")
    return [(sizes[coarser][0], sizes[finer][0]) for sizes in found]


def _upsampled_sum(graph: Graph, m: UpsampledSum, finer: str, coarser: str, sizes: list[tuple[int, int]]) -> str:
    reading = UpsamplingReading.of(m.skip.factor, m.skip.offset, "replicate", sizes)
    up = reading.write(graph, coarser, graph.add("Shape", [finer], start=2, end=4))
    return graph.add("Add", [finer, up])


def _at_least(graph: Graph, x: str, least: int) -> str:
    """Zeros at the bottom and right of what has fewer than `least` rows or columns."""
    padded = graph.add("Pad", [x, graph.whole(0, 0, 0, 0, 0, 0, least, least)], mode="constant")
    size = graph.add("Max", [graph.add("Shape", [x], start=2, end=4), graph.whole(least, least)])
    return graph.add("Slice", [padded, graph.whole(0, 0), size, graph.whole(2, 3)])


def _module(graph: Graph, module: nn.Module, name: str, x: str) -> str:
    write = MODULES.get(type(module)) or KINDS.get(type(module).__name__)
    if write is None:
        raise UsageError(
            f"This network cannot be exported: the layer {name} ({type(module).__name__}) has no translation; "
            "choose a trunk of fullyconv models."
        )
    return write(graph, module, x)


def _function(graph: Graph, node: fx.Node, values: Mapping[fx.Node, str]) -> str:
    if node.target is torch.cat:
        parts: Any = node.args[0]
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        return graph.add("Concat", [values[n] for n in parts], axis=int(axis))  # type: ignore[arg-type]
    kind = JOINS.get(node.target)
    if kind is not None and len(node.args) == 2 and all(isinstance(n, fx.Node) and n in values for n in node.args):
        return graph.add(kind, [values[n] for n in node.args])  # type: ignore[index]
    if node.target in (F.relu, torch.relu, "relu"):
        return graph.add("Relu", [values[node.all_input_nodes[0]]])
    if node.target in (torch.sigmoid, "sigmoid"):
        return graph.add("Sigmoid", [values[node.all_input_nodes[0]]])
    if node.target == "mean" and _over_space(node):
        return graph.add("GlobalAveragePool", [values[node.args[0]]])  # type: ignore[index]
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise UsageError(
        f"This network cannot be exported: the operation {called} ({node.name}) has no translation; choose a trunk of "
        "fullyconv models."
    )


def _over_space(node: fx.Node) -> bool:
    """Whether a mean is that of every channel over rows and columns, which stay as axes of one cell."""
    axes: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    return bool(kept) and isinstance(axes, tuple | list) and sorted(int(a) % 4 for a in axes) == [2, 3]


JOINS: dict[Any, str] = {
    operator.add: "Add",
    operator.iadd: "Add",
    torch.add: "Add",
    operator.mul: "Mul",
    torch.mul: "Mul",
}


def _convolution(graph: Graph, m: Convolution, x: str) -> str:
    weight, bias = m._folded()
    return _conv(graph, m, x, weight, bias, m.relu)


def _plain_convolution(graph: Graph, m: nn.Conv2d, x: str) -> str:
    if isinstance(m.padding, str) or m.padding_mode != "zeros":
        raise UsageError(
            f"This network cannot be exported: a convolution pads by {m.padding_mode!r}, {m.padding!r}; only whole "
            "numbers of zeros are translated."
        )
    return _conv(graph, m, x, m.weight, m.bias, False)


def _conv(graph: Graph, m: Convolution | nn.Conv2d, x: str, weight: Tensor, bias: Tensor | None, relu: bool) -> str:
    inputs = [x, graph.constant(array(weight), "weight")]
    inputs += [] if bias is None else [graph.constant(array(bias), "bias")]
    y = graph.add(
        "Conv", inputs, kernel_shape=list(m.kernel_size), strides=list(m.stride), pads=[*m.padding, *m.padding],
        dilations=list(m.dilation), group=m.groups,
    )  # fmt: skip
    return graph.add("Relu", [y]) if relu else y


def _norm(graph: Graph, m: nn.BatchNorm2d, x: str) -> str:
    if m.running_mean is None or m.running_var is None:
        raise UsageError("This network cannot be exported: a batch norm keeps no statistics; train it with them.")
    ones = torch.ones_like(m.running_mean)
    scale, bias = (ones, 0 * ones) if m.weight is None else (m.weight, m.bias)
    values = [graph.constant(array(t), "norm") for t in (scale, bias, m.running_mean, m.running_var)]
    return graph.add("BatchNormalization", [x, *values], epsilon=m.eps)


def _max_pool(graph: Graph, m: nn.MaxPool2d, x: str) -> str:
    kernel, stride, padding, dilation = (_pair(v) for v in (m.kernel_size, m.stride, m.padding, m.dilation))
    if m.ceil_mode and any(p > k - s for k, s, p in zip(kernel, stride, padding, strict=True)):
        raise UsageError("This network cannot be exported: a pooling that rounds up would end in an empty window.")
    return graph.add(
        "MaxPool", [x], kernel_shape=kernel, strides=stride, pads=[*padding, *padding], dilations=dilation,
        ceil_mode=int(m.ceil_mode),
    )  # fmt: skip


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value] * 2 if isinstance(value, int) else [int(v) for v in value]


def _response_norm(graph: Graph, m: nn.LocalResponseNorm, x: str) -> str:
    return graph.add("LRN", [x], size=m.size, alpha=m.alpha, beta=m.beta, bias=m.k)


def _mean(graph: Graph, m: nn.AdaptiveAvgPool2d, x: str) -> str:
    if m.output_size not in (1, (1, 1), [1, 1]):
        raise UsageError(f"This network cannot be exported: it pools to {m.output_size} cells; only 1 is translated.")
    return graph.add("GlobalAveragePool", [x])


def _zeros(graph: Graph, m: nn.ZeroPad2d, x: str) -> str:
    left, right, top, bottom = m.padding
    return graph.add("Pad", [x, graph.whole(0, 0, top, left, 0, 0, bottom, right)], mode="constant")


def _clip(graph: Graph, _: nn.ReLU6, x: str) -> str:
    return graph.add("Clip", [x, *(graph.constant(np.asarray(v, np.float32), "limit") for v in (0, 6))])


def _silu(graph: Graph, _: nn.SiLU, x: str) -> str:
    return graph.add("Mul", [x, graph.add("Sigmoid", [x])])


def _norm_and_activation(graph: Graph, m: Any, x: str) -> str:
    """timm's BatchNormAct2d: batch norm, then its `act`."""
    return _module(graph, m.act, "the activation of a batch norm", _norm(graph, m, x))


KINDS: dict[str, Write] = {"BatchNormAct2d": _norm_and_activation}  # of a library that need not be there
MODULES: dict[type[nn.Module], Write] = {
    Convolution: _convolution,
    nn.Conv2d: _plain_convolution,
    nn.BatchNorm2d: _norm,
    nn.MaxPool2d: _max_pool,
    nn.LocalResponseNorm: _response_norm,
    nn.AdaptiveAvgPool2d: _mean,
    nn.ZeroPad2d: _zeros,
    nn.ReLU6: _clip,
    nn.ReLU: lambda graph, _, x: graph.add("Relu", [x]),
    nn.SiLU: _silu,
    nn.Sigmoid: lambda graph, _, x: graph.add("Sigmoid", [x]),
    nn.Hardswish: lambda graph, _, x: graph.add("HardSwish", [x]),
    nn.Hardsigmoid: lambda graph, _, x: graph.add("HardSigmoid", [x], alpha=1 / 6, beta=0.5),
    nn.Identity: lambda graph, _, x: x,
    nn.Dropout: lambda graph, _, x: x,
}
