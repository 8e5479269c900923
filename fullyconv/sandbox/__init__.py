"""Foreign files are read in a child process that can do nothing but read and answer.

    tensors, info = run("package.module:function", path, memory=..., seconds=...)
        function(path: str, **arguments) -> {name: array or tensor}, or that and a JSON value
    read_foreign_weights(path) -> {name: torch CPU tensor}      .pt .pth .bin .ckpt .safetensors, by content
    Session("module:function").ask(path, arguments)             the same for many files, in one child that stays
    extract(archive, directory)                                 zip/tar: regular files and folders inside, or nothing

The child has its own memory limit (counted above what its imports cost), CPU limit and output limit, no network, no
new process or program, and cannot create, change or remove a file: on Linux the kernel refuses those calls (seccomp);
elsewhere Python's audit hook does, which stops Python code but not a fault in a native library. Its answer comes back
as safetensors and JSON, checked like any other file. No pickle crosses the border.
"""

from typing import TYPE_CHECKING, Any

from fullyconv.sandbox.parent import read_foreign_weights, run
from fullyconv.sandbox.session import Session

if TYPE_CHECKING:
    from fullyconv.sandbox.archives import extract

__all__ = ["Session", "extract", "read_foreign_weights", "run"]


def __getattr__(name: str) -> Any:
    """Archives are loaded when they are asked for: the child starts faster without."""
    if name == "extract":
        from fullyconv.sandbox.archives import extract

        return extract
    raise AttributeError(f"module 'fullyconv.sandbox' has no attribute {name!r}")
