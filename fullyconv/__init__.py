"""fullyconv: label every pixel of an image with fully convolutional networks (Long, Shelhamer, Darrell 2015/2017)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that holds it; imported on first use, so `import fullyconv` loads no torch.
_LAZY = {
    "DataError": "fullyconv.errors",
    "Dataset": "fullyconv.data.base",
    "FullyconvError": "fullyconv.errors",
    "Predictor": "fullyconv.predict",
    "Preprocessing": "fullyconv.preprocessing",
    "Recipe": "fullyconv.recipes",
    "Result": "fullyconv.evaluation",
    "Sample": "fullyconv.data.base",
    "Taxonomy": "fullyconv.taxonomy",
    "convolutionalise": "fullyconv.convolutionalisation",
    "create": "fullyconv.models",
    "evaluate": "fullyconv.evaluation",
    "export": "fullyconv.exporting",
    "fit": "fullyconv.train",
    "load": "fullyconv.models",
    "open_dataset": "fullyconv.data",
}

__all__ = [
    "DataError",
    "Dataset",
    "FullyconvError",
    "Predictor",
    "Preprocessing",
    "Recipe",
    "Result",
    "Sample",
    "Taxonomy",
    "__version__",
    "convolutionalise",
    "create",
    "evaluate",
    "export",
    "fit",
    "load",
    "open_dataset",
]

if TYPE_CHECKING:
    from fullyconv.convolutionalisation import convolutionalise
    from fullyconv.data import open_dataset
    from fullyconv.data.base import Dataset, Sample
    from fullyconv.errors import DataError, FullyconvError
    from fullyconv.evaluation import Result, evaluate
    from fullyconv.exporting import export
    from fullyconv.models import create, load
    from fullyconv.predict import Predictor
    from fullyconv.preprocessing import Preprocessing
    from fullyconv.recipes import Recipe
    from fullyconv.taxonomy import Taxonomy
    from fullyconv.train import fit


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fullyconv' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        from fullyconv.errors import missing_extra

        raise (missing_extra(error, f"fullyconv.{name}") or error) from error


def __dir__() -> list[str]:
    return __all__
