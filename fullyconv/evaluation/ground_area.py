"""Ground that was measured: where images lie on a map, results say the size of a pixel and the area of each class."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fullyconv.data.base import Record
from fullyconv.errors import FullyconvError
from fullyconv.rasters.gdal import open_source, read_by_windows
from fullyconv.rasters.ground_windows import pixel_metres
from fullyconv.rasters.windows import Window

__all__ = ["GroundAreas"]


@final
class GroundAreas:
    """Adds up hectares over images, as far as they are GeoTIFFs with a projection, by the pixels that count."""

    def __init__(self) -> None:
        self._able = importlib.util.find_spec("rasterio") is not None
        self._metres: list[float] = []
        self._truth: dict[str, NDArray[np.float64]] = {}
        self._said: dict[str, NDArray[np.float64]] = {}

    def add(self, record: Record, tables: Mapping[str, NDArray[np.int64]]) -> None:
        """tables: {head: K x K, rows = truth} of the record's image at its own size."""
        metres = self._pixel(record)
        if metres is None:
            return
        self._metres.append(math.sqrt(metres[0] * metres[1]))
        hectares = metres[0] * metres[1] / 10_000
        for head, table in tables.items():
            counted = table[:, : len(table)]
            self._truth[head] = self._truth.get(head, 0.0) + counted.sum(1) * hectares
            self._said[head] = self._said.get(head, 0.0) + counted.sum(0) * hectares

    def _pixel(self, record: Record) -> tuple[float, float] | None:
        file = next(iter(record.inputs.values()), None)
        if not self._able or file is None or file.suffix.lower() not in (".tif", ".tiff", ".vrt"):
            return None
        try:
            if not read_by_windows(file)[0]:
                return None
            source = open_source(file)
        except FullyconvError:  # what is wrong with it was said when it was read
            return None
        try:
            window = Window(*record.window) if record.window else Window(0, 0, *source.profile.size)
            return pixel_metres(source.profile, window)
        finally:
            source.close()

    def to_json(self) -> dict[str, Any]:
        """{"images": of which this is said, "metres": [finest, coarsest pixel], "hectares": {head: {"truth": by class,
        "prediction": by class}}}; {} where no image lies on a map."""
        if not self._metres:
            return {}
        return {
            "images": len(self._metres),
            "metres": [round(min(self._metres), 6), round(max(self._metres), 6)],
            "hectares": {
                head: {"truth": _rounded(self._truth[head]), "prediction": _rounded(self._said[head])}
                for head in self._truth
            },
        }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(v), 6) for v in values]
