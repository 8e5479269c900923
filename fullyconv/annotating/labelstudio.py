"""Label Studio: tasks.json to import, a brush region for each class of an image, with the project's configuration.

What a network proposes are predictions, with its name and how sure it is; the truth (no model) are annotations.
Images are named as local files below the folder (`/data/local-files/?d=images/...`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, final
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from fullyconv.annotating.runs import brush_bytes
from fullyconv.annotating.writer import Growing, ImagePlace, Writer
from fullyconv.files.outputs import Outputs
from fullyconv.taxonomy import Taxonomy

__all__ = ["LabelStudioWriter"]


@final
class LabelStudioWriter(Writer):
    def __init__(self, plan: Outputs, taxonomy: Taxonomy, model: str = "") -> None:
        super().__init__(plan, taxonomy, model)
        self._count = 0
        self._config = plan.claim("labeling-config.xml")
        self._json = Growing(plan, plan.claim("tasks.json"))

    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        results = [
            self._region(place, labels, k, confidence)
            for k in np.flatnonzero(np.bincount(labels.ravel())).tolist()
            if k < len(self.classes.number) and self.classes.number[k]
        ]
        task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={quote(place.file)}"}}
        if self.model:
            about = {"model_version": self.model, "result": results}
            task["predictions"] = [about if confidence is None else {**about, "score": _mean(confidence)}]
        else:
            task["annotations"] = [{"result": results}]
        self._json.write(f"{',' if self._count else '['}\n{json.dumps(task, ensure_ascii=False)}")
        self._count += 1
        return []

    def _region(
        self, place: ImagePlace, labels: NDArray[np.integer], k: int, confidence: NDArray[np.float32] | None
    ) -> dict[str, Any]:
        covered = labels == k
        name = self.classes.name(k)
        found = {
            "id": hashlib.sha256(f"{place.file}\n{name}".encode()).hexdigest()[:10],
            "from_name": "label",
            "to_name": "image",
            "type": "brushlabels",
            "original_width": labels.shape[1],
            "original_height": labels.shape[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_bytes(covered), "brushlabels": [name]},
        }
        return found if confidence is None else {**found, "score": _mean(confidence[covered])}

    def finish(self) -> list[Path]:
        labels = "".join(
            f'    <Label value={quoteattr(n)} background="#{r:02x}{g:02x}{b:02x}"/>\n'
            for n, (r, g, b) in zip(self.classes.names, self.classes.colours, strict=True)
        )
        text = (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
        )
        self._json.write("\n]\n" if self._count else "[]\n")
        return [self._json.publish(), self.plan.write(self._config, text.encode())]

    def close(self) -> None:
        self._json.drop()

    @property
    def notes(self) -> list[str]:
        note = f"{self.ignored} ignored pixels have no form in Label Studio: they are background there."
        return super().notes + ([note] if self.ignored else [])


def _mean(values: NDArray[np.float32]) -> float:
    return round(float(values.mean(dtype=np.float64)), 4)
