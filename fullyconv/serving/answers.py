"""Label maps as the server's answers: JSON with shares and outlines, and the overlay."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fullyconv.images import encode_label
from fullyconv.regions import outlines
from fullyconv.serving.wanted import Wanted
from fullyconv.taxonomy import Taxonomy

__all__ = ["described"]


def described(asked: Wanted, head: str, labels: NDArray[np.integer], taxonomy: Taxonomy) -> dict[str, Any]:
    """labels H W -> {"size": [H, W], "head", "classes": those that occur, the largest first, each with "id", "name",
    "colour", "pixels", "share" and, if asked, "polygons": [[outer ring, hole, ...], ...] of [x, y] pixel corners}."""
    counts = np.bincount(labels.ravel(), minlength=len(taxonomy))
    classes: list[dict[str, Any]] = []
    for k in np.argsort(-counts, kind="stable").tolist():
        if not counts[k]:
            break
        entry: dict[str, Any] = {
            "id": k, "name": taxonomy.names[k], "colour": list(taxonomy.palette[k]), "pixels": int(counts[k]),
            "share": int(counts[k]) / labels.size,
        }  # fmt: skip
        if asked.polygons:
            entry["polygons"] = [[ring.tolist() for ring in region] for region in outlines(labels == k)]
        classes.append(entry)
    found: dict[str, Any] = {"size": list(labels.shape), "head": head, "classes": classes}
    if asked.labels:
        found["labels"] = base64.b64encode(encode_label(labels, taxonomy.palette)).decode()
    return found
