"""Video through PyAV (extra `video`): frames with their own times, turned as they are to be shown; the sound copied.

Only files are opened: no address, no device, no playlist that names other files (FFmpeg is held to `file` and to
five containers).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.errors import DataError, MissingExtra, StorageError, printable
from fullyconv.files.reading import open_regular

__all__ = ["SUFFIXES", "FrameSource", "VideoFrames", "write_video"]

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v")
FORMATS = "mov,mp4,matroska,webm,avi"


class FrameSource(Protocol):
    """Frames with times: a video, or a camera. rate: frames a second on average; base: the unit of times; count: how
    many, 0 where that is not known; sound: streams whose packets are copied."""

    @property
    def path(self) -> Path: ...
    @property
    def rate(self) -> Fraction: ...
    @property
    def base(self) -> Fraction: ...
    @property
    def count(self) -> int: ...
    @property
    def sound(self) -> Sequence[Any]: ...
    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]: ...
    def close(self) -> None: ...


def _av(what: str) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra(what, "video", "av") from error
    return av


@contextmanager
def _refusing(path: Path) -> Iterator[Any]:
    av = _av(f"Reading {printable(path)}")
    try:
        yield av
    except av.error.FFmpegError as error:
        raise DataError(
            f"{printable(path)} cannot be read as a video ({printable(error)[:120]}); it is damaged, cut off or of "
            "another kind: convert it to MP4."
        ) from error


@final
class VideoFrames:
    """The frames of a video's first video stream. `rate`: frames a second on average; `base`: the unit of times."""

    def __init__(self, path: Path) -> None:
        os.close(open_regular(path))
        self.path = path
        with _refusing(path) as av:
            self._input = av.open(str(path), options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
            if not self._input.streams.video:
                raise DataError(f"{printable(path)} has no video stream; give a video.")
            self._stream = self._input.streams.video[0]
            self._stream.thread_type = "AUTO"
            self.rate = Fraction(self._stream.average_rate or 25)
            self.base = Fraction(self._stream.time_base or Fraction(1, 90_000))
            self.count = int(self._stream.frames or 0)  # 0 where the file does not say
            self.sound = tuple(self._input.streams.audio)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(time in units of `base`, H W 3 uint8 RGB as it is to be shown) of every frame."""
        turns, last = 0, -1
        with _refusing(self.path):
            for n, frame in enumerate(self._input.decode(self._stream)):
                turns = int(getattr(frame, "rotation", 0) or 0) // 90 % 4
                time = frame.pts
                if time is None:  # streams without times: evenly spaced
                    time = round(n / self.rate / self.base)
                time = max(int(time), last + 1)
                last = time
                image = frame.to_ndarray(format="rgb24")
                yield time, np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def close(self) -> None:
        self._input.close()


def write_video(
    path: Path,
    source: FrameSource,
    draw: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write `draw` of every frame at the frame's own time, and the sound's packets as they are; how many frames.

    draw: H W 3 uint8 -> H W 3 uint8 of that size. The file's kind follows its suffix. StorageError where it cannot be
    written; nothing is left then.
    """
    av = _av("Writing a video")
    frames = 0
    try:
        with av.open(str(path), "w") as out:
            stream: Any = None
            sound = [(s, out.add_stream_from_template(s)) for s in source.sound]
            for time, image in source:
                drawn = draw(image)
                if stream is None:
                    stream = _video_stream(out, source, drawn.shape)
                h, w = drawn.shape[0] // 2 * 2, drawn.shape[1] // 2 * 2  # 4:2:0 has colours for pairs of pixels
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(drawn[:h, :w]), format="rgb24")
                frame.pts, frame.time_base = time, source.base
                out.mux(stream.encode(frame))
                frames += 1
                if progress:
                    progress(frames, max(source.count, frames))
            if stream is None:
                raise DataError(f"{printable(source.path)} holds no frame that can be read; convert it to MP4.")
            out.mux(stream.encode(None))
            _copy_sound(av, source.path, out, sound)
    except av.error.FFmpegError as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"{printable(path)} cannot be written ({printable(error)[:120]}); check the space there, or convert the "
            "video to .mkv, which holds every kind of sound."
        ) from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return frames


def _video_stream(out: Any, source: FrameSource, shape: tuple[int, ...]) -> Any:
    stream = out.add_stream("libx264", rate=source.rate, options={"crf": "18", "preset": "veryfast", "bf": "0"})
    stream.height, stream.width = shape[0] // 2 * 2, shape[1] // 2 * 2
    stream.pix_fmt = "yuv420p"
    stream.time_base = stream.codec_context.time_base = source.base
    return stream


def _copy_sound(av: Any, path: Path, out: Any, sound: list[tuple[Any, Any]]) -> None:
    """The packets of every sound stream, bit for bit, at their own times."""
    if not sound:
        return
    to = {old.index: new for old, new in sound}
    with av.open(str(path), options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as again:
        for packet in again.demux(*(s for s in again.streams.audio if s.index in to)):
            if packet.dts is not None:
                packet.stream = to[packet.stream.index]
                out.mux(packet)
