"""Every limit of the server in one place; what none of them stops is bounded by nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Limits"]

MIB = 1 << 20


@final
@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. Times of receiving are absolute: a byte now and then does not lengthen them."""

    body: int = 20 * MIB  # of one image file
    bodies: int = 512 * MIB  # of all that are held at once
    pixels: int = 25_000_000  # of one image
    side: int = 16_384  # of one image's longer side, pixels
    answer: int = 256 * MIB  # of one answer: probabilities are K x H x W x 4 bytes
    headers: int = 32 * 1024  # the request line and all header lines
    header_count: int = 64
    chunks: int = 4096  # of a chunked body; beyond, chunks must hold `chunk` bytes on average
    chunk: int = 256
    connections: int = 256
    per_address: int = 16  # connections
    header_seconds: float = 5.0  # from the first byte of a request (or the connection) to the end of its headers
    body_seconds: float = 15.0  # from there to the end of its body
    write_seconds: float = 15.0  # for the client to take an answer, and one more for each MiB of it
    idle_seconds: int = 5  # between two requests of one connection
    linger_seconds: float = 2.0  # for a refused client to stop sending, so that it can read why
    waiting: int = 1  # images that may wait while one is labelled
    wait_seconds: float = 10.0  # for the worker's turn
    work_seconds: float = 30.0  # for the worker's answer
    start_seconds: float = 120.0  # for a worker to load the network
    drain_seconds: float = 20.0  # for what was accepted, after SIGTERM
    deaths: int = 3  # of the worker, within `deaths_seconds`: then the server ends
    deaths_seconds: float = 60.0
