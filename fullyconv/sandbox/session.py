"""A child that stays: for data sets of thousands of foreign files, where a process for each would cost more than
reading it. A process and each of its forked workers has a child of its own; it ends with them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import fullyconv.sandbox.guardian as guardian
import fullyconv.sandbox.seccomp as seccomp
from fullyconv.errors import DataError, printable
from fullyconv.sandbox.child import DONE, REFUSED
from fullyconv.sandbox.parent import error_of, explanation, foreign_file, reap, result_of, start, told_error

__all__ = ["Session"]

GRACE = 60  # seconds that a child may take beyond its CPU time, for a slow disk or a crowded machine
_LOOK = 0.25  # seconds between looks at the CPU time that a child has taken

_open: weakref.WeakSet[Session] = weakref.WeakSet()


@final
class _Child:
    """One running child: its answers come in `answer`, each announced by a byte from `said`."""

    def __init__(self, function: str, memory: int, seconds: int) -> None:
        self.answer = tempfile.TemporaryFile()  # noqa: SIM115 (closed by let_go)
        self.control, control = socket.socketpair()
        self.status, status = os.pipe()
        number = self.answer.fileno()
        job = {"kind": "session", "function": function, "answer": number, "said": status, "memory": memory,
               "output": memory, "seconds": seconds, "control": control.fileno()}  # fmt: skip
        self._number = 0 if seccomp.supported() else -1  # of the process that reads, to be told by its guardian
        try:
            self.process = start(job, [number, status, control.fileno()])
        except BaseException:
            self.let_go()
            raise
        finally:
            os.close(status)
            control.close()

    def ask(self, message: Mapping[str, object], descriptor: int) -> None:
        """Hand it one line and the file it is about. One that is gone says so by its silence."""
        line = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(line[socket.send_fds(self.control, [line], [descriptor]) :])

    def heard(self, seconds: float) -> bytes | None:
        """What it says within so many seconds; b"" when it is gone, None when it said nothing."""
        poll = select.poll()
        poll.register(self.status, select.POLLIN)
        if not poll.poll(1000 * seconds):
            return None
        if self._number == 0:
            told = os.read(self.status, guardian.PID.size)
            self._number = guardian.PID.unpack(told)[0] if len(told) == guardian.PID.size else -1
            return None if self._number > 0 else b""
        return os.read(self.status, 1)

    def used(self) -> float:
        """Seconds of CPU time it has taken in all; 0 where that cannot be asked."""
        if self._number <= 0:
            return 0.0
        with contextlib.suppress(OSError):  # it has just ended
            return time.clock_gettime((~self._number << 3) | 2)  # the clock of another process: linux/posix-timers.h
        return 0.0

    def close(self) -> int:
        """End it; its exit code."""
        self.let_go()
        return reap(self.process)

    def let_go(self) -> None:
        os.close(self.status)
        self.control.close()
        self.answer.close()


@final
class Session:
    """`ask(path, ...)` calls one reader function in a confined child that serves many files, one after the other.

    memory: bytes above what the reader's imports cost, for every answer and in all; seconds: CPU time for one file, and
    4 times as long, and `grace` seconds beyond, by the clock. After a crash or a breach of a limit the child is
    replaced. Thread-safe; a forked process starts one of its own.
    """

    def __init__(self, function: str, *, memory: int = 1 << 30, seconds: int = 60, grace: float = GRACE) -> None:
        self._function, self._memory, self._seconds, self._grace = function, memory, seconds, grace
        self._lock = threading.Lock()
        self._child: _Child | None = None
        _open.add(self)

    def ask(self, path: str | os.PathLike[str], arguments: Mapping[str, object]) -> tuple[dict[str, Any], Any]:
        """({name: numpy array}, JSON info) as `sandbox.run` gives them, with its errors."""
        with foreign_file(path) as (where, descriptor, _), self._lock:
            if self._child is None:
                self._child = _Child(self._function, self._memory, self._seconds)
            child, failed = self._child, True
            try:
                os.ftruncate(child.answer.fileno(), 0)
                child.ask({"path": os.path.abspath(where), "arguments": dict(arguments)}, descriptor)
                message = self._heard(child, where)
                if message == DONE:
                    return result_of(child.answer.fileno(), where, numpy=True)
                refusal = told_error(explanation(child.answer.fileno()), where) if message == REFUSED else None
                if refusal is not None:
                    failed = False
                    raise refusal
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(timeout=10)
                child.process.kill()
                raise error_of(child.process.wait(), explanation(child.answer.fileno()), where)
            except BaseException:
                if failed:
                    self._child = None
                    child.close()
                raise

    def _heard(self, child: _Child, where: Path) -> bytes:
        """What the child says, b"" when it is gone; DataError when it computes or stands still for too long."""
        end, begun = time.monotonic() + 4 * self._seconds + self._grace, child.used()
        while (left := end - time.monotonic()) > 0 and child.used() - begun <= self._seconds:
            message = child.heard(min(left, _LOOK))
            if message is not None:
                return message
        raise DataError(f"Reading {printable(where)} took too long, so it was stopped; get it anew.")

    def close(self) -> None:
        """End the child; the next `ask` starts another."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # half made, or at the interpreter's end
            self.close()

    def _forget(self) -> None:
        """In a forked process: the child is the parent's; drop our ends, so that it ends with the parent."""
        child, self._child, self._lock = self._child, None, threading.Lock()
        if child is not None:
            child.let_go()
            with contextlib.suppress(OSError):
                os.close(child.process.stdin.fileno())  # type: ignore[union-attr]
            child.process.returncode = 0  # not ours to wait for


def _forget_children() -> None:
    for session in list(_open):
        session._forget()


os.register_at_fork(after_in_child=_forget_children)
