"""Videos: every frame at its own time, turned as it is to be shown; the sound bit for bit; what was skipped is kept."""

from __future__ import annotations

import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rasters import Small

from fullyconv.cli import main
from fullyconv.errors import DataError, MissingExtra, UsageError
from fullyconv.files.outputs import Outputs
from fullyconv.images import read_label
from fullyconv.predict import Predictor
from fullyconv.predict.sources import find_sources
from fullyconv.predict.video_files import VideoLabeller, VideoOptions, claim_video, label_video
from fullyconv.rasters.camera import Camera, open_device
from fullyconv.rasters.video import VideoFrames

av = pytest.importorskip("av", reason="the extra video is not installed")


def film(path: Path, frames: int = 12, sound: bool = True) -> Path:
    """64 x 48 (W x H), between frames 40 or 95 ms."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"bf": "2"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.time_base = video.codec_context.time_base = Fraction(1, 1000)
        tone: Any = out.add_stream("aac", rate=44100, layout="mono") if sound else None
        time = 0
        for n in range(frames):
            image = np.zeros((48, 64, 3), np.uint8)
            image[:, : 4 * n + 4], image[:8] = 220, (90, 20 * n, 0)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            time += 40 if n % 3 else 95
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for n in range(15 if sound else 0):
            wave = np.sin(np.arange(1024) * 0.1 * (n + 1)).astype(np.float32)[None] / 4
            part = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 44100, n * 1024, Fraction(1, 44100)
            out.mux(tone.encode(part))
        if sound:
            out.mux(tone.encode(None))
    return path


def turned(path: Path) -> Path:
    """The film with a display matrix that turns it by a quarter, as a phone held upright writes it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix after 40 bytes
    matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    data[at : at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(bytes(data))
    return path


def times(path: Path) -> list[float]:
    with av.open(str(path)) as file:
        return [float(f.pts * f.time_base) for f in file.decode(video=0)]


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(p) for p in file.demux(audio=0) if p.dts is not None]


def label(source: Path, out: Path, **options: Any) -> list[tuple[str, Path]]:
    plan, chosen = Outputs(out, [source]), VideoOptions(**{"quiet": True, **options})
    return label_video(Predictor(Small()), source, "v", plan, claim_video(plan, source, "v", chosen), chosen)


def test_every_frame_keeps_its_time_and_the_sound_every_bit(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4")
    [(_, made)] = label(source, tmp_path / "out")
    assert made.name == "v.mp4"
    assert len(set(np.diff(np.round(times(source), 3)))) > 1  # a variable rate
    assert times(made) == times(source)
    assert packets(made) == packets(source) != []


def test_label_maps_are_those_of_the_frames_and_skipped_frames_have_none(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4", 7)
    written = label(source, tmp_path / "out", overlay=False, frames=True, every=3)
    assert [p.name for _, p in written] == ["000000.png", "000003.png", "000006.png"]
    frames = [image for _, image in VideoFrames(source)]
    np.testing.assert_array_equal(read_label(written[1][1]), Predictor(Small())(frames[3]))


def test_a_video_of_which_nothing_is_wanted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --frames"):
        label(tmp_path / "a.mp4", tmp_path / "out", overlay=False)


def test_a_turned_film_is_read_as_it_is_shown(tmp_path: Path) -> None:
    plain = next(iter(VideoFrames(film(tmp_path / "a.mp4", 2))))[1]
    shown = next(iter(VideoFrames(turned(film(tmp_path / "b.mp4", 2)))))[1]
    assert shown.shape == (64, 48, 3)
    np.testing.assert_array_equal(shown, np.rot90(plain, -1))  # a quarter clockwise


def test_smoothing_is_a_mean_of_probabilities_that_forgets() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 12, 16, 3), dtype=np.uint8)
    ready, mean = Predictor(Small()), None
    smooth = VideoLabeller(ready, 1, 0.6)
    for frame in frames:
        scores = ready.scores(frame)
        shares = np.exp(scores - scores.max(0))
        shares /= shares.sum(0)
        mean = shares if mean is None else 0.6 * mean + 0.4 * shares
        np.testing.assert_array_equal(smooth(frame), mean.argmax(0))


