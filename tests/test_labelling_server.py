"""What the labelling page is answered, and what is refused: no browser, no network."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_labelling import CLASSES, photos

from fullyconv.labelling.image_pyramid import TILE, ImagePyramid, level_count, tile_box
from fullyconv.labelling.images import open_images
from fullyconv.labelling.page_server import LIMITS
from fullyconv.labelling.project import Project, Proposal
from fullyconv.labelling.rounds import Settings
from fullyconv.labelling.routes import MEDIA, PAGE, ROUTES, Labelling, labelling_application
from fullyconv.serving.gate import COMMON, Gate

KEY = "k" * 32
HOST = (b"host", b"127.0.0.1:8001")
GATE = Gate(LIMITS, keys=(hashlib.sha256(KEY.encode()).digest(),), routes=ROUTES, media=MEDIA)


class Page:
    """A browser's side of the application, without one."""

    def __init__(self, place: Path, **photos_: Any) -> None:
        photos(place / "photos", **photos_)
        self.held = Project(open_images(str(place / "photos"), place / "out"), place / "out", CLASSES)
        self.labelling = Labelling(self.held, Settings("none", place / "runs", rank=False))
        self.app = labelling_application(self.labelling, GATE)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: Any = None, query: str = ""
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        own = [HOST, (b"authorization", b"Bearer " + KEY.encode())] if headers is None else headers
        if method == "POST" and headers is None:
            own += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": own,
            "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        content = b"".join(m.get("body", b"") for m in messages[1:])
        return messages[0]["status"], dict(messages[0]["headers"]), content

    async def events(self, after: int) -> Any:
        return await self.get("events", after=after, session=self.labelling.session)

    async def get(self, path: str, **query: Any) -> Any:
        status, _, body = await self.ask("GET", f"/v1/{path}", query="&".join(f"{k}={v}" for k, v in query.items()))
        return json.loads(body) if status == 200 and path not in ("tile", "labels") else (status, body)

    async def edit(self, op: str, image: int = 0, id: str = "", **more: Any) -> tuple[int, Any]:
        value = {"op": op, "image": image, "id": id or secrets.token_hex(8), **more}
        status, _, body = await self.ask("POST", "/v1/edit", json.dumps(value).encode())
        return status, json.loads(body)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    found = Page(tmp_path)
    yield found
    found.held.close()


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


STROKE: dict[str, Any] = {"points": [[5, 5], [20, 9]], "diameter": 5, "paint": 1}


# ---- Who is let in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", [HOST], 200),
        ("GET", "/v1/project", [HOST], 401),
        ("GET", "/v1/project", [HOST, (b"authorization", b"Bearer " + b"x" * 32)], 401),
        ("GET", "/v1/project", [(b"host", b"evil.example")], 421),
        ("GET", "/", [(b"host", b"evil.example:8001")], 421),
        ("GET", "/", [HOST, (b"origin", b"http://evil.example")], 403),
        ("POST", "/v1/edit", [HOST], 401),
        ("POST", "/v1/edit", [HOST, (b"origin", b"null")], 403),
        ("POST", "/v1/edit", [HOST, (b"sec-fetch-site", b"cross-site")], 403),
        ("GET", "/v1/edit", [HOST], 405),
        ("DELETE", "/v1/project", [HOST], 405),
        ("GET", "/v1/../../etc/passwd", [HOST], 404),
        ("GET", "/page/index.html", [HOST], 404),
        ("GET", "/rule.py", [HOST], 404),
    ],
)
def test_strangers_and_other_paths_are_refused(page: Page, method: str, path: str, headers: Any, status: int) -> None:
    assert run(lambda: page.ask(method, path, headers=headers))[0] == status


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ([(b"content-type", b"text/plain"), (b"content-length", b"2")], 415),
        ([(b"content-type", b"application/json"), (b"content-length", str(LIMITS.body + 1).encode())], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"2000000")], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"0")], 400),
        ([(b"content-type", b"application/json"), (b"content-encoding", b"gzip"), (b"content-length", b"2")], 415),
    ],
)
def test_bodies_are_small_json(page: Page, more: Any, status: int) -> None:
    headers = [HOST, (b"authorization", b"Bearer " + KEY.encode()), *more]
    assert run(lambda: page.ask("POST", "/v1/edit", b"{}", headers))[0] == status


