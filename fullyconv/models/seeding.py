"""Random weights from a generator of their own, whatever other threads draw from torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Seeded"]


@final
class Seeded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, and in this thread alone, everything random is drawn from `seed`, as after `torch.manual_seed(seed)`.

    torch's one generator is neither read nor moved: layers of other libraries draw from it in their constructors, and
    to save and put it back would give other threads the same numbers twice.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or _on_meta(args, given):
            return func(*args, **given)
        if not any(a.name == "generator" for a in func._schema.arguments):
            func = getattr(func.overloadpacket, "generator", func)
        if given.get("generator") is None and any(a.name == "generator" for a in func._schema.arguments):
            given["generator"] = self._generator
        return func(*args, **given)


def _on_meta(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether nothing is drawn, as there are no numbers to fill."""
    device = kwargs.get("device")
    first = args[0] if args else None
    return (device is not None and torch.device(device).type == "meta") or (
        isinstance(first, torch.Tensor) and first.device.type == "meta"
    )
