"""Which numbers a network is computed in: what the device offers natively, and what "auto" chooses.

A type that a processor has not is imitated, ten to twenty times as slow as float32, or fails inside a library: it is
refused. "auto" takes bfloat16 only where the device has it and it was measured to be quicker for this very network.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fullyconv import processor
from fullyconv.errors import UsageError

__all__ = ["GAIN", "choose_precision", "device_has_native", "refuse", "seconds"]

GAIN = 1.1  # so many times quicker bfloat16 must be: less is within what a busy machine varies by
TYPES = {"bf16": "bfloat16", "fp16": "float16"}
CUDA = {"bf16": (8, 0), "fp16": (7, 0)}  # compute capability with matrix units for it


def device_has_native(precision: str, device: torch.device) -> bool:
    """Whether `device` computes in "fp32", "bf16" or "fp16" by instructions of its own; True for a kind of device that
    we know nothing of."""
    if precision == "fp32" or device.type not in ("cpu", "cuda"):
        return True
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CUDA[precision]
    return processor.has_native(precision)


def refuse(precision: str, device: torch.device) -> None:
    """UsageError for a type of numbers that `device` would only imitate."""
    if precision == "auto" or device_has_native(precision, device):
        return
    raise UsageError(
        f"precision = {precision!r}, but this {_name(device)} has no {TYPES[precision]} arithmetic, so it would only "
        'be slower; use precision = "auto" or "fp32".'
    )


def choose_precision(device: torch.device, measure: Callable[[str], float]) -> tuple[str, str]:
    """("fp32" or "bf16", why), by measure(precision) -> seconds where the device has bfloat16."""
    if device.type not in ("cpu", "cuda"):
        return "fp32", f"bfloat16 was not tried on {device.type}"
    if not device_has_native("bf16", device):
        return "fp32", f"this {_name(device)} has no bfloat16 arithmetic"
    full, half = measure("fp32"), measure("bf16")
    times = f"{1000 * half:.0f} ms in bfloat16, {1000 * full:.0f} in float32"
    if full < GAIN * half:
        return "fp32", f"bfloat16 is not quicker for this network here ({times})"
    return "bf16", f"it is quicker for this network here ({times})"


def seconds(call: Callable[[], object], device: torch.device, calls: int = 3) -> float:
    """The least time of some calls after a first one, which lays things out."""
    call()
    found = []
    for _ in range(calls):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return f"processor ({processor.width()})" if device.type == "cpu" else "GPU"
