"""torch.fx tracing that touches nothing but a copy of the network: other threads go on calling their modules.

`fx.Tracer.trace` puts its own `nn.Module.__call__` and `__getattr__` in the place of torch's while it runs, for every
module of the process: what another thread calls in that time lands in the graph, or raises. Here the network is copied,
its tensors shared, and only the copy's modules answer to the tracer. Graphs are the same, but for functions of other
libraries marked by `fx.wrap`, which are followed instead of recorded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from fullyconv.models.interface import TorchModule

M = TypeVar("M", bound=TorchModule)

__all__ = ["QuietTracer", "shared_copy"]


def shared_copy(network: M) -> M:
    """A copy of a module whose parameters, buffers and other tensors are the same objects: its own modes, no memory."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        held = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
        memo |= {id(value): value for value in held if isinstance(value, Tensor)}
    return copy.deepcopy(network, memo)


class QuietTracer(fx.Tracer):
    """`fx.Tracer` for modules, with `trace` as the module's docstring says."""

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of `root`, an nn.Module; raises whatever its forward does with a proxy."""
        twin = shared_copy(root)
        kinds: dict[type, type] = {}
        cache: dict[str, fx.Proxy] = {}
        for module in twin.modules():
            kind = type(module)
            kinds[kind] = kinds.get(kind) or self._listening(kind, cache)
            module.__class__ = kinds[kind]
        self.root, self.root_module_name = twin, root._get_name()
        self.graph = fx.Graph(tracer_cls=type(self))
        self.submodule_paths = {module: name for name, module in twin.named_modules()}
        self.tensor_attrs = {
            value: f"{path}.{name}".lstrip(".")
            for path, module in twin.named_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        }
        function, arguments = self.create_args_for_root(type(root).forward, True, concrete_args)
        self.create_node("output", "output", (self.create_arg(function(*arguments)),), {})
        self.submodule_paths = None
        return self.graph

    def _listening(self, kind: type, cache: dict[str, fx.Proxy]) -> type:
        """The class `kind` with calls and parameters recorded by this tracer."""
        plain: Any = kind

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            forward: Callable[..., Any] = lambda *a, **k: plain.__call__(module, *a, **k)  # noqa: E731
            return self.call_module(module, forward, args, kwargs)

        def attribute(module: nn.Module, name: str) -> Any:
            return self.getattr(name, plain.__getattr__(module, name), cache)

        members = {"__call__": call, "__getattr__": attribute, "__module__": kind.__module__, "__doc__": kind.__doc__}
        return type(kind.__name__, (kind,), members)
