"""A page's own files, from the package: a fixed table, read once. No name in a request is ever a file's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["page_routes"]


def page_routes(page: Mapping[str, tuple[str, str, str]]) -> list[Route]:
    """A route for each address of {address: (package, file in it, media type)}."""
    return [
        Route(address, _fixed(files(package).joinpath(name).read_bytes(), media))
        for address, (package, name, media) in page.items()
    ]


def _fixed(content: bytes, media: str) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return Response(content, media_type=media)

    return answer
