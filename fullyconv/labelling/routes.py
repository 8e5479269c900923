"""What the page is answered. Who is let in is `serving.gate`'s, which stands before this here too (`serving.closed`).

No path, address or name in a request is ever an input: images, levels and places are numbers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import zlib
from collections import OrderedDict, deque
from typing import Any, final
from urllib.parse import parse_qsl

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fullyconv.errors import FullyconvError, StorageError
from fullyconv.labelling.canvas import Box
from fullyconv.labelling.edits import BadEdit, parse_edit
from fullyconv.labelling.image_pyramid import TILE, ImagePyramid, level_count, tile_box
from fullyconv.labelling.project import Project
from fullyconv.labelling.rounds import Rounds, Settings
from fullyconv.serving.assets import page_routes
from fullyconv.serving.closed import ClosedApplication, json_response, refusal_response
from fullyconv.serving.gate import Gate, Refusal
from fullyconv.terminal import say

__all__ = ["MEDIA", "PAGE", "ROUTES", "Labelling", "labelling_application"]

TEXT, HERE = "; charset=utf-8", "fullyconv.labelling"
PAGE = {
    "/": (HERE, "page/index.html", f"text/html{TEXT}"),
    "/page.css": (HERE, "page/page.css", f"text/css{TEXT}"),
    **{
        f"/{name}": (HERE, f"page/{name}", f"text/javascript{TEXT}")
        for name in ("main.js", "rule.js", "tiles.js", "tools.js", "talk.js")
    },
}
"""The page's files: see `page_routes`."""
OPEN, KEYED = False, True
ROUTES: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(PAGE, ("GET", OPEN)),
    **{f"/v1/{name}": ("GET", KEYED) for name in ("project", "image", "tile", "labels", "events")},
    "/v1/edit": ("POST", KEYED),
    "/v1/learn": ("POST", KEYED),
}
MEDIA = ("application/json",)
MISTAKE = Refusal(500, "mistake", "The server made a mistake; the terminal says which.")
NO_IMAGE = Refusal(404, "image", "There is no image of that number.")
NO_TILE = Refusal(404, "tile", "There is no tile there.")
BAD_QUERY = Refusal(400, "query", "The query holds other keys than it may, or no whole numbers.")
_EVENTS = 2000  # kept for pages that come back
_WAIT = 20.0  # seconds that a page is kept waiting for an event
_WRITE_AFTER = 1.5  # seconds without a stroke after which label maps are written
_PYRAMIDS = 3  # images whose tiles are kept, the newest: a few tens of MB each (`image_pyramid._IN_MEMORY`)


@final
class Labelling:
    """The project and its rounds behind the page's questions. `now` counts what happens, from 0 in every `session`: a
    page that has seen another server on this port begins anew, however far this one has counted."""

    def __init__(self, project: Project, settings: Settings) -> None:
        self.project = project
        self.lock = asyncio.Lock()
        self.rounds = Rounds(project, settings, self.lock, self.tell)
        self.events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=_EVENTS)
        self.now, self.session = 0, secrets.randbelow(10**9)
        self._news = asyncio.Event()
        self._pyramids: OrderedDict[int, ImagePyramid] = OrderedDict()
        self._decoding = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._refused: set[str] = set()
        self.ending = False

    def start(self) -> None:
        self.rounds.start()
        self._writer = asyncio.get_running_loop().create_task(self._write_behind())

    async def close(self) -> None:
        """Write what is not written yet, and end every process."""
        self.end_waiting()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self.rounds.close()
        async with self.lock:
            await asyncio.to_thread(self._write_stale)
            self.project.close()

    def end_waiting(self) -> None:
        """Answer the pages that wait for news."""
        self.ending = True
        self._news.set()

    def tell(self, event: dict[str, Any]) -> None:
        """Let every page know."""
        self.now += 1
        self.events.append((self.now, event))
        self._news.set()

    async def wait(self, after: int) -> None:
        """Return when there is something newer than `after`, or after a while."""
        end = time.monotonic() + _WAIT
        while self.now <= after and not self.ending and (left := end - time.monotonic()) > 0:
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                return

    async def pyramid(self, index: int) -> ImagePyramid:
        """An image's tiles; it is decoded when they are first asked for."""
        async with self._decoding:
            if index not in self._pyramids:
                photo = self.project.photos[index]
                self._pyramids[index] = await asyncio.to_thread(
                    lambda: ImagePyramid(self.project.collection.read(photo))
                )
                while len(self._pyramids) > _PYRAMIDS:
                    self._pyramids.popitem(last=False)
            self._pyramids.move_to_end(index)
            return self._pyramids[index]

    async def _write_behind(self) -> None:
        """Label maps follow the journal by a moment: what a kill leaves unwritten is written at the next start."""
        last = -1
        while True:
            await asyncio.sleep(_WRITE_AFTER)
            async with self.lock:
                edits = self.project.count
                if edits == last:
                    await asyncio.to_thread(self._write_stale)
                last = edits

    def _write_stale(self) -> None:
        for index in self.project.stale():
            try:
                self.project.write(index)
            except FullyconvError as error:
                if str(error) not in self._refused:
                    self._refused.add(str(error))
                    say(f"error: {error}")
                    self.tell({"kind": "trouble", "image": index, "why": str(error)})


