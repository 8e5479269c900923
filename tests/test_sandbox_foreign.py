"""Caffe's, MATLAB's and packed files are read in a confined child as well; and the child that stays serves many."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import caffe_writer
import h5py
import numpy as np
import pytest
import test_caffe
from crash_tools import in_fork
from scipy.io import savemat

from fullyconv.data.corpora.corpus import read_mat
from fullyconv.errors import DataError, FullyconvError, MissingInput
from fullyconv.models.caffe import read_caffemodel
from fullyconv.sandbox import Session, archives, caffemodel, matlab, seccomp
from fullyconv.sandbox.session import GRACE


def refused(read: Callable[[Path], object], write: Callable[[Path], object], path: Path) -> None:
    """`read` refuses what `write` wrote to `path`, naming it in one line, and nothing else is there afterwards."""
    path.parent.mkdir(exist_ok=True)
    write(path)
    content, there = path.read_bytes(), sorted(os.listdir(path.parent))
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert path.read_bytes() == content
    assert sorted(os.listdir(path.parent)) == there


def all_refused(read: Callable[[Path], object], corpus: dict[str, Callable[[Path], object]], at: Path) -> None:
    for i, (name, write) in enumerate(corpus.items()):
        try:
            refused(read, write, at / str(i) / "foreign.bin")
        except BaseException as error:
            raise AssertionError(name) from error
    print(f"{len(corpus)} files refused")


# .caffemodel

CAFFE: dict[str, Callable[[Path], object]] = {
    name: (lambda p, d=data: p.write_bytes(d)) for name, (data, _) in test_caffe.HOSTILE.items()
}


def test_a_caffemodel_read_in_the_child_is_the_one_read_here(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {f"layer{i}": [rng.normal(size=(i + 1, 2, 3, 3)).astype("f4"), rng.normal(size=i + 1)] for i in range(12)}
    path = caffe_writer.write(tmp_path / "net.caffemodel", layers)
    found, expected = read_caffemodel(path), caffemodel.parse_caffemodel(path)
    assert list(found) == list(expected) == list(layers)
    for name, layer in expected.items():
        assert (found[name].name, found[name].type) == (layer.name, layer.type)
        for got, sent in zip(found[name].blobs, layer.blobs, strict=True):
            assert got.dtype == sent.dtype
            np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("name", list(CAFFE)[::8])
def test_a_hostile_caffemodel_is_refused_without_any_effect(name: str, tmp_path: Path) -> None:
    refused(read_caffemodel, CAFFE[name], tmp_path / "in" / "net.caffemodel")


@pytest.mark.slow
def test_every_hostile_caffemodel_is_refused_without_any_effect(tmp_path: Path) -> None:
    all_refused(read_caffemodel, CAFFE, tmp_path)


# MATLAB, up to v7


def element(kind: int, body: bytes) -> bytes:
    """One element of a version-5 file: its type, size and bytes, padded to 8 (compressed ones are not)."""
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8 if kind != 15 else 0)


def matrix(body: bytes, name: bytes = b"S", kind: int = 9, shape: tuple[int, ...] = (2, 2)) -> bytes:
    """A matrix element (type 14) of array class `kind` (9: uint8, 1: cell)."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name) + body)


def version5(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49) + b"".join(elements)


def cells(depth: int) -> bytes:
    """A cell in a cell in a cell."""
    inner = matrix(element(2, bytes(4)), b"")
    for _ in range(depth):
        inner = matrix(inner, b"", 1, (1, 1))
    return inner


def bomb(megabytes: int) -> bytes:
    """A compressed matrix of zeros, a thousandth of its size."""
    size = megabytes << 20
    whole = matrix(element(2, b""), shape=(1, size))[:-8] + struct.pack("<II", 2, size)
    whole = struct.pack("<II", 14, len(whole) - 8 + size) + whole[8:]
    packer = zlib.compressobj(9)
    body = packer.compress(whole) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes))
    return version5(element(15, body + packer.flush()))


