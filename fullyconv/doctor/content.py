"""What the files of a data set hold, file by file: whether a run that goes on learns from what it began with.

Names and sizes, which `Dataset.fingerprint` is made of, do not notice labels that were changed in place. Each file's
sha256 does; it is taken from the check where that has read the file anyway, and kept by the file's size, times and
number, so that an unchanged file is not read twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from fullyconv.data.base import Dataset
from fullyconv.doctor.scan import RecordFacts
from fullyconv.errors import FullyconvError, printable
from fullyconv.files import read_json, sha256_file

__all__ = ["Contents", "digests_of"]

_FORMAT = 1
_SETTLED = 2_000_000_000  # ns: a file touched so shortly before it was read may change again within its clock's tick
_Stat = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


@final
@dataclass
class Contents:
    """The files' digests: `parts` {"train": {"label/semantic/NAME": sha256}}, `seen` {file: (its stat, sha256)}."""

    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    seen: dict[str, tuple[_Stat, str]] = field(default_factory=dict)

    @classmethod
    def load(cls, file: Path) -> Contents:
        """What `to_json` wrote; empty where there is nothing that is whole."""
        try:
            value = read_json(file)
            if value["format"] != _FORMAT or value["sha256"] != _sha256([value["parts"], value["seen"]]):
                return cls()
            return cls(value["parts"], {k: ((*stat,), digest) for k, (stat, digest) in value["seen"].items()})
        except (FullyconvError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def to_json(self) -> dict[str, Any]:
        seen = {k: [list(stat), digest] for k, (stat, digest) in self.seen.items()}
        return {"format": _FORMAT, "sha256": _sha256([self.parts, seen]), "parts": self.parts, "seen": seen}

    def digest(self, part: str) -> str:
        """One sha256 (hex) over every file of a part."""
        return _sha256(sorted(self.parts.get(part, {}).items()))

    def add(self, part: str, dataset: Dataset, known: Contents, read: Mapping[Path, str], begun: int) -> None:
        """Enter the files of `dataset`. known: of earlier; read: digests of files that were read since `begun` (ns)."""
        table = self.parts.setdefault(part, {})
        for record in dataset.records:
            for what, files in (("input", record.inputs), ("label", record.labels)):
                for name, file in files.items():
                    table[f"{what}/{name}/{record.name}"] = self._digest(file, known, read, begun)

    def _digest(self, file: Path, known: Contents, read: Mapping[Path, str], begun: int) -> str:
        """The file's sha256; "" where it cannot be read (its reader will say so)."""
        place = str(file.absolute())
        try:
            info = file.stat()
        except OSError:
            return ""
        stat = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        if place in self.seen and self.seen[place][0] == stat:
            return self.seen[place][1]
        if place in known.seen and known.seen[place][0] == stat:
            self.seen[place] = known.seen[place]
            return known.seen[place][1]
        if file in read:
            digest = read[file]
        else:
            begun = max(begun, time.time_ns())
            try:
                digest = sha256_file(file)
            except (FullyconvError, OSError):
                return ""
        if max(info.st_mtime_ns, info.st_ctime_ns) < begun - _SETTLED:
            self.seen[place] = (stat, digest)
        return digest

    def changes(self, before: Contents, part: str) -> str:
        """How this differs from what was there before, in words with numbers and an example; "" where that is unknown
        or nothing."""
        then, now = before.parts.get(part, {}), self.parts.get(part, {})
        if not then:
            return ""
        kinds = {
            "changed": [k for k in now if k in then and then[k] != now[k]],
            "are new": [k for k in now if k not in then],
            "are gone": [k for k in then if k not in now],
        }
        parts = [f"{len(keys)} {_files(keys)} {words}" for words, keys in kinds.items() if keys]
        example = next((keys[0] for keys in kinds.values() if keys), "")
        what, _, name = example.partition("/")
        example = f"the {what} of {printable(name.partition('/')[2])}"
        return f"of {len(then)} files {' and '.join(parts)}, such as {example}" if parts else ""


def digests_of(facts: Iterable[RecordFacts]) -> dict[Path, str]:
    """sha256 (hex) of the files that a check has read."""
    found = {}
    for record in facts:
        found.update({f.file: f.digest.hex() for f in record.inputs if f.digest})
        found.update({f.file: f.digest.hex() for f in record.labels if f.digest})
    return found


def _files(keys: list[str]) -> str:
    kinds = {k.partition("/")[0] for k in keys}
    plural = "s" if len(keys) > 1 else ""
    if kinds == {"label"}:
        return f"label{plural}"
    return f"image{plural}" if kinds == {"input"} else f"file{plural}"


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
