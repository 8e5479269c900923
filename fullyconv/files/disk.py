"""The disk: whole-or-absent writes, directory swaps, links, locks. Source of the rules: POSIX fsync and rename,
Pillai et al., "All file systems are not created equal" (OSDI 2014)."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import errno
import fcntl
import hashlib
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, final

from fullyconv.errors import DataError, FullyconvError, MissingInput, StorageError, TryAgain, printable
from fullyconv.files.reading import human, open_regular
from fullyconv.files.streaming import CHUNK, Chunk, Sha256, begin_writeback, pieces

__all__ = [
    "Lock",
    "Written",
    "atomic_write",
    "make_directory",
    "new_directory",
    "remove_stale",
    "remove_tree",
    "replace_link",
    "require_space",
    "sha256_file",
    "storage_errors",
    "sync_directory",
    "sync_file",
    "write_file",
]

PREFIX = ".fullyconv-tmp-"  # everything unfinished is named so; `remove_stale` sweeps what a killed process left
_STALE_AFTER = 60.0  # seconds; covers the instant between making a temporary directory and locking it
_FULL = {errno.ENOSPC, errno.EDQUOT}


class Written(NamedTuple):
    """What went to the disk: size in bytes and sha256 in hex."""

    size: int
    sha256: str


@contextlib.contextmanager
def storage_errors(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside into MissingInput or StorageError whose sentence names `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInput(f"{printable(path)} does not exist; check the path.") from error
    except OSError as error:
        raise _storage_error(action, path, error) from error


def _storage_error(action: str, path: str | os.PathLike[str], error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    where = Path(path)
    if error.errno in _FULL:
        free = _free(where.parent)
        room = "" if free is None else f" ({human(free)} free)"
        return StorageError(f"{action} {printable(where)} failed: {reason}{room}; make room there and run it again.")
    return StorageError(f"{action} {printable(where)} failed: {reason}; check the disk and the rights there.")


def _free(directory: Path) -> int | None:
    with contextlib.suppress(OSError):
        found = os.statvfs(directory)
        return found.f_bavail * found.f_frsize
    return None


def require_space(directory: str | os.PathLike[str], needed: int) -> None:
    """Raise StorageError unless `directory` (its nearest existing parent) has `needed` bytes free for this user."""
    where = Path(directory)
    while not where.exists() and where != where.parent:
        where = where.parent
    free = _free(where)
    if free is not None and free < needed:
        raise StorageError(
            f"{printable(directory)} needs {human(needed)} but its disk has {human(free)} free; "
            "make room or choose another place."
        )


# Reading


def sha256_file(path: str | os.PathLike[str]) -> str:
    """sha256 (lower-case hex) of a regular file, read in pieces."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as file, storage_errors("Reading", path):
        return hashlib.file_digest(file, "sha256").hexdigest()


# Writing


def write_file(
    path: str | os.PathLike[str], chunks: Iterable[Chunk], *, exclusive: bool = True, sync: bool = True
) -> Written:
    """Write `chunks` to a new file and fsync it; its directory entry is the caller's to fsync. Hashes meanwhile."""
    with storage_errors("Writing", path):
        return _write_file(path, chunks, exclusive, sync)


def _write_file(
    path: str | os.PathLike[str], chunks: Iterable[Chunk], exclusive: bool = True, sync: bool = True
) -> Written:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if exclusive else os.O_TRUNC)
    with Sha256() as digest:
        fd = os.open(path, flags, 0o666)
        try:
            size = begun = 0
            for piece in pieces(chunks, digest):
                size += _write_all(fd, piece)
                if size - begun >= CHUNK:
                    begin_writeback(fd, begun, size)
                    begun = size
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        return Written(size, digest.hexdigest())


def _write_all(fd: int, data: memoryview) -> int:
    size = len(data)
    while data:
        data = data[os.write(fd, data) :]
    return size


