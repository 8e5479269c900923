"""What compiled functions are kept as on the disk, and that files of another version of the package do no harm."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest

SOURCE = """from fullyconv.compiling import njit


@njit(nogil=True)
def double(x):
    return x + x
"""


def loaded(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("kept", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("content", [b"cfullyconv.a_room_that_was_moved\nkernel\n.", b"", b"no pickle"])
def test_an_index_of_another_version_is_made_anew(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("numba")
    file = tmp_path / "kernels.py"
    file.write_text(SOURCE)
    assert loaded(file).double(4) == 8
    (index,) = tmp_path.rglob("*.nbi")
    with index.open("rb") as handle:
        version = pickle.load(handle)
    index.write_bytes(pickle.dumps(version) + content)
    again = loaded(file)
    assert again.double(5) == 10
    assert sum(again.double.stats.cache_hits.values()) == 0
    hit = loaded(file)
    assert hit.double(6) == 12
    assert sum(hit.double.stats.cache_hits.values()) == 1
