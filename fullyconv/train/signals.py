"""Ctrl-C and SIGTERM: the first asks the loop to save and leave, a second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, final

from fullyconv.errors import FullyconvError, Interrupted, Terminated

__all__ = ["Stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END = 0  # what the pipe carries besides signal numbers


@final
class Stop:
    """While entered, SIGINT and SIGTERM set `signal` instead of ending the process; the loop looks at it every step.

    A second one ends the process within moments (130 or 143); checkpoints are atomic, so the last one stays whole.
    Python runs a handler only between two instructions of its own, and a backward pass of seconds is one instruction:
    so a thread hears of signals through a pipe that the interpreter writes at once (`signal.set_wakeup_fd`).
    Outside the main thread, where Python takes no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}
        self._ends: tuple[int, int] | None = None
        self._listener: threading.Thread | None = None
        self._descriptor = -1

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._ends = os.pipe()
            os.set_blocking(self._ends[1], False)
            self._listener = threading.Thread(target=self._listen, daemon=True, name="fullyconv-signals")
            self._listener.start()
            self._descriptor = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends is None or self._listener is None:
            return
        signal.set_wakeup_fd(self._descriptor)
        os.write(self._ends[1], bytes([_END]))
        self._listener.join()
        for end in self._ends:
            os.close(end)

    def __bool__(self) -> bool:
        return self.signal != 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def _listen(self) -> None:
        """The thread: say that the first signal was heard, leave at the second."""
        assert self._ends is not None
        heard = False
        while (number := os.read(self._ends[0], 1)[0]) != _END:
            if number not in SIGNALS:
                continue
            if heard:
                os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # the live display hid the cursor
                os._exit(128 + number)
            heard = True
            os.write(2, b"\nstopping: saving this step (again to leave now)\n")

    def error(self, saved: str) -> FullyconvError:
        """What to raise once everything is saved; `saved` says where."""
        if self.signal == signal.SIGINT:
            return Interrupted(f"Interrupted; {saved}.")
        return Terminated(f"Terminated; {saved}.")
