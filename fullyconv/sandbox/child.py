"""What runs in the child: import the reader, confine, limit, read, answer. No foreign byte is read before.

Started as  python -I -S -c "...; main()"  with a JSON job on stdin and an open file for the answer. Exit codes:
0 the answer is a safetensors file, 3 it is a JSON error, anything else a crash.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from fullyconv import tensorfile
from fullyconv.errors import FullyconvError, InternalError
from fullyconv.sandbox import seccomp

__all__ = ["main"]

_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "ftplib.",
           "http.", "urllib.", "smtplib.", "os.kill", "webbrowser.", "ctypes.set_exception")  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "shutil.", "tempfile.")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Do the job on stdin and leave without any clean-up that foreign data could have bent."""
    job = json.load(sys.stdin)
    answer: int = job["answer"]
    try:
        function = _reader(job["function"])
        _confine(job)
        code = _answer(function(job["path"], **job["arguments"]), answer)
    except BaseException as error:
        code = _explain(error, answer)
    os._exit(code)


def _confine(job: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output"], job["output"]))
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"] + 5))
    sys.addaudithook(_hook(job["may_write"]))
    _limit_memory(job["memory"])
    if seccomp.supported():
        seccomp.confine(may_write=job["may_write"])


def _hook(may_write: bool) -> Any:
    """Python's own refusals: the second wall on Linux, the only one elsewhere."""
    refused = _EVENTS if may_write else _EVENTS + _CHANGES

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(refused):
            raise PermissionError(f"a reader of foreign files may not do {event}")
        if event == "open" and not may_write and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            raise PermissionError("a reader of foreign files may not open a file for writing")

    return hook


def _reader(name: str) -> Callable[..., Any]:
    """The function, with every module it names in `imports` loaded: they are ours, large, and must not count."""
    module, _, attribute = name.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    for needed in getattr(function, "imports", ()):
        importlib.import_module(needed)
    return function


def _limit_memory(extra: int) -> None:
    """Cap the address space at what the imports have mapped plus `extra` bytes."""
    mapped = 4 << 30  # where it cannot be asked
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, mapped + extra))


def _answer(result: Any, answer: int) -> int:
    tensors, info = result if isinstance(result, tuple) else (result, None)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise InternalError("A reader of foreign files must return a dict of tensors by name; please report it.")
    for chunk in tensorfile.chunks(tensors, {"info": json.dumps(info)}):
        piece = memoryview(chunk)
        while piece:
            piece = piece[os.write(answer, piece) :]
    return 0


def _explain(error: BaseException, answer: int) -> int:
    """Name and sentence of the error; only those of our own tree keep their class."""
    ours = isinstance(error, FullyconvError)
    told = {"ours": ours, "class": type(error).__name__, "message": str(error)[:2000]}
    os.pwrite(answer, json.dumps(told).encode() + b"\n", 0)
    return 3