def saved(**values: Any) -> Callable[[Path], None]:
    return lambda p: savemat(p, values, appendmat=False)


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        saved(S=np.arange(9999.0))(path)
        os.truncate(path, int(path.stat().st_size * share))

    return write


GOOD = matrix(element(2, bytes([1, 2, 3, 4])))
MATLAB: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.touch(),
    "text": lambda p: p.write_text("<html>404 not found</html>"),
    "a program": lambda p: p.write_bytes(b"\x7fELF" + bytes(500)),
    "zeros": lambda p: p.write_bytes(bytes(4096)),
    **{f"cut to {share:.0%}": cut(share) for share in (0.001, 0.01, 0.3, 0.99)},
    "another variable": saved(T=np.ones(3)),
    "a text": saved(S="label"),
    "a struct": saved(S={"a": 1}),
    "a cell": saved(S=np.array([np.ones(2), "x"], object)),
    "a struct in its place": lambda p: p.write_bytes(version5(matrix(b"", kind=2))),
    "a function": lambda p: p.write_bytes(version5(matrix(cells(1), kind=16))),
    "an opaque object": lambda p: p.write_bytes(version5(matrix(b"", kind=17))),
    "an unknown class": lambda p: p.write_bytes(version5(matrix(element(2, bytes(4)), kind=200))),
    "an unknown element": lambda p: p.write_bytes(version5(element(99, bytes(40)))),
    "an unknown type of numbers": lambda p: p.write_bytes(version5(matrix(element(77, bytes(4))))),
    "more elements than data": lambda p: p.write_bytes(
        version5(matrix(element(2, bytes(4)), shape=(1 << 15, 1 << 15)))
    ),
    "a negative side": lambda p: p.write_bytes(version5(matrix(element(2, bytes(4)), shape=(-2, -2)))),
    "an overflowing shape": lambda p: p.write_bytes(version5(matrix(element(2, bytes(4)), shape=(1 << 30,) * 4))),
    "1000 axes": lambda p: p.write_bytes(version5(matrix(element(2, bytes(4)), shape=(1,) * 1000))),
    "no shape": lambda p: p.write_bytes(version5(matrix(element(2, bytes(4)), shape=()))),
    "a size beyond the file": lambda p: p.write_bytes(version5(matrix(struct.pack("<II", 2, 1 << 31) + bytes(8)))),
    "a size of -1": lambda p: p.write_bytes(version5(matrix(struct.pack("<Ii", 2, -1) + bytes(8)))),
    "damaged compression": lambda p: p.write_bytes(version5(element(15, zlib.compress(GOOD)[:-9] + bytes(9)))),
    "compressed text": lambda p: p.write_bytes(version5(element(15, zlib.compress(b"hello" * 99)))),
    "a bomb": lambda p: p.write_bytes(bomb(1500)),
    "10,000 nested cells": lambda p: p.write_bytes(version5(matrix(cells(10_000), kind=1, shape=(1, 1)))),
    "the other byte order, lying": lambda p: p.write_bytes(version5(GOOD).replace(b"IM", b"MI", 1)),
    "version 4, lying": lambda p: p.write_bytes(struct.pack("<5i", 0, 1 << 20, 1 << 20, 0, 2) + b"S\0" + bytes(64)),
    "version 7.3": lambda p: h5py.File(p, "w").close(),
}


def test_an_honest_matlab_file_is_read_in_the_child(tmp_path: Path) -> None:
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    savemat(tmp_path / "a.mat", {"S": label, "G": {"inner": label.astype(">i2")}}, do_compression=True)
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "S"), label)
    found = read_mat(tmp_path / "a.mat", "G.inner")
    np.testing.assert_array_equal(found, label)
    assert found.dtype.isnative
    (tmp_path / "b.mat").write_bytes(version5(matrix(element(2, bytes([1, 2, 3, 4])))))
    np.testing.assert_array_equal(read_mat(tmp_path / "b.mat", "S"), [[1, 3], [2, 4]])


