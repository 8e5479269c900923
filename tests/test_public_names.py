"""The public surface is counted."""

from __future__ import annotations

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
