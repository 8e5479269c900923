"""Whole-or-absent files, directory swaps, links, locks and the checks around them."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fullyconv import files
from fullyconv.errors import DataError, MissingInput, StorageError, TryAgain
from fullyconv.files import disk, streaming


def left_over(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith(disk.PREFIX))


def test_atomic_write_replaces_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"one", b"", b"three" * 1000):
        files.atomic_write(path, content)
        assert path.read_bytes() == content
    files.atomic_write(path, "ü")
    assert path.read_text("utf-8") == "ü"
    assert os.listdir(tmp_path) == ["a.json"]


def test_atomic_write_respects_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_failed_atomic_write_keeps_the_old_content(call: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.atomic_write(path, b"old")
    refuse = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    with mock.patch.object(os, call, refuse), pytest.raises(StorageError, match="make room") as e:
        files.atomic_write(path, b"new")
    assert str(e.value).startswith(f"Writing {path} failed")  # what the user asked for, not our temporary name
    assert path.read_bytes() == b"old"
    assert left_over(tmp_path) == []


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.binary(max_size=50), max_size=6))
def test_write_file_reports_the_size_and_sha256_of_what_it_wrote(
    pieces: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("w") / "f"
    written = files.write_file(path, [memoryview(piece) for piece in pieces])
    whole = b"".join(pieces)
    assert path.read_bytes() == whole
    assert written == (len(whole), hashlib.sha256(whole).hexdigest())
    assert files.sha256_file(path) == written.sha256


LARGE = (disk.CHUNK + 3, 5, streaming.WORTH_A_THREAD, 2 * disk.CHUNK, streaming.WORTH_A_THREAD - 1, disk.CHUNK)


@pytest.mark.parametrize("writeback", [True, False])
def test_large_chunks_hashed_in_a_second_thread_give_the_same_sum(
    writeback: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not writeback:  # as on macOS
        monkeypatch.delattr(os, "posix_fadvise", raising=False)
    pieces = [random.Random(i).randbytes(size) for i, size in enumerate(LARGE)]
    threads = threading.active_count()
    written = files.write_file(tmp_path / "f", pieces)
    whole = b"".join(pieces)
    assert (tmp_path / "f").read_bytes() == whole
    assert written == (len(whole), hashlib.sha256(whole).hexdigest())
    assert threading.active_count() == threads


def test_a_chunk_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    """The first write waits for the hashing to have begun elsewhere: hashed first or afterwards, it would fail."""
    begun, real = threading.Event(), streaming.Sha256._hash

    def hashing(self: streaming.Sha256, view: memoryview) -> None:
        begun.set()
        real(self, view)

    def write(fd: int, data: memoryview) -> int:
        assert begun.wait(10)
        return len(data)

    with mock.patch.object(streaming.Sha256, "_hash", hashing), mock.patch.object(os, "write", write):
        files.write_file(tmp_path / "f", [bytes(streaming.WORTH_A_THREAD)])


def test_a_write_that_fails_while_its_bytes_are_hashed_leaves_no_thread(tmp_path: Path) -> None:
    threads = threading.active_count()
    refuse = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error"))
    with mock.patch.object(os, "write", refuse), pytest.raises(StorageError, match="Input/output"):
        files.write_file(tmp_path / "f", [bytes(3 * disk.CHUNK)])
    assert threading.active_count() == threads


def test_write_file_goes_on_after_a_short_write(tmp_path: Path) -> None:
    real = os.write
    with mock.patch.object(os, "write", lambda fd, data: real(fd, data[:7])):
        files.write_file(tmp_path / "f", [b"0123456789" * 5])
    assert (tmp_path / "f").read_bytes() == b"0123456789" * 5


def test_write_file_does_not_overwrite(tmp_path: Path) -> None:
    files.write_file(tmp_path / "f", [b"1"])
    with pytest.raises(StorageError, match="exists"):
        files.write_file(tmp_path / "f", [b"2"])


def test_data_is_synced_before_the_rename_and_the_rename_after(tmp_path: Path) -> None:
    order: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        order.append("fsync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
        real_fsync(fd)

    def rename(a: str, b: str) -> None:
        order.append("rename")
        real_rename(a, b)

    with mock.patch.object(os, "fsync", fsync), mock.patch.object(os, "rename", rename):
        files.atomic_write(tmp_path / "a", b"x")
        assert order == ["fsync file", "rename", "fsync directory"]
        order.clear()
        with files.new_directory(tmp_path / "d") as temporary:
            files.write_file(temporary / "f", [b"x"])
        assert order == ["fsync file", "fsync directory", "rename", "fsync directory"]


def test_new_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "d"
    with pytest.raises(ZeroDivisionError), files.new_directory(target) as temporary:  # noqa: PT012
        (temporary / "f").write_text("x")
        assert not target.exists()
        raise ZeroDivisionError
    assert os.listdir(target.parent) == []
    with files.new_directory(target) as temporary:
        (temporary / "f").write_text("x")
    assert [p.name for p in target.iterdir()] == ["f"]


def test_new_directory_exchanges_an_existing_one_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "d"
    for content in ("one", "two"):
        with files.new_directory(target, replace=True) as temporary:
            (temporary / content).write_text(content)
        assert os.listdir(target) == [content]
    with pytest.raises(StorageError, match="exists"), files.new_directory(target) as temporary:
        (temporary / "three").touch()
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["d"]


def test_without_an_exchange_call_the_old_directory_stays(tmp_path: Path) -> None:
    target = tmp_path / "d"
    with files.new_directory(target) as temporary:
        (temporary / "old").touch()
    refuse = mock.Mock(side_effect=OSError(errno.EINVAL, "Invalid argument"))
    with mock.patch.object(disk, "exchange", refuse), pytest.raises(StorageError):  # noqa: SIM117
        with files.new_directory(target, replace=True) as temporary:
            (temporary / "new").touch()
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["d"]


def test_replace_link_swaps_links_and_never_a_file(tmp_path: Path) -> None:
    link = tmp_path / "best"
    for to in ("checkpoints/step-1", "checkpoints/step-2"):
        files.replace_link(link, to)
        assert os.readlink(link) == to
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="not a link"):
        files.replace_link(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "mine"
    assert left_over(tmp_path) == []


def test_removal_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "f").touch()
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "link").symlink_to(tmp_path / "precious")
    assert files.remove_tree(tmp_path / "d")
    assert files.remove_tree(tmp_path / "d"), "gone is gone"
    assert (tmp_path / "precious" / "f").exists()


def test_stale_leftovers_are_swept_but_not_those_in_use_or_young(tmp_path: Path) -> None:
    old, young = tmp_path / f"{disk.PREFIX}old", tmp_path / f"{disk.PREFIX}young"
    for path in (old, young):
        path.mkdir()
        (path / "f").touch()
    os.utime(old, (1, 1))
    (tmp_path / "model").mkdir()
    with files.new_directory(tmp_path / "now") as used:
        os.utime(used, (1, 1))
        assert files.remove_stale(tmp_path) == 1
        assert used.exists()
    assert not old.exists()
    assert young.exists()
    assert files.remove_stale(tmp_path / "no such directory") == 0


# Reading


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "loop", "device"])
def test_only_regular_files_are_opened_and_nothing_blocks(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    start = time.monotonic()
    with pytest.raises((MissingInput, DataError, StorageError)) as caught:
        files.read_file(path, 100)
    assert str(path) in str(caught.value)
    assert time.monotonic() - start < 30


def test_reading_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 101)
    assert files.read_file(tmp_path / "f", 101) == b"x" * 101
    with pytest.raises(DataError, match="at most 100 B"):
        files.read_file(tmp_path / "f", 100)


def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    files.require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(StorageError, match=r"needs 1024\.0 TiB but its disk has .* free"):
        files.require_space(tmp_path, 1 << 50)


# The lock


def test_a_second_process_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    read, write = os.pipe()
    go, stay = os.pipe()
    child = os.fork()
    if not child:
        lock = files.Lock(path)
        lock.acquire()
        os.write(write, b"x")
        os.read(go, 1)
        os._exit(0)
    os.read(read, 1)
    with pytest.raises(TryAgain, match=f"process {child}"):
        files.Lock(path).acquire()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with files.Lock(path):  # the kernel freed it
        pass
    os.close(stay)


def test_one_process_cannot_take_the_lock_twice_and_can_take_it_again(tmp_path: Path) -> None:
    lock = files.Lock(tmp_path / "lock")
    with lock, pytest.raises(TryAgain):
        files.Lock(tmp_path / "lock").acquire()
    lock.release()
    with lock:
        pass


def test_a_forked_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    read, write = os.pipe()
    trainer = os.fork()
    if not trainer:
        lock = files.Lock(path)
        lock.acquire()
        worker = os.fork()
        if not worker:
            time.sleep(30)
            os._exit(0)
        os.write(write, str(worker).encode())
        time.sleep(30)
    worker = int(os.read(read, 20))
    try:
        with pytest.raises(TryAgain):
            files.Lock(path).acquire()
        os.kill(trainer, signal.SIGKILL)
        os.waitpid(trainer, 0)
        with files.Lock(path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_that_the_file_system_refuses_is_a_storage_error(tmp_path: Path) -> None:
    refuse = mock.Mock(side_effect=OSError(errno.ENOLCK, "No locks available"))
    with mock.patch("fcntl.flock", refuse), pytest.raises(StorageError, match="No locks available"):
        files.Lock(tmp_path / "lock").acquire()