def read_s(path: Path) -> object:
    return read_mat(path, "S")


@pytest.mark.parametrize("name", ["text", "a cell", "a negative side", "10,000 nested cells"])
def test_a_hostile_matlab_file_is_refused_without_any_effect(name: str, tmp_path: Path) -> None:
    refused(read_s, MATLAB[name], tmp_path / "in" / "label.mat")


@pytest.mark.slow
def test_every_hostile_matlab_file_is_refused_without_any_effect(tmp_path: Path) -> None:
    all_refused(read_s, MATLAB, tmp_path)


# HDF5


def hdf5(fill: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            fill(file)

    return write


def hdf5_cut(path: Path) -> None:
    hdf5(lambda f: f.create_dataset("images", data=np.ones((3, 500), "u1")))(path)
    os.truncate(path, path.stat().st_size - 700)


HDF5: dict[str, Callable[[Path], object]] = {
    "empty": lambda p: p.touch(),
    "text": lambda p: p.write_text("\x89HDF\r\n\x1a\n" + "hello" * 100),
    "cut": hdf5_cut,
    "text instead of numbers": hdf5(lambda f: f.create_dataset("images", data=["a", "b", "c"])),
    "references": hdf5(lambda f: f.create_dataset("images", (3,), dtype=h5py.ref_dtype)),
    "too few frames": hdf5(lambda f: f.create_dataset("images", (1, 2), "u1")),
    "a single number": hdf5(lambda f: f.create_dataset("images", data=7)),
    "a frame of a terabyte": hdf5(lambda f: f.create_dataset("images", (3, 1 << 20, 1 << 20), "u1", chunks=(1, 1, 64))),
}


def read_images(path: Path) -> object:
    return _images.ask(path, {"names": ["images"], "index": 2})


_images = Session("fullyconv.sandbox.matlab:read_hdf5")


@pytest.mark.parametrize("name", HDF5)
def test_a_hostile_hdf5_file_is_refused_without_any_effect(name: str, tmp_path: Path) -> None:
    refused(read_images, HDF5[name], tmp_path / "in" / "frames.mat")


SECRET = np.frombuffer(b"the secret of another file!!", np.uint8).reshape(2, 14)


def storage_elsewhere(path: Path) -> None:
    """A dataset whose values are the bytes of any file: here of one beside it."""
    (path.parent / "secret.txt").write_bytes(SECRET.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("images", SECRET.shape, "u1", external=[(str(path.parent / "secret.txt"), 0, SECRET.size)])


def other_hdf5(path: Path) -> Path:
    hdf5(lambda f: f.create_dataset("inner/images", data=SECRET))(path.parent / "secret.h5")
    return path.parent / "secret.h5"


def link_elsewhere(path: Path) -> None:
    hdf5(lambda f: f.__setitem__("images", h5py.ExternalLink(str(other_hdf5(path)), "/inner/images")))(path)


def link_to_a_link_elsewhere(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/out"] = h5py.ExternalLink(str(other_hdf5(path)), "/inner")
        file["images"] = h5py.SoftLink("group/out/images")


def virtual_elsewhere(path: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, "u1")
    layout[:] = h5py.VirtualSource(str(other_hdf5(path)), "inner/images", SECRET.shape, "u1")
    hdf5(lambda f: f.create_virtual_dataset("images", layout))(path)


ELSEWHERE = {
    "external storage": storage_elsewhere, "a link to another file": link_elsewhere,
    "a virtual dataset": virtual_elsewhere,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*ELSEWHERE, "a link to another file, behind one of its own"])
def test_an_hdf5_file_that_has_others_read_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    write = ELSEWHERE.get(kind, link_to_a_link_elsewhere)
    write(tmp_path / "a.mat")
    with h5py.File(tmp_path / "a.mat") as file:
        assert np.array_equal(file["images"][:], SECRET), "the secret is there for whoever follows"
    for index in (None, 1):
        with pytest.raises(DataError, match=kind.split(",")[0]) as caught:
            matlab.read_hdf5(str(tmp_path / "a.mat"), ["images"], index)
        assert str(tmp_path / "a.mat") in str(caught.value)


def test_a_confined_reader_refuses_them_too(tmp_path: Path) -> None:
    for name, write in ELSEWHERE.items():
        write(tmp_path / "a.mat")
        with pytest.raises(DataError, match=name):
            _images.ask(tmp_path / "a.mat", {"names": ["images"], "index": 1})


def test_links_within_an_hdf5_file_are_followed_and_circles_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["group/inner"] = SECRET
        file["alias"] = h5py.SoftLink("/group/inner")
        file["alias of it"] = h5py.SoftLink("alias")
        file["nothing"] = h5py.SoftLink("/group/none")
    found, info = matlab.read_hdf5(str(tmp_path / "a.mat"), ["alias", "alias of it"], 1)
    assert np.array_equal(found["alias"], SECRET[1])
    assert np.array_equal(found["alias of it"], SECRET[1])
    assert info == {"shapes": {"alias": [2, 14], "alias of it": [2, 14]}}
    hdf5(lambda f: f.__setitem__("images", h5py.SoftLink("/images")))(tmp_path / "b.mat")
    with pytest.raises(DataError, match="without end"):
        matlab.read_hdf5(str(tmp_path / "b.mat"), ["images"], 1)


# The child that stays


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Any:
    """One that waits a minute beyond 8 seconds, as ever; for what sleeps, 3 seconds in all."""
    asleep = "callspec" in vars(request.node) and request.node.callspec.params.get("mood") == "sleeps"
    session = Session("sandbox_readers:moody", memory=256 << 20, seconds=2, grace=-5 if asleep else GRACE)
    yield session
    session.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "data"
    path.parent.mkdir()
    path.write_bytes(bytes(range(100)))
    return path


def process_of(session: Session, data: Path) -> int:
    """The process that reads, as we see it; to itself it may be the only one there is."""
    answer = int(session.ask(data, {"mood": "process"})[1])
    assert session._child is not None
    seen = session._child._number if seccomp.supported() else session._child.process.pid
    assert answer in (seen, 1)
    return seen


def test_one_child_serves_many_files_and_survives_refusals(session: Session, data: Path) -> None:
    first = process_of(session, data)
    for times in (3, 1, 2):
        tensors, info = session.ask(data, {"mood": "honest", "times": times})
        assert np.array_equal(tensors["bytes"], np.tile(np.arange(100, dtype=np.uint8), times))
        assert info == {"path": str(data), "times": times}
        with pytest.raises(DataError, match="not good enough"):
            session.ask(data, {"mood": "refuses"})
    with pytest.raises(MissingInput):
        session.ask(data.parent / "none", {"mood": "honest"})
    assert process_of(session, data) == first


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("fails", "KeyError"),
        ("eats_memory", "far more memory"),
        ("crashes", "crashed its reader"),
        ("leaves", "no whole answer"),
        ("floods", "refused|could not be read"),
        ("eats_time", "too long"),
        ("busy", "too long"),
        ("sleeps", "too long"),
    ],
)
def test_a_child_that_fails_is_an_error_and_is_replaced(mood: str, words: str, session: Session, data: Path) -> None:
    first, start = process_of(session, data), time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        session.ask(data, {"mood": mood})
    assert time.monotonic() - start < 60, "its processor time is counted, not only the clock on the wall"
    assert str(data) in str(caught.value)
    assert process_of(session, data) != first
    assert gone([first])


