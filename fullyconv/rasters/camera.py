"""Frames of a camera (extra `camera`, OpenCV), the newest first: what came while one was labelled is passed over.

A video file can stand for a camera: its frames come at their own times, as if they were filmed now.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, printable
from fullyconv.rasters.video import SUFFIXES, VideoFrames

__all__ = ["Camera", "FrameDevice", "open_device"]

PATIENCE = 10.0  # seconds without a frame after which a camera counts as gone


class FrameDevice(Protocol):
    """What frames are read from, by one thread."""

    def read(self) -> NDArray[np.uint8] | None:
        """The next frame, H W 3 RGB, when it is there; None at the end."""
        ...

    def close(self) -> None: ...


def open_device(source: str) -> FrameDevice:
    """The camera of a number ("0") or a device's path ("/dev/video0"), or a video file in its place.

    MissingExtra without OpenCV, DataError where there is no such camera."""
    if source.isdecimal() or source.startswith("/dev/"):
        return _OpenCvDevice(source)
    if Path(source).suffix.lower() in SUFFIXES:
        return _FileDevice(Path(source))
    raise DataError(
        f"{printable(source)} is no camera; give its number (0 is the first), its device (/dev/video0), or a video "
        "file."
    )


@final
class _OpenCvDevice:
    def __init__(self, source: str) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtra("Reading a camera", "camera", "cv2") from error
        self._cv2: Any = cv2
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would write of each backend it tries
        self._capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        if not self._capture.isOpened():
            raise DataError(
                f"There is no camera {printable(source)} here, or another program has it; ls /dev/video* shows which "
                "there are (a container must be given them), or film to a file and label that."
            )

    def read(self) -> NDArray[np.uint8] | None:
        good, frame = self._capture.read()
        return np.ascontiguousarray(frame[..., ::-1]) if good else None

    def close(self) -> None:
        self._capture.release()


@final
class _FileDevice:
    def __init__(self, path: Path) -> None:
        self._frames = VideoFrames(path)
        self._left = iter(self._frames)
        self._start: float | None = None

    def read(self) -> NDArray[np.uint8] | None:
        at, image = next(self._left, (0, None))
        if image is not None:
            due = float(at * self._frames.base)
            now = time.monotonic()
            self._start = now - due if self._start is None else self._start
            time.sleep(max(0.0, self._start + due - now))
        return image

    def close(self) -> None:
        self._frames.close()


@final
class Camera:
    """The frames of a device as a video has them: (milliseconds since the first, H W 3) of each that was waited for.

    seconds: after which it ends; 0: never. `stop` ends it from another thread or a signal. dropped: frames that came
    while another was worked on. lost: whether the camera fell silent. One thread reads, so that the device's own queue
    stays empty and a frame is never older than the work on the one before.
    """

    rate, base, count = Fraction(25), Fraction(1, 1000), 0
    sound: tuple[Any, ...] = ()

    def __init__(self, device: FrameDevice, name: str, seconds: float = 0.0, patience: float = PATIENCE) -> None:
        self.path, self._device, self._seconds, self._patience = Path(name), device, seconds, patience
        self.stop = threading.Event()
        self.dropped, self.lost = 0, False
        self._new = threading.Condition()
        self._frame: NDArray[np.uint8] | None = None
        self._at, self._ended = 0.0, False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._take, name="camera", daemon=True)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        self._thread.start()
        start, last = None, -1
        while (got := self._next()) is not None:
            at, image = got
            start = at if start is None else start
            if self._seconds and at - start > self._seconds:
                return
            last = max(last + 1, round(1000 * (at - start)))
            yield last, image
        if self._error is not None:
            raise self._error
        if start is None and not self.stop.is_set():
            raise DataError(f"The camera {printable(self.path)} gave no frame; see that it is on and free.")

    def _take(self) -> None:
        try:
            while not self.stop.is_set() and (image := self._device.read()) is not None:
                with self._new:
                    self.dropped += self._frame is not None
                    self._frame, self._at = image, time.monotonic()
                    self._new.notify()
        except BaseException as error:  # told by the thread that iterates
            self._error = error
        finally:
            with self._new:
                self._ended = True
                self._new.notify()

    def _next(self) -> tuple[float, NDArray[np.uint8]] | None:
        """The newest frame, once it is there; None at the end."""
        until = time.monotonic() + self._patience
        with self._new:
            while self._frame is None:
                self.lost = time.monotonic() > until
                if self._ended or self.stop.is_set() or self.lost:
                    return None
                self._new.wait(0.1)
            got, self._frame = (self._at, self._frame), None
        return None if self.stop.is_set() else got

    def close(self) -> None:
        """A device is not closed under a read that does not come back; it ends with the process."""
        self.stop.set()
        if self._thread.ident is not None:
            self._thread.join(2)
        if not self._thread.is_alive():
            self._device.close()
