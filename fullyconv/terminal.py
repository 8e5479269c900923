"""The one place where text goes to a terminal: control sequences that names bring along are shown, not obeyed.

with escaping_output(): ...stdout and stderr, whoever prints (commands, typer, warnings, tracebacks)
rewrite(text)              a progress line over the one before, the only control sequences of our own
say(text)                  a line on stderr, also outside of `escaping_output`
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, final

__all__ = ["escaping_output", "plain", "raw", "rewrite", "say"]

# C0 but tab and line feed, DEL, C1; what turns the direction of writing or breaks lines; surrogates (undecodable bytes)
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    r"""`text` with every character that a terminal obeys, or that turns the direction of writing, as its escape
    (\x1b, \u202e)."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)


@final
class _Guarded:
    """A text stream through which only plain text passes. Its bytes cannot be reached around it."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        self.raw.write(plain(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach", "reconfigure"):
            raise AttributeError(name)
        return getattr(self.raw, name)


@contextlib.contextmanager
def escaping_output() -> Iterator[None]:
    """While it lasts, whatever is printed to stdout and stderr is plain."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Guarded(raw(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def raw(stream: object) -> Any:
    """The stream behind a guarded one, for what draws by itself and is given plain text."""
    return stream.raw if isinstance(stream, _Guarded) else stream


def say(text: object) -> None:
    """A line on stderr."""
    print(plain(str(text)), file=sys.stderr, flush=True)


def rewrite(text: str, *, last: bool) -> None:
    """A line on stderr over the one before it, which stays when it is the last."""
    stream = raw(sys.stderr)
    stream.write(f"\r{plain(text)}\x1b[K" + ("\n" if last else ""))
    stream.flush()


def progress_line(what: str, quiet: bool) -> Any:
    """A progress function: one line on stderr, rewritten on a terminal, otherwise every tenth of the way."""
    import sys
    import time

    start, live = time.monotonic(), sys.stderr.isatty()

    def line(done: int, total: int) -> None:
        seconds = time.monotonic() - start
        left = seconds / done * (total - done)
        text = f"{what} {done}/{total}  {done / max(seconds, 1e-9):.1f} images/s  {left:.0f} s left"
        if live:
            rewrite(text, last=done == total)
        elif done == total or done * 10 // total > (done - 1) * 10 // total:
            say(text)

    return None if quiet else line
