"""The predictor: what it accepts, what it returns, what it refuses; its fast path equals the plain formula."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fullyconv import processor
from fullyconv.engine.prepare import prepare
from fullyconv.errors import DataError, MissingInput, UsageError
from fullyconv.predict import Predictor, as_array
from fullyconv.preprocessing import Preprocessing


@dataclass(frozen=True)
class Geometry:
    stride: int = 4
    offset: int = 2
    border: str = "replicate"
    halo: float = 8.0
    exact: bool = True
    align: int = 4


class Tiny(nn.Module):
    """A network of stride 4 by the contract of `FCN`: the pixel's own colour decides its class."""

    name = "tiny"

    def __init__(self, heads: dict[str, int] | None = None, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.heads = heads or {"semantic": 3}
        self.preprocessing = Preprocessing()
        self.body = nn.Conv2d(3, 8, 4, stride=4)
        self.dropout = nn.Dropout(0.5)
        self.score = nn.ModuleDict({h: nn.Conv2d(8, k, 1) for h, k in self.heads.items()})

    def trunk_parameters(self) -> Any:
        return self.body.parameters()

    def head_parameters(self) -> Any:
        return self.score.parameters()

    def geometry(self, height: int, width: int) -> Geometry:
        return Geometry()

    def coarse(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = nn.functional.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4))
        features = self.dropout(torch.relu(self.body(x)))
        return {h: layer(features) for h, layer in self.score.items()}


def photo(height: int = 13, width: int = 18, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (13, 18), (16, 16)])
def test_labels_have_the_size_of_the_image_and_are_the_best_scores(size: tuple[int, int]) -> None:
    predictor = Predictor(Tiny())
    image = photo(*size)
    scores = predictor.scores(image)
    assert scores.shape == (3, *size)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(predictor(image), scores.argmax(0))
    assert predictor(image).dtype == np.uint8


def test_confidence_is_the_softmax_probability_of_the_label() -> None:
    predictor = Predictor(Tiny())
    labels, confidence = predictor.confident_labels(photo())["semantic"]
    probabilities = torch.from_numpy(predictor.scores(photo())).softmax(0).numpy()
    np.testing.assert_allclose(confidence, probabilities.max(0), atol=1e-6)
    np.testing.assert_array_equal(labels, probabilities.argmax(0))


def test_several_heads_give_a_dict_and_one_head_an_array() -> None:
    both = Predictor(Tiny({"semantic": 3, "geometric": 2}))(photo())
    assert set(both) == {"semantic", "geometric"}
    assert both["geometric"].max() <= 1
    assert isinstance(Predictor(Tiny())(photo()), np.ndarray)


def test_more_than_255_classes_are_labelled_in_16_bits() -> None:
    assert Predictor(Tiny({"semantic": 300}))(photo()).dtype == np.uint16


def test_array_pil_image_and_mapping_of_one_modality_are_labelled_alike() -> None:
    predictor, image = Predictor(Tiny()), photo()
    want = predictor(image)
    for other in (Image.fromarray(image), {"rgb": image}, image.astype(np.uint16), image.astype(np.float64)):
        np.testing.assert_array_equal(predictor(other), want)


def test_modalities_are_concatenated_in_the_order_of_the_network() -> None:
    rgb, depth = photo(), np.full((13, 18), 7, np.uint16)
    array = as_array({"depth": depth, "rgb": rgb}, ("rgb", "depth"))
    assert array.shape == (13, 18, 4)
    np.testing.assert_array_equal(array[..., :3], rgb)
    assert (array[..., 3] == 7).all()


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((0, 4, 3), np.uint8), "cannot be labelled"),
        (np.zeros((2, 4, 3, 1), np.uint8), "cannot be labelled"),
        (np.array([["a"]]), "cannot be labelled"),
        (photo() / 255, r"within 0\.\.1"),
        ({"rgb": photo(), "depth": np.zeros((4, 4))}, "differ in size"),
        (photo()[..., :2], "channels"),
    ],
)
def test_an_image_that_cannot_be_labelled_is_refused_in_words(image: Any, word: str) -> None:
    with pytest.raises(DataError, match=word):
        Predictor(Tiny())(image)


def test_a_missing_modality_is_named() -> None:
    with pytest.raises(DataError, match="takes rgb, depth; the image has rgb"):
        as_array({"rgb": photo()}, ("rgb", "depth"))


def test_a_network_whose_scores_were_never_trained_is_refused() -> None:
    model = Tiny()
    for p in model.head_parameters():
        nn.init.zeros_(p)
    with pytest.raises(DataError, match="never trained"):
        Predictor(model)


def test_a_trunk_of_zeros_is_refused_even_with_a_bias() -> None:
    model = Tiny()
    nn.init.zeros_(model.body.weight)
    with pytest.raises(DataError, match="trunk is 0"):
        Predictor(model)


