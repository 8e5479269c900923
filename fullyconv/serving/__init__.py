"""A small HTTP server for one network: images in, label maps out; stateless, nothing written, nothing fetched.

browser or client -> `protocol` (h11 by uvicorn; deadlines and limits before anything is buffered) -> `gate` (Host,
Origin, key, route, room: refused on the headers alone) -> `app` (starlette; the answers' form) -> `pool` (one waiting
place, deadlines, the worker's life) -> `worker` (a process of its own: decodes, labels, encodes)

No path, address or name is ever an input: what may be asked is a fixed table (`gate.ROUTES`, `wanted.Wanted`).
"""
