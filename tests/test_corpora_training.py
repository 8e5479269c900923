"""Every published layout and labelling format is learned and measured for two steps, from its owners' files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import test_annotations as tools
import test_corpora as corpora
from training_tools import Recipe

from fullyconv import scenes
from fullyconv.cli import main
from fullyconv.data import hha, open_dataset
from fullyconv.errors import UsageError
from fullyconv.images import encode_png, read_label, write_label
from fullyconv.models import load
from fullyconv.train import fit

pytestmark = pytest.mark.slow


def annotated(kind: str) -> Callable[[Path], object]:
    def write(root: Path) -> object:
        square = [tools.SQUARE[i : i + 2] for i in range(0, 8, 2)]
        if kind == "coco":
            return tools.write_coco(root, [{"category_id": 1, "segmentation": [tools.SQUARE]}])
        if kind == "labelme":
            return tools.write_labelme(root, "x", [tools.shape("car", "polygon", square)])
        if kind == "cvat":
            return tools.write_cvat(root, tools.cvat_polygon("car", tools.SQUARE, 0))
        return tools.write_labelstudio(root, [tools.result("polygon", "car", points=tools.percent(tools.SQUARE))])

    return write


FORMATS = {kind: annotated(kind) for kind in ("coco", "labelme", "cvat", "labelstudio")}


def learn(spec: str, root: Path, model: str = "fcn4s-tiny", **options: object) -> dict[str, float]:
    """The measurements of a run of two steps that learns and is measured on the same split."""
    inputs = ("rgb", "depth") if model.endswith("-rgbd") else ("rgb", "hha") if "hha" in model else None
    data = open_dataset(spec, inputs=inputs)
    recipe = Recipe.model_validate(
        {"model": model, "steps": 2, "batch_size": 1, "crop": (32, 32), "device": "cpu", "seed": 1, **options}
    )
    out = fit(recipe, data=data, val=data, out=root / "run", check=False, quiet=True)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return dict(next(row for row in reversed(rows) if any("mean_iu" in key for key in row)))


@pytest.mark.parametrize("kind", [*corpora.WRITERS, *FORMATS])
def test_each_layout_is_learned_and_measured(kind: str, tmp_path: Path) -> None:
    {**corpora.WRITERS, **FORMATS}[kind](tmp_path / "data")
    measured = learn(f"{kind}:{tmp_path / 'data'}", tmp_path)
    assert any(key.endswith("mean_iu") and 0 <= value <= 1 for key, value in measured.items())
    if kind == "siftflow":
        assert any("geometric" in key for key in measured)


@pytest.mark.parametrize("model", ["fcn4s-tiny-rgbd", "fcn4s-tiny-rgb-hha"])
def test_scenes_are_learned_with_depth_fused_early_and_hha_fused_late(model: str, tmp_path: Path) -> None:
    root = scenes.write_scenes(tmp_path / "data", train=2, val=0, size=(48, 64))
    for file in (root / "train/depth").iterdir():
        image = hha.encode(hha.read_depth(file), scenes.camera((48, 64)))
        (root / "train/hha").mkdir(exist_ok=True)
        (root / "train/hha" / file.name).write_bytes(encode_png(image))
    measured = learn(f"folder:{root}", tmp_path, model)
    assert any("geometric" in key for key in measured)


def test_one_crop_of_one_cell_is_refused_where_batch_norm_is_learned(tmp_path: Path) -> None:
    FORMATS["coco"](tmp_path / "data")
    with pytest.raises(UsageError, match="single cell at stride 32"):
        learn(f"coco:{tmp_path / 'data'}", tmp_path, "fcn8s-resnet18")
    assert not (tmp_path / "run").exists()


def test_images_of_many_bands_are_learned_measured_and_labelled(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    draw = np.random.default_rng(0)
    for split, i in (("train", 0), ("train", 1), ("val", 2)):
        label = np.repeat([0, 1], [20, 28])[None].repeat(40, 0).astype(np.uint8)
        planes = np.stack([label.astype(int) * 500 * (b + 1) + draw.integers(0, 300, label.shape) for b in range(5)])
        (tmp_path / split / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / split / "labels").mkdir(exist_ok=True)
        options = {"driver": "GTiff", "height": 40, "width": 48, "count": 5, "dtype": "uint16", "compress": "deflate"}
        with rasterio.open(tmp_path / split / "images" / f"{i}.tif", "w", **options) as file:
            file.write(planes.astype(np.uint16))
        write_label(tmp_path / split / "labels" / f"{i}.png", label)
    settings = {"model": "fcn4s-tiny", "steps": 2, "batch_size": 1, "crop": (32, 32), "device": "cpu"}
    run = fit(Recipe.model_validate(settings), str(tmp_path), tmp_path / "run", quiet=True)
    model = load(run / "best")
    assert model.name == "fcn4s-tiny-bands5"
    pixels = np.concatenate([s.image[::2, ::2].reshape(-1, 5) for s in open_dataset(tmp_path, "train")])
    np.testing.assert_allclose(model.preprocessing.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.preprocessing.std, pixels.std(0), rtol=1e-6)
    for command in (
        ["evaluate", str(run), str(tmp_path), "--quiet"],
        ["predict", str(run), str(tmp_path / "val/images"), "-o", str(tmp_path / "out"), "--overlay", "--quiet"],
    ):
        with pytest.raises(SystemExit) as end:
            main(command)
        assert not end.value.code
    assert read_label(tmp_path / "out/2.png").shape == (40, 48)
