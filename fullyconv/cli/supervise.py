"""Start a trainer again when it dies: `fullyconv train --auto-restart`."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Protocol

__all__ = ["Child", "newest_step", "supervise"]

FINAL = (0, 2, 65, 66)  # done, usage, bad data, missing input: starting again changes nothing
PATIENCE = 3  # deaths in a row without a new checkpoint


class Child(Protocol):
    """A started trainer: `subprocess.Popen`, or what a test makes."""

    pid: int

    def wait(self) -> int: ...


def newest_step(out: Path) -> int:
    """The newest checkpoint's step, over all stages together; -1 when there is none."""
    newest: dict[Path, int] = {}
    for place in (*out.glob("checkpoints/step-*"), *out.glob("*/checkpoints/step-*")):
        if found := re.fullmatch(r"step-(\d+)", place.name):
            newest[place.parent] = max(newest.get(place.parent, 0), int(found[1]))
    return sum(newest.values()) if newest else -1


def supervise(start: Callable[[bool], Child], out: Path, patience: int = PATIENCE, *, resume: bool = False) -> int:
    """Run start(resume) until it is done; its last exit code. A death in between starts it again from its checkpoint.

    The first start is as the user asked: without `resume` a directory that holds a run, with it one that holds none,
    is the trainer's to refuse. A signal to this process is passed on and is the end; a signal to the trainer alone is
    a death like another.
    """
    asked: list[int] = []
    child: list[Child] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        if child and (number == signal.SIGTERM or len(asked) > 1):  # Ctrl-C reaches the whole group by itself
            os.kill(child[-1].pid, number)

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
    idle = 0
    try:
        while True:
            step = newest_step(out)
            child.append(start(resume))
            code = child[-1].wait()
            if code in FINAL:
                return code
            if asked:
                return 128 + asked[0]
            further = newest_step(out) > step
            resume, idle = resume or further, 0 if further else idle + 1
            if idle >= patience:
                print(f"The trainer died {idle} times in a row without a new checkpoint; giving up.", file=sys.stderr)
                return code if code > 0 else 1
            print(f"The trainer died ({_cause(code)}); starting it again from its last checkpoint.", file=sys.stderr)
            time.sleep(min(10.0, idle))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
