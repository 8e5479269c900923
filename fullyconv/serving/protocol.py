"""uvicorn's h11 protocol with what it lacks: deadlines for receiving and sending, limits before anything is held, and
refusals that the refused client can read.

A request reaches the application only when its body is whole, so no slow client ever holds a place there. Life of a
connection: headers (`header_seconds`, absolute) -> gate -> body (`body_seconds`, absolute) -> application -> answer
(`write_seconds`) -> idle (`idle_seconds`) -> headers ... or, at any point: refused -> lingering -> closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, final
from urllib.parse import unquote

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from fullyconv.serving.gate import Gate, Refusal

__all__ = ["Connections", "guarded_protocol"]

AT_ONCE = 1 << 18  # bytes that a lingering client may still send before it is cut off, for each second it has
BUSY = Refusal(429, "connections", "Too many connections from this address; close some.", retry_after=1)
FULL = Refusal(503, "connections", "Too many connections; come back in a moment.", retry_after=1)
LATE = Refusal(408, "slow", "The request did not arrive in time.")
MALFORMED = Refusal(400, "http", "This is no HTTP request that can be read.")
LARGE_HEADERS = Refusal(431, "headers", "The request's headers are too large or too many.")
LARGE_BODY = Refusal(413, "body", "The body is too large.")
TINY_CHUNKS = Refusal(400, "chunks", "The body comes in too many tiny chunks; send it in larger ones.")
TOO_MUCH_AT_ONCE = Refusal(429, "memory", "Too much is being sent at once.", retry_after=1)
UPGRADE = Refusal(400, "upgrade", "Connections are not upgraded.")


@final
@dataclass
class Connections:
    """What all connections of a server share. `refused` counts by code those whom the application never saw."""

    gate: Gate
    open: set[Any] = field(default_factory=set)
    by_address: Counter[str] = field(default_factory=Counter)
    held: int = 0  # bytes of bodies
    refused: Counter[str] = field(default_factory=Counter)


def guarded_protocol(shared: Connections) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's `http` setting."""

    @final
    class Bound(GuardedProtocol):
        connections_shared = shared

    return Bound


