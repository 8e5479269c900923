"""Any timm model with `features_only`, as a trunk (extra `timm`). Weights come from local files only."""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.errors import MissingExtra, UnknownName, UsageError
from fullyconv.models.trace import Trace, trace
from fullyconv.models.trunks.trunk import Trunk
from fullyconv.preprocessing import Preprocessing

__all__ = ["Timm", "timm_parameters"]


def timm_parameters(name: str) -> int:
    """How many weights timm's NAME has without its classifier, found without taking memory for them; 0 where that
    cannot be told."""
    try:
        import timm

        with torch.device("meta"):
            net = timm.create_model(name, features_only=True, pretrained=False) if timm.is_model(name) else None
    except Exception:  # what cannot be made at all is told when it is made
        return 0
    return sum(p.numel() for p in net.parameters()) if net is not None else 0


@final
class Timm(Trunk):
    """timm's NAME with one map a stride. Parameter names are timm's under `net.`."""

    def __init__(self, name: str, channels_in: int = 3) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise MissingExtra(f"The trunk timm:{name}", "timm", "timm") from error
        if not timm.is_model(name):
            raise UnknownName("timm model", name[:200], timm.list_models())
        try:
            self.net: Any = timm.create_model(name, features_only=True, pretrained=False, in_chans=channels_in)
        except (RuntimeError, AttributeError) as error:
            raise UsageError(
                f"timm's {name} gives no feature maps ({error}); choose one that supports features_only."
            ) from error
        info: Any = self.net.feature_info
        found = dict(zip(info.reduction(), info.channels(), strict=True))  # the last map of each stride
        self.channels = found
        self.indices = {s: max(i for i, r in enumerate(info.reduction()) if r == s) for s in found}
        config = timm.get_pretrained_cfg(name)
        self.source = f"timm {name}"
        if config is not None and channels_in == 3:
            self.preprocessing = Preprocessing(mean=tuple(config.mean), std=tuple(config.std))

    def trace(self) -> Trace:
        """The inner network's geometry (the padding of tiny images in `forward` moves nothing)."""
        inner = trace(self.net)
        return Trace(inner.steps, {s: inner.outputs[i] for s, i in self.indices.items()})

    @property
    def least(self) -> int:
        return max(self.channels)

    def inner(self) -> nn.Module:
        return _Inner(self.net, self.indices)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        least = self.least
        if min(x.shape[2:]) < least:  # patch embeddings need one whole cell
            x = F.pad(x, (0, max(0, least - x.shape[3]), 0, max(0, least - x.shape[2])))
        maps = self.net(x)
        return {s: maps[i] for s, i in self.indices.items()}


@final
class _Inner(nn.Module):
    def __init__(self, net: nn.Module, indices: dict[int, int]) -> None:
        super().__init__()
        self.net, self.indices = net, indices

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        maps = self.net(x)
        return {s: maps[i] for s, i in self.indices.items()}
