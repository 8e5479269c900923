"""Compiled functions that are kept on the disk (numba's cache), and what is kept from another version of the package.

Imported by modules of compiled code alone: it loads numba.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, final

import numba
from numba.core.caching import FunctionCache

__all__ = ["njit"]

_STALE = (ImportError, AttributeError, pickle.UnpicklingError, EOFError, TypeError, ValueError, KeyError, IndexError)


@final
class _Cache(FunctionCache):
    """numba's, but what cannot be read any more counts as not there.

    It trusts a file as long as its own module is unchanged, though the compiled code may name functions of others: of
    a module that a newer version of this package has moved, say. Then the function is compiled, and kept, anew.
    """

    def load_overload(self, sig: object, target_context: object) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except _STALE:
            self.flush()  # type: ignore[no-untyped-call]
            return None


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit(cache=True, **options)` with that cache."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(cache=True, **options)(function)
        if hasattr(compiled, "_cache"):  # not where numba is told not to compile
            compiled._cache = _Cache(function)  # type: ignore[no-untyped-call]
        return compiled

    return decorate
