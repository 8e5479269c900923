"""A transform of one's own: a function (image, labels, rng) -> (image, labels), named in a recipe."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Sample
from fullyconv.errors import DataError, FullyconvError, MissingInput, UnknownName, UsageError, printable
from fullyconv.files import read_file

__all__ = ["TRANSFORMS", "OwnTransform", "changed_by", "find_transform", "transform_source"]

Labels = dict[str, NDArray[Any]]
OwnTransform = Callable[[NDArray[Any], Labels, np.random.Generator], tuple[NDArray[Any], Labels]]
MOST = 1 << 24  # bytes of a file of one's own
TRANSFORMS: dict[str, OwnTransform] = {}  # those that a program gives a name


def find_transform(name: str) -> OwnTransform:
    """The function of that name in `TRANSFORMS`, or FUNCTION of `FILE.py:FUNCTION`, whose file is run for it.

    Raises UnknownName, MissingInput or UsageError where there is none.
    """
    file, colon, function = name.rpartition(":")
    if not colon:
        if name not in TRANSFORMS:
            raise UnknownName("transform", name, [*TRANSFORMS, "FILE.py:FUNCTION"])
        return TRANSFORMS[name]
    path = Path(file)
    if not path.is_file():
        raise MissingInput(f"{printable(file)} of transform = {name!r} is no file; give FILE.py:FUNCTION.")
    spec = importlib.util.spec_from_file_location(f"fullyconv_transform_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{printable(file)} is no Python file; transform takes FILE.py:FUNCTION.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{printable(file)} cannot be run ({type(error).__name__}: {error}); mend it.") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UnknownName(f"function in {file}", function, [n for n in vars(module) if not n.startswith("_")])
    transform: OwnTransform = found
    return transform


def transform_source(name: str) -> bytes:
    """The bytes of FILE of `FILE.py:FUNCTION`; none for a transform that a program has given a name."""
    file, colon, _ = name.rpartition(":")
    return read_file(Path(file), MOST) if colon else b""


def changed_by(transform: OwnTransform, name: str, sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample as the transform gives it; DataError where that does not fit together or to what came in."""
    try:
        image, labels = transform(sample.image.copy(), {h: v.copy() for h, v in sample.labels.items()}, rng)
    except FullyconvError:
        raise
    except Exception as error:
        raise DataError(
            f"The transform {name} failed on {printable(sample.name)} ({type(error).__name__}: {error})."
        ) from error
    problem = _problem(sample, image, labels)
    if problem:
        raise DataError(f"The transform {name} gave {problem} for {printable(sample.name)}; correct it.")
    return Sample(sample.name, np.ascontiguousarray(image), {h: np.ascontiguousarray(labels[h]) for h in labels})


def _problem(before: Sample, image: object, labels: object) -> str:
    """What is wrong with an answer, or nothing."""
    if not isinstance(image, np.ndarray) or image.ndim != 3 or 0 in image.shape:
        return f"an image that is not an array H W C ({getattr(image, 'shape', type(image).__name__)})"
    if (image.dtype, image.shape[2]) != (before.image.dtype, before.image.shape[2]):
        was = before.image
        return f"{image.shape[2]} bands of {image.dtype} in the place of {was.shape[2]} of {was.dtype}"
    if not isinstance(labels, dict) or set(labels) != set(before.labels):
        return f"other label heads than {', '.join(before.labels)}"
    for head, label in labels.items():
        if getattr(label, "shape", None) != image.shape[:2] or label.dtype != before.labels[head].dtype:
            return (
                f"{head} labels {getattr(label, 'shape', type(label).__name__)} of "
                f"{getattr(label, 'dtype', 'no type')} for an image {image.shape[:2]} (they are to be "
                f"{before.labels[head].dtype} of its size)"
            )
    return ""
