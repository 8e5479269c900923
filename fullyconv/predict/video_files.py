"""The videos among the images of `fullyconv predict`: the same video under its labels, and label maps of its frames."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.drawing import overlay
from fullyconv.errors import UsageError, printable
from fullyconv.files.disk import PREFIX, make_directory, sync_file
from fullyconv.files.staged import ResultFiles
from fullyconv.images import encode_label
from fullyconv.predict import Predictor
from fullyconv.rasters.video import FrameSource, VideoFrames, write_video
from fullyconv.terminal import progress_line

__all__ = ["VideoLabeller", "VideoOptions", "claim_video", "label_frames", "label_video", "refuse_inputs"]

KINDS = (".mp4", ".mov", ".m4v", ".mkv")  # written as they are read; the others become .mkv, which holds any sound


@final
@dataclass(frozen=True)
class VideoOptions:
    """every: frames from one that is labelled to the next; smooth: share of what earlier frames said, 0..1."""

    overlay: bool = True
    frames: bool = False
    every: int = 1
    smooth: float = 0.0
    quiet: bool = False


def claim_video(plan: ResultFiles, source: Path, name: str, options: VideoOptions) -> dict[str, str]:
    if not (options.overlay or options.frames):
        raise UsageError(f"Nothing would be written for {printable(source)}; add --frames, or leave --no-overlay out.")
    suffix = source.suffix.lower() if source.suffix.lower() in KINDS else ".mkv"
    return {"overlay": plan.claim(f"{name}{suffix}")} if options.overlay else {}


@final
class VideoLabeller:
    """Labels of the main head, frame after frame; what was said of the frames before is kept here."""

    def __init__(self, ready: Predictor, every: int, smooth: float) -> None:
        self._ready, self._every, self._smooth = ready, every, smooth
        self._seen = self.computed = 0
        self._labels: NDArray[Any] | None = None
        self._shares: Any = None

    def __call__(self, image: NDArray[np.number]) -> NDArray[Any]:
        """image H W 3 -> labels H W: of this frame, or of the last that was not skipped."""
        if self._labels is None or self._seen % self._every == 0 or self._labels.shape != image.shape[:2]:
            self._labels = self._compute(image)
            self.computed += 1
        self._seen += 1
        return self._labels

    def _compute(self, image: NDArray[np.number]) -> NDArray[Any]:
        head = next(iter(self._ready.heads))
        if not self._smooth:
            plain: NDArray[Any] = self._ready.labels(image)[head]
            return plain
        scores = self._ready.scores(image)
        scores = scores[head] if isinstance(scores, dict) else scores
        shares = self._ready.backend.probabilities(scores, False, scores.shape[1:])
        if self._shares is not None and self._shares.shape == shares.shape:
            shares = self._smooth * self._shares + (1 - self._smooth) * shares
        self._shares = shares
        kind = "uint8" if shares.shape[0] <= 255 else "uint16"
        smoothed: NDArray[Any] = shares.argmax(0).astype(kind)
        return smoothed


def label_video(
    ready: Predictor, source: Path, name: str, plan: ResultFiles, names: dict[str, str], options: VideoOptions
) -> list[tuple[str, Path]]:
    """Write what was claimed for one video, and its frames' label maps: (what, file)."""
    refuse_inputs(ready, source)
    return label_frames(ready, VideoFrames(source), name, plan, names, options)


def refuse_inputs(ready: Predictor, source: Path) -> None:
    """UsageError where the network takes more than colours."""
    if (inputs := ready.inputs or ("rgb",)) != ("rgb",):
        raise UsageError(f"This network takes {', '.join(inputs)}; {printable(source)} has colours alone.")


def label_frames(
    ready: Predictor, frames: FrameSource, name: str, plan: ResultFiles, names: dict[str, str], options: VideoOptions
) -> list[tuple[str, Path]]:
    """`label_video` for frames wherever they come from; closes them."""
    taxonomy = ready.taxonomies[next(iter(ready.heads))]
    label, written = VideoLabeller(ready, options.every, options.smooth), list[tuple[str, Path]]()
    number = 0

    def draw(image: NDArray[np.number]) -> NDArray[Any]:
        nonlocal number
        before = label.computed
        labels = label(image)
        if options.frames and label.computed > before:
            file = plan.claim(name, f"{number:06d}.png")
            written.append(("labels", plan.write(file, encode_label(labels, taxonomy.palette))))
        number += 1
        return overlay(image, labels, taxonomy.palette)

    line = progress_line(f"labelling {frames.path.name},", options.quiet)
    try:
        if "overlay" not in names:
            for _, image in frames:
                draw(image)
            return written
        target = plan.folder / names["overlay"]
        make_directory(target.parent)
        temporary = target.parent / f"{PREFIX}{secrets.token_hex(8)}{target.suffix}"
        try:
            write_video(temporary, frames, draw, line)
            sync_file(temporary)
            return [("video", plan.publish(names["overlay"], temporary)), *written]
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        frames.close()
