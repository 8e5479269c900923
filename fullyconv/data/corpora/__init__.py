"""Readers: one file a corpus or layout, each returning a `Dataset`; what class tables and stored values mean.

A kind is a module with `open_NAME(root, split, **options) -> Dataset` and `recognise(root) -> bool`; it is imported
when it is asked for. To add a corpus, put its file here and its row into `KINDS`: nothing else is touched
(docs/extending.md shows one).
"""

from __future__ import annotations

__all__ = ["KINDS"]

KINDS: dict[str, str] = {
    "camvid": "fullyconv.data.corpora.camvid:open_camvid",
    "voc": "fullyconv.data.corpora.voc:open_voc",
    "sbd": "fullyconv.data.corpora.sbd:open_sbd",
    "nyud": "fullyconv.data.corpora.nyud:open_nyud",
    "siftflow": "fullyconv.data.corpora.siftflow:open_siftflow",
    "context": "fullyconv.data.corpora.pascal_context:open_context",
    "cityscapes": "fullyconv.data.corpora.cityscapes:open_cityscapes",
    "ade20k": "fullyconv.data.corpora.ade20k:open_ade20k",
    "cvat": "fullyconv.data.corpora.annotations.cvat:open_cvat",
    "labelme": "fullyconv.data.corpora.annotations.labelme:open_labelme",
    "coco": "fullyconv.data.corpora.annotations.coco:open_coco",
    "labelstudio": "fullyconv.data.corpora.annotations.labelstudio:open_labelstudio",
    "supervisely": "fullyconv.data.corpora.annotations.supervisely:open_supervisely",
    "yolo": "fullyconv.data.corpora.annotations.yolo:open_yolo",
    "nnunet": "fullyconv.data.corpora.nnunet:open_nnunet",
    "scenes": "fullyconv.rasters.scene_data:open_scenes",  # above this room: a name, imported when it is asked for
    "folder": "fullyconv.data.corpora.folder:open_folder",
}
"""Kind -> "module:function", in the order in which a bare path is shown to them: the catch-all comes last."""