def test_what_is_no_video_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    source = film(tmp_path / "a.mp4")
    source.write_bytes(source.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as a video"):
        label(source, tmp_path / "out")
    assert [p.name for p in tmp_path.glob("out/**/*") if p.is_file()] == []


def test_a_playlist_that_names_an_address_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:9,\nhttps://example.org/a.ts\n")
    with pytest.raises(DataError, match="cannot be read as a video"):
        VideoFrames(tmp_path / "a.mp4")


def test_without_pyav_the_extra_is_named_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "av" else real(name, *a))
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"fullyconv\[video\]"):
        find_sources([tmp_path / "a.mp4"], tmp_path / "out")


class Device:
    """A camera: frames of one grey level each, `pause` seconds apart; silent after `silent` of them."""

    def __init__(self, frames: int, pause: float = 0.01, silent: int | None = None) -> None:
        self.frames, self.pause, self.silent, self.given, self.closed = frames, pause, silent, 0, False

    def read(self) -> np.ndarray | None:
        time.sleep(self.pause if self.given != self.silent else 3)
        if self.given == self.frames:
            return None
        self.given += 1
        return np.full((48, 64, 3), self.given, np.uint8)

    def close(self) -> None:
        self.closed = True


def test_a_camera_gives_its_newest_frame_and_counts_what_it_passed_over() -> None:
    device = Device(30)
    camera = Camera(device, "0")
    seen, times_of = [], []
    for at, image in camera:
        seen.append(int(image[0, 0, 0]))
        times_of.append(at)
        time.sleep(0.05)
    camera.close()
    assert device.closed
    assert seen == sorted(set(seen))
    assert seen[-1] == 30
    assert camera.dropped == 30 - len(seen) > 0
    assert times_of == sorted(set(times_of))
    assert times_of[0] == 0


def test_a_camera_ends_after_its_seconds_at_a_signal_and_when_it_falls_silent() -> None:
    camera = Camera(Device(10_000), "0", seconds=0.2)
    assert list(camera)
    camera.close()
    camera = Camera(Device(10_000), "0")
    for n, _ in enumerate(camera):
        if n == 3:
            camera.stop.set()
    camera.close()
    assert n == 3
    camera = Camera(Device(100, silent=5), "0", patience=0.3)
    assert list(camera)
    assert camera.lost
    with pytest.raises(DataError, match="gave no frame"):
        list(Camera(Device(0), "0"))


def test_a_file_stands_for_a_camera_on_the_command_line(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    source = film(tmp_path / "a.mp4")
    monkeypatch.setattr("fullyconv.cli.evaluate.predictor", lambda *_, **__: Predictor(Small()))
    with pytest.raises(SystemExit) as done:
        main(["predict", "run", "--source", str(source), "-o", str(tmp_path / "out"), "--frames"])
    assert done.value.code == 0, capsys.readouterr()
    made = tmp_path / "out" / "camera-a.mp4"
    assert str(made) in capsys.readouterr().out
    assert 1 <= len(times(made)) <= 12
    assert len(list((tmp_path / "out" / "camera-a").iterdir())) == len(times(made))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--source", "63"], 65, "There is no camera 63 here"),
        (["--source", "/dev/null"], 65, "There is no camera /dev/null here"),
        (["--source", "http://x/y"], 65, "is no camera"),
        (["a.png", "--source", "0"], 2, "labels a camera alone"),
        (["--source", "0", "--confidence"], 2, "labels a camera alone"),
        ([], 2, "Name the images"),
        (["a.png", "--seconds", "3"], 2, "Name the images"),
    ],
)
def test_what_is_no_camera_is_one_sentence(
    tmp_path: Path, capsys: Any, monkeypatch: Any, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.setattr("fullyconv.cli.evaluate.predictor", lambda *_, **__: Predictor(Small()))
    with pytest.raises(SystemExit) as done:
        main(["predict", "run", *arguments, "-o", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert (done.value.code, message in error) == (code, True), error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtra, match=r"fullyconv\[camera\]"):
        open_device("0")
