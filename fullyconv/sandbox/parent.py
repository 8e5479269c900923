"""The parent's side: start the child, wait within a deadline, check its answer like any foreign file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fullyconv.sandbox.seccomp as seccomp
from fullyconv import errors, tensorfile
from fullyconv.errors import DataError, FullyconvError, MissingInput, TryAgain, UsageError, printable
from fullyconv.files import open_regular

if TYPE_CHECKING:
    import torch

__all__ = [
    "error_of",
    "explanation",
    "foreign_file",
    "read_foreign_weights",
    "reap",
    "result_of",
    "run",
    "start",
    "tell",
    "told_error",
    "walls",
]  # fmt: skip

MEMORY_FLOOR = 256 << 20  # bytes that even a reader of a tiny file may take above its imports
_ENTRY = "import sys; sys.path[:] = {paths!r}; from fullyconv.sandbox.child import main; main()"


def run(
    function: str,
    path: str | os.PathLike[str],
    arguments: Mapping[str, object] | None = None,
    *,
    memory: int | None = None,
    seconds: int = 120,
    numpy: bool = False,
) -> tuple[dict[str, Any], Any]:
    """Call "module:function"(path, **arguments) in a confined child; returns ({name: tensor}, JSON info or None).

    memory: bytes above what the imports cost (default 4 x the file + 256 MiB); seconds: CPU time. The attribute
    `imports` of the function names modules that it needs loaded before it is confined. Errors of ours come back as
    they were raised; a crash, a breach of a limit or any other exception is a DataError naming the file.
    """
    with foreign_file(path) as (where, file, size), tempfile.TemporaryFile() as answer:
        process = start({
            "kind": "once", "function": function, "path": os.path.abspath(where), "arguments": dict(arguments or {}),
            "memory": memory if memory is not None else 4 * size + MEMORY_FLOOR, "seconds": seconds,
            "output": 4 * size + MEMORY_FLOOR, "file": file, "answer": answer.fileno(),
        }, [file, answer.fileno()])  # fmt: skip
        try:
            process.wait(timeout=4 * seconds + 60)
        except subprocess.TimeoutExpired as error:
            raise DataError(f"Reading {printable(where)} took over {4 * seconds + 60} s, so it was stopped.") from error
        finally:
            reap(process)
        if process.returncode != 0:
            raise error_of(process.returncode, explanation(answer.fileno()), where)
        return result_of(answer.fileno(), where, numpy)


@contextlib.contextmanager
def foreign_file(path: str | os.PathLike[str]) -> Iterator[tuple[Path, int, int]]:
    """The file's path, an open descriptor and its size: the child is handed the descriptor and opens nothing itself.

    MissingInput when there is none, UsageError where nothing can be confined.
    """
    where = Path(path)
    if not where.is_file():
        raise MissingInput(f"There is no file {printable(where)}; check the path.")
    if sys.platform == "linux" and not seccomp.supported():
        raise UsageError("This processor's system calls cannot be confined, so foreign files are not read here.")
    descriptor = open_regular(where)
    try:
        yield where, descriptor, os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def start(job: Mapping[str, object], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """A child with `job` as its only line. `descriptors` are handed on.

    On Linux the process is the child's guardian, which leaves as the child leaves and takes it along when it is killed.
    """
    paths = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry)]
    kept = ("LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR")
    environment = {k: v for k, v in os.environ.items() if k in kept}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                    "LC_ALL": "C.UTF-8", "HDF5_PLUGIN_PRELOAD": "::"}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", "-c", _ENTRY.format(paths=paths)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        pass_fds=descriptors, env=environment, start_new_session=True, cwd="/",
    )  # fmt: skip
    try:
        tell(process, {**job, "parent": os.getpid(), "descriptors": list(descriptors)})
    except OSError as error:
        reap(process)
        raise TryAgain(f"The process that reads foreign files could not start ({error}); try again.") from error
    return process


def tell(process: subprocess.Popen[bytes], message: Mapping[str, object]) -> None:
    """Hand the child one line."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def reap(process: subprocess.Popen[bytes]) -> int:
    """Make sure that the child is gone; its exit code."""
    process.kill()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was buffered for a child that is gone
            process.stdin.close()
    return process.wait()


def explanation(answer: int) -> bytes:
    """What a child that failed wrote into its answer."""
    return os.pread(answer, 65536, 0).split(b"\n")[0]


def error_of(code: int, told: bytes, path: Path) -> FullyconvError:
    """What went wrong in a child that left with `code` and, perhaps, the explanation `told`."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGPROF):
        return DataError(f"{printable(path)} was refused: reading it took too long or too much memory.")
    if code == -signal.SIGSYS:
        return DataError(f"{printable(path)} was refused: it made its reader ask for what no reader may do.")
    if code < 0:
        name = signal.Signals(-code).name
        return DataError(f"{printable(path)} was refused: it crashed its reader ({name}), in a process of its own.")
    if code == 0:
        return DataError(f"{printable(path)} was refused: its reader gave no whole answer; get it anew.")
    found = told_error(told, path) if code == 3 else None
    return found or TryAgain(
        f"The process that reads {printable(path)} could not start or left early (code {code}); try again."
    )


def told_error(told: bytes, path: Path) -> FullyconvError | None:
    """The child's explanation as an error that names the file; None when it is none."""
    try:
        found = json.loads(told)
        kind, message = str(found["class"]), str(found["message"])
        known = getattr(errors, kind, None) if found["ours"] else None
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(known, type) and issubclass(known, FullyconvError):
        rebuilt = known.__new__(known)
        Exception.__init__(rebuilt, message)
        return rebuilt
    if kind == "MemoryError" or "can't allocate memory" in message or "Cannot allocate memory" in message:
        return DataError(f"{printable(path)} was refused: reading it takes far more memory than its size allows.")
    return DataError(f"{printable(path)} could not be read ({kind}: {printable(message[:300])}); get it anew.")


def result_of(answer: int, path: Path, numpy: bool) -> tuple[dict[str, Any], Any]:
    """The tensors and the info of a whole answer, checked like any safetensors file."""
    link = f"/dev/fd/{answer}"
    try:
        header = tensorfile.read_header(link)
        return tensorfile.load_tensors(link, numpy=numpy), json.loads(header.metadata.get("info", "null"))
    except (FullyconvError, ValueError) as error:
        raise DataError(f"{printable(path)} was refused: its reader gave no whole answer ({error}).") from error


def walls() -> dict[str, Any]:
    """Which walls stand around a child on this system: {"seccomp": bool, "landlock": its version or 0, "namespaces":
    kinds that the child has to itself}."""
    found: dict[str, Any] = run("fullyconv.sandbox.child:report_walls", __file__, numpy=True)[1]
    return found


def read_foreign_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """{name: CPU tensor} of a weights file someone else made, told by its content: PyTorch's zip and old formats
    (read in a confined child with weights_only=True, tensors alone) or safetensors. Nested {"state_dict": ...} is
    unwrapped. Raises DataError naming the file for everything else, MissingInput when there is none."""
    from fullyconv.sandbox.weight_files import is_pickled

    where = Path(path)
    if not where.is_file():
        raise MissingInput(f"There is no weights file {printable(where)}; check the path.")
    if not is_pickled(where):
        return tensorfile.load_tensors(where)
    run("fullyconv.sandbox.weight_files:scan_pickled", where)  # refuses most bad files before torch is loaded
    tensors, _ = run("fullyconv.sandbox.weight_files:read_pickled", where)
    return tensors
