"""Computing as the numbers are, where torch would choose their type."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on x's device keep the type of the numbers they are given."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta: shapes alone, as `cost` runs a network
        return nullcontext()
    return torch.autocast(device, enabled=False)