def test_predicting_during_training_is_deterministic_and_leaves_the_network_training() -> None:
    model = Tiny().train()
    predictor = Predictor(model)
    np.testing.assert_array_equal(predictor.scores(photo()), predictor.scores(photo()))
    assert model.training
    assert model.dropout.training


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="fp12"):
        Predictor(Tiny(), precision="fp12")


def test_bf16_is_close_where_the_processor_has_it_and_refused_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for switch in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(UsageError, match="no bfloat16"):
        Predictor(Tiny(), precision="bf16")
    with pytest.raises(UsageError, match="no bfloat16"):
        prepare(Tiny(), "bf16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": True, "amx_bf16": True})
    rough = Predictor(Tiny(), precision="bf16").scores(photo())
    np.testing.assert_allclose(rough, Predictor(Tiny()).scores(photo()), atol=0.05)


@pytest.mark.parametrize(
    ("bf16", "times", "chosen", "why"),
    [
        (False, {}, "fp32", "no bfloat16 arithmetic"),
        (True, {"fp32": 3.0, "bf16": 1.0}, "bf16", "1000 ms in bfloat16, 3000 in float32"),
        (True, {"fp32": 1.0, "bf16": 3.0}, "fp32", "not quicker"),
        (True, {"fp32": 1.05, "bf16": 1.0}, "fp32", "not quicker"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_native_and_quicker(
    bf16: bool, times: dict[str, float], chosen: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "has_native", lambda _: bf16)
    asked: list[str] = []

    def seconds(call: Any, _: Any) -> float:
        call()
        asked.append(list(times)[len(asked)])
        return times[asked[-1]]

    monkeypatch.setattr("fullyconv.predict.eager.seconds", seconds)
    ready = Predictor(Tiny(), precision="auto")
    assert ready.precision == chosen
    assert why in ready.chosen
    assert asked == list(times)
    assert Predictor(Tiny(), precision="fp32").chosen == ""


def test_averaging_over_mirrored_images_makes_the_labels_mirror_symmetric() -> None:
    predictor, image = Predictor(Tiny()), photo()
    labels, confidence = predictor.augmented_labels(image, ["flip"])["semantic"]
    mirrored, _ = predictor.augmented_labels(image[:, ::-1], ["flip"])["semantic"]
    np.testing.assert_array_equal(labels, mirrored[:, ::-1])
    assert 1 / 3 <= confidence.min() <= confidence.max() <= 1


def test_averaging_over_no_variant_is_the_plain_prediction() -> None:
    predictor = Predictor(Tiny())
    labels, confidence = predictor.augmented_labels(photo(), [])["semantic"]
    np.testing.assert_array_equal(labels, predictor(photo()))
    np.testing.assert_allclose(confidence, predictor.confident_labels(photo())["semantic"][1], atol=1e-6)


def test_averaging_over_scales_is_the_mean_of_the_three_probabilities() -> None:
    from fullyconv.predict import resize_image

    predictor, image = Predictor(Tiny()), photo(16, 24)
    total = np.zeros((3, 16, 24), np.float32)
    for size in [(12, 18), (16, 24), (20, 30)]:
        scores = torch.from_numpy(predictor.scores(resize_image(image, size)))[None]
        total += torch.nn.functional.interpolate(scores, (16, 24), mode="bilinear")[0].softmax(0).numpy()
    labels, confidence = predictor.augmented_labels(image, ["scales"])["semantic"]
    np.testing.assert_array_equal(labels, total.argmax(0))
    np.testing.assert_allclose(confidence, total.max(0) / 3, atol=1e-6)


def test_a_path_a_grey_array_and_a_tensor_are_labelled_like_the_array(tmp_path: Path) -> None:
    predictor, image = Predictor(Tiny()), photo()
    Image.fromarray(image).save(tmp_path / "a.png")
    want = predictor(image)
    for other in (tmp_path / "a.png", str(tmp_path / "a.png"), torch.from_numpy(image)):
        np.testing.assert_array_equal(predictor(other), want)
    grey = image[..., 0]
    want = predictor(np.stack([grey] * 3, -1))
    for other in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(predictor(other), want)


@pytest.mark.parametrize("name", ["fcn16s-mobilenet_v2", pytest.param("fcn32s-alexnet", marks=pytest.mark.slow)])
def test_a_list_of_images_of_any_sizes_is_labelled_as_one_by_one(name: str) -> None:
    import fullyconv as fc

    model = fc.create(name, classes=5, weights=None, seed=3)
    for parameter in model.head_parameters():
        nn.init.normal_(parameter, std=0.1)
    predictor = Predictor(model)
    rng = np.random.default_rng(0)
    sizes = [(40, 48), (33, 20), (40, 48), (40, 48), (64, 64), (33, 20), (48, 40)]
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    for image, labels in zip(images, predictor(images), strict=True):
        differ = labels != predictor(image)
        if differ.any():  # by rounding alone: both classes have the same score
            two = np.sort(predictor.scores(image), axis=0)[-2:, differ]
            np.testing.assert_allclose(two[0], two[1], atol=1e-4)
        assert differ.mean() < 0.001


def _given(predictor: Predictor) -> list[int]:
    """How many images the network is given at a time from now on."""
    given: list[int] = []
    coarse_of = predictor.backend.coarse_of

    def spy(x: Any) -> Any:
        given.append(len(x))
        return coarse_of(x)

    predictor.backend.coarse_of = spy  # type: ignore[method-assign]
    return given


def test_small_images_of_one_size_go_through_the_network_together_and_the_answers_keep_their_order() -> None:
    predictor = Predictor(Tiny({"semantic": 3, "geometric": 2}))
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (h, 24, 3), np.uint8) for h in [20, 28] * 20]
    expected = [predictor(image) for image in images]
    given = _given(predictor)
    found = predictor(images)
    assert sorted(given) == [4, 4, 16, 16]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_equal(a, b)


def test_what_waits_for_its_like_is_bounded_and_large_or_cut_images_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    predictor = Predictor(Tiny())
    monkeypatch.setattr(type(predictor.backend), "batch_pixels", 4 * 20 * 24)
    given = _given(predictor)
    predictor([rng.integers(0, 256, (h, 24, 3), np.uint8) for h in range(4, 40)])
    assert given == [1] * 36  # no two of one size
    given.clear()
    predictor([rng.integers(0, 256, (20, 24, 3), np.uint8)] * 5)
    predictor([rng.integers(0, 256, (80, 24, 3), np.uint8)] * 2)
    assert given == [4, 1, 1, 1]
    cut = Predictor(Tiny(), tile=16)
    given = _given(cut)
    cut([rng.integers(0, 256, (20, 24, 3), np.uint8)] * 2 + [rng.integers(0, 256, (12, 16, 3), np.uint8)] * 2)
    assert (given.count(2), given[-1]) == (1, 2)
    assert set(given) == {1, 2}


def test_one_wrong_image_of_a_list_is_refused_and_lists_may_hold_lists_and_be_empty() -> None:
    predictor = Predictor(Tiny())
    image = np.zeros((20, 24, 3), np.uint8)
    with pytest.raises(DataError, match=r"H x W x 3"):
        predictor([image, np.zeros((20, 24, 5), np.uint8)])
    assert predictor([]) == []
    (inner,), single = predictor([[image], image])
    np.testing.assert_array_equal(inner, single)


def test_a_list_gives_a_list_and_an_iterator_a_generator_that_reads_on_as_it_is_asked() -> None:
    predictor, images = Predictor(Tiny()), [photo(8, 9), photo(5, 4)]
    want = [predictor(i) for i in images]
    for several in (images, tuple(images)):
        found = predictor(several)
        assert isinstance(found, list)
        assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True))
    asked = []
    lazy = predictor(asked.append(i) or i for i in images)  # type: ignore[func-returns-value]
    assert not asked
    np.testing.assert_array_equal(next(lazy), want[0])
    assert len(asked) == 1


