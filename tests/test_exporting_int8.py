"""8 bits: calibrated, measured, and refused where they cost more than was allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_runtime import drawn, photo

import fullyconv as fc
from fullyconv import exporting
from fullyconv.errors import DataError, UsageError
from fullyconv.exporting import int8
from fullyconv.exporting.network_graph import build
from fullyconv.runtime.exported import ExportedNetwork

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> Any:
    return drawn(classes=4)


@pytest.fixture(scope="module")
def data(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the network itself labelled: in fp32 its mean IU is 1."""
    folder, ready = tmp_path_factory.mktemp("data"), fc.Predictor(model)
    for what in ("images", "labels"):
        (folder / what).mkdir()
    for i in range(4):
        image = photo(48, 56, seed=i)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(ready.labels(image)["semantic"]).save(folder / "labels" / f"{i}.png")
    (folder / "classes.txt").write_text("\n".join(model.taxonomies["semantic"].names))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LOOKED", (1, 32))
    monkeypatch.setattr(int8, "TIMED", (32, 48))


def test_a_file_in_8_bits_says_what_it_costs_and_labels_in_tiles_as_whole(
    model: Any, data: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    proof = fc.export(model, tmp_path / "8.onnx", int8=data, max_loss=60, say=messages.append)
    measured = proof.int8
    assert measured is not None
    assert measured.mean_iu[0] == pytest.approx(1, abs=1e-3)
    assert measured.mean_iu[1] < 1  # it does compute otherwise
    assert (measured.images, measured.calibrated_on, measured.layers) == (2, 2, 25)
    assert min(measured.milliseconds) > 0
    assert "calibrating on 2 images" in messages
    fc.export(model, tmp_path / "32.onnx")
    assert (tmp_path / "8.onnx").stat().st_size < 0.4 * (tmp_path / "32.onnx").stat().st_size
    whole, tiled = fc.Predictor(tmp_path / "8.onnx"), fc.Predictor(tmp_path / "8.onnx", tile=32)
    assert whole.precision == "int8"
    image = photo(48, 56, seed=9)
    assert (whole(image) == tiled(image)).mean() > 0.999
    with pytest.raises(UsageError, match="computes in 8 bits"):
        exporting.verify_export(tmp_path / "8.onnx", model)


@pytest.mark.slow
def test_more_than_the_allowed_loss_is_refused_after_layers_were_left_in_fp32(
    model: Any, data: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    with pytest.raises(DataError, match=r"8 bits lose .* points of mean IU .* more than the 0 allowed"):
        fc.export(model, tmp_path / "8.onnx", int8=data, max_loss=0, say=messages.append)
    assert not (tmp_path / "8.onnx").exists()
    tried = [line.split(" of ")[0] for line in messages if "layers in fp32" in line]
    assert tried == ["0", "1", "2", "4", "8"]


def test_the_layer_that_8_bits_spoil_costs_most(model: Any) -> None:
    graph, values = build(model, "coarse", "float")
    bare = graph.model()
    about = {"input": {"kind": "float"}, "coarse": values.coarse, "preprocessing": model.preprocessing.to_json()}
    layers = [n.name for n in bare.graph.node if n.op_type == "Conv" and n.name in set(values.trunk)][:4]
    images = [photo(32, 32)]
    ranges = dict(int8._calibrated(bare, [int8._fed(images[0], about)]).data)

    class Wide:
        range_value = (np.float32(-1e3), np.float32(1e3))

    entered = {n.name: n.input[0] for n in bare.graph.node}
    costs = int8._costs(bare, about, layers, ranges, images)
    spoiled = int8._costs(bare, about, layers, ranges | {entered[layers[1]]: Wide()}, images)
    assert all(0 < costs[layer] < 0.1 for layer in layers)
    assert max(spoiled, key=lambda layer: spoiled[layer]) == layers[1]
    assert spoiled[layers[0]] == costs[layers[0]]


def test_unlabelled_data_are_refused_before_work(model: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(photo(20, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises((UsageError, DataError)):
        fc.export(model, tmp_path / "8.onnx", int8=tmp_path)
    assert not (tmp_path / "8.onnx").exists()


def test_an_opened_file_is_checked_like_any_other(model: Any) -> None:
    with pytest.raises(DataError, match="no ONNX file"):
        ExportedNetwork.of_bytes(b"\x08", "the exported file")
