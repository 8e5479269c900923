"""The kernel's second wall: which files the child may open at all (Landlock, Linux 5.13 and later).

Only folders of program libraries stay readable; the foreign file itself comes as an open descriptor. From version 4 on
the kernel also refuses TCP, from 6 on signals and abstract sockets to whoever stands outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from types import ModuleType

from fullyconv.sandbox.calls import NUMBERS

__all__ = ["libraries", "restrict_files"]

_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # version: how many rights over files it knows; later ones know 16
_TCP, _OUTSIDE = 3, 3  # bind and connect; abstract sockets and signals
_VERSION, _BENEATH = 1, 1  # LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH


def libraries() -> list[str]:
    """Folders that hold what this process may yet import or link: Python's, the loaded packages', the system's."""
    standard = os.path.dirname(os.__file__)
    installed = [entry for entry in sys.path if os.path.basename(entry) in ("site-packages", "dist-packages")]
    packages = [place for name, module in list(sys.modules.items()) if "." not in name for place in _places(module)]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib", "/etc/ld.so.cache"]
    linked = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    wanted = {os.path.realpath(entry) for entry in [standard, *installed, *packages, *system, *linked] if entry}
    return sorted(place for place in wanted if place != "/" and os.path.exists(place))


def _places(module: ModuleType) -> Iterator[str]:
    with contextlib.suppress(Exception):  # packages that answer for their own attributes
        yield from (place for place in module.__path__ if isinstance(place, str))


def restrict_files() -> int:
    """From here on this thread and its later ones open nothing but `libraries`, to read; nothing is ever changed.

    Call it before there are other threads. Returns Landlock's version, 0 where the kernel has none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    libc.syscall.argtypes = [ctypes.c_long] * 5
    create, add, restrict = (NUMBERS[f"landlock_{n}"][0] for n in ("create_ruleset", "add_rule", "restrict_self"))
    version = libc.syscall(create, 0, 0, _VERSION, 0)
    if version < 1:
        return 0
    size = 8 if version < 4 else 16 if version < 6 else 24
    rights = ctypes.create_string_buffer(struct.pack("QQQ", (1 << _FILE_RIGHTS.get(version, 16)) - 1, _TCP, _OUTSIDE))
    rules = libc.syscall(create, ctypes.addressof(rights), size, 0, 0)
    if rules < 0:
        return 0
    try:
        for place in libraries():
            _let_read(libc, add, rules, place)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        return version if libc.syscall(restrict, rules, 0, 0, 0) == 0 else 0
    finally:
        os.close(rules)


def _let_read(libc: ctypes.CDLL, add: int | None, rules: int, place: str) -> None:
    """A folder that cannot be opened stays shut."""
    with contextlib.suppress(OSError):
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ_FILE | (_READ_DIR if os.path.isdir(place) else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, fd))
        libc.syscall(add, rules, _BENEATH, ctypes.addressof(rule), 0)
        os.close(fd)
