"""CVAT for images 1.1: annotations.xml, a <mask> for each connected region, beside images/."""

from __future__ import annotations

from pathlib import Path
from typing import final
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from fullyconv.annotating.runs import Region, regions, row_runs
from fullyconv.annotating.writer import Growing, ImagePlace, Writer
from fullyconv.files.outputs import Outputs
from fullyconv.taxonomy import Taxonomy

__all__ = ["CvatWriter"]

_IGNORED = "ignored"  # the label that our reader takes for what is left out


@final
class CvatWriter(Writer):
    """Ignored pixels have the label "ignored", which the list of labels does not name: it is no class."""

    reserved = ("ignore", "ignored", "__ignore__")

    def __init__(self, plan: Outputs, taxonomy: Taxonomy, model: str = "") -> None:
        super().__init__(plan, taxonomy, model)
        self._count = 0
        self._xml = Growing(plan, plan.claim("annotations.xml"))
        self._xml.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n' + self._meta()
        )

    def _meta(self) -> str:
        labels = "".join(
            f"        <label>\n          <name>{escape(name)}</name>\n          <color>#{r:02x}{g:02x}{b:02x}</color>\n"
            "          <type>any</type>\n          <attributes>\n          </attributes>\n        </label>\n"
            for name, (r, g, b) in zip(self.classes.names, self.classes.colours, strict=True)
        )
        return (
            f"  <meta>\n    <task>\n      <name>{escape(self.model)}</name>\n      <mode>annotation</mode>\n"
            f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n"
        )

    def annotate(
        self, place: ImagePlace, labels: NDArray[np.integer], confidence: NDArray[np.float32] | None, ignoring: bool
    ) -> list[Path]:
        name = place.file.removeprefix(f"{self.folder}/")
        height, width = labels.shape
        self._xml.write(
            f'  <image id="{self._count}" name={quoteattr(name)} width="{width}" height="{height}">\n'
            + "".join(self._mask(r) for r in regions(labels, self.classes.undrawn))
            + "  </image>\n"
        )
        self._count += 1
        return []

    def _mask(self, region: Region) -> str:
        ignored = region.value == self.classes.taxonomy.ignore
        label = quoteattr(_IGNORED if ignored else self.classes.name(region.value))
        height, width = region.covered.shape
        source = "auto" if self.model else "manual"
        runs = ", ".join(map(str, row_runs(region.covered).tolist()))
        return (
            f'    <mask label={label} source="{source}" occluded="0" rle="{runs}" left="{region.left}" '
            f'top="{region.top}" width="{width}" height="{height}" z_order="0">\n    </mask>\n'
        )

    def finish(self) -> list[Path]:
        self._xml.write("</annotations>\n")
        return [self._xml.publish()]

    def close(self) -> None:
        self._xml.drop()

    @property
    def notes(self) -> list[str]:
        note = f"{self.ignored} ignored pixels have the label {_IGNORED!r}: add it to the task's labels."
        return super().notes + ([note] if self.ignored else [])
