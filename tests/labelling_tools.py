"""The labelling page as users have it: the command in a process of its own, and Chromium before it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = Path("/usr/bin/chromium")
WAIT = 200.0  # seconds that anything may take on a busy machine


@dataclass
class Served:
    process: subprocess.Popen[str]
    address: str
    out: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> str:
        """End it as Ctrl-C does; what it said."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=WAIT)[1]

    def written(self, name: str, edits: int) -> dict[str, Any]:
        """Provenance of a label map once it holds so many edits."""
        file = self.out / "provenance" / f"{name}.json"
        end = time.monotonic() + WAIT
        while True:
            found = json.loads(file.read_text()) if file.is_file() else {}
            if found.get("edits") == edits:
                return found
            assert time.monotonic() < end, found
            time.sleep(0.1)


@contextlib.contextmanager
def labelling(model: str, photos: Path | str, out: Path, *options: str) -> Iterator[Served]:
    command = [sys.executable, "-m", "fullyconv", "label", model, str(photos), "-o", str(out), "--quiet"]
    command += ["--runs", str(out.parent / "runs"), *options]
    if "--port" not in options:
        command += ["--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, process.communicate()[1]
        yield Served(process, address, out)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


class Tab:
    """A page in Chromium; what it logs and asks of others is kept."""

    def __init__(
        self,
        page: Any,
        address: str,
        ready: str = "labelling.state.photo && labelling.tiles.get(0, 0, 0, false)?.painted",
    ) -> None:
        self.page, self.heard, self.asked = page, [], []
        page.on("console", lambda m: self.heard.append(m.text))
        page.on("pageerror", lambda e: self.heard.append(str(e)))
        page.on("request", lambda r: self.asked.append(r.url))
        page.goto(address)
        self.until(ready)

    def js(self, code: str, value: Any = None) -> Any:
        return self.page.evaluate(code, value)

    def until(self, code: str, seconds: float = WAIT) -> None:
        """The page forbids what playwright's own waiting needs (eval)."""
        end = time.monotonic() + seconds
        while not self.js(f"globalThis.labelling ? Boolean({code}) : false"):
            assert time.monotonic() < end, f"{code} does not become true: {self.heard} {self.page.inner_text('body')}"
            time.sleep(0.02)

    def draw(self, key: str, way: list[tuple[int, int]]) -> None:
        """Choose a class by its key and draw through pixels of the image, with the mouse."""
        self.page.keyboard.press(key)
        scale, left, top, at_x, at_y = self.view
        for n, (x, y) in enumerate(way):
            self.page.mouse.move(at_x + (x + 0.5 - left) * scale, at_y + (y + 0.5 - top) * scale)
            if n == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def saved(self) -> None:
        self.until("document.body.dataset.pending === '0' || document.body.dataset.pending === undefined")

    @property
    def view(self) -> tuple[float, float, float, float, float]:
        """(scale, left, top) of the image on the stage, and the stage's place on the screen."""
        found = self.js(
            "(() => { const s = labelling.stage, b = s.canvas.getBoundingClientRect();"
            " return [s.scale, s.left, s.top, b.left, b.top]; })()"
        )
        return tuple(found)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()
