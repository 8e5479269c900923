"""Pascal VOC's folders as CVAT, datumaro and Label Studio import them ("Segmentation mask 1.1"):

labelmap.txt, JPEGImages/, SegmentationClass/NAME.png (palette), ImageSets/Segmentation/default.txt
"""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from fullyconv.annotating.writer import ImagePlace, Writer, refuse_more_classes
from fullyconv.errors import DataError, printable
from fullyconv.files.outputs import Outputs
from fullyconv.images import encode_label
from fullyconv.taxonomy import Colour, Taxonomy, voc_palette

__all__ = ["VocWriter"]

_BORDER: Colour = (224, 224, 192)  # VOC's colour of index 255


@final
class VocWriter(Writer):
    """Index 0 is background, the classes follow; 255 is ignored. Colours are the classes' own where they can be."""

    folder = "JPEGImages"

    def __init__(self, plan: Outputs, taxonomy: Taxonomy, model: str = "") -> None:
        super().__init__(plan, taxonomy, model)
        refuse_more_classes(self.classes, 254, "A palette PNG")
        for name in self.classes.names:
            if ":" in name or name.startswith(("#", "!")):
                raise DataError(f"labelmap.txt cannot hold the class name {printable(name)!r}; give it another first.")
        own: tuple[Colour, ...] = ((0, 0, 0), *self.classes.colours)
        self._changed = len({*own, _BORDER}) < len(own) + 1
        self._palette = voc_palette(len(own)) if self._changed else own
        self._listed: list[str] = []

    def claim_further(self, name: str) -> tuple[str, ...]:
        return (self.plan.claim("SegmentationClass", f"{name}.png"),)

    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        table = np.full(max(len(self.classes.number), self.classes.taxonomy.ignore + 1), 255, np.uint8)
        table[: len(self.classes.number)] = self.classes.number
        colours = [*self._palette, *[(255, 255, 255)] * (255 - len(self._palette)), _BORDER]
        self._listed.append(place.name)
        return [self.plan.write(place.further[0], encode_label(table[labels], colours))]

    def finish(self) -> list[Path]:
        names = ("background", *self.classes.names)
        lines = ["# label:color_rgb:parts:actions"]
        lines += [f"{n}:{r},{g},{b}::" for n, (r, g, b) in zip(names, self._palette, strict=True)]
        files = {("labelmap.txt",): lines, ("ImageSets", "Segmentation", "default.txt"): self._listed}
        return [
            self.plan.write(self.plan.claim(*place), "".join(f"{line}\n" for line in text).encode())
            for place, text in files.items()
        ]

    @property
    def notes(self) -> list[str]:
        note = "some classes share a colour, or have background's: the files have VOC's colours instead."
        return super().notes + ([note] if self._changed else [])
