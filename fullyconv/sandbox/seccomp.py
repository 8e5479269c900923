"""A seccomp filter in a hundred lines: which system calls the child may not make (Linux, x86-64 and arm64).

Refused calls fail with EPERM (those newer than this table with ENOSYS), so that Python sees an ordinary OSError.
Numbers: asm/unistd_64.h and asm-generic/unistd.h; filter program: linux/filter.h, linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

__all__ = ["confine", "supported"]

# name: (x86-64, arm64); None where the architecture has no such call
_NETWORK = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
}  # fmt: skip
_PROGRAMS = {
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "kill": (62, 129),
    "tkill": (200, 130), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "bpf": (321, 280), "perf_event_open": (298, 241),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "prlimit64": (302, 261), "setrlimit": (160, 164),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "unshare": (272, 97), "setns": (308, 268), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "syslog": (103, 116), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "mq_unlink": (241, 181), "vhangup": (153, 58),
}  # fmt: skip
_CHANGES = {
    "creat": (85, None), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "truncate": (76, 45),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None),
}  # fmt: skip
_NEVER = {
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None),
    "mknodat": (259, 33), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "swapon": (167, 224), "swapoff": (168, 225),
    "open_by_handle_at": (304, 265), "fsopen": (430, 430), "fsmount": (432, 432), "move_mount": (429, 429),
    "open_tree": (428, 428), "mount_setattr": (442, 442),
}  # fmt: skip
_OPEN, _OPENAT, _CLONE, _TGKILL = (2, None), (257, 56), (56, 220), (234, 131)
_SECCOMP = (317, 277)
_ABSENT = {"openat2": (437, 437), "clone3": (435, 435)}  # pointer arguments: glibc falls back to the older call
_NEWEST = 451  # calls above this table's age are unknown to it

_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_CLONE_THREAD = 0x00010000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (getattr(os, "O_TMPFILE", 0) & ~0o200000)


def supported() -> bool:
    """Whether this system's calls are in the table."""
    return sys.platform == "linux" and platform.machine() in _ARCHES and sys.maxsize > 2**32


def confine() -> None:
    """From here on this process (every thread) has no network, starts no program and changes no file, for good.

    Raises OSError when the kernel refuses.
    """
    which, _ = _ARCHES[platform.machine()]
    refused = [*_NETWORK.values(), *_PROGRAMS.values(), *_NEVER.values(), *_CHANGES.values()]
    program = _refuse([n[which] for n in refused if n[which] is not None], errno.EPERM)
    program += _refuse([n[which] for n in _ABSENT.values()], errno.ENOSYS)
    program += _refuse_argument(_OPEN[which], 1, _WRITING) + _refuse_argument(_OPENAT[which], 2, _WRITING)
    program += _allow_only(_CLONE[which], 0, _CLONE_THREAD, _JSET)
    program += _allow_only(_TGKILL[which], 0, os.getpid(), _JEQ)
    program += [(_JGE, 0, 1, _NEWEST + 1), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    _install(program)


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def _refuse(numbers: list[int | None], error: int) -> list[Instruction]:
    program: list[Instruction] = []
    for number in numbers:
        if number is not None:
            program += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]
    return program


def _argument(index: int) -> Instruction:
    return (_LOAD, 0, 0, 16 + 8 * index)  # the low half of seccomp_data.args[index]


_NUMBER: Instruction = (_LOAD, 0, 0, 0)


def _refuse_argument(number: int | None, index: int, bits: int) -> list[Instruction]:
    """Refuse call `number` when its argument has any of `bits`."""
    if number is None:
        return []
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    return [(_JEQ, 0, 4, number), _argument(index), (_JSET, 0, 1, bits), refuse, (_RETURN, 0, 0, _ALLOW)]


def _allow_only(number: int | None, index: int, value: int, test: int) -> list[Instruction]:
    """Allow call `number` only when its argument passes `test` against `value`."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    assert number is not None
    return [(_JEQ, 0, 4, number), _argument(index), (test, 1, 0, value), refuse, (_RETURN, 0, 0, _ALLOW)]


def _install(program: list[Instruction]) -> None:
    which, arch = _ARCHES[platform.machine()]
    head: list[Instruction] = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, arch), (_RETURN, 0, 0, _KILL), _NUMBER]
    if platform.machine() == "x86_64":  # the x32 calls have their own numbers
        head += [(_JGE, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    code = b"".join(struct.pack("HBBI", *step) for step in [*head, *program, (_RETURN, 0, 0, _ALLOW)])
    filters = ctypes.create_string_buffer(code, len(code))
    fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    libc.syscall.argtypes = [ctypes.c_long] * 3 + [ctypes.c_void_p]
    every_thread = 1  # SECCOMP_FILTER_FLAG_TSYNC
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(_SECCOMP[which], 1, every_thread, ctypes.addressof(fprog)):
        number = ctypes.get_errno()
        raise OSError(number, f"the kernel refused a seccomp filter: {os.strerror(number)}")