@pytest.mark.skipif(not seccomp.supported(), reason="the kernel's wall is Linux's")
def test_the_child_that_stays_can_do_nothing_but_read(session: Session, data: Path) -> None:
    for _ in range(2):
        _, answer = session.ask(data, {"mood": "attempts"})
        assert len(answer) > 30
        assert not [label for label, outcome in answer.items() if outcome == "allowed"], answer
    assert os.listdir(data.parent) == ["data"]


def test_a_forked_process_has_a_child_of_its_own(session: Session, data: Path) -> None:
    ours = process_of(session, data)

    def work() -> None:
        assert process_of(session, data) not in (ours, 0)

    assert in_fork(work) == 0
    assert process_of(session, data) == ours


def test_the_child_ends_when_its_parent_is_killed(data: Path) -> None:
    def work() -> None:
        session = Session("sandbox_readers:moody")
        (data.parent / "pid").write_text(str(process_of(session, data)))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_fork(work) == signal.SIGKILL
    assert gone([int((data.parent / "pid").read_text())])


def gone(pids: list[int], seconds: float = 10) -> bool:
    """Whether these processes end within so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.skipif(not seccomp.supported(), reason="the guardian is Linux's")
def test_children_busy_in_native_code_end_when_their_parent_is_killed(data: Path) -> None:
    def work() -> None:
        sessions = [Session("sandbox_readers:moody", seconds=600) for _ in range(4)]
        children = [process_of(session, data) for session in sessions]
        for session in sessions:
            threading.Thread(target=lambda s=session: s.ask(data, {"mood": "busy"}), daemon=True).start()
        before = [session._child.used() for session in sessions]  # type: ignore[union-attr]
        while not all(s._child.used() > b + 0.05 for s, b in zip(sessions, before, strict=True)):  # type: ignore[union-attr]
            time.sleep(0.02)
        guardians = [session._child.process.pid for session in sessions]  # type: ignore[union-attr]
        (data.parent / "pids").write_text(" ".join(map(str, children + guardians)))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_fork(work) == signal.SIGKILL
    pids = [int(pid) for pid in (data.parent / "pids").read_text().split()]
    assert len(set(pids)) == 8
    assert gone(pids)


@pytest.mark.skipif(not seccomp.supported(), reason="the guardian is Linux's")
def test_a_busy_child_ends_with_its_guardian_and_one_is_not_ended_by_the_thread_that_started_it(
    session: Session, data: Path
) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(process_of(session, data)))
    thread.start()
    thread.join()
    time.sleep(0.1)
    assert process_of(session, data) == found[0]
    assert session._child is not None
    guardian = session._child.process.pid
    killer = threading.Timer(0.3, lambda: os.kill(guardian, signal.SIGKILL))
    killer.start()
    with pytest.raises(DataError, match="too long or too much"):
        session.ask(data, {"mood": "busy"})
    assert gone(found)


# Archives: what the child says is foreign too


def extract_with(reader: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    real = archives._Reader
    monkeypatch.setattr(archives, "_Reader", lambda source: real(source, f"sandbox_readers:{reader}"))
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        archive.writestr("a", "b")
    return archives.extract(tmp_path / "in" / "a.zip", tmp_path / "outer" / "out")


@pytest.mark.skipif(not seccomp.supported(), reason="the kernel's wall is Linux's")
def test_the_child_that_reads_an_archive_can_do_nothing_but_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = extract_with("tries_in_a_stream", monkeypatch, tmp_path)
    assert len(names) == 1
    assert int(names[0].removeprefix("refused ")) > 30
    assert os.listdir(tmp_path / "in") == ["a.zip"]


@pytest.mark.parametrize(
    "reader",
    ["frame_too_long", "frame_unknown", "frame_content_first", "frame_name_no_json", "frame_name_no_text",
     "frame_climbs", "frame_error_no_json", "stream_leaves", "stream_crashes", "stream_eats_memory"],
)  # fmt: skip
def test_a_child_that_lies_about_an_archive_is_refused_and_nothing_is_left(
    reader: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FullyconvError, match=r"refused|could not be read") as caught:
        extract_with(reader, monkeypatch, tmp_path)
    assert isinstance(caught.value, DataError), caught.value
    assert str(tmp_path / "in" / "a.zip") in str(caught.value)
    assert os.listdir(tmp_path / "outer") == []
