"""The server under load and attack, and the same against the plain stack (the negative control).

    python benchmarks/serve.py [MODEL] [--seconds 60] [--count 10000]

Without MODEL the stub worker alone is used (40 ms an image), which leaves the network out of the figures. Prints one
JSON object: overload by 10, slow attackers of three kinds, mutated requests and images, and a killed worker.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import serving_attacks as attacks
from serving_tools import serving


def bounded(hostile: Any, served: Any, count: int) -> dict[str, Any]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--count", type=int, default=10_000)
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with serving("serve", "{}", "0.04") as served:
        found["overload_10x"] = attacks.overload(served, 10, asked.seconds)
    with serving("plain", "0.04") as served:
        found["plain_overload_10x"] = attacks.overload(served, 10, min(asked.seconds, 10))
    for kind in attacks.KINDS:
        with serving("serve", "{}", "0.002") as served:
            found[f"slow_{kind}"] = attacks.slow_attackers(served, kind, 200, 20, min(asked.seconds, 20), 200)
    with serving("plain", "0.002") as served:
        found["plain_slow_body"] = attacks.slow_attackers(served, "body", 200, 5, 5, 200)
    with serving("serve", "{}", "0") as served:
        found["mutated_requests"] = bounded(attacks.hostile_requests, served, asked.count)
    if asked.model:
        with serving("real", asked.model) as served:
            served.until_ready(120)
            found["mutated_images"] = bounded(attacks.hostile_images, served, asked.count)
            found["killed_worker"] = attacks.killed_worker(served)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
