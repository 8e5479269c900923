"""COCO: annotations/instances_default.json beside images/; an annotation a connected region, as runs or polygons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.annotating.runs import Region, coco_text, column_runs, keyhole, regions
from fullyconv.annotating.writer import Growing, ImagePlace, Writer
from fullyconv.files.outputs import Outputs
from fullyconv.taxonomy import Taxonomy

__all__ = ["CocoPolygonsWriter", "CocoWriter"]


class CocoWriter(Writer):
    """Ids of categories are those of the classes (background, which is none, 0). What is ignored is a crowd of the
    first category, as COCO's own evaluation leaves crowds out."""

    def __init__(self, plan: Outputs, taxonomy: Taxonomy, model: str = "") -> None:
        super().__init__(plan, taxonomy, model)
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._json = Growing(plan, plan.claim("annotations", "instances_default.json"))
        info = {"description": f"proposed by {model}"} if model else {}
        categories = [{"id": i, "name": n, "supercategory": ""} for i, n in enumerate(self.classes.names, 1)]
        self._json.write(
            f'{{"info": {_json(info)},\n"licenses": [],\n"categories": {_json(categories)},\n"annotations": ['
        )

    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        size = (int(labels.shape[0]), int(labels.shape[1]))
        image = len(self._images) + 1
        name = place.file.removeprefix(f"{self.folder}/")
        self._images.append({"id": image, "file_name": name, "height": size[0], "width": size[1]})
        for region in regions(labels, self.classes.undrawn):
            self._count += 1
            ignored = region.value == self.classes.taxonomy.ignore
            height, width = region.covered.shape
            found = {
                "id": self._count,
                "image_id": image,
                "category_id": 1 if ignored else self.classes.number[region.value],
                "iscrowd": int(ignored),
                "area": int(region.covered.sum()),
                "bbox": [region.left, region.top, width, height],
                "segmentation": _runs(region, size) if ignored else self.outline(region, size),
            }
            self._json.write(f"{',' if self._count > 1 else ''}\n{_json(found)}")
        return []

    def outline(self, region: Region, size: tuple[int, int]) -> Any:
        return _runs(region, size)

    def finish(self) -> list[Path]:
        self._json.write(f'\n],\n"images": {_json(self._images)}}}\n')
        return [self._json.publish()]

    def close(self) -> None:
        self._json.drop()


@final
class CocoPolygonsWriter(CocoWriter):
    """One polygon a region along the pixels' edges; a hole is reached by a line that is walked there and back."""

    def outline(self, region: Region, size: tuple[int, int]) -> Any:
        ring = keyhole(region.covered) + np.array([region.left, region.top])
        return [[float(v) for v in ring.ravel()]]


def _runs(region: Region, size: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size), "counts": coco_text(column_runs(region, size))}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
