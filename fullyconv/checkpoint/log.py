"""What stands in metrics.jsonl when a run goes on: the bytes that the checkpoint vouches for, or the rows that are left
of them. A power cut may leave zeros, a torn line, or another file's bytes in place of what was written last."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

__all__ = ["parse_log", "whole"]


def whole(content: bytes, step: int, size: int, crc: int | None) -> tuple[bytes, str]:
    """(the log as of the checkpoint of `step`, what was wrong with it: empty for nothing).

    size, crc: the log's length and CRC-32 when the checkpoint was written; None for a checkpoint that has no CRC.
    """
    if type(size) is not int or size < 0:  # a stranger's checkpoint: it vouches for nothing
        size = -1
    kept = content if size < 0 else content[:size]
    rows, damaged = parse_log(kept)
    if len(kept) == size and not damaged and (crc is None or zlib.crc32(kept) == crc):
        return kept, ""
    good = [line for line, row in rows if _step(row) <= step]
    mended = b"".join(line + b"\n" for line in good)
    if damaged:
        fault = f"{damaged} damaged line{'s' if damaged > 1 else ''} (zeros, or torn by a power cut) left out"
    elif len(kept) < size:
        fault = "shorter than when the checkpoint was written: rows are missing"
    else:
        fault = "changed since the checkpoint was written: figures in it may be wrong"
    return mended, f"{fault}; {len(good)} rows are kept"


def parse_log(content: bytes) -> tuple[list[tuple[bytes, dict[str, Any]]], int]:
    """([(line, row)] of the whole rows, how many lines are none). A last line without its end is one that was torn."""
    lines = content.split(b"\n")
    rows, damaged = [], int(bool(lines[-1]))
    for line in lines[:-1]:
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and _step(row) >= 0:
            rows.append((line, row))
        else:
            damaged += 1
    return rows, damaged


def _step(row: Mapping[str, object]) -> int:
    step = row.get("step")
    return step if isinstance(step, int) else -1
