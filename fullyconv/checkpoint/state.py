"""Any nest of plain values, tensors and arrays as JSON plus named tensors, and back: equal in types and bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fullyconv.errors import DataError, InternalError, printable

if TYPE_CHECKING:
    import torch

    from fullyconv.tensorfile import TensorLike

__all__ = ["pack", "unpack"]

_TAG = "$"  # {"$": kind, "v": value} stands for what JSON has no word for


def pack(value: object) -> tuple[Any, dict[str, TensorLike]]:
    """(JSON tree, {name: tensor}) of a nest of dict, list, tuple, str, int, float, bool, None, bytes, torch tensors
    and numpy arrays. Names are the path ("optimizer.state.0.exp_avg"). Raises InternalError for any other type."""
    tensors: dict[str, TensorLike] = {}
    return _pack(value, "", tensors), tensors


def _pack(value: object, path: str, tensors: dict[str, TensorLike]) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: "float", "v": repr(float(value))}
    if isinstance(value, bytes | bytearray):
        return {_TAG: "bytes", "v": value.hex()}
    if isinstance(value, list | tuple):
        items = [_pack(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {_TAG: "tuple", "v": items}
    if isinstance(value, Mapping):
        return _pack_mapping(value, path, tensors)
    if isinstance(value, np.ndarray) or type(value).__module__.split(".")[0] == "torch":
        return _pack_tensor(value, path, tensors)
    raise InternalError(f"The state at {path or 'its root'} is a {type(value).__name__}, which cannot be stored.")


def _pack_mapping(value: Mapping[object, object], path: str, tensors: dict[str, TensorLike]) -> Any:
    if all(isinstance(k, str) for k in value) and _TAG not in value:
        return {k: _pack(v, f"{path}.{k}", tensors) for k, v in value.items()}
    pairs = [[_pack(k, path, tensors), _pack(v, f"{path}.{k}", tensors)] for k, v in value.items()]
    return {_TAG: "dict", "v": pairs}


def _pack_tensor(value: Any, path: str, tensors: dict[str, TensorLike]) -> Any:
    name = path.lstrip(".") or "value"
    while name in tensors:
        name += "_"
    tensors[name] = value
    return {_TAG: "array" if isinstance(value, np.ndarray) else "tensor", "v": name}


def unpack(tree: object, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `pack`; `tensors` are torch tensors. Raises DataError when the two do not belong together."""
    try:
        return _unpack(tree, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        cause = printable(f"{type(error).__name__}: {error}")[:200]
        raise DataError(f"The stored state cannot be read ({cause}); start from another checkpoint.") from error


def _unpack(node: object, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, list):
        return [_unpack(v, tensors) for v in node]
    if not isinstance(node, dict):
        return node
    if _TAG not in node:
        return {k: _unpack(v, tensors) for k, v in node.items()}
    kind, value = node[_TAG], node["v"]
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}
    if kind == "tuple":
        return tuple(_unpack(v, tensors) for v in value)
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "bytes":
        return bytes.fromhex(value)
    if kind == "float":
        return float(value)
    raise ValueError(f"unknown kind {kind!r}")
