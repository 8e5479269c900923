"""`data download` against a server on this machine that cuts, lies and redirects; `data convert` of what was read."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fullyconv import scenes
from fullyconv.data import open_dataset
from fullyconv.data.corpora.conversion import convert_dataset
from fullyconv.data.corpora.download import ELSEWHERE, SOURCES, Source, fetch_corpus
from fullyconv.errors import DataError, FullyconvError, TryAgain, UnknownName, UsageError
from fullyconv.images import write_label


def archive(extra: str = "") -> bytes:
    """A tar of a one-image VOC2012, with one more member of the name `extra`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        jpeg, png = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (9, 7), (1, 2, 3)).save(jpeg, "JPEG")
        Image.new("L", (9, 7), 5).save(png, "PNG")
        base = "VOCdevkit/VOC2012"
        add(f"{base}/ImageSets/Segmentation/train.txt", b"2007_000032\n")
        add(f"{base}/JPEGImages/2007_000032.jpg", jpeg.getvalue())
        add(f"{base}/SegmentationClass/2007_000032.png", png.getvalue())
        add(f"{base}/padding", bytes(range(256)) * 800)
        if extra:
            add(extra, b"bad")
    return out.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `body` at /good; /cut breaks off after half until asked for the rest; /lie serves other bytes."""

    body = archive()
    asked: list[tuple[str, str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        part = self.headers.get("Range")
        self.server.asked.append((self.path, part))
        if self.path.startswith("/moved"):
            return self.redirect("/good/VOC.tar")
        if self.path.startswith("/loop"):
            return self.redirect(self.path)
        if self.path.startswith("/ftp"):
            return self.redirect("ftp://127.0.0.1/VOC.tar")
        if self.path.startswith("/gone"):
            return self.send_error(404)
        body = self.server.body
        if self.path.startswith("/lie"):
            body = body[:-1] + b"!"
        start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", '"one"')
        if part:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        stop = len(body) // 2 if self.path.startswith("/cut") and not part else len(body)
        self.wfile.write(body[start:stop])
        return None

    def redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.asked = []
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def source(server: Server, path: str, digest: str | None = "") -> dict[str, Source]:
    url = f"http://127.0.0.1:{server.server_address[1]}/{path}/VOC.tar"
    known = hashlib.sha256(server.body).hexdigest() if digest == "" else digest
    return {"tiny": Source(url, known, "voc", "VOCdevkit", "none")}


def test_an_archive_is_fetched_checked_unpacked_and_can_be_opened(server: Server, tmp_path: Path) -> None:
    folder = fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "good"), allow_http=True)
    data = open_dataset(f"voc:{folder}")
    assert [r.name for r in data.records] == ["2007_000032"]
    assert (data[0].labels["semantic"] == 5).all()
    record = json.loads((tmp_path / "voc/SOURCE.json").read_text())
    assert record["sha256"] == record["published"] == hashlib.sha256(server.body).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["voc"]  # no archive, no lock, no part


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "cut"), allow_http=True)
    asked = [part for _, part in server.asked]
    assert asked[0] is None
    assert asked[1:] == [f"bytes={len(server.body) // 2}-"]


def test_redirects_are_followed_within_limits(server: Server, tmp_path: Path) -> None:
    fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "moved"), allow_http=True)
    for path, words in (("loop", "redirects more than"), ("ftp", "not https")):
        with pytest.raises(FullyconvError, match=words):
            fetch_corpus("tiny", tmp_path / path, sources=source(server, path), allow_http=True)
        assert not (tmp_path / path).exists()


def test_other_bytes_than_published_are_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="other bytes"):
        fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "lie"), allow_http=True)
    assert not (tmp_path / "voc").exists()
    assert not list((tmp_path / "voc.download").glob("*.tar*"))[1:]  # nothing but the lock


def test_without_a_published_digest_the_one_found_is_recorded(server: Server, tmp_path: Path) -> None:
    fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "good", None), allow_http=True)
    record = json.loads((tmp_path / "voc/SOURCE.json").read_text())
    assert record["published"] is None
    assert record["sha256"] == hashlib.sha256(server.body).hexdigest()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "VOCdevkit/../../outside.txt"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, server: Server, tmp_path: Path) -> None:
    server.body = archive(name)
    with pytest.raises(DataError, match="may be unpacked"):
        fetch_corpus("tiny", tmp_path / "voc", sources=source(server, "good"), allow_http=True)
    assert not (tmp_path / "voc").exists()
    assert not list(tmp_path.rglob("outside.txt"))


def test_what_cannot_be_fetched_says_why(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        fetch_corpus("voc2012", tmp_path)
    for name in ELSEWHERE:
        with pytest.raises(UsageError, match="get it from"):
            fetch_corpus(name, tmp_path / "new")
    with pytest.raises(UnknownName, match="voc2012"):
        fetch_corpus("voc2021", tmp_path / "new")
    with pytest.raises(FullyconvError, match="404"):
        fetch_corpus("tiny", tmp_path / "new", sources=source(server, "gone"), allow_http=True)
    with pytest.raises(UsageError, match="https"):
        fetch_corpus("tiny", tmp_path / "new", sources=source(server, "good"))
    assert not issubclass(TryAgain, DataError)


def test_every_source_is_https_and_read_by_a_known_kind() -> None:
    from fullyconv.data import KINDS

    for entry in SOURCES.values():
        assert entry.url.startswith("https://")
        assert entry.kind in KINDS
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32


# ---- convert ---------------------------------------------------------------------------------------------------


def test_convert_keeps_images_labels_classes_and_splits(tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "scenes", train=2, val=1, size=(24, 32), seed=2)
    counts = convert_dataset(f"folder:{root}", tmp_path / "plain", inputs=["rgb", "depth"])
    assert counts == {"train": 2, "val": 1}
    for split in counts:
        old = open_dataset(f"folder:{root}", split, inputs=["rgb", "depth"])
        new = open_dataset(f"folder:{tmp_path / 'plain'}", split, inputs=["rgb", "depth"])
        assert new.taxonomies == old.taxonomies
        for a, b in zip(old, new, strict=True):
            assert np.array_equal(a.image, b.image)
            assert all(np.array_equal(a.labels[h], b.labels[h]) for h in old.taxonomies)
    with pytest.raises(UsageError, match="exists"):
        convert_dataset(f"folder:{root}", tmp_path / "plain")


def test_convert_writes_index_pngs_of_formats_without_label_files(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "x.png")
    square = {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    value = {"shapes": [square], "imagePath": "x.png", "imageData": None, "imageHeight": 30, "imageWidth": 40}
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert convert_dataset(f"labelme:{tmp_path}", tmp_path / "plain") == {"all": 1}
    label = Image.open(tmp_path / "plain/labels/x.png")
    assert label.mode == "P"
    assert np.array_equal(np.asarray(label), open_dataset(f"labelme:{tmp_path}")[0].labels["semantic"])
    assert (tmp_path / "plain/classes.txt").read_text().startswith("background 0 0 0\ncat 128 0 0\n")


def test_convert_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "in" / folder).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "in/images/a.png")
    write_label(tmp_path / "in/labels/a.png", np.full((6, 8), 9, np.uint8))
    (tmp_path / "in/classes.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="no class"):
        convert_dataset(f"folder:{tmp_path / 'in'}", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_command_makes_and_converts_scenes(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "fullyconv", "data", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120)

    made = run("scenes", "-o", tmp_path / "s", "--train", 1, "--val", 1, "--height", 24, "--width", 32)
    assert made.stdout == f"folder:{tmp_path / 's'}\n", made.stderr
    done = run("convert", f"folder:{tmp_path / 's'}", "-o", tmp_path / "p", "--json", "--quiet")
    assert json.loads(done.stdout) == {"train": 1, "val": 1}, done.stderr
    refused = run("download", "cityscapes", "-o", tmp_path / "c")
    assert (refused.returncode, "account" in refused.stderr) == (2, True)
