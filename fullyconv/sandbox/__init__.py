"""Foreign files are read in a child process that can do nothing but read and answer.

    tensors, info = run("package.module:function", path, memory=..., seconds=...)
        function(path: str, **arguments) -> {name: array or tensor}, or that and a JSON value
    read_foreign_weights(path) -> {name: torch CPU tensor}      .pt .pth .bin .ckpt .safetensors, by content
    Session("module:function").ask(path, arguments)             the same for many files, in one child that stays
    extract(archive, directory)                                 zip/tar: regular files and folders inside, or nothing
    walls()                                                     which of the kernel's walls stand around a child here

The child is handed the file as an open descriptor. It has limits of memory (counted above what its imports cost), CPU
time and output that it cannot lift, no network, no new process or program, no signal or lock for others, and cannot
create, change or remove a file. On Linux the kernel sees to that: an allow-list of system calls and their arguments
(seccomp), no file to open but libraries (Landlock), processes, network and shared memory of its own (namespaces), the
last two where the kernel has them. Elsewhere Python's audit hook does, which stops Python code but not a fault in a
native library. A guardian ends the child with the process that started it. Its answer comes back as safetensors and
JSON, checked like any other file. No pickle crosses the border.
"""

from typing import TYPE_CHECKING, Any

from fullyconv.sandbox.parent import read_foreign_weights, run, walls
from fullyconv.sandbox.session import Session

if TYPE_CHECKING:
    from fullyconv.sandbox.archives import extract

__all__ = ["Session", "extract", "read_foreign_weights", "run", "walls"]


def __getattr__(name: str) -> Any:
    """Archives are loaded when they are asked for: the child starts faster without."""
    if name == "extract":
        from fullyconv.sandbox.archives import extract

        return extract
    raise AttributeError(f"module 'fullyconv.sandbox' has no attribute {name!r}")
