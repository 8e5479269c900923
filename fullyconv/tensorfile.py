"""The safetensors format: a strict header reader, and a writer that streams, hashes and fsyncs on the way.

Layout (huggingface/safetensors, "Format"): 8 bytes header size (little-endian), JSON header
{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}, then the tensors' bytes, without
holes. Numpy arrays and torch CPU tensors both go in; the header part needs no torch.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, InternalError, StorageError, printable
from fullyconv.files import Sha256, Written, open_regular, require_space, storage_errors, write_file

if TYPE_CHECKING:
    import torch

    TensorLike = NDArray[np.generic] | torch.Tensor

__all__ = ["Header", "TensorInfo", "load_tensors", "read_header", "save_tensors", "stored_size"]

HEADER_LIMIT = 16 << 20  # bytes of JSON: some 100,000 tensors
_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "C64": 8, "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "F8_E5M2": 1, "F8_E4M3": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_NUMPY = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "C64": "<c8", "F32": "<f4", "I32": "<i4", "U32": "<u4",
    "F16": "<f2", "I16": "<i2", "U16": "<u2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_FROM_NUMPY = {np.dtype(code): name for name, code in _NUMPY.items()}
_TORCH = {
    "F64": "float64", "I64": "int64", "U64": "uint64", "C64": "complex64", "F32": "float32", "I32": "int32",
    "U32": "uint32", "F16": "float16", "BF16": "bfloat16", "I16": "int16", "U16": "uint16",
    "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_FROM_TORCH = {f"torch.{name}": code for code, name in _TORCH.items()}


class TensorInfo(NamedTuple):
    """dtype ("F32", "BF16", ...), shape, and where its bytes begin and end in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        found: torch.dtype = getattr(torch, _TORCH[self.dtype])
        return found


