"""The processes of one run: alone, or started by torchrun (gloo on CPUs, nccl on GPUs)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from fullyconv.errors import FullyconvError, TryAgain, UsageError

__all__ = ["ProcessGroup", "join", "resolve_device"]


@final
@dataclass(frozen=True)
class ProcessGroup:
    """This process among `size`; sums are exact in the same order on every process."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` (any shape) over all processes; `values` themselves when alone."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: list[Tensor]) -> None:
        """Add up `.grad` over all processes, in one message; missing gradients count as zero."""
        if self.size == 1 or not parameters:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p)

    def mean_buffers(self, buffers: list[Tensor]) -> None:
        """Average floating-point buffers (batch norm's running statistics), so that all processes hold the same."""
        floats = [b for b in buffers if b.is_floating_point()]
        if self.size == 1 or not floats:
            return
        flat = torch.cat([b.flatten() for b in floats])
        dist.all_reduce(flat)
        for b, part in zip(floats, torch.split(flat / self.size, [b.numel() for b in floats]), strict=True):
            b.copy_(part.view_as(b))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag), device=self.device)) > 0)

    def first(self, value: float) -> float:
        """The first process's `value`, on all (clocks differ between processes)."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def gather(self, texts: Sequence[str]) -> list[str]:
        """Every process's texts, on all, in the order of the processes."""
        if not self.any(bool(texts)):
            return []
        found: list[list[str]] = [list(texts)] * self.size
        if self.size > 1:
            dist.all_gather_object(found, list(texts))
        return [text for part in found for text in part]

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside on one process is one on all, so that nobody waits for a process that is gone."""
        error: Exception | None = None
        try:
            yield
        except (FullyconvError, OSError) as caught:
            error = caught
        if self.any(error is not None):
            raise error or TryAgain("Another process of this run failed and says why; continue with --resume.")


@contextmanager
def join(device: str) -> Iterator[ProcessGroup]:
    """Join the group that torchrun describes in the environment, or run alone; `device` as in the recipe."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    where = resolve_device(device)
    if size == 1:
        yield ProcessGroup(0, 1, where)
        return
    owner = not dist.is_initialized()
    if owner:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(rank, size, where)
    finally:
        if owner:
            dist.destroy_process_group()


def resolve_device(name: str) -> torch.device:
    """`name` as a device that is there; "auto" is the local rank's GPU, or the CPU."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device = {name!r} is not a device; use auto, cpu or cuda.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f'device = {name!r} but torch sees no GPU here; use device = "cpu" or auto.')
    return torch.device("cuda", local) if device.type == "cuda" and device.index is None else device