def test_the_fourth_channel_of_a_colour_array_is_left_out_and_said() -> None:
    predictor, image = Predictor(Tiny()), photo()
    with pytest.warns(UserWarning, match="transparency"):
        found = predictor(np.dstack([image, np.full(image.shape[:2], 9, np.uint8)]))
    np.testing.assert_array_equal(found, predictor(image))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (photo().transpose(2, 0, 1), r"\(3, 13, 18\).*H x W x 3; its channels come first: .*transpose\(1, 2, 0\)"),
        (photo()[..., :2], r"\(13, 18, 2\).*H x W x 3"),
        (np.zeros((0, 7), np.uint8), r"\(0, 7, 1\).*at least 1"),
        (b"abc", "bytes"),
        (None, "NoneType"),
        ([[1, 2], [3]], "cannot be labelled"),
        (object(), "cannot be labelled"),
    ],
)
def test_a_wrong_kind_of_image_is_refused_in_one_sentence(image: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        Predictor(Tiny())(image)
    assert str(refused.value).endswith(".")


def test_the_remedy_for_channels_that_come_first_works() -> None:
    predictor, image = Predictor(Tiny()), photo()
    np.testing.assert_array_equal(predictor(image.transpose(2, 0, 1).transpose(1, 2, 0)), predictor(image))


def test_a_string_that_is_no_file_is_missing_input() -> None:
    with pytest.raises(MissingInput, match=r"no-such\.png"):
        Predictor(Tiny())("no-such.png")


def test_what_is_no_network_is_refused_and_a_predictor_says_what_it_is() -> None:
    with pytest.raises(UsageError, match="not Linear"):
        Predictor(nn.Linear(1, 1))
    assert repr(Predictor(Tiny())) == "Predictor(tiny, semantic: 3 classes, cpu, fp32)"


def test_predictors_are_copied_and_pickled() -> None:
    import copy
    import pickle

    predictor, image = Predictor(Tiny()), photo()
    want = predictor(image)
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        np.testing.assert_array_equal(other(image), want)
