"""The one tree of errors: each takes facts, writes one sentence (fact, value, remedy) and knows its exit code.

exit code   meaning                                 class
0           done                                    -
1           other failure                           FullyconvError
2           usage: unknown key, name or flag        UsageError
65          bad data (an empty set too)             DataError
66          an input is missing                     MissingInput
70          our own mistake                         InternalError
74          input/output (disk full)                StorageError
75          try again later                         TryAgain
130         interrupted (Ctrl-C)                    Interrupted
143         terminated (SIGTERM)                    Terminated
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import final

__all__ = [
    "EXIT_CODES",
    "EXTRAS",
    "DataError",
    "FullyconvError",
    "InternalError",
    "Interrupted",
    "MissingExtra",
    "MissingInput",
    "StorageError",
    "Terminated",
    "TryAgain",
    "UnknownName",
    "UsageError",
    "foreign_values",
    "missing_extra",
    "nearest",
    "printable",
]


class FullyconvError(Exception):
    """Base of every error fullyconv raises on purpose. `str(error)` is one sentence for a newcomer."""

    exit_code: int = 1


class UsageError(FullyconvError):
    """A flag, key, name or combination of them that cannot be honoured."""

    exit_code = 2


class DataError(FullyconvError):
    """The user's images, labels, weights or files are not what they must be."""

    exit_code = 65


@final
class MissingInput(FullyconvError):
    """A file or folder that was named does not exist or cannot be opened."""

    exit_code = 66


class InternalError(FullyconvError):
    """A promise of our own does not hold; please report it."""

    exit_code = 70


@final
class StorageError(FullyconvError):
    """Reading or writing failed: disk full, read-only, quota, hardware."""

    exit_code = 74


@final
class TryAgain(FullyconvError):
    """A passing condition: a lock held by another process, a network that did not answer."""

    exit_code = 75


@final
class Interrupted(FullyconvError):
    """Ctrl-C; what was finished is saved."""

    exit_code = 130


@final
class Terminated(FullyconvError):
    """SIGTERM; what was finished is saved."""

    exit_code = 143


class UnknownName(UsageError):
    """A name that is not in a known set; the sentence offers the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = nearest(name, self.known)
        hint = f"did you mean {near!r}?" if near else f"choose from {', '.join(self.known[:30])}."
        super().__init__(f"{printable(name)!r} is not a known {kind}; {hint}")


@final
class MissingExtra(UsageError):
    """An optional dependency that a command needs is not installed."""

    def __init__(self, what: str, extra: str, module: str) -> None:
        self.extra, self.module = extra, module
        super().__init__(f"{what} needs the package {module!r}: install it with  pip install 'fullyconv[{extra}]'.")


EXTRAS: dict[str, str] = {
    "torch": "torch",
    "numba": "torch",
    "timm": "timm",
    "torchvision": "timm",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "scipy": "mat",
    "h5py": "mat",
    "rasterio": "geo",
    "shapely": "geo",
    "pyogrio": "geo",
    "pyarrow": "geo",
    "av": "video",
    "cv2": "camera",
    "tifffile": "slides",
    "imagecodecs": "slides",
    "tiffslide": "slides",
    "zarr": "zarr",
    "ray": "ray",
    "pycocotools": "coco",
    "huggingface_hub": "hub",
    "onnx": "export",
    "onnxruntime": "runtime",
    "openvino": "openvino",
    "starlette": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
}
"""Optional module -> the extra that installs it."""


def missing_extra(error: ModuleNotFoundError, what: str) -> MissingExtra | None:
    """The error that tells what to install, where `error` is about a module of an extra (and not a part of one)."""
    module = error.name or ""
    return MissingExtra(what, EXTRAS[module], module) if module in EXTRAS else None


EXIT_CODES: dict[type[FullyconvError], int] = {
    cls: cls.exit_code
    for cls in (
        FullyconvError,
        UsageError,
        DataError,
        MissingInput,
        InternalError,
        StorageError,
        TryAgain,
        Interrupted,
        Terminated,
    )
}


@contextlib.contextmanager
def foreign_values(source: object, remedy: str) -> Iterator[None]:
    """Around what works on the values of a stranger's file: whatever cannot be worked on is a DataError that names
    `source`, the cause and the `remedy`, for there are more ways to be wrong than can be asked for one by one."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, MemoryError) as error:
        cause = printable(f"{type(error).__name__}: {error}")[:160]
        message = f"{printable(source)} holds values that fullyconv does not write ({cause}); {remedy}."
        raise DataError(message) from error


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The member of `known` most like `name`, or None when none is close."""
    found = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    return next(k for k in known if k.lower() == found[0]) if found else None


def printable(text: object) -> str:
    """`text` safe for a terminal or a log: control and undecodable characters are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii") for c in str(text)
    )