class GuardedProtocol(H11Protocol):
    """See the module. States: "receiving" (idle too), "answering", "refused"."""

    connections_shared: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.shared = self.connections_shared
        self.limits = self.shared.gate.limits
        self.state = "receiving"
        self.since = self.loop.time()
        self.address = self.client[0] if self.client else ""
        self.body, self.chunks, self.lingered = bytearray(), 0, 0
        self.request: dict[str, Any] | None = None  # the scope of a request whose body is coming
        self.deadline: asyncio.TimerHandle | None = None
        self.sending: asyncio.TimerHandle | None = None
        self.shared.by_address[self.address] += 1
        self.shared.open.add(self)
        if len(self.shared.open) > 2 * self.limits.connections:  # even refusing politely costs something
            self.shared.refused["flood"] += 1
            transport.abort()
        elif self.shared.by_address[self.address] > self.limits.per_address:
            self.refuse(BUSY)
        elif len(self.shared.open) > self.limits.connections and not self._make_room():
            self.refuse(FULL)
        else:
            self._expect(self.limits.header_seconds)

    def _make_room(self) -> bool:
        """Close the connection that has kept us waiting longest for its request; False when all are being answered."""
        waiting = [c for c in self.shared.open if c is not self and c.state == "receiving"]
        if not waiting:
            return False
        slowest = min(waiting, key=lambda c: c.since)
        self.shared.refused["evicted"] += 1
        slowest.transport.abort()
        self.shared.open.discard(slowest)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.shared.open.discard(self)
        self.shared.by_address[self.address] -= 1
        if self.shared.by_address[self.address] <= 0:
            del self.shared.by_address[self.address]
        self._let_body_go()
        for timer in (self.deadline, self.sending):
            if timer:
                timer.cancel()

    # Receiving

    def data_received(self, data: bytes) -> None:
        if self.state == "refused":
            self.lingered += len(data)
            if self.lingered > AT_ONCE * max(1.0, self.limits.linger_seconds) + 4 * self.limits.body:
                self.transport.abort()
            return
        if self.state == "receiving" and self.request is None and self.deadline is None:  # the first byte after idling
            self._unset_keepalive_if_required()
            self.since = self.loop.time()
            self._expect(self.limits.header_seconds)
        self.conn.receive_data(data)
        self.handle_events()

    def eof_received(self) -> None:
        """A client that stops sending before its request is whole is left; one that waits for its answer gets it."""
        if self.state != "answering":
            self.transport.close()

    def handle_events(self) -> None:
        while self.state != "refused":
            try:
                event = self.conn.next_event()
            except h11.RemoteProtocolError as error:
                return self.refuse(LARGE_HEADERS if error.error_status_hint == 431 else MALFORMED)
            if event is h11.NEED_DATA:
                return None
            if event is h11.PAUSED:  # pipelined requests wait in the kernel until this one is answered
                return self.flow.pause_reading()
            if isinstance(event, h11.Request):
                self._begin(event)
            elif isinstance(event, h11.Data):
                self._take(event)
            elif isinstance(event, h11.EndOfMessage) and self.request is not None:
                self._answer()
            elif isinstance(event, h11.ConnectionClosed):
                return None
        return None

    def _begin(self, event: h11.Request) -> None:
        self._unset_keepalive_if_required()
        self.headers = [(key.lower(), value) for key, value in event.headers]
        size = len(event.method) + len(event.target) + len(b"  HTTP/1.1\r\n\r\n")
        size += sum(len(key) + len(value) + len(b": \r\n") for key, value in self.headers)
        if size > self.limits.headers or len(self.headers) > self.limits.header_count:
            return self.refuse(LARGE_HEADERS)
        names = {key for key, _ in self.headers}
        if b"upgrade" in names:
            return self.refuse(UPGRADE)
        if {b"content-length", b"transfer-encoding"} <= names:  # two servers in a row may read that as two requests
            return self.refuse(MALFORMED)
        method = event.method.decode("ascii")
        raw, _, query = event.target.partition(b"?")
        path = unquote(raw.decode("ascii"))
        refusal = self.shared.gate.refusal(method, path, self.headers)
        if refusal is not None:
            return self.refuse(refusal)
        self.request = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": event.http_version.decode("ascii"),
            "server": self.server, "client": self.client, "scheme": self.scheme, "method": method,
            "root_path": "", "path": path, "raw_path": raw, "query_string": query, "headers": self.headers,
            "state": self.app_state.copy(),
        }  # fmt: skip
        self._expect(self.limits.body_seconds)
        if self.conn.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(go_on) or b"")
        return None

    def _take(self, event: h11.Data) -> None:
        self.body += event.data
        self.shared.held += len(event.data)
        self.chunks += event.chunk_start
        if len(self.body) > self.limits.body:
            self.refuse(LARGE_BODY)
        elif self.shared.held > self.limits.bodies:
            self.refuse(TOO_MUCH_AT_ONCE)
        elif self.chunks > self.limits.chunks and len(self.body) < self.chunks * self.limits.chunk:
            self.refuse(TINY_CHUNKS)

    def _let_body_go(self) -> None:
        self.shared.held -= len(self.body)
        self.body, self.chunks = bytearray(), 0

    # Answering

    def _answer(self) -> None:
        """Hand the whole request to the application."""
        assert self.request is not None
        self._expect(0)
        self.scope, self.request, self.state = self.request, None, "answering"  # type: ignore[assignment]
        self.cycle = RequestResponseCycle(
            scope=self.scope, conn=self.conn, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=self.access_log,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )  # fmt: skip
        self.cycle.body, self.cycle.more_body = self.body, False
        self.body = bytearray()
        held = len(self.cycle.body)
        self.cycle.message_event.set()
        task = self.loop.create_task(self.cycle.run_asgi(self.app))

        def done(_: object) -> None:
            self.tasks.discard(task)
            self.shared.held -= held

        task.add_done_callback(done)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        self._watch_sending()
        self.state, self.since = "receiving", self.loop.time()
        self.chunks = 0
        super().on_response_complete()

    def _watch_sending(self) -> None:
        """The client takes the answer in time or is cut off: what it does not take is our memory."""
        waiting = self.transport.get_write_buffer_size()
        if waiting and self.sending is None:
            seconds = self.limits.write_seconds + waiting / (1 << 20)
            self.sending = self.loop.call_later(seconds, self._cut_off)

    def _cut_off(self) -> None:
        self.sending = None
        if self.transport.get_write_buffer_size():
            self.shared.refused["slow_reader"] += 1
            self.transport.abort()

    # Refusing

    def _expect(self, seconds: float) -> None:
        """What is being received must be there in so many seconds; 0: nothing is."""
        if self.deadline:
            self.deadline.cancel()
        self.deadline = self.loop.call_later(seconds, self._late) if seconds else None

    def _late(self) -> None:
        self.deadline = None
        if self.state != "receiving":
            return
        if self.conn.trailing_data[0] or self.request is not None:
            self.refuse(LATE)
        else:  # not a byte of a request came
            self.shared.refused["silent"] += 1
            self.transport.close()

    def refuse(self, refusal: Refusal) -> None:
        """Answer, stop answering, and read on for a moment: closing at once would reset the connection, and the answer
        would be lost on its way."""
        self.shared.refused[refusal.code] += 1
        self._expect(0)
        self._unset_keepalive_if_required()
        self._let_body_go()
        self.state, self.request = "refused", None
        if self.transport.is_closing():
            return
        headers, body = refusal.answer()
        status = b"HTTP/1.1 %d %s\r\n" % (refusal.status, STATUS_PHRASES[refusal.status])
        lines = [b"%s: %s\r\n" % line for line in (*headers, (b"connection", b"close"))]
        self.transport.write(b"".join([status, *lines, b"\r\n", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.sending = self.loop.call_later(self.limits.linger_seconds, self.transport.abort)

    def shutdown(self) -> None:
        if self.state == "refused":
            self.transport.abort()
        elif self.state == "receiving":
            self.transport.close()
        else:
            self.cycle.keep_alive = False
