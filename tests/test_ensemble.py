"""Several networks answer by their mean probability; small regions of an answer join their largest neighbour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_tools  # noqa: F401  (its small trunks)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from fullyconv import Predictor, models
from fullyconv.cli import _register, app
from fullyconv.errors import UsageError
from fullyconv.predict.ensemble import Ensemble
from fullyconv.predict.label_sources import LabelOptions, label_sources
from fullyconv.predict.sources import find_sources
from fullyconv.regions import components, sieved
from fullyconv.taxonomy import Taxonomy


def network(seed: int, names: str = "abc") -> Any:
    model = models.create("fcn2s-plain", classes=len(names), seed=seed, quiet=True)
    model.taxonomies = {"semantic": Taxonomy(tuple(names))}
    torch.manual_seed(seed)
    for p in model.head_parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def image(seed: int = 0, size: tuple[int, int] = (21, 26)) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def test_the_answer_is_the_mean_of_the_probabilities() -> None:
    predictors = [Predictor(network(s)) for s in (1, 2, 3)]
    found = Ensemble(predictors)
    each = [torch.from_numpy(p.scores(image())).softmax(0).numpy() for p in predictors]
    mean = np.mean(each, 0)
    np.testing.assert_allclose(found.probabilities(image())["semantic"], mean, atol=1e-6)
    labels, confidence = found.confident_labels(image())["semantic"]
    assert np.array_equal(labels, mean.argmax(0))
    np.testing.assert_allclose(confidence, mean.max(0), atol=1e-6)
    assert len({tuple(p.labels(image())["semantic"].ravel()) for p in predictors}) == 3
    alone = Ensemble(predictors[:1])
    assert np.array_equal(alone.labels(image())["semantic"], predictors[0].labels(image())["semantic"])
    assert alone.identity() != found.identity()


@pytest.mark.parametrize(("names", "words"), [("abd", "one has c"), ("cab", "order or number")])
def test_networks_of_unlike_classes_are_refused(names: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Ensemble([Predictor(network(1)), Predictor(network(2, names))])


def slowly_sieved(labels: Any, least: int) -> Any:
    """The definition, a region at a time."""
    while True:
        region, count = components(labels)
        sizes = [int((region == r).sum()) for r in range(count)]
        if count == 1 or min(sizes) >= least:
            return labels
        after = labels.copy()
        for r in range(count):
            grown = ndimage.binary_dilation(region == r)
            around = [(sizes[n], n) for n in np.unique(region[grown]) if n != r]
            if sizes[r] < least and max(around) > (sizes[r], r):
                after[region == r] = labels[region == max(around)[1]][0]
        labels = after


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([(1, 1), (1, 9), (7, 8), (12, 11)]))
@settings(max_examples=60, deadline=None)
def test_sieving_is_its_slow_twin_and_leaves_no_small_region(seed: int, least: int, size: tuple[int, int]) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    found = sieved(labels, least)
    assert np.array_equal(found, slowly_sieved(labels, least))
    region, count = components(found)
    assert count == 1 or np.bincount(region.ravel()).min() >= least
    assert set(np.unique(found)) <= set(np.unique(labels))


def test_small_regions_are_cleaned_from_label_maps_with_confidence_nought(tmp_path: Path) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    predictor = Predictor(network(1))
    raw = predictor.labels(image())["semantic"]
    options = LabelOptions(least=9, confidence=True, quiet=True)
    label_sources(predictor, find_sources([tmp_path / "a.png"], tmp_path / "out"), tmp_path / "out", options)
    found = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.array_equal(found, sieved(raw, 9))
    assert (found != raw).any()
    assert not np.asarray(Image.open(tmp_path / "out" / "confidence" / "a.png"))[found != raw].any()


def test_predict_takes_several_runs_before_the_images(tmp_path: Path) -> None:
    places = []
    for seed in (1, 2):
        places.append(tmp_path / f"m{seed}")
        network(seed).save_pretrained(places[-1])
    (tmp_path / "photos").mkdir()
    Image.fromarray(image()).save(tmp_path / "photos" / "a.png")
    if not app.registered_commands:
        _register()
    arguments = ["predict", *map(str, places), str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--quiet"]
    done = CliRunner().invoke(app, [*arguments, "--probabilities", "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    mean = Ensemble([Predictor(network(1)), Predictor(network(2))]).probabilities(image())["semantic"]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "probabilities" / "a.npy"), mean, atol=1e-6)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), mean.argmax(0))
