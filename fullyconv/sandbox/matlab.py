"""Readers that run in the child: MATLAB files of both kinds (SciPy for those up to v7, HDF5 from v7.3 on)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, printable
from fullyconv.sandbox.descriptors import handed_over

__all__ = ["read_hdf5", "read_variable"]

_STEPS = 64  # from name to name, through links of one file, before it counts as a circle


def read_variable(path: str, variable: str) -> dict[str, NDArray[Any]]:
    """{"value": the numbers of `variable`} ("S", or "GTcls.Segmentation" for a field of a struct); else DataError."""
    from scipy.io import loadmat

    name, *fields = variable.split(".")
    try:
        with handed_over(path) as file:
            value = loadmat(file, variable_names=[name])[name]
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

    Without an index: the shapes alone, of every dataset at the top. Errors: DataError, for all that goes wrong, and for
    a file that would have others read in its name.
    """
    import h5py

    try:
        with handed_over(path) as file, h5py.File(file, "r") as stored:
            sets = {n: _own(stored, n, path) for n in stored}
            sets = {n: s for n, s in sets.items() if isinstance(s, h5py.Dataset)}
            shapes = {n: list(s.shape) for n, s in sets.items()}
            if index is None:
                return {}, {"shapes": shapes}
            return {n: _numbers(np.asarray(sets[n][index])) for n in names if n in sets}, {"shapes": shapes}
    except (MemoryError, DataError):
        raise
    except Exception as error:  # h5py raises whatever HDF5's state suggests
        raise DataError(f"{printable(path)} cannot be read as HDF5 ({printable(error)[:80]})") from error


read_hdf5.imports = ("h5py",)  # type: ignore[attr-defined]


def _own(stored: Any, name: str, path: str) -> Any:
    """What `name` stands for, when every byte of it lies in this very file; DataError for what lies in another.

    Nothing is followed before it is known where it leads: links first, then how the dataset is stored.
    """
    import h5py

    place, parts = stored, [name]
    for _ in range(_STEPS):
        if not parts:
            return _whole(place, name, path)
        part = parts.pop(0)
        link = place.get(part, getlink=True) if part else h5py.HardLink()
        if isinstance(link, h5py.ExternalLink):
            raise _elsewhere(path, name, "a link to another file")
        if isinstance(link, h5py.SoftLink):
            place = stored if link.path.startswith("/") else place
            parts = [*link.path.split("/"), *parts]
        elif link is None:  # a link to nothing
            return None
        elif part:
            place = place[part]
    raise _elsewhere(path, name, "links without end")


def _whole(found: object, name: str, path: str) -> Any:
    import h5py

    if isinstance(found, h5py.Dataset):
        stored = found.id.get_create_plist()
        if stored.get_layout() == h5py.h5d.VIRTUAL:
            raise _elsewhere(path, name, "a virtual dataset")
        if stored.get_external_count():
            raise _elsewhere(path, name, "external storage")
    return found


def _elsewhere(path: str, name: str, kind: str) -> DataError:
    return DataError(
        f"{printable(path)} was refused: {printable(name)} is {kind}, and only what lies in the file itself is read; "
        "copy the values into it."
    )


def _numbers(value: NDArray[np.number]) -> NDArray[Any]:
    """Plain numbers in this machine's byte order; ValueError for objects, text and the like."""
    if value.dtype.kind not in "biuf":
        raise ValueError(f"it is of type {value.dtype}, not numbers")
    return np.ascontiguousarray(value.astype(value.dtype.newbyteorder("="), copy=False))