class Header(NamedTuple):
    """Tensors in file order, the file's string metadata and its exact size in bytes."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    size: int


# Writing


def stored_size(tensors: Mapping[str, TensorLike]) -> int:
    """Bytes that `save_tensors` will write, metadata apart."""
    head, _ = _head(tensors, {})
    return len(head) + sum(_info(t)[2] for t in tensors.values())


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, TensorLike], metadata: Mapping[str, str] | None = None
) -> Written:
    """Write numpy arrays or torch CPU tensors to a new file, fsynced; memory: two tensors at most are copied.

    Raises StorageError when the disk is too small (before anything is written) or fails.
    """
    require_space(os.path.dirname(os.fspath(path)) or ".", stored_size(tensors))
    return write_file(path, chunks(tensors, metadata or {}))


def chunks(tensors: Mapping[str, TensorLike], metadata: Mapping[str, str]) -> Iterator[memoryview | bytes]:
    """The file's bytes in order: the header, then each tensor's memory, uncopied where it is contiguous."""
    head, order = _head(tensors, metadata)
    yield head
    for name in order:
        yield _bytes_of(tensors[name])


def _head(tensors: Mapping[str, TensorLike], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The encoded header and the order of the tensors: largest element first (so all are aligned), then by name."""
    info = {name: _info(tensor) for name, tensor in tensors.items()}
    order = sorted(info, key=lambda name: (-_SIZES[info[name][0]], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        dtype, shape, size = info[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, order


def _info(tensor: TensorLike) -> tuple[str, tuple[int, ...], int]:
    shape = tuple(int(n) for n in tensor.shape)
    dtype = _FROM_NUMPY.get(tensor.dtype) if isinstance(tensor, np.ndarray) else _FROM_TORCH.get(str(tensor.dtype))
    if dtype is None:
        raise InternalError(f"A tensor of type {tensor.dtype} cannot be stored; convert it to a plain type first.")
    return dtype, shape, math.prod(shape) * _SIZES[dtype]


def _bytes_of(tensor: TensorLike) -> memoryview:
    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
    array: NDArray[np.uint8] = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return array.data


# Reading


def read_header(path: str | os.PathLike[str]) -> Header:
    """Parse and check the header against the file's real size. No torch, no allocation beyond the header.

    Refuses (DataError naming the file): a header that is cut, too large or no JSON object; unknown dtypes; negative or
    overflowing shapes; offsets that overlap, leave holes, leave the file or disagree with dtype x shape.
    """
    fd = open_regular(path)
    try:
        with storage_errors("Reading", path):
            return _read_header(fd, os.fstat(fd).st_size)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        raise DataError(f"{printable(path)} is damaged or no safetensors file ({error}); get it anew.") from error
    finally:
        os.close(fd)


def _read_header(fd: int, size: int) -> Header:
    if size < 8:
        raise ValueError(f"{size} bytes are too few")
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
    if length > min(HEADER_LIMIT, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    text = os.pread(fd, length, 8)
    if len(text) != length or not text.startswith(b"{"):
        raise ValueError("its header is cut or does not begin with {")
    entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    metadata = entries.pop("__metadata__", {})
    if not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata holds more than strings")
    tensors = {name: _entry(name, entry, 8 + length) for name, entry in entries.items()}
    position = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise ValueError(f"tensor {printable(name)} begins at {info.begin}, not at {position}")
        position = info.end
    if position != size:
        raise ValueError(f"it has {size} bytes, its header accounts for {position}")
    return Header(tensors, metadata, size)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in its header")
    return found


def _entry(name: str, entry: Mapping[str, Any], start: int) -> TensorInfo:
    if set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _SIZES:
        raise ValueError(f"tensor {printable(name)} has an unknown description")
    shape, (begin, end) = entry["shape"], entry["data_offsets"]
    if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"tensor {printable(name)} has the shape {shape}")
    if end - begin != math.prod(shape) * _SIZES[entry["dtype"]]:
        raise ValueError(f"tensor {printable(name)} claims {end - begin} bytes for {entry['dtype']} {shape}")
    return TensorInfo(entry["dtype"], tuple(shape), start + begin, start + end)


def load_tensors(path: str | os.PathLike[str], *, sha256: str | None = None, numpy: bool = False) -> dict[str, Any]:
    """Every tensor of the file (torch CPU tensors, or numpy arrays), read once; with `sha256`, of these very bytes.

    Nothing is returned unless the digest matches: DataError names the file.
    """
    header = read_header(path)
    fd = open_regular(path)
    try:
        with storage_errors("Reading", path), Sha256() as digest:
            tensors = _load(fd, path, header, None if sha256 is None else digest, numpy)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise DataError(
                    f"{printable(path)} is damaged: its sha256 is not the recorded one; restore it from a copy."
                )
            return tensors
    finally:
        os.close(fd)


def _load(fd: int, path: str | os.PathLike[str], header: Header, digest: Sha256 | None, numpy: bool) -> dict[str, Any]:
    order = sorted(header.tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    start = min((info.begin for info in header.tensors.values()), default=header.size)
    if digest is not None:
        digest.update(memoryview(os.pread(fd, start, 0)))
    os.lseek(fd, start, os.SEEK_SET)
    tensors: dict[str, Any] = {}
    for name, info in order:
        tensors[name], memory = _empty(info, numpy)
        _fill(fd, path, memory, digest)
    return {name: tensors[name] for name in header.tensors}


def _empty(info: TensorInfo, numpy: bool) -> tuple[Any, memoryview]:
    """An uninitialised tensor and its memory."""
    if numpy:
        if info.dtype not in _NUMPY:
            raise DataError(f"Numpy has no type for {info.dtype}; read this file with torch.")
        array = np.empty(info.shape, _NUMPY[info.dtype])
        return array, array.reshape(-1).view(np.uint8).data
    import torch

    tensor = torch.empty(info.shape, dtype=info.torch_dtype)
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data


def _fill(fd: int, path: str | os.PathLike[str], memory: memoryview, digest: Sha256 | None) -> None:
    while memory:
        count = os.readv(fd, [memory[: 4 << 20]])
        if not count:
            raise StorageError(f"{printable(path)} became shorter while it was read; leave it alone and try again.")
        if digest is not None:
            digest.update(memory[:count])
        memory = memory[count:]
