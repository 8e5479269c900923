"""Tables of classes in JSON and YAML: lists of names or of objects, mappings of names, values and colours."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from fullyconv.data.corpora.class_rows import MEANS, ClassRow, bare_name, colour_of, table_text, value_of
from fullyconv.errors import DataError, printable

__all__ = ["json_rows", "yaml_rows"]


def json_rows(file: Path) -> list[ClassRow]:
    try:
        found = json.loads(table_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(file)} is no JSON ({printable(error)[:80]}); correct it.") from error
    for key in ("classes", "names", "labels", "categories", "class_names", "label_names", "id2label"):
        if isinstance(found, dict) and isinstance(found.get(key), list | dict):
            found = found[key]
            break
    return _entries(found, file)


def _entries(found: object, file: Path) -> list[ClassRow]:
    """Rows of a list of names or of objects, or of a mapping name -> value or colour, or value -> name."""
    if isinstance(found, dict):
        return [_pair_row(key, entry, file) for key, entry in found.items()]
    if isinstance(found, list) and all(isinstance(e, str) for e in found):
        return [ClassRow(e, None, None, f"entry {k}") for k, e in enumerate(found)]
    if isinstance(found, list) and all(isinstance(e, dict) for e in found):
        return [_object_row(e, k, file) for k, e in enumerate(found)]
    raise _no_entries(file)


def _no_entries(file: Path) -> DataError:
    return DataError(
        f"{printable(file)} is no plain table of classes; write them in classes.txt, one name a line (or name r g b)."
    )


def _pair_row(key: str, entry: object, file: Path) -> ClassRow:
    where = f"entry {printable(key)!r}"
    if isinstance(entry, str) and key.isdecimal():
        return ClassRow(entry, None, value_of(key, file), where, numbered=True)
    if isinstance(entry, str) and (colour := colour_of(entry)):
        return ClassRow(key, colour, None, where)
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= 65535:
        return ClassRow(key, None, entry, where, numbered=True)
    if isinstance(entry, str) and (colour := colour_of(key)):
        return ClassRow(entry, colour, None, where)
    if isinstance(entry, list) and len(entry) in (3, 4) and (colour := colour_of(" ".join(map(str, entry)))):
        return ClassRow(key, colour, None, where)
    raise _no_entries(file)


def _object_row(entry: Mapping[str, object], k: int, file: Path) -> ClassRow:
    plain = {re.sub(r"[^a-z]", "", str(key).lower()): v for key, v in entry.items()}
    by = {MEANS[key]: v for key, v in reversed(plain.items()) if key in MEANS}
    name = by.get("name", by.get("named"))
    value, colour = by.get("value"), by.get("colour")
    colour = colour_of(" ".join(map(str, colour)) if isinstance(colour, list) else str(colour)) if colour else None
    if not isinstance(name, str):
        raise _no_entries(file)
    number = value if isinstance(value, int) and 0 <= value <= 65535 else None
    return ClassRow(name, colour, number, f"entry {k}", numbered=number is not None)


def yaml_rows(file: Path) -> list[ClassRow]:
    """`names` of a data.yaml: an inline or indented list or mapping; anything richer is refused."""
    lines = [
        line.split(" #")[0].rstrip() for line in table_text(file).splitlines() if line.strip()[:1] not in ("", "#")
    ]
    start = next((k for k, line in enumerate(lines) if re.match(r"(names|classes)\s*:", line)), None)
    if start is None:
        raise DataError(f"{printable(file)} has no list of names; write them in classes.txt, one name a line.")
    inline = lines[start].partition(":")[2].strip()
    below = list(takewhile(lambda line: line.startswith((" ", "-", "\t", "]", "}")), lines[start + 1 :]))
    if inline[:1] in ("[", "{"):
        whole = " ".join((inline, *map(str.strip, below))).strip()
        if whole[-1] not in "]}":
            raise _no_entries(file)
        items = [i.strip() for i in next(csv.reader([whole[1:-1]], skipinitialspace=True)) if i.strip()]
    else:
        items = [line.strip() for line in below]
    if not items:
        raise _no_entries(file)
    return [_yaml_row(item, k, file) for k, item in enumerate(items)]


def _yaml_row(item: str, k: int, file: Path) -> ClassRow:
    if found := re.fullmatch(r"(\d+)\s*:\s*(\S.*)", item):
        return ClassRow(bare_name(found[2]), None, value_of(found[1], file), f"entry {found[1]}", numbered=True)
    name = bare_name(item.removeprefix("- ").strip())
    if not name or name[0] in "[{&*|>" or item.endswith(":"):
        raise _no_entries(file)
    return ClassRow(name, None, None, f"entry {k}")
