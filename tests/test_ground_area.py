"""Evaluations of images that lie on a map say the size of a pixel and the area of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_rasters import Small, ground, save

from fullyconv.cli.evaluate import table
from fullyconv.data import open_dataset
from fullyconv.evaluation import evaluate
from fullyconv.images import encode_label
from fullyconv.predict import Predictor
from fullyconv.report import render

pytest.importorskip("rasterio", reason="the extra geo is not installed")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of 20 x 30 pixels of 10 m, one of them without a place; one pixel of a hundred is ignored."""
    for part in ("images", "labels"):
        (tmp_path / "val" / part).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    for n in range(3):
        save(tmp_path / f"val/images/{n}.tif", ground(20, 30, seed=n), None if n == 2 else (20 * n, 0))
        labels = np.full((20, 30), n, np.uint8)
        labels[0, :6] = 255
        (tmp_path / f"val/labels/{n}.png").write_bytes(encode_label(labels, ()))
    return tmp_path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_hectares_are_those_of_the_labelled_pixels_that_lie_on_a_map(data: Path) -> None:
    result = evaluate(Predictor(Small()), open_dataset(f"folder:{data}", "val"), unknown="missed")
    told = result.about["ground"]
    assert (told["images"], told["metres"]) == (2, [10, 10])
    (areas,) = told["hectares"].values()
    assert areas["truth"] == [5.94, 5.94, 0]  # 594 pixels of 100 square metres
    assert sum(areas["prediction"]) == pytest.approx(2 * 5.94)
    page = table(result)
    assert "A pixel is 10 m of ground (2 of the images lie on a map)." in page
    assert "5.94" in page


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_report_shows_the_areas_that_the_result_says(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    result = evaluate(Predictor(Small()), open_dataset(f"folder:{data}", "val"), unknown="missed", keep=kept)
    page = render(kept)
    assert "A pixel is 10 m of ground; 2 of the 3 images lie on a map." in page
    areas = result.about["ground"]["hectares"]["semantic"]
    for truth, predicted in zip(areas["truth"], areas["prediction"], strict=True):
        if truth:
            assert (
                f"<td>{truth:,.4g}</td><td>{predicted:,.4g}</td><td>{100 * (predicted / truth - 1):+.1f} %</td>" in page
            )


def test_images_without_a_place_say_nothing_of_ground(data: Path) -> None:
    for name in ("0", "1"):
        (data / f"val/images/{name}.tif").unlink()
        (data / f"val/labels/{name}.png").unlink()
    result = evaluate(Predictor(Small()), open_dataset(f"folder:{data}", "val"), unknown="missed")
    assert "ground" not in result.about
    assert "A pixel is" not in table(result)


def test_resized_images_say_nothing_of_ground(data: Path) -> None:
    dataset = open_dataset(f"folder:{data}", "val")
    assert "ground" not in evaluate(Predictor(Small()), dataset, protocol="resized:16", unknown="missed").about
