"""Data are measured in the network's classes: by name, whatever their ids, and what cannot be matched is said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_evaluate import dataset
from test_predict import Tiny

from fullyconv.data.base import Dataset
from fullyconv.errors import DataError, UnknownName
from fullyconv.evaluation import Result, evaluate
from fullyconv.images import read_label
from fullyconv.predict import Predictor
from fullyconv.taxonomy import Taxonomy

NAMES = ("sky", "road", "car")


def predictor(names: Sequence[str] = NAMES) -> Predictor:
    """A network of three classes with these names."""
    model = Tiny()
    model.taxonomies = {"semantic": Taxonomy(tuple(names))}  # type: ignore[assignment]
    return Predictor(model)


def named(data: Dataset, names: Sequence[str], to: Sequence[int], ignore: int = -1) -> Dataset:
    """`data` with its id k written as to[k], and these names."""
    taxonomy = Taxonomy(tuple(names), ignore=ignore)
    table = np.full(256, taxonomy.ignore, np.uint8 if taxonomy.ignore <= 255 else np.uint16)
    table[: len(to)] = to
    read = data.read_labels
    return replace(data, taxonomies={"semantic": taxonomy}, read_labels=lambda r, h: table[read(r, h)])


@pytest.mark.parametrize(
    ("names", "to"),
    [
        (("car", "sky", "road"), (1, 2, 0)),
        (("Road", "CAR", "sky"), (2, 0, 1)),
        (("class 0", "class 1", "class 2"), (0, 1, 2)),
    ],
)
def test_the_same_images_numbered_otherwise_give_the_same_figures(
    tmp_path: Path, names: tuple[str, ...], to: tuple[int, ...]
) -> None:
    data = dataset(tmp_path)
    before, after = evaluate(predictor(), data), evaluate(predictor(), named(data, names, to))
    np.testing.assert_array_equal(after.confusion, before.confusion)
    assert after.per_class == before.per_class
    assert after.taxonomy.names == NAMES
    assert "classes" not in before.about
    assert "3 of 3 classes matched by" in after.about["classes"]["semantic"]
    assert Result.from_json(json.loads(json.dumps(after.to_json()))).about["classes"] == after.about["classes"]


@pytest.mark.parametrize("ignore", [200, 65535])
def test_another_ignore_value_is_ignored_too(tmp_path: Path, ignore: int) -> None:
    data = dataset(tmp_path)
    other = named(data, NAMES, (0, 1, 2), ignore)
    np.testing.assert_array_equal(evaluate(predictor(), other).confusion, evaluate(predictor(), data).confusion)


def test_what_a_kept_evaluation_holds_is_in_the_networks_ids(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    ready = predictor()
    result = evaluate(ready, named(data, ("car", "sky", "road"), (1, 2, 0)), keep=tmp_path / "kept")
    kept = Result.load(tmp_path / "kept")
    assert kept.taxonomy.names == NAMES
    np.testing.assert_array_equal(kept.confusion, result.confusion)
    for sample in data:
        written = read_label(tmp_path / "kept" / "predictions" / f"{sample.name}.png")
        np.testing.assert_array_equal(written, ready(sample.image))
    place = tmp_path / "kept" / kept.analysis["gallery"][0]["files"]["label"]
    truth = next(s for s in data if s.name == kept.analysis["gallery"][0]["name"])
    np.testing.assert_array_equal(read_label(place), truth.labels["semantic"])


def test_data_that_lack_classes_are_measured_and_the_absent_ones_listed(tmp_path: Path) -> None:
    data = dataset(tmp_path, taxonomies={"semantic": Taxonomy.numbered(2)})
    result = evaluate(predictor(), data)
    assert result.taxonomy.names == NAMES
    assert result.to_json()["absent"] == ["car"]
    assert "not among them: car" in result.about["classes"]["semantic"]
    assert result.confusion[:, 2].sum() > 0  # calling something a class that is not there is a mistake all the same


def test_a_numbered_network_takes_the_names_of_the_data(tmp_path: Path) -> None:
    result = evaluate(predictor(("class 0", "class 1", "class 2")), dataset(tmp_path))
    assert result.taxonomy.names == NAMES
    assert result.about["classes"]["semantic"].startswith("3 of 3 classes matched by id; sky is class 0")


def four(tmp_path: Path) -> Dataset:
    return dataset(tmp_path, taxonomies={"semantic": Taxonomy(("dog", "sky", "road", "car"))})


def test_classes_that_the_network_lacks_are_refused_with_a_way_that_works(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot tell 1 of the semantic classes.*\(dog\).*--unknown-classes missed"):
        evaluate(predictor(), four(tmp_path))
    with pytest.raises(UnknownName, match="missed"):
        evaluate(predictor(), four(tmp_path), unknown="mised")


@pytest.mark.parametrize("way", ["missed", "ignored"])
def test_unknown_classes_count_as_missed_or_are_left_out_as_asked(tmp_path: Path, way: str) -> None:
    data, ready = four(tmp_path), predictor()
    table = np.zeros((4, 4), np.int64)  # one pixel at a time; dog comes last
    for sample in data:
        for truth, predicted in zip(sample.labels["semantic"].ravel(), ready(sample.image).ravel(), strict=True):
            if truth != 255:
                table[(int(truth) + 3) % 4, predicted] += 1
    result = evaluate(ready, data, unknown=way)
    if way == "missed":
        np.testing.assert_array_equal(result.confusion, table)
        assert result.taxonomy.names == (*NAMES, "dog")
        assert result.per_class[3]["iu"] == 0
    else:
        np.testing.assert_array_equal(result.confusion, table[:3, :3])
    assert "without a partner: dog; " in result.about["classes"]["semantic"]


@pytest.mark.parametrize("unknown", ["refuse", "missed", "ignored"])
def test_classes_without_any_name_in_common_are_refused_with_both_lists(tmp_path: Path, unknown: str) -> None:
    data = dataset(tmp_path, taxonomies={"semantic": Taxonomy(("cat", "dog", "cow"))})
    with pytest.raises(DataError, match=r"cat, dog, cow, the network knows sky, road, car"):
        evaluate(predictor(), data, unknown=unknown)


def test_a_label_outside_the_classes_of_renumbered_data_is_named(tmp_path: Path) -> None:
    data = dataset(tmp_path, wrong=7)
    swapped: Any = replace(data, taxonomies={"semantic": Taxonomy(("car", "road", "sky"))})
    with pytest.raises(DataError, match="image1: the semantic label holds 7 at row 2, column 3, but there are 3"):
        evaluate(predictor(), swapped)


def test_each_of_several_heads_is_matched_by_its_own_names(tmp_path: Path) -> None:
    heads = {"semantic": 3, "surface": 2}
    model = Tiny(heads=heads)
    model.taxonomies = {"semantic": Taxonomy(NAMES), "surface": Taxonomy(("flat", "steep"))}  # type: ignore[assignment]
    data = dataset(tmp_path, taxonomies=dict(model.taxonomies))  # type: ignore[arg-type]
    tables = {"semantic": np.arange(256, dtype=np.uint8), "surface": np.arange(256, dtype=np.uint8)}
    tables["semantic"][:3], tables["surface"][:2] = (2, 1, 0), (1, 0)
    read = data.read_labels
    other = replace(
        data,
        taxonomies={"surface": Taxonomy(("steep", "flat")), "semantic": Taxonomy(("car", "road", "sky"))},
        read_labels=lambda r, h: tables[h][read(r, h)],
    )
    before, after = evaluate(Predictor(model), data), evaluate(Predictor(model), other)
    for head in heads:
        np.testing.assert_array_equal(after.tables[head], before.tables[head])
    assert set(after.about["classes"]) == set(heads)
