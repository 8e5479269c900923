"""Readers that misbehave in every way the sandbox must contain; and honest ones."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import sandbox_attempts

from fullyconv.errors import DataError, MissingInput
from fullyconv.sandbox.descriptors import handed_over


def honest(path: str, times: int = 1) -> tuple[dict[str, Any], Any]:
    with handed_over(path) as file:
        data = np.frombuffer(file.read(), np.uint8)
    return {"bytes": np.tile(data, times)}, {"path": path, "times": times}


def refuses(path: str) -> dict[str, Any]:
    raise DataError(f"{path} is not good enough.")


def misses(path: str) -> dict[str, Any]:
    raise MissingInput("nothing there")


def fails(path: str) -> dict[str, Any]:
    raise KeyError("unexpected\x1b[31m")


def returns_nonsense(path: str) -> Any:
    return ["not", "a", "dict"]


def eats_memory(path: str) -> dict[str, Any]:
    return {"x": np.ones(4 << 27)}


def eats_time(path: str) -> dict[str, Any]:
    while True:
        pass


def sleeps(path: str) -> dict[str, Any]:
    time.sleep(600)
    return {}


def crashes(path: str) -> dict[str, Any]:
    ctypes.string_at(0)
    return {}


def leaves(path: str) -> dict[str, Any]:
    os._exit(0)


def floods(path: str) -> dict[str, Any]:
    """More answer than any file of this size can stand for."""
    page = np.zeros(16 << 20, np.uint8)
    return {str(i): page for i in range(64)}


def attempts(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Try everything forbidden through Python and straight through the C library; say what came of each."""
    folder = os.path.dirname(path)
    with handed_over(path) as file:
        scene = sandbox_attempts.Scene(folder, os.dup(file.fileno()), os.getppid() or 1 << 20)
    tries: dict[str, Any] = {
        "python open w": lambda: open(f"{folder}/written", "w"),  # noqa: SIM115
        "python open a": lambda: open(path, "a"),  # noqa: SIM115
        "python mkdir": lambda: os.mkdir(f"{folder}/made"),
        "python unlink": lambda: os.unlink(path),
        "python rename": lambda: os.rename(path, f"{path}2"),
        "python symlink": lambda: os.symlink(path, f"{folder}/link"),
        "python system": lambda: os.system(f"touch {folder}/system"),
        "python popen": lambda: subprocess.Popen(["touch", f"{folder}/popen"]),
        "python fork": os.fork,
        "python socket": lambda: socket.socket().connect(("127.0.0.1", 9)),
        "python getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
        "python kill": lambda: os.kill(os.getppid(), 0),
    }
    reading = {**sandbox_attempts.DEADLY, **sandbox_attempts.READS}  # the one ends the child, the other is Landlock's
    for label in sandbox_attempts.ATTEMPTS.keys() - reading.keys():
        tries[label] = functools.partial(native, label, scene)
    outcomes = {}
    for label, attempt in tries.items():
        try:
            done = attempt()
            outcomes[label] = done if isinstance(done, str) else "allowed"
        except OSError as error:
            outcomes[label] = str(error)
    return {}, outcomes


def native(label: str, scene: sandbox_attempts.Scene) -> str:
    done = sandbox_attempts.ATTEMPTS[label](scene)
    return "allowed" if done >= 0 else os.strerror(ctypes.get_errno())


def busy(path: str) -> dict[str, Any]:
    """Native code that never looks up."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
    return {}


def tries_the_deadly(path: str) -> dict[str, Any]:
    sandbox_attempts.DEADLY["new namespace"](sandbox_attempts.Scene("", 0, 1))
    return {}


def moody(path: str, mood: str, **arguments: Any) -> Any:
    """Any of these readers by name, and the process that it runs in."""
    if mood == "process":
        return {}, os.getpid()
    return globals()[mood](path, **arguments)


def tries_in_a_stream(path: str) -> Iterator[tuple[bytes, bytes]]:
    """A file named after each forbidden thing that was allowed, and one for the things that were not."""
    outcomes = attempts(path)[1]
    for label, outcome in outcomes.items():
        if outcome == "allowed":
            yield b"F", json.dumps(label).encode()
    yield b"F", json.dumps(f"refused {sum(outcome != 'allowed' for outcome in outcomes.values())}").encode()


def frame_too_long(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'"a"'
    yield b"C", bytes(2 << 20)


def frame_unknown(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'"a"'
    yield b"?", b""


def frame_content_first(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"C", b"x"


def frame_name_no_json(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b"\xff{"


def frame_name_no_text(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'{"..": 1}'


def frame_climbs(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'"../../x"'


def frame_error_no_json(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"X", b"\0\1"


def stream_leaves(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'"a"'
    os._exit(0)


def stream_crashes(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", b'"a"'
    ctypes.string_at(0)


def stream_eats_memory(path: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"F", bytes(1 << 40)
