"""The kernel's first wall: which system calls the child may make, and with which arguments (Linux, x86-64 and arm64).

An allow-list. What a reader needs to read, compute, answer and run threads is let through; everything else fails with
EPERM, so that Python sees an ordinary OSError; calls that glibc itself replaces by older ones fail with ENOSYS; and
what no reader ever asks for (other processes' memory, programs for the kernel, mounts) ends the child on the spot.

A filter sees numbers and arguments, not what a pointer points to: which files may be opened is Landlock's matter.
Filter program: linux/filter.h, linux/seccomp.h. Numbers: `sandbox.calls`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from fullyconv.sandbox.calls import ABSENT, ALLOWED, DEADLY, NUMBERS

__all__ = ["Instruction", "confine", "program", "supported"]

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant

_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _JEQ, _JGE, _JSET, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # the x32 calls of x86-64 have their own numbers
_NEWEST = 434  # from here on both architectures count alike; what is not listed did not exist for this table

_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 1030
_TCGETS, _FIONREAD, _FIONCLEX, _FIOCLEX = 0x5401, 0x541B, 0x5450, 0x5451
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_WRITE_AND_EXECUTE, _EXECUTE = 6, 4
# A thread as glibc and musl make one, and nothing else: no process, no namespace, nothing traced.
_THREAD = 0x00010000 | 0x00000100 | 0x00000800  # THREAD, VM, SIGHAND
_THREAD_MAY = _THREAD | 0x00000200 | 0x00000400 | 0x00040000 | 0x00080000 | 0x00100000 | 0x00200000 | 0x00400000
# O_LARGEFILE is 0x8000 on x86-64 and 0x20000 on arm64, where 0x8000 is O_NOFOLLOW: either may be given.
_READING = os.O_CLOEXEC | os.O_NONBLOCK | getattr(os, "O_DIRECTORY", 0) | os.O_NOCTTY | 0x8000 | 0x20000


def supported() -> bool:
    """Whether this system's calls are in the table."""
    return sys.platform == "linux" and platform.machine() in _ARCHES and sys.maxsize > 2**32


def confine() -> None:
    """From here on this process (every thread) can read, compute and answer, and nothing else, for good.

    Raises OSError when the kernel refuses the filter.
    """
    which, _ = _ARCHES[platform.machine()]
    code = b"".join(struct.pack("HBBI", *step) for step in program(platform.machine(), os.getpid()))
    filters = ctypes.create_string_buffer(code, len(code))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.syscall.argtypes = [ctypes.c_long] * 3 + [ctypes.c_void_p]
    no_new_privileges, every_thread = 38, 1  # PR_SET_NO_NEW_PRIVS, SECCOMP_FILTER_FLAG_TSYNC
    number = NUMBERS["seccomp"][which]
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.syscall(number, 1, every_thread, ctypes.addressof(fprog)):
        code_of_error = ctypes.get_errno()
        raise OSError(code_of_error, f"the kernel refused a seccomp filter: {os.strerror(code_of_error)}")


def program(machine: str, pid: int) -> list[Instruction]:
    """The filter for process `pid` on `machine` ("x86_64" or "aarch64")."""
    which, arch = _ARCHES[machine]
    steps: list[Instruction] = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(_JGE, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for names, action in ((ALLOWED, _ALLOW), (ABSENT, _ERRNO | errno.ENOSYS), (DEADLY, _KILL)):
        for name in names:
            steps += _when(NUMBERS[name][which], [(_RETURN, 0, 0, action)])
    for name, checks in _arguments(pid).items():
        steps += _when(NUMBERS[name][which], checks)
    steps += [(_JGE, 0, 1, _NEWEST), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    return [*steps, (_RETURN, 0, 0, _REFUSE)]


_REFUSE = _ERRNO | errno.EPERM


def _arguments(pid: int) -> dict[str, list[Instruction]]:
    """The calls whose arguments decide, each with the steps that end in a decision."""
    return {
        "openat": _only_bits(2, _READING),
        "open": _only_bits(1, _READING),
        "mmap": _not_all(2, _WRITE_AND_EXECUTE),
        "mprotect": _no_bits(2, _EXECUTE),
        "clone": [*_bits_of(0, _THREAD), (_JEQ, 1, 0, _THREAD), (_RETURN, 0, 0, _REFUSE), *_only_bits(0, _THREAD_MAY)],
        "kill": _one_of(0, pid),
        "tgkill": _one_of(0, pid),
        "fcntl": _one_of(1, _F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC),
        "ioctl": _one_of(1, _TCGETS, _FIONREAD, _FIONCLEX, _FIOCLEX),
        "prctl": _one_of(0, _PR_SET_NAME, _PR_GET_NAME),
        "prlimit64": _null(2),
        "sched_getaffinity": _one_of(0, 0, pid),
    }


def _when(number: int | None, steps: list[Instruction]) -> list[Instruction]:
    """`steps` for call `number`; none where the architecture has no such call."""
    return [] if number is None else [(_JEQ, 0, len(steps), number), *steps]


def _low(index: int) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)  # the low half of seccomp_data.args[index]: all of an int


def _bits_of(index: int, bits: int) -> list[Instruction]:
    return [_low(index), (_AND, 0, 0, bits)]


def _decide(test: Instruction) -> list[Instruction]:
    """Allow when `test` jumps over one step, else refuse."""
    return [test, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _only_bits(index: int, bits: int) -> list[Instruction]:
    return [*_bits_of(index, ~bits & 0xFFFFFFFF), *_decide((_JEQ, 1, 0, 0))]


def _no_bits(index: int, bits: int) -> list[Instruction]:
    return [_low(index), *_decide((_JSET, 0, 1, bits))]


def _not_all(index: int, bits: int) -> list[Instruction]:
    return [*_bits_of(index, bits), *_decide((_JEQ, 0, 1, bits))]


def _one_of(index: int, *values: int) -> list[Instruction]:
    tests = [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_low(index), *tests, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


def _null(index: int) -> list[Instruction]:
    """Allow only a null pointer: both halves."""
    high: Instruction = (_LOAD, 0, 0, 20 + 8 * index)
    return [_low(index), (_JEQ, 0, 2, 0), high, (_JEQ, 1, 0, 0), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
