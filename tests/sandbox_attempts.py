"""What native code in a reader might try, straight through the C library, each in a process of its own.

python sandbox_attempts.py FOLDER MODE ...   prints {mode: {attempt: "done", "refused" or the signal that ended it}}

Modes: free (nothing is in the way: what is not done here proves nothing), seccomp, landlock, namespaces (that wall
alone) and all (as a reader is confined).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fullyconv.sandbox import child, guardian, landlock, seccomp

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
FAILED = ctypes.c_void_p(-1).value


@dataclass
class Scene:
    """The foreign file (open as `given`), its folder, a file that is nobody's business, and another's process."""

    folder: str
    given: int
    victim: int

    @property
    def data(self) -> bytes:
        return f"{self.folder}/data".encode()

    def at(self, name: str) -> bytes:
        return f"{self.folder}/{name}".encode()


def text(size: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(size)


def call(*numbers: int) -> Callable[..., int]:
    """The raw system call of this machine (x86-64, arm64)."""
    number = numbers[0] if os.uname().machine == "x86_64" else numbers[-1]
    return lambda *arguments: int(libc.syscall(ctypes.c_long(number), *arguments))


def locked(scene: Scene) -> int:
    return libc.fcntl(scene.given, 6, struct.pack("hhqqi", 0, 0, 0, 0, 0))  # F_SETLK, F_RDLCK


def owned(scene: Scene) -> int:
    """Have the kernel send another process a signal of our choice whenever something happens to a descriptor."""
    return -1 if libc.fcntl(scene.given, 8, scene.victim) else libc.fcntl(scene.given, 10, int(signal.SIGUSR1))


def attribute(scene: Scene) -> int:
    flags = ctypes.c_int(0x40 | 0x80)  # no dump, no access time; "immutable" is another bit of the same call
    return libc.ioctl(scene.given, 0x40086602, ctypes.byref(flags))


def forked(_: Scene) -> int:
    pid = libc.fork()
    if pid == 0:
        os._exit(0)
    return int(pid)


def writable_code(_: Scene) -> int:
    return -1 if libc.mmap(None, 4096, 7, 0x22, -1, 0) == FAILED else 0


def made_code(_: Scene) -> int:
    return libc.mprotect(libc.mmap(None, 4096, 3, 0x22, -1, 0), 4096, 5)


def another_memory(scene: Scene) -> int:
    buffer = text(8)
    ours = struct.pack("PN", ctypes.addressof(buffer), 8)
    theirs = struct.pack("PN", ctypes.addressof(PAGE), 8)
    return call(310, 270)(scene.victim, ours, 1, theirs, 1, 0)


def priorities(scene: Scene) -> int:
    return libc.setpriority(0, scene.victim, 5)


def performance(_: Scene) -> int:
    attributes = struct.pack("IIQ", 1, 112, 0).ljust(112, b"\0")  # a software clock
    return call(298, 241)(attributes, 0, -1, -1, 0)


def removed(made: int, control: Callable[..., int], *arguments: object) -> int:
    """What an attempt made outside of the process is taken away again."""
    if made >= 0:
        control(made, *arguments)
    return made


def queue(_: Scene) -> int:
    name = f"fullyconv{os.getpid()}".encode()
    made = call(240, 180)(name, os.O_CREAT | os.O_RDWR, 0o600, None)
    call(241, 181)(name)
    return made


def timer(_: Scene) -> int:
    return call(222, 107)(0, None, ctypes.byref(ctypes.c_int()))


PAGE = text(8)
LIMIT = struct.pack("QQ", 64, 64)
FILES: dict[str, Callable[[Scene], int]] = {
    "create a file": lambda s: libc.open(s.at("new"), os.O_CREAT | os.O_WRONLY, 0o600),
    "create a file in the old way": lambda s: libc.creat(s.at("new"), 0o600),
    "write the file": lambda s: libc.open(s.data, os.O_RDWR),
    "empty the file": lambda s: libc.open(s.data, os.O_TRUNC),
    "truncate": lambda s: libc.truncate(s.data, ctypes.c_long(0)),
    "remove": lambda s: libc.unlink(s.data),
    "rename": lambda s: libc.rename(s.data, s.at("new")),
    "make a folder": lambda s: libc.mkdir(s.at("new"), 0o700),
    "hard link": lambda s: libc.link(s.data, s.at("new")),
    "symbolic link": lambda s: libc.symlink(s.data, s.at("new")),
    "make a FIFO": lambda s: libc.mkfifo(s.at("new"), 0o600),
}
READS: dict[str, Callable[[Scene], int]] = {
    "read another file": lambda s: libc.open(s.at("secret"), 0),
    "read the file again by name": lambda s: libc.open(s.data, 0),
    "list the folder": lambda s: libc.open(s.at(""), os.O_DIRECTORY),
    "read the user's environment": lambda s: libc.open(f"/proc/{s.victim}/environ".encode(), 0),
    "read another's memory file": lambda s: libc.open(f"/proc/{s.victim}/mem".encode(), 0),
    "read passwd": lambda s: libc.open(b"/etc/passwd", 0),
}
ATTRIBUTES: dict[str, Callable[[Scene], int]] = {
    "mode": lambda s: libc.chmod(s.data, 0o777),
    "mode of what is open": lambda s: libc.fchmod(s.given, 0o777),
    "owner": lambda s: libc.chown(s.data, os.getuid(), os.getgid()),
    "times": lambda s: libc.utimes(s.data, None),
    "extended attribute": lambda s: libc.setxattr(s.data, b"user.x", b"1", 1, 0),
    "attribute by ioctl": attribute,
    "flock": lambda s: libc.flock(s.given, 1),
    "record lock": locked,
    "lease": lambda s: libc.fcntl(s.given, 1024, 0),
    "signals of a descriptor to another": owned,
    "follow a folder": lambda s: libc.fcntl(libc.open(b"/usr/lib", os.O_DIRECTORY), 1026, 1),
}
OTHERS: dict[str, Callable[[Scene], int]] = {
    "signal": lambda s: libc.kill(s.victim, 0),
    "signal to a thread": lambda s: call(234, 131)(s.victim, s.victim, 0),
    "signal to a thread in the old way": lambda s: call(200, 130)(s.victim, 0),
    "signal with a value": lambda s: libc.sigqueue(s.victim, 0, None),
    "renice": priorities,
    "pin": lambda s: libc.sched_setaffinity(s.victim, 8, struct.pack("Q", 1)),
    "schedule": lambda s: libc.sched_setscheduler(s.victim, 3, struct.pack("i", 0)),
    "input and output priority": lambda s: call(251, 30)(1, s.victim, (2 << 13) | 7),
    "limit another": lambda s: libc.prlimit(s.victim, 4, LIMIT, None),
}
DEADLY: dict[str, Callable[[Scene], int]] = {
    "trace": lambda s: libc.ptrace(16, s.victim, None, None),
    "read another's memory": another_memory,
    "descriptor of a process": lambda s: call(434)(s.victim, 0),
    "new namespace": lambda s: libc.unshare(0x08000000),
    "io_uring": lambda s: call(425)(4, text(120)),
    "performance events": performance,
    "page faults of one's own": lambda s: call(323, 282)(1),
    "keyring": lambda s: call(250, 219)(0, -3, 1, 0, 0),
    "program for the kernel": lambda s: call(321, 280)(0, struct.pack("IIII", 2, 4, 4, 1).ljust(72, b"\0"), 72),
}
OWN: dict[str, Callable[[Scene], int]] = {
    "fork": forked,
    "vfork by clone": lambda s: os._exit(0) if (p := call(56, 220)(17, 0, 0, 0, 0)) == 0 else p,
    "run a program": lambda s: libc.execve(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None), None),
    "session of its own": lambda s: libc.setsid(),
    "limit": lambda s: libc.setrlimit(4, LIMIT),
    "limit by the newer call": lambda s: call(302, 261)(0, 4, LIMIT, None),
    "alarm clock": lambda s: libc.setitimer(2, struct.pack("qqqq", 0, 0, 1000, 0), None),
    "timer": timer,
    "survive the parent": lambda s: libc.prctl(1, 0, 0, 0, 0),
    "be looked into": lambda s: libc.prctl(4, 1, 0, 0, 0),
    "another processor": lambda s: libc.sched_setaffinity(0, 8, struct.pack("Q", 1)),
    "slower or faster": lambda s: libc.setpriority(0, 0, 5),
    "writable code": writable_code,
    "data made code": made_code,
    "file in memory": lambda s: call(319, 279)(b"x", 0),
    "another file mode": lambda s: libc.umask(0),
    "another folder": lambda s: libc.chdir(b"/usr/lib"),
    "another view of addresses": lambda s: libc.personality(0x0040000),
}
SHARED: dict[str, Callable[[Scene], int]] = {
    "shared memory": lambda s: removed(libc.shmget(0, 4096, 0o1600), libc.shmctl, 0, None),
    "messages": lambda s: removed(libc.msgget(0, 0o1600), libc.msgctl, 0, None),
    "semaphores": lambda s: removed(libc.semget(0, 1, 0o1600), libc.semctl, 0, 0),
    "queue": queue,
    "internet": lambda s: libc.socket(2, 1, 0),
    "local socket": lambda s: libc.socket(1, 1, 0),
    "pair of sockets": lambda s: libc.socketpair(1, 1, 0, (ctypes.c_int * 2)()),
    "kernel's messages": lambda s: libc.socket(16, 3, 0),
}
ATTEMPTS = {**FILES, **READS, **ATTRIBUTES, **OTHERS, **DEADLY, **OWN, **SHARED}


def confine(mode: str, parent: int) -> None:
    if mode in ("all", "namespaces"):
        spaces = guardian.watch(parent, [])
        if mode == "all":
            child._confine({"kind": "once", "memory": 1 << 30, "output": 1 << 20, "seconds": 20}, spaces)
    elif mode == "seccomp":
        seccomp.confine()
    elif mode == "landlock":
        landlock.restrict_files()


def attempt(name: str, mode: str, scene: Scene) -> str:
    parent, pid = os.getpid(), os.fork()
    if not pid:
        signal.alarm(20)
        confine(mode, parent)
        try:
            os._exit(0 if ATTEMPTS[name](scene) >= 0 else 10)
        except BaseException:
            os._exit(11)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {0: "done", 10: "refused"}.get(code) or (signal.Signals(-code).name if code < 0 else f"left with {code}")


def landlock_version() -> int:
    return max(call(444)(None, ctypes.c_long(0), 1), 0)


def namespaces_are_given() -> bool:
    """Whether a process may have processes, network and shared memory of its own, asked without our own code."""
    pid = os.fork()
    if not pid:
        os._exit(0 if libc.unshare(0x68000000 | (0x10000000 if os.geteuid() else 0)) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


def main(folder: Path, modes: list[str]) -> None:
    victim = os.fork()
    if not victim:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        while os.getppid() != 1:
            time.sleep(0.05)
        os._exit(0)
    outcomes: dict[str, dict[str, str]] = {mode: {} for mode in modes}
    try:
        for i, (mode, name) in enumerate((mode, name) for mode in modes for name in ATTEMPTS):
            place = folder / str(i)
            place.mkdir()
            (place / "data").write_bytes(b"foreign")
            (place / "secret").write_bytes(b"secret")
            given = os.open(place / "data", os.O_RDONLY)
            outcomes[mode][name] = attempt(name, mode, Scene(str(place), given, victim))
            os.close(given)
    finally:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    print(json.dumps({**outcomes, "kernel": {"landlock": landlock_version(), "namespaces": namespaces_are_given()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
