"""A camera's frames under their labels, as they come: what `fullyconv predict --source 0` does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fullyconv.errors import printable
from fullyconv.files.outputs import Outputs, safe_name
from fullyconv.predict import Predictor
from fullyconv.predict.video_files import VideoOptions, claim_video, label_frames, refuse_inputs
from fullyconv.rasters.camera import Camera, open_device
from fullyconv.terminal import say

__all__ = ["label_camera"]


def label_camera(
    ready: Predictor, source: str, out: Path, options: VideoOptions, seconds: float = 0.0
) -> list[tuple[str, Path]]:
    """Label the camera `source` (see `open_device`) into `out` until Ctrl-C, `seconds`, or the camera's end: (what,
    file), as of `label_video`, under the name camera-SOURCE. Frames that come while one is labelled are passed over;
    how many is said.

    Raises as `open_device`; UsageError for networks of other inputs than colour.
    """
    name = safe_name(f"camera-{Path(source).stem}")
    plan = Outputs(out, [Path(source)] if Path(source).is_file() else [])
    names = claim_video(plan, Path(f"{name}.mp4"), name, options)
    refuse_inputs(ready, Path(source))
    camera = Camera(open_device(source), source, seconds)
    with _stopped_by_ctrl_c(camera):
        if not options.quiet:
            say(f"labelling the camera {printable(source)}: Ctrl-C ends it, and the video is finished.")
        written = label_frames(ready, camera, name, plan, names, replace(options, quiet=True))
    if camera.lost:
        say(f"note: the camera {printable(source)} fell silent; what had come is kept.")
    if camera.dropped and not options.quiet:
        say(f"note: {camera.dropped} frames came while others were labelled, and were passed over.")
    return written


@contextmanager
def _stopped_by_ctrl_c(camera: Camera) -> Iterator[None]:
    """The first Ctrl-C ends the camera, a second the process, as ever. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def stop(_number: int, _frame: object) -> None:
        camera.stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
