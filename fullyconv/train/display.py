"""What a person sees of a run: one live line on a terminal, plain lines elsewhere, and where the time goes."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO, final

__all__ = ["Clock", "Display", "duration"]

PHASES = ("data", "forward", "backward")


@final
class Clock:
    """Seconds spent in each phase; `lap(phase)` books the time since the last lap."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = dict.fromkeys((*PHASES, "measure", "save"), 0.0)
        self._last = self._mark = self._saved = time.perf_counter()

    def lap(self, phase: str) -> float:
        """Book the time since the last call on `phase`; returns it."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.spent[phase] += passed
        return passed

    def restart(self) -> None:
        """What passed since the last lap is nobody's."""
        self._last = time.perf_counter()

    def since_mark(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed

    def since_save(self) -> float:
        return time.perf_counter() - self._saved

    def saved(self) -> None:
        self.lap("save")
        self._saved = time.perf_counter()

    def shares(self) -> str:
        """The learning's time by phase, the bottleneck named: "data 3 %, forward 41 %, backward 56 % (compute)"."""
        total = sum(self.spent[p] for p in PHASES) or 1.0
        parts = ", ".join(f"{p} {100 * self.spent[p] / total:.0f} %" for p in PHASES)
        slow = max(PHASES, key=lambda p: self.spent[p])
        advice = "; bottleneck: reading, try workers or cache" if slow == "data" else f"; bottleneck: {slow}"
        return parts + advice


@final
class Display:
    """Progress on stderr. `quiet` shows notes only."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.live = not quiet and self.stream.isatty()
        self.quiet, self.every = quiet, every
        self._shown = 0.0
        self._images: list[tuple[float, int]] = [(time.perf_counter(), 0)]
        self._width = 0

    def note(self, text: str) -> None:
        """A line that stays."""
        self._clear()
        print(text, file=self.stream, flush=True)

    def step(self, facts: dict[str, Any], progress: float, images: int) -> None:
        """Show where the run is; facts: step, epoch, loss, chance, lr."""
        now = time.perf_counter()
        self._images.append((now, images))
        if self.quiet or now - self._shown < (0.2 if self.live else self.every):
            return
        self._shown = now
        self._images = self._images[-50:]
        line = (
            f"{100 * progress:3.0f} %  step {facts['step']}  epoch {facts['epoch']:.2f}  loss {facts['loss']:.4f} "
            f"(chance {facts['chance']:.2f})  lr {facts['lr']:.2e}  {self._speed():.1f} images/s  "
            f"{duration(facts['left'])} left"
        )
        if self.live:
            self._clear()
            self.stream.write(line[:200])
            self._width = len(line)
            self.stream.flush()
        else:
            print(line, file=self.stream, flush=True)

    def end(self, clock: Clock) -> None:
        """Where the time went."""
        if not self.quiet:
            measuring, saving = duration(clock.spent["measure"]), duration(clock.spent["save"])
            self.note(f"time: {clock.shares()}; measuring {measuring}, saving {saving}")

    def _speed(self) -> float:
        (start, before), (end, after) = self._images[0], self._images[-1]
        return (after - before) / max(end - start, 1e-9)

    def pause(self) -> None:
        """Time that follows is no learning (a measurement): start the speed anew."""
        self._images = [(time.perf_counter(), self._images[-1][1])]

    def _clear(self) -> None:
        if self._width:
            self.stream.write("\r\x1b[K")
            self._width = 0


def duration(seconds: float) -> str:
    """ "1h05m", "12m30s", "8s"; "?" when it is not known."""
    if not 0 <= seconds < 1e8:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
