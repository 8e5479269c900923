"""Ctrl-C and SIGTERM: the first asks the loop to save and leave, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, final

from fullyconv.errors import FullyconvError, Interrupted, Terminated

__all__ = ["Stop"]


@final
class Stop:
    """While entered, SIGINT and SIGTERM set `signal` instead of ending the process; the loop looks at it every step.

    A second one ends the process within moments (130 or 143); checkpoints are atomic, so the last one stays whole.
    Outside the main thread, where Python takes no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal != 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the live display hid the cursor
            os._exit(128 + number)
        self.signal = number
        # os.write, because the handler may have interrupted a print.
        os.write(2, b"\nstopping: saving this step (again to leave now)\n")

    def error(self, saved: str) -> FullyconvError:
        """What to raise once everything is saved; `saved` says where."""
        if self.signal == signal.SIGINT:
            return Interrupted(f"Interrupted; {saved}.")
        return Terminated(f"Terminated; {saved}.")
