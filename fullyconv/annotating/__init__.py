"""Label maps as the files of annotation tools, so that they can be corrected there: what `data.corpora` reads, written.

    with open_writer("cvat", plan, taxonomy) as writer:
        places = [writer.claim(name, ".jpg") for name in names]      before work starts
        writer.add(places[0], place, labels)                       bytes of the image file, H W ids
        files = writer.finish()

Each format is a module with a `Writer`; it is imported when it is asked for. Every one is exact: what its reader, and
the tool, make of the file are the pixels that were given.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fullyconv.errors import UnknownName

if TYPE_CHECKING:
    from fullyconv.annotating.writer import Writer
    from fullyconv.files.outputs import Outputs
    from fullyconv.taxonomy import Taxonomy

__all__ = ["FORMATS", "open_writer", "require_format"]

FORMATS = {
    "labelme": "fullyconv.annotating.labelme:LabelmeWriter",
    "cvat": "fullyconv.annotating.cvat:CvatWriter",
    "labelstudio": "fullyconv.annotating.labelstudio:LabelStudioWriter",
    "coco": "fullyconv.annotating.coco:CocoWriter",
    "coco-polygons": "fullyconv.annotating.coco:CocoPolygonsWriter",
    "voc": "fullyconv.annotating.voc:VocWriter",
}


def require_format(kind: str) -> None:
    """UnknownName for a format that is none of these."""
    if kind not in FORMATS:
        raise UnknownName("annotation format", kind, FORMATS)


def open_writer(kind: str, plan: Outputs, taxonomy: Taxonomy, *, model: str = "") -> Writer:
    """The writer of a format below `plan`'s folder. model: what drew the labels; empty where they are the truth.

    Raises UnknownName (format) and DataError (a class name that the format cannot hold).
    """
    require_format(kind)
    module, _, name = FORMATS[kind].partition(":")
    writer: Any = getattr(importlib.import_module(module), name)(plan, taxonomy, model)
    return writer  # type: ignore[no-any-return]
