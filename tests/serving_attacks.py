"""Load and attacks on a server, each told as figures; run small by the tests and in full by benchmarks/serve.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from serving_tools import Served, chunked, image_request, request

BODY = b"p" * 200_000


@dataclass
class Answer:
    status: int  # 0: cut off without an answer, -1: reset, -2: nothing within the time
    seconds: float


async def ask(port: int, data: bytes, source: str, timeout: float = 15) -> Answer:
    """One request on a connection of its own."""
    begun = time.monotonic()
    status = 0
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            try:
                writer.write(data)
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    await writer.drain()
                line = await reader.readline()
                status = int(line.split()[1]) if line else 0
                await reader.read()
            finally:
                writer.close()
    except (ConnectionResetError, BrokenPipeError):
        status = status or -1
    except TimeoutError:
        status = status or -2
    except OSError:
        status = status or -1
    return Answer(status, time.monotonic() - begun)


def address(i: int) -> str:
    return f"127.{1 + i // 62500 % 100}.{i // 250 % 250}.{1 + i % 250}"


CLOSE = image_request(BODY, "Connection: close")


async def closed_loop(port: int, clients: int, seconds: float) -> list[Answer]:
    """Clients that ask again as soon as they are answered: what the server can do."""
    end = time.monotonic() + seconds

    async def client(i: int) -> list[Answer]:
        found = []
        while time.monotonic() < end:
            found.append(await ask(port, CLOSE, address(i)))
        return found

    return [a for part in await asyncio.gather(*(client(i) for i in range(clients))) for a in part]


async def open_loop(port: int, rate: float, seconds: float, seed: int = 0) -> list[Answer]:
    """Poisson arrivals, whatever the answers: what the world does."""
    generator, tasks = random.Random(seed), []
    at = end = time.monotonic()
    end += seconds
    while at < end:
        await asyncio.sleep(max(0, at - time.monotonic()))
        tasks.append(asyncio.ensure_future(ask(port, CLOSE, address(len(tasks)))))
        at += generator.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def percentile(answers: list[Answer], q: float) -> float:
    return round(1000 * float(np.percentile([a.seconds for a in answers], q)), 1) if answers else float("nan")


def overload(served: Served, factor: float, seconds: float, measure: float = 4) -> dict[str, Any]:
    """`factor` times the capacity, measured just before."""
    alone = [a for a in asyncio.run(closed_loop(served.port, 1, measure)) if a.status == 200]
    busy = [a for a in asyncio.run(closed_loop(served.port, 2, measure)) if a.status == 200]
    capacity = len(busy) / measure
    before = processor_seconds(served.process.pid)
    found = asyncio.run(open_loop(served.port, factor * capacity, seconds))
    taken = [a for a in found if a.status == 200]
    refused = [a for a in found if a.status == 429]
    return {
        "capacity_per_second": round(capacity, 1), "asked": len(found),
        "goodput_of_capacity": round(len(taken) / seconds / capacity, 3),
        "unloaded_p99_ms": percentile(alone, 99), "accepted_p99_ms": percentile(taken, 99),
        "refused_p50_ms": percentile(refused, 50), "refused_p99_ms": percentile(refused, 99),
        "statuses": dict(Counter(a.status for a in found)), "resets": sum(a.status in (0, -1) for a in found),
        "server_processor_ms_a_request": round(
            1000 * (processor_seconds(served.process.pid) - before) / max(1, len(found)), 2
        ),
    }  # fmt: skip


KINDS = {
    "headers": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
    "body": image_request(b"x", length=1000),
    "silent": b"",
}


async def _attack(port: int, kind: str, source: str, end: float) -> None:
    """Hold a connection for as long as it lasts, a byte now and then; then another."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            writer.write(KINDS[kind])
            while time.monotonic() < end and not reader.at_eof() and not writer.is_closing():
                if kind != "silent":
                    writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(1000), 0.5)
            writer.close()
        await asyncio.sleep(0.05)


def slow_attackers(
    served: Served, kind: str, attackers: int, honest: int, seconds: float, spread: int
) -> dict[str, Any]:
    """Slow attackers from `spread` addresses; honest clients take turns so that the worker is not their limit."""

    async def both() -> list[Answer]:
        end = time.monotonic() + seconds
        sources = [f"127.200.0.{1 + i % spread}" for i in range(attackers)]
        bad = [asyncio.ensure_future(_attack(served.port, kind, source, end)) for source in sources]
        await asyncio.sleep(0.5)
        found: list[Answer] = []
        while time.monotonic() < end - 0.5:
            for i in range(honest):
                found.append(await ask(served.port, CLOSE, address(i), 3))
            await asyncio.sleep(0.05)
        await asyncio.gather(*bad)
        return found

    found = asyncio.run(both())
    good = sum(a.status == 200 for a in found)
    return {"asked": len(found), "answered": good, "statuses": dict(Counter(a.status for a in found)),
            "p99_ms": percentile(found, 99)}  # fmt: skip


