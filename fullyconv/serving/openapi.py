"""The server's description of itself (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

from fullyconv.serving.gate import ROUTES
from fullyconv.serving.request_limits import Limits
from fullyconv.serving.wanted import MEDIA, OUTPUTS

__all__ = ["description"]

ERRORS = {
    "400": "The request or its query cannot be read.",
    "401": "The key is missing or wrong.",
    "403": "The request comes from another page.",
    "408": "The request did not arrive in time.",
    "413": "The file, the image or the answer is too large.",
    "415": "Another kind of image, or an encoded body.",
    "421": "The server is not known by that Host.",
    "422": "The image is damaged.",
    "429": "Enough images are waiting; Retry-After says when to come back.",
    "431": "The headers are too large or too many.",
    "503": "Loading, draining, or the worker ended; Retry-After says when to come back.",
    "504": "The image waited or took too long.",
}
SUMMARIES = {
    "/": "A page to drop an image on.",
    "/healthz": "Whether the process answers.",
    "/readyz": "Whether an image would be labelled, and what the worker measured.",
    "/metrics": "Figures in Prometheus' text format.",
    "/openapi.json": "This description.",
    "/v1/model": "The network: heads, classes, palette, sha256 of its weights.",
    "/v1/predict": "Label every pixel of an image.",
}


def description(limits: Limits, keyed: bool) -> dict[str, Any]:
    """The OpenAPI document of a server with these limits; keyed: whether it asks for a key."""
    paths: dict[str, Any] = {}
    for path, (method, needs_key) in ROUTES.items():
        if path not in SUMMARIES:
            continue
        entry: dict[str, Any] = {"summary": SUMMARIES[path], "responses": {"200": {"description": "Done."}}}
        if keyed and needs_key:
            entry["security"] = [{"key": []}]
        paths[path] = {method.lower(): entry}
    paths["/v1/predict"]["post"] |= _predict(limits)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "fullyconv serve", "version": "1", "description": "Images in, label maps out; stateless."},
        "paths": paths,
    }
    if keyed:
        document["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return document


def _predict(limits: Limits) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    flag = {"schema": {"type": "integer", "enum": [0, 1], "default": 0}, "in": "query"}
    problem = {"application/problem+json": {"schema": {"type": "object"}}}
    limit_text = f"At most {limits.body} bytes, {limits.pixels} pixels, {limits.side} pixels a side, one frame."
    return {
        "parameters": [
            {"name": "output", "in": "query", "schema": {"type": "string", "enum": list(OUTPUTS), "default": "labels"}},
            {"name": "head", "in": "query", "schema": {"type": "integer", "minimum": 0, "default": 0}},
            {"name": "polygons", "description": "With output=json: each class's outlines.", **flag},
            {"name": "labels", "description": "With output=json: the label map too, base64 of a PNG.", **flag},
        ],
        "requestBody": {"required": True, "description": limit_text, "content": dict.fromkeys(MEDIA, binary)},
        "responses": {
            "200": {"description": "The labels as asked.", "content": dict.fromkeys(OUTPUTS.values(), binary)},
            **{code: {"description": words, "content": problem} for code, words in ERRORS.items()},
        },
    }
