"""The parent's side: start the child, wait within a deadline, check its answer like any foreign file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fullyconv import errors, tensorfile
from fullyconv.errors import DataError, FullyconvError, MissingInput, TryAgain, UsageError, printable
from fullyconv.sandbox import seccomp

if TYPE_CHECKING:
    import torch

__all__ = ["read_foreign_weights", "run"]

MEMORY_FLOOR = 256 << 20  # bytes that even a reader of a tiny file may take above its imports
_ENTRY = "import sys; sys.path[:] = {paths!r}; from fullyconv.sandbox.child import main; main()"


def run(
    function: str,
    path: str | os.PathLike[str],
    arguments: Mapping[str, Any] | None = None,
    *,
    memory: int | None = None,
    seconds: int = 120,
    numpy: bool = False,
    may_write: bool = False,
) -> tuple[dict[str, Any], Any]:
    """Call "module:function"(path, **arguments) in a confined child; returns ({name: tensor}, JSON info or None).

    memory: bytes above what the imports cost (default 4 x the file + 256 MiB); seconds: CPU time. The attribute
    `imports` of the function names modules that it needs loaded before it is confined. Errors of ours come back as
    they were raised; a crash, a breach of a limit or any other exception is a DataError naming the file.
    """
    where = Path(path)
    if not where.is_file():
        raise MissingInput(f"There is no file {printable(where)}; check the path.")
    if sys.platform == "linux" and not seccomp.supported():
        raise UsageError("This processor's system calls cannot be confined, so foreign files are not read here.")
    size = where.stat().st_size
    job = {
        "function": function, "path": os.path.abspath(where), "arguments": dict(arguments or {}),
        "memory": memory if memory is not None else 4 * size + MEMORY_FLOOR, "seconds": seconds,
        "output": 4 * size + MEMORY_FLOOR, "may_write": may_write,
    }  # fmt: skip
    with tempfile.TemporaryFile() as answer:
        code = _child({**job, "answer": answer.fileno()}, answer.fileno(), seconds, where)
        if code != 0:
            raise _error(code, answer.fileno(), where)
        return _result(answer.fileno(), where, numpy)


def _child(job: dict[str, Any], answer: int, seconds: int, path: Path) -> int:
    """Start the child, hand it the job, wait; its exit code."""
    paths = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
    kept = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
    environment = {k: v for k, v in os.environ.items() if k in kept}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _ENTRY.format(paths=paths)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=[answer], env=environment, start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        process.communicate(json.dumps(job).encode(), timeout=4 * seconds + 60)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"Reading {printable(path)} took over {4 * seconds + 60} s, so it was stopped.") from error
    finally:
        process.kill()
        process.wait()
    return process.returncode


def _error(code: int, answer: int, path: Path) -> FullyconvError:
    """What went wrong in the child, as an error that names the file."""
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return DataError(f"{printable(path)} was refused: reading it took too long or too much memory.")
    if code < 0:
        name = signal.Signals(-code).name
        return DataError(f"{printable(path)} was refused: it crashed its reader ({name}), in a process of its own.")
    try:
        told = json.loads(os.pread(answer, 65536, 0).split(b"\n")[0])
        kind, message = str(told["class"]), str(told["message"])
        known = getattr(errors, kind, None) if told["ours"] else None
    except (ValueError, KeyError, TypeError):
        return TryAgain(f"The process that reads {printable(path)} could not start (code {code}); try again.")
    if isinstance(known, type) and issubclass(known, FullyconvError):
        rebuilt = known.__new__(known)
        Exception.__init__(rebuilt, message)
        return rebuilt
    if kind == "MemoryError" or "can't allocate memory" in message or "Cannot allocate memory" in message:
        return DataError(f"{printable(path)} was refused: reading it takes far more memory than its size allows.")
    return DataError(f"{printable(path)} could not be read ({kind}: {printable(message[:300])}); get it anew.")


def _result(answer: int, path: Path, numpy: bool) -> tuple[dict[str, Any], Any]:
    link = f"/dev/fd/{answer}"
    try:
        header = tensorfile.read_header(link)
        return tensorfile.load(link, numpy=numpy), json.loads(header.metadata.get("info", "null"))
    except (FullyconvError, ValueError) as error:
        raise DataError(f"{printable(path)} was refused: its reader gave no whole answer ({error}).") from error


def read_foreign_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """{name: CPU tensor} of a weights file someone else made, told by its content: PyTorch's zip and old formats
    (read in a confined child with weights_only=True, tensors alone) or safetensors. Nested {"state_dict": ...} is
    unwrapped. Raises DataError naming the file for everything else, MissingInput when there is none."""
    from fullyconv.sandbox.weights import is_pickled

    where = Path(path)
    if not where.is_file():
        raise MissingInput(f"There is no weights file {printable(where)}; check the path.")
    if not is_pickled(where):
        return tensorfile.load(where)
    run("fullyconv.sandbox.weights:scan_pickled", where)  # refuses most bad files before torch is loaded
    tensors, _ = run("fullyconv.sandbox.weights:read_pickled", where)
    return tensors
