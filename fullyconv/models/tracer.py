"""torch.fx tracing that touches nothing but a copy of the network: other threads go on calling their modules.

`fx.Tracer.trace` puts its own `nn.Module.__call__` and `__getattr__` in the place of torch's while it runs, for every
module of the process: what another thread calls in that time lands in the graph, or raises. Here the network is copied,
its tensors shared, and only the copy's modules answer to the tracer. Graphs are the same, but for functions of other
libraries marked by `fx.wrap`, which are followed instead of recorded.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar, final

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

    def trace(self, root: nn.Module, concrete_args: dict[str, Any] | None = None) -> fx.Graph:  # type: ignore[override]
        """The graph of `root`; raises whatever its forward does with a proxy."""
        twin = shared_copy(root)
        cache: dict[str, fx.Proxy] = {}
        for module in twin.modules():
            for name in ("_parameters", "_buffers"):
                vars(module)[name] = _Recorded(vars(module)[name], self, cache)
            if module is not twin:
                self._listen(module)
        self.root, self.root_module_name = twin, root._get_name()  # type: ignore[no-untyped-call]
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

    def _listen(self, module: nn.Module) -> None:
        """Calls of `module`, of the copy, go to this tracer; what it follows is a shallow copy, as the module was."""
        inside = object.__new__(type(module))
        vars(inside).update(vars(module))

        def follow(*args: object, **kwargs: object) -> Any:
            return nn.Module.__call__(inside, *args, **kwargs)

        def forward(*args: object, **kwargs: object) -> Any:
            return self.call_module(module, follow, args, kwargs)

        hooks: dict[str, Any] = {
            name: OrderedDict() for name in vars(module) if name.endswith(("_hooks", "_with_kwargs"))
        }
        vars(module).update(hooks, forward=forward)


@final
class _Recorded(dict[str, Any]):
    """A module's parameters or buffers: those that its forward takes are recorded."""

    def __init__(self, held: Mapping[str, object], tracer: QuietTracer, cache: dict[str, fx.Proxy]) -> None:
        super().__init__(held)
        self._tracer, self._cache = tracer, cache

    def __getitem__(self, name: str) -> Any:
        return self._tracer.getattr(name, super().__getitem__(name), self._cache)
