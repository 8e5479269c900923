"""System calls by name, as data: their numbers on x86-64 and arm64, and what becomes of each in the child.

Numbers: asm/unistd_64.h and asm-generic/unistd.h. What is in no list is refused.
"""

from __future__ import annotations

__all__ = ["ABSENT", "ALLOWED", "DEADLY", "NUMBERS"]

# name: (x86-64, arm64); None where the architecture has no such call
_MEMORY = {
    "brk": (12, 214), "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "mincore": (27, 232),
    "msync": (26, 227), "membarrier": (324, 283),
}  # fmt: skip
_FILES = {  # descriptors that are there, and questions about names
    "read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "preadv": (295, 69), "preadv2": (327, 286),
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "lseek": (8, 62), "close": (3, 57), "dup": (32, 23),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "statfs": (137, 43), "fstatfs": (138, 44), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17), "getdents": (78, None),
    "getdents64": (217, 61), "fadvise64": (221, 223), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72),
}  # fmt: skip
_THREADS = {
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96), "rseq": (334, 293),
    "sched_yield": (24, 124), "exit": (60, 93), "exit_group": (231, 94), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
}  # fmt: skip
_CLOCKS = {
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "times": (100, 153),
}  # fmt: skip
_QUESTIONS = {
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getpgrp": (111, None), "getrandom": (318, 278), "uname": (63, 160),
    "sysinfo": (99, 179), "getrlimit": (97, 163), "getrusage": (98, 165), "getcpu": (309, 168),
}  # fmt: skip
# A session's next file comes over a socket that is there; no other can be made.
_HANDED = {"recvmsg": (47, 212)}

_BY_ARGUMENT = {
    "open": (2, None), "openat": (257, 56), "mmap": (9, 222), "mprotect": (10, 226), "clone": (56, 220),
    "kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25), "ioctl": (16, 29), "prctl": (157, 167),
    "prlimit64": (302, 261), "sched_getaffinity": (204, 123),
}  # fmt: skip

# Their arguments are behind pointers, or they are conveniences.
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437), "close_range": (436, 436)}

_DEADLY = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "open_by_handle_at": (304, 265), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "fsopen": (430, 430), "fsmount": (432, 432), "move_mount": (429, 429),
    "open_tree": (428, 428), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "iopl": (172, None), "ioperm": (173, None),
}  # fmt: skip

_ALLOWED = {**_MEMORY, **_FILES, **_THREADS, **_CLOCKS, **_QUESTIONS, **_HANDED}
ALLOWED, ABSENT, DEADLY = tuple(_ALLOWED), tuple(_ABSENT), tuple(_DEADLY)
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    **_ALLOWED, **_BY_ARGUMENT, **_ABSENT, **_DEADLY,
    "seccomp": (317, 277), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
