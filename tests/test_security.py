"""SECURITY.md: every promise names tests, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def defined() -> dict[str, set[str]]:
    """File -> the names of its tests."""
    return {
        path.name: {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        for path in (ROOT / "tests").glob("test_*.py")
    }


def rows(text: str) -> list[tuple[str, list[str]]]:
    """(promise, what its proof names) of every row of the page's tables."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(line[0].strip(), re.findall(r"`([^`]+)`", line[-1])) for line in lines if line[0].strip() != "Promise"]


def faults(text: str) -> list[str]:
    found = []
    known = defined()
    everywhere = set().union(*known.values())
    for promise, named in rows(text):
        proofs = [name for name in named if "test_" in name]
        if not proofs:
            found.append(f"no test proves: {promise}")
        for proof in proofs:
            file, _, name = proof.rpartition("::")
            if name not in (known.get(file, set()) if file else everywhere):
                found.append(f"there is no {proof} for: {promise}")
    return found


def test_every_promise_is_proved_by_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert len(rows(text)) > 40
    assert faults(text) == []


def test_a_promise_without_a_test_or_with_one_that_is_gone_is_found() -> None:
    assert faults("| Nothing breaks | trust us |") == ["no test proves: Nothing breaks"]
    gone = "| Nothing breaks | `test_security.py::test_of_old`, `test_also_gone` |"
    assert faults(gone) == [
        "there is no test_security.py::test_of_old for: Nothing breaks",
        "there is no test_also_gone for: Nothing breaks",
    ]
