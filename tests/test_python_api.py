"""Python as people use it: sequences of (image, label), wrong arguments, torch's random numbers, copies."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_tools import images

import fullyconv as fc
from fullyconv.data.pairs import from_pairs
from fullyconv.errors import DataError, FullyconvError, UsageError
from fullyconv.models.seeding import Seeded

TINY = "fcn16s-squeezenet1_0"


def pair(seed: int, classes: int = 3, size: tuple[int, int] = (32, 40)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size).astype(np.int64)
    return (label[..., None] * 80 + rng.integers(0, 9, (*size, 3))).astype(np.uint8), label


class Torch(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """As torchvision has them: C H W in 0..1, int64 labels."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = pair(index)
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(label)


def test_a_sequence_of_pairs_reads_as_arrays_tensors_and_pil_images_do() -> None:
    from PIL import Image

    image, label = pair(0)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    forms: list[tuple[Any, Any]] = [
        (image, label),
        (tensor, torch.from_numpy(label)[None]),
        (Image.fromarray(image), Image.fromarray(label.astype(np.uint8))),
    ]
    for form in forms:
        sample = from_pairs([form], 3)[0]
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.labels["semantic"], label)
    assert from_pairs(forms, ("a", "b", "c")).inputs == ("rgb",)


def test_numbers_that_are_no_bytes_are_bands_and_said() -> None:
    data = from_pairs(Torch(), 3)
    assert data.inputs == ("bands",)
    assert "float32" in data.notes[0]
    assert data[0].image.shape == (32, 40, 3)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (5, "sequence of"),
        ((p for p in [pair(0)]), "list"),
        ({"a": 1}, "sequence of"),
        ([], "0 pairs"),
        ([1], "Item 0 is int"),
        ([(1, 2, 3)], "3 things"),
        ([("a", "b")], "str"),
        ([pair(0)[0]], "Item 0 is ndarray"),
        ([(np.zeros((3, 8, 9), np.uint8), np.zeros((8, 9)))], "channels first"),
        ([(torch.zeros(8, 9, 3, dtype=torch.uint8), np.zeros((8, 9)))], "channels last"),
        ([(pair(0)[0], np.full((32, 40), -1))], "-1 at row 0"),
        ([(pair(0)[0], np.full((32, 40), 7))], "holds 7"),
        ([(pair(0)[0], np.zeros((32, 40, 3)))], "H x W class ids"),
    ],
)
def test_what_is_no_pairs_of_image_and_label_is_refused_in_words(pairs: Any, message: str) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        from_pairs(pairs, 3)


def test_pairs_need_the_number_of_classes_or_their_names() -> None:
    with pytest.raises(UsageError, match="classes=3"):
        from_pairs([pair(0)], None)
    with pytest.raises(UsageError, match="2 apart"):
        from_pairs([pair(0)], 1)
    with pytest.raises(UsageError, match=r"classes\.txt"):
        fc.fit(None, "somewhere", classes=3)


@pytest.mark.slow
def test_fit_takes_a_torch_data_set_and_puts_torch_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    recipe = fc.Recipe(model=TINY, steps=1, crop=(32, 32), batch_size=2, precision="fp32", deterministic=True)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    out = fc.fit(recipe, Torch(), tmp_path / "run", classes=["a", "b", "c"], quiet=True)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    model = fc.load(out)
    assert model.taxonomies["semantic"].names == ("a", "b", "c")
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_()
    assert fc.evaluate(model, Torch()).about["data"]["of"] == 6


WRONG: list[Any] = [None, 5, 3.5, b"x", object(), np.zeros((2, 3)), [object()], {1: 2}, True]


@pytest.mark.parametrize("value", WRONG, ids=lambda v: type(v).__name__)
def test_wrong_types_end_in_a_sentence(value: Any, tmp_path: Path) -> None:
    calls = [
        lambda: fc.load(value),
        lambda: fc.create(value),
        lambda: fc.create(TINY, heads=value or 1),
        lambda: fc.create(TINY, seed="x" if value in (5, True) else value),
        lambda: fc.open_dataset(value),
        lambda: fc.open_dataset(tmp_path, inputs=value or 1),
        lambda: fc.open_dataset(tmp_path, split=value or 1),
        lambda: fc.evaluate(value, tmp_path),
        lambda: fc.evaluate(tmp_path, images(1), share=value),
        lambda: fc.evaluate(tmp_path, images(1), tta=value),
        lambda: fc.Predictor(value),
        lambda: fc.export(value, tmp_path / "x.onnx"),
        lambda: fc.convolutionalise(value),
        lambda: fc.fit(fc.Recipe(), value, tmp_path / "run"),
        lambda: fc.fit(fc.Recipe(), tmp_path, value),
        lambda: fc.Taxonomy(value),
        lambda: fc.Preprocessing(value),
    ]
    for call in calls if not isinstance(value, np.ndarray) else calls[:2]:
        with pytest.raises(FullyconvError, match=r"\w"):
            call()


def test_a_text_is_no_list_of_class_names() -> None:
    with pytest.raises(UsageError, match="one entry a class"):
        fc.Taxonomy("abc")  # type: ignore[arg-type]


def test_create_draws_what_torch_would_after_the_seed_and_leaves_torchs_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.nn.Conv2d(3, 4, 3).weight
    noise = torch.randn(20)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with Seeded(7):
        drawn = torch.nn.Conv2d(3, 4, 3).weight
        also = torch.randn(20)
    assert torch.equal(drawn, expected)
    assert torch.equal(also, noise)
    assert torch.equal(torch.get_rng_state(), before)


def test_create_in_one_thread_takes_no_number_from_another() -> None:
    torch.manual_seed(11)
    expected = [torch.rand(1).item() for _ in range(200)]
    torch.manual_seed(11)
    maker = threading.Thread(target=lambda: fc.create(TINY, 3, quiet=True))
    maker.start()
    drawn = [torch.rand(1).item() for _ in range(200)]
    maker.join()
    assert drawn == expected


def test_copies_of_a_network_and_of_a_predictor_say_the_same() -> None:
    model = fc.create(TINY, 3, quiet=True).eval()
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    predictor = fc.Predictor(model)
    image = pair(4)[0]
    expected = predictor(image)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(fc.Predictor(other)(image), expected)
    for again in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        np.testing.assert_array_equal(again(image), expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_another_process_labels_with_a_predictor_that_it_was_given(how: str) -> None:
    model = fc.create(TINY, 3, quiet=True).eval()
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    predictor, image = fc.Predictor(model), pair(4)[0]
    with multiprocessing.get_context(how).Pool(1) as pool:
        found = pool.apply_async(predictor, (image,)).get(120)
        again = pool.apply_async(fc.Predictor, (model,)).get(120)
    np.testing.assert_array_equal(found, predictor(image))
    np.testing.assert_array_equal(again(image), predictor(image))


@pytest.mark.slow
def test_a_trunk_that_takes_one_size_of_image_alone_is_refused_in_words() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UsageError, match="any size"):
        fc.create("fcn16s-timm:vit_tiny_patch16_224", 3, quiet=True)
