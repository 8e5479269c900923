"""From which sizes on each way of computing a convolution pays: one table, for prediction and training alike.

The crossings were measured layer by layer on a Xeon with AMX and on an AMD EPYC of Zen 4; `benchmarks/inference.py` and
`benchmarks/train_step.py` measure what they make of whole networks (docs/performance.md). None changes a result but for
rounding, so a processor on which the crossing lies elsewhere loses some time and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["THRESHOLDS", "Thresholds"]


@final
@dataclass(frozen=True)
class Thresholds:
    """Sizes in numbers (of weights, of results), but for `part_bytes`.

    product_weights    weights beyond which none is copied or laid out anew: fc6 has 103 M, and laying its 411 MB out
                       takes longer than laying out the windows of the few cells that it meets
    product_windows    training: numbers in those windows up to which that is so, and up to which they fit into memory
                       beside the weights (fc6 has 6.4 M for a padded image of 500x500)
    part_bytes         what a product lays out or converts at a time: as much as C's allocator keeps for the next turn
                       (it hands 32 MiB and more back to the system, and fresh pages are slow)
    split_terms        products a result is the sum of from which splitting floats into bytes is worth it: 256 channels
                       of 3x3, and only where the processor multiplies bytes sixteen times as fast (AMX)
    kept_transform     weights up to which their Winograd transform, four times as large, is kept between calls: making
                       it anew takes a tenth of the convolution
    winograd_results   results of a layer below which transforming its weights takes longer than what it saves
    winograd_results_kept   the same where the transform is kept, and only has to be read
    """

    product_weights: int = 1 << 24
    product_windows: int = 1 << 26
    part_bytes: int = 26 << 20
    split_terms: int = 2048
    kept_transform: int = 1 << 20
    winograd_results: int = 1024
    winograd_results_kept: int = 256


THRESHOLDS = Thresholds()
