"""Every command that takes an exported file, in processes none of which can import torch, numba or onnx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fullyconv as fc
from fullyconv.images import encode_label

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from serving_tools import Served
from test_runtime import drawn, photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("commands") / "m.onnx"
    fc.export(drawn(classes=5), out)
    return out


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment for processes in which those imports fail, as where nothing of it is installed."""
    (tmp_path / "absent").mkdir()
    source = 'import sys\nsys.modules.update(dict.fromkeys(("torch", "torchvision", "numba", "onnx")))\n'
    (tmp_path / "absent" / "sitecustomize.py").write_text(source)  # what every Python reads when it starts
    path = os.pathsep.join([str(tmp_path / "absent"), str(Path(fc.__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path}


def fullyconv(bare: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fullyconv", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=bare)


def test_the_environment_is_as_bare_as_it_says(bare: dict[str, str], tmp_path: Path) -> None:
    drawn(classes=3).save_pretrained(tmp_path / "model")
    Image.fromarray(photo(9, 9)).save(tmp_path / "a.png")
    done = fullyconv(bare, "predict", tmp_path / "model", tmp_path / "a.png", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "fullyconv[torch]" in done.stderr


def test_a_video_is_labelled_frame_by_frame(file: Path, bare: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("av", reason="the extra video is not installed")
    from test_video import film

    from fullyconv.rasters.video import VideoFrames

    source = film(tmp_path / "a.mp4", 5, sound=False)
    done = fullyconv(bare, "predict", file, source, "-o", tmp_path / "out", "--frames")
    assert done.returncode == 0, done.stderr
    ready = fc.Predictor(file)
    frames = [image for _, image in VideoFrames(source)]
    made = sorted((tmp_path / "out").rglob("00000*.png"))
    assert len(made) == len(frames) == 5
    for frame, path in zip(frames, made, strict=True):
        assert (np.asarray(Image.open(path)) == ready(frame)).mean() > 0.999  # without numba: ties
    assert any(p.suffix == ".mp4" for p in (tmp_path / "out").iterdir())


def test_a_server_of_the_file_answers_with_predicts_bytes(file: Path, bare: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    image = photo(45, 61)
    Image.fromarray(image).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "fullyconv", "serve", str(file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=bare)
    try:
        assert process.stdout is not None
        output = ""
        while "http://" not in output:
            output = process.stdout.readline()
            assert output, "the server ended"
        served = Served(process, int(output.split("http://")[1].split()[0].rstrip("/").rpartition(":")[2]))
        served.until_ready(120)
        status, headers, body = served.post((tmp_path / "a.png").read_bytes())
        assert (status, headers["content-type"]) == (200, "image/png")
        about = json.loads(served.get("/v1/model")[2])
        assert about["name"] == "fcn16s-squeezenet1_0"
    finally:
        process.kill()
        process.wait()
    done = fullyconv(bare, "predict", file, tmp_path / "a.png", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert body == (tmp_path / "out" / "a.png").read_bytes()


def data_of(file: Path, folder: Path) -> Path:
    ready = fc.Predictor(file)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    taxonomy = ready.taxonomies["semantic"]
    for i in range(3):
        image = photo(40 + i, 50, seed=i)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        (folder / "labels" / f"{i}.png").write_bytes(encode_label(ready(image), taxonomy.palette))
    (folder / "classes.txt").write_text("\n".join(taxonomy.names))
    return folder


def test_report_and_compare_measure_files_on_the_data_named(file: Path, bare: dict[str, str], tmp_path: Path) -> None:
    data, page = data_of(file, tmp_path / "data"), tmp_path / "page.html"
    done = fullyconv(bare, "report", file, data, "-o", page)
    assert done.returncode == 0, done.stderr
    assert "fcn16s-squeezenet1_0" in page.read_text()
    done = fullyconv(bare, "compare", file, file, data, "--json")
    assert done.returncode == 0, done.stderr
    found: Any = json.loads(done.stdout)["mean_iu"]
    assert found["difference"] == 0
    assert found["a"] > 0.999
    page.write_text("mine")
    assert fullyconv(bare, "report", file, data, "-o", page).returncode == 2
    assert page.read_text() == "mine"
