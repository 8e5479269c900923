"""Counting (truth, prediction) pairs into the confusion table: numpy, compiled, or on the device where the tensors
are.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from fullyconv.errors import DataError, UnknownName, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    Array = npt.NDArray[Any] | Tensor

__all__ = ["confusion", "refuse_many_classes"]

Implementation = Literal["numba", "numpy", "torch"]
_MOST = 1 << 31  # pixels the kernel counts in one go: its counters have 32 bits
MOST_CLASSES = 16_384  # 2 GiB of counts
IMPLEMENTATIONS = ("numba", "numpy", "torch")


def refuse_many_classes(classes: int) -> None:
    """UsageError for a number of classes whose table (classes x classes x 8 bytes) cannot be made."""
    if not 1 <= classes <= MOST_CLASSES:
        raise UsageError(
            f"A table of {classes} classes cannot be made (each pair of classes is counted); give 1 to {MOST_CLASSES}: "
            "leave out classes that never occur, or join some."
        )


def confusion(
    labels: Array, predictions: Array, classes: int, ignore: int = 255, impl: Implementation | None = None
) -> Any:
    """int64 K x K pixel counts, rows = truth, of integer labels and predictions of one shape; `ignore` labels do not
    count.

    numpy in, numpy out; a tensor in, a tensor out on its device (sum tables to accumulate). A prediction under an
    ignored label may be anything. `impl`: "numba" where installed, else "numpy", for arrays and CPU tensors; "torch"
    elsewhere. Raises DataError for a label that is neither a class nor `ignore`, and for a prediction that is no
    class.
    """
    if tuple(labels.shape) != tuple(predictions.shape):
        raise UsageError(
            f"Labels of shape {tuple(labels.shape)} and predictions of shape {tuple(predictions.shape)} "
            "cannot be compared; bring the predictions to the labels' size."
        )
    refuse_many_classes(classes)
    if impl is None:
        impl = "torch" if _on_device(labels) or _on_device(predictions) else _fastest()
    if impl not in IMPLEMENTATIONS:
        raise UnknownName("implementation", str(impl), IMPLEMENTATIONS)
    if impl == "torch":
        return _by_torch(labels, predictions, classes, ignore)
    truth, guess = _integers(labels, "Labels"), _integers(predictions, "Predictions")
    counts = (_by_numba if impl == "numba" else _by_numpy)(truth, guess, classes, ignore)
    if isinstance(labels, np.ndarray):
        return counts
    import torch

    return torch.from_numpy(counts)


@functools.cache
def _fastest() -> Implementation:
    return "numba" if importlib.util.find_spec("numba") is not None else "numpy"


def _on_device(array: Array) -> bool:
    return not isinstance(array, np.ndarray) and array.device.type != "cpu"


def _integers(array: Array, what: str) -> npt.NDArray[Any]:
    flat = np.ascontiguousarray(array if isinstance(array, np.ndarray) else array.detach().numpy()).reshape(-1)
    if flat.dtype.kind not in "iub":
        raise UsageError(f"{what} of type {flat.dtype} cannot be counted; give integers.")
    return flat.view(np.uint8) if flat.dtype.kind == "b" else flat


def _by_numpy(
    truth: npt.NDArray[np.integer], guess: npt.NDArray[np.integer], classes: int, ignore: int
) -> npt.NDArray[np.int64]:
    if truth.dtype == guess.dtype == np.uint8:
        # Every pair of bytes has a cell: no mask, no comparison, and what is out of range is found in the table.
        pair = truth.astype(np.uint16)
        pair <<= 8
        pair |= guess
        return _inside(np.bincount(pair, minlength=65536).reshape(256, 256), classes, ignore)
    counted = truth != ignore
    truth, guess = truth[counted].astype(np.int64), guess[counted].astype(np.int64)
    _check(truth, classes, ignore, "Label")
    _check(guess, classes, ignore, "Prediction")
    return np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def _by_numba(
    truth: npt.NDArray[np.integer], guess: npt.NDArray[np.integer], classes: int, ignore: int, most: int = _MOST
) -> npt.NDArray[np.int64]:
    import fullyconv.metrics.counting_kernels as counting_kernels

    if truth.dtype == guess.dtype == np.uint8:
        width = min(classes + 1, 256)
        parts = (slice(start, start + most) for start in range(0, max(truth.size, 1), most))
        return _inside(sum(counting_kernels.count_bytes(truth[p], guess[p], width) for p in parts), classes, ignore)
    counts = counting_kernels.count(truth, guess, classes, ignore)
    if counts[classes].any() or counts[:, classes].any():
        counted = truth != ignore
        _check(truth[counted], classes, ignore, "Label")
        _check(guess[counted], classes, ignore, "Prediction")
    return np.ascontiguousarray(counts[:classes, :classes])


def _inside(counts: npt.NDArray[np.number], classes: int, ignore: int) -> npt.NDArray[np.int64]:
    """The K x K part of a table of all bytes; its last column stands for every prediction beyond."""
    if 0 <= ignore < 256:
        counts[ignore] = 0
    table = np.zeros((classes, classes), np.int64)
    seen = counts[:classes, :classes]
    table[: seen.shape[0], : seen.shape[1]] = seen
    if table.sum() == counts.sum():
        return table
    if counts[classes:].any():
        raise _bad_label(int(np.flatnonzero(counts[classes:].any(1))[0]) + classes, classes, ignore)
    raise _bad_prediction(int(np.flatnonzero(counts[:, classes:].any(0))[0]) + classes, classes)


def _check(values: Any, classes: int, ignore: int, what: str) -> None:
    bad = values[(values < 0) | (values >= classes)]
    if len(bad):
        raise _bad_label(int(bad[0]), classes, ignore) if what == "Label" else _bad_prediction(int(bad[0]), classes)


def _bad_label(value: int, classes: int, ignore: int) -> DataError:
    return DataError(
        f"Label {value} is neither one of {classes} classes nor the ignore value {ignore}; "
        "check the label files or the number of classes."
    )


def _bad_prediction(value: int, classes: int) -> DataError:
    return DataError(
        f"Prediction {value} (or one beyond the {classes} classes) cannot be counted; "
        "compare a model and labels of the same classes."
    )


def _by_torch(labels: Array, predictions: Array, classes: int, ignore: int) -> Tensor:
    import torch

    truth = torch.as_tensor(labels).reshape(-1).to(torch.int64)
    guess = torch.as_tensor(predictions).reshape(-1).to(truth)
    counted = truth != ignore
    wide = classes + 1  # the last row and column gather what is out of range, so that one look at the table finds it
    row = torch.where((truth >= 0) & (truth < classes), truth, classes)
    column = torch.where((guess >= 0) & (guess < classes), guess, classes)
    pair = torch.where(counted, row * wide + column, wide * wide)
    counts = torch.bincount(pair, minlength=wide * wide + 1)[:-1].reshape(wide, wide)
    if bool((counts[classes].sum() + counts[:, classes].sum()) > 0):
        _check(truth[counted], classes, ignore, "Label")
        _check(guess[counted], classes, ignore, "Prediction")
    return counts[:classes, :classes].contiguous()
