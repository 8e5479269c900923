"""Files that are whole or absent: atomic write, directory swap, lock; verified download.

    atomic_write(path, data)                 the old bytes or the new bytes, never a mixture, also after power loss
    with new_directory(target) as temporary: write into `temporary`; it becomes `target` in one rename, or vanishes
    replace_link(link, relative)             swap a symbolic link in one rename
    with Lock(path): ...                     flock; a second holder gets TryAgain; a killed holder frees it
    read_text(path), read_json(path), read_toml(path), read_file(path, limit), read_ends(path, head, tail)
                                             whatever stands in the file's place: nothing blocks, nothing is endless
    sha256_file(path)                        lower-case hex
    require_space(directory, needed)         StorageError before anything is written
    download(url, path, size=, sha256=)      https, resumable; nothing unverified ever stands at `path`
    outputs.Outputs(folder, inputs)          every file that is named after something: below its folder, never an input

Every function raises errors of `fullyconv.errors` alone: StorageError (exit 74) for what the disk refused, MissingInput
(66) for what is not there, DataError (65) for what is not what it should be, TryAgain (75) for a held lock.
All changes to the disk go through functions of the module `os`, where the crash tests count and fail them.
"""

from typing import TYPE_CHECKING, Any

from fullyconv.files.disk import (
    Lock,
    Written,
    atomic_write,
    make_directory,
    new_directory,
    remove_stale,
    remove_tree,
    replace_link,
    require_space,
    sha256_file,
    storage_errors,
    sync_directory,
    write_file,
)
from fullyconv.files.reading import open_append, open_regular, read_ends, read_file, read_json, read_text, read_toml
from fullyconv.files.streaming import Sha256

if TYPE_CHECKING:
    from fullyconv.files.fetch import download

__all__ = [
    "Lock",
    "Sha256",
    "Written",
    "atomic_write",
    "download",
    "make_directory",
    "new_directory",
    "open_append",
    "open_regular",
    "read_ends",
    "read_file",
    "read_json",
    "read_text",
    "read_toml",
    "remove_stale",
    "remove_tree",
    "replace_link",
    "require_space",
    "sha256_file",
    "storage_errors",
    "sync_directory",
    "write_file",
]


def __getattr__(name: str) -> Any:
    """The network is loaded when it is asked for: most programs need none."""
    if name == "download":
        from fullyconv.files.fetch import download

        return download
    raise AttributeError(f"module 'fullyconv.files' has no attribute {name!r}")