WORDS = [b"\r\n", b"\0", b"%2e%2e/", b"../" * 8 + b"etc/passwd", b"Transfer-Encoding: chunked\r\n", b"\xff" * 9, b" ",
         b"Content-Length: 5\r\n", b":", b"HTTP/1.0", b"POST",
         b"?output=json&polygons=1", b"0\r\n\r\n",
         b"ffffffffff\r\n",
         b"Host: localhost\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
         b"A: " + b"b" * 3000]  # fmt: skip


def mutated(generator: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds with some bytes changed, cut, doubled or replaced by words that parsers trip over."""
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randint(1, 6)):
        at = generator.randrange(len(data) + 1)
        what = generator.randrange(5)
        if what == 0 and data:
            data[at % len(data)] = generator.randrange(256)
        elif what == 1:
            del data[at : at + generator.randint(1, 30)]
        elif what == 2:
            data[at:at] = generator.choice(WORDS)
        elif what == 3:
            data[at:at] = data[at : at + generator.randint(1, 60)]
        else:
            data[at : at + generator.randint(0, 8)] = generator.randbytes(generator.randint(1, 8))
    return bytes(data)


def hostile_requests(served: Served, count: int, seed: int = 0) -> Counter[int]:
    """Statuses of mutated requests, each on a connection that is half-closed after it."""
    generator = random.Random(seed)
    seeds = [request("GET", p) for p in ("/", "/v1/model", "/metrics", "/openapi.json", "/healthz")]
    seeds += [image_request(b"p" * 20, query="?output=json"), request("POST", "/v1/predict", "Content-Type: image/png"),
              chunked(b"abcd")]  # fmt: skip
    found: Counter[int] = Counter()
    for i in range(count):
        with contextlib.suppress(ConnectionResetError), served.connect(address(i), 10) as s:
            with contextlib.suppress(OSError):
                s.sendall(mutated(generator, seeds))
                s.shutdown(socket.SHUT_WR)
            first = s.recv(4096)
            found[int(first.split()[1]) if first.startswith(b"HTTP/1.1 ") else 0] += 1
            while s.recv(1 << 16):
                pass
    return found


def small_images() -> list[tuple[str, bytes]]:
    """Small images of every kind that is taken, with and without palettes, alpha, EXIF and interlacing."""
    generator = np.random.default_rng(0)
    colours = Image.fromarray(generator.integers(0, 255, (24, 32, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for kind, media, image, options in (
        ("PNG", "image/png", colours, {}), ("PNG", "image/png", colours.convert("P"), {}),
        ("PNG", "image/png", colours.convert("RGBA"), {}), ("PNG", "image/png", colours.convert("1"), {}),
        ("JPEG", "image/jpeg", colours, {"exif": exif}), ("JPEG", "image/jpeg", colours, {"progressive": True}),
        ("JPEG", "image/jpeg", colours.convert("CMYK"), {}), ("WEBP", "image/webp", colours, {}),
        ("WEBP", "image/webp", colours.convert("RGBA"), {"lossless": True}),
    ):  # fmt: skip
        out = BytesIO()
        image.save(out, kind, **options)
        found.append((media, out.getvalue()))
    return found


def hostile_images(served: Served, count: int, seed: int = 0) -> Counter[int]:
    """Statuses of mutated images, one after another; -2 for nothing within 20 seconds."""
    generator, found = random.Random(seed), Counter[int]()
    seeds = small_images()
    for _ in range(count):
        media, data = generator.choice(seeds)
        body = mutated(generator, [data]) or b"x"
        head = request("POST", "/v1/predict?output=json", f"Content-Type: {media}", f"Content-Length: {len(body)}")
        try:
            found[served.ask(head + body)[0]] += 1
        except TimeoutError:
            found[-2] += 1
    return found


def processor_seconds(pid: int) -> float:
    """Processor time of a process, without its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> int:
    """Bytes that a process and its children hold."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    status = [Path(f"/proc/{p}/status").read_text() for p in pids]
    return sum(int(s.partition("VmRSS:")[2].split()[0]) * 1024 for s in status)


def worker_of(served: Served) -> int:
    pid = served.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def killed_worker(served: Served) -> dict[str, float]:
    """Seconds from `kill -9` of the worker until the server says that it is not ready, and until it is again."""
    os.kill(worker_of(served), signal.SIGKILL)
    begun = time.monotonic()
    while served.get("/readyz")[0] == 200:
        assert time.monotonic() < begun + 10
    down = time.monotonic() - begun
    served.until_ready()
    return {"not_ready_after": round(down, 3), "ready_again_after": round(time.monotonic() - begun, 2)}
