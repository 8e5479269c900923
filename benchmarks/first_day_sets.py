"""The five data sets of first_day.py, made from research data that stay where they are (FULLYCONV_SHARED).

tiny: 20 CamVid images, 5 classes, 30 to measure. mixed: 200 VOC images of a quarter to 1.6 times their size, animal,
person and the rest. grey: the same images in grey, animal or not. bands: 100 CamVid images as five 16-bit bands
(colours in other units, gradient, inverted). voc: 400 VOC images as they are, 21 classes. camvid: all of train and val.

Each is written as a folder that `fullyconv train` reads, and as arrays for the rivals, which so need no decoder;
`scale` makes all images smaller, where there is little time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

SETS = ("tiny", "mixed", "grey", "bands", "voc", "camvid")
ANIMALS, PERSON, IGNORE = (3, 8, 10, 12, 13, 17), 15, 255
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

Pair = tuple[str, Any, Any]


def camvid(root: Path, split: str, most: int = 0) -> Iterator[Pair]:
    """(name, image, label) of `most` images at even distances."""
    files = sorted((root / "camvid/CamVid" / split).glob("*.png"))
    for file in files[:: max(1, len(files) // most)][:most] if most else files:
        label = np.asarray(Image.open(file.parent.parent / f"{split}annot" / file.name))
        yield file.stem, np.asarray(Image.open(file).convert("RGB")), np.where(label == 11, IGNORE, label)


def voc(root: Path, split: str, most: int = 0) -> Iterator[Pair]:
    home = root / "voc/VOCdevkit/VOC2012"
    names = (home / f"ImageSets/Segmentation/{split}.txt").read_text().split()
    folder = next(home / d for d in ("SegmentationClassAug", "SegmentationClass") if (home / d).is_dir())
    for name in names[:most] if most else names:
        image = Image.open(home / "JPEGImages" / f"{name}.jpg").convert("RGB")
        yield name, np.asarray(image), np.asarray(Image.open(folder / f"{name}.png"))


def mapped(label: Any, groups: Sequence[Sequence[int]]) -> Any:
    """Classes of `groups` become 1, 2, ..., all others 0; what is ignored stays so."""
    table = np.zeros(256, np.uint8)
    table[IGNORE] = IGNORE
    for k, group in enumerate(groups):
        table[list(group)] = k + 1
    return table[label]


def tiny(root: Path, split: str) -> Iterator[Pair]:
    table = np.full(256, IGNORE, np.uint8)
    table[:11] = (0, 1, 1, 2, 2, 3, 1, 1, 4, 4, 4)
    for name, image, label in camvid(root, split, {"train": 20, "val": 30}[split]):
        yield name, image, table[label]


def mixed(root: Path, split: str) -> Iterator[Pair]:
    rng = np.random.default_rng(0)
    for name, image, label in voc(root, split, {"train": 200, "val": 60}[split]):
        factor = float(rng.choice((0.25, 0.5, 1.0, 1.6)))
        size = [max(40, round(n * factor)) for n in (image.shape[1], image.shape[0])]
        label = mapped(label, (ANIMALS, (PERSON,)))
        yield (
            name,
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
            np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST)),
        )


def grey(root: Path, split: str) -> Iterator[Pair]:
    for name, image, label in voc(root, split, {"train": 200, "val": 60}[split]):
        yield name, np.asarray(Image.fromarray(image).convert("L")), mapped(label, (ANIMALS,))


def bands(root: Path, split: str) -> Iterator[Pair]:
    rng = np.random.default_rng(1)
    for name, image, label in camvid(root, split, {"train": 100, "val": 40}[split]):
        light = image.astype(np.float32)
        edges = sum(np.abs(g) for g in np.gradient(light.mean(2)))
        parts = [light * (7, 3, 11) + 300, edges * 20 + rng.normal(0, 20, edges.shape), 2000 - light.mean(2) * 5]
        yield name, np.clip(np.dstack(parts), 0, 65535).astype(np.uint16), label


SOURCES: dict[str, tuple[Callable[[Path, str], Iterator[Pair]], Sequence[str]]] = {
    "tiny": (tiny, ("sky", "standing", "ground", "tree", "moving")),
    "mixed": (mixed, ("rest", "animal", "person")),
    "grey": (grey, ("rest", "animal")),
    "bands": (bands, CAMVID),
    "voc": (voc, VOC),
    "camvid": (camvid, CAMVID),
}


def scaled(image: Any, factor: float, how: Image.Resampling) -> Any:
    """`image` by `factor`; bands one by one, for Pillow knows no more than four."""
    if factor == 1:
        return image
    size = [max(12, round(n * factor)) for n in (image.shape[1], image.shape[0])]
    if image.dtype == np.uint16:
        planes = [Image.fromarray(image[..., b].astype(np.float32)).resize(size, how) for b in range(image.shape[2])]
        return np.dstack([np.asarray(plane) for plane in planes]).astype(np.uint16)
    return np.asarray(Image.fromarray(image).resize(size, how))


def write(name: str, shared: Path, out: Path, scale: float = 1.0) -> None:
    """The set as `out`/folder for fullyconv and `out`/arrays for the rivals, whole or not at all."""
    if (out / "arrays/facts.json").is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    source, classes = SOURCES[name]
    moments: list[Any] = []
    for split in ("train", "val"):
        for part in (f"folder/{split}/images", f"folder/{split}/labels", f"arrays/{split}"):
            (out / part).mkdir(parents=True)
        for stem, image, label in source(shared / "data", split):
            image = scaled(image, scale, Image.Resampling.BOX)
            label = scaled(label.astype(np.uint8), scale, Image.Resampling.NEAREST)
            _image(out / f"folder/{split}/images/{stem}", image)
            Image.fromarray(label).save(out / f"folder/{split}/labels/{stem}.png")
            image = np.dstack([image] * 3) if image.ndim == 2 else image
            np.savez(out / f"arrays/{split}/{stem}.npz", image=image, label=label)
            if split == "train":
                moments.append((image.mean((0, 1)), image.std((0, 1))))
    (out / "folder/classes.txt").write_text("\n".join(classes) + "\n")
    mean, std = (np.mean(part, 0).tolist() for part in zip(*moments, strict=True))
    if name != "bands":  # as the weights ask for
        mean, std = [127.0] * 3, [128.0] * 3
    facts = {"classes": len(classes), "mean": mean, "std": std, "scale": scale}
    (out / "arrays/facts.json").write_text(json.dumps(facts))


def _image(path: Path, image: Any) -> None:
    if image.dtype == np.uint16:
        tifffile.imwrite(f"{path}.tif", image, planarconfig="contig", photometric="minisblack")
    else:
        Image.fromarray(image).save(f"{path}.png", compress_level=1)