def test_every_answer_bears_the_strict_headers_and_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    for path in PAGE:
        status, headers, body = run(lambda p=path: page.ask("GET", p))
        assert status == 200
        assert dict(COMMON).items() <= headers.items()
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in body
        assert b"innerHTML" not in body
        assert b"eval(" not in body
    assert b"'unsafe" not in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    "query",
    [
        "", "image=-1", "image=x", "image=", "image=0&image=1", "image=0&file=/etc/passwd", "image=%2e%2e", "image=1e3",
        "image=99999999999999999999", "image=٣", "image=0;", "path=0", "image=0&" * 20,
    ],
)  # fmt: skip
def test_queries_hold_whole_numbers_and_nothing_else(page: Page, query: str) -> None:
    async def work() -> None:
        for path in ("image", "tile", "labels"):
            status, _, body = await page.ask("GET", f"/v1/{path}", query=query)
            assert status == 400
            assert b"passwd" not in body

    run(work)


def test_images_and_tiles_that_are_not_there_are_refused(page: Page) -> None:
    async def work() -> None:
        assert (await page.get("image", image=3))[0] == 404
        for where in ({"level": 1, "x": 0, "y": 0}, {"level": 0, "x": 1, "y": 0}, {"level": 0, "x": 0, "y": 10**8}):
            for path in ("tile", "labels"):
                assert (await page.get(path, image=0, **where))[0] == 404

    run(work)


def test_a_damaged_image_is_said_and_the_others_go_on(page: Page, tmp_path: Path) -> None:
    (tmp_path / "photos/p1.png").write_bytes((tmp_path / "photos/p1.png").read_bytes()[:90])

    async def work() -> None:
        status, body = await page.get("tile", image=1, level=0, x=0, y=0)
        assert status == 422
        assert "p1.png" in json.loads(body)["detail"]
        assert (await page.get("tile", image=0, level=0, x=0, y=0))[0] == 200

    run(work)


# ---- Edits ------------------------------------------------------------------------------------------------------


def test_a_stroke_is_in_the_journal_when_it_is_answered(page: Page) -> None:
    async def work() -> None:
        status, answer = await page.edit("brush", **STROKE)
        assert (status, answer["state"], answer["undo"]) == (200, "begun", True)
        assert page.held.journal.path.read_bytes().count(b"\n") == 1

    run(work)


def test_asking_twice_does_it_once(page: Page) -> None:
    async def work() -> None:
        for _ in range(3):
            assert (await page.edit("brush", id="ab" * 8, **STROKE))[0] == 200
        assert page.held.edits(0) == 1
        assert page.labelling.now == 1

    run(work)


