"""The paper's result tables, and those it is compared with, as data. Figures in percent, as printed.

Only figures that were read in the source named beside them stand here; the journal version's further tables are left
out, because their text could not be read again. CVPR is Long, Shelhamer, Darrell, "Fully Convolutional Networks for
Semantic Segmentation", CVPR 2015 (arXiv:1411.4038v2, whose appendix has PASCAL-Context); README is that of
shelhamer/fcn.berkeleyvision.org; "converted" are the released weights as wkentaro/fcn re-evaluated them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["TABLES", "Published", "Table"]

CVPR, README, CONVERTED = "CVPR 2015", "release README", "released weights, converted by wkentaro/fcn"
FOUR = ("pixel accuracy", "mean accuracy", "mean IU", "f.w. IU")
Values = tuple[float | str | None, ...]


@final
@dataclass(frozen=True)
class Published:
    """A printed row: the system, its figures by the table's columns (None: not reported), where they are printed, and
    the `role` of the fullyconv network that stands for it ("8s", "32s rgbd", ...; empty for other systems)."""

    system: str
    values: Values
    source: str
    role: str = ""


@final
@dataclass(frozen=True)
class Table:
    """A printed table. A measured result belongs to it when its data are of `kind`, and was measured on the same data
    only when its split is in `splits` and it has `images` images (0: not stated)."""

    title: str
    kind: str
    splits: tuple[str, ...]
    images: int
    columns: tuple[str, ...]
    rows: tuple[Published, ...]
    note: str = ""


def _rows(source: str, *rows: tuple[str, Values, str]) -> tuple[Published, ...]:
    return tuple(Published(system, values, source, role) for system, values, role in rows)


TABLES: tuple[Table, ...] = (
    Table(
        "Skips on PASCAL VOC 2011 (seg11valid)",
        "voc",
        ("seg11valid",),
        736,
        FOUR,
        _rows(
            CVPR,
            ("FCN-32s-fixed", (83.0, 59.7, 45.4, 72.0), "32s fixed"),
            ("FCN-32s", (89.1, 73.3, 59.4, 81.4), "32s"),
            ("FCN-16s", (90.0, 75.7, 62.4, 83.0), "16s"),
            ("FCN-8s", (90.3, 75.9, 62.7, 83.2), "8s"),
        )
        + _rows(
            CONVERTED,
            ("FCN-32s", (90.4810, 76.4824, 63.6261, 83.4580), "32s"),
            ("FCN-16s", (90.9971, 78.0710, 65.0050, 84.2614), "16s"),
            ("FCN-8s staged", (91.2212, 77.6146, 65.5126, 84.5445), "8s"),
            ("FCN-8s at-once", (91.1288, 78.4979, 65.3998, 84.4326), "8s atonce"),
        )
        + _rows(README, ("FCN-AlexNet", (None, None, 48.0, None), "alexnet")),
        "The converted rows are what an importer of the released weights has to reproduce.",
    ),
    Table(
        "Trunks on PASCAL VOC 2011 val (500x500, K40c)",
        "voc",
        ("val",),
        0,
        ("mean IU", "forward", "conv layers", "parameters", "receptive field", "max stride"),
        _rows(
            CVPR,
            ("FCN-AlexNet", (39.8, "50 ms", "8", "57M", "355", "32"), "alexnet"),
            ("FCN-VGG16", (56.0, "210 ms", "16", "134M", "404", "32"), "32s"),
            ("FCN-GoogLeNet", (42.5, "59 ms", "22", "6M", "907", "32"), "googlenet"),
        ),
    ),
    Table(
        "PASCAL VOC test (evaluation server)",
        "voc",
        ("test",),
        0,
        ("mean IU VOC 2011", "mean IU VOC 2012", "inference"),
        _rows(
            CVPR,
            ("R-CNN", (47.9, None, None), ""),
            ("SDS (Hariharan et al. 2014)", (52.6, 51.6, "~50 s"), ""),
            ("FCN-8s", (62.7, 62.2, "~175 ms"), "8s"),
        )
        + _rows(README, ("FCN-8s (released weights)", (None, 67.2, None), "8s")),
    ),
    Table(
        "Inputs on NYUDv2 (40 classes)",
        "nyud",
        ("test",),
        654,
        FOUR,
        _rows(
            CVPR,
            ("Gupta et al. 2014", (60.3, None, 28.6, 47.0), ""),
            ("FCN-32s RGB", (60.0, 42.2, 29.2, 43.9), "32s"),
            ("FCN-32s RGBD (early)", (61.5, 42.4, 30.5, 45.5), "32s rgbd"),
            ("FCN-32s HHA", (57.1, 35.2, 24.2, 40.4), "32s hha"),
            ("FCN-32s RGB-HHA (late)", (64.3, 44.9, 32.8, 48.0), "32s rgb-hha"),
            ("FCN-16s RGB-HHA", (65.4, 46.1, 34.0, 49.5), "16s rgb-hha"),
        ),
    ),
    Table(
        "SIFT Flow, semantic and geometric",
        "siftflow",
        ("test",),
        200,
        (*FOUR, "geometric accuracy"),
        _rows(
            CVPR,
            ("Liu et al. 2011", (76.7, None, None, None, None), ""),
            ("Tighe et al. 2010, transfer", (None, None, None, None, 90.8), ""),
            ("Tighe et al. 2013, SVM", (75.6, 41.1, None, None, None), ""),
            ("Tighe et al. 2013, SVM + MRF", (78.6, 39.2, None, None, None), ""),
            ("Farabet et al. 2013, natural", (78.5, 29.6, None, None, None), ""),
            ("Farabet et al. 2013, balanced", (72.3, 50.8, None, None, None), ""),
            ("Pinheiro and Collobert 2014", (77.7, 29.8, None, None, None), ""),
            ("FCN-16s", (85.2, 51.7, 39.5, 76.1, 94.3), "16s"),
        ),
        "Means over the 30 of 33 classes that occur in the test truth; geometric accuracy is the 3-class head's.",
    ),
    Table(
        "PASCAL-Context, 59 classes and background",
        "context",
        ("val",),
        0,
        FOUR,
        _rows(
            f"{CVPR} (arXiv v2, appendix)",
            ("O2P", (None, None, 18.1, None), ""),
            ("CFM", (None, None, 31.5, None), ""),
            ("FCN-32s", (63.8, 42.7, 31.8, 48.3), "32s"),
            ("FCN-16s", (65.7, 46.2, 34.8, 50.7), "16s"),
            ("FCN-8s", (65.9, 46.5, 35.1, 51.0), "8s"),
        ),
    ),
    Table(
        "PASCAL-Context, 33 classes",
        "context33",
        ("val",),
        0,
        FOUR,
        _rows(
            f"{CVPR} (arXiv v2, appendix)",
            ("O2P", (None, None, 29.2, None), ""),
            ("CFM", (None, None, 46.1, None), ""),
            ("FCN-32s", (69.8, 65.1, 50.4, 54.9), "32s"),
            ("FCN-16s", (71.8, 68.0, 53.4, 57.5), "16s"),
            ("FCN-8s", (71.8, 67.6, 53.5, 57.7), "8s"),
        ),
    ),
    Table(
        "CamVid, 11 classes",
        "camvid",
        ("test",),
        233,
        FOUR,
        _rows(
            "FC-HarDNet (Chao et al. 2019), table 2",
            ("SegNet", (62.5, None, 46.4, None), ""),
            ("FCN-8s (VGG16)", (88.0, None, 57.0, None), "8s"),
            ("FC-DenseNet56", (88.9, None, 58.9, None), ""),
            ("FC-DenseNet103", (91.5, None, 66.9, None), ""),
            ("FC-HarDNet84", (91.1, None, 67.7, None), ""),
        ),
        "Not a table of the paper: the cheap public benchmark, 360x480, trained on 367 images.",
    ),
    Table(
        "What a dense pass saves (AlexNet)",
        "",
        (),
        0,
        ("one 227x227 crop", "10x10 grid from 500x500", "faster than crop by crop"),
        _rows(
            CVPR,
            ("forward", ("1.2 ms", "22 ms", "more than 5x"), ""),
            ("forward, crops one at a time", ("5.4 ms", "22 ms", "nearly 25x"), ""),
            ("backward", ("2.4 ms", "37 ms", "a similar gain"), ""),
        ),
        "Measured anew by fullyconv experiment; wall times depend on the machine, the ratio is what can be compared.",
    ),
)
