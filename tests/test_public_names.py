"""The public surface is counted."""

from __future__ import annotations

import doctest
import importlib.util
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pytest

import fullyconv as fc

NAMES = [
    "DataError", "Dataset", "FullyconvError", "Predictor", "Preprocessing", "Recipe", "Result", "Sample", "Taxonomy",
    "__version__", "convolutionalise", "create", "evaluate", "export", "fit", "load", "open_dataset",
]  # fmt: skip


def test_the_public_names_are_these_and_sorted() -> None:
    assert fc.__all__ == NAMES == sorted(NAMES)


def test_every_public_name_resolves_and_is_documented() -> None:
    for name in NAMES:
        value = getattr(fc, name)
        assert name.startswith("__") or value.__doc__, name


def test_dir_shows_them_and_nothing_else_and_unknown_names_raise() -> None:
    assert dir(fc) == NAMES
    assert not hasattr(fc, "nothing")


def test_exit_codes_are_the_documented_table() -> None:
    from fullyconv.errors import EXIT_CODES

    table = {cls.__name__: code for cls, code in EXIT_CODES.items()}
    assert table == {
        "FullyconvError": 1, "UsageError": 2, "DataError": 65, "MissingInput": 66, "InternalError": 70,
        "StorageError": 74, "TryAgain": 75, "Interrupted": 130, "Terminated": 143,
    }  # fmt: skip


EXAMPLES = sorted(set(NAMES) - {"DataError", "Dataset", "FullyconvError", "Result", "Sample", "__version__"})


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples of docstrings take for granted."""
    import torch

    model = fc.create("fcn16s-squeezenet1_0", 3)
    with torch.no_grad():
        for p in model.head_parameters():
            p.normal_(generator=torch.Generator().manual_seed(0))
    image, labels = faults.scene(3, (40, 48))
    faults.save(image, tmp_path_factory.getbasetemp() / "mydata" / "images" / "a.png")
    faults.save(labels, tmp_path_factory.getbasetemp() / "mydata" / "labels" / "a.png")
    return {"fc": fc, "np": np, "torch": torch, "model": model, "image": image, "labels": np.minimum(labels, 2)}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("fit", "export"))) for n in EXAMPLES]
)
def test_the_example_in_a_docstring_gives_what_it_says(
    name: str, known: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "export" and importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed (extra onnx)")
    monkeypatch.chdir(Path(tmp_path_factory.getbasetemp()))
    tests = doctest.DocTestFinder(recurse=False).find(getattr(fc, name), name, globs=dict(known))
    runner = doctest.DocTestRunner(verbose=False)
    messages: list[str] = []
    for test in tests:
        runner.run(test, out=messages.append)
    assert runner.tries > 0, f"{name} has no example"
    assert not runner.failures, "".join(messages)
