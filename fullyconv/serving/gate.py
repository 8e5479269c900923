"""Who and what is let in, decided on a request's line and headers alone, before a byte of its body is taken."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import final

from fullyconv.serving.request_limits import Limits
from fullyconv.serving.wanted import MEDIA

__all__ = ["COMMON", "ROUTES", "Gate", "Headers", "Refusal", "SecurityHeaders"]

Headers = Sequence[tuple[bytes, bytes]]
SecurityHeaders = list[tuple[bytes, bytes]]

OPEN, KEYED = False, True
ROUTES: dict[str, tuple[str, bool]] = {
    "/": ("GET", OPEN),
    "/page.js": ("GET", OPEN),
    "/page.css": ("GET", OPEN),
    "/healthz": ("GET", OPEN),
    "/readyz": ("GET", OPEN),
    "/metrics": ("GET", KEYED),
    "/openapi.json": ("GET", OPEN),
    "/v1/model": ("GET", KEYED),
    "/v1/predict": ("POST", KEYED),
}
"""Path -> (method, whether it needs the key where there is one). GET includes HEAD. There is nothing else."""

_PAGE = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
COMMON: SecurityHeaders = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        f"{_PAGE}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".encode(),
    ),
]
"""On every answer, errors too."""

_WORDS = {429: "Too Many Requests", 431: "Request Header Fields Too Large"}


@final
@dataclass(frozen=True)
class Refusal:
    """An answer that is an error: RFC 9457 JSON with a fixed sentence. It never repeats what was sent."""

    status: int
    code: str
    detail: str
    retry_after: int = 0
    allow: str = ""

    def answer(self) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """(headers, body)."""
        body = json.dumps(
            {
                "type": "about:blank",
                "title": _WORDS.get(self.status) or HTTPStatus(self.status).phrase,
                "status": self.status,
                "code": self.code,
                "detail": self.detail,
                "request_id": secrets.token_hex(8),
            }
        ).encode()
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        headers += [(b"retry-after", str(self.retry_after).encode())] if self.retry_after else []
        headers += [(b"allow", self.allow.encode())] if self.allow else []
        headers += [(b"www-authenticate", b"Bearer")] if self.status == 401 else []
        return [*headers, *COMMON], body


@final
@dataclass
class Gate:
    """hosts: names by which the server may be called besides the loopback's; any_address: whether also by any bare IP
    address (which no foreign name can be made to point to). keys: sha256 of the accepted keys, none: no key needed.
    busy: says why no image can be taken now, or None. routes: what there is; media: what a POST may carry."""

    limits: Limits = field(default_factory=Limits)
    hosts: frozenset[str] = frozenset()
    any_address: bool = False
    keys: tuple[bytes, ...] = ()
    busy: Callable[[], Refusal | None] = lambda: None
    routes: Mapping[str, tuple[str, bool]] = field(default_factory=lambda: ROUTES)
    media: Sequence[str] = tuple(MEDIA)

    def refusal(self, method: str, path: str, headers: Headers) -> Refusal | None:
        """Why a request is not let in, or None. The order is fixed: strangers learn nothing but that they are."""
        return (
            self._stranger(method, headers)
            or self._route(method, path)
            or self._key(path, headers)
            or (self._body(headers) or self.busy() if method == "POST" else None)
        )

    def _stranger(self, method: str, headers: Headers) -> Refusal | None:
        """DNS rebinding and other pages' requests: Host and Origin must be ours."""
        hosts = _every(headers, b"host")
        if len(hosts) != 1 or not self._ours(hosts[0]):
            return Refusal(421, "host", "This server is not known by that Host; see --allowed-host.")
        origins = _every(headers, b"origin")
        if origins and (len(origins) > 1 or origins[0].lower() not in _origins(hosts[0])):
            return Refusal(403, "origin", "Requests from other pages are not answered.")
        if method == "POST" and any(s not in (b"same-origin", b"none") for s in _every(headers, b"sec-fetch-site")):
            return Refusal(403, "origin", "Requests from other pages are not answered.")
        return None

    def _ours(self, host: bytes) -> bool:
        try:
            name = host.decode("ascii").lower()
        except UnicodeDecodeError:
            return False
        bare, _, port = name.rpartition(":") if ":" in name and not name.endswith("]") else (name, "", "0")
        if not (port.isdigit() and len(port) <= 5):
            return False
        if bare in ("localhost", "127.0.0.1", "[::1]") or bare in self.hosts:
            return True
        return self.any_address and _is_address(bare)

    def _route(self, method: str, path: str) -> Refusal | None:
        if path not in self.routes:
            return Refusal(404, "not_found", "There is nothing here; /openapi.json says what there is.")
        allowed = self.routes[path][0]
        if method == allowed or (method == "HEAD" and allowed == "GET"):
            return None
        allow = "GET, HEAD" if allowed == "GET" else allowed
        return Refusal(405, "method", f"This answers {allow}.", allow=allow)

    def _key(self, path: str, headers: Headers) -> Refusal | None:
        if not self.keys or not self.routes[path][1]:
            return None
        given = _every(headers, b"authorization")
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, k) for k in self.keys]  # every key is compared
        if scheme.lower() == b"bearer" and any(known):
            return None
        return Refusal(401, "key", "Give the key as  Authorization: Bearer KEY.")

    def _body(self, headers: Headers) -> Refusal | None:
        """What the headers of a body must be."""
        types = _every(headers, b"content-type")
        kind = types[0].partition(b";")[0].strip().lower().decode("latin-1") if len(types) == 1 else ""
        if kind not in self.media:
            return Refusal(415, "media_type", f"Send the body itself, as {', '.join(self.media)}.")
        if _every(headers, b"content-encoding"):
            return Refusal(415, "content_encoding", "Send the body as it is, without Content-Encoding.")
        lengths = _every(headers, b"content-length")
        if lengths and int(lengths[0]) > self.limits.body:  # h11 let nothing but digits through
            return Refusal(413, "body", f"A body has at most {self.limits.body} bytes.")
        if not _every(headers, b"transfer-encoding") and (not lengths or int(lengths[0]) == 0):
            return Refusal(411 if not lengths else 400, "empty", "The body is empty.")
        return None


def _every(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _origins(host: bytes) -> tuple[bytes, bytes]:
    return b"http://" + host.lower(), b"https://" + host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True
