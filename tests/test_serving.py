"""The server: who is let in, limits one below, at and one above, deadlines, the queue, the worker's life, draining."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving_tools import Served, chunked, image_request, read_answer, request, serving
from typer.testing import CliRunner

from fullyconv.errors import UsageError
from fullyconv.images import BadImage
from fullyconv.serving.answers import described
from fullyconv.serving.gate import COMMON, ROUTES, Gate
from fullyconv.serving.wanted import BadQuery, Wanted, wanted
from fullyconv.serving.worker import Refused, decoded
from fullyconv.taxonomy import Taxonomy

SMALL = {
    "body": 4096, "headers": 1024, "header_count": 20, "header_seconds": 0.4, "body_seconds": 0.4, "per_address": 6,
    "connections": 12, "linger_seconds": 0.3, "work_seconds": 0.3, "chunks": 50, "chunk": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("serve", json.dumps(SMALL), "0.01") as found:
        yield found


# ---- Who is let in ----------------------------------------------------------------------------------------------

PNG = [(b"content-type", b"image/png"), (b"content-length", b"9")]
KEYED = Gate(keys=(__import__("hashlib").sha256(b"k" * 32).digest(),))
WIDE = Gate(hosts=frozenset({"labels.example.org"}), any_address=True)
HOST = (b"host", b"127.0.0.1:8000")


@pytest.mark.parametrize(
    ("gate", "method", "path", "headers", "status"),
    [
        (Gate(), "GET", "/", [HOST], None),
        (Gate(), "HEAD", "/page.js", [HOST], None),
        (Gate(), "GET", "/", [], 421),
        (Gate(), "GET", "/", [HOST, HOST], 421),
        (Gate(), "GET", "/", [(b"host", b"[::1]:8000")], None),
        (Gate(), "GET", "/", [(b"host", b"LOCALHOST")], None),
        (Gate(), "GET", "/", [(b"host", b"evil.example")], 421),
        (Gate(), "GET", "/", [(b"host", b"localhost.evil.example")], 421),
        (Gate(), "GET", "/", [(b"host", b"10.0.0.1")], 421),
        (Gate(), "GET", "/", [(b"host", b"localhost:8000:1")], 421),
        (Gate(), "GET", "/", [(b"host", b"localhost@evil.example")], 421),
        (WIDE, "GET", "/", [(b"host", b"10.0.0.1:80")], None),
        (WIDE, "GET", "/", [(b"host", b"labels.example.org")], None),
        (WIDE, "GET", "/", [(b"host", b"evil.example")], 421),
        (Gate(), "POST", "/v1/predict", [HOST, *PNG, (b"origin", b"http://127.0.0.1:8000")], None),
        (Gate(), "POST", "/v1/predict", [HOST, *PNG, (b"origin", b"http://evil.example")], 403),
        (Gate(), "POST", "/v1/predict", [HOST, *PNG, (b"origin", b"null")], 403),
        (Gate(), "POST", "/v1/predict", [HOST, *PNG, (b"sec-fetch-site", b"cross-site")], 403),
        (Gate(), "GET", "/v1/../etc/passwd", [HOST], 404),
        (Gate(), "POST", "/", [HOST], 405),
        (Gate(), "GET", "/v1/predict", [HOST], 405),
        (Gate(), "OPTIONS", "/v1/predict", [HOST], 405),
        (KEYED, "GET", "/v1/model", [HOST], 401),
        (KEYED, "GET", "/v1/model", [HOST, (b"authorization", b"Bearer " + b"k" * 32)], None),
        (KEYED, "GET", "/v1/model", [HOST, (b"authorization", b"Bearer " + b"k" * 31)], 401),
        (KEYED, "GET", "/v1/model", [HOST, (b"authorization", b"Basic " + b"k" * 32)], 401),
        (KEYED, "GET", "/metrics", [HOST], 401),
        (KEYED, "POST", "/v1/predict", [HOST, *PNG], 401),
        (KEYED, "GET", "/healthz", [HOST], None),
        (Gate(), "POST", "/v1/predict", [HOST, (b"content-type", b"text/plain"), PNG[1]], 415),
        (Gate(), "POST", "/v1/predict", [HOST, (b"content-type", b"multipart/form-data; boundary=x"), PNG[1]], 415),
        (Gate(), "POST", "/v1/predict", [HOST, (b"content-type", b"image/tiff"), PNG[1]], 415),
        (Gate(), "POST", "/v1/predict", [HOST, *PNG, (b"content-encoding", b"gzip")], 415),
        (Gate(), "POST", "/v1/predict", [HOST, PNG[0], (b"content-length", b"99999999999")], 413),
        (Gate(), "POST", "/v1/predict", [HOST, PNG[0], (b"content-length", b"0")], 400),
        (Gate(), "POST", "/v1/predict", [HOST, PNG[0]], 411),
    ],
)  # fmt: skip
def test_the_gate_lets_in_whom_it_should(gate: Gate, method: str, path: str, headers: list, status: int | None) -> None:
    refusal = gate.refusal(method, path, headers)
    assert (refusal and refusal.status) == status


def test_no_answer_allows_another_origin_and_every_one_bears_the_same_headers(served: Served) -> None:
    answers = [served.get(p) for p in ROUTES if ROUTES[p][0] == "GET"]
    answers += [
        served.get("/nowhere"),
        served.post(b"x"),
        served.ask(b"nonsense\r\n\r\n"),
        served.get("/", "Upgrade: h2c"),
    ]
    for status, headers, body in answers:
        assert {k.decode(): v.decode() for k, v in COMMON}.items() <= headers.items(), status
        assert not [k for k in headers if k.startswith("access-control") or k == "server"]
        if status >= 400:
            assert set(json.loads(body)) == {"type", "title", "status", "code", "detail", "request_id"}
    assert "'unsafe" not in answers[0][1]["content-security-policy"]


def test_the_routes_are_these_and_none_takes_a_name(served: Served) -> None:
    from fullyconv.serving.app import application
    from fullyconv.serving.pool import Pool
    from fullyconv.serving.prometheus import Figures
    from fullyconv.serving.protocol import Connections
    from fullyconv.serving.request_limits import Limits

    gate, pool = Gate(), Pool({}, Limits(), lambda error: None)
    app = application(pool, gate, Figures(pool, Connections(gate)))
    routes = {r.path for r in app.app.routes}  # type: ignore[attr-defined]
    assert routes == set(ROUTES)
    assert not [r for r in routes if "{" in r]
    described = json.loads(served.get("/openapi.json")[2])["paths"]
    assert set(described) <= routes
    assert "/v1/predict" in described


@pytest.mark.parametrize(
    "query", ["path=/etc/passwd", "output=svg", "head=1", "head=-1", "head=%d9%a1", "output=json&output=json",
              "polygons=2",
              "model=x", "url=http://a", "&" * 40, "=", "output", "head=0000", "output=%ff"],
)  # fmt: skip
def test_a_query_holds_nothing_but_the_fixed_words(query: str) -> None:
    with pytest.raises(BadQuery):
        wanted(query.encode(), 1)


def test_the_fixed_words_are_taken() -> None:
    assert wanted(b"", 1) == Wanted()
    assert wanted(b"output=overlay&head=1", 2) == Wanted("overlay", 1)
    assert wanted(b"output=json&polygons=1&labels=1", 1) == Wanted("json", 0, True, True)


@pytest.mark.parametrize(("rights", "key", "message"), [(0o644, "k" * 20, "chmod"), (0o600, "k" * 19, "20 characters")])
def test_a_key_that_others_can_read_or_guess_is_refused(tmp_path: Path, rights: int, key: str, message: str) -> None:
    from fullyconv.serving.server import read_keys

    file = tmp_path / "keys"
    file.write_text(key + "\n")
    file.chmod(rights)
    with pytest.raises(UsageError, match=message):
        read_keys(file)
    file.write_text("k" * 20 + "\n")
    file.chmod(0o600)
    assert len(read_keys(file)) == 1


def test_another_address_needs_a_key_or_a_word() -> None:
    from fullyconv import cli
    from fullyconv.cli import app

    if not app.registered_commands:
        cli._register()
    found = CliRunner().invoke(app, ["serve", "nowhere", "--host", "0.0.0.0"])
    assert isinstance(found.exception, UsageError)
    assert "--api-key-file" in str(found.exception)


# ---- Limits: one below, at, one above -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "status"), [(4095, 200), (4096, 200), (4097, 413)])
def test_the_body_limit(served: Served, size: int, status: int) -> None:
    assert served.post(b"p" * size)[0] == status
    assert served.ask(chunked(b"p" * 1000, b"p" * (size - 1000)))[0] == status


@pytest.mark.parametrize(("size", "status"), [(1023, 200), (1024, 200), (1025, 431)])
def test_the_header_limit_whole_and_in_pieces(served: Served, size: int, status: int) -> None:
    bare = request("GET", "/healthz", "X: ")
    data = request("GET", "/healthz", "X: " + "v" * (size - len(bare)))
    assert len(data) == size
    assert served.ask(data)[0] == status
    with served.connect() as s:
        s.sendall(data[:600])
        time.sleep(0.02)
        s.sendall(data[600:])
        assert read_answer(s)[0] == status


@pytest.mark.parametrize(("count", "status"), [(19, 200), (20, 200), (21, 431)])
def test_the_limit_on_the_number_of_headers(served: Served, count: int, status: int) -> None:
    assert served.get("/healthz", *(f"X{i}: 1" for i in range(count - 1)))[0] == status


@pytest.mark.parametrize(("held", "status"), [(4, 200), (5, 200), (6, 429)])
def test_the_limit_on_one_addresss_connections(served: Served, held: int, status: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(held):
            stack.enter_context(served.connect("127.0.0.7"))
        assert served.ask(request("GET", "/healthz"), "127.0.0.7")[0] == status
        assert served.ask(request("GET", "/healthz"), "127.0.0.8")[0] == 200
    time.sleep(0.05)


def test_when_all_connections_are_taken_the_slowest_one_makes_room(served: Served) -> None:
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(served.connect(f"127.0.1.{i}")) for i in range(12)]
        assert served.get("/healthz")[0] == 200
        assert read_answer(held[0])[0] == 0  # the longest silent one
    time.sleep(0.05)


def test_bodies_that_are_sent_at_once_have_a_limit_together() -> None:
    with serving("serve", json.dumps({"bodies": 3000, "body": 2500, "body_seconds": 30}), "0.01") as served:
        with served.connect() as s:
            s.sendall(image_request(b"p" * 2000, length=2500))
            held = time.monotonic() + 20
            while served.post(b"p" * 2000)[0] != 429:  # the server may not have read the first one yet
                assert time.monotonic() < held, "2,000 and 2,000 bytes are held where 3,000 are allowed"
        held = time.monotonic() + 20
        while served.post(b"p" * 2000)[0] != 200:  # let go with its connection
            assert time.monotonic() < held, "what a connection held is held after its end"


@pytest.mark.slow
def test_where_every_connection_is_being_answered_no_other_is_taken() -> None:
    with serving("serve", json.dumps({"connections": 2, "per_address": 9}), "3") as served:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(served.post(b"p")[0])) for _ in range(2)]
        for t in threads:
            t.start()
        told = time.monotonic() + 2.5
        time.sleep(0.3)
        while served.get("/healthz")[0] != 503:  # until both are there
            assert time.monotonic() < told, "a third connection is served beside two that wait for their answers"
            time.sleep(0.2)
        for t in threads:
            t.join()
        assert answers == [200, 200]


def _read_on(s: socket.socket) -> None:
    while s.recv(1 << 16):
        pass


def test_who_does_not_take_the_answers_is_cut_off() -> None:
    limits = json.dumps({"write_seconds": 0.2, "header_seconds": 30})
    with serving("serve", limits, "0.01") as served, socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(20)
        s.connect(("127.0.0.1", served.port))
        with contextlib.suppress(OSError):  # cut off while it asks
            for _ in range(3000):
                s.sendall(request("GET", "/page.js"))
        end = time.monotonic() + 20
        while served.figure('fullyconv_refused_total{code="slow_reader"}') != 1:
            assert time.monotonic() < end, "nobody was cut off"
            time.sleep(0.05)
        with pytest.raises(ConnectionResetError):
            _read_on(s)


def png(height: int, width: int, kind: str = "PNG") -> bytes:
    out = BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("height", "width", "status"), [(9, 11, 0), (10, 10, 0), (1, 101, 413), (1, 50, 0), (1, 51, 413), (51, 1, 413)]
)
def test_the_limits_on_pixels_and_sides(height: int, width: int, status: int) -> None:
    limits = {"pixels": 100, "side": 50}
    if not status:
        assert decoded(png(height, width), "image/png", limits).shape == (height, width, 3)
    else:
        with pytest.raises(Refused) as found:
            decoded(png(height, width), "image/png", limits)
        assert found.value.args[0] == status


def test_an_image_must_be_what_its_type_says_and_hold_one_frame() -> None:
    limits = {"pixels": 100, "side": 50}
    with pytest.raises(Refused, match="another kind"):
        decoded(png(4, 4, "JPEG"), "image/png", limits)
    frames, out = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")], BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    with pytest.raises(Refused, match="frames"):
        decoded(out.getvalue(), "image/webp", limits)
    for text in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"<html><script>"):
        with pytest.raises(BadImage):
            decoded(text, "image/png", limits)


def test_a_body_of_tiny_chunks_is_refused_early_and_one_of_larger_ones_is_taken(served: Served) -> None:
    assert served.ask(chunked(*[b"p"] * 50))[0] == 200
    assert served.ask(chunked(*[b"p"] * 51))[0] == 400
    assert served.ask(chunked(*[b"p" * 8] * 60))[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (chunked(b"p").replace(b"Transfer", b"Content-Length: 3\r\nTransfer"), 400),
        (request("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: -5"), 400),
        (request("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: " + "9" * 400), 400),
        (request("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: 99999999999"), 413),
        (request("POST", "/v1/predict", "Content-Type: image/png", "Content-Length: 1", "Content-Length: 2"), 400),
        (request("POST", "/v1/predict", "Content-Type: image/png", "Transfer-Encoding: gzip"), 400),
        (request("GET", "/", "Connection: Upgrade", "Upgrade: websocket"), 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n b: c\r\n\r\n", 421),
        (b"GET / HTTP/9.9\r\n\r\n", 421),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_what_no_honest_client_sends_is_refused_before_a_body_is_read(served: Served, data: bytes, status: int) -> None:
    assert served.ask(data)[0] == status


def test_an_early_refusal_reaches_a_client_that_is_still_sending(served: Served) -> None:
    for _ in range(5):
        status, headers, _ = served.ask(image_request(b"p" * 500_000))
        assert (status, headers.get("reset")) == (413, None)


def test_a_client_that_asks_before_it_sends_is_told_to_go_on_or_not_to(served: Served) -> None:
    with served.connect() as s:
        s.sendall(image_request(b"", "Expect: 100-continue", length=5))
        assert s.recv(100).startswith(b"HTTP/1.1 100")
        s.sendall(b"12345")
        assert read_answer(s)[0] == 200
    assert served.ask(image_request(b"", "Expect: 100-continue", length=5000))[0] == 413


# ---- Deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET / HT", 408), (image_request(b"123", length=9), 408), (b"", 0)],
    ids=["headers", "body", "silent"],
)
def test_who_does_not_finish_is_cut_off_however_it_trickles(served: Served, data: bytes, status: int) -> None:
    begun = time.monotonic()
    with served.connect() as s:
        s.sendall(data)
        while time.monotonic() - begun < 0.3:
            time.sleep(0.08)
            if data:
                s.sendall(b"X")
        assert read_answer(s)[0] == status
        assert 0.3 < time.monotonic() - begun < 10


def test_a_connection_serves_one_request_after_another(served: Served) -> None:
    with served.connect() as s:
        for _ in range(3):
            s.sendall(image_request(b"abc"))
            status, _, body = read_answer(s)
            assert (status, json.loads(body)["bytes"]) == (200, 3)
        s.sendall(request("GET", "/healthz") * 2)  # pipelined
        assert [read_answer_exactly(s) for _ in range(2)] == [200, 200]


def read_answer_exactly(s: socket.socket) -> int:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += s.recv(1)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while length:
        length -= len(s.recv(length))
    return int(head.split()[1])


@pytest.mark.slow
def test_work_past_its_deadline_is_answered_with_504_and_the_worker_replaced() -> None:
    with serving("serve", json.dumps({"work_seconds": -4.7}), "0") as served:  # less than the grace of 5 seconds
        assert served.post(b"hang")[0] == 504
        served.until_ready()
        assert served.figure("fullyconv_worker_starts") == 2


# ---- The queue and the worker's life ------------------------------------------------------------------------------


def test_one_is_labelled_one_waits_and_every_other_is_told_to_come_back() -> None:
    with serving("serve", json.dumps({"per_address": 99}), "0.6") as served:
        found: list[tuple[int, dict[str, str], bytes]] = []
        threads = [threading.Thread(target=lambda: found.append(served.post(b"p"))) for _ in range(2)]
        for t in threads:
            t.start()
            time.sleep(0.1)
        refused = [served.post(b"p") for _ in range(12)]
        assert {(status, headers["retry-after"]) for status, headers, _ in refused} == {(429, "1")}
        for t in threads:
            t.join()
        assert [status for status, _, _ in found] == [200, 200]
        assert served.figure('fullyconv_refused_total{code="busy"}') == 12


@pytest.mark.slow
def test_what_nobody_waits_for_is_not_labelled() -> None:
    with serving("serve", json.dumps({"waiting": 9}), "0.3") as served:
        running = threading.Thread(target=served.post, args=(b"p",))
        running.start()
        time.sleep(0.1)
        for _ in range(5):
            with served.connect() as s:
                s.sendall(image_request(b"p"))
                time.sleep(0.01)
        running.join()
        assert json.loads(served.post(b"p")[2])["answered"] == 2
        assert served.figure("fullyconv_abandoned_total") == 5


def test_a_worker_that_dies_is_replaced_and_one_that_dies_again_and_again_ends_the_server() -> None:
    with serving("serve", json.dumps({"deaths": 3}), "0") as served:
        for _ in range(2):
            assert served.post(b"die")[0] == 503
            status, headers, _ = served.get("/readyz")
            assert (status, headers["retry-after"]) in ((503, "5"), (503, "2"))  # ended, or being started by now
            assert served.get("/healthz")[0] == 200
            served.until_ready()
            assert served.post(b"p")[0] == 200
        served.post(b"die")
        assert served.process.wait(10) != 0
        assert served.process.stderr is not None
        assert "ended 3 times" in served.process.stderr.read()


def test_a_signal_lets_what_was_accepted_be_answered_and_refuses_the_rest() -> None:
    with serving("serve", json.dumps({"body_seconds": 60, "header_seconds": 60}), "0.4") as served:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(served.post(b"p")[0])) for _ in range(2)]
        half = [served.connect() for _ in range(4)]
        for i, s in enumerate(half):
            s.sendall(image_request(b"123", length=9) if i % 2 else b"GET / H")
        for t in threads:
            t.start()
            time.sleep(0.1)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert served.get("/readyz")[0] == 503
        assert json.loads(served.post(b"p")[2])["code"] == "draining"
        for t in threads:
            t.join()
        assert found == [200, 200]
        assert served.process.wait(5) == 0
        for s in half:
            s.close()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once() -> None:
    with serving("serve", "{}", "30") as served:
        threading.Thread(target=lambda: served.post(b"p"), daemon=True).start()
        time.sleep(0.2)
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(3)


@pytest.mark.slow
def test_no_worker_outlives_a_server_that_was_killed() -> None:
    with serving("serve", "{}", "0") as served:
        children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
        served.process.kill()
        end = time.monotonic() + 5
        while any(_alive(int(c)) for c in children) and time.monotonic() < end:
            time.sleep(0.02)
        assert children
        assert not any(_alive(int(c)) for c in children)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


# ---- Answers ------------------------------------------------------------------------------------------------------


def test_the_json_answer_counts_every_pixel_and_its_polygons_fill_them() -> None:
    labels = np.array([[0, 0, 2], [0, 2, 2], [0, 0, 0]], np.uint8)
    found = described(Wanted("json", 0, True, True), "a", labels, Taxonomy(("x", "y", "z<b>")))
    assert [(c["id"], c["pixels"], c["name"]) for c in found["classes"]] == [(0, 6, "x"), (2, 3, "z<b>")]
    assert found["classes"][1]["polygons"] == [[[[2, 0], [3, 0], [3, 2], [1, 2], [1, 1], [2, 1]]]]
    assert sum(c["share"] for c in found["classes"]) == pytest.approx(1)
