"""The server under load and attack, and the same against the plain stack (the negative control).

    python benchmarks/serve.py [MODEL] [--seconds 60] [--count 10000] [--json FILE]

Without MODEL the stub worker alone is used (40 ms an image), which leaves the network out of the figures. Each part is
printed as a line of JSON when it is done: overload by 10, slow attackers of three kinds, mutated requests and images, a
killed worker. `load` is the machine's before each: what others run beside it makes every figure worse.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import serving_attacks as attacks
from serving_tools import Served, serving


def bounded(hostile: Any, served: Served, count: int) -> dict[str, Any]:
    """Statuses of a flood, the growth of memory meanwhile, and whether the worker is still the same."""
    hostile(served, 200, 1)
    before, worker = attacks.memory(served.process.pid), attacks.worker_of(served)
    found = hostile(served, count, 2)
    grown = attacks.memory(served.process.pid) - before
    return {
        "statuses": dict(found),
        "grown_mib": round(grown / 2**20, 1),
        "same_worker": attacks.worker_of(served) == worker,
    }


def killed_plain(served: Served) -> dict[str, Any]:
    """What does the work in the server itself is not replaced: whether it is ready again."""
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.wait()
    try:
        return {"ready_again": served.get("/readyz")[0] == 200}
    except OSError:
        return {"ready_again": False}


def parts(model: str | None, seconds: float, count: int) -> list[tuple[str, tuple[str, ...], Callable[..., Any]]]:
    """(name, how the server is started, what is done to it)."""
    found: list[tuple[str, tuple[str, ...], Callable[..., Any]]] = [
        ("overload_10x", ("serve", "{}", "0.04"), lambda s: attacks.overload(s, 10, seconds)),
        ("plain_overload_10x", ("plain", "0.04"), lambda s: attacks.overload(s, 10, min(seconds, 10))),
    ]
    for kind in attacks.KINDS:
        for name, how in ((f"slow_{kind}", ("serve", "{}", "0.002")), (f"plain_slow_{kind}", ("plain", "0.002"))):
            lasts = min(seconds, 20 if how[0] == "serve" else 8)
            found.append(
                (name, how, lambda s, kind=kind, lasts=lasts: attacks.slow_attackers(s, kind, 200, 20, lasts, 200))
            )
    found += [
        ("mutated_requests", ("serve", "{}", "0"), lambda s: bounded(attacks.hostile_requests, s, count)),
        ("plain_mutated_requests", ("plain", "0"), lambda s: dict(attacks.hostile_requests(s, count // 10, 2))),
        ("plain_mutated_images", ("plain", "0", "decode"), lambda s: dict(attacks.hostile_images(s, count // 10, 2))),
        ("plain_killed", ("plain", "0"), killed_plain),
    ]
    if model:
        found += [
            ("mutated_images", ("real", model), lambda s: bounded(attacks.hostile_images, s, count)),
            ("killed_worker", ("real", model), attacks.killed_worker),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--only", default="", help="parts whose names begin so, by commas; FILE keeps the others")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = json.loads(asked.json.read_text()) if asked.only and asked.json else {}
    found |= {"cores": os.cpu_count(), "seconds": asked.seconds, "count": asked.count}
    for name, how, act in parts(asked.model, asked.seconds, asked.count):
        if not name.startswith(tuple(asked.only.split(","))):
            continue
        load = round(os.getloadavg()[0], 1)
        with serving(*how) as served:
            if how[0] == "real":
                served.until_ready(120)
            found[name] = {"load": load, **act(served)}
        print(json.dumps({name: found[name]}), flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
