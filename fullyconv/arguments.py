"""What a public function takes, told before it starts: one sentence in place of an AttributeError from deep within."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

from fullyconv.errors import UsageError, printable

__all__ = [
    "CALL",
    "CLASSES",
    "MAPPING",
    "NUMBER",
    "PATH",
    "TEXT",
    "TEXTS",
    "TILE",
    "WHOLE",
    "Kind",
    "either",
    "maybe",
    "require",
    "takes",
]

P = ParamSpec("P")
R = TypeVar("R")


@final
@dataclass(frozen=True)
class Kind:
    """What an argument may be: `words` for it, and the test."""

    words: str
    fits: Callable[[Any], bool]


def _whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ()


def _number(value: object) -> bool:
    return (isinstance(value, float) or _whole(value)) and getattr(value, "shape", ()) == ()


def _texts(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(isinstance(v, str) for v in value)


def _two(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_whole, value))


def _classes(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping | set)


TEXT = Kind("a text", lambda v: isinstance(v, str))
PATH = Kind("a path", lambda v: isinstance(v, str | os.PathLike) and isinstance(os.fspath(v), str))
WHOLE = Kind("a whole number", _whole)
NUMBER = Kind("a number", _number)
TEXTS = Kind("a list of texts", _texts)
TILE = Kind("a whole number or two (rows, columns)", lambda v: _whole(v) or _two(v))
MAPPING = Kind("a mapping", lambda v: isinstance(v, Mapping))
CLASSES = Kind("a list with one entry a class", _classes)
CALL = Kind("a function", lambda v: callable(v) and not hasattr(v, "state_dict"))


def maybe(kind: Kind) -> Kind:
    """`kind` or None."""
    return Kind(f"{kind.words} or None", lambda v: v is None or kind.fits(v))


def either(*kinds: Kind) -> Kind:
    """Any of `kinds`."""
    return Kind(" or ".join(k.words for k in kinds), lambda v: any(k.fits(v) for k in kinds))


def require(value: object, kind: Kind, function: str, name: str) -> None:
    """`UsageError` where `value` is not of that kind."""
    if not kind.fits(value):
        shown = type(value).__name__
        if isinstance(value, str | int | float | None):
            shown += "" if value is None else f" {printable(repr(value))[:60]}"
        raise UsageError(f"{function}: {name} is {kind.words}, not {shown}; correct the call.")


def takes(**kinds: Kind) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the named arguments of a function at every call; `UsageError` names the first that cannot be meant."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        name = function.__qualname__.removesuffix(".__init__")

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for argument, kind in kinds.items():
                if argument in given:
                    require(given[argument], kind, name, argument)
            return function(*args, **kwargs)

        return checked

    return decorate