@pytest.mark.parametrize(
    ("edit", "status"),
    [
        ({"op": "brush", **STROKE, "paint": 3}, 422), ({"op": "undo"}, 422),
        ({"op": "brush", "image": 3, **STROKE}, 404),
        ({"op": "region", "point": [60, 1], "paint": 1}, 422), ({"op": "remove"}, 422),
        ({"op": "brush", **STROKE, "diameter": 10**9}, 422),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_words(page: Page, edit: dict[str, Any], status: int) -> None:
    found = run(lambda: page.edit(**edit))
    assert found[0] == status
    assert found[1]["detail"].endswith(".")
    assert page.held.count == 0


def test_a_full_disk_is_said_and_the_stroke_is_not_shown_as_kept(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            status, answer = await page.edit("brush", id="ab" * 8, **STROKE)
        assert status == 507
        assert "No space left" in answer["detail"]
        assert not page.held.layers(0).canvas.painted.any()
        assert (await page.edit("brush", id="ab" * 8, **STROKE))[0] == 200
        assert page.held.edits(0) == 1

    run(work)


def test_two_pages_see_each_others_strokes_and_the_later_one_lies_on_top(page: Page) -> None:
    async def work() -> None:
        one = asyncio.ensure_future(page.events(0))
        await asyncio.sleep(0.01)
        assert not one.done()
        await page.edit("brush", id="aa" * 8, **STROKE)
        answer = await one
        assert [e["id"] for e in answer["events"]] == ["aa" * 8]
        await page.edit("brush", id="bb" * 8, **{**STROKE, "paint": 2})
        more = await page.events(answer["now"])
        assert [e["id"] for e in more["events"]] == ["bb" * 8]
        assert set(np.unique(page.held.labels(0))) == {2, 255}
        await page.edit("undo")
        assert set(np.unique(page.held.labels(0))) == {1, 255}, "undo takes the image's last edit, whoever's"

    run(work)


def test_a_page_that_knows_another_server_is_told_to_begin_anew(page: Page) -> None:
    async def work() -> None:
        page.labelling.tell({"kind": "status"})
        assert (await page.events(0))["lost"] is False
        for after in (0, 1, 2):  # behind this one's count, level with it, before it: at once, without waiting
            other = page.get("events", after=after, session=(page.labelling.session + 1) % 10**9)
            answer = await asyncio.wait_for(other, 2)
            assert (answer["lost"], answer["events"], answer["session"]) == (True, [], page.labelling.session)
        page.labelling.events.clear()
        for n in range(3000):
            page.labelling.tell({"kind": "x", "n": n})
        assert (await page.events(1))["lost"] is True

    run(work)


def test_waiting_pages_are_answered_when_the_server_ends(page: Page) -> None:
    async def work() -> None:
        one = asyncio.ensure_future(page.events(5))
        await asyncio.sleep(0.01)
        page.labelling.end_waiting()
        assert (await asyncio.wait_for(one, 2))["events"] == []

    run(work)


# ---- Tiles ------------------------------------------------------------------------------------------------------


def planes(body: bytes, size: tuple[int, int]) -> Any:
    return np.frombuffer(zlib.decompress(body), "<u2").reshape(2, *size)


def test_label_tiles_are_the_painting_and_what_lies_below(page: Page) -> None:
    async def work() -> None:
        layers = page.held.layers(0)
        layers.proposal = Proposal(page.held.codes.encode(np.full((40, 60), 2)), "m")
        await page.edit("brush", **STROKE)
        await page.edit("brush", points=[[50, 30]], diameter=3, paint="ignore")
        painted, base = planes((await page.get("labels", image=0, level=0, x=0, y=0))[1], (40, 60))
        np.testing.assert_array_equal(painted, layers.canvas.painted)
        assert (base == 3).all()
        assert (await page.get("project"))["ignored"] == painted[30, 50] == 255

    run(work)


@pytest.mark.parametrize("size", [(1, 1), (512, 513), (700, 1500), (1025, 3)])
def test_the_tiles_of_each_level_are_the_image_made_smaller(size: tuple[int, int]) -> None:
    draw = np.random.default_rng(1)
    image = np.repeat(
        np.repeat(draw.integers(0, 255, (-(-size[0] // 64), -(-size[1] // 64), 3), np.uint8), 64, 0), 64, 1
    )
    image = np.ascontiguousarray(image[: size[0], : size[1]])
    found = ImagePyramid(image)
    assert max(size) <= TILE * 2 ** (level_count(size) - 1)
    for level in range(level_count(size)):
        height, width = (-(-n // 2**level) for n in size)
        whole = np.zeros((height, width, 3), np.uint8)
        for y in range(-(-height // TILE)):
            for x in range(-(-width // TILE)):
                box = tile_box(size, level, x, y)
                assert box is not None
                data = found.tile(level, x, y)
                assert data is not None
                whole[box[0] : box[2], box[1] : box[3]] = np.asarray(Image.open(BytesIO(data)))
        assert tile_box(size, level, -(-width // TILE), 0) is None
        apart = np.abs(whole.astype(int) - image[:: 2**level, :: 2**level])
        assert apart.mean() < 12, "but for JPEG and the blocks' borders"
    assert tile_box(size, level_count(size), 0, 0) is None


def test_labels_of_a_large_image_are_every_second_pixel_of_every_second_row(tmp_path: Path) -> None:
    page = Page(tmp_path, count=1, size=(600, 1300))

    async def work() -> None:
        await page.edit("polygon", points=[[3, 5], [1290, 90], [600, 590]], paint=2)
        told = await page.get("image", image=0)
        assert (told["height"], told["width"], told["levels"]) == (600, 1300, 3)
        painted = page.held.layers(0).canvas.painted
        for level, x, y, size in ((0, 1, 1, (88, 512)), (1, 1, 0, (300, 138)), (2, 0, 0, (150, 325))):
            tile = planes((await page.get("labels", image=0, level=level, x=x, y=y))[1], size)[0]
            step = 2**level
            part = painted[y * TILE * step :: step, x * TILE * step :: step][: size[0], : size[1]]
            np.testing.assert_array_equal(tile, part)
            assert tile.any()

    run(work)
    page.held.close()
