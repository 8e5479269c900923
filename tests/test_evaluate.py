"""Evaluation counts every labelled pixel once, says what it measured, and adds up over processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_predict import Tiny

from fullyconv.data.base import Dataset, Record
from fullyconv.errors import DataError, MissingInput, UsageError
from fullyconv.evaluation import Result, evaluate, merge
from fullyconv.evaluation.protocols import resized
from fullyconv.predict import Predictor
from fullyconv.taxonomy import Taxonomy

CLASSES = Taxonomy(("sky", "road", "car"))
SIZES = [(13, 18), (8, 8), (5, 21), (17, 9), (8, 8)]


def dataset(
    tmp_path: Path,
    sizes: Sequence[tuple[int, int]] = SIZES,
    taxonomies: dict[str, Taxonomy] | None = None,
    wrong: int | None = None,
) -> Dataset:
    """Images of mixed sizes with random labels, a tenth of them ignored; `wrong` puts a value outside the table."""
    taxonomies = {"semantic": CLASSES} if taxonomies is None else taxonomies
    file = tmp_path / "x"
    file.write_bytes(b"x")
    records = [Record(f"image{i}", {"rgb": file}) for i in range(len(sizes))]

    def number(record: Record) -> int:
        return int(record.name.removeprefix("image"))

    def read_input(record: Record, modality: str) -> Any:
        i = number(record)
        return np.random.default_rng(i).integers(0, 256, (*sizes[i], 3), dtype=np.uint8)

    def read_labels(record: Record, head: str) -> Any:
        rng = np.random.default_rng(100 + number(record))
        size = sizes[number(record)]
        labels = rng.integers(0, len(taxonomies[head]), size).astype(np.uint8)
        labels[rng.random(size) < 0.1] = 255
        if wrong is not None and record.name == "image1":
            labels[2, 3] = wrong
        return labels

    return Dataset("folder", tmp_path, "val", records, taxonomies, read_input, read_labels)


def slow_tables(predictor: Predictor, data: Dataset, head: str = "semantic") -> np.ndarray:
    """The definition: one pixel at a time."""
    table = np.zeros((len(data.taxonomies[head]),) * 2, np.int64)
    for sample in data:
        predicted = predictor.labels(sample.image)[head]
        for y, x in np.ndindex(*predicted.shape):
            if sample.labels[head][y, x] != 255:
                table[sample.labels[head][y, x], predicted[y, x]] += 1
    return table


def test_the_table_counts_every_labelled_pixel_of_images_of_mixed_sizes(tmp_path: Path) -> None:
    predictor, data = Predictor(Tiny()), dataset(tmp_path)
    result = evaluate(predictor, data)
    np.testing.assert_array_equal(result.confusion, slow_tables(predictor, data))
    assert result.confusion.dtype == np.int64
    np.testing.assert_array_equal(sum(i.table("semantic", 3) for i in result.per_image), result.confusion)
    assert [i.size for i in result.per_image] == SIZES


def test_the_four_figures_are_the_papers(tmp_path: Path) -> None:
    result = evaluate(Predictor(Tiny()), dataset(tmp_path))
    n = result.confusion.astype(float)
    t, hit, predicted = n.sum(1), np.diag(n), n.sum(0)
    iu = hit / (t + predicted - hit)
    assert result.pixel_accuracy == pytest.approx(hit.sum() / t.sum())
    assert result.mean_accuracy == pytest.approx((hit / t).mean())
    assert result.mean_iu == pytest.approx(iu.mean())
    assert result.frequency_weighted_iu == pytest.approx((t * iu).sum() / t.sum())
    assert [c["iu"] for c in result.per_class] == pytest.approx(list(iu))
    assert [c["f1"] for c in result.per_class] == pytest.approx(list(2 * hit / (t + predicted)))
    assert [c["name"] for c in result.per_class] == list(CLASSES.names)


def test_shares_of_several_processes_add_up_to_the_whole(tmp_path: Path) -> None:
    predictor, data = Predictor(Tiny()), dataset(tmp_path)
    whole = evaluate(predictor, data)
    merged = merge([evaluate(predictor, data, share=(rank, 3)) for rank in (2, 0, 1)])
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    assert [i.name for i in merged.per_image] == [i.name for i in whole.per_image]
    assert merged.mean_iu == whole.mean_iu


def test_overlapping_or_unlike_shares_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    a, b = evaluate(Predictor(Tiny()), data), evaluate(Predictor(Tiny(seed=1)), data, share=(1, 2))
    with pytest.raises(UsageError, match="same image"):
        merge([a, a])
    with pytest.raises(UsageError, match="model"):
        merge([a, b])


def test_a_share_without_images_is_a_result_of_its_own(tmp_path: Path) -> None:
    predictor, data = Predictor(Tiny()), dataset(tmp_path, SIZES[:2])
    shares = [evaluate(predictor, data, share=(rank, 3)) for rank in range(3)]
    assert [s.images for s in shares] == [1, 1, 0]
    np.testing.assert_array_equal(merge(shares).confusion, evaluate(predictor, data).confusion)


def test_a_result_says_what_it_is(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    value = evaluate(Predictor(Tiny()), data).to_json()
    assert value["data"]["fingerprint"] == data.fingerprint
    assert value["data"]["split"] == "val"
    assert value["images"] == len(SIZES)
    assert value["protocol"] == "native"
    assert value["average"] == "present"
    assert value["ignore"] == {"semantic": 255}
    assert len(value["model"]["sha256"]) == 64
    assert value["versions"]["torch"] == torch.__version__
    assert value["seconds"] >= 0
    assert {"mean_iu", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iu", "per_class", "tta"} <= set(value)
    assert value["heads"]["semantic"]["mean_iu"] == value["mean_iu"]
    assert str(tmp_path.parent) not in json.dumps(value)


def test_a_result_survives_json_and_a_file(tmp_path: Path) -> None:
    result = evaluate(Predictor(Tiny({"semantic": 3, "geometric": 2})), dataset(tmp_path, taxonomies=TWO))
    back = Result.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert back.to_json() == result.to_json()
    assert list(back.tables) == ["semantic", "geometric"]
    (tmp_path / "result.json").write_text(json.dumps(result.to_json()))
    assert Result.load(tmp_path).figures("geometric") == result.figures("geometric")
    assert Result.load(tmp_path / "result.json").mean_iu == result.mean_iu


TWO = {"semantic": CLASSES, "geometric": Taxonomy(("flat", "upright"))}


def test_absent_classes_are_named_and_do_not_enter_the_present_mean(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    blind = Dataset(
        "folder", tmp_path, "val", data.records, data.taxonomies, data.read_input,
        lambda r, h: np.where(data.read_labels(r, h) == 2, 255, data.read_labels(r, h)),
    )  # fmt: skip
    present, every = (evaluate(Predictor(Tiny()), blind, average=a) for a in ("present", "all"))
    assert present.to_json()["absent"] == ["car"]
    assert present.per_class[2]["accuracy"] is None
    predicted = present.confusion[:, 2].sum() > 0
    assert every.mean_iu == pytest.approx(present.mean_iu * 2 / 3 if predicted else present.mean_iu)


def test_the_digest_follows_the_weights() -> None:
    def digest(seed: int) -> str:
        return Predictor(Tiny(seed=seed)).backend.digest()

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"protocol": "fast"}, UsageError, "protocol 'fast'"),
        ({"protocol": "resized:0"}, UsageError, "resized:0"),
        ({"average": "some"}, UsageError, "average 'some'"),
        ({"tta": ["spin"]}, UsageError, "augmentation 'spin'"),
        ({"tta": ["flip"], "protocol": "paper"}, UsageError, "paper's protocol"),
    ],
)
def test_an_unknown_way_to_measure_is_refused(tmp_path: Path, change: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        evaluate(Predictor(Tiny()), dataset(tmp_path), **change)


def test_an_empty_or_unlabelled_split_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val split .* is empty"):
        evaluate(Predictor(Tiny()), dataset(tmp_path, []))
    with pytest.raises(DataError, match="no labels"):
        evaluate(Predictor(Tiny()), dataset(tmp_path, taxonomies={}))


def test_a_label_outside_the_table_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image1: the semantic label holds 77 at row 2, column 3.*0\.\.2"):
        evaluate(Predictor(Tiny()), dataset(tmp_path, wrong=77))


def test_heads_match_by_name_and_lone_heads_whatever_their_names(tmp_path: Path) -> None:
    two = Predictor(Tiny({"semantic": 3, "geometric": 2}))
    assert list(evaluate(two, dataset(tmp_path)).tables) == ["semantic"]
    assert list(evaluate(Predictor(Tiny({"parts": 3})), dataset(tmp_path)).tables) == ["semantic"]
    with pytest.raises(DataError, match="labels parts, things but the data have labels for semantic"):
        evaluate(Predictor(Tiny({"parts": 3, "things": 3})), dataset(tmp_path))
    with pytest.raises(DataError, match=r"cannot tell 1 of the semantic classes in these data \(car\)"):
        evaluate(Predictor(Tiny({"semantic": 2})), dataset(tmp_path))


def test_the_resized_protocol_scores_at_the_given_shorter_side(tmp_path: Path) -> None:
    result = evaluate(Predictor(Tiny()), dataset(tmp_path), protocol="resized:10")
    assert [min(i.size) for i in result.per_image] == [10] * len(SIZES)
    assert result.to_json()["protocol"] == "resized:10"


def test_augmentation_enters_the_table_and_the_result(tmp_path: Path) -> None:
    predictor, data = Predictor(Tiny()), dataset(tmp_path)
    result = evaluate(predictor, data, tta=["flip", "scales"])
    assert result.to_json()["tta"] == ["flip", "scales"]
    predicted, label = (
        predictor.augmented_labels(data[0].image, ["flip", "scales"])["semantic"][0],
        data[0].labels["semantic"],
    )
    assert np.trace(result.per_image[0].table("semantic", 3)) == (predicted == label).sum()


def test_resizing_keeps_label_values_and_types(tmp_path: Path) -> None:
    sample = dataset(tmp_path)[0]
    small = resized(sample, 6)
    assert small.image.shape[:2] == small.labels["semantic"].shape == (6, 8)
    assert small.image.dtype == np.uint8
    assert set(np.unique(small.labels["semantic"])) <= set(np.unique(sample.labels["semantic"]))


def test_progress_is_told_after_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Predictor(Tiny()), dataset(tmp_path), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i, 5) for i in range(1, 6)]


def test_a_file_that_is_no_result_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"no result\.json"):
        Result.load(tmp_path)
    for text, words in [
        ("{", "no JSON"),
        ("[]", "not a result"),
        ('{"format": 9}', "format 9"),
        ('{"format": 1}', "does not write"),
    ]:
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(DataError, match=words):
            Result.load(tmp_path)


def test_the_public_name_is_the_function_itself() -> None:
    import inspect
    import sys
    import types

    import fullyconv

    assert fullyconv.evaluate is evaluate
    assert "keep" in inspect.signature(fullyconv.evaluate).parameters
    loaded = [m for name, m in sys.modules.items() if name.split(".")[0] == "fullyconv"]
    assert all(type(m) is types.ModuleType for m in loaded), "no module swaps its class"


def test_a_network_and_an_augmentation_by_its_name_are_taken(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert evaluate(Tiny(), data).mean_iu == evaluate(Predictor(Tiny()), data).mean_iu
    assert evaluate(Tiny(), data, tta="flip").about["tta"] == ["flip"]


def test_wrong_arguments_are_refused_in_words(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    for arguments, options, words in [
        ((3, data), {}, "not int"),
        ((Tiny(), [1]), {}, "Item 0 is int"),
        ((Tiny(), None), {}, "not NoneType"),
        ((Tiny(), data), {"tta": "flop"}, "flop"),
    ]:
        with pytest.raises((UsageError, DataError), match=words):
            evaluate(*arguments, **options)


def test_results_and_data_sets_say_in_one_line_what_they_are(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert repr(data).startswith("Dataset(")
    assert f"{len(data)} images" in repr(data)
    assert len(repr(data)) < 200
    result = evaluate(Tiny(), data)
    assert repr(result).startswith(f"Result({len(data)} images, mean IU 0.")
