"""The published taxonomies: class names in the order of their ids, and the palettes their owners draw them with.

VOC        PASCAL VOC 2007-2012 (VOCcode/VOClabelcolormap.m)
CONTEXT    PASCAL-Context, background and 59 classes in the FCN paper's order (classes-59.txt); ids in the 459-class
           LabelMap in CONTEXT_IDS (labels.txt)
NYUD40     Gupta, Arbelaez, Malik, CVPR 2013; void is ignored. NYUD894 sends the 894 names of
           nyu_depth_v2_labeled.mat to them (classMapping40.mat)
SIFTFLOW   Liu, Yuen, Torralba 2009; semantic and geometric (Tighe, Lazebnik 2010)
CITYSCAPES the 19 evaluated classes; CITYSCAPES_IDS sends labelIds to them (cityscapesScripts, helpers/labels.py)
ADE20K     the scene parsing benchmark's 150 classes (CSAILVision/sceneparsing, objectInfo150, color150)

Where the owners publish no palette (CONTEXT, NYUD40, SIFTFLOW) it is VOC's colour map.
"""

from __future__ import annotations

from fullyconv.taxonomy import Taxonomy

__all__ = [
    "ADE20K",
    "CITYSCAPES",
    "CITYSCAPES_IDS",
    "CONTEXT",
    "CONTEXT_IDS",
    "NYUD40",
    "NYUD894",
    "SIFTFLOW",
    "SIFTFLOW_GEOMETRIC",
    "TAXONOMIES",
    "VOC",
]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


VOC = Taxonomy(
    _names(
        """background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
        motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"""
    ),
    ignore=255,
)

CONTEXT = Taxonomy(
    VOC.names
    + _names(
        """bag, bed, bench, book, building, cabinet, ceiling, clothes, computer, cup, door, fence, floor, flower, food,
        grass, ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock, shelves, sidewalk,
        sky, snow, bedcloth, track, tree, truck, wall, water, window, wood"""
    ),
    ignore=255,
)

_CONTEXT_VALUES = _numbers(
    """2 23 25 31 34 45 59 65 72 98 397 113 207 258 284 308 347 368 416 427 9 18 22 33 44 46 68 80 85 104 115 144 158
    159 162 187 189 220 232 259 260 105 296 355 295 324 326 349 354 360 366 19 415 420 424 440 445 454 458"""
)
_CONTEXT_OLD_NAMES = {"diningtable": "table", "clothes": "cloth", "bedcloth": "bedclothes"}
CONTEXT_IDS: dict[str, tuple[str, int]] = {
    name: (_CONTEXT_OLD_NAMES.get(name, name), value)
    for name, value in zip(CONTEXT.names[1:], _CONTEXT_VALUES, strict=True)
}
"""Class of `CONTEXT` -> (its name, its value) in the 459-class LabelMap; every other value is background."""

NYUD40 = Taxonomy(
    _names(
        """wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, image, counter, blinds, desk,
        shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator, television, paper,
        towel, shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure,
        otherfurniture, otherprop"""
    ),
    ignore=255,
)

_NYUD_SINGLE = _numbers(
    """21 11 3 157 5 83 19 28 59 88 64 7 80 36 42 89 169 119 122 143 141 4 85 17 172 15 135 123 26 45 331 158 124 24
    144 136 55"""
)
_NYUD_STRUCTURE = _numbers(
    """8 25 33 38 51 53 57 58 62 65 79 94 104 112 134 153 215 216 223 225 238 241 242 256 295 301 339 342 354 363 372
    380 392 408 412 453 456 463 477 497 541 550 553 567 573 582 591 609 612 615 642 645 657 658 659 663 667 668 686
    700 702 777 778 782 850 861 868 874"""
)
_NYUD_FURNITURE = _numbers(
    """12 43 48 50 87 106 111 161 163 174 183 204 214 219 221 224 236 262 278 291 298 313 343 344 356 359 373 393 401
    414 418 419 430 443 444 447 448 457 458 460 462 475 479 485 486 493 494 498 499 509 510 515 521 524 540 549 551
    554 556 558 576 580 608 625 703 734 770 772 797 800 803 804 813 814 815 820 829 835 858 863 882 892"""
)

NYUD894: dict[int, int] = {
    **dict.fromkeys(range(1, 895), 39),
    **{old: k for k, old in enumerate(_NYUD_SINGLE)},
    **dict.fromkeys(_NYUD_STRUCTURE, 37),
    **dict.fromkeys(_NYUD_FURNITURE, 38),
    0: 255,
}
"""Value in `labels` of nyu_depth_v2_labeled.mat (0 = unlabelled) -> id of `NYUD40`: 37 names have a class of their own,
the rest fall to otherstructure, otherfurniture and otherprop."""

SIFTFLOW = Taxonomy(
    _names(
        """awning, balcony, bird, boat, bridge, building, bus, car, cow, crosswalk, desert, door, fence, field, grass,
        moon, mountain, person, plant, pole, river, road, rock, sand, sea, sidewalk, sign, sky, staircase, streetlight,
        sun, tree, window"""
    ),
    ignore=255,
)
SIFTFLOW_GEOMETRIC = Taxonomy(("sky", "horizontal", "vertical"), ignore=255)

_CITYSCAPES: dict[str, tuple[int, tuple[int, int, int]]] = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES = Taxonomy(tuple(_CITYSCAPES), tuple(colour for _, colour in _CITYSCAPES.values()), 255)
CITYSCAPES_IDS: dict[int, int] = {
    **dict.fromkeys(range(34), 255),
    **{value: k for k, (value, _) in enumerate(_CITYSCAPES.values())},
}
"""Value in a labelIds image -> id of `CITYSCAPES`; the 15 others are ignored."""

_ADE20K_COLOURS = """
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652 8fff8c
ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47
ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00
1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300
ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8
001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff
a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00
ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc
2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
"""
ADE20K = Taxonomy(
    _names(
        """wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth,
        door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
        armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
        chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
        case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
        book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
        hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
        dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
        fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
        minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
        screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
        monitor, bulletin board, shower, radiator, glass, clock, flag"""
    ),
    tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _ADE20K_COLOURS.split()),
    255,
)

TAXONOMIES: dict[str, Taxonomy] = {
    "voc": VOC,
    "context": CONTEXT,
    "nyud": NYUD40,
    "siftflow": SIFTFLOW,
    "siftflow-geometric": SIFTFLOW_GEOMETRIC,
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
}
