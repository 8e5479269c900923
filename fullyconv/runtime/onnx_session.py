"""onnxruntime: the one place that starts it, on the CPU."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv import processor
from fullyconv.errors import DataError, missing_extra, printable

__all__ = ["OnnxSession", "quiet_onnxruntime", "threads"]


@final
class OnnxSession:
    """One ONNX file, ready to run. Any number of threads may call."""

    def __init__(self, data: bytes, source: object, count: int = 0) -> None:
        """count: threads; 0 for `threads`. Raises DataError where onnxruntime refuses the file, MissingExtra where it
        is not installed."""
        try:
            onnxruntime = quiet_onnxruntime()
        except ModuleNotFoundError as error:
            raise (missing_extra(error, "An ONNX file") or error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = count or threads(), 4
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many kinds, all of its own
            cause = printable(error)[:200]
            raise DataError(f"{printable(source)} is refused by onnxruntime ({cause}); export it again.") from error
        self.source = source
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def __call__(
        self, fed: Mapping[str, NDArray[np.number]], wanted: Sequence[str] | None = None
    ) -> list[NDArray[Any]]:
        """The outputs that are `wanted` (all: None) for the arrays that are fed."""
        names = list(wanted or self.outputs)
        try:
            found: list[NDArray[Any]] = self._session.run(names, dict(fed))
        except Exception as error:
            size = " x ".join(str(n) for n in np.shape(next(iter(fed.values()))))
            raise DataError(f"{printable(self.source)} fails at {size}: {printable(error)[:200]}") from error
        return found


def quiet_onnxruntime() -> Any:
    """The module `onnxruntime`, told to send nothing: 1.32's wheel counts its use, under an id that it writes into the
    user's cache."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    import onnxruntime

    return onnxruntime


def threads() -> int:
    """OMP_NUM_THREADS where it is set, else the cores that were granted."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, math.ceil(processor.cores_granted()))