def sync_file(path: str | os.PathLike[str]) -> None:
    """fsync a file that another library wrote."""
    with storage_errors("Syncing", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_directory(directory: str | os.PathLike[str]) -> None:
    """fsync a directory: its entries (creations, renames, removals) survive power loss from here on."""
    with storage_errors("Syncing", directory):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without directory fsync
                raise
        finally:
            os.close(fd)


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8): at every instant, also after power loss, it is the old or the new."""
    with _in_its_place(Path(path), "Writing") as temporary:
        _write_file(temporary, [data.encode() if isinstance(data, str) else data])


@contextlib.contextmanager
def _in_its_place(path: Path, doing: str) -> Iterator[Path]:
    """A name beside `path` that takes its place in one rename, durably; what was made there is removed on failure."""
    temporary = path.parent / f"{PREFIX}{secrets.token_hex(8)}"
    try:
        with storage_errors(doing, path):
            yield temporary
            os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def replace_link(link: str | os.PathLike[str], to: str) -> None:
    """Make the symbolic link `link` point to `to` (relative to its own directory) in one rename, durably."""
    link = Path(link)
    if os.path.lexists(link) and not link.is_symlink():
        raise DataError(f"{printable(link)} is not a link, so it is left alone; move it away.")
    with _in_its_place(link, "Linking") as temporary:
        os.symlink(to, temporary)


def make_directory(path: str | os.PathLike[str]) -> None:
    """mkdir -p, each new entry fsynced."""
    path = Path(path)
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent)
    with storage_errors("Making", path), contextlib.suppress(FileExistsError):
        os.mkdir(path)
    if not path.is_dir():
        raise StorageError(f"{printable(path)} is in the way and is not a directory; move it or choose another name.")
    sync_directory(path.parent)


@contextlib.contextmanager
def new_directory(target: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A temporary sibling that becomes `target` in one rename when the block ends, and vanishes when it raises.

    Files inside must have been written with `write_file` (fsynced). With `replace`, an existing `target` directory is
    exchanged in one system call and then removed; without it, an existing one raises StorageError.
    """
    target = Path(target)
    make_directory(target.parent)
    temporary = target.parent / f"{PREFIX}{secrets.token_hex(8)}"
    with storage_errors("Writing", target):
        os.mkdir(temporary)
    lock = _flock_directory(temporary)
    try:
        yield temporary
        sync_directory(temporary)
        with storage_errors("Writing", target):
            _publish(temporary, target, replace)
        sync_directory(target.parent)
    except BaseException:
        remove_tree(temporary)
        raise
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                os.close(lock)
    remove_tree(temporary)  # after an exchange the old directory stands there


def _publish(temporary: Path, target: Path, replace: bool) -> None:
    if not os.path.lexists(target):
        os.rename(temporary, target)
    elif not replace:
        raise FileExistsError(errno.EEXIST, "it exists already", str(target))
    elif not any(os.scandir(target)):
        os.rename(temporary, target)  # rename onto an empty directory is one step
    else:
        exchange(temporary, target)


def exchange(a: Path, b: Path) -> None:
    """Swap two directory entries in one step (Linux renameat2, macOS renamex_np); OSError where neither exists."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    first, second = os.fsencode(a), os.fsencode(b)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(-100, first, -100, second, 2)  # AT_FDCWD, RENAME_EXCHANGE
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(first, second, 2)  # RENAME_SWAP
    else:
        raise OSError(errno.ENOTSUP, "this system cannot exchange two directories in one step", str(b))
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(b))


def _flock_directory(directory: Path) -> int | None:
    """Hold a lock on a temporary directory so that `remove_stale` elsewhere leaves it alone; None if it cannot be."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd
    return None


def remove_tree(directory: str | os.PathLike[str]) -> bool:
    """Remove a tree without following links; whatever cannot be removed is left for `remove_stale`. True if gone."""
    try:
        if not stat.S_ISDIR(os.lstat(directory).st_mode):
            os.unlink(directory)
            return True
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries]
        gone = [remove_tree(name) for name in names]
        os.rmdir(directory)
        return all(gone)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def remove_stale(directory: str | os.PathLike[str], *, older_than: float = _STALE_AFTER) -> int:
    """Remove what killed processes left unfinished in `directory`; returns how many. Live writers hold a lock on it."""
    removed, entries = 0, []
    with contextlib.suppress(OSError):
        entries = [Path(directory, name) for name in sorted(os.listdir(directory)) if name.startswith(PREFIX)]
    for entry in entries:
        with contextlib.suppress(OSError):
            if time.time() - entry.lstat().st_mtime < older_than:
                continue
            fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                removed += remove_tree(entry)
            finally:
                os.close(fd)
    return removed


# Lock

_held: set[Lock] = set()


@final
class Lock:
    """An exclusive flock on the file `path` (made if missing, never removed): `with Lock(path): ...`.

    Raises TryAgain when another process holds it, naming that process. The kernel frees it when the holder dies,
    however it dies; forked children (loader workers) do not keep it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise TryAgain at once."""
        with storage_errors("Locking", self.path):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except OSError as error:
            holder = printable(os.pread(fd, 200, 0).decode(errors="replace")) or "another process"
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _held_by(self.path, holder) from error
            raise _storage_error("Locking", self.path, error) from error
        self._fd = fd
        _held.add(self)

    def release(self) -> None:
        """Free the lock; twice is harmless."""
        fd, self._fd = self._fd, None
        _held.discard(self)
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _held_by(path: Path, holder: str) -> FullyconvError:
    return TryAgain(f"{printable(path.parent)} is in use by {holder}; wait for it to end, or choose another directory.")


def _forget_locks() -> None:
    """In a forked child: drop the inherited descriptors, so that the lock dies with its owner alone."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_forget_locks)
