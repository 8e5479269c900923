"""Readers that run in the child: MATLAB files of both kinds (SciPy for those up to v7, HDF5 from v7.3 on)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, printable

__all__ = ["read_hdf5", "read_variable"]


def read_variable(path: str, variable: str) -> dict[str, NDArray[Any]]:
    """{"value": the numbers of `variable`} ("S", or "GTcls.Segmentation" for a field of a struct); else DataError."""
    from scipy.io import loadmat

    name, *fields = variable.split(".")
    try:
        value = loadmat(path, variable_names=[name])[name]
        for key in fields:
            value = value[key][0, 0]
        return {"value": _numbers(np.asarray(value))}
    except MemoryError:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise DataError(
            f"{printable(path)} holds no {variable!r} that can be read ({type(error).__name__}: "
            f"{printable(error)[:100]}); unpack it again."
        ) from error


read_variable.imports = ("scipy.io",)  # type: ignore[attr-defined]


def read_hdf5(
    path: str, names: Sequence[str], index: int | None = None
) -> tuple[dict[str, NDArray[Any]], Mapping[str, Any]]:
    """({name: that dataset's item `index` of its first axis}, {"shapes": {name: shape}}), of `names` that are there.

    Without an index: the shapes alone, of every dataset at the top. Errors: DataError, for all that goes wrong.
    """
    import h5py

    try:
        with h5py.File(path, "r") as stored:
            sets = {n: stored[n] for n in stored if isinstance(stored.get(n), h5py.Dataset)}
            shapes = {n: list(s.shape) for n, s in sets.items()}
            if index is None:
                return {}, {"shapes": shapes}
            return {n: _numbers(np.asarray(sets[n][index])) for n in names if n in sets}, {"shapes": shapes}
    except MemoryError:
        raise
    except Exception as error:  # h5py raises whatever HDF5's state suggests
        raise DataError(f"{printable(path)} cannot be read as HDF5 ({printable(error)[:80]})") from error


read_hdf5.imports = ("h5py",)  # type: ignore[attr-defined]


def _numbers(value: NDArray[Any]) -> NDArray[Any]:
    """Plain numbers in this machine's byte order; ValueError for objects, text and the like."""
    if value.dtype.kind not in "biuf":
        raise ValueError(f"it is of type {value.dtype}, not numbers")
    return np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
