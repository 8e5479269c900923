"""A folder of images: decoded ahead, written behind, bad files passed over, what is finished left out with --resume."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_predict import Tiny, photo

import fullyconv
from fullyconv.cli import main
from fullyconv.errors import UsageError
from fullyconv.predict import Predictor
from fullyconv.predict.jobs import AHEAD, Finished, read_ahead
from fullyconv.predict.label_sources import LabelOptions, label_sources
from fullyconv.predict.sources import InputFiles, find_sources


def test_results_come_in_order_read_by_one_other_thread_and_few_wait() -> None:
    begun: list[int] = []
    threads = set()

    def read(item: int) -> int:
        begun.append(item)
        threads.add(threading.get_ident())
        return item * 10

    seen = []
    for item, given in read_ahead(range(20), lambda i: i % 3 != 0, read):
        seen.append((item, given()))
        assert len([b for b in begun if b > item]) <= AHEAD
    assert seen == [(i, None if i % 3 == 0 else i * 10) for i in range(20)]
    assert threads
    assert threading.get_ident() not in threads


def test_an_error_comes_with_its_own_item() -> None:
    def read(item: int) -> int:
        return 1 // item

    found = []
    for item, given in read_ahead([1, 0, 1], lambda _: True, read):
        try:
            found.append(given())
        except ZeroDivisionError:
            found.append(item - 7)
    assert found == [1, -7, 1]


def test_what_is_finished_is_known_by_job_bytes_name_and_results(tmp_path: Path) -> None:
    source, result = tmp_path / "a.png", tmp_path / "out.png"
    source.write_bytes(b"1")
    result.write_bytes(b"2")
    Finished(tmp_path, "job").add([source], "a")
    assert Finished(tmp_path, "job").holds([source], "a", [result])
    assert not Finished(tmp_path, "other").holds([source], "a", [result])
    assert not Finished(tmp_path, "job").holds([source], "b", [result])
    assert not Finished(tmp_path, "job").holds([source], "a", [tmp_path / "gone.png"])
    source.write_bytes(b"3")
    assert not Finished(tmp_path, "job").holds([source], "a", [result])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = fullyconv.create("fcn32s-squeezenet1_0".replace("32s", "16s"), 3, quiet=True)
    for p in model.head_parameters():
        p.data.uniform_(-0.1, 0.1)
    model.save_pretrained("model")
    (tmp_path / "in").mkdir()
    for n in range(6):
        Image.fromarray(np.full((24, 32, 3), 40 * n, np.uint8)).save(tmp_path / f"in/{n}.png")
    return tmp_path


def run(*words: str) -> Any:
    with pytest.raises(SystemExit) as end:
        main(["predict", "model", "in", "-o", "out", "--no-overlay", *words])
    return end.value.code or 0


@pytest.mark.slow
def test_a_bad_file_is_passed_over_and_resuming_does_the_rest_alone(place: Path, capsys: Any) -> None:
    (place / "in/3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run("--quiet") == 65
    assert sorted(p.name for p in (place / "out").glob("*.png")) == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert "1 of 6 images could not be labelled" in capsys.readouterr().err
    before = {p.name: p.stat().st_mtime_ns for p in (place / "out").glob("*.png")}
    Image.fromarray(np.full((24, 32, 3), 7, np.uint8)).save(place / "in/3.png")
    Image.fromarray(np.full((24, 32, 3), 9, np.uint8)).save(place / "in/5.png")
    assert run("--quiet", "--resume") == 0
    assert "4 of 6 images were finished by an earlier run" in capsys.readouterr().err
    after = {p.name: p.stat().st_mtime_ns for p in (place / "out").glob("*.png")}
    assert {n for n in after if after[n] != before.get(n)} == {"3.png", "5.png"}


def test_a_folder_is_labelled_from_python_as_by_the_command(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(photo(seed=i)).save(photos / f"{i}.png")
    (photos / "3.png").write_bytes((photos / "0.png").read_bytes()[:60])
    predictor, options = Predictor(Tiny()), LabelOptions(confidence=True, overlay=False, quiet=True)
    done = label_sources(predictor, find_sources([photos], out), out, options)
    assert [p.name for p in done.failed] == ["3.png"]
    assert done.images == 4
    assert sorted(f.relative_to(out).as_posix() for _, f in done.written) == sorted(
        [f"{i}.png" for i in range(3)] + [f"confidence/{i}.png" for i in range(3)]
    )
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{i}.png")), predictor(photo(seed=i)))
    again = label_sources(predictor, find_sources([photos], out), out, options, resume=True)
    assert (again.images, len(again.failed), again.written) == (1, 1, [])


def test_every_modality_has_its_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes rgb, depth.*--input depth=FOLDER"):
        InputFiles(("rgb", "depth"), {})
    with pytest.raises(UsageError, match="no --input"):
        InputFiles(("rgb",), {"depth": tmp_path})
    with pytest.raises(UsageError, match="about polygons"):
        LabelOptions(tolerance=1)
