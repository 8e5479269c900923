"""When the GPU refuses a step: say what its memory would hold, or which operation cannot be repeated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fullyconv.errors import FullyconvError, UsageError
from fullyconv.train.step import Batch, gradients

if TYPE_CHECKING:
    from fullyconv.train.context import RunContext

__all__ = ["advice", "explained", "one_image"]

GIB = float(1 << 30)


@contextmanager
def explained(c: RunContext, batches: Sequence[Batch]) -> Iterator[None]:
    """Turn an out-of-memory error inside into a sentence that says what fits (one image is tried and measured), and
    torch's refusal under `deterministic` into one that names the operation."""
    try:
        yield
        return
    except torch.OutOfMemoryError:
        pass  # what follows runs outside the handler, which would keep the failed step's tensors
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        raise UsageError(
            f"{found[1]} cannot be repeated to the bit on this device; train without --deterministic or on the CPU."
        ) from error
    most = max(len(b.images) for b in batches)
    h, w = batches[0].images.shape[1:3]
    what = f"The GPU's memory is not enough for {most} images of {h}x{w} at a time; "
    c.optimizer.zero_grad(set_to_none=True)
    one = [one_image(batches[0])]
    measured = _measured(c.group.device, lambda: gradients(c.model, one, c.recipe, c.group, c.weights, c.scaler))
    raise FullyconvError(what + advice(*measured, most, c.recipe.batch_size))


def one_image(batch: Batch) -> Batch:
    return Batch(batch.images[:1], {head: label[:1] for head, label in batch.labels.items()}, batch.names[:1])


def _measured(device: torch.device, learn_one: Callable[[], object]) -> tuple[float, float, float]:
    """(bytes in all, bytes taken before, bytes more for one image, infinite when that does not fit either)."""
    if device.type != "cuda":
        return math.nan, math.nan, math.nan
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    base = float(torch.cuda.memory_allocated(device))
    free, total = torch.cuda.mem_get_info(device)
    try:
        learn_one()
    except torch.OutOfMemoryError:
        return float(total), base, math.inf
    return float(free + torch.cuda.memory_reserved(device)), base, torch.cuda.max_memory_allocated(device) - base


def advice(total: float, base: float, each: float, most: int, batch_size: int) -> str:
    """What to set, from the memory there is, that of the network, and that of an image. 5 % stay free."""
    if math.isnan(total):
        passes = min(batch_size, 2 * math.ceil(batch_size / most))
        return f"split the step with accumulate = {passes}, or set a smaller crop."
    fits = int((0.95 * total - base) / each) if each < math.inf else 0
    have = f"of {total / GIB:.1f} GiB the network takes {base / GIB:.1f}"
    if fits < 1:
        return f"{have} and one image does not fit; set a crop of half the sides, or a smaller network."
    return (
        f"{have} and an image {each / GIB:.1f}, so {fits} at a time fit: set accumulate = "
        f"{math.ceil(batch_size / fits)} (the result stays the same, batch norm apart)."
    )
