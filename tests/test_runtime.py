"""An exported file labels as its network does, whole and in tiles, without torch."""

from __future__ import annotations

import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fullyconv as fc
from fullyconv.cli.compare import compare_command
from fullyconv.cli.export import export_command
from fullyconv.cli.models import info
from fullyconv.cli.predict import predict
from fullyconv.cli.report import report
from fullyconv.errors import DataError, UsageError
from fullyconv.images import encode_label
from fullyconv.interpolation import strips
from fullyconv.ops import upsample, upsample_softmax_max
from fullyconv.runtime.exported import ExportedNetwork

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def drawn(name: str = "fcn16s-squeezenet1_0", **how: Any) -> Any:
    """A network whose scores are drawn, as if it had learned."""
    model = fc.create(name, quiet=True, **how).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.head_parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> Any:
    cells = np.random.default_rng(seed).integers(0, 256, (height // 9 + 1, width // 9 + 1, channels), np.uint8)
    return np.ascontiguousarray(cells.repeat(9, 0).repeat(9, 1)[:height, :width])


@pytest.fixture(scope="module")
def model() -> Any:
    return drawn(heads={"semantic": 5, "surface": 3})


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runtime")
    for output in ("labels", "coarse"):
        fc.export(model, folder / f"{output}.onnx", output=output)
    return {output: folder / f"{output}.onnx" for output in ("labels", "coarse")}


def test_a_weight_of_another_bit_is_noticed_before_an_engine_sees_it(files: Any, tmp_path: Path) -> None:
    data = bytearray(files["labels"].read_bytes())
    data[len(data) // 2] ^= 1  # weights fill most of a file: it stays one that any engine would run
    (tmp_path / "changed.onnx").write_bytes(data)
    with pytest.raises(DataError, match="not as it was exported"):
        ExportedNetwork(tmp_path / "changed.onnx")


def test_usage_is_never_counted_by_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))")  # a stand-in
    package = Path(fc.__file__).parent
    code = "from fullyconv.runtime.onnx_session import quiet_onnxruntime; quiet_onnxruntime()"
    path = os.pathsep.join([str(tmp_path), str(package.parent), *sys.path])
    bare = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"} | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    loads = [p.name for p in package.rglob("*.py") if "import onnxruntime\n" in p.read_text()]
    assert sorted(loads) == ["example.py", "onnx_session.py"], "a script of its own, and nothing else loads it"


def assert_same_but_for_ties(answer: Any, truth: Any, scores: Any) -> None:
    got = np.take_along_axis(scores, answer.astype(np.int64)[None], 0)[0]
    assert answer.dtype == truth.dtype
    assert (scores.max(0) - got).max() <= 1e-4 * np.abs(scores).max()


@pytest.mark.parametrize("output", ["labels", "coarse"])
@pytest.mark.parametrize("tile", [None, 16, (64, 32)])
def test_labels_confidence_and_scores_are_torchs(model: Any, files: Any, output: str, tile: Any) -> None:
    eager, ready = fc.Predictor(model), fc.Predictor(files[output], tile=tile)
    image = photo(83, 131)
    labels, confidence, scores = ready.labels(image), ready.confident_labels(image), ready.scores(image)
    truth, trusted, full = eager.labels(image), eager.confident_labels(image), eager.scores(image)
    assert ready.heads == eager.heads
    for head in ready.heads:
        assert_same_but_for_ties(labels[head], truth[head], full[head])
        assert_same_but_for_ties(confidence[head][0], truth[head], full[head])
        np.testing.assert_allclose(confidence[head][1], trusted[head][1], atol=1e-4)
        np.testing.assert_allclose(scores[head], full[head], atol=1e-4 * np.abs(full[head]).max())
    assert ready.tiling == fc.Predictor(model, tile=tile).tiling


def test_without_numba_the_strips_give_the_same(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    image, ready = photo(60, 45), fc.Predictor(files["coarse"])
    truth = ready.confident_labels(image)
    monkeypatch.setattr("fullyconv.runtime.backend._compiled", lambda: False)
    for head, (labels, confidence) in ready.confident_labels(image).items():
        assert (labels == truth[head][0]).mean() > 0.999
        np.testing.assert_allclose(confidence, truth[head][1], atol=1e-5)


@pytest.mark.parametrize("border", ["fade", "replicate"])
@pytest.mark.parametrize(("stride", "offset"), [(1, 1), (2, 0.5), (3, 1), (8, 4), (8, 31), (32, 19)])
def test_strips_read_what_ops_reads(border: Any, stride: int, offset: float) -> None:
    from fullyconv.runtime.backend import _sampling

    several = {"budget": 500}
    scores = torch.randn(1, 7, 4, 5, generator=torch.Generator().manual_seed(3))
    size = (3 * stride + 1, 2 * stride + 3)
    sampling = _sampling((4, 5), size, stride, offset, border)
    full = upsample(scores, size, stride, offset, border, "reference")[0].numpy()
    np.testing.assert_allclose(strips.upsample(scores[0].numpy(), sampling, **several), full, atol=1e-5)
    labels, confidence = strips.label_and_confidence(scores[0].numpy(), sampling, np.uint8, **several)
    truth = upsample_softmax_max(scores, size, stride, offset, border, "reference")[1][0].numpy()
    assert_same_but_for_ties(labels, labels, full)
    np.testing.assert_array_equal(labels, strips.label(scores[0].numpy(), sampling, np.uint8, **several))
    np.testing.assert_allclose(confidence, truth, atol=1e-6)


def test_augmentation_is_torchs(model: Any, files: Any) -> None:
    image = photo(37, 50)
    truth = fc.Predictor(model).augmented_labels(image, ["flip", "scales"])
    for head, (_, confidence) in fc.Predictor(files["coarse"]).augmented_labels(image, ["flip", "scales"]).items():
        np.testing.assert_allclose(confidence, truth[head][1], atol=2e-4)


def test_images_of_other_types_are_labelled_as_the_network_does(model: Any, files: Any) -> None:
    image = photo(30, 41).astype(np.float32) + 0.25
    truth, scores = fc.Predictor(model).labels(image), fc.Predictor(model).scores(image)
    for head, labels in fc.Predictor(files["labels"]).labels(image).items():
        assert_same_but_for_ties(labels, truth[head], scores[head])


def test_a_files_predictor_is_pickled_and_says_what_it_is(files: Any) -> None:
    ready = fc.Predictor(files["labels"])
    image = photo(20, 30)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ready))(image)["surface"], ready(image)["surface"])
    assert repr(ready) == "Predictor(fcn16s-squeezenet1_0, semantic: 5 classes, surface: 3 classes, cpu, fp32)"
    with pytest.raises(UsageError, match="bf16"):
        fc.Predictor(ExportedNetwork(files["labels"]), precision="bf16")


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "numba", "onnx")))  # importing them fails
from fullyconv.cli import main
main(sys.argv[1:])
"""


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)


def test_predict_and_evaluate_run_where_torch_cannot_be_imported(model: Any, files: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    eager = fc.Predictor(model)
    for i in range(3):
        image = photo(40 + i, 50, seed=i)
        Image.fromarray(image).save(data / "images" / f"{i}.png")
        Image.fromarray(eager.labels(image)["semantic"]).save(data / "labels" / f"{i}.png")
    (data / "classes.txt").write_text("\n".join(model.taxonomies["semantic"].names))
    done = without_torch(
        "predict",
        str(files["labels"]),
        str(data / "images"),
        "-o",
        str(tmp_path / "out"),
        "--confidence",
        "--tile",
        "32",
    )
    assert done.returncode == 0, done.stderr
    for i in range(3):
        predicted = np.asarray(Image.open(tmp_path / "out" / f"{i}.png"))
        assert (predicted == np.asarray(Image.open(data / "labels" / f"{i}.png"))).mean() > 0.999
        assert (tmp_path / "out" / "surface" / f"{i}.png").exists()
        assert (tmp_path / "out" / "confidence" / f"{i}.png").exists()
    done = without_torch("evaluate", str(files["labels"]), str(data), "--json", "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mean_iu"] > 0.999
    assert set(result["versions"]) == {"fullyconv", "onnxruntime", "numpy", "python"}
    done = without_torch("report", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kept" / "report.html").exists()


def test_a_directory_without_torch_says_what_to_install(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    Image.fromarray(photo(20, 20)).save(tmp_path / "a.png")
    done = without_torch("predict", str(tmp_path / "model"), str(tmp_path / "a.png"), "-o", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "fullyconv[torch]" in done.stderr


@pytest.mark.parametrize("taken", ["uint8", "float"])
def test_the_printed_script_writes_the_commands_labels_byte_for_byte(
    model: Any, files: Any, taken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_command(example=True)
    (tmp_path / "label.py").write_text(capsys.readouterr().out)
    file = files["labels"]
    if taken == "float":
        fc.export(model, file := tmp_path / "float.onnx", input="float")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(photo(37, 53)).save(tmp_path / "a.jpg", exif=turned)
    main = runpy.run_path(str(tmp_path / "label.py"))["main"]
    main(str(file), str(tmp_path / "a.jpg"), str(tmp_path / "out.png"))
    labels = fc.Predictor(file).labels(tmp_path / "a.jpg")["semantic"]
    assert labels.shape == (53, 37)
    assert (tmp_path / "out.png").read_bytes() == encode_label(labels, model.taxonomies["semantic"].palette)
    assert len((tmp_path / "label.py").read_text().splitlines()) < 50


def test_info_shows_what_a_file_says_of_itself(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    info(str(files["labels"]))
    output = capsys.readouterr().out
    assert "fcn16s-squeezenet1_0" in output
    assert "labels_surface, labels of surface, 3 classes" in output
    assert "proved: onnxruntime and torch on 9 batches" in output
    info(str(files["coarse"]), as_json=True)
    assert json.loads(capsys.readouterr().out)["about"]["output"] == "coarse"


def test_a_file_holds_no_figures_until_data_are_named(files: Any) -> None:
    with pytest.raises(UsageError, match=r"holds no figures; .* fullyconv report .*labels\.onnx DATA"):
        report([str(files["labels"])])
    with pytest.raises(UsageError, match=r"fullyconv compare .*labels\.onnx .*coarse\.onnx DATA"):
        compare_command(files["labels"], files["coarse"])


def test_a_raster_is_labelled_in_blocks_as_the_whole(files: Any, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    image, ready = photo(150, 200), fc.Predictor(files["labels"])
    profile = {"driver": "GTiff", "height": 150, "width": 200, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        tmp_path / "a.tif", "w", **profile, crs="EPSG:3857", transform=rasterio.Affine(2, 0, 0, 0, -2, 0)
    ) as f:
        f.write(image.transpose(2, 0, 1))
    predict(str(files["labels"]), [tmp_path / "a.tif"], out=tmp_path / "out", tile=64, quiet=True, confidence=True)
    truth, scores = ready.labels(image), ready.scores(image)
    with rasterio.open(tmp_path / "out" / "a.tif") as f:
        assert_same_but_for_ties(f.read(1), truth["semantic"], scores["semantic"])
