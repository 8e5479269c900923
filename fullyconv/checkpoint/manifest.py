"""MANIFEST.json: size and sha256 of every file of a model directory but the card, and of itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fullyconv.errors import DataError, InternalError, MissingInput, printable
from fullyconv.files import Written, read_file, sha256_file

__all__ = ["MANIFEST", "check_file", "checked_json", "encode_json", "encode_manifest", "read_manifest"]

MANIFEST = "MANIFEST.json"
FORMAT = 1
JSON_LIMIT = 64 << 20  # bytes: ours are kilobytes, with an optimiser's state megabytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
_HEX = re.compile(r"[0-9a-f]{64}")


def encode_json(value: object, what: str) -> bytes:
    """JSON as we write it, keys in the order given. `value` must survive the trip (no NaN, string keys)."""
    try:
        return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InternalError(f"{what} holds a value that JSON cannot carry ({error}); please report it.") from error


def encode_manifest(files: Mapping[str, Written], versions: Mapping[str, str]) -> bytes:
    """The manifest of `files`; its own "sha256" is of this text without that line's value."""
    listed = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
    content = {"format": FORMAT, "files": listed, "versions": dict(versions)}
    return encode_json({**content, "sha256": _own_digest(content)}, MANIFEST)


def _own_digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(encode_json(content, MANIFEST)).hexdigest()


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Written]:
    """{file name: (size, sha256)}, after checking the manifest itself: every byte of it must be as we wrote it."""
    path = Path(directory) / MANIFEST
    if not Path(directory).is_dir():
        raise MissingInput(f"There is no model directory at {printable(directory)}; check the path.")
    if not path.exists():
        raise DataError(
            f"{printable(path)} is missing, so this is no whole model directory; name a run or a model directory, or "
            "save the model anew."
        )
    text = read_file(path, JSON_LIMIT)
    try:
        content = json.loads(text)
        own = content.pop("sha256")
        if content["format"] != FORMAT and own == _own_digest(content):
            raise DataError(f"{printable(path)} has format {content['format']}; this version reads {FORMAT}: update.")
        if own != _own_digest(content) or encode_json({**content, "sha256": own}, MANIFEST) != text:
            raise ValueError("its own sha256 does not match")
        return {name: _written(name, entry) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InternalError) as error:
        raise DataError(f"{printable(path)} is damaged ({error}); restore the directory from a copy.") from error


def _written(name: str, entry: Mapping[str, Any]) -> Written:
    if not _NAME.fullmatch(name) or not _HEX.fullmatch(entry["sha256"]) or type(entry["bytes"]) is not int:
        raise ValueError(f"the entry {printable(name)!r} is not understood")
    return Written(entry["bytes"], entry["sha256"])


def check_file(directory: Path, name: str, expected: Written, *, content: bool) -> None:
    """Raise DataError naming the file unless its size, and with `content` its sha256, are as listed."""
    path = directory / name
    if not path.exists():
        raise DataError(f"{printable(path)} is missing, though the manifest lists it; restore it from a copy.")
    size = path.stat().st_size
    if size != expected.size:
        raise DataError(
            f"{printable(path)} is damaged: it has {size} bytes, not {expected.size}; restore it from a copy."
        )
    if content and sha256_file(path) != expected.sha256:
        raise _damaged(path)


def _damaged(path: Path) -> DataError:
    return DataError(f"{printable(path)} is damaged: its sha256 is not the recorded one; restore it from a copy.")


def checked_json(directory: Path, name: str, files: Mapping[str, Written]) -> Any:
    """The JSON of a listed file, after its size and sha256 are checked on the very bytes parsed."""
    if name not in files:
        raise DataError(f"{printable(directory / MANIFEST)} does not list {name}; save the model anew.")
    check_file(directory, name, files[name], content=False)
    text = read_file(directory / name, JSON_LIMIT)
    if hashlib.sha256(text).hexdigest() != files[name].sha256:
        raise _damaged(directory / name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(directory / name)} is no JSON ({error}); save the model anew.") from error
