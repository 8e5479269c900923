"""A trunk as a graph of fewer, faster layers: convolutions that fold batch norm, end in ReLU and pack their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fullyconv.engine.convolution import (
    Algorithm,
    Winograd,
    algorithm_for,
    choose_algorithm,
    copied_bytes,
    scratch_bytes,
)
from fullyconv.engine.locking import preparing
from fullyconv.engine.spec import ConvolutionSpec
from fullyconv.models.trace import Leaves, trace

__all__ = ["Convolution", "fold_layers"]


@final
class Convolution(nn.Module):
    """A convolution with what follows it: batch norm in its weights, ReLU in its loop; the quickest way on the CPU."""

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, relu: bool, dtype: torch.dtype, from_zero_up: bool = False
    ) -> None:
        super().__init__()
        self._parts = (conv, norm)  # a tuple, so that the network's own layers do not become this one's children
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.kernel_size, self.in_channels, self.out_channels = conv.kernel_size, conv.in_channels, conv.out_channels
        self.relu, self.dtype = relu, dtype
        self.layer = ConvolutionSpec(conv.stride, conv.dilation, conv.groups, relu, from_zero_up, self._plain)
        self.weights: tuple[Tensor, Tensor | None] | None = None
        self.algorithm: Algorithm | None = None

    @property
    def packed_bytes(self) -> int:
        """What copies of the weights take on the CPU."""
        conv, norm = self._parts
        return copied_bytes(conv.weight, self.dtype, self.layer, norm is not None)

    def scratch_bytes(self, x: Tensor, padding: Sequence[int] | None = None) -> int:
        """What the layer lays out beside its input x and its output on the CPU."""
        pad = [int(p) for p in (self.padding if padding is None else padding)]
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        rows, columns = ((x.shape[2 + i] + 2 * pad[i] - reach[i]) // self.stride[i] + 1 for i in (0, 1))
        return scratch_bytes(self._parts[0].weight.shape, self.dtype, self.layer, (len(x), rows, columns))

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) with batch norm in them; the network's own where there is none."""
        conv, norm = self._parts
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        if norm is not None:
            mean, variance = norm.running_mean, norm.running_var
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, norm.weight, norm.bias)  # type: ignore[arg-type]
        return weight.detach(), None if bias is None else bias.detach()

    def forward(self, x: Tensor, padding: Sequence[int] | None = None) -> Tensor:
        """N C H W -> N C' H' W' of `dtype`; `padding` (rows, columns) stands in for the layer's own."""
        x = x.to(self.dtype)
        pad = [int(p) for p in (self.padding if padding is None else padding)]
        if x.device.type == "cpu" and torch._C._has_mkldnn and not torch.is_grad_enabled():
            if self.algorithm is None:
                with preparing():
                    self.algorithm = self.algorithm or algorithm_for(*self._folded(), self.dtype, self.layer)
            return self.algorithm(x, pad)
        if self.weights is None:
            weight, bias = self._folded()
            self.weights = weight.to(self.dtype), None if bias is None else bias.to(self.dtype)
        return self._convolved(x, pad, *self.weights)

    def once(self, x: Tensor) -> Tensor:
        """What calling it gives, up to rounding, for a map that does not come again: nothing is laid out for more."""
        algorithm = choose_algorithm(self._parts[0].weight.shape, self.dtype, self.layer)
        if x.device.type == "cpu" and algorithm is Winograd:
            return self._plain(x, [int(p) for p in self.padding])
        found: Tensor = self(x)
        return found

    def _plain(self, x: Tensor, padding: Sequence[int]) -> Tensor:
        return self._convolved(x, padding, *self._folded())

    def _convolved(self, x: Tensor, padding: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.conv2d(x, weight, bias, self.stride, list(padding), self.dilation, self.groups)
        return y.relu_() if self.relu else y


def fold_layers(trunk: nn.Module, strides: Sequence[int], dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """`trunk` as a graph of `Convolution`s and its other layers, giving {stride: features} of `strides` alone.

    The other layers are the trunk's own. Raises CannotTrace.
    """
    trace(trunk)  # refuses what would be recorded for one size only
    graph = Leaves().trace(trunk)
    modules = dict(trunk.named_modules())
    root: dict[str, Any] = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers()), **modules}
    output = next(n for n in graph.nodes if n.op == "output")
    features = output.args[0]
    assert isinstance(features, dict), "a trunk returns {stride: features}"
    output.args = ({s: features[s] for s in strides},)
    for node in list(graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            root[str(node.target)] = _absorbing(graph, node, modules, dtype, root)
    network = fx.GraphModule(root, graph)
    network.graph.eliminate_dead_code()  # what only other strides need
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def _absorbing(
    graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module], dtype: torch.dtype, done: Mapping[str, object]
) -> Convolution:
    """The convolution at `node` with the batch norm and the ReLU behind it, which leave the graph; `done`: the layers
    as they are made, those before it replaced already."""
    norm, relu = _norm_of(_only_user(node), modules), False
    if norm is not None:
        _remove(graph, node)
    after = _only_user(node)
    if after is not None and _is_relu(after, modules):
        relu = True
        _remove(graph, node)
    conv = modules[str(node.target)]
    assert isinstance(conv, nn.Conv2d)
    return Convolution(conv, norm, relu, dtype, _never_negative(node.all_input_nodes[0], modules, done))


def _never_negative(node: fx.Node, modules: Mapping[str, nn.Module], done: Mapping[str, object]) -> bool:
    """Whether what comes out of `node` begins at 0: a ReLU, or poolings and joins of such."""
    if node.op == "placeholder" or node.op == "output":
        return False
    layer = done.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, Convolution):
        return layer.relu
    if _is_relu(node, modules):
        return True
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d) or node.target is torch.cat:
        return all(_never_negative(n, modules, done) for n in node.all_input_nodes)
    return False


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _remove(graph: fx.Graph, node: fx.Node) -> None:
    """Take the only user of `node` out of the graph."""
    user = next(iter(node.users))
    user.replace_all_uses_with(node)
    graph.erase_node(user)


def _norm_of(node: fx.Node | None, modules: Mapping[str, nn.Module]) -> nn.BatchNorm2d | None:
    module = modules.get(str(node.target)) if node is not None and node.op == "call_module" else None
    return module if type(module) is nn.BatchNorm2d and module.running_mean is not None else None


def _is_relu(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    return node.target in (F.relu, torch.relu, "relu")
