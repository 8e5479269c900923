"""Readers that run in the child: PyTorch's two pickle formats, scanned without executing anything before torch sees
them, then torch's own weights_only reader. Never a fallback to anything laxer."""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from fullyconv.errors import DataError, printable
from fullyconv.files import open_regular
from fullyconv.sandbox.descriptors import handed_over

__all__ = ["is_pickled", "read_pickled", "scan_pickled"]

# protocol-2 pickle of torch's magic number 0x1950a86a20f9469cfc6c: the format before torch 1.6
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_ZIP_MAGIC = b"PK\x03\x04"
_KINDS = {
    b"PK\x05\x06": "an empty zip",
    b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
    b"\x89HDF": "an HDF5 file", b"MATLAB": "a MATLAB file", b"\x93NUMPY": "a numpy file", b"<": "a web page",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
}  # fmt: skip
# Of an archive, of its pickle in bytes and of its instructions: networks have thousands of tensors of
# some tens of instructions each.
_ENTRIES, _PICKLE_LIMIT, _STEPS = 200_000, 64 << 20, 20_000_000
_TYPES = (
    "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble Untyped QInt8 QInt32 QUInt8"
)
_DTYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 complex128 "
    "float8_e4m3fn float8_e5m2 Size device"
)
_ALLOWED = {
    "collections OrderedDict",
    "collections Counter",
    "collections defaultdict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._tensor _rebuild_from_type_v2",
    "torch.nn.parameter Parameter",
    "torch Tensor",
    "torch.storage UntypedStorage",
    "torch.serialization _get_layout",
    *(f"torch {name}Storage" for name in _TYPES.split()),
    *(f"torch.storage {name}Storage" for name in _TYPES.split()),
    *(f"torch {name}" for name in _DTYPES.split()),
}  # fmt: skip
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")


_BROKEN = (
    ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, KeyError, IndexError, OverflowError, RuntimeError,
    struct.error, zlib.error, OSError,
)  # fmt: skip


def is_pickled(path: Path) -> bool:
    """True for PyTorch's formats, False for what looks like safetensors; DataError for all else. Reads 64 bytes."""
    fd = open_regular(path)
    try:
        head = os.pread(fd, 64, 0)
    finally:
        os.close(fd)
    if head.startswith((_ZIP_MAGIC, _OLD_MAGIC)):
        return True
    if head[8:9] == b"{" and head[6:8] == b"\0\0":
        return False
    kind = next((name for magic, name in _KINDS.items() if head.lstrip()[: len(magic)] == magic), None)
    if not head:
        kind = "empty"
    raise DataError(
        f"{printable(path)} is {kind or 'of an unknown kind'}; weights come as .safetensors or as PyTorch's .pt/.pth."
    )


def scan_pickled(path: str) -> dict[str, Any]:
    """Raise DataError unless the file can only make tensors: nothing in it is executed. Needs no torch. Returns {}."""
    try:
        with handed_over(path) as file:
            if file.read(4) == _ZIP_MAGIC:
                _scan_zip(path, file)
            else:
                file.seek(0)
                for _ in range(5):  # magic, protocol, system, object, storage keys
                    _scan_pickle(file, path)
    except _BROKEN as error:
        raise DataError(f"{printable(path)} is damaged ({printable(error)}); get it anew.") from error
    return {}


def _scan_zip(path: str, file: BinaryIO) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > _ENTRIES:
            raise ValueError(f"{len(entries)} entries")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise ValueError(f"{entry.filename!r} is compressed or encrypted, which PyTorch never writes")
            if entry.file_size != entry.compress_size:
                raise ValueError(f"{entry.filename!r} lies about its size")
        if sum(entry.file_size for entry in entries) > file.seek(0, os.SEEK_END):
            raise ValueError("its entries claim more bytes than it has")
        names = [entry.filename for entry in entries]
        if len(set(names)) != len(names):
            raise ValueError("a name occurs twice in it")
        _check_names(names, path)
        pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
        if [entry.filename.split("/")[1:] for entry in pickles] != [["data.pkl"]]:
            raise ValueError("it is a program or a model archive, not weights; save model.state_dict() instead")
        if pickles[0].file_size > _PICKLE_LIMIT:
            raise ValueError(f"its index has {pickles[0].file_size} bytes")
        with archive.open(pickles[0]) as stream:
            _scan_pickle(stream, path)


def _check_names(names: list[str], path: str) -> None:
    top = {name.split("/")[0] for name in names}
    if len(top) != 1:
        raise ValueError("it has several top folders")
    for name in names:
        parts = name.split("/")
        if ".." in parts or "" in parts or "\\" in name or "\0" in name:
            raise ValueError(f"the entry {name!r} leaves the archive")
        if parts[1] == "code" or parts[1] in ("constants.pkl", "MAR-INF", "models"):
            raise ValueError("it is a TorchScript or exported program; save model.state_dict() instead")


def _scan_pickle(stream: IO[bytes], path: str) -> None:
    """Walk the opcodes of one pickle, executing none: every name it would import must be one that makes tensors."""
    for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if step > _STEPS:
            raise ValueError("its index is endless")
        if opcode.name == "GLOBAL" and argument not in _ALLOWED:
            raise DataError(
                f"{printable(path)} was refused: it would call {printable(str(argument).replace(' ', '.')[:100])}, and "
                "only tensors are read; save model.state_dict() alone, or as safetensors."
            )
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"):
            raise DataError(
                f"{printable(path)} was refused: it makes objects ({opcode.name}), and only tensors are read; "
                "save model.state_dict() with torch.save's default protocol."
            )


def read_pickled(path: str) -> dict[str, Any]:
    """{name: tensor} by torch.load(weights_only=True), after the scan."""
    import torch

    scan_pickled(path)

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        raise DataError(f"torch {torch.__version__} reads foreign weights unsafely; install torch 2.10 or later.")
    try:
        with handed_over(path) as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            size = file.seek(0, os.SEEK_END)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, IndexError, OSError) as error:
        if "memory" in str(error):
            raise MemoryError from error
        reason = printable(str(error).splitlines()[0][:200]) if str(error) else type(error).__name__
        raise DataError(f"{printable(path)} could not be read as weights ({reason}).") from error
    except Exception as error:  # pickle.UnpicklingError, named without importing that module
        raise DataError(f"{printable(path)} was refused: PyTorch's weights_only reader rejects it.") from error
    return _plain(_unwrap(loaded, path), path, size)


read_pickled.imports = ("torch",)  # type: ignore[attr-defined]


def _unwrap(loaded: object, path: str) -> Mapping[str, Any]:
    """The mapping of tensors, possibly one level down under a customary key."""
    if isinstance(loaded, Mapping):
        for key in _WRAPPERS:
            if isinstance(loaded.get(key), Mapping):
                loaded = loaded[key]
                break
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise DataError(f"{printable(path)} holds a {type(loaded).__name__}, not tensors by name; save a state_dict().")
    return loaded


def _plain(found: Mapping[str, object], path: str, size: int) -> dict[str, Any]:
    """Dense CPU tensors, whose sizes are covered by the file's: a stride of 0 must not turn bytes into gigabytes."""
    import torch

    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise DataError(f"{printable(path)} holds no tensors by name; save model.state_dict().")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise DataError(f"{printable(path)}: {printable(name)} is no plain dense tensor; convert it before saving.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise DataError(f"{printable(path)}: {printable(name)} claims more elements than the file has.")
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    if total > 4 * size:
        raise DataError(f"{printable(path)} claims {total} bytes of tensors, far more than it has.")
    return {name: tensor.detach() for name, tensor in tensors.items()}
