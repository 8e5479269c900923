"""A package of bioimage.io says what its file takes and gives, and is tested by bioimage.io's own program."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fullyconv as fc
from fullyconv.errors import UsageError

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from test_exporting import trained  # noqa: E402

from fullyconv.exporting import bioimageio  # noqa: E402

PROGRAM = os.environ.get("FULLYCONV_BIOIMAGEIO", "")  # the command of the package bioimageio.core


@pytest.fixture(scope="module")
def model() -> Any:
    return trained(heads={"semantic": 5, "surface": 3})


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bioimageio") / "m.zip"
    fc.export(model, out, "bioimageio", output="confidence")
    return out


def opened(file: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return json.loads(members["bioimageio.yaml"]), members


def array(members: dict[str, bytes], tensor: Any) -> Any:
    described = tensor["test_tensor"]
    assert hashlib.sha256(members[described["source"]]).hexdigest() == described["sha256"]
    return np.load(io.BytesIO(members[described["source"]]), allow_pickle=False)


def test_the_test_tensors_are_what_the_file_gives_at_a_size_that_is_allowed(file: Path) -> None:
    record, members = opened(file)
    weights = record["weights"]["onnx"]
    assert hashlib.sha256(members[weights["source"]]).hexdigest() == weights["sha256"]
    run = ort.InferenceSession(members[weights["source"]], providers=["CPUExecutionProvider"])
    (image,) = (array(members, t) for t in record["inputs"])
    found = run.run(None, {"image": image})
    assert len(found) == len(record["outputs"]) == 4
    for tensor, there in zip(record["outputs"], found, strict=True):
        np.testing.assert_array_equal(array(members, tensor), there)
        assert there.dtype == tensor["data"]["type"]
    for axis, side in zip(record["inputs"][0]["axes"][1:3], image.shape[1:3], strict=True):
        assert side >= axis["size"]["min"]
        assert (side - axis["size"]["min"]) % axis["size"]["step"] == 0


def test_tiles_of_the_described_sizes_and_halo_give_the_wholes_labels(file: Path, model: Any) -> None:
    record, members = opened(file)
    size, halo = record["inputs"][0]["axes"][1]["size"], record["outputs"][0]["axes"][1]["halo"]
    assert halo >= model.geometry(1, 1).halo
    side = size["min"] + size["step"]
    core = side - 2 * halo
    assert core > 0
    run = ort.InferenceSession(members["model.onnx"], providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (1, side + 2 * core, side + core, 3), np.uint8)
    whole = run.run(["labels_semantic"], {"image": image})[0]
    for top in range(0, 2 * core + 1, core):
        for left in range(0, core + 1, core):
            tile = run.run(["labels_semantic"], {"image": image[:, top : top + side, left : left + side]})[0]
            inner = np.s_[0, top + halo : top + side - halo, left + halo : left + side - halo]
            np.testing.assert_array_equal(tile[0, halo:-halo, halo:-halo], whole[inner])


def test_classes_and_channels_are_named(file: Path, model: Any) -> None:
    record, _ = opened(file)
    labels = record["outputs"][0]
    assert labels["data"]["values"] == list(model.taxonomies["semantic"].names)
    assert record["inputs"][0]["axes"][3]["channel_names"] == ["red", "green", "blue"]
    assert "authors" not in record  # nobody knows them here
    assert "license" not in record


@pytest.mark.parametrize(("halo", "align"), [(0, 32), (17.5, 8), (391, 32)])
def test_sides_hold_the_halo_and_lie_on_the_grid(halo: float, align: int) -> None:
    least, step, kept = bioimageio.sides({"halo": halo, "align": align})
    assert kept >= halo
    assert least > 2 * kept
    assert step == align
    assert (least - 2 * kept) % align == kept % align == 0


def test_an_unbounded_context_has_no_halo_and_takes_any_size() -> None:
    assert bioimageio.sides({"halo": None, "align": 32}) == (1, 1, 0)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"output": "coarse"}, "every pixel"),
        ({"taken": "float", "order": (2, 1, 0)}, "another order"),
        ({"halo": 5000}, "no tile"),
    ],
)  # fmt: skip
def test_what_a_description_cannot_say_is_refused(how: dict[str, Any], message: str) -> None:
    asked = {"output": "labels", "taken": "uint8", "halo": 10.0, "order": (0, 1, 2)} | how
    preprocessing = fc.Preprocessing(order=asked.pop("order"))
    with pytest.raises(UsageError, match=message):
        bioimageio.check_describable(preprocessing, **asked)
    bioimageio.check_describable(preprocessing, "labels", "uint8", math.inf)


def test_float_files_are_described_with_their_preprocessing(model: Any, tmp_path: Path) -> None:
    fc.export(model, tmp_path / "m.zip", "bioimageio", output="scores", input="float")
    record, members = opened(tmp_path / "m.zip")
    step = record["inputs"][0]["preprocessing"][0]
    assert step["id"] == "fixed_zero_mean_unit_variance"
    image = array(members, record["inputs"][0])
    mean, std = (np.asarray(step["kwargs"][k], np.float32).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    run = ort.InferenceSession(members["model.onnx"], providers=["CPUExecutionProvider"])
    found = run.run(None, {"image": ((image - mean) / std).astype(np.float32)})
    for tensor, there in zip(record["outputs"], found, strict=True):
        expected = array(members, tensor)
        np.testing.assert_allclose(there, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM, reason="needs the command bioimageio of bioimageio.core in FULLYCONV_BIOIMAGEIO")
def test_bioimage_ios_own_program_passes_the_package(file: Path, tmp_path: Path) -> None:
    # An environment of its own: its packages hold back pydantic and numpy.
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | {"HOME": str(tmp_path)}
    done = subprocess.run([PROGRAM, "test", str(file)], capture_output=True, text=True, env=plain, cwd=tmp_path)
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, output[-3000:]
    assert "status passed" in output
