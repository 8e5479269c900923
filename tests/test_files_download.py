"""Downloads against servers that cut, lie, redirect and forget: the right file or none, and no byte fetched twice."""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fullyconv import files
from fullyconv.errors import DataError, FullyconvError, InternalError, MissingInput, StorageError, TryAgain, UsageError

DATA = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Server:
    """A local server whose `answer(handler)` the test sets; `ranges` are the Range headers it saw."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.answer: Callable[[http.server.BaseHTTPRequestHandler], None] = whole
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/weights.bin"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "FULLYCONV_OFFLINE":
            monkeypatch.delenv(name)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def send(handler: http.server.BaseHTTPRequestHandler, status: int, body: bytes, cut: int | None = None, **more: str
         ) -> None:  # fmt: skip
    handler.send_response(status)
    headers = {"Content-Length": str(len(body)), "ETag": '"v1"', **{k.replace("_", "-"): v for k, v in more.items()}}
    for name, value in headers.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body[:cut])


def whole(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, DATA)


def ranged(handler: http.server.BaseHTTPRequestHandler, cut: int | None = None, etag: str = '"v1"') -> None:
    """An honest server with Range and If-Range; the connection breaks after `cut` bytes of the body."""
    wanted = handler.headers.get("Range")
    if wanted is None or handler.headers.get("If-Range") != etag:
        return send(handler, 200, DATA, cut, ETag=etag)
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(DATA):
        return send(handler, 416, b"", Content_Range=f"bytes */{len(DATA)}")
    return send(handler, 206, DATA[start:], cut, ETag=etag, Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")


def fetch(server: Server, path: Path, **options: object) -> Path:
    return files.download(server.url, path, **{"sha256": SHA, "allow_http": True, "timeout": 5.0} | options)  # type: ignore[arg-type]


def nothing_unverified(path: Path) -> bool:
    return not path.exists() or path.read_bytes() == DATA


def test_a_download_arrives_once_and_is_checked_on_every_call(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "w.bin"
    seen: list[tuple[int, int | None]] = []
    assert fetch(server, path, progress=lambda *at: seen.append(at)) == path
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    fetch(server, path)
    assert len(server.ranges) == 1
    path.write_bytes(DATA[:-1] + b"?")  # a damaged cache is found and fetched anew
    fetch(server, path)
    assert len(server.ranges) == 2
    assert path.read_bytes() == DATA
    assert sorted(p.name for p in path.parent.iterdir()) == ["w.bin", "w.bin.lock"]


def test_a_connection_that_breaks_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(10):
        path = tmp_path / "w.bin"
        path.unlink(missing_ok=True)
        server.ranges.clear()
        cut = rng.randrange(1, len(DATA))
        server.answer = lambda handler, cut=cut: ranged(handler, None if len(server.ranges) > 1 else cut)
        fetch(server, path)
        assert path.read_bytes() == DATA
        assert server.ranges == [None, f"bytes={cut}-"]


def test_a_killed_download_is_resumed_by_the_next_process(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    server.answer = lambda handler: ranged(handler, 1000)
    with pytest.raises(TryAgain, match="where it stopped"):
        fetch(server, path)
    assert not path.exists()
    assert (tmp_path / "w.bin.part").stat().st_size == 4000
    server.ranges.clear()
    server.answer = ranged
    fetch(server, path)
    assert server.ranges == ["bytes=4000-"]
    assert path.read_bytes() == DATA


def test_a_changed_file_is_not_spliced_onto_the_old_part(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    (tmp_path / "w.bin.part").write_bytes(b"of another version")
    (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{server.url}", "version": "\\"v0\\""}}')
    server.answer = ranged
    fetch(server, path)
    assert server.ranges == ["bytes=18-"], "the part was offered, If-Range made the server send all"
    assert path.read_bytes() == DATA


def test_a_part_of_unknown_origin_is_not_built_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(DATA[:100])
    (tmp_path / "w.bin.part.json").write_text("[]")
    server.answer = ranged
    fetch(server, tmp_path / "w.bin")
    assert server.ranges == [None]


def test_a_part_is_gone_on_with_for_its_own_address_and_version_alone(server: Server, tmp_path: Path) -> None:
    asked: list[str | None] = []

    def careless(handler: http.server.BaseHTTPRequestHandler) -> None:
        """Gives the rest of whatever it has, whichever version was asked for."""
        asked.append(handler.headers.get("If-Range"))
        whole(handler)

    for url, versions in ((server.url, ['"v0"']), ("https://example.org/other", [None])):
        (tmp_path / "w.bin").unlink(missing_ok=True)
        (tmp_path / "w.bin.part").write_bytes(b"of another")
        (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{url}", "version": "\\"v0\\""}}')
        asked.clear()
        server.answer = careless
        fetch(server, tmp_path / "w.bin")
        assert asked == versions


def test_no_more_is_written_than_the_file_may_have(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: send(handler, 200, DATA * 50, Content_Length="")
    with pytest.raises(DataError, match=f"sends more than {len(DATA)} bytes"):
        fetch(server, tmp_path / "w.bin", size=len(DATA))
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < len(DATA) * 3


def test_a_complete_part_is_taken_after_416(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(DATA)
    (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{server.url}", "version": "\\"v1\\""}}')
    server.answer = ranged
    fetch(server, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == DATA


def test_a_part_that_is_too_long_begins_anew_after_416(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(DATA + b"more")
    (tmp_path / "w.bin.part.json").write_text(f'{{"url": "{server.url}", "version": "\\"v1\\""}}')
    server.answer = ranged
    fetch(server, tmp_path / "w.bin", size=len(DATA))
    assert (tmp_path / "w.bin").read_bytes() == DATA


def lying(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, DATA[:-1] + b"?")


def a_page(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, b"<html>sign in</html>")


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, DATA * 5, Content_Length="")


def other_part(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")


def zipped(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 200, DATA, Content_Encoding="gzip")


def refused(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 503, b"busy")


def absent(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 404, b"no")


def silent(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def circle(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 302, b"", Location="/again")


def to_file(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 302, b"", Location="file:///etc/passwd")


def to_ftp(handler: http.server.BaseHTTPRequestHandler) -> None:
    send(handler, 301, b"", Location="ftp://127.0.0.1/x")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lying, DataError), (a_page, DataError), (endless, DataError), (other_part, TryAgain), (zipped, DataError),
        (refused, TryAgain), (absent, MissingInput), (silent, TryAgain), (circle, DataError), (to_file, UsageError),
        (to_ftp, UsageError),
    ],
)  # fmt: skip
def test_a_server_that_lies_leaves_nothing_under_the_final_name(
    answer: Callable[[http.server.BaseHTTPRequestHandler], None],
    error: type[FullyconvError],
    server: Server,
    tmp_path: Path,
) -> None:
    server.answer = answer
    path = tmp_path / "w.bin"
    with pytest.raises(error):
        fetch(server, path, size=len(DATA) if answer is endless else None)
    assert not path.exists()
    server.answer = ranged  # and the next try succeeds
    fetch(server, path)
    assert path.read_bytes() == DATA


def test_random_cuts_and_lies_end_in_the_right_file_or_none(server: Server, tmp_path: Path) -> None:
    rng = random.Random(3)
    right = 0
    for i in range(30):
        path = tmp_path / f"{i}.bin"
        mood = [rng.choice([ranged, whole, lying, silent, other_part, "cut"]) for _ in range(12)]

        def answer(handler: http.server.BaseHTTPRequestHandler, mood: list[object] = mood) -> None:
            act = mood.pop()
            if act == "cut":
                ranged(handler, rng.randrange(len(DATA)))
            else:
                act(handler)  # type: ignore[operator]

        server.answer = answer
        try:
            fetch(server, path)
            right += 1
            assert path.read_bytes() == DATA
        except (DataError, TryAgain):
            assert not path.exists()
    assert 0 < right < 30


def test_a_redirect_to_an_allowed_address_is_followed(server: Server, tmp_path: Path) -> None:
    server.answer = lambda handler: (
        whole(handler) if handler.path == "/there" else send(handler, 307, b"", Location="/there")
    )
    fetch(server, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == DATA


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://h/x", "/etc/passwd", "data:,x"])
def test_only_https_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not https"):
        files.download(url, tmp_path / "x", sha256=SHA)
    assert os.listdir(tmp_path) == []


def test_nothing_is_fetched_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FULLYCONV_OFFLINE", "1")
    with pytest.raises(MissingInput, match="OFFLINE"):
        fetch(server, tmp_path / "w.bin")
    assert server.ranges == []
    (tmp_path / "w.bin").write_bytes(DATA)
    fetch(server, tmp_path / "w.bin")


@pytest.mark.parametrize("wrong", [{}, {"sha256": SHA[:63]}, {"sha256_prefix": "abc"}, {"sha256": "z" * 64}])
def test_a_download_without_a_checksum_is_our_own_mistake(wrong: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InternalError):
        files.download("https://example.invalid/x", tmp_path / "x", **wrong)  # type: ignore[arg-type]


def test_a_prefix_is_checked_where_no_more_is_known(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path / "a", sha256=None, sha256_prefix=SHA[:8])
    with pytest.raises(DataError, match="other bytes"):
        fetch(server, tmp_path / "b", sha256=None, sha256_prefix="01234567")


def test_a_file_too_large_for_the_disk_is_refused_before_it_is_received(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullyconv.files import fetch as module

    def none_left(_: Path, needed: int) -> None:
        raise StorageError(f"no room for {needed}")

    monkeypatch.setattr(module, "require_space", none_left)
    with pytest.raises(StorageError, match=str(len(DATA))):
        fetch(server, tmp_path / "w.bin")