def labelling_application(labelling: Labelling, gate: Gate) -> ASGIApp:
    """The ASGI application."""
    answers = _Answers(labelling)
    routes = page_routes(PAGE)
    routes += [Route(f"/v1/{n}", getattr(answers, n)) for n in ("project", "image", "tile", "labels", "events")]
    routes += [Route(f"/v1/{n}", getattr(answers, n), methods=["POST"]) for n in ("edit", "learn")]
    return ClosedApplication(Starlette(routes=routes, exception_handlers={FullyconvError: _told}), gate, MISTAKE)


def _told(request: Request, error: Exception) -> Response:
    """What is wrong with an image or the disk is the user's to know: the page is theirs."""
    status, code = (507, "disk") if isinstance(error, StorageError) else (422, "image")
    return refusal_response(Refusal(status, code, str(error)))


def _numbers(request: Request, *names: str) -> dict[str, int] | None:
    """The query's whole numbers, all of `names` and no others; None for another query."""
    query = request.scope["query_string"].decode("latin-1")
    try:
        found = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    except ValueError:
        return None
    whole = all(v.isascii() and v.isdecimal() and len(v) < 10 for _, v in found)
    return {k: int(v) for k, v in found} if whole and sorted(k for k, _ in found) == sorted(names) else None


@final
class _Answers:
    def __init__(self, labelling: Labelling) -> None:
        self.labelling, self.held = labelling, labelling.project

    def _image(self, found: dict[str, int] | None) -> Refusal | None:
        if found is None:
            return BAD_QUERY
        return NO_IMAGE if found["image"] >= len(self.held.photos) else None

    async def project(self, request: Request) -> Response:
        """Classes, images and what the networks do."""
        held, rounds = self.held, self.labelling.rounds
        async with self.labelling.lock:
            images = [
                {"name": p.name, "state": held.state(i), "seconds": round(held.seconds(i))}
                for i, p in enumerate(held.photos)
            ]
        t = held.taxonomy
        return json_response({
            "now": self.labelling.now, "session": self.labelling.session, "classes": list(t.names),
            "palette": [list(c) for c in t.palette],
            "ignored": held.codes.ignored, "images": images, "order": rounds.order, "status": rounds.status(),
            "folder": held.out.name, "tile": TILE, "notes": held.notes,
        })  # fmt: skip

    async def image(self, request: Request) -> Response:
        """An image's size and what is known of it; its proposal is asked for."""
        found = _numbers(request, "image")
        if refusal := self._image(found):
            return refusal_response(refusal)
        assert found is not None
        index = found["image"]
        async with self.labelling.lock:
            layers = await asyncio.to_thread(self.held.layers, index)
            size = layers.canvas.size
            wanted = layers.proposal is None and layers.existing is None
            value = {
                "image": index, "height": size[0], "width": size[1], "levels": level_count(size),
                **self._told(index),
            }  # fmt: skip
        if wanted:
            self.labelling.rounds.want(index)
        return json_response(value)

    def _told(self, index: int) -> dict[str, Any]:
        layers = self.held.layers(index)
        return {
            "state": self.held.state(index), "undo": bool(layers.canvas.kept), "redo": bool(layers.canvas.undone),
            "proposed": layers.proposal is not None, "seconds": round(self.held.seconds(index)),
            "fault": self.labelling.rounds.why_not(index),
        }  # fmt: skip

    async def tile(self, request: Request) -> Response:
        """A tile of the image, as JPEG."""
        found = _numbers(request, "image", "level", "x", "y")
        if refusal := self._image(found):
            return refusal_response(refusal)
        assert found is not None
        pyramid = await self.labelling.pyramid(found["image"])
        body = await asyncio.to_thread(pyramid.tile, found["level"], found["x"], found["y"])
        return refusal_response(NO_TILE) if body is None else Response(body, media_type="image/jpeg")

    async def labels(self, request: Request) -> Response:
        """A tile of the codes painted, then of those below, uint16 little-endian, as zlib packs them."""
        found = _numbers(request, "image", "level", "x", "y")
        if refusal := self._image(found):
            return refusal_response(refusal)
        assert found is not None
        async with self.labelling.lock:
            size = self.held.size(found["image"])
            box = tile_box(size, found["level"], found["x"], found["y"])
            if box is None:
                return refusal_response(NO_TILE)
            body = await asyncio.to_thread(self._planes, found["image"], found["level"], Box(*box))
        return Response(body, media_type="application/octet-stream")

    def _planes(self, index: int, level: int, box: Box) -> bytes:
        step = 2**level
        rows, columns = slice(box.top * step, box.bottom * step, step), slice(box.left * step, box.right * step, step)
        painted, base = self.held.layers(index).canvas.painted, self.held.base(index)
        planes = [painted[rows, columns].astype("<u2")]
        planes.append(np.zeros_like(planes[0]) if base is None else base[rows, columns].astype("<u2"))
        return zlib.compress(b"".join(p.tobytes() for p in planes), 1)

    async def events(self, request: Request) -> Response:
        """What happened after an event of a session, waited for if nothing did; `lost` where that cannot be told."""
        found = _numbers(request, "after", "session")
        if found is None:
            return refusal_response(BAD_QUERY)
        after, known = found["after"], found["session"] == self.labelling.session
        if known:
            await self.labelling.wait(after)
        events = list(self.labelling.events)
        lost = not known or bool(events and after < events[0][0] - 1)
        return json_response({
            "now": self.labelling.now, "session": self.labelling.session, "lost": lost,
            "events": [] if lost else [e for n, e in events if n > after],
        })  # fmt: skip

    async def edit(self, request: Request) -> Response:
        """Make an edit: it is durable when this is answered."""
        body = await request.body()
        try:
            edit = parse_edit(body)
            async with self.labelling.lock:
                if edit.image >= len(self.held.photos):
                    return refusal_response(NO_IMAGE)
                if not self.held.known(edit):
                    box = await asyncio.to_thread(self.held.edit, edit)
                    told = self._told(edit.image)
                    event = {
                        "kind": "edit",
                        "image": edit.image,
                        "op": edit.op,
                        "box": list(box),
                        "id": edit.id,
                        **told,
                    }
                    self.labelling.tell(event)
                return json_response({"now": self.labelling.now, **self._told(edit.image)})
        except BadEdit as error:
            return refusal_response(Refusal(422, "edit", str(error)))

    async def learn(self, request: Request) -> Response:
        """Begin a round of learning."""
        if (await request.body()).strip() != b"{}":
            return refusal_response(Refusal(422, "learn", "Learning takes no settings here; send {}."))
        why = self.labelling.rounds.learn()
        return refusal_response(Refusal(409, "learn", why)) if why else json_response(self.labelling.rounds.status())
