"""The guardian: a small process between parent and child that lives as long as either and ends the child with them.

It reads nothing foreign. It puts the child into namespaces of its own (no other process, no network, no shared memory
of others can be named there) where the kernel gives them, waits for it, and leaves as the child left. It ends the child
when the parent is gone - the process, not merely the thread that started us - however busy the child is; and the
kernel ends the child when the guardian is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import struct
from collections.abc import Collection
from typing import NoReturn

__all__ = ["drop_privileges", "watch"]

_NEW = {"user": 0x10000000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000}
_PDEATHSIG, _DUMPABLE = 1, 4  # PR_SET_
_PATIENCE = 5.0  # seconds between looks at the parent, should its signal ever be lost
_THREADS = 256  # of the child, in a user namespace of its own, where they can be counted
PID = struct.Struct("=i")


def watch(parent: int, kept: Collection[int], told: int | None = None) -> list[str]:
    """Become guardian and child; returns, in the child alone, the kinds of namespaces that it has to itself.

    parent: the process that started us; kept: the descriptors that the child uses (the guardian closes them); told: one
    of them, to which the child's process number is written first (`PID`), as the parent sees it.
    """
    signals = {signal.SIGCHLD, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _prctl(_PDEATHSIG, signal.SIGUSR1)  # also sent when the parent's thread ends: then the parent is still ours
    if os.getppid() != parent:
        os._exit(1)
    spaces = _own_namespaces()
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(ours)
        with contextlib.suppress(OSError):  # nobody listens any more
            if told is not None:
                os.write(told, PID.pack(child))
            os.write(theirs, b"g")
        for descriptor in (0, *kept):
            os.close(descriptor)
        _leave_as(_ended(child, parent, signals))
    os.close(theirs)
    _prctl(_PDEATHSIG, signal.SIGKILL)
    _wait_for_go(ours)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return spaces


def _wait_for_go(pipe: int) -> None:
    """The guardian lives and has said who we are; if it died before the kernel was told to end us with it, leave."""
    if os.read(pipe, 1) != b"g":
        os._exit(1)
    poll = select.poll()
    poll.register(pipe, 0)
    if poll.poll(0):  # hung up
        os._exit(1)
    os.close(pipe)


def _ended(child: int, parent: int, signals: Collection[int]) -> int:
    """The child's wait status; it is ended when the parent is gone."""
    while True:
        signal.sigtimedwait(signals, _PATIENCE)
        if os.getppid() != parent:
            os.kill(child, signal.SIGKILL)
            os._exit(1)
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status


def _leave_as(status: int) -> NoReturn:
    """End as the child ended: with its code, or by its signal."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _own_namespaces() -> list[str]:
    """The kinds of namespaces that this process, or from now on its children, have to themselves; [] if refused.

    The superuser needs no user namespace to make the others, and would lose the right to read others' libraries in it.
    """
    kinds = ["pid", "net", "ipc"] if os.geteuid() == 0 else ["user", "pid", "net", "ipc"]
    user, libc = os.geteuid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(sum(_NEW[kind] for kind in kinds)):
        return []
    if "user" in kinds:
        with contextlib.suppress(OSError), open("/proc/self/uid_map", "w") as table:
            table.write(f"{user} {user} 1")
    return kinds


def drop_privileges(spaces: Collection[str]) -> None:
    """In the child: no capability, not even in its own namespaces, no core, no look into its memory from outside."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))  # version 3, this process
    none = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.capset(header, none)
    _prctl(_DUMPABLE, 0)
    if "user" in spaces:
        resource.setrlimit(resource.RLIMIT_NPROC, (_THREADS, _THREADS))


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.prctl(option, value, 0, 0, 0)
