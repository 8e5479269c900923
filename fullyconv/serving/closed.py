"""What stands round both of our applications: the gate before, its headers on every answer, no word of our mistakes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fullyconv.serving.gate import COMMON, Gate, Refusal

__all__ = ["ClosedApplication", "json_response", "refusal_response"]


@final
class ClosedApplication:
    """`app` behind `gate`: as closed under another server as under ours.

    mistake: the answer where `app` fails before it has begun one; the error goes on to whoever logs it.
    answered(path, status, seconds): told of every request, status 0 where no answer was begun.
    """

    def __init__(
        self, app: ASGIApp, gate: Gate, mistake: Refusal, answered: Callable[[str, int, float], None] | None = None
    ) -> None:
        self.app, self.gate, self.mistake, self.answered = app, gate, mistake, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        begun, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = {name for name, _ in message["headers"]}
                message = {**message, "headers": [*message["headers"], *(h for h in COMMON if h[0] not in own)]}
            await send(message)

        refusal = self.gate.refusal(scope["method"], scope["path"], scope["headers"])
        try:
            if refusal is None:
                await self.app(scope, receive, sending)
            else:
                await refusal_response(refusal)(scope, receive, sending)
        except Exception:
            if status == 0:
                await refusal_response(self.mistake)(scope, receive, sending)
            raise
        finally:
            if self.answered is not None:
                self.answered(scope["path"], status, time.monotonic() - begun)


def refusal_response(refusal: Refusal) -> Response:
    headers, body = refusal.answer()
    return Response(body, refusal.status, {k.decode(): v.decode() for k, v in headers})


def json_response(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, media_type="application/json")
