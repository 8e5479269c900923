"""labelme: a JSON beside each image, its regions as shapes of type "mask", and labels.txt."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.annotating.runs import Region, regions
from fullyconv.annotating.writer import ImagePlace, Writer
from fullyconv.images import encode_png

__all__ = ["LabelmeWriter"]

_VERSION = "5.5.0"  # the first with masks that all later ones read


@final
class LabelmeWriter(Writer):
    """All in one folder: labelme's own converters, and our reader, take folders for splits."""

    reserved = ("__ignore__",)
    folder = ""
    flat = True

    def claim_further(self, name: str) -> tuple[str, ...]:
        return (self.plan.claim(f"{name}.json"),)

    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        described = f"proposed by {self.model}" if self.model else ""
        shapes = [self._shape(r, described) for r in regions(labels, self.classes.undrawn)]
        value = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": place.file,
            "imageData": None,
            "imageHeight": labels.shape[0],
            "imageWidth": labels.shape[1],
        }
        text = json.dumps(value, ensure_ascii=False, indent=1)
        return [self.plan.write(place.further[0], text.encode())]

    def _shape(self, region: Region, described: str) -> dict[str, Any]:
        height, width = region.covered.shape
        ignored = region.value == self.classes.taxonomy.ignore
        corners = [[region.left, region.top], [region.left + width - 1, region.top + height - 1]]
        return {
            "label": "__ignore__" if ignored else self.classes.name(region.value),
            "points": [[float(x), float(y)] for x, y in corners],
            "group_id": None,
            "description": described,
            "shape_type": "mask",
            "flags": {},
            "mask": base64.b64encode(encode_png(region.covered.astype(np.uint8))).decode(),
        }

    def finish(self) -> list[Path]:
        lines = ["__ignore__", "_background_", *self.classes.names]
        return [self.plan.write(self.plan.claim("labels.txt"), "".join(f"{n}\n" for n in lines).encode())]
