"""Archives that climb, link, explode or collide: everything inside one new directory, or nothing anywhere."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fullyconv import sandbox
from fullyconv.errors import DataError, FullyconvError, MissingInput, UsageError

CONTENT = {"a.txt": b"one", "folder/b.bin": bytes(range(256)) * 40, "folder/deep/c": b""}


def zip_of(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo | str, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_unpacks_to_its_files(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    if kind == "zip":
        zip_of(archive, list(CONTENT.items()))
    else:
        tar_of(archive, list(CONTENT.items()), kind)
    names = sandbox.extract(archive, tmp_path / "out")
    assert sorted(names) == sorted(CONTENT)
    for name, data in CONTENT.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_modes_and_owners_are_not_taken_over(tmp_path: Path) -> None:
    info = tarfile.TarInfo("tool")
    info.mode, info.uid = 0o6777, 12345
    tar_of(tmp_path / "a.tar", [(info, b"x")])
    sandbox.extract(tmp_path / "a.tar", tmp_path / "out")
    found = (tmp_path / "out" / "tool").stat()
    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR | stat.S_IWOTH)
    assert found.st_uid == os.getuid()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_link(name: str, kind: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def encrypted(path: Path) -> None:
    zip_of(path, [("a", b"data")])
    raw = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(magic) + offset] |= 1
    path.write_bytes(raw)


def sparse(path: Path) -> None:
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}
    tar_of(path, [(info, b"1\n0\n0\n".ljust(512, b"\0"))])


def repeated(path: Path) -> None:
    zip_of(path, [(f"f{i}", b"") for i in range(300)])


NAMES = [
    "../out.txt", "a/../../out.txt", "/tmp/absolute", "a/b/../../../x", "C:\\x", "c:x", "..\\x", "a\\..\\..\\x", "..",
    "new\nline", "escape\x1b[31m", "x" * 300, "/".join("d" * 120), "", "./..", "a/./../..",
]  # fmt: skip
HOSTILE: dict[str, Callable[[Path], None]] = {
    **{f"zip name {n[:20]!r}": (lambda p, n=n: zip_of(p, [("ok", b"1"), (n, b"x")])) for n in NAMES if n},
    **{f"tar name {n[:20]!r}": (lambda p, n=n: tar_of(p, [("ok", b"1"), (n, b"x")])) for n in NAMES},
    "zip symlink": lambda p: zip_of(p, [(zip_link("l"), b"/etc"), ("l/x", b"x")]),
    "zip device": lambda p: zip_of(p, [(zip_link("l", stat.S_IFCHR), b"")]),
    "zip fifo": lambda p: zip_of(p, [(zip_link("l", stat.S_IFIFO), b"")]),
    "zip encrypted": encrypted,
    "zip same name": lambda p: zip_of(p, [("a", b"1"), ("a", b"2")]),
    "zip same name by case": lambda p: zip_of(p, [("Name", b"1"), ("name", b"2")]),
    "zip file as folder": lambda p: zip_of(p, [("a", b"1"), ("a/b", b"2")]),
    "zip bomb": lambda p: zip_of(p, [("zeros", bytes(70 << 20))]),
    "zip bomb in pieces": lambda p: zip_of(p, [(f"z{i}", bytes(14 << 20)) for i in range(5)]),
    "zip cut": lambda p: (zip_of(p, list(CONTENT.items())), p.write_bytes(p.read_bytes()[:-30]))[0],
    "zip damaged": lambda p: (zip_of(p, [("a", os.urandom(999))]), p.write_bytes(flipped(p.read_bytes(), 300)))[0],
    "tar symlink": lambda p: tar_of(p, [(special("l", tarfile.SYMTYPE, "/etc"), b""), ("l/x", b"x")]),
    "tar inner symlink": lambda p: tar_of(p, [(special("l", tarfile.SYMTYPE, "."), b"")]),
    "tar hard link": lambda p: tar_of(p, [(special("l", tarfile.LNKTYPE, "/etc/passwd"), b"")]),
    "tar device": lambda p: tar_of(p, [(special("d", tarfile.CHRTYPE), b"")]),
    "tar block device": lambda p: tar_of(p, [(special("d", tarfile.BLKTYPE), b"")]),
    "tar fifo": lambda p: tar_of(p, [(special("d", tarfile.FIFOTYPE), b"")]),
    "tar sparse": sparse,
    "tar gz bomb": lambda p: tar_of(p, [("zeros", bytes(70 << 20))], "w:gz"),
    "tar xz bomb": lambda p: tar_of(p, [("zeros", bytes(70 << 20))], "w:xz"),
    "tar cut": lambda p: (tar_of(p, [("a", bytes(9999))]), p.write_bytes(p.read_bytes()[:4000]))[0],
    "tar.gz cut": lambda p: (tar_of(p, [("a", os.urandom(99999))], "w:gz"), p.write_bytes(p.read_bytes()[:4000]))[0],
    "not an archive": lambda p: p.write_bytes(b"hello" * 100) and None,
    "empty": lambda p: p.touch(),
}  # fmt: skip


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_leaves_nothing_anywhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outer").mkdir()
    archive = tmp_path / "in" / "archive"
    HOSTILE[name](archive)
    with pytest.raises(FullyconvError) as caught:
        sandbox.extract(archive, tmp_path / "outer" / "out")
    assert isinstance(caught.value, DataError), caught.value
    assert str(archive) in str(caught.value)
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path / "outer") == []
    assert sorted(os.listdir(tmp_path)) == ["in", "outer"]


def test_more_entries_than_allowed_are_refused(tmp_path: Path) -> None:
    repeated(tmp_path / "a.zip")
    assert len(sandbox.extract(tmp_path / "a.zip", tmp_path / "all", max_entries=300)) == 300
    with pytest.raises(DataError, match="more than 299 entries"):
        sandbox.extract(tmp_path / "a.zip", tmp_path / "some", max_entries=299)
    assert not (tmp_path / "some").exists()


def test_a_missing_archive_and_an_existing_directory_are_said(tmp_path: Path) -> None:
    with pytest.raises(MissingInput):
        sandbox.extract(tmp_path / "none.zip", tmp_path / "out")
    zip_of(tmp_path / "a.zip", [("a", b"")])
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        sandbox.extract(tmp_path / "a.zip", tmp_path / "out")
