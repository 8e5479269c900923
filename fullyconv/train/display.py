"""What a person sees of a run: live lines on a terminal, plain lines elsewhere, and where the time goes."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO, final

from fullyconv.terminal import plain, raw

__all__ = ["Clock", "Display", "short_duration"]

PHASES = ("data", "forward", "backward")


@final
class Clock:
    """Seconds spent in each phase; `lap(phase)` books the time since the last lap.

    synchronize: waits for the device, so that a lap books what was computed and not what was asked for.
    """

    def __init__(self, synchronize: Callable[[], object] = lambda: None) -> None:
        self.spent: dict[str, float] = dict.fromkeys((*PHASES, "measure", "save"), 0.0)
        self._synchronize = synchronize
        self._last = self._mark = self._saved = time.perf_counter()

    def lap(self, phase: str) -> float:
        """Book the time since the last call on `phase`; returns it."""
        self._synchronize()
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.spent[phase] += passed
        return passed

    def restart(self) -> None:
        """What passed since the last lap is nobody's."""
        self._last = self._mark = time.perf_counter()

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
        """The learning's time by phase, the slowest named: "data 3 %, forward 41 %, backward 56 %; bottleneck: ..."."""
        total = sum(self.spent[p] for p in PHASES) or 1.0
        parts = ", ".join(f"{p} {100 * self.spent[p] / total:.0f} %" for p in PHASES)
        if self.spent["data"] > 0.2 * total:
            return f'{parts}; bottleneck: reading (more workers, or cache = "memory")'
        return f"{parts}; bottleneck: the {max(PHASES, key=lambda p: self.spent[p])} pass"


@final
class Display:
    """Progress on `stream` (stderr): live on a terminal, else a line every `every` seconds. `quiet`: notes alone;
    `silent`: nothing (the other processes of a run)."""

    def __init__(
        self, *, quiet: bool = False, silent: bool = False, stream: TextIO | None = None, every: float = 10.0
    ) -> None:
        self.stream = stream or sys.stderr
        self.quiet, self.silent, self.every = quiet or silent, silent, every
        self._shown = 0.0
        self._images: deque[tuple[float, int]] = deque(maxlen=50)
        self._live: Any = None

    def __enter__(self) -> Display:
        if not self.quiet and self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=raw(self.stream), highlight=False), auto_refresh=False, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """A line that stays."""
        if self.silent:
            return
        if self._live is not None:
            self._live.console.print(plain(text), markup=False, soft_wrap=True)
        else:
            print(plain(text), file=self.stream, flush=True)

    def step(self, facts: Mapping[str, float], progress: float, images: int, clock: Clock) -> None:
        """Show where the run is; facts: step, epoch, loss, chance (of the loss, 0 for none), lr, left (seconds)."""
        now = time.perf_counter()
        self._images.append((now, images))
        if self.quiet or now - self._shown < (0.25 if self._live else self.every):
            return
        self._shown = now
        chance = f" (chance {facts['chance']:.2f})" if facts["chance"] else ""
        line = (
            f"{100 * progress:3.0f} %  step {facts['step']}  epoch {facts['epoch']:.2f}  "
            f"loss {facts['loss']:.4f}{chance}  lr {facts['lr']:.2e}  {self._speed():.1f} images/s  "
            f"{short_duration(facts['left'])} left"
        )
        if self._live is None:
            print(line, file=self.stream, flush=True)
            return
        from rich.text import Text

        self._live.update(Text(f"{line}\n{clock.shares()}", no_wrap=True, overflow="ellipsis"), refresh=True)

    def end(self, clock: Clock) -> None:
        """Where the time went."""
        if not self.quiet:
            measuring, saving = short_duration(clock.spent["measure"]), short_duration(clock.spent["save"])
            self.note(f"time: {clock.shares()}; measuring {measuring}, saving {saving}")

    def _speed(self) -> float:
        """Images a second over the last steps."""
        (start, before), (end, after) = self._images[0], self._images[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def pause(self) -> None:
        """What follows is no learning (a measurement, a checkpoint): the speed is measured anew."""
        self._images.clear()


def short_duration(seconds: float) -> str:
    """ "1h05m", "12m30s", "8s"; "?" when it is not known."""
    if not 0 <= seconds < 1e8:
        return "?"
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
