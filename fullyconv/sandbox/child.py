"""What runs in the child: import the reader, limit, confine, read, answer. No foreign byte is read before.

Started as  python -I -S -c "...; main()"  with a JSON job as the first line on stdin and the descriptors it names.
Kinds of jobs:

once     one answer into the open file `answer`. Exit codes: 0 a safetensors file, 3 a JSON error, else a crash.
session  one such answer for each line on the socket `control`, which brings the file's descriptor along; each answer is
         announced on the pipe `said` as DONE or REFUSED.
stream   the reader yields (kind, bytes), which go as frames into the pipe `answer` (`FRAME`; the last one is END or
         ERROR).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from array import array
from collections.abc import Callable, Collection, Iterator
from typing import Any

import fullyconv.sandbox.descriptors as given
import fullyconv.sandbox.guardian as guardian
import fullyconv.sandbox.landlock as landlock
import fullyconv.sandbox.seccomp as seccomp
from fullyconv import tensorfile
from fullyconv.errors import FullyconvError, InternalError

__all__ = ["DONE", "END", "ERROR", "FRAME", "REFUSED", "main", "report_walls"]

FRAME = struct.Struct("=cQ")  # kind, length of what follows
END, ERROR = b"E", b"X"
DONE, REFUSED = b"D", b"R"

_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "ftplib.",
           "http.", "urllib.", "smtplib.", "os.kill", "webbrowser.", "ctypes.set_exception")  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "shutil.", "tempfile.")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Do the job on stdin and leave without any clean-up that foreign data could have bent."""
    job = json.loads(sys.stdin.buffer.readline())
    code = 0
    spaces = guardian.watch(job["parent"], job["descriptors"], job.get("said")) if seccomp.supported() else []
    try:
        function = _reader(job["function"])
        control = _control(job)
        if job["kind"] != "session":
            given.hand(job["path"], job["file"])
        _confine(job, spaces)
        if job["kind"] == "session":
            code = _serve(function, job, control)
        elif job["kind"] == "stream":
            _stream(function(job["path"], **job["arguments"]), job["answer"])
        else:
            _answer(function(job["path"], **job["arguments"]), job["answer"])
    except BaseException as error:
        told = _explain(error)
        if job["kind"] == "stream":
            _frame(job["answer"], ERROR, told)
        else:
            os.lseek(job["answer"], 0, os.SEEK_SET)
            _write(job["answer"], told + b"\n")
        code = 3
    os._exit(code)


def _control(job: dict[str, Any]) -> Any:
    """The socket that a session's files come over; made before no socket can be."""
    if job["kind"] != "session":
        return None
    import _socket  # the module around it costs more to load than this child's other modules

    return _socket.socket(fileno=job["control"])


def _request(control: socket.socket) -> dict[str, Any] | None:
    """The next line, its file handed over; None when the parent has left."""
    line, descriptors = b"", array("i")
    while not line.endswith(b"\n"):
        piece, ancillary, _, _ = control.recvmsg(1 << 16, 64)
        if not piece:
            return None
        line += piece
        for _, _, content in ancillary:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    request: dict[str, Any] = json.loads(line)
    given.hand(request["path"], descriptors[0])
    return request


def _serve(function: Callable[..., Any], job: dict[str, Any], control: socket.socket) -> int:
    """Answer line after line. A refusal of our own is an answer like another; any other error is the last one."""
    while request := _request(control):
        os.lseek(job["answer"], 0, os.SEEK_SET)
        _limit_file(job["seconds"])
        try:
            _answer(function(request["path"], **request["arguments"]), job["answer"])
        except BaseException as error:
            os.lseek(job["answer"], 0, os.SEEK_SET)
            _write(job["answer"], _explain(error) + b"\n")
            if not isinstance(error, FullyconvError):
                return 3
            os.write(job["said"], REFUSED)
        else:
            os.write(job["said"], DONE)
        _limit_file(0)
    return 0


def _limit_file(seconds: float) -> None:
    """End this process after so much CPU time; on Linux the parent counts, since here it could be lifted."""
    if not seccomp.supported():
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _confine(job: dict[str, Any], spaces: Collection[str]) -> None:
    """Limits first, none of which can be raised again; then the walls, from the outer to the inner."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["output"], job["output"]))
    if job["kind"] != "session":
        resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    _limit_memory(job["memory"])
    version = 0
    if seccomp.supported():
        version = landlock.restrict_files()
        guardian.drop_privileges(spaces)
    sys.addaudithook(_refuse)
    if seccomp.supported():
        seccomp.confine()
    _walls.update(seccomp=seccomp.supported(), landlock=version, namespaces=list(spaces))


_walls: dict[str, Any] = {}


def report_walls(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A reader of nothing: which walls stand around the child that it runs in."""
    return {}, dict(_walls)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Python's own refusals: the second wall on Linux, the only one elsewhere."""
    if event.startswith(_EVENTS + _CHANGES):
        raise PermissionError(f"a reader of foreign files may not do {event}")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        raise PermissionError("a reader of foreign files may not open a file for writing")


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


def _answer(result: object, answer: int) -> None:
    tensors, info = result if isinstance(result, tuple) else (result, None)
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise InternalError("A reader of foreign files must return a dict of tensors by name; please report it.")
    for chunk in tensorfile.chunks(tensors, {"info": json.dumps(info)}):
        _write(answer, chunk)


def _stream(frames: Iterator[tuple[bytes, bytes]], answer: int) -> None:
    for kind, content in frames:
        _frame(answer, kind, content)
    _frame(answer, END, b"")


def _frame(answer: int, kind: bytes, content: bytes) -> None:
    _write(answer, FRAME.pack(kind, len(content)))
    _write(answer, content)


def _write(fd: int, content: bytes | memoryview) -> None:
    piece = memoryview(content)
    while piece:
        piece = piece[os.write(fd, piece) :]


def _explain(error: BaseException) -> bytes:
    """Name and sentence of the error; only those of our own tree keep their class."""
    ours = isinstance(error, FullyconvError)
    return json.dumps({"ours": ours, "class": type(error).__name__, "message": str(error)[:2000]}).encode()
