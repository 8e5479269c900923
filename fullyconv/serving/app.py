"""The application: what each route answers (starlette). Who is let in is `gate`'s, which stands before it here
too (`closed`)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import TypeVar, final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from fullyconv.serving.assets import page_routes
from fullyconv.serving.closed import ClosedApplication, json_response, refusal_response
from fullyconv.serving.gate import Gate, Refusal
from fullyconv.serving.openapi import description
from fullyconv.serving.pool import Pool
from fullyconv.serving.prometheus import Figures
from fullyconv.serving.wanted import BadQuery, wanted

__all__ = ["application"]

T = TypeVar("T")

MISTAKE = Refusal(500, "mistake", "The server made a mistake; its log says which.")
PAGE = {
    "/": ("fullyconv.serving", "page/index.html", "text/html; charset=utf-8"),
    "/page.js": ("fullyconv.serving", "page/page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("fullyconv.pages", "tool.css", "text/css; charset=utf-8"),
}
"""The page's files: see `page_routes`."""


def application(pool: Pool, gate: Gate, figures: Figures) -> ASGIApp:
    """The ASGI application over a pool."""
    answers = _Answers(pool, gate, figures)
    routes = page_routes(PAGE)
    routes += [
        Route("/healthz", answers.healthz),
        Route("/readyz", answers.readyz),
        Route("/metrics", answers.metrics),
        Route("/openapi.json", answers.openapi),
        Route("/v1/model", answers.model),
        Route("/v1/predict", answers.predict, methods=["POST"]),
    ]
    return ClosedApplication(Starlette(routes=routes), gate, MISTAKE, figures.request)


@final
class _Answers:
    def __init__(self, pool: Pool, gate: Gate, figures: Figures) -> None:
        self.pool, self.gate, self.figures = pool, gate, figures
        self.described = json.dumps(description(gate.limits, bool(gate.keys)))

    async def healthz(self, request: Request) -> Response:
        """The process answers; whether it can label, /readyz says."""
        return json_response({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        about = self.pool.about
        if about is None or self.pool.draining:
            return refusal_response(self.pool.busy() or MISTAKE)
        measured = ("device", "precision", "weights_sha256", "warm_seconds")
        return json_response({"status": "ready", **{key: about[key] for key in measured}})

    async def model(self, request: Request) -> Response:
        about = self.pool.about
        return refusal_response(self.pool.busy() or MISTAKE) if about is None else json_response(about)

    async def openapi(self, request: Request) -> Response:
        return Response(self.described, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        return Response(self.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def predict(self, request: Request) -> Response:
        about = self.pool.about
        if about is None:
            return refusal_response(self.pool.busy() or MISTAKE)
        try:
            asked = wanted(request.scope["query_string"], len(about["heads"]))
        except BadQuery as error:
            return refusal_response(Refusal(400, "query", str(error)))
        media = request.headers["content-type"].partition(";")[0].strip().lower()
        body = await self._body(request)
        if isinstance(body, Refusal):
            return refusal_response(body)
        result = await self._while_waited_for(request, self.pool.ask(asked, media, body))
        if isinstance(result, Refusal):
            return refusal_response(result)
        answer, content = result
        headers = {"x-image-size": "{}x{}".format(*answer["size"]), "x-weights-sha256": about["weights_sha256"]}
        if answer["media"] != "application/json":
            headers["content-security-policy"] = "default-src 'none'; sandbox"
        return Response(content, headers=headers, media_type=answer["media"])

    async def _body(self, request: Request) -> bytes | Refusal:
        """The body, bounded here too: another server than ours may hand it over in parts."""
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.gate.limits.body:
                return Refusal(413, "body", "The body is too large.")
            parts.append(part)
        return b"".join(parts) or Refusal(400, "empty", "Send an image as the body.")

    async def _while_waited_for(self, request: Request, work: Awaitable[T]) -> T | Refusal:
        """Work that nobody waits for any more is not done."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(request.receive())  # the body is whole: what comes next is the disconnection
        try:
            await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.figures.abandoned.inc()
                task.cancel()
                return Refusal(503, "left", "The client left.")
            return task.result()
        finally:
            left.cancel()
            if not task.done():
                task.cancel()
