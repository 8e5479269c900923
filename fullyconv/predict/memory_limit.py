"""How large a tile fits into memory: by what the network's own run on two small windows would take."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fullyconv.allocator import give_back
from fullyconv.errors import UsageError
from fullyconv.predict import Predictor
from fullyconv.predict.tiling import plan_tiles
from fullyconv.runtime.exported import ExportedNetwork

if TYPE_CHECKING:
    from fullyconv.models.interface import SegmentationModel

__all__ = ["parse_size", "peak_bytes", "resident", "tile_for"]

PROBES = (256, 512)  # pixels a side of the two images by which bytes a pixel are told from what is there anyway
# What tensors' sizes do not show, measured on CPU (768 to 1024 pixels; resnet18: 1.8 times the tensors' bytes a
# pixel, squeezenet more): convolution workspaces and the allocator's gaps grow with the window; repacked weights and
# code compiled for every new shape do not.
SLACK, COMPILED = 2.4, 200 * 2**20
# Where windows are measured: what their sizes may leave out of the slope, and of code compiled for further shapes.
MARGIN, SPARE = 1.15, 48 * 2**20
UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def parse_size(text: str) -> int:
    """Bytes in "2GiB", "800MB", "1.5g" or a plain number."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise UsageError(f"{text!r} is not an amount of memory; write it like 2GiB or 800MB.")
    return int(float(found[1]) * UNITS[found[2] or ""])


def resident() -> int:
    """Bytes this process holds in memory now (Linux; elsewhere its peak so far)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import os

        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_bytes(model: SegmentationModel, side: int) -> int:
    """Bytes of tensors alive at once, beside the weights, while the network scores a side x side window; nothing is
    computed (`fullyconv.cost`). The image's array, before it becomes the network's input, is counted too."""
    from fullyconv.cost import working_bytes

    image: int = side * side * model.preprocessing.channels * 4
    return working_bytes(model, side, side) + image


def tile_for(model: SegmentationModel | ExportedNetwork, budget: int) -> int:
    """The largest tile (core, pixels a side) whose reading keeps the whole process within `budget` bytes.

    Two small windows are really read and what the process then held at most is carried on to larger ones; where the
    system does not tell, the sizes of the tensors are. `UsageError` when not even the smallest tile fits, naming what
    would.
    """
    fixed, slope = _measured(model) or _reckoned(model)
    least = plan_tiles(model, 1)
    side = math.isqrt(int(max(0.0, budget - fixed) / slope))
    core = (side - 2 * least.context) // least.align * least.align
    if core >= least.align:
        return core
    need = fixed + slope * (least.align + 2 * least.context) ** 2
    raise UsageError(
        f"This network needs at least {need / 1024**2:.0f} MiB for its smallest tile; raise --max-memory "
        f"(now {budget / 1024**2:.0f} MiB)."
    )


def _measured(model: SegmentationModel | ExportedNetwork) -> tuple[float, float] | None:
    """(bytes the process holds whatever the window, bytes a pixel of the window), from windows that were read."""
    peaks = []
    for side in PROBES:
        for _ in range(2):  # the first of a size makes what the next ones find
            give_back()
            if not _forget_peak():
                return None
            _read(model, side)
        peaks.append(_peak())
    small, large = (side * side for side in PROBES)
    # Memory comes in pages and in leaps: never less than the tensors themselves.
    least = 1
    if not isinstance(model, ExportedNetwork):
        least = peak_bytes(model, PROBES[1]) - peak_bytes(model, PROBES[0])
    slope = max(peaks[1] - peaks[0], least) / (large - small)
    return peaks[1] - slope * large + SPARE, MARGIN * slope


def _reckoned(model: SegmentationModel | ExportedNetwork) -> tuple[float, float]:
    """The same by the sizes of tensors."""
    if isinstance(model, ExportedNetwork):
        raise UsageError("This system does not tell how much memory a program held; give --tile instead.")
    _read(model, PROBES[0])
    held = resident()
    small, large = (peak_bytes(model, side) for side in PROBES)
    slope = SLACK * (large - small) / (PROBES[1] ** 2 - PROBES[0] ** 2)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return held + COMPILED + weights + max(0.0, small - slope / SLACK * PROBES[0] ** 2), slope


def _forget_peak() -> bool:
    """Set the kernel's high-water mark of this process back to what it holds; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return bool(_peak())
    except (OSError, StopIteration):
        return False


def _peak() -> int:
    """The most bytes that this process held since `_forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _read(model: SegmentationModel | ExportedNetwork, side: int) -> None:
    """Label an image of side x side pixels."""

    Predictor(model)(np.zeros((side, side, model.preprocessing.channels), np.uint8))
